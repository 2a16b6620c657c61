/* SPDX-License-Identifier: BSD-3-Clause */
/* schema.c: what proto/control.json declares, for the daemon, its client and the docs. */
#include "schema/schema.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/*
 * Theory of operation
 *
 * proto/control.json is part of the binary. It is the only place where a method of the control
 * socket is declared: the daemon checks arguments against it and answers query-schema with it,
 * ebbctl converts words into arguments and answers into tables by it, and docs/control.md and
 * ebbctl(1) are written from it.
 *
 * Two things are filled in when it is read: the per-VM counters, which are declared in
 * engine/counters.def for the engine's sake, where a type says {"counters": true}; and the
 * arguments that all long commands share.
 *
 * After schema_new() nothing changes, so any thread may read; but jansson's iterators and
 * reference counts are used by one thread only here: the control loop.
 */

__asm__(".section .rodata\n"
	".global schema_text_start\n"
	"schema_text_start:\n"
	".incbin \"" SCHEMA_FILE "\"\n"
	".global schema_text_end\n"
	"schema_text_end:\n"
	".byte 0\n"
	".previous\n");
extern const char schema_text_start[], schema_text_end[];

struct schema {
	json_t *root;
};

struct counter {
	const char *name, *help;
};

static const struct counter counters[] = {
#define COUNTER(c_name, json, text) {json, text},
#include "engine/counters.def"
#undef COUNTER
};

/* Puts the counters in the place of {"counters": true}. */
static int expand_counters(json_t *members)
{
	for (size_t i = 0; i < json_array_size(members); i++) {
		if (!schema_flag(json_array_get(members, i), "counters"))
			continue;
		json_array_remove(members, i);
		for (size_t c = 0; c < sizeof(counters) / sizeof(counters[0]); c++) {
			json_t *m = json_pack("{s:s, s:s, s:s}", "name", counters[c].name, "type",
					      "int", "help", counters[c].help);

			if (json_array_insert_new(members, i + c, m))
				return -ENOMEM;
		}
	}
	return 0;
}

static int expand(json_t *root)
{
	json_t *value, *more = json_object_get(root, "long-arguments");
	const char *key;
	size_t i;
	int r = 0;

	json_object_foreach(json_object_get(root, "types"), key, value) {
		r = expand_counters(json_object_get(value, "members"));
		if (r)
			return r;
	}
	json_array_foreach(json_object_get(root, "commands"), i, value) {
		json_t *args = json_object_get(value, "arguments");

		if (schema_flag(value, "long") && json_array_extend(args, more))
			return -ENOMEM;
	}
	return json_object_del(root, "long-arguments");
}

int schema_new(struct schema **out, struct error *e)
{
	struct schema *s = calloc(1, sizeof(*s));
	json_error_t je;

	if (!s)
		return error_set(e, ENOMEM, ERROR_GENERIC, "no memory for the schema");
	s->root = json_loadb(schema_text_start, (size_t)(schema_text_end - schema_text_start),
			     JSON_REJECT_DUPLICATES, &je);
	if (!s->root || expand(s->root)) {
		schema_free(s);
		return error_set(e, EINVAL, ERROR_GENERIC, "built-in schema, line %d: %s", je.line,
				 je.text);
	}
	*out = s;
	return 0;
}

void schema_free(struct schema *s)
{
	if (s)
		json_decref(s->root);
	free(s);
}

json_t *schema_root(const struct schema *s)
{
	return s->root;
}

static json_t *by_name(const json_t *list, const char *name)
{
	json_t *item;
	size_t i;

	json_array_foreach(list, i, item) {
		if (strcmp(schema_text(item, "name"), name) == 0)
			return item;
	}
	return NULL;
}

json_t *schema_command(const struct schema *s, const char *name)
{
	return by_name(json_object_get(s->root, "commands"), name);
}

json_t *schema_event(const struct schema *s, const char *name)
{
	return by_name(json_object_get(s->root, "events"), name);
}

json_t *schema_type(const struct schema *s, const char *name)
{
	return json_object_get(json_object_get(s->root, "types"), name);
}

json_t *schema_argument(const json_t *command, const char *name)
{
	return by_name(json_object_get(command, "arguments"), name);
}

const char *schema_text(const json_t *decl, const char *member)
{
	const char *text = json_string_value(json_object_get(decl, member));

	return text ? text : "";
}

bool schema_flag(const json_t *decl, const char *member)
{
	return json_is_true(json_object_get(decl, member));
}
