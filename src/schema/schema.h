/* SPDX-License-Identifier: BSD-3-Clause */
/* schema.h: what proto/control.json declares, for the daemon, its client and the docs. */
#ifndef SCHEMA_SCHEMA_H
#define SCHEMA_SCHEMA_H

#include <jansson.h>
#include <stdbool.h>
#include <stdio.h>

#include "base/error.h"

struct schema;

/* Parses the embedded declaration. Gives *out. Only a broken build makes it fail. */
int schema_new(struct schema **out, struct error *e);
void schema_free(struct schema *s);

/* All of it: commands, types, events, errors. Borrowed, as all below. */
json_t *schema_root(const struct schema *s);
/* A command's declaration; NULL when there is none of that name. */
json_t *schema_command(const struct schema *s, const char *name);
/* A type's declaration; NULL when `name` is a plain type (string, size, ...). */
json_t *schema_type(const struct schema *s, const char *name);
json_t *schema_event(const struct schema *s, const char *name);
/* An argument of a command; NULL when it has none of that name. */
json_t *schema_argument(const json_t *command, const char *name);
/* Texts and flags of a declaration; "" and false when not there. */
const char *schema_text(const json_t *decl, const char *member);
bool schema_flag(const json_t *decl, const char *member);

/*
 * Checks arguments against a command: every member known, of the right type and in range, none
 * missing. Adds the defaults of those left out. -EINVAL, naming the member.
 */
int schema_check_args(const struct schema *s, const json_t *command, json_t *args, struct error *e);
/* The same for what a command returned and for an event's data, so that tests can hold us to it. */
int schema_check_return(const struct schema *s, const json_t *command, json_t *value,
			struct error *e);
int schema_check_event(const struct schema *s, const json_t *event, json_t *data, struct error *e);

/* "vm-set VM [limit=SIZE] ..." as one line. Gives a string that the caller frees. */
char *schema_usage(const json_t *command);
/* The docs: docs/control.md, and the section COMMANDS of ebbctl(1) as mdoc. */
void schema_write_markdown(const struct schema *s, FILE *out);
void schema_write_mdoc(const struct schema *s, FILE *out);
/* Sentences as mandoc wants them: each begins a line, no line is longer than 80 characters. */
void schema_mdoc_text(const char *text, FILE *out);

#endif
