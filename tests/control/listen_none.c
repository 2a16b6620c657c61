/* SPDX-License-Identifier: BSD-3-Clause */
/* listen_none.c: ebbd without an attach socket, for tests of the rest. */
#include <errno.h>

#include "base/log.h"
#include "daemon/listen.h"
#include "daemon/upgrade.h"

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

int upgrade_run(struct daemon *d, const char *binary, uint32_t wait_ms, struct upgrade_done *out,
		struct error *e)
{
	(void)wait_ms;
	(void)d;
	(void)binary;
	(void)out;
	return error_set(e, ENOTSUP, ERROR_UNSUPPORTED, "this build cannot be replaced");
}

int upgrade_inherit(struct daemon *d, int fd, struct error *e)
{
	(void)d;
	(void)fd;
	return error_set(e, ENOTSUP, ERROR_UNSUPPORTED, "this build replaces nobody");
}
