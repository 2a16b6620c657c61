/* SPDX-License-Identifier: BSD-3-Clause */
/* firecracker.c: the dialect of Firecracker's snapshot loader: recognised, and refused so far. */
#include "attach/conn.h"

#include "base/error.h"

/*
 * Its one message, a JSON array of mappings with one userfaultfd, expects no answer; its memory is
 * anonymous and filled from a snapshot file. The engine only takes memory that is a file, so the
 * connection is closed, which Firecracker reports as a failed load.
 */

static int firecracker_begin(struct conn *c)
{
	(void)c;
	return 0;
}

static void firecracker_input(struct conn *c)
{
	conn_log(c, ERROR_UNSUPPORTED,
		 "speaks Firecracker's dialect, but anonymous memory cannot be managed");
	conn_close(c);
}

static void firecracker_nothing(struct conn *c)
{
	(void)c;
}

const struct dialect firecracker_dialect = {
	.name = "firecracker",
	.first = '[',
	.begin = firecracker_begin,
	.input = firecracker_input,
	.hangup = firecracker_nothing,
	.release = firecracker_nothing,
	.free = firecracker_nothing,
};
