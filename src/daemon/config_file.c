/* SPDX-License-Identifier: BSD-3-Clause */
/* config_file.c: reading ebbd.conf. */
#include <ctype.h>
#include <errno.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "base/size.h"
#include "control/settings.h"
#include "daemon/config.h"

/*
 * Lines of KEY = VALUE, sections [KIND NAME], and comments: # at the start of a line or behind a
 * blank. Keys before the first section are those of config_keys.def. What a section says becomes
 * the arguments of the command that would say the same at run time, and is checked as such.
 */

#define LINE_MAX_BYTES 4096

enum key_type { TEXT, LIST, NUMBER, SIZE, FLAG, LEVEL };

struct key {
	const char *name;
	enum key_type type;
	size_t offset;
};

static const struct key keys[] = {
#define KEY(member, key_name, kind, standard, help) \
	{key_name, kind, offsetof(struct config, member)},
#include "daemon/config_keys.def"
#undef KEY
};

int config_init(struct config *c)
{
	memset(c, 0, sizeof(*c));
	c->runtime_dir = strdup("/run/ebb");
	c->log_level = LOG_INFO;
	c->poll_loads = true;
	c->folio_probe = true;
	c->take_over = -1;
	c->settings = json_object();
	return c->runtime_dir && c->settings ? 0 : -ENOMEM;
}

void config_free(struct config *c)
{
	free(c->file);
	free(c->runtime_dir);
	free(c->socket_group);
	free(c->metrics_listen);
	for (int i = 0; i < c->plugin_dirs.n; i++)
		free(c->plugin_dirs.items[i]);
	json_decref(c->settings);
	memset(c, 0, sizeof(*c));
}

static int parse_flag(const char *value, bool *out)
{
	if (strcmp(value, "yes") == 0 || strcmp(value, "true") == 0 || strcmp(value, "on") == 0)
		*out = true;
	else if (strcmp(value, "no") == 0 || strcmp(value, "false") == 0 ||
		 strcmp(value, "off") == 0)
		*out = false;
	else
		return -EINVAL;
	return 0;
}

static int parse_number(const char *value, uint64_t *out)
{
	char *end;

	if (!isdigit((unsigned char)*value))
		return -EINVAL;
	errno = 0;
	*out = strtoull(value, &end, 10);
	return errno || *end || *out > INT32_MAX ? -EINVAL : 0;
}

static int set_list(struct config_list *list, const char *value, struct error *e)
{
	/* One place is left for the folder that is always searched. */
	if (list->n >= PLUGIN_DIRS_MAX - 1)
		return error_set(e, EINVAL, ERROR_ARGUMENT, "more than %d of them",
				 PLUGIN_DIRS_MAX - 1);
	list->items[list->n] = strdup(value);
	if (!list->items[list->n])
		return error_set(e, ENOMEM, ERROR_GENERIC, "no memory");
	list->n++;
	return 0;
}

static int set_text(char **out, const char *value, struct error *e)
{
	char *copy = strdup(value);

	if (!copy)
		return error_set(e, ENOMEM, ERROR_GENERIC, "no memory");
	free(*out);
	*out = copy;
	return 0;
}

static int set_value(struct config *c, const struct key *k, const char *value, struct error *e)
{
	void *member = (char *)c + k->offset;
	int level;

	switch (k->type) {
	case TEXT:
		return set_text(member, value, e);
	case LIST:
		return set_list(member, value, e);
	case NUMBER:
		return parse_number(value, member) == 0
			       ? 0
			       : error_set(e, EINVAL, ERROR_ARGUMENT,
					   "'%s' must be a number, not '%.60s'", k->name, value);
	case SIZE:
		return size_parse(value, member) == 0
			       ? 0
			       : error_set(e, EINVAL, ERROR_ARGUMENT,
					   "'%s' must be a size, e.g. 512M, not '%.60s'", k->name,
					   value);
	case FLAG:
		return parse_flag(value, member) == 0
			       ? 0
			       : error_set(e, EINVAL, ERROR_ARGUMENT,
					   "'%s' must be yes or no, not '%.60s'", k->name, value);
	case LEVEL:
		level = log_level_parse(value);
		if (level < 0)
			return error_set(e, EINVAL, ERROR_ARGUMENT,
					 "'%s' must be error, warning, info or debug, not '%.60s'",
					 k->name, value);
		*(uint64_t *)member = (uint64_t)level;
		return 0;
	}
	return -EINVAL;
}

int config_set(struct config *c, const char *key, const char *value, struct error *e)
{
	for (size_t i = 0; i < sizeof(keys) / sizeof(keys[0]); i++)
		if (strcmp(keys[i].name, key) == 0)
			return set_value(c, &keys[i], value, e);
	return error_set(e, ENOENT, ERROR_ARGUMENT, "key '%.60s' is not known", key);
}

/* ---- sections ---- */

struct reader {
	struct config *c;
	const struct schema *schema;
	char kind[16];	 /* of the section; "" before the first one */
	json_t *section; /* borrowed from c->settings */
};

static json_t *under(json_t *object, const char *name)
{
	if (!json_object_get(object, name))
		json_object_set_new(object, name, json_object());
	return json_object_get(object, name);
}

