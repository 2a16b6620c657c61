/* SPDX-License-Identifier: BSD-3-Clause */
/* vm_json.c: a VM as query-vm shows it. */
#include "control/vm_json.h"

#include <stddef.h>

struct size_member {
	const char *name;
	size_t offset;
};

static const struct size_member sizes[] = {
	{"ram-bytes", offsetof(struct vm_info, ram_bytes)},
	{"resident-bytes", offsetof(struct vm_info, resident_bytes)},
	{"evicted-bytes", offsetof(struct vm_info, evicted_bytes)},
	{"zero-bytes", offsetof(struct vm_info, zero_bytes)},
	{"pinned-bytes", offsetof(struct vm_info, pinned_bytes)},
	{"lost-bytes", offsetof(struct vm_info, lost_bytes)},
	{"clean-copy-bytes", offsetof(struct vm_info, clean_copy_bytes)},
	{"stored-bytes", offsetof(struct vm_info, stored_bytes)},
	{"limit-bytes", offsetof(struct vm_info, limit_bytes)},
	{"floor-bytes", offsetof(struct vm_info, floor_bytes)},
	{"overhead-bytes", offsetof(struct vm_info, overhead_bytes)},
	{"table-bytes", offsetof(struct vm_info, table_bytes)},
	{"store-overhead-bytes", offsetof(struct vm_info, store_overhead_bytes)},
	{"policy-bytes", offsetof(struct vm_info, policy_bytes)},
#define COUNTER(c_name, json, help) {json, offsetof(struct vm_info, c_name)},
#include "engine/counters.def"
#undef COUNTER
};

static json_t *tiers_to_json(const struct vm_info *vm)
{
	json_t *list = json_array();

	for (unsigned int i = 0; i < vm->n_tiers && i < ENGINE_BACKENDS_MAX; i++) {
		const struct vm_tier_info *t = &vm->tiers[i];

		json_array_append_new(
			list,
			json_pack("{s:s, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I}", "backend",
				  t->backend, "units-bytes", (json_int_t)t->units_bytes,
				  "stored-bytes", (json_int_t)t->stored_bytes, "overhead-bytes",
				  (json_int_t)t->overhead_bytes, "objects", (json_int_t)t->objects,
				  "content-bytes", (json_int_t)t->content_bytes, "high-bytes",
				  (json_int_t)t->high_bytes, "low-bytes", (json_int_t)t->low_bytes,
				  "moved-bytes", (json_int_t)t->moved_bytes));
	}
	return list;
}

static double us(uint64_t ns)
{
	return (double)ns / 1000.0;
}

static json_t *latency_to_json(const struct hist *h)
{
	double mean = h->count ? us(h->sum) / (double)h->count : 0;

	return json_pack("{s:I, s:f, s:f, s:f, s:f, s:f}", "count", (json_int_t)h->count, "mean",
			 mean, "p50", us(hist_quantile(h, 0.5)), "p99", us(hist_quantile(h, 0.99)),
			 "p99.9", us(hist_quantile(h, 0.999)), "max", us(h->max));
}

json_t *vm_to_json(const struct vm_info *vm)
{
	json_t *o =
		json_pack("{s:s, s:s, s:i, s:i, s:i, s:i, s:s, s:s, s:s, s:s, s:s, s:s, s:s, s:s}",
			  "name", vm->name, "uuid", vm->uuid, "pid", (int)vm->pid, "regions",
			  (int)vm->regions, "attachments", (int)vm->attachments, "weight",
			  (int)vm->weight, "granularity", vm->granularity, "memory-kind",
			  vm->memory_kind, "reclaim-policy", vm->reclaim_policy, "prefetch-policy",
			  vm->prefetch_policy, "tracker", vm->tracker, "io-guard", vm->io_guard,
			  "suspended", vm->suspended, "policy-failure", vm->policy_failure);

	for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
		const uint64_t *v = (const void *)((const char *)vm + sizes[i].offset);

		json_object_set_new(o, sizes[i].name, json_integer((json_int_t)*v));
	}
	json_object_set_new(o, "tiers", tiers_to_json(vm));
	json_object_set_new(o, "fault-latency-us", latency_to_json(&vm->fault_latency));
	return o;
}
