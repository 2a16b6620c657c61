/* SPDX-License-Identifier: BSD-3-Clause */
/* fd.h: file descriptors: one owner each, closed once; passing them over unix sockets. */
#ifndef BASE_FD_H
#define BASE_FD_H

#include <stddef.h>
#include <sys/types.h>
#include <unistd.h>

#include "base/error.h"

static inline void fd_close(int *fd)
{
	if (*fd >= 0)
		close(*fd);
	*fd = -1;
}

/* A local of this kind is closed at the end of its scope, unless fd_take() took it. */
#define FD_OWNED __attribute__((cleanup(fd_close))) int

static inline int fd_take(int *fd)
{
	int taken = *fd;

	*fd = -1;
	return taken;
}

/* The most descriptors that one message of ours carries (the kernel's own bound is 253). */
#define FD_MESSAGE_MAX 64

/*
 * recvmsg() with descriptors. Borrows sock; gives the received descriptors (CLOEXEC) to the
 * caller. *n_fds: in, room in fds; out, how many came. Descriptors that did not fit were closed,
 * and the call fails with -EMSGSIZE. Returns bytes read, 0 at the end of the stream, -errno.
 */
ssize_t fd_recv(int sock, void *buf, size_t bytes, int *fds, int *n_fds);
/*
 * sendmsg() of all bytes with descriptors on the first. Borrows sock and fds. Blocks as long as
 * sock does. Returns 0 or -errno (no SIGPIPE).
 */
int fd_send(int sock, const void *buf, size_t bytes, const int *fds, int n_fds);

/* Listens on a unix socket at path (mode as given), replacing a dead one. Returns the fd. */
int fd_listen_unix(const char *path, unsigned int mode, struct error *e);
/* Connects to a unix socket. Returns the fd or -errno. */
int fd_connect_unix(const char *path);

#endif
