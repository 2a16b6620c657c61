/* SPDX-License-Identifier: BSD-3-Clause */
/* methods_plugin.c: the commands about backends and policies. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "control/apply.h"
#include "control/internal.h"
#include "control/jobs.h"
#include "control/settings.h"
#include "control/stats.h"

#define POLICIES_MAX 128

struct bit_name {
	uint32_t bit;
	const char *name;
};

static const struct bit_name cap_names[] = {
	{EBB_BACKEND_SYNC, "sync"},
	{EBB_BACKEND_MAPPABLE, "mappable"},
	{EBB_BACKEND_PERSISTENT, "persistent"},
	{EBB_BACKEND_REGISTERED_BUFFERS, "registered-buffers"},
	{EBB_BACKEND_IN_RAM, "in-ram"},
	{0, NULL},
};

static const struct bit_name role_names[] = {
	{EBB_POLICY_RECLAIM, "reclaim"},
	{EBB_POLICY_PREFETCH, "prefetch"},
	{0, NULL},
};

static json_t *bits_to_json(uint32_t bits, const struct bit_name *names)
{
	json_t *list = json_array();

	for (; names->name; names++)
		if (bits & names->bit)
			json_array_append_new(list, json_string(names->name));
	return list;
}

static json_t *backend_to_json(const struct backend_info *b)
{
	const struct ebb_usage *u = &b->usage;

	return json_pack("{s:s, s:s, s:s, s:s, s:o, s:i, s:I, s:I, s:I, s:I, s:I, s:I, s:o}",
			 "name", b->name, "driver", b->driver, "description", b->description,
			 "state", b->state, "capabilities", bits_to_json(b->caps, cap_names), "vms",
			 (int)b->vms, "objects", (json_int_t)u->objects, "logical-bytes",
			 (json_int_t)u->logical_bytes, "stored-bytes", (json_int_t)u->stored_bytes,
			 "footprint-bytes", (json_int_t)u->footprint_bytes, "overhead-bytes",
			 (json_int_t)u->overhead_bytes, "capacity-bytes",
			 (json_int_t)u->capacity_bytes, "stats",
			 backend_stats_to_json(b->stats, b->n_stats));
}

static int query_backends(struct request *r, json_t **ret, struct error *e)
{
	struct backend_info *info = calloc(ENGINE_BACKENDS_MAX, sizeof(*info));
	unsigned int n;

	if (!info)
		return error_set(e, ENOMEM, ERROR_GENERIC, "no memory");
	*ret = json_array();
	n = engine_backend_info(r->control->config.engine, info, ENGINE_BACKENDS_MAX);
	for (unsigned int i = 0; i < n && i < ENGINE_BACKENDS_MAX; i++)
		json_array_append_new(*ret, backend_to_json(&info[i]));
	free(info);
	return 0;
}

static int query_policies(struct request *r, json_t **ret, struct error *e)
{
	struct policy_info *info = calloc(POLICIES_MAX, sizeof(*info));
	unsigned int n;

	if (!info)
		return error_set(e, ENOMEM, ERROR_GENERIC, "no memory");
	*ret = json_array();
	n = engine_policy_info(r->control->config.engine, info, POLICIES_MAX);
	for (unsigned int i = 0; i < n && i < POLICIES_MAX; i++)
		json_array_append_new(*ret, json_pack("{s:s, s:s, s:s, s:o, s:i}", "name",
						      info[i].name, "file", info[i].file,
						      "description", info[i].description, "roles",
						      bits_to_json(info[i].roles, role_names),
						      "instances", (int)info[i].instances));
	free(info);
	return 0;
}

static int policy_load(struct request *r, json_t **ret, struct error *e)
{
	int err;

	engine_policy_forgive(r->control->config.engine, arg_text(r->args, "name"));
	err = apply_policy_load(r->control->config.engine, r->args, e);

	(void)ret;
	return err ? err : settings_policy_load(r->control->config.settings, r->args, e);
}

static int policy_unload(struct request *r, json_t **ret, struct error *e)
{
	const char *name = arg_text(r->args, "name");
	int err = engine_policy_unload(r->control->config.engine, name, e);

	(void)ret;
	return err ? err : settings_policy_unload(r->control->config.settings, name, e);
}

static int backend_add(struct request *r, json_t **ret, struct error *e)
{
	int err = apply_backend_add(r->control->config.engine, r->args, e);

	(void)ret;
	return err ? err : settings_backend_add(r->control->config.settings, r->args, e);
}

static int run_remove(struct job *j, struct error *e)
{
	return engine_backend_remove(j->engine, j->target, &j->progress, e);
}

static json_t *removed(struct job *j, struct control *c)
{
	struct error e;

	if (settings_backend_remove(c->config.settings, j->target, &e))
		log_error("control: %s", e.desc);
	return NULL;
}

static int backend_remove(struct request *r, json_t **ret, struct error *e)
{
	(void)ret;
	return job_start(r, arg_text(r->args, "name"), 0, run_remove, removed, e);
}

const struct method methods_plugin[] = {
	{"query-backends", query_backends},
	{"query-policies", query_policies},
	{"policy-load", policy_load},
	{"policy-unload", policy_unload},
	{"backend-add", backend_add},
	{"backend-remove", backend_remove},
	{NULL, NULL},
};
