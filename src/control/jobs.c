/* SPDX-License-Identifier: BSD-3-Clause */
/* jobs.c: long commands, each on a thread of its own. */
#include "control/jobs.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>

#include <event2/event.h>

#include "base/fd.h"

/*
 * A job belongs to the loop; its thread only runs j->run() and then sets j->done and wakes the
 * loop, which joins it and answers. So nothing here needs a lock. A job outlives the connection
 * that started it, unless the request said otherwise.
 */

TAILQ_HEAD(job_list, job);

struct jobs {
	struct control *control;
	struct job_list list;
	unsigned int count;
	unsigned long next_name;
	int wake; /* eventfd, owned */
	struct event *event, *timer;
};

static void send_progress(struct control *c, struct job *j)
{
	control_broadcast(c, "JOB_PROGRESS",
			  json_pack("{s:s, s:s, s:s, s:I, s:I}", "job", j->name, "command",
				    j->command, "vm", j->target, "done",
				    (json_int_t)atomic_load(&j->progress.done), "total",
				    (json_int_t)atomic_load(&j->progress.total)));
}

static void job_free(struct job *j)
{
	json_decref(j->id);
	if (j->free_arg)
		j->free_arg(j->arg);
	free(j);
}

/* Joins a job that is done and answers for it. */
static void job_reap(struct jobs *jobs, struct job *j)
{
	struct control *c = jobs->control;
	struct client *cl;
	json_t *ret = NULL;

	pthread_join(j->thread, NULL);
	TAILQ_REMOVE(&jobs->list, j, entry);
	jobs->count--;
	send_progress(c, j);
	if (j->status == 0 && j->finish)
		ret = j->finish(j, c);
	cl = control_client(c, j->client);
	if (!cl)
		json_decref(ret);
	else if (j->status)
		client_fail(cl, j->id, &j->error);
	else
		client_answer(cl, j->id, ret);
	log_info("job %s (%s%s%s): %s", j->name, j->command, *j->target ? " " : "", j->target,
		 j->status ? j->error.desc : "done");
	job_free(j);
}

static void on_wake(evutil_socket_t fd, short what, void *ctx)
{
	struct jobs *jobs = ctx;
	struct job *j, *next;
	eventfd_t n;

	(void)what;
	if (eventfd_read(fd, &n))
		return;
	for (j = TAILQ_FIRST(&jobs->list); j; j = next) {
		next = TAILQ_NEXT(j, entry);
		if (atomic_load(&j->done))
			job_reap(jobs, j);
	}
	if (TAILQ_EMPTY(&jobs->list))
		event_del(jobs->timer);
}

static void on_timer(evutil_socket_t fd, short what, void *ctx)
{
	struct jobs *jobs = ctx;
	struct job *j;

	(void)fd;
	(void)what;
	TAILQ_FOREACH(j, &jobs->list, entry)
		send_progress(jobs->control, j);
}

struct jobs *jobs_new(struct control *c)
{
	struct jobs *jobs = calloc(1, sizeof(*jobs));

	if (!jobs)
		return NULL;
	TAILQ_INIT(&jobs->list);
	jobs->control = c;
	jobs->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	jobs->timer = event_new(c->base, -1, EV_PERSIST, on_timer, jobs);
	if (jobs->wake >= 0)
		jobs->event = event_new(c->base, jobs->wake, EV_READ | EV_PERSIST, on_wake, jobs);
	if (!jobs->timer || !jobs->event || event_add(jobs->event, NULL)) {
		jobs_free(jobs);
		return NULL;
	}
	return jobs;
}

void jobs_free(struct jobs *jobs)
{
	struct job *j, *next;

	if (!jobs)
		return;
	TAILQ_FOREACH(j, &jobs->list, entry)
		atomic_store(&j->progress.cancel, true);
	for (j = TAILQ_FIRST(&jobs->list); j; j = next) {
		next = TAILQ_NEXT(j, entry);
		job_reap(jobs, j);
	}
	if (jobs->event)
		event_free(jobs->event);
	if (jobs->timer)
		event_free(jobs->timer);
	fd_close(&jobs->wake);
	free(jobs);
}

static void *job_thread(void *arg)
{
	struct job *j = arg;
	int wake = j->jobs->wake;

	j->status = j->run(j, &j->error);
	atomic_store(&j->done, true); /* from here on the loop may free j, after joining */
	eventfd_write(wake, 1);
	return NULL;
}

/* Threads of ours take no signals: the loop does. */
static int thread_start(struct job *j)
{
	sigset_t all, old;
	int r;

	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	r = pthread_create(&j->thread, NULL, job_thread, j);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	return r;
}

