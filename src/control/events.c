/* SPDX-License-Identifier: BSD-3-Clause */
/* events.c: the engine's events, from its threads into the control loop. */
#include "control/events.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <time.h>

#include <event2/event.h>

#include "base/fd.h"
#include "control/internal.h"
#include "control/settings.h"

/* What is lost when events come too fast must not be the news of a VM that needs its settings. */
#define EVENT_QUEUE_MAX	   2048
#define EVENT_QUEUE_OTHERS 1024 /* for all but VM_ATTACHED */
#define SETTLE_S	   2

struct event_queue {
	pthread_mutex_t lock; /* over ring, head, count, dropped, taken, handled */
	pthread_cond_t settled;
	uint64_t taken, handled; /* how many were put in, and are dealt with, since ever */
	struct engine_event ring[EVENT_QUEUE_MAX];
	unsigned int head, count;
	unsigned long dropped;
	bool attached; /* a loop takes events */
	int wake;      /* eventfd, owned */
	struct event *event;
	struct control *control;
	struct log_limit limit;
};

struct event_queue *event_queue_new(void)
{
	struct event_queue *q = calloc(1, sizeof(*q));

	if (!q)
		return NULL;
	pthread_mutex_init(&q->lock, NULL);
	pthread_cond_init(&q->settled, NULL);
	q->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (q->wake < 0) {
		event_queue_free(q);
		return NULL;
	}
	return q;
}

void event_queue_free(struct event_queue *q)
{
	if (!q)
		return;
	event_queue_detach(q);
	fd_close(&q->wake);
	pthread_cond_destroy(&q->settled);
	pthread_mutex_destroy(&q->lock);
	free(q);
}

void event_queue_push(void *queue, const struct engine_event *ev)
{
	struct event_queue *q = queue;
	unsigned int max;

	max = ev->type == EVENT_VM_ATTACHED ? EVENT_QUEUE_MAX : EVENT_QUEUE_OTHERS;
	pthread_mutex_lock(&q->lock);
	if (q->count >= max) {
		q->dropped++;
	} else {
		q->ring[(q->head + q->count++) % EVENT_QUEUE_MAX] = *ev;
		q->taken++;
	}
	pthread_mutex_unlock(&q->lock);
	/* The counter is never full: the loop resets it. */
	eventfd_write(q->wake, 1);
}

/* Makes the event's data as proto/control.json declares it. */
static json_t *event_data(const struct engine_event *ev, const char **name)
{
	const char *subject = ev->subject;

	switch (ev->type) {
	case EVENT_VM_ATTACHED:
		*name = "VM_ATTACHED";
		return json_pack("{s:s}", "vm", ev->vm);
	case EVENT_VM_DETACHED:
		*name = "VM_DETACHED";
		return json_pack("{s:s, s:s}", "vm", ev->vm, "desc", ev->detail);
	case EVENT_VM_LIMIT_EXCEEDED:
		*name = "VM_LIMIT_EXCEEDED";
		return json_pack("{s:s, s:I, s:s}", "vm", ev->vm, "bytes", (json_int_t)ev->value,
				 "desc", ev->detail);
	case EVENT_BACKEND_FULL:
	case EVENT_BACKEND_FAILED:
		*name = ev->type == EVENT_BACKEND_FULL ? "BACKEND_FULL" : "BACKEND_FAILED";
		return json_pack("{s:s, s:s}", "backend", subject, "desc", ev->detail);
	case EVENT_PAGE_LOST:
		*name = "PAGE_LOST";
		return json_pack("{s:s, s:s, s:I, s:s}", "vm", ev->vm, "backend", subject,
				 "address", (json_int_t)ev->value, "desc", ev->detail);
	case EVENT_POLICY_FAILED:
		*name = "POLICY_FAILED";
		return json_pack("{s:s, s:s, s:s}", "vm", ev->vm, "policy", subject, "desc",
				 ev->detail);
	case EVENT_VM_SUSPENDED:
		if (!ev->detail[0]) {
			*name = "VM_RESUMED";
			return json_pack("{s:s}", "vm", ev->vm);
		}
		*name = "VM_SUSPENDED";
		return json_pack("{s:s, s:s}", "vm", ev->vm, "desc", ev->detail);
	}
	return NULL;
}

static void handle(struct event_queue *q, const struct engine_event *ev)
{
	struct control *c = q->control;
	const char *name = NULL;
	json_t *data = event_data(ev, &name);
	bool quiet;

	if (!data)
		return;
	if (ev->type == EVENT_VM_ATTACHED)
		settings_apply_vm(c->config.settings, c->config.engine, ev->vm);
	quiet = ev->type == EVENT_VM_ATTACHED || ev->type == EVENT_VM_DETACHED ||
		strcmp(name, "VM_RESUMED") == 0;
	log_limited(&q->limit, quiet ? LOG_INFO : LOG_WARNING, "%s%s%s%s%s%s%s", name,
		    *ev->vm ? ": VM " : "", ev->vm, *ev->subject ? ": " : "", ev->subject,
		    *ev->detail ? ": " : "", ev->detail);
	control_broadcast(c, name, data);
}

void event_queue_drain(struct event_queue *q)
{
	struct engine_event ev;
	unsigned long dropped;
	bool more;

	do {
		pthread_mutex_lock(&q->lock);
		more = q->count > 0;
		if (more) {
			ev = q->ring[q->head];
			q->head = (q->head + 1) % EVENT_QUEUE_MAX;
			q->count--;
		}
		dropped = q->dropped;
		q->dropped = 0;
		pthread_mutex_unlock(&q->lock);
		if (dropped)
			log_warning("%lu events came too fast and were left out", dropped);
		if (!more)
			return;
		handle(q, &ev);
		pthread_mutex_lock(&q->lock);
		q->handled++;
		pthread_cond_broadcast(&q->settled);
		pthread_mutex_unlock(&q->lock);
	} while (more);
}

void event_queue_settle(void *queue)
{
	struct event_queue *q = queue;
	struct timespec end;
	uint64_t goal;

	clock_gettime(CLOCK_REALTIME, &end);
	end.tv_sec += SETTLE_S;
	pthread_mutex_lock(&q->lock);
	goal = q->taken;
	while (q->attached && q->handled < goal &&
	       pthread_cond_timedwait(&q->settled, &q->lock, &end) == 0)
		;
	pthread_mutex_unlock(&q->lock);
}

static void on_wake(evutil_socket_t fd, short what, void *ctx)
{
	eventfd_t n;

	(void)what;
	if (eventfd_read(fd, &n) == 0)
		event_queue_drain(ctx);
}

void event_queue_attach(struct event_queue *q, struct event_base *base, struct control *c)
{
	q->control = c;
	pthread_mutex_lock(&q->lock);
	q->attached = true;
	pthread_mutex_unlock(&q->lock);
	q->event = event_new(base, q->wake, EV_READ | EV_PERSIST, on_wake, q);
	if (!q->event || event_add(q->event, NULL))
		log_error("control: no memory for events");
}

void event_queue_detach(struct event_queue *q)
{
	pthread_mutex_lock(&q->lock);
	q->attached = false;
	pthread_cond_broadcast(&q->settled);
	pthread_mutex_unlock(&q->lock);
	if (q->event)
		event_free(q->event);
	q->event = NULL;
	q->control = NULL;
}
