/* SPDX-License-Identifier: BSD-3-Clause */
/* listen.h: the attach socket. */
#ifndef DAEMON_LISTEN_H
#define DAEMON_LISTEN_H

#include "base/error.h"

struct engine;
struct listen;

/* Listens for VMMs on the unix socket at path. */
int listen_new(struct engine *eng, const char *path, unsigned int mode, struct listen **out,
	       struct error *e);
void listen_free(struct listen *l);

#endif
