/* SPDX-License-Identifier: BSD-3-Clause */
/* handover.c: the clients' connections, given to the daemon's successor. */
#include "attach/handover.h"

#include <errno.h>
#include <event2/event.h>
#include <semaphore.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "attach/attach_internal.h"
#include "attach/native_handover.h"
#include "base/clock.h"
#include "base/fd.h"

/*
 * Theory of operation
 *
 * attach_hold() lets what has begun come to its end: a message that is half here is read to its
 * end, a request that runs is answered. A connection at rest is not read from any more: what its
 * client sends waits in the socket, and goes along with it. The bounds on messages and answers
 * bound this wait too; only a request that takes long (a detach, say) can make it fail.
 *
 * Nothing is read of a connection at rest, so an answer to a request of ours (a zap, a piece to
 * keep) would not be, either: whoever waits for one hears -EAGAIN at once. It is asked for again,
 * and the answer that still comes is dropped by the successor.
 *
 * Then there is nothing to hand over of a connection but its descriptor, whose attachment it
 * holds, and what the client is asked. A connection that has not attached is not handed over: its
 * client sees its end, and connects again.
 */

#define LOOK_US 1000

/* Something to be done in the loop's thread while another one waits for it. */
struct call {
	struct job job; /* first */
	struct attach *at;
	void (*fn)(struct attach *at, void *arg);
	void *arg;
	sem_t done;
};

static void call_done(struct job *job)
{
	struct call *c = (struct call *)job;

	c->fn(c->at, c->arg);
	sem_post(&c->done);
}

static void call(struct attach *at, void (*fn)(struct attach *at, void *arg), void *arg)
{
	struct call c = {.job.done = call_done, .at = at, .fn = fn, .arg = arg};

	sem_init(&c.done, 0, 0);
	worker_post(at->pool, &c.job);
	while (sem_wait(&c.done) && errno == EINTR)
		;
	sem_destroy(&c.done);
}

static void hold_requests(struct attach *at, bool hold)
{
	for (struct conn *c = at->conns; c; c = c->next)
		if (c->dialect == &native_dialect && !c->closing)
			native_hold(c, hold);
}

static void hold(struct attach *at, void *arg)
{
	bool *rests = arg;

	if (!at->holding) {
		at->holding = true;
		event_del(at->accept_event);
	}
	*rests = true;
	for (struct conn *c = at->conns; c; c = c->next) {
		conn_update(c);
		*rests &= c->closing || conn_rests(c);
	}
	/* Not while a client's own request may still need it. */
	if (*rests)
		hold_requests(at, true);
}

static void release(struct attach *at, void *arg)
{
	(void)arg;
	at->holding = false;
	hold_requests(at, false);
	if (!at->paused)
		event_add(at->accept_event, NULL);
	for (struct conn *c = at->conns; c; c = c->next)
		conn_update(c);
}

int attach_hold(struct attach *at, uint32_t timeout_ms, struct error *e)
{
	uint64_t end = clock_ns() + timeout_ms * NS_PER_MS;
	bool rests;

	for (;;) {
		call(at, hold, &rests);
		if (rests)
			return 0;
		if (clock_ns() >= end)
			break;
		usleep(LOOK_US);
	}
	attach_release(at);
	return error_set(e, EBUSY, ERROR_BUSY,
			 "a request of a client is still under way after %u ms", timeout_ms);
}

void attach_release(struct attach *at)
{
	call(at, release, NULL);
}

static void export(struct attach *at, void *arg)
{
	struct parcel *out = arg;
	json_t *conns = json_array();

	for (struct conn *c = at->conns; c; c = c->next) {
		json_t *j = c->closing || c->eof || c->finishing || c->dialect != &native_dialect
				    ? NULL
				    : native_export(c);

		if (j) {
			json_object_set_new(j, "fd", parcel_add_fd(out, c->fd));
			json_array_append_new(conns, j);
		}
	}
	json_object_set_new(out->body, "connections", conns);
	json_object_set_new(out->body, "attach-socket", parcel_add_fd(out, at->listener));
}

void attach_export(struct attach *at, struct parcel *out)
{
	call(at, export, out);
}

static void adopt(struct attach *at, int fd, const json_t *j)
{
	struct conn *c = conn_new(at, fd);
	struct error e;

	if (!c) {
		close(fd);
		return;
	}
	if (peer_get(fd, &c->peer, &e) || native_inherit(c, j))
		conn_close(c);
	else
		conn_start(c);
}

void attach_adopt(struct attach *at, struct parcel *in)
{
	json_t *item;
	size_t i;

	json_array_foreach(json_object_get(in->body, "connections"), i, item) {
		int fd = parcel_take_fd(in, json_object_get(item, "fd"));

		if (fd >= 0)
			adopt(at, fd, item);
	}
}
