/* SPDX-License-Identifier: BSD-3-Clause */
/* fake_engine.c: an engine without memory, for tests of what stands on engine/engine.h. */
#include "control/fake_engine.h"

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define MIB	     (UINT64_C(1) << 20)
#define FAKE_VMS     64
#define FAKE_PLUGINS 15

struct fake_vm {
	char name[VM_NAME_MAX];
	uint64_t ram, evicted;
	struct vm_settings settings;
	char policy[2][PLUGIN_NAME_MAX];
	char option[64]; /* the last policy-set's first option */
};

struct fake_plugin {
	char name[PLUGIN_NAME_MAX], driver[PLUGIN_NAME_MAX], file[256];
	char options[160];
};

struct engine {
	pthread_mutex_t lock;
	struct engine_config config;
	struct fake_vm vms[FAKE_VMS];
	unsigned int n_vms;
	struct fake_plugin backends[FAKE_PLUGINS], policies[FAKE_PLUGINS];
	unsigned int n_backends, n_policies;
};

int engine_new(const struct engine_config *config, struct engine **out, struct error *e)
{
	struct engine *eng = calloc(1, sizeof(*eng));

	if (!eng)
		return error_set(e, ENOMEM, ERROR_GENERIC, "no memory");
	pthread_mutex_init(&eng->lock, NULL);
	eng->config = *config;
	*out = eng;
	return 0;
}

bool engine_free(struct engine *eng)
{
	if (eng)
		pthread_mutex_destroy(&eng->lock);
	free(eng);
	return false;
}

static struct fake_vm *find_vm(struct engine *eng, const char *name)
{
	for (unsigned int i = 0; i < eng->n_vms; i++)
		if (strcmp(eng->vms[i].name, name) == 0)
			return &eng->vms[i];
	return NULL;
}

static struct fake_plugin *find(struct fake_plugin *list, unsigned int n, const char *name)
{
	for (unsigned int i = 0; i < n; i++)
		if (strcmp(list[i].name, name) == 0)
			return &list[i];
	return NULL;
}

static int no_vm(const char *name, struct error *e)
{
	return error_set(e, ENOENT, ERROR_NOT_FOUND, "there is no VM '%.60s'", name);
}

void fake_engine_emit(struct engine *eng, const struct engine_event *ev)
{
	if (eng->config.event)
		eng->config.event(eng->config.event_ctx, ev);
}

int fake_engine_attach(struct engine *eng, const char *name)
{
	struct engine_event ev = {.type = EVENT_VM_ATTACHED};
	struct fake_vm *vm;

	pthread_mutex_lock(&eng->lock);
	if (eng->n_vms == FAKE_VMS || find_vm(eng, name)) {
		pthread_mutex_unlock(&eng->lock);
		return -EEXIST;
	}
	vm = &eng->vms[eng->n_vms++];
	memset(vm, 0, sizeof(*vm));
	snprintf(vm->name, sizeof(vm->name), "%s", name);
	vm->ram = 256 * MIB;
	vm->settings.weight = 100;
	strcpy(vm->policy[0], "clock");
	strcpy(vm->policy[1], "sequential");
	pthread_mutex_unlock(&eng->lock);
	snprintf(ev.vm, sizeof(ev.vm), "%s", name);
	fake_engine_emit(eng, &ev);
	return 0;
}

int engine_vm_info(struct engine *eng, const char *name, struct vm_info *out, struct error *e)
{
	const struct fake_vm *vm;

	memset(out, 0, sizeof(*out));
	pthread_mutex_lock(&eng->lock);
	vm = find_vm(eng, name);
	if (!vm) {
		pthread_mutex_unlock(&eng->lock);
		return no_vm(name, e);
	}
	strcpy(out->name, vm->name);
	out->pid = getpid();
	out->regions = out->attachments = 1;
	out->ram_bytes = vm->ram;
	out->evicted_bytes = vm->evicted;
	out->resident_bytes = vm->ram - vm->evicted;
	out->stored_bytes = vm->evicted / 4;
	out->n_tiers = 1;
	strcpy(out->tiers[0].backend, vm->settings.n_tiers ? vm->settings.tiers[0] : "compressed");
	out->tiers[0].stored_bytes = vm->evicted / 4;
	out->tiers[0].units_bytes = vm->evicted;
	out->limit_bytes = vm->settings.limit_bytes;
	out->floor_bytes = vm->settings.floor_bytes;
	out->weight = vm->settings.weight;
	strcpy(out->granularity, *vm->settings.granularity ? vm->settings.granularity : "4K");
	strcpy(out->memory_kind, "shmem");
	strcpy(out->reclaim_policy, vm->policy[0]);
	strcpy(out->prefetch_policy, vm->policy[1]);
	out->evictions = vm->evicted / 4096;
	out->scan_cpu_ns = 1500000000;
	for (uint64_t v = 2000; v < 200000; v += 1000)
		hist_record(&out->fault_latency, v);
	pthread_mutex_unlock(&eng->lock);
	return 0;
}

