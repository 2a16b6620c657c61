/* SPDX-License-Identifier: BSD-3-Clause */
/* inherit.c: replacing the running daemon: the new one's part. */
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <unistd.h>

#include "base/fd.h"
#include "base/log.h"
#include "control/events.h"
#include "daemon/internal.h"
#include "daemon/listen.h"
#include "daemon/lock.h"
#include "daemon/notify.h"
#include "daemon/stage.h"
#include "daemon/upgrade.h"
#include "engine/handover.h"

/*
 * Theory of operation
 *
 * See upgrade.c for the whole. Until commit this process changes nothing that the old daemon has:
 * on any failure it says why and ends, freeing nothing, since closing a backend or a VM would give
 * up what the old one goes on with. After commit there is no way back: what fails then (metrics,
 * a policy) is logged, and the VMs are served.
 */

#define LOCK_TRIES    100
#define LOCK_AGAIN_US 20000
#define OLD_ENDS_MS   3000

#define METRICS_TRIES	 50
#define METRICS_AGAIN_US 10000

static int prepare(struct daemon *d, int sock, json_t **plugins, struct error *e)
{
	struct parcel hello, p;
	int r = stage_new(&hello, "hello");

	if (r)
		return error_set(e, ENOMEM, ERROR_GENERIC, "out of memory");
	json_object_set_new(hello.body, "ebbd", json_string(EBB_VERSION));
	json_object_set_new(hello.body, "oldest", json_integer(STATE_OLDEST));
	r = stage_send(sock, &hello, STAGE_READY_MS, e);
	if (!r)
		r = stage_expect(sock, "prepare", STAGE_READY_MS, &p, e);
	if (r)
		return r;
	*plugins = json_incref(json_object_get(p.body, "plugins"));
	parcel_free(&p);
	r = crashes_open(d->config->runtime_dir, &d->crashes, e);
	if (!r)
		r = daemon_make_engine(d, true, e);
	if (!r)
		r = handover_open_plugins(d->engine, *plugins, false, e);
	return r ? r : stage_say(sock, "ready", e);
}

/* Builds everything from the state, so that nothing is left to fail after commit. */
static int build(struct daemon *d, const json_t *plugins, struct parcel *state, struct error *e)
{
	int r = stage_check_version(state->body, e);

	/* Read only now: the old daemon wrote to it until it stood still. */
	if (!r)
		r = daemon_make_settings(d, e);
	if (!r)
		r = handover_open_plugins(d->engine, plugins, true, e);
	if (!r)
		r = handover_import(d->engine, state, e);
	if (!r)
		r = daemon_make_control(
			d, parcel_take_fd(state, json_object_get(state->body, "control-socket")),
			e);
	return r;
}

static void take_lock(struct daemon *d)
{
	struct error e;

	for (int i = 0; i < LOCK_TRIES; i++) {
		d->lock = lock_take(d->config->runtime_dir, &e);
		if (d->lock >= 0)
			return;
		usleep(LOCK_AGAIN_US);
	}
	log_error("%s", e.desc);
}

static void serve(struct daemon *d, int sock, struct parcel *state)
{
	struct pollfd old = {.fd = sock, .events = POLLIN};
	char text[64], path[PATH_MAX];
	struct error e;

	handover_take(d->engine);
	snprintf(text, sizeof(text), "MAINPID=%d\nREADY=1", (int)getpid());
	notify_send(text);
	if (stage_say(sock, "serving", &e))
		log_warning("the daemon before us: %s", e.desc);
	if (listen_inherit(d->engine, daemon_path(d, "attach.sock", path), state,
			   event_queue_settle, d->events, &d->listen, &e))
		log_error("attach socket: %s", e.desc);
	handover_settle(d->engine, state);
	/* Its metrics socket is in the way until it has ended, and a moment longer. */
	poll(&old, 1, OLD_ENDS_MS);
	for (int i = 0; daemon_make_metrics(d, &e); i++) {
		if (i == METRICS_TRIES) {
			log_error("metrics: %s", e.desc);
			return;
		}
		usleep(METRICS_AGAIN_US);
	}
}

static void say_failed(int sock, const char *why)
{
	struct parcel p;
	struct error e;

	stage_new(&p, "failed");
	json_object_set_new(p.body, "desc", json_string(why));
	stage_send(sock, &p, STAGE_TAKEN_MS, &e);
}

int upgrade_inherit(struct daemon *d, int fd, struct error *e)
{
	FD_OWNED sock = fd;
	struct parcel state = {0}, p;
	json_t *plugins = NULL;
	int r = prepare(d, sock, &plugins, e);

	if (!r)
		r = stage_expect(sock, "state", STAGE_READY_MS, &state, e);
	if (!r)
		r = build(d, plugins, &state, e);
	if (!r)
		r = stage_say(sock, "taken", e);
	if (!r)
		r = stage_expect(sock, "commit", STAGE_TAKEN_MS, &p, e);
	json_decref(plugins);
	if (r) {
		say_failed(sock, e->desc);
		return r;
	}
	parcel_free(&p);
	take_lock(d);
	serve(d, sock, &state);
	parcel_free(&state);
	return 0;
}
