/* SPDX-License-Identifier: BSD-3-Clause */
/* listen_attach.c: the attach socket. */
#include "attach/attach.h"
#include "daemon/listen.h"

/* The handle of the one is the other's. */
int listen_new(struct event_base *base, struct engine *eng, const char *path, unsigned int mode,
	       struct listen **out, struct error *e)
{
	struct attach_config config = {.socket_path = path, .mode = mode};

	return attach_new(base, eng, &config, (struct attach **)out, e);
}

void listen_free(struct listen *l)
{
	attach_free((struct attach *)l);
}
