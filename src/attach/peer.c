/* SPDX-License-Identifier: BSD-3-Clause */
/* peer.c: who is at the other end of a unix socket. */
#include "attach/peer.h"

#include <errno.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/syscall.h>

#include "base/fd.h"

#ifndef SO_PEERPIDFD /* Linux 6.5; absent from older libcs' headers */
#define SO_PEERPIDFD 77
#endif

int peer_gone(const struct peer *p)
{
	struct pollfd poll_fd = {.fd = p->pidfd, .events = POLLIN};

	return poll(&poll_fd, 1, 0) != 0;
}

/*
 * The kernel names the very process that connected where it can. Elsewhere the PID of the
 * credentials is opened: as long as the socket is not hung up, somebody holds the peer's end, and
 * that is the process itself unless it gave the end away and exited; no way is known to tell.
 */
static int peer_pidfd(int sock, pid_t pid)
{
	struct pollfd poll_fd = {.fd = sock, .events = 0};
	socklen_t size = sizeof(int);
	int pidfd;

	if (!getsockopt(sock, SOL_SOCKET, SO_PEERPIDFD, &pidfd, &size))
		return pidfd;
	if (errno != ENOPROTOOPT)
		return -errno;
	pidfd = (int)syscall(SYS_pidfd_open, pid, 0);
	if (pidfd < 0)
		return -errno;
	if (poll(&poll_fd, 1, 0) > 0 && poll_fd.revents & (POLLHUP | POLLERR)) {
		close(pidfd);
		return -ESRCH;
	}
	return pidfd;
}

int peer_get(int sock, struct peer *out, struct error *e)
{
	struct ucred cred;
	socklen_t size = sizeof(cred);
	struct peer p;

	if (getsockopt(sock, SOL_SOCKET, SO_PEERCRED, &cred, &size))
		return error_set(e, errno, ERROR_GENERIC, "SO_PEERCRED: %s", error_text(errno));
	if (cred.pid <= 0)
		return error_set(e, ESRCH, ERROR_PERMISSION,
				 "your process cannot be seen from the daemon's PID namespace");
	p.pid = cred.pid;
	p.uid = cred.uid;
	p.pidfd = peer_pidfd(sock, cred.pid);
	if (p.pidfd < 0)
		return error_set(e, -p.pidfd, ERROR_GENERIC, "no pidfd of process %d: %s",
				 (int)p.pid, error_text(p.pidfd));
	if (peer_gone(&p)) {
		close(p.pidfd);
		return error_set(e, ESRCH, ERROR_NOT_FOUND, "process %d, which connected, is gone",
				 (int)p.pid);
	}
	*out = p;
	return 0;
}
