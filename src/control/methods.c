/* SPDX-License-Identifier: BSD-3-Clause */
/* methods.c: from a request to its handler; the commands about the daemon itself. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "control/internal.h"
#include "control/jobs.h"
#include "control/metrics.h"

static int query_version(struct request *r, json_t **ret, struct error *e)
{
	int major = 0, minor = 0, micro = 0;

	(void)r;
	(void)e;
	sscanf(EBB_VERSION, "%d.%d.%d", &major, &minor, &micro);
	*ret = json_pack("{s:{s:i, s:i, s:i}, s:s}", "qemu", "major", major, "minor", minor,
			 "micro", micro, "package", "ebb " EBB_VERSION);
	return 0;
}

static int query_commands(struct request *r, json_t **ret, struct error *e)
{
	const json_t *commands =
		json_object_get(schema_root(r->control->config.schema), "commands");
	json_t *item;
	size_t i;

	(void)e;
	*ret = json_array();
	json_array_foreach(commands, i, item) {
		json_array_append_new(*ret, json_pack("{s:s}", "name", schema_text(item, "name")));
	}
	return 0;
}

static int query_schema(struct request *r, json_t **ret, struct error *e)
{
	(void)e;
	*ret = json_incref(schema_root(r->control->config.schema));
	return 0;
}

static int query_host(struct request *r, json_t **ret, struct error *e)
{
	struct host_info h;

	(void)e;
	memset(&h, 0, sizeof(h));
	engine_host_info(r->control->config.engine, &h);
	*ret = json_pack(
		"{s:i, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:i, s:i, s:I, s:b, s:s, s:b, s:b, s:b, s:b}",
		"vms", (int)h.vms, "ram-bytes", (json_int_t)h.ram_bytes, "resident-bytes",
		(json_int_t)h.resident_bytes, "stored-bytes", (json_int_t)h.stored_bytes,
		"overhead-bytes", (json_int_t)h.overhead_bytes, "budget-bytes",
		(json_int_t)h.budget_bytes, "host-total-bytes", (json_int_t)h.host_total_bytes,
		"host-available-bytes", (json_int_t)h.host_available_bytes, "fault-threads",
		(int)h.fault_threads, "evict-threads", (int)h.evict_threads, "uffd-features",
		(json_int_t)h.uffd_features, "probe", (int)h.probe, "probe-reason", h.probe_reason,
		"zap-scan", (int)h.zap_scan, "collapse-safe", (int)h.collapse_safe, "poison",
		(int)h.poison, "userfaultfd-device", (int)h.userfaultfd_device);
	return 0;
}

static int query_metrics(struct request *r, json_t **ret, struct error *e)
{
	return metrics_json(r->control->config.engine, ret, e);
}

static int query_jobs(struct request *r, json_t **ret, struct error *e)
{
	(void)e;
	*ret = jobs_query(r->control->jobs);
	return 0;
}

static int job_cancel(struct request *r, json_t **ret, struct error *e)
{
	(void)ret;
	return jobs_cancel(r->control->jobs, arg_text(r->args, "job"), e);
}

/* Refuses when what is evicted would not fit into the host's memory. */
static int drain_fits(struct engine *eng, char (*names)[VM_NAME_MAX], unsigned int n,
		      struct error *e)
{
	struct vm_info *info = calloc(1, sizeof(*info));
	uint64_t evicted = 0;
	struct host_info h;

	if (!info)
		return error_set(e, ENOMEM, ERROR_GENERIC, "no memory");
	memset(&h, 0, sizeof(h));
	engine_host_info(eng, &h);
	for (unsigned int i = 0; i < n; i++)
		if (engine_vm_info(eng, names[i], info, e) == 0)
			evicted += info->evicted_bytes;
	free(info);
	if (evicted > h.host_available_bytes)
		return error_set(e, ENOSPC, ERROR_NO_SPACE,
				 "%llu MiB are evicted and the host has %llu MiB available",
				 (unsigned long long)(evicted >> 20),
				 (unsigned long long)(h.host_available_bytes >> 20));
	return 0;
}

