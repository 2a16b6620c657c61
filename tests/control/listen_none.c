/* SPDX-License-Identifier: BSD-3-Clause */
/* listen_none.c: ebbd without an attach socket, for tests of the rest. */
#include "base/log.h"
#include "daemon/listen.h"

int listen_new(struct engine *eng, const char *path, unsigned int mode, void (*attached)(void *ctx),
	       void *ctx, struct listen **out, struct error *e)
{
	(void)attached;
	(void)ctx;
	(void)eng;
	(void)mode;
	(void)e;
	log_warning("this build has no attach socket (%s)", path);
	*out = NULL;
	return 0;
}

void listen_free(struct listen *l)
{
	(void)l;
}