static int begin_section(struct reader *r, char *text, struct error *e)
{
	static const struct {
		const char *kind, *part;
	} parts[] = {{"backend", "backends"}, {"policy", "policies"}, {"vm", "vms"}};
	char *kind = text + 1, *name, *end = strchr(text, ']');

	if (!end || end[1])
		return error_set(e, EINVAL, ERROR_ARGUMENT, "a section is [KIND NAME]");
	*end = '\0';
	name = strchr(kind, ' ');
	if (name) {
		*name++ = '\0';
		name += strspn(name, " \t");
	}
	for (size_t i = 0; i < sizeof(parts) / sizeof(parts[0]); i++) {
		if (strcmp(kind, parts[i].kind) != 0)
			continue;
		if (!name || !*name)
			return error_set(e, EINVAL, ERROR_ARGUMENT, "section [%s] needs a name",
					 kind);
		snprintf(r->kind, sizeof(r->kind), "%s", kind);
		r->section = under(under(r->c->settings, parts[i].part), name);
		if (!r->section)
			return error_set(e, EINVAL, ERROR_ARGUMENT, "the name is not UTF-8");
		return 0;
	}
	return error_set(e, EINVAL, ERROR_ARGUMENT,
			 "section '%.60s' is not known: it must be backend, policy or vm", kind);
}

/* A value of the schema's type, from text. NULL when it is none. */
static json_t *typed(const char *type, const char *value)
{
	uint64_t n;
	json_t *list;

	if (strcmp(type, "size") == 0)
		return size_parse(value, &n) || n > INT64_MAX ? NULL : json_integer((json_int_t)n);
	if (strcmp(type, "int") == 0)
		return parse_number(value, &n) ? NULL : json_integer((json_int_t)n);
	if (strcmp(type, "array") != 0)
		return json_string(value);
	list = json_array();
	while (*value) {
		size_t len = strcspn(value, ",");
		size_t trimmed = len;

		while (trimmed && isspace((unsigned char)value[trimmed - 1]))
			trimmed--;
		json_array_append_new(list, json_stringn(value, trimmed));
		value += len + (value[len] == ',');
		value += strspn(value, " \t");
	}
	return list;
}

static int set_vm(struct reader *r, const char *key, const char *value, struct error *e)
{
	const json_t *arg = schema_argument(schema_command(r->schema, "vm-set"), key);
	const char *dash = strstr(key, "-policy"), *dot = strchr(key, '.');
	const char *const roles[] = {"reclaim", "prefetch"};
	json_t *v;

	if (arg && strcmp(key, "vm") != 0) {
		v = typed(schema_text(arg, "type"), value);
		if (!v)
			return error_set(e, EINVAL, ERROR_ARGUMENT, "'%s' cannot be '%.60s'", key,
					 value);
		json_object_set_new(under(r->section, "settings"), key, v);
		return 0;
	}
	for (int i = 0; i < 2; i++) {
		size_t n = strlen(roles[i]);
		json_t *role;

		if (strncmp(key, roles[i], n) != 0 || (key + n != dash && key + n != dot))
			continue;
		role = under(r->section, roles[i]);
		json_object_set_new(role, "role", json_string(roles[i]));
		if (key + n == dot)
			json_object_set_new(under(role, "options"), dot + 1, json_string(value));
		else if (strcmp(dash, "-policy") == 0)
			json_object_set_new(role, "policy", json_string(value));
		else
			break;
		return 0;
	}
	return error_set(e, ENOENT, ERROR_ARGUMENT, "key '%.60s' is not known in [vm]", key);
}

static int set_key(struct reader *r, const char *key, const char *value, struct error *e)
{
	if (!r->section)
		return config_set(r->c, key, value, e);
	if (strcmp(r->kind, "vm") == 0)
		return set_vm(r, key, value, e);
	if (strcmp(r->kind, "policy") == 0 && strcmp(key, "file") != 0)
		return error_set(e, ENOENT, ERROR_ARGUMENT, "key '%.60s' is not known in [policy]",
				 key);
	if (strcmp(r->kind, "policy") == 0 || strcmp(key, "driver") == 0)
		json_object_set_new(r->section, key, json_string(value));
	else /* the driver knows whether it is an option of its own */
		json_object_set_new(under(r->section, "options"), key, json_string(value));
	return 0;
}

static void cut_comment(char *line)
{
	for (char *p = line; *p; p++)
		if (*p == '#' && (p == line || isspace((unsigned char)p[-1]))) {
			*p = '\0';
			return;
		}
}

/* Cuts the blanks at both ends off; returns the beginning. */
static char *trim(char *text)
{
	char *end;

	text += strspn(text, " \t\r\n");
	end = text + strlen(text);
	while (end > text && isspace((unsigned char)end[-1]))
		*--end = '\0';
	return text;
}

static int read_line(struct reader *r, char *text, struct error *e)
{
	char *line, *equals;

	cut_comment(text);
	line = trim(text);
	if (!*line)
		return 0;
	if (*line == '[')
		return begin_section(r, line, e);
	equals = strchr(line, '=');
	if (!equals || equals == line)
		return error_set(e, EINVAL, ERROR_ARGUMENT, "a line is KEY = VALUE");
	*equals = '\0';
	return set_key(r, trim(line), trim(equals + 1), e);
}

int config_read_file(struct config *c, const struct schema *schema, const char *path,
		     struct error *e)
{
	struct reader r = {.c = c, .schema = schema};
	char line[LINE_MAX_BYTES];
	unsigned int number = 0;
	struct error why;
	int err = 0;
	FILE *f = fopen(path, "re");

	if (!f)
		return error_set(e, errno, ERROR_GENERIC, "%s: %s", path, error_text(errno));
	while (!err && fgets(line, sizeof(line), f)) {
		number++;
		if (!strchr(line, '\n') && !feof(f))
			err = error_set(&why, EINVAL, ERROR_ARGUMENT, "the line is too long");
		else
			err = read_line(&r, line, &why);
	}
	if (err)
		error_set(e, EINVAL, why.cls, "%s:%u: %.300s", path, number, why.desc);
	else if (ferror(f))
		err = error_set(e, EIO, ERROR_GENERIC, "%s: %s", path, error_text(EIO));
	fclose(f);
	return err ? err : settings_check(schema, c->settings, path, e);
}
