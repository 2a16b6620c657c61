/* SPDX-License-Identifier: BSD-3-Clause */
/* methods_vm.c: the commands about VMs. */
#include <errno.h>
#include <stdlib.h>
#include <unistd.h>

#include "control/apply.h"
#include "control/internal.h"
#include "control/jobs.h"
#include "control/settings.h"
#include "control/stats.h"
#include "control/vm_json.h"
#include "control/watch_json.h"

static int query_vms(struct request *r, json_t **ret, struct error *e)
{
	struct engine *eng = r->control->config.engine;
	char(*names)[VM_NAME_MAX] = calloc(ENGINE_VMS_MAX, sizeof(*names));
	struct vm_info *info = malloc(sizeof(*info));
	unsigned int n;

	if (!names || !info) {
		free(names);
		free(info);
		return error_set(e, ENOMEM, ERROR_GENERIC, "no memory");
	}
	*ret = json_array();
	n = engine_vm_names(eng, names, ENGINE_VMS_MAX);
	for (unsigned int i = 0; i < n && i < ENGINE_VMS_MAX; i++)
		if (engine_vm_info(eng, names[i], info, e) == 0) /* else it has just gone */
			json_array_append_new(*ret, vm_to_json(info));
	free(names);
	free(info);
	return 0;
}

static int query_vm(struct request *r, json_t **ret, struct error *e)
{
	struct vm_info *info = malloc(sizeof(*info));
	int err;

	if (!info)
		return error_set(e, ENOMEM, ERROR_GENERIC, "no memory");
	err = engine_vm_info(r->control->config.engine, arg_text(r->args, "vm"), info, e);
	if (!err)
		*ret = vm_to_json(info);
	free(info);
	return err;
}

static int query_policy_stats(struct request *r, json_t **ret, struct error *e)
{
	struct engine *eng = r->control->config.engine;
	const char *vm = arg_text(r->args, "vm");
	uint32_t role = apply_role(r->args);
	struct ebb_policy_stat stats[32];
	struct vm_info *info = malloc(sizeof(*info));
	int err, n;

	if (!info)
		return error_set(e, ENOMEM, ERROR_GENERIC, "no memory");
	err = engine_vm_info(eng, vm, info, e);
	if (!err) {
		n = engine_policy_stats(eng, vm, role, stats, 32);
		*ret = json_pack("{s:s, s:o}", "policy",
				 role == EBB_POLICY_RECLAIM ? info->reclaim_policy
							    : info->prefetch_policy,
				 "stats", policy_stats_to_json(stats, n < 32 ? n : 32));
	}
	free(info);
	return err;
}

static int vm_set(struct request *r, json_t **ret, struct error *e)
{
	const char *vm = arg_text(r->args, "vm");
	int err = apply_vm_set(r->control->config.engine, vm, r->args, e);

	(void)ret;
	return err ? err : settings_vm_set(r->control->config.settings, r->args, e);
}

static int policy_set(struct request *r, json_t **ret, struct error *e)
{
	const char *vm = arg_text(r->args, "vm");
	int err;

	engine_policy_forgive(r->control->config.engine, arg_text(r->args, "policy"));
	err = apply_policy_set(r->control->config.engine, vm, r->args, e);

	(void)ret;
	return err ? err : settings_policy_set(r->control->config.settings, r->args, e);
}

/* So that a wrong name is told at once, and no job is seen to start and fail. */
static int vm_known(struct request *r, struct error *e)
{
	struct vm_info *info = malloc(sizeof(*info));
	int err;

	if (!info)
		return error_set(e, ENOMEM, ERROR_GENERIC, "no memory");
	err = engine_vm_info(r->control->config.engine, arg_text(r->args, "vm"), info, e);
	free(info);
	return err;
}

static int run_reclaim(struct job *j, struct error *e)
{
	int err = engine_vm_reclaim(j->engine, j->target, j->bytes, &j->progress, &j->result, e);

	if (err == -ECANCELED)
		return error_set(e, ECANCELED, ERROR_CANCELLED,
				 "cancelled; %llu bytes were reclaimed until then",
				 (unsigned long long)j->result);
	return err;
}

static json_t *reclaimed(struct job *j, struct control *c)
{
	(void)c;
	return json_pack("{s:I}", "reclaimed-bytes", (json_int_t)j->result);
}

static int vm_reclaim(struct request *r, json_t **ret, struct error *e)
{
	json_int_t bytes = json_integer_value(json_object_get(r->args, "bytes"));
	int err = vm_known(r, e);

	(void)ret;
	return err ? err
		   : job_start(r, arg_text(r->args, "vm"), (uint64_t)bytes, run_reclaim, reclaimed,
			       e);
}

static int run_prefetch(struct job *j, struct error *e)
{
	int err = engine_vm_prefetch(j->engine, j->target, &j->progress, &j->result, e);

	if (err == -ECANCELED)
		return error_set(e, ECANCELED, ERROR_CANCELLED,
				 "cancelled; %llu bytes were brought back until then",
				 (unsigned long long)j->result);
	return err;
}

static json_t *prefetched(struct job *j, struct control *c)
{
	(void)c;
	return json_pack("{s:I}", "prefetched-bytes", (json_int_t)j->result);
}

