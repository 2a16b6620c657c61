/* SPDX-License-Identifier: BSD-3-Clause */
/* print.c: answers for people. */
#include "ctl/print.h"

#include <ctype.h>
#include <stdlib.h>
#include <string.h>

#include "base/size.h"

#define TABLE_COLUMNS_MAX 16

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

/* Text of the daemon may have come from a VMM: nothing of it may steer the terminal. */
static void put_clean(const char *text, FILE *out)
{
	for (const unsigned char *p = (const unsigned char *)text; *p; p++)
		fputc(*p < ' ' || *p == 0x7f ? '?' : *p, out);
}

static void put_list(const json_t *list, FILE *out)
{
	json_t *item;
	size_t i;

	json_array_foreach(list, i, item) {
		char *text = print_value(NULL, item);

		fprintf(out, "%s%s", i ? ", " : "", text ? text : "");
		free(text);
	}
}

static void put_object(const json_t *object, FILE *out)
{
	const char *key, *separator = "";
	json_t *value;

	json_object_foreach((json_t *)object, key, value) {
		char *text = print_value(NULL, value);

		fprintf(out, "%s%s %s", separator, key, text ? text : "");
		separator = ", ";
		free(text);
	}
}

char *print_value(const json_t *decl, const json_t *value)
{
	char *text = NULL, size[16];
	size_t bytes;
	FILE *f = open_memstream(&text, &bytes);

	if (!f)
		return NULL;
	if (json_is_integer(value) && strcmp(schema_text(decl, "type"), "size") == 0)
		fputs(size_format((uint64_t)json_integer_value(value), size), f);
	else if (json_is_integer(value))
		fprintf(f, "%" JSON_INTEGER_FORMAT, json_integer_value(value));
	else if (json_is_real(value))
		fprintf(f, "%.4g", json_real_value(value));
	else if (json_is_boolean(value))
		fputs(json_is_true(value) ? "yes" : "no", f);
	else if (json_is_string(value))
		put_clean(json_string_value(value), f);
	else if (json_is_array(value))
		put_list(value, f);
	else if (json_is_object(value))
		put_object(value, f);
	if (fclose(f)) {
		free(text);
		return NULL;
	}
	return text;
}

static bool is_number(const json_t *decl)
{
	const char *type = schema_text(decl, "type");

	return strcmp(type, "size") == 0 || strcmp(type, "int") == 0 || strcmp(type, "number") == 0;
}

/* "resident-bytes" -> "RESIDENT": the value says that it is bytes. */
static const char *heading(const char *name, char *text, size_t bytes)
{
	char *cut;

	snprintf(text, bytes, "%s", name);
	cut = strstr(text, "-bytes");
	if (cut)
		*cut = '\0';
	for (char *p = text; *p; p++)
		*p = (char)toupper((unsigned char)*p);
	return text;
}

/* Columns as wide as what they hold; numbers to the right, texts to the left. */
struct table {
	const json_t *columns, *members;
	size_t n;
	int width[TABLE_COLUMNS_MAX];
};

/* Puts one line, or with out NULL only measures it. row NULL: the headings. */
static void table_line(struct table *t, const json_t *row, FILE *out)
{
	char head[64];

	for (size_t c = 0; c < t->n; c++) {
		const char *name = json_string_value(json_array_get(t->columns, c));
		const json_t *decl = member_of(t->members, name);
		bool last = c + 1 == t->n;
		char *text = row ? print_value(decl, json_object_get(row, name))
				 : strdup(heading(name, head, sizeof(head)));
		int bytes = text ? (int)strlen(text) : 0;

		if (bytes > t->width[c])
			t->width[c] = bytes;
		if (out)
			fprintf(out, "%*s%s",
				is_number(decl) ? t->width[c]
				: last		? 0
						: -t->width[c],
				text ? text : "", last ? "\n" : "  ");
		free(text);
	}
}

static void print_table(const json_t *type, const json_t *rows, FILE *out)
{
	struct table t = {.columns = json_object_get(type, "table"),
			  .members = json_object_get(type, "members")};
	FILE *const passes[] = {NULL, out};
	json_t *row;
	size_t i;

	t.n = json_array_size(t.columns);
	if (t.n > TABLE_COLUMNS_MAX)
		t.n = TABLE_COLUMNS_MAX;
	for (int pass = 0; pass < 2; pass++) {
		table_line(&t, NULL, passes[pass]);
		json_array_foreach(rows, i, row) {
			table_line(&t, row, passes[pass]);
		}
	}
}

static void print_members(const json_t *members, const json_t *object, FILE *out)
{
	const char *key;
	json_t *value;
	int width = 0;

	json_object_foreach((json_t *)object, key, value) {
		if ((int)strlen(key) > width)
			width = (int)strlen(key);
	}
	json_object_foreach((json_t *)object, key, value) {
		char *text = print_value(member_of(members, key), value);

		fprintf(out, "%-*s  %s\n", width, key, text ? text : "");
		free(text);
	}
}

void print_return(const struct schema *s, const json_t *command, const json_t *value, FILE *out)
{
	const json_t *returns = json_object_get(command, "returns");
	const json_t *type = schema_type(s, schema_text(returns, "type"));
	const json_t *items = schema_type(s, schema_text(returns, "items"));
	const json_t *members = json_object_get(type ? type : returns, "members");

	if (json_is_array(value) && json_object_get(items, "table"))
		print_table(items, value, out);
	else if (json_is_object(value) && members)
		print_members(members, value, out);
	else if (json_is_object(value) && json_object_size(value) == 0)
		return;
	else
		json_dumpf(value, out, JSON_INDENT(2)), fputc('\n', out);
}
