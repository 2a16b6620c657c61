/* SPDX-License-Identifier: BSD-3-Clause */
/* query.c: what the engine tells of its VMs and the host, and the settings of VMs. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/internal.h"
#include "engine/vm_record.h"
#include "sys/procinfo.h"

static uint64_t bytes_of(const _Atomic int64_t *value)
{
	int64_t v = atomic_load(value);

	return v > 0 ? (uint64_t)v : 0;
}

static void fill_tiers(struct vm *vm, struct vm_info *out)
{
	for (unsigned int t = 1; t < PE_TIERS; t++) {
		struct backend *be = atomic_load(&vm->eng->slots[t].backend);
		struct backend_space *s = atomic_load(&vm->spaces[t]);
		struct vm_tier_info *ti = &out->tiers[out->n_tiers];
		struct ebb_usage u;

		if (!be || !s)
			continue;
		backend_usage(be, s, &u);
		snprintf(ti->backend, sizeof(ti->backend), "%s", vm->eng->slots[t].name);
		ti->stored_bytes = u.footprint_bytes;
		ti->overhead_bytes = u.overhead_bytes;
		ti->units_bytes = bytes_of(&vm->tier_units[t]);
		ti->objects = u.objects;
		ti->content_bytes = u.stored_bytes;
		ti->high_bytes = atomic_load(&vm->tier_high[t]);
		ti->low_bytes = atomic_load(&vm->tier_low[t]);
		ti->moved_bytes = atomic_load(&vm->moved_out[t]);
		out->stored_bytes += u.footprint_bytes;
		out->store_overhead_bytes += u.overhead_bytes;
		out->n_tiers++;
	}
}

static void fill_blocks(struct vm *vm, struct vm_info *out)
{
	bool small = false, huge = false, thp = false, both = false;

	for (unsigned int i = 0; i < atomic_load(&vm->n_blocks); i++) {
		struct block *b = atomic_load(&vm->blocks[i]);

		if (!b || atomic_load(&b->gone))
			continue;
		out->regions++;
		out->ram_bytes += b->bytes;
		out->pinned_bytes += block_pinned_bytes(b);
		out->table_bytes += page_table_footprint(&b->table);
		out->policy_bytes += atomic_load(&b->ages) ? b->units : 0;
		small |= b->kind == BLOCK_SHMEM;
		thp |= b->kind == BLOCK_THP || b->kind == BLOCK_MIXED;
		both |= b->kind == BLOCK_MIXED;
		huge |= b->kind == BLOCK_HUGETLB;
	}
	snprintf(out->memory_kind, sizeof(out->memory_kind), "%s",
		 small + thp + huge > 1 ? "mixed"
		 : huge			? "hugetlb"
		 : thp			? "shmem-thp"
					: "shmem");
	snprintf(out->granularity, sizeof(out->granularity), "%s",
		 both || (small && (thp || huge)) ? "mixed"
		 : small			  ? "4K"
						  : "2M");
}

/* Under policy_lock. */
static void fill_failure(const struct vm_policy *p, struct vm_info *out)
{
	const struct policy_instance *i = atomic_load(&p->instance);
	const char *why = p->aside[0] ? p->aside : i ? policy_failed(i) : NULL;

	if (why)
		snprintf(out->policy_failure, sizeof(out->policy_failure), "%s", why);
}

static void fill_policies(struct vm *vm, struct vm_info *out)
{
	struct policy_instance *i;

	pthread_mutex_lock(&vm->policy_lock);
	snprintf(out->reclaim_policy, sizeof(out->reclaim_policy), "%s", vm->reclaim.name);
	snprintf(out->prefetch_policy, sizeof(out->prefetch_policy), "%s", vm->prefetch.name);
	fill_failure(&vm->prefetch, out);
	fill_failure(&vm->reclaim, out);
	i = atomic_load(&vm->reclaim.instance);
	out->policy_bytes += i ? policy_state_bytes(i) : 0;
	i = atomic_load(&vm->prefetch.instance);
	out->policy_bytes += i ? policy_state_bytes(i) : 0;
	pthread_mutex_unlock(&vm->policy_lock);
	out->policy_bytes += vm->recent.size * sizeof(uint64_t) + sizeof(*vm);
}

