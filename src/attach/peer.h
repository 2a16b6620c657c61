/* SPDX-License-Identifier: BSD-3-Clause */
/* peer.h: who is at the other end of a unix socket. */
#ifndef ATTACH_PEER_H
#define ATTACH_PEER_H

#include <sys/types.h>

#include "base/error.h"

struct peer {
	pid_t pid; /* as this process's PID namespace sees it */
	uid_t uid;
	int pidfd; /* owned */
};

/*
 * Asks the kernel who connected (SO_PEERCRED) and holds on to that process by a pidfd. Borrows
 * sock. Fails when the process is gone or cannot be seen from here; *out then owns nothing.
 */
int peer_get(int sock, struct peer *out, struct error *e);
/* Whether the process has exited. */
int peer_gone(const struct peer *p);

#endif
