/* SPDX-License-Identifier: BSD-3-Clause */
/* check.c: arguments, answers and events against their declaration. */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "schema/schema.h"

/* Where a value stands, for the error's text: "argument 'tiers'". */
#define WHERE_MAX 128

static int check_members(const struct schema *s, const json_t *members, json_t *object,
			 const char *where, struct error *e);
static int check_type(const struct schema *s, const json_t *decl, const char *type, json_t *value,
		      const char *where, struct error *e);

static int wrong_type(const char *where, const char *type, struct error *e)
{
	return error_set(e, EINVAL, ERROR_ARGUMENT, "%s must be %s", where, type);
}

/* min and max bound a number's value, a string's length or an array's length. */
static int check_range(const json_t *decl, json_int_t n, const char *what, const char *where,
		       struct error *e)
{
	const json_t *min = json_object_get(decl, "min"), *max = json_object_get(decl, "max");

	if (min && n < json_integer_value(min))
		return error_set(e, EINVAL, ERROR_ARGUMENT, "%s: %s must be at least %lld", where,
				 what, (long long)json_integer_value(min));
	if (max && n > json_integer_value(max))
		return error_set(e, EINVAL, ERROR_ARGUMENT, "%s: %s must be at most %lld", where,
				 what, (long long)json_integer_value(max));
	return 0;
}

static int check_integer(const json_t *decl, const char *type, const json_t *value,
			 const char *where, struct error *e)
{
	bool size = strcmp(type, "size") == 0;

	if (!json_is_integer(value))
		return wrong_type(where, size ? "a size in bytes" : "an integer", e);
	if (size && json_integer_value(value) < 0)
		return error_set(e, EINVAL, ERROR_ARGUMENT, "%s must not be negative", where);
	return check_range(decl, json_integer_value(value), "it", where, e);
}

static int check_enum(const json_t *decl, const json_t *value, const char *where, struct error *e)
{
	char list[200] = "";
	json_t *item;
	size_t i, n = 0;

	json_array_foreach(json_object_get(decl, "values"), i, item) {
		if (json_is_string(value) && json_equal(item, value))
			return 0;
		if (n < sizeof(list))
			n += (size_t)snprintf(list + n, sizeof(list) - n, "%s%s", i ? ", " : "",
					      json_string_value(item));
	}
	return error_set(e, EINVAL, ERROR_ARGUMENT, "%s must be one of %s", where, list);
}

static int check_array(const struct schema *s, const json_t *decl, json_t *value, const char *where,
		       struct error *e)
{
	const char *items = schema_text(decl, "items");
	char each[WHERE_MAX];
	json_t *item;
	size_t i;
	int r;

	if (!json_is_array(value))
		return wrong_type(where, "a list", e);
	r = check_range(decl, (json_int_t)json_array_size(value), "its length", where, e);
	if (r)
		return r;
	json_array_foreach(value, i, item) {
		snprintf(each, sizeof(each), "%.100s[%zu]", where, i);
		r = check_type(s, NULL, items, item, each, e);
		if (r)
			return r;
	}
	return 0;
}

static int check_type(const struct schema *s, const json_t *decl, const char *type, json_t *value,
		      const char *where, struct error *e)
{
	const json_t *named = schema_type(s, type);

	if (named) {
		if (!json_is_object(value))
			return wrong_type(where, "an object", e);
		return check_members(s, json_object_get(named, "members"), value, where, e);
	}
	if (strcmp(type, "string") == 0) {
		if (!json_is_string(value))
			return wrong_type(where, "a string", e);
		return check_range(decl, (json_int_t)json_string_length(value), "its length", where,
				   e);
	}
	if (strcmp(type, "size") == 0 || strcmp(type, "int") == 0)
		return check_integer(decl, type, value, where, e);
	if (strcmp(type, "number") == 0)
		return json_is_number(value) ? 0 : wrong_type(where, "a number", e);
	if (strcmp(type, "bool") == 0)
		return json_is_boolean(value) ? 0 : wrong_type(where, "true or false", e);
	if (strcmp(type, "enum") == 0)
		return check_enum(decl, value, where, e);
	if (strcmp(type, "array") == 0)
		return check_array(s, decl, value, where, e);
	if (strcmp(type, "object") == 0)
		return json_is_object(value) ? 0 : wrong_type(where, "an object", e);
	return error_set(e, EINVAL, ERROR_GENERIC, "%s: type '%s' is not declared", where, type);
}

static const json_t *member_of(const json_t *members, const char *name)
{
	json_t *m;
	size_t i;

	json_array_foreach(members, i, m) {
		if (strcmp(schema_text(m, "name"), name) == 0)
			return m;
	}
	return NULL;
}

static int check_members(const struct schema *s, const json_t *members, json_t *object,
			 const char *where, struct error *e)
{
	char each[WHERE_MAX];
	const char *key;
	json_t *value, *decl;
	size_t i;
	int r;

	json_object_foreach(object, key, value) {
		if (!member_of(members, key))
			return error_set(e, EINVAL, ERROR_ARGUMENT, "%s '%.60s' is not known",
					 where, key);
	}
	json_array_foreach(members, i, decl) {
		const char *name = schema_text(decl, "name");

		snprintf(each, sizeof(each), "%.50s '%s'", where, name);
		value = json_object_get(object, name);
		if (value) {
			r = check_type(s, decl, schema_text(decl, "type"), value, each, e);
			if (r)
				return r;
		} else if (!schema_flag(decl, "optional")) {
			return error_set(e, EINVAL, ERROR_ARGUMENT, "%s is missing", each);
		} else if (json_object_get(decl, "default")) {
			json_object_set(object, name, json_object_get(decl, "default"));
		}
	}
	return 0;
}

int schema_check_args(const struct schema *s, const json_t *command, json_t *args, struct error *e)
{
	return check_members(s, json_object_get(command, "arguments"), args, "argument", e);
}

int schema_check_return(const struct schema *s, const json_t *command, json_t *value,
			struct error *e)
{
	const json_t *returns = json_object_get(command, "returns");
	const char *type = schema_text(returns, "type");

	if (json_object_get(returns, "members") || !*type) {
		if (!json_is_object(value))
			return wrong_type("return value", "an object", e);
		return check_members(s, json_object_get(returns, "members"), value, "return value",
				     e);
	}
	return check_type(s, returns, type, value, "return value", e);
}

int schema_check_event(const struct schema *s, const json_t *event, json_t *data, struct error *e)
{
	return check_members(s, json_object_get(event, "data"), data, "event data", e);
}
