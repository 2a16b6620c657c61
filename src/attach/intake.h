/* SPDX-License-Identifier: BSD-3-Clause */
/* intake.h: one message at a time from a stream socket, with the descriptors that came with it. */
#ifndef ATTACH_INTAKE_H
#define ATTACH_INTAKE_H

#include <stdbool.h>
#include <stddef.h>

/* The kernel's SCM_MAX_FD: with this much room it never drops descriptors in our thread. */
#define INTAKE_FDS_MAX 253

/*
 * Never reads past the end of a message: what the client sends after it stays in the socket, and
 * the descriptors found belong to this message and no other (the kernel hands them out with the
 * first byte of the packet they were sent with).
 */
struct intake {
	char *text; /* of the message so far, not terminated */
	size_t bytes, room, max;
	int fds[INTAKE_FDS_MAX]; /* owned */
	int n_fds;
};

void intake_init(struct intake *f, size_t max_bytes);
/* Frees the text; the descriptors are to be taken or closed before (closing may block). */
void intake_reset(struct intake *f);

/*
 * Skips white space before a message. Returns 1 with its first byte (which stays in the socket),
 * 0 when there is none yet, -EPIPE at the end of the stream, or another -errno. Descriptors that
 * come with the white space count to the message.
 */
int intake_first(struct intake *f, int sock, char *first);
/*
 * Reads on to the end of the line. Returns 1 when it is complete (the newline is not part of
 * text), 0 when more must come, -EPIPE at the end of the stream, -EMSGSIZE when the line is longer
 * than max, -ETOOMANYREFS when descriptors were lost on the way, or another -errno.
 */
int intake_line(struct intake *f, int sock);
/* Moves the descriptors out; returns how many. fds has room for INTAKE_FDS_MAX. */
int intake_take_fds(struct intake *f, int *fds);

#endif
