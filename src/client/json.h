/* SPDX-License-Identifier: BSD-3-Clause */
/* json.h: the little JSON that the library speaks with the daemon; allocates nothing. */
#ifndef CLIENT_JSON_H
#define CLIENT_JSON_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/*
 * A JSON library would be a dependency that every VMM on the host has to load, so the few shapes
 * that cross the attach socket are read in place. All spans point into the caller's text. Any
 * thread; nothing blocks.
 */
struct json_span {
	const char *p;
	size_t len;
};

/* Takes text that is exactly one JSON value (white space around it allowed) or -EINVAL. */
int json_parse(const char *text, size_t len, struct json_span *out);
/* The value of a member of an object that json_parse() passed; false when it has none. */
bool json_member(struct json_span object, const char *name, struct json_span *out);
/*
 * Walks an array that json_parse() passed: start with at->p = NULL. False at its end, or when it
 * is no array.
 */
bool json_next(struct json_span array, struct json_span *at);
/* Decodes a string into buf, cut to fit (always terminated). -EINVAL when it is no string. */
int json_string(struct json_span value, char *buf, size_t bytes);
/* A whole number of bytes or an address; -EINVAL for anything else, -ERANGE past 64 bits. */
int json_u64(struct json_span value, uint64_t *out);

/* Text under construction. `over` is set, and stays, when something did not fit. */
struct json_text {
	char *buf;
	size_t len, cap;
	bool over;
};
void json_add(struct json_text *t, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
/* Adds a quoted string, escaped as JSON wants it. */
void json_add_string(struct json_text *t, const char *s);

#endif
