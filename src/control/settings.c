/* SPDX-License-Identifier: BSD-3-Clause */
/* settings.c: what operators changed at run time, kept over the daemon's death. */
#include "control/settings.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/fd.h"
#include "base/log.h"
#include "control/apply.h"

/*
 * Theory of operation
 *
 * Two trees of the same shape: `base` from the configuration file, `kept` from the file that this
 * module writes. What is applied is base with kept over it: for a VM first base's "*", then base's
 * entry, then kept's. The arguments in the trees are the commands' own, so they are checked by the
 * same schema and applied by the same functions (apply.c).
 *
 * Every change is written at once: a temporary file, fsync, rename, fsync of the folder. The file
 * is small: names and numbers of what an operator typed. Loop thread only.
 */

#define SETTINGS_VERSION  1
#define SETTINGS_FILE_MAX (4 * 1024 * 1024)
#define DEFAULT_BACKEND	  "compressed"

struct settings {
	const struct schema *schema;
	char *path;
	char *written; /* what the file holds, as far as we wrote it */
	json_t *base, *kept;
};

static int check_as(const struct schema *s, const char *command, const char *name_arg,
		    const char *name, const json_t *args, struct error *e)
{
	json_t *copy = json_deep_copy(args);
	int r;

	if (!json_is_object(copy)) {
		json_decref(copy);
		return error_set(e, EINVAL, ERROR_ARGUMENT, "not an object");
	}
	if (name_arg)
		json_object_set_new(copy, name_arg, json_string(name));
	r = schema_check_args(s, schema_command(s, command), copy, e);
	json_decref(copy);
	return r;
}

static int check_vm(const struct schema *s, const char *name, const json_t *entry, struct error *e)
{
	const char *key;
	json_t *value;
	int r;

	if (!json_is_object(entry))
		return error_set(e, EINVAL, ERROR_ARGUMENT, "not an object");
	json_object_foreach((json_t *)entry, key, value) {
		if (strcmp(key, "settings") == 0)
			r = check_as(s, "vm-set", "vm", name, value, e);
		else if (strcmp(key, "reclaim") == 0 || strcmp(key, "prefetch") == 0)
			r = check_as(s, "policy-set", "vm", name, value, e);
		else
			r = error_set(e, EINVAL, ERROR_ARGUMENT, "'%.60s' is not known", key);
		if (r)
			return r;
	}
	return 0;
}

static int check_part(const struct schema *s, const char *part, const json_t *value,
		      struct error *e)
{
	bool vms = strcmp(part, "vms") == 0, backends = strcmp(part, "backends") == 0;
	const char *name;
	json_t *entry;
	size_t i;
	int r = 0;

	if (strcmp(part, "backends-removed") == 0) {
		if (!json_is_array(value))
			return error_set(e, EINVAL, ERROR_ARGUMENT, "not a list");
		json_array_foreach((json_t *)value, i, entry) {
			if (!json_is_string(entry))
				return error_set(e, EINVAL, ERROR_ARGUMENT, "not a name");
		}
		return 0;
	}
	if (!vms && !backends && strcmp(part, "policies") != 0)
		return error_set(e, EINVAL, ERROR_ARGUMENT, "not known");
	if (!json_is_object(value))
		return error_set(e, EINVAL, ERROR_ARGUMENT, "not an object");
	json_object_foreach((json_t *)value, name, entry) {
		if (vms)
			r = check_vm(s, name, entry, e);
		else
			r = check_as(s, backends ? "backend-add" : "policy-load", "name", name,
				     entry, e);
		if (r)
			return r;
	}
	return 0;
}

int settings_check(const struct schema *s, const json_t *tree, const char *where, struct error *e)
{
	const char *part;
	json_t *value;
	struct error why;

	if (!json_is_object(tree))
		return error_set(e, EINVAL, ERROR_ARGUMENT, "%s: not an object", where);
	json_object_foreach((json_t *)tree, part, value) {
		if (strcmp(part, "version") == 0) {
			if (json_integer_value(value) != SETTINGS_VERSION)
				return error_set(e, EINVAL, ERROR_ARGUMENT,
						 "%s: version %lld is not known", where,
						 (long long)json_integer_value(value));
		} else if (check_part(s, part, value, &why)) {
			return error_set(e, EINVAL, ERROR_ARGUMENT, "%s: %.40s: %.250s", where,
					 part, why.desc);
		}
	}
	return 0;
}

