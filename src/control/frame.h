/* SPDX-License-Identifier: BSD-3-Clause */
/* frame.h: finds where one JSON object of a stream ends, byte by byte. */
#ifndef CONTROL_FRAME_H
#define CONTROL_FRAME_H

#include <stdbool.h>
#include <stddef.h>

#define FRAME_BYTES_MAX (64 * 1024) /* of one request */
#define FRAME_DEPTH_MAX 32	    /* of its nesting */

enum frame_result {
	FRAME_MORE,    /* nothing complete yet */
	FRAME_OBJECT,  /* buf holds one object, len bytes; frame_reset() when done with it */
	FRAME_GARBAGE, /* something that begins no object; the rest of the line is skipped */
	FRAME_TOO_BIG, /* too long or too deep: the stream cannot be followed any more */
};

/* Zero-initialise. */
struct frame {
	char *buf;
	size_t len, room;
	unsigned int depth;
	bool in_string, escaped, skipping;
};

/* Takes one byte. Allocates as the object grows, at most FRAME_BYTES_MAX. */
enum frame_result frame_byte(struct frame *f, char c);
/* Forgets what has been read so far. */
void frame_reset(struct frame *f);
void frame_free(struct frame *f);

#endif
