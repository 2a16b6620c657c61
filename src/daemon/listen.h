/* SPDX-License-Identifier: BSD-3-Clause */
/* listen.h: the attach socket. */
#ifndef DAEMON_LISTEN_H
#define DAEMON_LISTEN_H

#include <stdint.h>

#include "base/error.h"

struct engine;
struct listen;
struct parcel;

/*
 * Listens for VMMs on the unix socket at path. attached(ctx) is called, on some thread, when a VM
 * is with the engine and before its client is answered.
 */
int listen_new(struct engine *eng, const char *path, unsigned int mode, void (*attached)(void *ctx),
	       void *ctx, struct listen **out, struct error *e);
/* The same over what a daemon before this one had: its socket and its clients' connections. */
int listen_inherit(struct engine *eng, const char *path, struct parcel *in,
		   void (*attached)(void *ctx), void *ctx, struct listen **out, struct error *e);
void listen_free(struct listen *l);

/* For a successor: see attach/handover.h. */
int listen_hold(struct listen *l, uint32_t timeout_ms, struct error *e);
void listen_release(struct listen *l);
void listen_export(struct listen *l, struct parcel *out);

#endif