/* ---- the file ---- */

/* Moves a file that makes no sense aside, so that it can be looked at and is not overwritten. */
static void put_aside(const char *path, const char *why)
{
	char aside[PATH_MAX];

	snprintf(aside, sizeof(aside), "%s.broken", path);
	log_warning("settings: %s; moved to %s, starting without it", why, aside);
	if (rename(path, aside))
		log_warning("settings: %s: %s", aside, error_text(errno));
}

static int read_kept(struct settings *s, struct error *e)
{
	FD_OWNED fd = open(s->path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
	struct stat st;
	json_error_t je;

	if (fd < 0 && errno == ENOENT)
		return 0;
	if (fd < 0 || fstat(fd, &st))
		return error_set(e, errno, ERROR_GENERIC, "%s: %s", s->path, error_text(errno));
	if (!S_ISREG(st.st_mode) || st.st_size > SETTINGS_FILE_MAX)
		return error_set(e, EINVAL, ERROR_GENERIC, "%s: not a settings file", s->path);
	s->kept = json_loadfd(fd, JSON_REJECT_DUPLICATES, &je);
	if (!s->kept)
		return error_set(e, EINVAL, ERROR_GENERIC, "%s:%d: %s", s->path, je.line, je.text);
	return settings_check(s->schema, s->kept, s->path, e);
}

static int write_file(const char *path, const char *text, size_t bytes)
{
	FD_OWNED fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600);

	if (fd < 0 || fchmod(fd, 0600))
		return -errno;
	while (bytes) {
		ssize_t n = write(fd, text, bytes);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return -errno;
		text += n;
		bytes -= (size_t)n;
	}
	return fsync(fd) ? -errno : 0;
}

