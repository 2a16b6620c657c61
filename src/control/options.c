/* SPDX-License-Identifier: BSD-3-Clause */
/* options.c: a JSON object of options as the text pairs that plugins take. */
#include "control/options.h"

#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define OPTION_VALUE_MAX 4096

/* Writes a scalar as text; false when it is none. */
static bool scalar_text(const json_t *value, FILE *out)
{
	switch (json_typeof(value)) {
	case JSON_STRING:
		fputs(json_string_value(value), out);
		return true;
	case JSON_INTEGER:
		fprintf(out, "%" JSON_INTEGER_FORMAT, json_integer_value(value));
		return true;
	case JSON_REAL:
		fprintf(out, "%.17g", json_real_value(value));
		return true;
	case JSON_TRUE:
	case JSON_FALSE:
		fputs(json_is_true(value) ? "true" : "false", out);
		return true;
	default:
		return false;
	}
}

static bool value_text(const json_t *value, FILE *out)
{
	json_t *item;
	size_t i;

	if (!json_is_array(value))
		return scalar_text(value, out);
	json_array_foreach(value, i, item) {
		if (i)
			fputc(',', out);
		if (!scalar_text(item, out))
			return false;
	}
	return true;
}

int options_from_json(const json_t *object, struct option_list *out, struct error *e)
{
	const char *name;
	json_t *value;

	memset(out, 0, sizeof(*out));
	json_object_foreach((json_t *)object, name, value) {
		char **text = &out->values[out->n];
		size_t bytes = 0;
		bool ok;
		FILE *f;

		if (out->n == OPTIONS_MAX)
			return error_set(e, E2BIG, ERROR_ARGUMENT, "more than %d options",
					 OPTIONS_MAX);
		f = open_memstream(text, &bytes);
		if (!f)
			return error_set(e, ENOMEM, ERROR_GENERIC, "no memory for options");
		ok = value_text(value, f);
		if (fclose(f) || !*text)
			return error_set(e, ENOMEM, ERROR_GENERIC, "no memory for options");
		out->backend[out->n].name = out->policy[out->n].name = name;
		out->backend[out->n].value = out->policy[out->n].value = *text;
		out->n++;
		if (!ok || bytes > OPTION_VALUE_MAX)
			return error_set(e, EINVAL, ERROR_ARGUMENT,
					 "option '%.60s' must be a text, a number, true, false or "
					 "a list of those, and not too long",
					 name);
	}
	return 0;
}

void options_free(struct option_list *list)
{
	for (uint32_t i = 0; i < OPTIONS_MAX; i++)
		free(list->values[i]);
	memset(list, 0, sizeof(*list));
}