unsigned int engine_vm_names(struct engine *eng, char (*names)[VM_NAME_MAX], unsigned int max)
{
	unsigned int n;

	pthread_mutex_lock(&eng->lock);
	n = eng->n_vms;
	for (unsigned int i = 0; i < n && i < max; i++)
		memcpy(names[i], eng->vms[i].name, VM_NAME_MAX);
	pthread_mutex_unlock(&eng->lock);
	return n;
}

int engine_vm_set(struct engine *eng, const char *name, const struct vm_settings *s,
		  struct error *e)
{
	struct fake_vm *vm;
	int r = 0;

	pthread_mutex_lock(&eng->lock);
	vm = find_vm(eng, name);
	if (!vm)
		r = no_vm(name, e);
	for (unsigned int i = 0; !r && (s->set & VM_SET_TIERS) && i < s->n_tiers; i++)
		if (!find(eng->backends, eng->n_backends, s->tiers[i]))
			r = error_set(e, ENOENT, ERROR_NOT_FOUND, "there is no backend '%s'",
				      s->tiers[i]);
	if (!r && (s->set & VM_SET_LIMIT))
		vm->settings.limit_bytes = s->limit_bytes;
	if (!r && (s->set & VM_SET_FLOOR))
		vm->settings.floor_bytes = s->floor_bytes;
	if (!r && (s->set & VM_SET_WEIGHT))
		vm->settings.weight = s->weight;
	if (!r && (s->set & VM_SET_GRANULARITY))
		strcpy(vm->settings.granularity, s->granularity);
	if (!r && (s->set & VM_SET_TIERS)) {
		vm->settings.n_tiers = s->n_tiers;
		memcpy(vm->settings.tiers, s->tiers, sizeof(s->tiers));
	}
	pthread_mutex_unlock(&eng->lock);
	return r;
}

/* Moves bytes between resident and evicted, a MiB at a time, until done or cancelled. */
static int move(struct engine *eng, const char *name, uint64_t bytes, bool out, unsigned int us,
		struct progress *p, uint64_t *moved, struct error *e)
{
	atomic_store(&p->total, bytes);
	for (*moved = 0; *moved < bytes; *moved += MIB) {
		struct fake_vm *vm;
		bool gone;

		if (atomic_load(&p->cancel))
			return error_set(e, ECANCELED, ERROR_CANCELLED, "cancelled");
		pthread_mutex_lock(&eng->lock);
		vm = find_vm(eng, name);
		gone = !vm || (out ? vm->evicted >= vm->ram : vm->evicted == 0);
		if (!gone)
			vm->evicted += out ? MIB : -MIB;
		pthread_mutex_unlock(&eng->lock);
		if (gone)
			break;
		atomic_fetch_add(&p->done, MIB);
		usleep(us);
	}
	return 0;
}

int engine_vm_reclaim(struct engine *eng, const char *name, uint64_t bytes, struct progress *p,
		      uint64_t *reclaimed, struct error *e)
{
	return move(eng, name, bytes, true, 1000, p, reclaimed, e);
}

int engine_vm_prefetch(struct engine *eng, const char *name, struct progress *p, uint64_t *fetched,
		       struct error *e)
{
	return move(eng, name, 256 * MIB, false, 100000, p, fetched, e);
}

int engine_vm_trace(struct engine *eng, const char *name, const struct trace_request *req,
		    struct progress *p, struct trace_result *out, struct error *e)
{
	uint64_t moved;

	memset(out, 0, sizeof(*out));
	return move(eng, name, req->seconds * MIB, false, 1000, p, &moved, e);
}

/* A quarter of the RAM each is hot, cold, evicted and never touched; all of the hot in one window.
 */
int engine_vm_watch(struct engine *eng, const char *name, const struct watch_request *req,
		    struct progress *p, struct watch_result *out, struct error *e)
{
	static const uint64_t block = 64 * MIB;
	uint64_t moved, column = req->columns ? 4 * block / req->columns : 0;
	int r;