static bool name_valid(const char *name)
{
	static const char ok[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_";
	size_t n = strlen(name);

	return n > 0 && n < JOB_NAME_MAX && strspn(name, ok) == n;
}

static struct job *find(struct jobs *jobs, const char *name)
{
	struct job *j;

	TAILQ_FOREACH(j, &jobs->list, entry)
		if (strcmp(j->name, name) == 0)
			return j;
	return NULL;
}

static int name_job(struct jobs *jobs, struct job *j, const char *wanted, struct error *e)
{
	if (wanted && !name_valid(wanted))
		return error_set(e, EINVAL, ERROR_ARGUMENT,
				 "argument 'job' must be 1 to %d letters, digits, - or _",
				 JOB_NAME_MAX - 1);
	if (wanted && find(jobs, wanted))
		return error_set(e, EEXIST, ERROR_EXISTS, "there is a job '%s' already", wanted);
	if (wanted) {
		snprintf(j->name, sizeof(j->name), "%s", wanted);
		return 0;
	}
	do {
		snprintf(j->name, sizeof(j->name), "j%lu", ++jobs->next_name);
	} while (find(jobs, j->name));
	return 0;
}

/* Makes a job and starts it; frees nothing of the argument when it fails. */
static int start_job(struct request *r, const char *target, const struct job *what, struct error *e)
{
	static const struct timeval period = {0, JOB_PROGRESS_MS * 1000};
	struct jobs *jobs = r->control->jobs;
	struct job *j;
	int err;

	if (jobs->count >= JOBS_MAX)
		return error_set(e, EBUSY, ERROR_LIMIT, "%u long commands are running already",
				 jobs->count);
	j = calloc(1, sizeof(*j));
	if (!j)
		return error_set(e, ENOMEM, ERROR_GENERIC, "no memory for a job");
	err = name_job(jobs, j, arg_text(r->args, "job"), e);
	if (err) {
		free(j);
		return err;
	}
	snprintf(j->command, sizeof(j->command), "%s", schema_text(r->command, "name"));
	snprintf(j->target, sizeof(j->target), "%s", target ? target : "");
	j->jobs = jobs;
	j->engine = r->control->config.engine;
	j->bytes = what->bytes;
	j->run = what->run;
	j->finish = what->finish;
	j->client = r->client->serial;
	j->id = json_incref(r->id);
	j->cancel_on_disconnect = json_is_true(json_object_get(r->args, "cancel-on-disconnect"));
	j->arg = what->arg;
	err = thread_start(j);
	if (err) {
		job_free(j);
		return error_set(e, err, ERROR_GENERIC, "no thread for the job: %s",
				 error_text(err));
	}
	j->free_arg = what->free_arg;
	TAILQ_INSERT_TAIL(&jobs->list, j, entry);
	if (jobs->count++ == 0)
		event_add(jobs->timer, &period);
	return METHOD_LATER;
}

int job_start(struct request *r, const char *target, uint64_t bytes,
	      int (*run)(struct job *, struct error *),
	      json_t *(*finish)(struct job *, struct control *), struct error *e)
{
	const struct job what = {.bytes = bytes, .run = run, .finish = finish};

	return start_job(r, target, &what, e);
}

int job_start_with(struct request *r, const char *target, void *arg, void (*free_arg)(void *),
		   int (*run)(struct job *, struct error *),
		   json_t *(*finish)(struct job *, struct control *), struct error *e)
{
	const struct job what = {.arg = arg, .free_arg = free_arg, .run = run, .finish = finish};
	int err = start_job(r, target, &what, e);

	if (err < 0)
		free_arg(arg);
	return err;
}

int jobs_cancel(struct jobs *jobs, const char *name, struct error *e)
{
	struct job *j = find(jobs, name);

	if (!j)
		return error_set(e, ENOENT, ERROR_NOT_FOUND, "there is no job '%.60s'", name);
	atomic_store(&j->progress.cancel, true);
	return 0;
}

json_t *jobs_query(struct jobs *jobs)
{
	json_t *list = json_array();
	struct job *j;

	TAILQ_FOREACH(j, &jobs->list, entry)
		json_array_append_new(
			list, json_pack("{s:s, s:s, s:s, s:I, s:I, s:b}", "job", j->name, "command",
					j->command, "vm", j->target, "done",
					(json_int_t)atomic_load(&j->progress.done), "total",
					(json_int_t)atomic_load(&j->progress.total), "cancelling",
					(int)atomic_load(&j->progress.cancel)));
	return list;
}

void jobs_client_gone(struct jobs *jobs, uint64_t serial)
{
	struct job *j;

	TAILQ_FOREACH(j, &jobs->list, entry)
		if (j->client == serial && j->cancel_on_disconnect)
			atomic_store(&j->progress.cancel, true);
}