static int sync_folder(const char *path)
{
	char *folder = strdup(path), *slash = folder ? strrchr(folder, '/') : NULL;
	FD_OWNED fd = -1;

	if (slash)
		*slash = '\0';
	fd = open(slash ? folder : ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	free(folder);
	return fd < 0 || fsync(fd) ? -errno : 0;
}

static int save(struct settings *s, struct error *e)
{
	char *text = json_dumps(s->kept, JSON_INDENT(2) | JSON_SORT_KEYS);
	char temp[PATH_MAX];
	int r;

	if (text && s->written && strcmp(text, s->written) == 0) {
		free(text);
		return 0;
	}
	snprintf(temp, sizeof(temp), "%s.new", s->path);
	r = text ? write_file(temp, text, strlen(text)) : -ENOMEM;
	if (!r && rename(temp, s->path))
		r = -errno;
	if (!r)
		r = sync_folder(s->path);
	free(s->written);
	s->written = NULL;
	if (r) {
		free(text);
		return error_set(e, -r, ERROR_GENERIC,
				 "done, but it will be forgotten with the daemon: %s: %s", s->path,
				 error_text(r));
	}
	s->written = text;
	return 0;
}

int settings_new(const struct schema *schema, const char *path, struct settings **out,
		 struct error *e)
{
	struct settings *s = calloc(1, sizeof(*s));
	struct error why;

	if (!s || !(s->path = strdup(path))) {
		free(s);
		return error_set(e, ENOMEM, ERROR_GENERIC, "no memory");
	}
	s->schema = schema;
	s->base = json_object();
	if (read_kept(s, &why)) {
		put_aside(path, why.desc);
		json_decref(s->kept);
		s->kept = NULL;
	}
	if (!s->kept)
		s->kept = json_pack("{s:i}", "version", SETTINGS_VERSION);
	*out = s;
	return 0;
}

void settings_free(struct settings *s)
{
	if (!s)
		return;
	json_decref(s->base);
	json_decref(s->kept);
	free(s->path);
	free(s->written);
	free(s);
}

void settings_set_base(struct settings *s, json_t *tree)
{
	json_decref(s->base);
	s->base = tree;
}

/* ---- applying ---- */

static bool is_removed(const struct settings *s, const char *name)
{
	json_t *item;
	size_t i;

	json_array_foreach(json_object_get(s->kept, "backends-removed"), i, item) {
		if (strcmp(json_string_value(item), name) == 0)
			return true;
	}
	return false;
}

static void add_backend(struct engine *eng, const char *name, const json_t *entry)
{
	json_t *args = json_copy((json_t *)entry);
	struct error e;

	json_object_set_new(args, "name", json_string(name));
	if (apply_backend_add(eng, args, &e))
		log_error("backend %s: %s", name, e.desc);
	json_decref(args);
}

static void apply_backends(const struct settings *s, struct engine *eng)
{
	json_t *base = json_object_get(s->base, "backends");
	json_t *kept = json_object_get(s->kept, "backends"), *entry;
	const char *name;

	if (!json_object_get(base, DEFAULT_BACKEND) && !json_object_get(kept, DEFAULT_BACKEND) &&
	    !is_removed(s, DEFAULT_BACKEND)) {
		entry = json_pack("{s:s}", "driver", DEFAULT_BACKEND);
		add_backend(eng, DEFAULT_BACKEND, entry);
		json_decref(entry);
	}
	json_object_foreach(base, name, entry) {
		if (!is_removed(s, name) && !json_object_get(kept, name))
			add_backend(eng, name, entry);
	}
	json_object_foreach(kept, name, entry) {
		add_backend(eng, name, entry);
	}
}

static void load_policies(const json_t *policies, const json_t *without, struct engine *eng)
{
	const char *name;
	json_t *entry;
	struct error e;

	json_object_foreach((json_t *)policies, name, entry) {
		json_t *args;

		if (json_object_get(without, name))
			continue;
		args = json_copy(entry);
		json_object_set_new(args, "name", json_string(name));
		if (apply_policy_load(eng, args, &e))
			log_error("policy %s: %s", name, e.desc);
		json_decref(args);
	}
}

void settings_apply_start(const struct settings *s, struct engine *eng)
{
	json_t *kept = json_object_get(s->kept, "policies");

	apply_backends(s, eng);
	load_policies(json_object_get(s->base, "policies"), kept, eng);
	load_policies(kept, NULL, eng);
}

/* Marks are those of the tiers that they were given with or for: new tiers are without. */
static void drop_marks(json_t *settings, const json_t *change)
{
	if (json_object_get(change, "tiers"))
		json_object_del(settings, "tier-high");
	if (json_object_get(change, "tiers") || json_object_get(change, "tier-high"))
		json_object_del(settings, "tier-low");
}

/* What the trees say about a part of a VM, the later over the earlier. Gives an object. */
static json_t *merged(const struct settings *s, const char *vm, const char *part, bool whole)
{
	json_t *base = json_object_get(s->base, "vms");
	json_t *levels[] = {json_object_get(base, "*"), json_object_get(base, vm),
			    json_object_get(json_object_get(s->kept, "vms"), vm)};
	json_t *out = json_object();

	for (size_t i = 0; i < sizeof(levels) / sizeof(levels[0]); i++) {
		json_t *level = json_object_get(levels[i], part);

		if (level && whole)
			json_object_clear(out);
		if (!level)
			continue;
		drop_marks(out, level);
		json_object_update(out, level);
	}
	return out;
}

static void apply_vm_settings(const struct settings *s, struct engine *eng, const char *vm)
{
	static const char *const about_tiers[] = {"tiers", "tier-high", "tier-low"};
	json_t *all = merged(s, vm, "settings", false), *tiers = json_object();
	struct error e;

	/* By themselves, so that a backend that is gone does not cost the VM its limit. */
	for (size_t i = 0; i < sizeof(about_tiers) / sizeof(about_tiers[0]); i++) {
		if (!json_object_get(all, about_tiers[i]))
			continue;
		json_object_set(tiers, about_tiers[i], json_object_get(all, about_tiers[i]));
		json_object_del(all, about_tiers[i]);
	}
	if (json_object_size(all) && apply_vm_set(eng, vm, all, &e))
		log_warning("VM %s: its settings could not be applied: %s", vm, e.desc);
	if (json_object_size(tiers) && apply_vm_set(eng, vm, tiers, &e))
		log_warning("VM %s: its tiers could not be applied: %s", vm, e.desc);
	json_decref(all);
	json_decref(tiers);
}

static void apply_vm_policy(const struct settings *s, struct engine *eng, const char *vm,
			    const char *role)
{
	json_t *args = merged(s, vm, role, true);
	struct error e;

	if (json_object_size(args) && apply_policy_set(eng, vm, args, &e))
		log_warning("VM %s: its %s policy could not be applied: %s", vm, role, e.desc);
	json_decref(args);
}

void settings_apply_vm(const struct settings *s, struct engine *eng, const char *vm)
{
	if (!s)
		return;
	apply_vm_settings(s, eng, vm);
	apply_vm_policy(s, eng, vm, "reclaim");
	apply_vm_policy(s, eng, vm, "prefetch");
}

/* ---- keeping ---- */

/* The object under name, made when it is not there. Borrowed. */
static json_t *under(json_t *object, const char *name)
{
	json_t *o = json_object_get(object, name);

	if (!o) {
		o = json_object();
		json_object_set_new(object, name, o);
	}
	return o;
}

/* The command's own arguments without the one that names the thing. */
static json_t *without(const json_t *args, const char *name)
{
	json_t *copy = json_deep_copy(args);

	json_object_del(copy, name);
	return copy;
}

int settings_vm_set(struct settings *s, const json_t *args, struct error *e)
{
	json_t *change, *kept;

	if (!s)
		return 0;
	change = without(args, "vm");
	kept = under(under(under(s->kept, "vms"), json_string_value(json_object_get(args, "vm"))),
		     "settings");
	drop_marks(kept, change);
	json_object_update(kept, change);
	json_decref(change);
	return save(s, e);
}

int settings_policy_set(struct settings *s, const json_t *args, struct error *e)
{
	if (!s)
		return 0;
	json_object_set_new(
		under(under(s->kept, "vms"), json_string_value(json_object_get(args, "vm"))),
		json_string_value(json_object_get(args, "role")), without(args, "vm"));
	return save(s, e);
}

int settings_policy_load(struct settings *s, const json_t *args, struct error *e)
{
	if (!s)
		return 0;
	json_object_set_new(under(s->kept, "policies"),
			    json_string_value(json_object_get(args, "name")),
			    without(args, "name"));
	return save(s, e);
}

int settings_policy_unload(struct settings *s, const char *name, struct error *e)
{
	if (!s)
		return 0;
	json_object_del(under(s->kept, "policies"), name);
	return save(s, e);
}

/* Takes a name from the list of what must not be opened at the next start. */
static void unremove(struct settings *s, const char *name)
{
	json_t *list = json_object_get(s->kept, "backends-removed");

	for (size_t i = json_array_size(list); i-- > 0;)
		if (strcmp(json_string_value(json_array_get(list, i)), name) == 0)
			json_array_remove(list, i);
}

int settings_backend_add(struct settings *s, const json_t *args, struct error *e)
{
	const char *name = json_string_value(json_object_get(args, "name"));

	if (!s)
		return 0;
	unremove(s, name);
	json_object_set_new(under(s->kept, "backends"), name, without(args, "name"));
	return save(s, e);
}

int settings_backend_remove(struct settings *s, const char *name, struct error *e)
{
	if (!s)
		return 0;
	json_object_del(under(s->kept, "backends"), name);
	unremove(s, name);
	/* The default one, and those of the configuration, would come back by themselves. */
	if (strcmp(name, DEFAULT_BACKEND) == 0 ||
	    json_object_get(json_object_get(s->base, "backends"), name)) {
		if (!json_object_get(s->kept, "backends-removed"))
			json_object_set_new(s->kept, "backends-removed", json_array());
		json_array_append_new(json_object_get(s->kept, "backends-removed"),
				      json_string(name));
	}
	return save(s, e);
}