	memset(out, 0, sizeof(*out));
	r = move(eng, name, req->windows * MIB, false, 1000, p, &moved, e);
	if (r)
		return r;
	*out = (struct watch_result){
		.ram_bytes = 4 * block,
		.windows = req->windows,
		.columns = req->columns,
		.n_blocks = 2,
		.blocks = calloc(2, sizeof(*out->blocks)),
		.cells = calloc((size_t)req->windows * req->columns + 1, sizeof(*out->cells)),
		.since_ms = calloc(req->windows, sizeof(uint64_t)),
		.accessed = calloc(req->windows, sizeof(uint64_t))};
	snprintf(out->blocks[0].name, sizeof(out->blocks[0].name), "low<&\x1b");
	snprintf(out->blocks[1].name, sizeof(out->blocks[1].name), "high");
	out->blocks[0].bytes = block;
	out->blocks[1].bytes = 3 * block;
	for (unsigned int i = 0; i < req->windows; i++) {
		struct watch_cell *row = &out->cells[i * req->columns];

		for (unsigned int c = 0; c < req->columns; c++) {
			unsigned int quarter = 4 * c / req->columns;

			row[c].hot = quarter == 0 ? column : 0;
			row[c].cold = quarter == 1 ? column : 0;
			row[c].evicted = quarter == 2 ? column : 0;
		}
		out->since_ms[i] = (i + 1) * req->window_ms;
		out->accessed[i] = i + 1 == req->windows ? 2 * block : block;
	}
	return 0;
}

void engine_watch_free(struct watch_result *out)
{
	free(out->blocks);
	free(out->cells);
	free(out->since_ms);
	free(out->accessed);
}

int engine_vm_detach(struct engine *eng, const char *name, struct progress *p, struct error *e)
{
	struct engine_event ev = {.type = EVENT_VM_DETACHED};
	struct fake_vm *vm;
	uint64_t moved;
	int r = move(eng, name, 256 * MIB, false, 1000, p, &moved, e);

	if (r)
		return r;
	pthread_mutex_lock(&eng->lock);
	vm = find_vm(eng, name);
	if (vm)
		*vm = eng->vms[--eng->n_vms];
	pthread_mutex_unlock(&eng->lock);
	if (!vm)
		return no_vm(name, e);
	snprintf(ev.vm, sizeof(ev.vm), "%s", name);
	strcpy(ev.detail, "asked for");
	fake_engine_emit(eng, &ev);
	return 0;
}

static void emit_each(struct engine *eng)
{
	for (int t = EVENT_VM_LIMIT_EXCEEDED; t <= EVENT_VM_SUSPENDED; t++) {
		struct engine_event ev = {.type = (enum engine_event_type)t, .value = 4096};

		strcpy(ev.vm, "some-vm");
		strcpy(ev.subject, "some-plugin");
		strcpy(ev.detail, "a \"detail\"");
		fake_engine_emit(eng, &ev);
	}
}

int engine_backend_add(struct engine *eng, const char *name, const char *driver,
		       const struct ebb_option *opts, uint32_t n_opts, struct error *e)
{
	struct fake_plugin *b;
	size_t n = 0;

	if (strcmp(driver, "fake-attach") == 0)
		return fake_engine_attach(eng, name)
			       ? error_set(e, EEXIST, ERROR_EXISTS, "VM '%s' is there", name)
			       : 0;
	if (strcmp(driver, "fake-event") == 0) {
		emit_each(eng);
		return 0;
	}
	if (strcmp(driver, "fake-fail") == 0)
		return error_set(e, ENOENT, ERROR_NOT_FOUND, "there is no driver '%s'", driver);
	if (find(eng->backends, eng->n_backends, name))
		return error_set(e, EEXIST, ERROR_EXISTS, "there is a backend '%s'", name);
	if (eng->n_backends == FAKE_PLUGINS)
		return error_set(e, ENOSPC, ERROR_LIMIT, "too many backends");
	b = &eng->backends[eng->n_backends++];
	memset(b, 0, sizeof(*b));
	snprintf(b->name, sizeof(b->name), "%s", name);
	snprintf(b->driver, sizeof(b->driver), "%s", driver);
	for (uint32_t i = 0; i < n_opts && n < sizeof(b->options); i++)
		n += (size_t)snprintf(b->options + n, sizeof(b->options) - n, "%s=%s;",
				      opts[i].name, opts[i].value);
	return 0;
}

int engine_backend_remove(struct engine *eng, const char *name, struct progress *p, struct error *e)
{
	struct fake_plugin *b = find(eng->backends, eng->n_backends, name);

	(void)p;
	if (!b)
		return error_set(e, ENOENT, ERROR_NOT_FOUND, "there is no backend '%.60s'", name);
	*b = eng->backends[--eng->n_backends];
	return 0;
}

