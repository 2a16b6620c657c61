/* SPDX-License-Identifier: BSD-3-Clause */
/* listen.h: the attach socket. */
#ifndef DAEMON_LISTEN_H
#define DAEMON_LISTEN_H

#include "base/error.h"

struct engine;
struct listen;

/*
 * Listens for VMMs on the unix socket at path. attached(ctx) is called, on some thread, when a VM
 * is with the engine and before its client is answered.
 */
int listen_new(struct engine *eng, const char *path, unsigned int mode, void (*attached)(void *ctx),
	       void *ctx, struct listen **out, struct error *e);
void listen_free(struct listen *l);

#endif