static int vm_prefetch(struct request *r, json_t **ret, struct error *e)
{
	int err = vm_known(r, e);

	(void)ret;
	return err ? err : job_start(r, arg_text(r->args, "vm"), 0, run_prefetch, prefetched, e);
}

struct trace_job {
	struct trace_request request;
	struct trace_result result;
};

static void free_trace_job(void *arg)
{
	struct trace_job *t = arg;

	close(t->request.fd);
	free(t);
}

static int run_trace(struct job *j, struct error *e)
{
	struct trace_job *t = j->arg;

	return engine_vm_trace(j->engine, j->target, &t->request, &j->progress, &t->result, e);
}

static json_t *traced(struct job *j, struct control *c)
{
	const struct trace_result *t = &((const struct trace_job *)j->arg)->result;

	(void)c;
	return json_pack("{s:I, s:I, s:I, s:I, s:b}", "bytes", (json_int_t)t->bytes, "faults",
			 (json_int_t)t->faults, "lost-faults", (json_int_t)t->lost, "windows",
			 (json_int_t)t->windows, "full", (int)t->full);
}

static uint64_t arg_number(const struct request *r, const char *name)
{
	return (uint64_t)json_integer_value(json_object_get(r->args, name));
}

static int vm_trace(struct request *r, json_t **ret, struct error *e)
{
	struct trace_job *t;
	int err = vm_known(r, e);

	(void)ret;
	if (err)
		return err;
	t = calloc(1, sizeof(*t));
	if (!t)
		return error_set(e, ENOMEM, ERROR_GENERIC, "no memory");
	t->request = (struct trace_request){
		.fd = client_create_file(r->client, arg_text(r->args, "file"), e),
		.seconds = arg_number(r, "seconds"),
		.window_ms = arg_number(r, "window-ms"),
		.max_bytes = arg_number(r, "max-bytes")};
	if (t->request.fd < 0) {
		err = t->request.fd;
		free(t);
		return err;
	}
	return job_start_with(r, arg_text(r->args, "vm"), t, free_trace_job, run_trace, traced, e);
}

struct watch_job {
	struct watch_request request;
	struct watch_result result;
};

static void free_watch_job(void *arg)
{
	struct watch_job *w = arg;

	engine_watch_free(&w->result);
	free(w);
}

static int run_watch(struct job *j, struct error *e)
{
	struct watch_job *w = j->arg;

	return engine_vm_watch(j->engine, j->target, &w->request, &j->progress, &w->result, e);
}

/* Starts watching for as long as the request says. */
static int watch(struct request *r, unsigned int columns,
		 json_t *(*finish)(struct job *, struct control *), struct error *e)
{
	uint64_t ms = arg_number(r, "seconds") * 1000, window_ms = arg_number(r, "window-ms");
	/* The schema bounds both, so that this fits. */
	const struct watch_request request = {.window_ms = window_ms,
					      .windows = (unsigned int)(ms / window_ms),
					      .columns = columns};
	struct watch_job *w;
	int err = vm_known(r, e);

	if (err)
		return err;
	if (!watch_request_fits(&request))
		return error_set(e, EINVAL, ERROR_ARGUMENT,
				 "that is %u windows: there must be 1 to %u, and columns times "
				 "windows at most %u",
				 request.windows, WATCH_WINDOWS_MAX, WATCH_CELLS_MAX);
	w = calloc(1, sizeof(*w));
	if (!w)
		return error_set(e, ENOMEM, ERROR_GENERIC, "no memory");
	w->request = request;
	return job_start_with(r, arg_text(r->args, "vm"), w, free_watch_job, run_watch, finish, e);
}

static json_t *heatmap_answer(struct job *j, struct control *c)
{
	(void)c;
	return heatmap_to_json(&((const struct watch_job *)j->arg)->result);
}

static int vm_heatmap(struct request *r, json_t **ret, struct error *e)
{
	(void)ret;
	return watch(r, (unsigned int)arg_number(r, "columns"), heatmap_answer, e);
}

static json_t *wss_answer(struct job *j, struct control *c)
{
	(void)c;
	return wss_to_json(&((const struct watch_job *)j->arg)->result);
}

static int vm_wss(struct request *r, json_t **ret, struct error *e)
{
	(void)ret;
	return watch(r, 0, wss_answer, e);
}

static int run_detach(struct job *j, struct error *e)
{
	int err = engine_vm_detach(j->engine, j->target, &j->progress, e);

	if (err == -ECANCELED)
		return error_set(e, ECANCELED, ERROR_CANCELLED, "cancelled; the VM stays attached");
	return err;
}

static int vm_detach(struct request *r, json_t **ret, struct error *e)
{
	int err = vm_known(r, e);

	(void)ret;
	return err ? err : job_start(r, arg_text(r->args, "vm"), 0, run_detach, NULL, e);
}

const struct method methods_vm[] = {
	{"query-vms", query_vms},
	{"query-vm", query_vm},
	{"query-policy-stats", query_policy_stats},
	{"vm-set", vm_set},
	{"vm-reclaim", vm_reclaim},
	{"vm-prefetch", vm_prefetch},
	{"vm-detach", vm_detach},
	{"vm-trace", vm_trace},
	{"vm-heatmap", vm_heatmap},
	{"vm-wss", vm_wss},
	{"policy-set", policy_set},
	{NULL, NULL},
};
