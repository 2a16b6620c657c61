/* SPDX-License-Identifier: BSD-3-Clause */
/* intake.c: one message at a time from a stream socket, with the descriptors that came with it. */
#include "attach/intake.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#define ROOM_FIRST 4096
#define SPACE	   " \t\r\n"

void intake_init(struct intake *f, size_t max_bytes)
{
	f->text = NULL;
	f->bytes = 0;
	f->room = 0;
	f->max = max_bytes;
	f->n_fds = 0;
}

void intake_reset(struct intake *f)
{
	free(f->text);
	f->text = NULL;
	f->bytes = 0;
	f->room = 0;
}

int intake_take_fds(struct intake *f, int *fds)
{
	int n = f->n_fds;

	memcpy(fds, f->fds, sizeof(int) * (size_t)n);
	f->n_fds = 0;
	return n;
}

/* Takes over what SCM_RIGHTS brought. Returns false when some did not fit. */
static bool intake_keep_fds(struct intake *f, struct msghdr *msg)
{
	bool fit = !(msg->msg_flags & MSG_CTRUNC);

	for (struct cmsghdr *c = CMSG_FIRSTHDR(msg); c; c = CMSG_NXTHDR(msg, c)) {
		size_t n;

		if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
			continue;
		n = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
		memcpy(&f->fds[f->n_fds], CMSG_DATA(c), n * sizeof(int));
		f->n_fds += (int)n;
	}
	return fit;
}

/* Reads up to bytes (which a peek has seen) into buf, and the descriptors. */
static ssize_t intake_receive(struct intake *f, int sock, void *buf, size_t bytes)
{
	union {
		char space[CMSG_SPACE(sizeof(int) * INTAKE_FDS_MAX)];
		struct cmsghdr align;
	} control;
	struct iovec iov = {buf, bytes};
	struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = control.space};
	ssize_t n;

	/* Exactly the room that is left: the kernel then truncates instead of overrunning fds. */
	if (f->n_fds < INTAKE_FDS_MAX)
		msg.msg_controllen = CMSG_LEN(sizeof(int) * (size_t)(INTAKE_FDS_MAX - f->n_fds));
	do {
		n = recvmsg(sock, &msg, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
	} while (n < 0 && errno == EINTR);
	if (n < 0)
		return -errno;
	if (!intake_keep_fds(f, &msg))
		return -ETOOMANYREFS;
	return n;
}

/* Looks at what is in the socket. Returns bytes, 0 when there are none yet, or -errno. */
static ssize_t intake_peek(int sock, void *buf, size_t bytes)
{
	ssize_t n;

	do {
		n = recv(sock, buf, bytes, MSG_PEEK | MSG_DONTWAIT);
	} while (n < 0 && errno == EINTR);
	if (n > 0)
		return n;
	if (!n)
		return -EPIPE;
	return errno == EAGAIN ? 0 : -errno;
}

int intake_first(struct intake *f, int sock, char *first)
{
	char buf[256];

	for (int i = 0; i < 16; i++) {
		ssize_t n = intake_peek(sock, buf, sizeof(buf));
		ssize_t spaces = 0;

		if (n <= 0)
			return (int)n;
		while (spaces < n && buf[spaces] && strchr(SPACE, buf[spaces]))
			spaces++;
		if (!spaces) {
			*first = buf[0];
			return 1;
		}
		n = intake_receive(f, sock, buf, (size_t)spaces);
		if (n < 0)
			return (int)n;
	}
	return 0; /* a flood of white space: the others' turn */
}

static int intake_grow(struct intake *f)
{
	size_t room = f->room ? f->room * 2 : ROOM_FIRST;
	char *text;

	if (f->bytes < f->room)
		return 0;
	if (f->room >= f->max)
		return -EMSGSIZE;
	if (room > f->max)
		room = f->max;
	text = realloc(f->text, room);
	if (!text)
		return -ENOMEM;
	f->text = text;
	f->room = room;
	return 0;
}

int intake_line(struct intake *f, int sock)
{
	for (;;) {
		char *at, *newline;
		ssize_t n;
		int r = intake_grow(f);

		if (r)
			return r;
		at = f->text + f->bytes;
		n = intake_peek(sock, at, f->room - f->bytes);
		if (n <= 0)
			return (int)n;
		newline = memchr(at, '\n', (size_t)n);
		if (newline)
			n = newline - at + 1;
		n = intake_receive(f, sock, at, (size_t)n);
		if (n < 0)
			return (int)n;
		f->bytes += (size_t)n;
		if (newline && f->text[f->bytes - 1] == '\n') {
			f->bytes--;
			return 1;
		}
	}
}
