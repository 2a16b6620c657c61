/* SPDX-License-Identifier: BSD-3-Clause */
/* outbox.h: lines on their way to a client, each with at most one descriptor. */
#ifndef ATTACH_OUTBOX_H
#define ATTACH_OUTBOX_H

#include <stddef.h>

struct outbox_line;

struct outbox {
	struct outbox_line *head, **tail;
	size_t bytes; /* not sent yet */
};

void outbox_init(struct outbox *o);
/* Frees what was not sent. */
void outbox_clear(struct outbox *o);
/* Consumes the line (malloc'ed) and fd (-1: none) in any case. 0 or -ENOMEM. */
int outbox_add(struct outbox *o, char *text, size_t bytes, int fd);
/* Sends what the socket takes now. Returns bytes sent (0: it is full), or -errno. */
int outbox_flush(struct outbox *o, int sock);

#endif
