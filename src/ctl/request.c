/* SPDX-License-Identifier: BSD-3-Clause */
/* request.c: words of the command line into a command's arguments. */
#include "ctl/request.h"

#include <ctype.h>
#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>

#include "base/size.h"

static int bad(const char *name, const char *value, const char *want, struct error *e)
{
	return error_set(e, EINVAL, ERROR_ARGUMENT, "%s: '%s' is not %s", name, value, want);
}

static json_t *split(const char *value)
{
	json_t *list = json_array();

	while (*value) {
		size_t n = strcspn(value, ",");

		json_array_append_new(list, json_stringn(value, n));
		value += n + (value[n] == ',');
	}
	return list;
}

/* Options go to the daemon as text: only the plugin knows their types. */
static int set_option(const json_t *command, json_t *args, const char *name, const char *value,
		      struct error *e)
{
	json_t *arg, *options;
	size_t i;

	json_array_foreach(json_object_get(command, "arguments"), i, arg) {
		const char *object = schema_text(arg, "name");
		size_t n = strlen(object);

		if (strcmp(schema_text(arg, "type"), "object") != 0)
			continue;
		if (strncmp(name, object, n) == 0 && name[n] == '.')
			name += n + 1;
		options = json_object_get(args, object);
		if (!options) {
			options = json_object();
			json_object_set_new(args, object, options);
		}
		if (json_object_set_new(options, name, json_string(value)))
			return bad(name, value, "UTF-8", e);
		return 0;
	}
	return error_set(e, EINVAL, ERROR_ARGUMENT, "%s has no argument '%s'",
			 schema_text(command, "name"), name);
}

static json_t *flag(const char *value)
{
	static const char *const yes[] = {"true", "yes", "on", "1"};
	static const char *const no[] = {"false", "no", "off", "0"};

	for (int i = 0; i < 4; i++) {
		if (strcmp(value, yes[i]) == 0)
			return json_true();
		if (strcmp(value, no[i]) == 0)
			return json_false();
	}
	return NULL;
}

/* A value by its declared type; NULL with the word for it in *want. */
static json_t *convert(const char *type, const char *value, const char **want)
{
	uint64_t n;
	long long i;
	char *end;

	if (strcmp(type, "size") == 0) {
		*want = "a size, e.g. 512M";
		return size_parse(value, &n) || n > INT64_MAX ? NULL : json_integer((json_int_t)n);
	}
	if (strcmp(type, "int") == 0) {
		*want = "a number";
		errno = 0;
		i = strtoll(value, &end, 10);
		return errno || end == value || *end ? NULL : json_integer(i);
	}
	if (strcmp(type, "bool") == 0) {
		*want = "true or false";
		return flag(value);
	}
	if (strcmp(type, "object") == 0) {
		*want = "a JSON object";
		return json_loads(value, 0, NULL);
	}
	*want = "UTF-8";
	return strcmp(type, "array") == 0 ? split(value) : json_string(value);
}

static int set_argument(const json_t *command, json_t *args, const char *name, const char *value,
			struct error *e)
{
	const json_t *arg = schema_argument(command, name);
	char path[PATH_MAX];
	const char *want = "";
	json_t *v;

	if (!arg)
		return set_option(command, args, name, value, e);
	/* The daemon has another working directory. */
	if (schema_flag(arg, "path") && realpath(value, path))
		value = path;
	v = convert(schema_text(arg, "type"), value, &want);
	if (!v)
		return bad(name, value, want, e);
	json_object_set_new(args, name, v);
	return 0;
}

/* One word, or two for "--name value". Returns how many were used, or -errno. */
static int take_word(const json_t *command, json_t *args, int n, char **words, struct error *e)
{
	const char *positional = schema_text(command, "positional");
	bool dashes = strncmp(words[0], "--", 2) == 0;
	char *word = words[0] + (dashes ? 2 : 0), *equals = strchr(word, '=');
	int r, used = 1;

	if (equals) {
		char *name = strndup(word, (size_t)(equals - word));

		if (!name)
			return error_set(e, ENOMEM, ERROR_GENERIC, "no memory");
		r = set_argument(command, args, name, equals + 1, e);
		free(name);
	} else if (dashes) {
		const json_t *arg = schema_argument(command, word);
		bool is_flag = strcmp(schema_text(arg, "type"), "bool") == 0;

		if (!is_flag && n < 2)
			return error_set(e, EINVAL, ERROR_ARGUMENT, "--%s needs a value", word);
		r = set_argument(command, args, word, is_flag ? "true" : words[1], e);
		used = is_flag ? 1 : 2;
	} else if (*positional && !json_object_get(args, positional)) {
		r = set_argument(command, args, positional, word, e);
	} else {
		r = error_set(e, EINVAL, ERROR_ARGUMENT, "'%s': an argument is NAME=VALUE", word);
	}
	return r ? r : used;
}

int request_args(const struct schema *s, const json_t *command, int n, char **words, json_t **args,
		 struct error *e)
{
	json_t *out = json_object(), *check;
	int used, r;

	for (int i = 0; i < n; i += used) {
		used = take_word(command, out, n - i, words + i, e);
		if (used < 0) {
			json_decref(out);
			return used;
		}
	}
	/* What the daemon would refuse is told at once; but the defaults stay its business. */
	check = json_deep_copy(out);
	r = schema_check_args(s, command, check, e);
	json_decref(check);
	if (r) {
		json_decref(out);
		return r;
	}
	*args = out;
	return 0;
}
