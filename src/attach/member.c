/* SPDX-License-Identifier: BSD-3-Clause */
/* member.c: checked access to the members of a JSON object, with errors that name them. */
#include "attach/member.h"

#include <errno.h>
#include <string.h>

#define QUOTE_ROOM 48

const char *member_quote(const char *text, char *out, size_t room)
{
	size_t n = 0;

	for (; text[n] && n + 1 < room; n++)
		out[n] = text[n] >= 0x20 && text[n] < 0x7f ? text[n] : '?';
	out[n] = 0;
	if (text[n] && n > 3)
		memcpy(out + n - 3, "...", 3);
	return out;
}

static const char *type_name(const json_t *v)
{
	switch (json_typeof(v)) {
	case JSON_OBJECT:
		return "an object";
	case JSON_ARRAY:
		return "an array";
	case JSON_STRING:
		return "a string";
	case JSON_INTEGER:
		return "an integer";
	case JSON_REAL:
		return "a fraction";
	case JSON_NULL:
		return "null";
	default:
		return "a boolean";
	}
}

/* "arguments.vm" + "name" -> "arguments.vm.name", without the dot when where is "". */
#define PLACE	       "%s%s%s"
#define PLACE_OF(w, n) (w), *(w) ? "." : "", (n)

int member_known(const json_t *obj, const char *where, const char *const *known, struct error *e)
{
	const char *key;
	json_t *value;

	if (!json_is_object(obj))
		return error_set(e, EINVAL, ERROR_ARGUMENT, "%s is %s, not an object",
				 *where ? where : "the message", type_name(obj));
	json_object_foreach((json_t *)obj, key, value) {
		const char *const *k = known;
		char quoted[QUOTE_ROOM];

		while (*k && strcmp(*k, key))
			k++;
		if (!*k)
			return error_set(e, EINVAL, ERROR_ARGUMENT, "unknown member \"%s\" in %s",
					 member_quote(key, quoted, sizeof(quoted)),
					 *where ? where : "the message");
	}
	return 0;
}

static int missing(const char *where, const char *name, struct error *e)
{
	return error_set(e, EINVAL, ERROR_ARGUMENT, PLACE " is missing", PLACE_OF(where, name));
}

static int wrong_type(const json_t *v, const char *where, const char *name, const char *wanted,
		      struct error *e)
{
	return error_set(e, EINVAL, ERROR_ARGUMENT, PLACE " is %s, not %s", PLACE_OF(where, name),
			 type_name(v), wanted);
}

static int get_u64(const json_t *obj, const char *where, const char *name, bool absent,
		   uint64_t *out, struct error *e)
{
	const json_t *v = json_object_get(obj, name);

	if (!v)
		return absent ? 0 : missing(where, name, e);
	if (!json_is_integer(v))
		return wrong_type(v, where, name, "an integer", e);
	if (json_integer_value(v) < 0)
		return error_set(e, EINVAL, ERROR_ARGUMENT, PLACE " is negative",
				 PLACE_OF(where, name));
	*out = (uint64_t)json_integer_value(v);
	return 0;
}

int member_u64(const json_t *obj, const char *where, const char *name, uint64_t *out,
	       struct error *e)
{
	return get_u64(obj, where, name, false, out, e);
}

int member_u64_absent(const json_t *obj, const char *where, const char *name, uint64_t *out,
		      struct error *e)
{
	return get_u64(obj, where, name, true, out, e);
}

int member_bool_absent(const json_t *obj, const char *where, const char *name, bool *out,
		       struct error *e)
{
	const json_t *v = json_object_get(obj, name);

	if (!v)
		return 0;
	if (!json_is_boolean(v))
		return wrong_type(v, where, name, "a boolean", e);
	*out = json_is_true(v);
	return 0;
}

static int get_name(const json_t *obj, const char *where, const char *name, bool absent, char *out,
		    size_t room, struct error *e)
{
	const char *text;
	size_t n;
	const json_t *v = json_object_get(obj, name);

	if (!v)
		return absent ? 0 : missing(where, name, e);
	if (!json_is_string(v))
		return wrong_type(v, where, name, "a string", e);
	text = json_string_value(v);
	n = strlen(text);
	if (!n)
		return error_set(e, EINVAL, ERROR_ARGUMENT, PLACE " is empty",
				 PLACE_OF(where, name));
	if (n >= room)
		return error_set(e, ENAMETOOLONG, ERROR_ARGUMENT,
				 PLACE " is longer than %zu characters", PLACE_OF(where, name),
				 room - 1);
	for (size_t i = 0; i < n; i++)
		if (text[i] < 0x20 || text[i] >= 0x7f)
			return error_set(e, EINVAL, ERROR_ARGUMENT,
					 PLACE " holds a character that is not printable ASCII",
					 PLACE_OF(where, name));
	if (text[0] == ' ' || text[n - 1] == ' ')
		return error_set(e, EINVAL, ERROR_ARGUMENT, PLACE " begins or ends with a space",
				 PLACE_OF(where, name));
	memcpy(out, text, n + 1);
	return 0;
}

int member_name(const json_t *obj, const char *where, const char *name, char *out, size_t room,
		struct error *e)
{
	return get_name(obj, where, name, false, out, room, e);
}

int member_name_absent(const json_t *obj, const char *where, const char *name, char *out,
		       size_t room, struct error *e)
{
	return get_name(obj, where, name, true, out, room, e);
}

int member_object(const json_t *obj, const char *where, const char *name, json_t **out,
		  struct error *e)
{
	json_t *v = json_object_get(obj, name);

	if (!v)
		return missing(where, name, e);
	if (!json_is_object(v))
		return wrong_type(v, where, name, "an object", e);
	*out = v;
	return 0;
}

int member_array(const json_t *obj, const char *where, const char *name, json_t **out,
		 struct error *e)
{
	json_t *v = json_object_get(obj, name);

	if (!v)
		return missing(where, name, e);
	if (!json_is_array(v))
		return wrong_type(v, where, name, "an array", e);
	*out = v;
	return 0;
}
