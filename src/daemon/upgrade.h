/* SPDX-License-Identifier: BSD-3-Clause */
/* upgrade.h: replacing the running daemon by another binary. */
#ifndef DAEMON_UPGRADE_H
#define DAEMON_UPGRADE_H

#include "base/error.h"
#include "control/control.h"

struct daemon;

/*
 * In the old daemon, on a thread of its own: starts `binary` (NULL: the file that this daemon was
 * started from) and gives it everything. It has wait_ms for getting ready, while the VMs are
 * served; what comes after has bounds of its own. 0: it serves the VMs, and this process must end
 * without touching anything. Else all goes on as before, and e says why.
 */
int upgrade_run(struct daemon *d, const char *binary, uint32_t wait_ms, struct upgrade_done *out,
		struct error *e);

/*
 * In the new one, started with --take-over FD, in place of a normal start: takes everything over
 * from the daemon at the other end. On failure the process must end at once, with nothing freed.
 */
int upgrade_inherit(struct daemon *d, int fd, struct error *e);

#endif
