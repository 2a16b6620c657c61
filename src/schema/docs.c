/* SPDX-License-Identifier: BSD-3-Clause */
/* docs.c: the docs of the control socket, written from its declaration. */
#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "schema/schema.h"

#define MDOC_COLUMNS 78

/* "SIZE", "tiers=A,B,...": what stands for a value of this type in a usage line. */
static void value_word(const json_t *arg, char *out, size_t bytes)
{
	const char *type = schema_text(arg, "type");
	json_t *item;
	size_t i, n = 0;

	if (strcmp(type, "enum") == 0) {
		json_array_foreach(json_object_get(arg, "values"), i, item) {
			if (n < bytes)
				n += (size_t)snprintf(out + n, bytes - n, "%s%s", i ? "|" : "",
						      json_string_value(item));
		}
	} else if (strcmp(type, "array") == 0) {
		snprintf(out, bytes, "A,B,...");
	} else if (strcmp(type, "int") == 0) {
		snprintf(out, bytes, "N");
	} else if (strcmp(type, "bool") == 0) {
		snprintf(out, bytes, "true|false");
	} else {
		snprintf(out, bytes, "%s", type);
		for (char *p = out; *p; p++)
			*p = (char)toupper((unsigned char)*p);
	}
}

char *schema_usage(const json_t *command)
{
	const char *positional = schema_text(command, "positional");
	char *text = NULL, word[100];
	size_t bytes, i;
	json_t *arg;
	FILE *f = open_memstream(&text, &bytes);

	if (!f)
		return NULL;
	fprintf(f, "%s", schema_text(command, "name"));
	json_array_foreach(json_object_get(command, "arguments"), i, arg) {
		const char *name = schema_text(arg, "name");
		bool optional = schema_flag(arg, "optional");

		value_word(arg, word, sizeof(word));
		if (strcmp(name, positional) == 0) {
			fputc(' ', f);
			for (const char *p = name; *p; p++)
				fputc(toupper((unsigned char)*p), f);
		} else if (strcmp(schema_text(arg, "type"), "object") == 0) {
			fprintf(f, " [NAME=VALUE ...]");
		} else {
			fprintf(f, " %s%s=%s%s", optional ? "[" : "", name, word,
				optional ? "]" : "");
		}
	}
	if (fclose(f)) {
		free(text);
		return NULL;
	}
	return text;
}

static void type_text(const json_t *decl, char *out, size_t bytes)
{
	const char *type = schema_text(decl, "type");
	json_t *item;
	size_t i, n;

	if (strcmp(type, "array") == 0) {
		snprintf(out, bytes, "array of %s", schema_text(decl, "items"));
	} else if (strcmp(type, "enum") == 0) {
		n = (size_t)snprintf(out, bytes, "one of ");
		json_array_foreach(json_object_get(decl, "values"), i, item) {
			if (n < bytes)
				n += (size_t)snprintf(out + n, bytes - n, "%s%s", i ? ", " : "",
						      json_string_value(item));
		}
	} else {
		snprintf(out, bytes, "%s", type);
	}
}

static void markdown_members(const json_t *members, FILE *out)
{
	char type[200];
	json_t *m;
	size_t i;

	json_array_foreach(members, i, m) {
		json_t *def = json_object_get(m, "default");
		const json_t *min = json_object_get(m, "min"), *max = json_object_get(m, "max");

		type_text(m, type, sizeof(type));
		fprintf(out, "- `%s` (%s%s", schema_text(m, "name"), type,
			schema_flag(m, "optional") ? ", optional" : "");
		if (def) {
			char *text = json_dumps(def, JSON_ENCODE_ANY);

			fprintf(out, ", default %s", text ? text : "?");
			free(text);
		}
		if (min)
			fprintf(out, ", at least %" JSON_INTEGER_FORMAT, json_integer_value(min));
		if (max)
			fprintf(out, ", at most %" JSON_INTEGER_FORMAT, json_integer_value(max));
		fprintf(out, "): %s.\n", schema_text(m, "help"));
	}
}

static void markdown_command(const json_t *c, FILE *out)
{
	const json_t *returns = json_object_get(c, "returns");
	char type[200];
	json_t *item;
	size_t i;

	fprintf(out, "### %s\n\n%s.", schema_text(c, "name"), schema_text(c, "summary"));
	if (*schema_text(c, "help"))
		fprintf(out, " %s", schema_text(c, "help"));
	fprintf(out, "\n\n");
	if (schema_flag(c, "long"))
		fprintf(out, "Long: answers when done, with JOB_PROGRESS events meanwhile.\n\n");
	if (json_array_size(json_object_get(c, "arguments")))
		fprintf(out, "Arguments:\n\n");
	markdown_members(json_object_get(c, "arguments"), out);
	if (json_array_size(json_object_get(c, "arguments")))
		fprintf(out, "\n");
	type_text(returns, type, sizeof(type));
	fprintf(out, "Returns%s%s%s: %s.\n\n", *type ? " (" : "", type, *type ? ")" : "",
		schema_text(returns, "help"));
	markdown_members(json_object_get(returns, "members"), out);
	if (json_object_get(returns, "members"))
		fprintf(out, "\n");
	if (json_array_size(json_object_get(c, "errors"))) {
		fprintf(out, "Errors of its own:");
		json_array_foreach(json_object_get(c, "errors"), i, item) {
			fprintf(out, "%s %s", i ? "," : "", json_string_value(item));
		}
		fprintf(out, ".\n\n");
	}
}