/* The options show up as the description, so that tests can see what arrived. */
unsigned int engine_backend_info(struct engine *eng, struct backend_info *out, unsigned int max)
{
	for (unsigned int i = 0; i < eng->n_backends && i < max; i++) {
		memset(&out[i], 0, sizeof(out[i]));
		strcpy(out[i].name, eng->backends[i].name);
		strcpy(out[i].driver, eng->backends[i].driver);
		strcpy(out[i].description, eng->backends[i].options);
		strcpy(out[i].state, "ready");
		out[i].caps = EBB_BACKEND_SYNC | EBB_BACKEND_IN_RAM;
		out[i].usage.objects = 7;
		out[i].n_stats = 2;
		out[i].stats[0] = (struct ebb_stat){
			.name = "compactions", .help = "Runs", .value = 3, .counter = 1};
		out[i].stats[1] = (struct ebb_stat){.name = "slabs", .help = "Slabs", .value = 4};
	}
	return eng->n_backends;
}

int engine_policy_load(struct engine *eng, const char *name, const char *file, struct error *e)
{
	struct fake_plugin *p;

	if (find(eng->policies, eng->n_policies, name))
		return error_set(e, EEXIST, ERROR_EXISTS, "there is a policy '%s'", name);
	if (eng->n_policies == FAKE_PLUGINS)
		return error_set(e, ENOSPC, ERROR_LIMIT, "too many policies");
	p = &eng->policies[eng->n_policies++];
	memset(p, 0, sizeof(*p));
	snprintf(p->name, sizeof(p->name), "%s", name);
	snprintf(p->file, sizeof(p->file), "%s", file ? file : "");
	return 0;
}

void engine_policy_forgive(struct engine *eng, const char *name)
{
}

int engine_policy_unload(struct engine *eng, const char *name, struct error *e)
{
	struct fake_plugin *p = find(eng->policies, eng->n_policies, name);

	if (strcmp(name, "fake-event") == 0)
		emit_each(eng);
	if (!p)
		return error_set(e, ENOENT, ERROR_NOT_FOUND, "there is no policy '%.60s'", name);
	*p = eng->policies[--eng->n_policies];
	return 0;
}

unsigned int engine_policy_info(struct engine *eng, struct policy_info *out, unsigned int max)
{
	for (unsigned int i = 0; i < eng->n_policies && i < max; i++) {
		memset(&out[i], 0, sizeof(out[i]));
		strcpy(out[i].name, eng->policies[i].name);
		strcpy(out[i].file, eng->policies[i].file);
		out[i].roles = EBB_POLICY_RECLAIM | EBB_POLICY_PREFETCH;
	}
	return eng->n_policies;
}

int engine_policy_set(struct engine *eng, const char *vm_name, uint32_t role, const char *policy,
		      const struct ebb_policy_option *opts, uint32_t n_opts, struct error *e)
{
	struct fake_vm *vm = find_vm(eng, vm_name);

	if (!vm)
		return no_vm(vm_name, e);
	snprintf(vm->policy[role == EBB_POLICY_PREFETCH], PLUGIN_NAME_MAX, "%s", policy);
	if (n_opts)
		snprintf(vm->option, sizeof(vm->option), "%s=%s", opts[0].name, opts[0].value);
	return 0;
}

/* One stat: its help is the first option of the last policy-set. */
int engine_policy_stats(struct engine *eng, const char *vm_name, uint32_t role,
			struct ebb_policy_stat *out, uint32_t n)
{
	struct fake_vm *vm = find_vm(eng, vm_name);

	(void)role;
	if (!vm || !n)
		return -ENOENT;
	out[0] = (struct ebb_policy_stat){.name = "option", .help = vm->option, .value = 1};
	return 1;
}

void engine_host_info(struct engine *eng, struct host_info *out)
{
	memset(out, 0, sizeof(*out));
	out->vms = eng->n_vms;
	out->ram_bytes = eng->n_vms * 256 * MIB;
	out->host_total_bytes = 8192 * MIB;
	out->host_available_bytes = 1024 * MIB;
	strcpy(out->probe_reason, "this engine is not real");
}

bool shelf_parse_name(const char *name, char *id, char *piece)
{
	(void)name;
	(void)id;
	(void)piece;
	return false;
}

int engine_restore(struct engine *eng, const struct attach_shelf *from, struct error *e)
{
	(void)eng;
	(void)from;
	return error_set(e, ENOTSUP, ERROR_UNSUPPORTED, "no memory here");
}