static void fill_info(struct vm *vm, struct vm_info *out)
{
	struct engine *eng = vm->eng;

	memset(out, 0, sizeof(*out));
	snprintf(out->name, sizeof(out->name), "%s", vm->name);
	snprintf(out->uuid, sizeof(out->uuid), "%s", vm->uuid);
	pthread_rwlock_rdlock(&vm->structure);
	for (unsigned int i = 0; i < VM_ATTACH_MAX; i++) {
		struct attachment *att = atomic_load(&vm->attachments[i]);

		if (!att)
			continue;
		out->attachments++;
		if (!att->secondary)
			out->pid = att->pid;
	}
	fill_blocks(vm, out);
	pthread_rwlock_unlock(&vm->structure);
	pthread_mutex_lock(&vm->lock);
	fill_tiers(vm, out);
	pthread_mutex_unlock(&vm->lock);
	fill_policies(vm, out);
	out->resident_bytes = bytes_of(&vm->resident);
	out->evicted_bytes = bytes_of(&vm->evicted);
	out->zero_bytes = bytes_of(&vm->zero);
	out->lost_bytes = bytes_of(&vm->lost);
	out->clean_copy_bytes = bytes_of(&vm->copies);
	out->limit_bytes = atomic_load(&vm->limit_bytes);
	out->floor_bytes = atomic_load(&vm->floor_bytes);
	out->weight = atomic_load(&vm->weight);
	snprintf(out->tracker, sizeof(out->tracker), "%s",
		 vm_has_tracker(vm) ? "zap-scan" : "none");
	snprintf(out->io_guard, sizeof(out->io_guard), "%s",
		 atomic_load(&eng->probe)	? "probe"
		 : eng->config.allow_quarantine ? "quarantine"
						: "none");
	vm_suspended_text(atomic_load(&vm->suspended), out->suspended, sizeof(out->suspended));
	out->overhead_bytes = out->table_bytes + out->store_overhead_bytes + out->policy_bytes;
#define COUNTER(counter_name, json, help) \
	out->counter_name = atomic_load(&vm->counter[COUNTER_##counter_name]);
#include "engine/counters.def"
#undef COUNTER
	hist_merge(&out->fault_latency, &vm->fault_latency);
}

int engine_vm_info(struct engine *eng, const char *name, struct vm_info *out, struct error *e)
{
	struct vm *vm = engine_vm_get(eng, name);

	if (!vm)
		return error_set(e, ENOENT, ERROR_NOT_FOUND, "no VM %s", name);
	fill_info(vm, out);
	vm_put(vm);
	return 0;
}

unsigned int engine_vm_names(struct engine *eng, char (*names)[VM_NAME_MAX], unsigned int max)
{
	unsigned int n = 0;

	pthread_mutex_lock(&eng->lock);
	for (struct vm *vm = eng->vms; vm; vm = vm->next) {
		if (!vm_is_named(vm))
			continue;
		if (n < max)
			snprintf(names[n], VM_NAME_MAX, "%s", vm->name);
		n++;
	}
	pthread_mutex_unlock(&eng->lock);
	return n;
}

/* The slots of the named tiers. Under engine.lock. */
static int find_tiers(struct engine *eng, const struct vm_settings *s, unsigned int *slots,
		      struct error *e)
{
	for (unsigned int i = 0; i < s->n_tiers; i++) {
		slots[i] = backends_find(eng, s->tiers[i]);
		if (!slots[i])
			return error_set(e, ENOENT, ERROR_NOT_FOUND, "no backend %s", s->tiers[i]);
		if (atomic_load(&eng->slots[slots[i]].draining))
			return error_set(e, EBUSY, ERROR_BUSY, "backend %s is being removed",
					 s->tiers[i]);
		for (unsigned int k = 0; k < i; k++)
			if (slots[k] == slots[i])
				return error_set(e, EINVAL, ERROR_ARGUMENT,
						 "backend %s is named twice", s->tiers[i]);
	}
	return 0;
}

/* The low mark of the i-th tier. */
static uint64_t low_mark(const struct vm_settings *s, unsigned int i)
{
	return i < s->n_low && s->tier_low[i] ? s->tier_low[i] : demote_low(s->tier_high[i]);
}

static int check_settings(const struct vm *vm, const struct vm_settings *s, struct error *e)
{
	uint64_t limit = s->set & VM_SET_LIMIT ? s->limit_bytes : atomic_load(&vm->limit_bytes);
	uint64_t floor = s->set & VM_SET_FLOOR ? s->floor_bytes : atomic_load(&vm->floor_bytes);

	if ((s->set & VM_SET_LIMIT) && s->limit_bytes && s->limit_bytes < 2 * UNIT_MAX_BYTES)
		return error_set(e, EINVAL, ERROR_ARGUMENT,
				 "a limit must be at least %llu bytes (or 0 for none)",
				 (unsigned long long)(2 * UNIT_MAX_BYTES));
	if (limit && floor > limit)
		return error_set(e, EINVAL, ERROR_ARGUMENT, "the floor is above the limit");
	if ((s->set & VM_SET_WEIGHT) && (s->weight < 1 || s->weight > 10000))
		return error_set(e, EINVAL, ERROR_ARGUMENT, "a weight is 1 to 10000");
	if ((s->set & VM_SET_GRANULARITY) && strcmp(s->granularity, "auto") != 0 &&
	    strcmp(s->granularity, "4K") != 0 && strcmp(s->granularity, "2M") != 0)
		return error_set(e, EINVAL, ERROR_ARGUMENT, "a granularity is 4K, 2M or auto");
	if ((s->set & VM_SET_TIERS) && !s->n_tiers)
		return error_set(e, EINVAL, ERROR_ARGUMENT, "a VM needs at least one tier");
	if ((s->set & VM_SET_LOW) && (!(s->set & VM_SET_HIGH) || s->n_low > s->n_high))
		return error_set(e, EINVAL, ERROR_ARGUMENT,
				 "a low mark needs the high mark of its tier");
	for (unsigned int i = 0; i < s->n_high; i++)
		if (low_mark(s, i) && low_mark(s, i) >= s->tier_high[i])
			return error_set(e, EINVAL, ERROR_ARGUMENT,
					 "the low mark of tier %u is not below its high mark", i);
	return 0;
}

/* Under vm.lock. */
static int set_marks(struct vm *vm, const struct vm_settings *s, struct error *e)
{
	if (s->n_high > vm->n_tiers)
		return error_set(e, EINVAL, ERROR_ARGUMENT, "%u marks for %u tiers", s->n_high,
				 vm->n_tiers);
	for (unsigned int t = 1; t < PE_TIERS; t++)
		atomic_store(&vm->tier_high[t], 0);
	for (unsigned int i = 0; i < s->n_high; i++) {
		/* In this order: a low mark that goes with no high one is never looked at. */
		atomic_store(&vm->tier_low[vm->tiers[i]], low_mark(s, i));
		atomic_store(&vm->tier_high[vm->tiers[i]], s->tier_high[i]);
	}
	return 0;
}

static int set_tiers(struct vm *vm, const struct vm_settings *s, const unsigned int *slots,
		     struct error *e)
{
	int r = 0;

	/*
	 * A new space is in no other hands at first: nothing may be stored in it meanwhile, also
	 * not by an eviction that is under way.
	 */
	pthread_mutex_lock(&vm->lock);
	if (vm->keep) {
		/* A keeper that finds nothing to give meanwhile does not end the suspension. */
		vm->stores_to_come++;
		vm_suspend(vm, SUSPEND_KEEPING, true);
		pthread_mutex_unlock(&vm->lock);
		engine_barrier(vm->eng);
		pthread_mutex_lock(&vm->lock);
		vm->stores_to_come--;
	}
	for (unsigned int i = 0; i < s->n_tiers && !r; i++) {
		r = backends_space(vm, slots[i]);
		if (r)
			error_set(e, -r, ERROR_GENERIC, "backend %s has no space for the VM: %s",
				  s->tiers[i], error_text(r));
	}
	if (!r) {
		memcpy(vm->tiers, slots, s->n_tiers * sizeof(*slots));
		vm->n_tiers = s->n_tiers;
		vm_tiers_changed(vm);
		if (vm->keep)
			vm_record_write(vm);
	}
	pthread_mutex_unlock(&vm->lock);
	return r;
}

int engine_vm_set(struct engine *eng, const char *name, const struct vm_settings *s,
		  struct error *e)
{
	ENGINE_INSIDE(eng);
	struct vm *vm = engine_vm_get(eng, name);
	unsigned int slots[ENGINE_BACKENDS_MAX] = {0};
	int r;

	if (!vm)
		return error_set(e, ENOENT, ERROR_NOT_FOUND, "no VM %s", name);
	r = check_settings(vm, s, e);
	if (!r && (s->set & VM_SET_TIERS)) {
		pthread_mutex_lock(&eng->lock);
		r = find_tiers(eng, s, slots, e);
		pthread_mutex_unlock(&eng->lock);
		if (!r && s->n_high > s->n_tiers)
			r = error_set(e, EINVAL, ERROR_ARGUMENT, "%u marks for %u tiers", s->n_high,
				      s->n_tiers);
		if (!r)
			r = set_tiers(vm, s, slots, e);
	}
	if (!r && (s->set & (VM_SET_TIERS | VM_SET_HIGH))) {
		pthread_mutex_lock(&vm->lock);
		r = set_marks(vm, s, e);
		pthread_mutex_unlock(&vm->lock);
		demoter_kick(eng);
	}
	if (!r) {
		if (s->set & VM_SET_FLOOR)
			atomic_store(&vm->floor_bytes, s->floor_bytes);
		if (s->set & VM_SET_WEIGHT)
			atomic_store(&vm->weight, s->weight);
		if (s->set & VM_SET_LIMIT) {
			uint64_t old = atomic_load(&vm->limit_bytes);

			atomic_store(&vm->limit_set_ns, clock_ns());
			atomic_store(&vm->limit_bytes, s->limit_bytes);
			engine_kick(vm);
			if (old != s->limit_bytes)
				policies_limit(vm, old, s->limit_bytes);
		}
	}
	vm_put(vm);
	return r;
}

void engine_host_info(struct engine *eng, struct host_info *out)
{
	struct vm **vms = calloc(ENGINE_VMS_MAX, sizeof(*vms));
	struct vm_info *info = calloc(1, sizeof(*info));
	struct procinfo_host host = {0};

	memset(out, 0, sizeof(*out));
	if (vms && info) {
		out->vms = engine_vms_get(eng, vms, ENGINE_VMS_MAX);
		for (unsigned int i = 0; i < out->vms; i++) {
			fill_info(vms[i], info);
			out->ram_bytes += info->ram_bytes;
			out->resident_bytes += info->resident_bytes;
			out->stored_bytes += info->stored_bytes;
			out->overhead_bytes += info->overhead_bytes;
			vm_put(vms[i]);
		}
	}
	free(vms);
	free(info);
	procinfo_host(&host);
	out->budget_bytes = eng->config.host_budget_bytes;
	out->host_total_bytes = host.total_bytes;
	out->host_available_bytes = host.available_bytes;
	out->fault_threads = eng->n_fault_workers;
	out->evict_threads = eng->n_evictors;
	out->uffd_features = eng->features.uffd_features;
	probes_wait(eng);
	out->probe = atomic_load(&eng->probe);
	snprintf(out->probe_reason, sizeof(out->probe_reason), "%s", eng->probe_reason);
	out->zap_scan = eng->features.zap_scan;
	out->collapse_safe = eng->features.collapse_safe;
	out->poison = eng->features.uffd_poison;
	out->userfaultfd_device = access("/dev/userfaultfd", R_OK | W_OK) == 0;
}
