/* SPDX-License-Identifier: BSD-3-Clause */
/* listen.c: the attach socket, on a thread of its own. */
#include <errno.h>
#include <event2/event.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "attach/attach.h"
#include "attach/handover.h"
#include "daemon/listen.h"

/*
 * Engine threads wait for answers of clients (a zap), and control commands wait for engine threads:
 * were both sockets served by one loop, each would wait for the other.
 */
struct listen {
	struct event_base *base;
	struct event *stop_event;
	struct attach *attach;
	pthread_t thread;
	bool runs;
	int stop_fd;
};

static void on_stop(evutil_socket_t fd, short what, void *arg)
{
	struct listen *l = arg;

	(void)fd;
	(void)what;
	event_base_loopbreak(l->base);
}

static void *loop(void *arg)
{
	struct listen *l = arg;

	event_base_dispatch(l->base);
	return NULL;
}

static int start(struct engine *eng, struct attach_config *config, struct parcel *in,
		 struct listen **out, struct error *e)
{
	struct listen *l = calloc(1, sizeof(*l));
	int r;

	if (!l)
		return error_set(e, ENOMEM, ERROR_GENERIC, "out of memory");
	l->stop_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	l->base = event_base_new();
	if (l->base && l->stop_fd >= 0)
		l->stop_event = event_new(l->base, l->stop_fd, EV_READ, on_stop, l);
	if (!l->stop_event || event_add(l->stop_event, NULL)) {
		r = error_set(e, ENOMEM, ERROR_GENERIC, "cannot make an event loop");
		goto fail;
	}
	r = attach_new(l->base, eng, config, &l->attach, e);
	if (r)
		goto fail;
	if (in)
		attach_adopt(l->attach, in);
	r = pthread_create(&l->thread, NULL, loop, l);
	if (r) {
		r = error_set(e, r, ERROR_GENERIC, "cannot start a thread: %s", error_text(r));
		goto fail;
	}
	l->runs = true;
	pthread_setname_np(l->thread, "ebb-attach");
	*out = l;
	return 0;
fail:
	listen_free(l);
	return r;
}

int listen_new(struct engine *eng, const char *path, unsigned int mode, void (*attached)(void *ctx),
	       void *ctx, struct listen **out, struct error *e)
{
	struct attach_config config = {
		.socket_path = path, .mode = mode, .attached = attached, .attached_ctx = ctx};

	return start(eng, &config, NULL, out, e);
}

int listen_inherit(struct engine *eng, const char *path, struct parcel *in,
		   void (*attached)(void *ctx), void *ctx, struct listen **out, struct error *e)
{
	struct attach_config config = {
		.socket_path = path,
		.listener = parcel_take_fd(in, json_object_get(in->body, "attach-socket")),
		.attached = attached,
		.attached_ctx = ctx};

	return start(eng, &config, in, out, e);
}

int listen_hold(struct listen *l, uint32_t timeout_ms, struct error *e)
{
	return attach_hold(l->attach, timeout_ms, e);
}

void listen_release(struct listen *l)
{
	attach_release(l->attach);
}

void listen_export(struct listen *l, struct parcel *out)
{
	attach_export(l->attach, out);
}

void listen_free(struct listen *l)
{
	uint64_t one = 1;

	if (!l)
		return;
	if (l->runs && write(l->stop_fd, &one, sizeof(one)) == (ssize_t)sizeof(one))
		pthread_join(l->thread, NULL);
	attach_free(l->attach);
	if (l->stop_event)
		event_free(l->stop_event);
	if (l->base)
		event_base_free(l->base);
	if (l->stop_fd >= 0)
		close(l->stop_fd);
	free(l);
}
