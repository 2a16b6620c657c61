/* SPDX-License-Identifier: BSD-3-Clause */
/* fd.c: file descriptors: passing them over unix sockets. */
#include "base/fd.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

ssize_t fd_recv(int sock, void *buf, size_t bytes, int *fds, int *n_fds)
{
	union {
		char space[CMSG_SPACE(sizeof(int) * FD_MESSAGE_MAX)];
		struct cmsghdr align;
	} control;
	struct iovec iov = {buf, bytes};
	struct msghdr msg = {.msg_iov = &iov,
			     .msg_iovlen = 1,
			     .msg_control = control.space,
			     .msg_controllen = sizeof(control.space)};
	int room = *n_fds, got = 0, dropped = 0;
	ssize_t n;

	*n_fds = 0;
	do {
		n = recvmsg(sock, &msg, MSG_CMSG_CLOEXEC);
	} while (n < 0 && errno == EINTR);
	if (n < 0)
		return -errno;
	for (struct cmsghdr *c = CMSG_FIRSTHDR(&msg); c; c = CMSG_NXTHDR(&msg, c)) {
		size_t count;

		if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
			continue;
		count = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
		for (size_t i = 0; i < count; i++) {
			int fd;

			memcpy(&fd, CMSG_DATA(c) + i * sizeof(int), sizeof(int));
			if (got < room) {
				fds[got++] = fd;
			} else {
				close(fd);
				dropped++;
			}
		}
	}
	*n_fds = got;
	/* MSG_CTRUNC: the kernel itself dropped some. */
	if (dropped || (msg.msg_flags & MSG_CTRUNC)) {
		for (int i = 0; i < got; i++)
			close(fds[i]);
		*n_fds = 0;
		return -EMSGSIZE;
	}
	return n;
}

int fd_send(int sock, const void *buf, size_t bytes, const int *fds, int n_fds)
{
	union {
		char space[CMSG_SPACE(sizeof(int) * FD_MESSAGE_MAX)];
		struct cmsghdr align;
	} control;
	const char *p = buf;

	if (n_fds < 0 || n_fds > FD_MESSAGE_MAX)
		return -EINVAL;
	while (bytes) {
		struct iovec iov = {(void *)p, bytes};
		struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1};
		ssize_t n;

		if (n_fds) {
			struct cmsghdr *c;

			memset(&control, 0, sizeof(control));
			msg.msg_control = control.space;
			msg.msg_controllen = CMSG_SPACE(sizeof(int) * (size_t)n_fds);
			c = CMSG_FIRSTHDR(&msg);
			c->cmsg_level = SOL_SOCKET;
			c->cmsg_type = SCM_RIGHTS;
			c->cmsg_len = CMSG_LEN(sizeof(int) * (size_t)n_fds);
			memcpy(CMSG_DATA(c), fds, sizeof(int) * (size_t)n_fds);
		}
		n = sendmsg(sock, &msg, MSG_NOSIGNAL);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return -errno;
		n_fds = 0;
		p += n;
		bytes -= (size_t)n;
	}
	return 0;
}

static int unix_address(struct sockaddr_un *addr, const char *path)
{
	if (strlen(path) >= sizeof(addr->sun_path))
		return -ENAMETOOLONG;
	memset(addr, 0, sizeof(*addr));
	addr->sun_family = AF_UNIX;
	memcpy(addr->sun_path, path, strlen(path) + 1);
	return 0;
}

int fd_connect_unix(const char *path)
{
	FD_OWNED fd = -1;
	struct sockaddr_un addr;
	int r = unix_address(&addr, path);

	if (r)
		return r;
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (fd < 0 || connect(fd, (struct sockaddr *)&addr, sizeof(addr)))
		return -errno;
	return fd_take(&fd);
}

int fd_listen_unix(const char *path, unsigned int mode, struct error *e)
{
	FD_OWNED fd = -1;
	FD_OWNED probe = -1;
	struct sockaddr_un addr;
	struct stat st;
	int r = unix_address(&addr, path);

	if (r)
		return error_set(e, -r, ERROR_ARGUMENT, "%s: path too long for a socket", path);
	/* A live listener is never pushed aside. */
	probe = fd_connect_unix(path);
	if (probe >= 0)
		return error_set(e, EADDRINUSE, ERROR_BUSY, "%s: somebody listens there already",
				 path);
	/* Somebody's file is not ours to remove because a path was mistyped. */
	if (lstat(path, &st) == 0 && !S_ISSOCK(st.st_mode))
		return error_set(e, EEXIST, ERROR_EXISTS, "%s exists and is no socket", path);
	if (unlink(path) && errno != ENOENT)
		return error_set(e, errno, ERROR_GENERIC, "%s: %s", path, error_text(errno));
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd < 0)
		return error_set(e, errno, ERROR_GENERIC, "socket: %s", error_text(errno));
	/* The mode is set before anyone can connect: fchmod on a socket fd sets the new inode's. */
	if (fchmod(fd, mode) || bind(fd, (struct sockaddr *)&addr, sizeof(addr)) ||
	    chmod(path, mode) || listen(fd, 128))
		return error_set(e, errno, ERROR_GENERIC, "%s: %s", path, error_text(errno));
	return fd_take(&fd);
}
