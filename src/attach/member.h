/* SPDX-License-Identifier: BSD-3-Clause */
/* member.h: checked access to the members of a JSON object, with errors that name them. */
#ifndef ATTACH_MEMBER_H
#define ATTACH_MEMBER_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"

/*
 * `where` is the object's place in the message as an error should name it ("arguments.vm"), ""
 * for the message itself. Getters that take `absent` accept that the member is missing (then *out
 * is left alone); the others refuse it. All write *out only on success.
 */
#define MEMBER_U64_MAX ((uint64_t)INT64_MAX)

/* obj is an object and has no member but the known ones (NULL-terminated). */
int member_known(const json_t *obj, const char *where, const char *const *known, struct error *e);

int member_u64(const json_t *obj, const char *where, const char *name, uint64_t *out,
	       struct error *e);
int member_u64_absent(const json_t *obj, const char *where, const char *name, uint64_t *out,
		      struct error *e);
int member_bool_absent(const json_t *obj, const char *where, const char *name, bool *out,
		       struct error *e);
/*
 * Text of 1 to room - 1 printable ASCII characters that neither begins nor ends with a space: it
 * goes into logs, metrics and command lines.
 */
int member_name(const json_t *obj, const char *where, const char *name, char *out, size_t room,
		struct error *e);
int member_name_absent(const json_t *obj, const char *where, const char *name, char *out,
		       size_t room, struct error *e);
/* Borrowed from obj; NULL when it is missing and may be. */
int member_object(const json_t *obj, const char *where, const char *name, json_t **out,
		  struct error *e);
int member_array(const json_t *obj, const char *where, const char *name, json_t **out,
		 struct error *e);

/* A client's text made fit for logs and answers: printable ASCII, cut at room - 1. Returns out. */
const char *member_quote(const char *text, char *out, size_t room);

#endif
