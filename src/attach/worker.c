/* SPDX-License-Identifier: BSD-3-Clause */
/* worker.c: threads for what may block, and the way back into the event loop. */
#include "attach/worker.h"

#include <errno.h>
#include <event2/event.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <time.h>

#include "base/fd.h"

#define IDLE_SECONDS 10
#define STACK_BYTES  (256 << 10)

struct job_queue {
	struct job *head, **tail;
};

struct worker_pool {
	pthread_mutex_t lock; /* guards all below it; nothing is called under it */
	pthread_cond_t work;  /* a job is queued, or stopping */
	pthread_cond_t gone;  /* a thread has ended */
	struct job_queue queued, finished;
	unsigned int threads, idle, waiting; /* waiting: jobs queued and not yet taken */
	bool stopping;

	int wake; /* eventfd: finished is not empty */
	struct event *wake_event;
};

static void queue_put(struct job_queue *q, struct job *job)
{
	job->next = NULL;
	*q->tail = job;
	q->tail = &job->next;
}

static struct job *queue_take(struct job_queue *q)
{
	struct job *job = q->head;

	if (!job)
		return NULL;
	q->head = job->next;
	if (!q->head)
		q->tail = &q->head;
	return job;
}

void worker_post(struct worker_pool *pool, struct job *job)
{
	uint64_t one = 1;

	pthread_mutex_lock(&pool->lock);
	queue_put(&pool->finished, job);
	/* Under the lock, so that the pool cannot go between the two. The counter never overflows.
	 */
	while (write(pool->wake, &one, sizeof(one)) < 0 && errno == EINTR)
		;
	pthread_mutex_unlock(&pool->lock);
}

/* Waits for a job; NULL when this thread should end. Called and returns with the lock held. */
static struct job *pool_wait(struct worker_pool *pool)
{
	struct timespec until;
	struct job *job;

	clock_gettime(CLOCK_MONOTONIC, &until);
	until.tv_sec += IDLE_SECONDS;
	pool->idle++;
	for (;;) {
		int r;

		job = queue_take(&pool->queued);
		if (job || pool->stopping)
			break;
		r = pthread_cond_timedwait(&pool->work, &pool->lock, &until);
		if (r == ETIMEDOUT) {
			job = queue_take(&pool->queued);
			break;
		}
	}
	pool->idle--;
	if (job)
		pool->waiting--;
	return job;
}

static void *worker_main(void *arg)
{
	struct worker_pool *pool = arg;
	struct job *job;

	pthread_mutex_lock(&pool->lock);
	while ((job = pool_wait(pool))) {
		pthread_mutex_unlock(&pool->lock);
		job->run(job);
		worker_post(pool, job);
		pthread_mutex_lock(&pool->lock);
	}
	pool->threads--;
	pthread_cond_signal(&pool->gone);
	pthread_mutex_unlock(&pool->lock);
	return NULL;
}

/* Signals are the daemon's main thread's business. */
static int worker_spawn(struct worker_pool *pool)
{
	pthread_attr_t attr;
	sigset_t all, before;
	pthread_t thread;
	int r;

	sigfillset(&all);
	pthread_attr_init(&attr);
	pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
	pthread_attr_setstacksize(&attr, STACK_BYTES);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	r = pthread_create(&thread, &attr, worker_main, pool);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	pthread_attr_destroy(&attr);
	return -r;
}

void worker_submit(struct worker_pool *pool, struct job *job)
{
	bool alone = false;

	pthread_mutex_lock(&pool->lock);
	queue_put(&pool->queued, job);
	pool->waiting++;
	if (pool->idle >= pool->waiting) {
		pthread_cond_signal(&pool->work);
	} else if (!worker_spawn(pool)) {
		pool->threads++;
	} else if (!pool->threads) {
		job = queue_take(&pool->queued);
		pool->waiting--;
		alone = true;
	}
	pthread_mutex_unlock(&pool->lock);
	if (alone) {
		job->run(job);
		worker_post(pool, job);
	}
}

static void pool_finish(struct worker_pool *pool)
{
	struct job *job;
	uint64_t count;

	while (read(pool->wake, &count, sizeof(count)) < 0 && errno == EINTR)
		;
	for (;;) {
		pthread_mutex_lock(&pool->lock);
		job = queue_take(&pool->finished);
		pthread_mutex_unlock(&pool->lock);
		if (!job)
			return;
		job->done(job);
	}
}

static void on_wake(evutil_socket_t fd, short what, void *arg)
{
	(void)fd;
	(void)what;
	pool_finish(arg);
}

int worker_pool_new(struct event_base *base, struct worker_pool **out, struct error *e)
{
	struct worker_pool *pool = calloc(1, sizeof(*pool));
	pthread_condattr_t attr;

	if (!pool)
		return error_set(e, ENOMEM, ERROR_GENERIC, "out of memory");
	pthread_mutex_init(&pool->lock, NULL);
	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_cond_init(&pool->work, &attr);
	pthread_cond_init(&pool->gone, NULL);
	pthread_condattr_destroy(&attr);
	pool->queued.tail = &pool->queued.head;
	pool->finished.tail = &pool->finished.head;
	pool->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (pool->wake >= 0)
		pool->wake_event = event_new(base, pool->wake, EV_READ | EV_PERSIST, on_wake, pool);
	if (!pool->wake_event || event_add(pool->wake_event, NULL)) {
		int r = error_set(e, errno ? errno : ENOMEM, ERROR_GENERIC, "eventfd: %s",
				  error_text(errno));

		worker_pool_free(pool);
		return r;
	}
	*out = pool;
	return 0;
}

void worker_pool_free(struct worker_pool *pool)
{
	if (!pool)
		return;
	/* What is done may submit more (a connection that ends): until nothing is left. */
	for (;;) {
		bool empty;

		pthread_mutex_lock(&pool->lock);
		pool->stopping = true;
		pthread_cond_broadcast(&pool->work);
		while (pool->threads)
			pthread_cond_wait(&pool->gone, &pool->lock);
		empty = !pool->finished.head;
		pool->stopping = false;
		pthread_mutex_unlock(&pool->lock);
		if (empty)
			break;
		pool_finish(pool);
	}
	if (pool->wake_event)
		event_free(pool->wake_event);
	fd_close(&pool->wake);
	pthread_cond_destroy(&pool->work);
	pthread_cond_destroy(&pool->gone);
	pthread_mutex_destroy(&pool->lock);
	free(pool);
}
