/* SPDX-License-Identifier: BSD-3-Clause */
/* outbox.c: lines on their way to a client, each with at most one descriptor. */
#include "attach/outbox.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "base/fd.h"

struct outbox_line {
	struct outbox_line *next;
	char *text;
	size_t bytes, sent;
	int fd; /* owned, -1 when there is none */
};

void outbox_init(struct outbox *o)
{
	o->head = NULL;
	o->tail = &o->head;
	o->bytes = 0;
}

/* Takes the first line out and frees it. */
static void outbox_drop(struct outbox *o)
{
	struct outbox_line *line = o->head;

	o->head = line->next;
	if (!o->head)
		o->tail = &o->head;
	fd_close(&line->fd);
	free(line->text);
	free(line);
}

void outbox_clear(struct outbox *o)
{
	while (o->head)
		outbox_drop(o);
	o->bytes = 0;
}

int outbox_add(struct outbox *o, char *text, size_t bytes, int fd)
{
	struct outbox_line *line = calloc(1, sizeof(*line));

	if (!line) {
		free(text);
		fd_close(&fd);
		return -ENOMEM;
	}
	line->text = text;
	line->bytes = bytes;
	line->fd = fd;
	*o->tail = line;
	o->tail = &line->next;
	o->bytes += bytes;
	return 0;
}

static ssize_t line_send(int sock, const struct outbox_line *line)
{
	union {
		char space[CMSG_SPACE(sizeof(int))];
		struct cmsghdr align;
	} control = {{0}};
	struct iovec iov = {line->text + line->sent, line->bytes - line->sent};
	struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1};
	ssize_t n;

	if (line->fd >= 0) {
		struct cmsghdr *cmsg = &control.align;

		msg.msg_control = control.space;
		msg.msg_controllen = sizeof(control.space);
		cmsg->cmsg_level = SOL_SOCKET;
		cmsg->cmsg_type = SCM_RIGHTS;
		cmsg->cmsg_len = CMSG_LEN(sizeof(int));
		memcpy(CMSG_DATA(cmsg), &line->fd, sizeof(int));
	}
	do {
		n = sendmsg(sock, &msg, MSG_NOSIGNAL | MSG_DONTWAIT);
	} while (n < 0 && errno == EINTR);
	return n < 0 ? -errno : n;
}

int outbox_flush(struct outbox *o, int sock)
{
	int sent = 0;

	while (o->head) {
		struct outbox_line *line = o->head;
		ssize_t n = line_send(sock, line);

		if (n == -EAGAIN)
			break;
		if (n < 0)
			return (int)n;
		fd_close(&line->fd); /* it went with the first byte */
		line->sent += (size_t)n;
		o->bytes -= (size_t)n;
		sent += (int)n;
		if (line->sent == line->bytes)
			outbox_drop(o);
	}
	return sent;
}