/* Brings everything back and lets go of every VM; again while new ones come. */
static int run_drain(struct job *j, struct error *e)
{
	char(*names)[VM_NAME_MAX] = calloc(ENGINE_VMS_MAX, sizeof(*names));
	unsigned int n;
	int r = 0;

	if (!names)
		return error_set(e, ENOMEM, ERROR_GENERIC, "no memory");
	while (!r && (n = engine_vm_names(j->engine, names, ENGINE_VMS_MAX)) > 0) {
		if (n > ENGINE_VMS_MAX)
			n = ENGINE_VMS_MAX;
		r = drain_fits(j->engine, names, n, e);
		for (unsigned int i = 0; i < n && !r; i++) {
			if (atomic_load(&j->progress.cancel))
				r = error_set(e, ECANCELED, ERROR_CANCELLED, "cancelled");
			else
				r = engine_vm_detach(j->engine, names[i], &j->progress, e);
			if (r == -ENOENT)
				r = 0; /* it has gone by itself */
		}
	}
	free(names);
	return r;
}

static json_t *drained(struct job *j, struct control *c)
{
	(void)j;
	c->config.quit(c->config.ctx);
	return NULL;
}

static int quit(struct request *r, json_t **ret, struct error *e)
{
	(void)ret;
	if (json_is_true(json_object_get(r->args, "drain")))
		return job_start(r, NULL, 0, run_drain, drained, e);
	log_info("control: quit");
	r->control->config.quit(r->control->config.ctx);
	return 0;
}

struct upgrade {
	const struct control_config *config;
	char *binary; /* owned; NULL: not given */
	uint32_t wait_ms;
	struct upgrade_done done;
};

static void upgrade_free(void *arg)
{
	struct upgrade *u = arg;

	free(u->binary);
	free(u);
}

static int run_upgrade(struct job *j, struct error *e)
{
	struct upgrade *u = j->arg;

	return u->config->upgrade(u->config->ctx, u->binary, u->wait_ms, &u->done, e);
}

/* Everything belongs to the successor: the clients are told, and this process ends. */
static json_t *upgraded(struct job *j, struct control *c)
{
	const struct upgrade_done *done = &((struct upgrade *)j->arg)->done;
	json_t *ret = json_pack("{s:i, s:s, s:I}", "pid", (int)done->pid, "version", done->version,
				"paused-us", (json_int_t)done->paused_us);

	control_broadcast(c, "UPGRADED", json_incref(ret));
	c->config.quit(c->config.ctx);
	return ret;
}

static int upgrade(struct request *r, json_t **ret, struct error *e)
{
	const char *binary = arg_text(r->args, "binary");
	struct upgrade *u;

	(void)ret;
	if (!r->control->config.upgrade)
		return error_set(e, ENOTSUP, ERROR_UNSUPPORTED, "this daemon cannot be replaced");
	u = calloc(1, sizeof(*u));
	if (u)
		*u = (struct upgrade){.config = &r->control->config,
				      .binary = binary ? strdup(binary) : NULL,
				      .wait_ms = (uint32_t)json_integer_value(
					      json_object_get(r->args, "wait-ms"))};
	if (!u || (binary && !u->binary)) {
		free(u);
		return error_set(e, ENOMEM, ERROR_GENERIC, "no memory");
	}
	return job_start_with(r, NULL, u, upgrade_free, run_upgrade, upgraded, e);
}

static const struct method methods_daemon[] = {
	{"query-version", query_version},
	{"query-commands", query_commands},
	{"query-schema", query_schema},
	{"query-host", query_host},
	{"query-metrics", query_metrics},
	{"query-jobs", query_jobs},
	{"job-cancel", job_cancel},
	{"upgrade", upgrade},
	{"quit", quit},
	{NULL, NULL},
};