static const char intro[] =
	"# The control socket\n\n"
	"<!-- Written by scripts/gen-docs from proto/control.json: change it there. -->\n\n"
	"`ebbd` listens on `control.sock` in its runtime folder and speaks QMP's conventions:\n"
	"JSON objects, one after the other, with or without a newline between them.\n\n"
	"```\n"
	"<- {\"QMP\": {\"version\": {...}, \"capabilities\": []}}\n"
	"-> {\"execute\": \"qmp_capabilities\"}\n"
	"<- {\"return\": {}}\n"
	"-> {\"execute\": \"vm-reclaim\", \"arguments\": {\"vm\": \"guest1\", \"bytes\": 268435456}, "
	"\"id\": 7}\n"
	"<- {\"event\": \"JOB_PROGRESS\", \"data\": {...}, \"timestamp\": {\"seconds\": N, "
	"\"microseconds\": N}}\n"
	"<- {\"return\": {\"reclaimed-bytes\": 268435456}, \"id\": 7}\n"
	"```\n\n"
	"An error is `{\"error\": {\"class\": ..., \"desc\": ...}, \"id\": ...}`. Long commands answer\n"
	"when they are done; a client may send other commands on the same connection meanwhile, and\n"
	"tells the answers apart by their `id`. A byte 0xFF makes the daemon forget an unfinished\n"
	"request. Sizes are in bytes.\n\n";

void schema_write_markdown(const struct schema *s, FILE *out)
{
	json_t *value;
	const char *key;
	size_t i;

	fputs(intro, out);
	fprintf(out, "## Commands\n\n");
	json_array_foreach(json_object_get(s ? schema_root(s) : NULL, "commands"), i, value) {
		markdown_command(value, out);
	}
	fprintf(out, "## Types\n\n");
	json_object_foreach(json_object_get(schema_root(s), "types"), key, value) {
		fprintf(out, "### %s\n\n", key);
		markdown_members(json_object_get(value, "members"), out);
		fprintf(out, "\n");
	}
	fprintf(out, "## Events\n\n");
	json_array_foreach(json_object_get(schema_root(s), "events"), i, value) {
		fprintf(out, "### %s\n\n%s\n\n", schema_text(value, "name"),
			schema_text(value, "help"));
		markdown_members(json_object_get(value, "data"), out);
		fprintf(out, "\n");
	}
	fprintf(out, "## Error classes\n\n");
	json_array_foreach(json_object_get(schema_root(s), "errors"), i, value) {
		fprintf(out, "- `%s`: %s\n", schema_text(value, "name"),
			schema_text(value, "help"));
	}
}

void schema_mdoc_text(const char *text, FILE *out)
{
	size_t column = 0;

	while (*text) {
		size_t n = strcspn(text, " ");
		bool sentence = n > 0 && text[n - 1] == '.';

		if (column && column + 1 + n > MDOC_COLUMNS) {
			fputc('\n', out);
			column = 0;
		} else if (column) {
			fputc(' ', out);
			column++;
		}
		for (size_t i = 0; i < n; i++) {
			if (text[i] == '\\')
				fputs("\\e", out);
			else
				fputc(text[i], out);
		}
		column += n;
		text += n + (text[n] == ' ');
		if (sentence && *text) {
			fputc('\n', out);
			column = 0;
		}
	}
	fputc('\n', out);
}

void schema_write_mdoc(const struct schema *s, FILE *out)
{
	char word[100];
	json_t *c, *arg;
	size_t i, j;

	fprintf(out, ".Bl -tag -width Ds\n");
	json_array_foreach(json_object_get(schema_root(s), "commands"), i, c) {
		const char *positional = schema_text(c, "positional");

		if (strcmp(schema_text(c, "name"), "qmp_capabilities") == 0)
			continue; /* ebbctl does that by itself */
		fprintf(out, ".It Cm %s", schema_text(c, "name"));
		json_array_foreach(json_object_get(c, "arguments"), j, arg) {
			const char *name = schema_text(arg, "name");

			value_word(arg, word, sizeof(word));
			if (strcmp(name, positional) == 0)
				fprintf(out, " Ar %s", name);
			else if (strcmp(schema_text(arg, "type"), "object") == 0)
				fprintf(out, " Oo Ar name Ns = Ns Ar value No ... Oc");
			else
				fprintf(out,
					schema_flag(arg, "optional") ? " Oo %s Ns = Ns Ar %s Oc"
								     : " %s Ns = Ns Ar %s",
					name, word);
		}
		fprintf(out, "\n");
		snprintf(word, sizeof(word), "%s.", schema_text(c, "summary"));
		schema_mdoc_text(word, out);
		if (*schema_text(c, "help"))
			schema_mdoc_text(schema_text(c, "help"), out);
	}
	fprintf(out, ".El\n");
}
