/* SPDX-License-Identifier: BSD-3-Clause */
/* frame.c: finds where one JSON object of a stream ends, byte by byte. */
#include "control/frame.h"

#include <stdlib.h>
#include <string.h>

/*
 * QMP clients may send requests without a newline between them, so an object ends where its last
 * brace closes. Only strings and brackets are looked at here; whether it is JSON at all is the
 * parser's business. What could never become an object is skipped up to the end of its line, so
 * that one error answers one line of garbage.
 */

#define FRAME_RESET_BYTE '\xff' /* never part of UTF-8; QMP clients resynchronise with it */

void frame_reset(struct frame *f)
{
	f->len = 0;
	f->depth = 0;
	f->in_string = f->escaped = f->skipping = false;
}

void frame_free(struct frame *f)
{
	free(f->buf);
	memset(f, 0, sizeof(*f));
}

static bool append(struct frame *f, char c)
{
	if (f->len == f->room) {
		size_t room = f->room ? f->room * 2 : 1024;
		char *buf;

		if (room > FRAME_BYTES_MAX)
			return false;
		buf = realloc(f->buf, room);
		if (!buf)
			return false;
		f->buf = buf;
		f->room = room;
	}
	f->buf[f->len++] = c;
	return true;
}

static bool is_space(char c)
{
	return c == ' ' || c == '\t' || c == '\r' || c == '\n';
}

static enum frame_result outside(struct frame *f, char c)
{
	if (f->skipping) {
		f->skipping = c != '\n';
		return FRAME_MORE;
	}
	if (is_space(c))
		return FRAME_MORE;
	if (c != '{') {
		f->skipping = true;
		return FRAME_GARBAGE;
	}
	f->depth = 1;
	return append(f, c) ? FRAME_MORE : FRAME_TOO_BIG;
}

enum frame_result frame_byte(struct frame *f, char c)
{
	if (c == FRAME_RESET_BYTE) {
		frame_reset(f);
		return FRAME_MORE;
	}
	if (f->depth == 0)
		return outside(f, c);
	if (!append(f, c))
		return FRAME_TOO_BIG;
	if (f->in_string) {
		if (f->escaped)
			f->escaped = false;
		else if (c == '\\')
			f->escaped = true;
		else if (c == '"')
			f->in_string = false;
		return FRAME_MORE;
	}
	switch (c) {
	case '"':
		f->in_string = true;
		return FRAME_MORE;
	case '{':
	case '[':
		return ++f->depth > FRAME_DEPTH_MAX ? FRAME_TOO_BIG : FRAME_MORE;
	case '}':
	case ']':
		return --f->depth == 0 ? FRAME_OBJECT : FRAME_MORE;
	default:
		return FRAME_MORE;
	}
}