static const struct method *const tables[] = {methods_daemon, methods_vm, methods_plugin};

static method_fn find(const char *name)
{
	for (size_t t = 0; t < sizeof(tables) / sizeof(tables[0]); t++)
		for (const struct method *m = tables[t]; m->name; m++)
			if (strcmp(m->name, name) == 0)
				return m->fn;
	return NULL;
}

bool methods_complete(const struct schema *s, struct error *e)
{
	json_t *item;
	size_t i;

	json_array_foreach(json_object_get(schema_root(s), "commands"), i, item) {
		const char *name = schema_text(item, "name");

		if (strcmp(name, "qmp_capabilities") != 0 && !find(name)) {
			error_set(e, ENOENT, ERROR_GENERIC, "'%s' has no handler", name);
			return false;
		}
	}
	for (size_t t = 0; t < sizeof(tables) / sizeof(tables[0]); t++)
		for (const struct method *m = tables[t]; m->name; m++)
			if (!schema_command(s, m->name)) {
				error_set(e, ENOENT, ERROR_GENERIC, "'%s' is not declared",
					  m->name);
				return false;
			}
	return true;
}

/* The message itself: execute, arguments, id, nothing else. */
static int check_message(const json_t *message, struct error *e)
{
	const json_t *args = json_object_get(message, "arguments");
	const char *key;
	json_t *value;

	json_object_foreach((json_t *)message, key, value) {
		if (strcmp(key, "execute") != 0 && strcmp(key, "arguments") != 0 &&
		    strcmp(key, "id") != 0)
			return error_set(e, EPROTO, ERROR_PROTOCOL,
					 "member '%.60s' of the request is not known", key);
	}
	if (!json_is_string(json_object_get(message, "execute")))
		return error_set(e, EPROTO, ERROR_PROTOCOL,
				 "the request needs a member 'execute' with a command's name");
	if (args && !json_is_object(args))
		return error_set(e, EPROTO, ERROR_PROTOCOL, "'arguments' must be an object");
	return 0;
}

/* QMP: nothing but qmp_capabilities before the negotiation, and not again after it. */
static int check_negotiation(const struct client *cl, const char *name, struct error *e)
{
	bool negotiate = strcmp(name, "qmp_capabilities") == 0;

	if (!cl->negotiated && !negotiate)
		return error_set(e, EPROTO, ERROR_COMMAND,
				 "expecting capabilities negotiation with 'qmp_capabilities'");
	if (cl->negotiated && negotiate)
		return error_set(e, EPROTO, ERROR_COMMAND,
				 "capabilities negotiation is already complete");
	return 0;
}

static int execute(struct request *r, const char *name, json_t **ret, struct error *e)
{
	struct control *c = r->control;
	int err = check_negotiation(r->client, name, e);

	if (err)
		return err;
	r->command = schema_command(c->config.schema, name);
	if (!r->command)
		return error_set(e, ENOENT, ERROR_COMMAND, "there is no command '%.60s'", name);
	err = schema_check_args(c->config.schema, r->command, r->args, e);
	if (err)
		return err;
	if (!r->client->negotiated) {
		r->client->negotiated = true;
		return 0;
	}
	return find(name)(r, ret, e);
}

void methods_dispatch(struct control *c, struct client *cl, json_t *message)
{
	struct request r = {.control = c, .client = cl};
	json_t *ret = NULL;
	struct error e;
	int err;

	r.id = json_object_get(message, "id");
	err = check_message(message, &e);
	if (!err) {
		const json_t *args = json_object_get(message, "arguments");

		r.args = args ? json_copy((json_t *)args) : json_object();
		err = execute(&r, json_string_value(json_object_get(message, "execute")), &ret, &e);
	}
	if (err < 0)
		client_fail(cl, r.id, &e);
	else if (err != METHOD_LATER)
		client_answer(cl, r.id, ret);
	json_decref(r.args);
	json_decref(message);
}
