/* SPDX-License-Identifier: BSD-3-Clause */
/* policy_services.c: the host table that a policy sees: the engine's, checked and timed. */
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "plugin/policy_private.h"

/*
 * A policy is trusted not to scribble over memory (it runs in our process) but not to count
 * right: whatever it asks is cut to the VM's units before the engine sees it. What the engine
 * takes to answer is not charged to the hook that asked.
 */

_Thread_local bool policy_on_fault_path;

#define CLEAR_BATCH 64

static uint64_t service_begin(void)
{
	return policy_on_fault_path ? 0 : clock_ns();
}

static void service_end(struct policy_instance *i, uint64_t begin_ns)
{
	/* Fault threads share nothing with the serial hooks, so their time is not taken out. */
	if (begin_ns)
		i->service_ns += clock_ns() - begin_ns;
}

/* Cuts [first, first + *count) to the VM and clears the bitmap. False: nothing is left. */
static bool cut_query(struct policy_instance *i, uint64_t first, uint64_t *count, uint64_t *bitmap)
{
	uint64_t units = atomic_load_explicit(&i->units, memory_order_relaxed);

	/* No honest caller has a bitmap of more units than there are. */
	if (*count > units)
		*count = units;
	if (!bitmap || !*count)
		return false;
	memset(bitmap, 0, (*count + 63) / 64 * sizeof(*bitmap));
	if (first >= units)
		return false;
	if (*count > units - first)
		*count = units - first;
	return true;
}

static void service_resident(void *ctx, uint64_t first, uint64_t count, uint64_t *bitmap)
{
	struct policy_instance *i = ctx;
	uint64_t begin = service_begin();

	if (cut_query(i, first, &count, bitmap))
		i->host->resident(i->host->ctx, first, count, bitmap);
	service_end(i, begin);
}

static void service_evicted(void *ctx, uint64_t first, uint64_t count, uint64_t *bitmap)
{
	struct policy_instance *i = ctx;
	uint64_t begin = service_begin();

	if (cut_query(i, first, &count, bitmap))
		i->host->evicted(i->host->ctx, first, count, bitmap);
	service_end(i, begin);
}

static int service_accessed(void *ctx, uint64_t first, uint64_t count, uint64_t *bitmap)
{
	struct policy_instance *i = ctx;
	uint64_t begin;
	int r = 0;

	if (policy_on_fault_path)
		return -EDEADLK;
	begin = service_begin();
	if (cut_query(i, first, &count, bitmap))
		r = i->host->accessed(i->host->ctx, first, count, bitmap);
	service_end(i, begin);
	return r;
}

static int service_clear_accessed(void *ctx, const struct ebb_range *ranges, uint32_t n)
{
	struct policy_instance *i = ctx;
	uint64_t units = atomic_load_explicit(&i->units, memory_order_relaxed);
	struct ebb_range cut[CLEAR_BATCH];
	uint32_t kept = 0;
	uint64_t begin;
	int r = 0;

	if (policy_on_fault_path)
		return -EDEADLK;
	begin = service_begin();
	for (uint32_t k = 0; k < n && !r; k++) {
		if (ranges[k].first < units && ranges[k].count) {
			cut[kept] = ranges[k];
			if (cut[kept].count > units - cut[kept].first)
				cut[kept].count = units - cut[kept].first;
			kept++;
		}
		if (kept == CLEAR_BATCH) {
			r = i->host->clear_accessed(i->host->ctx, cut, kept);
			kept = 0;
		}
	}
	if (kept && !r)
		r = i->host->clear_accessed(i->host->ctx, cut, kept);
	service_end(i, begin);
	return r;
}

static uint32_t service_blocks(void *ctx, struct ebb_block *out, uint32_t n)
{
	struct policy_instance *i = ctx;
	struct ebb_block nowhere; /* the engine need not expect NULL */

	if (policy_on_fault_path)
		return 0;
	return i->host->blocks(i->host->ctx, out ? out : &nowhere, out ? n : 0);
}

static uint32_t service_prefetch(void *ctx, const struct ebb_range *ranges, uint32_t n)
{
	struct policy_instance *i = ctx;
	uint64_t units = atomic_load_explicit(&i->units, memory_order_relaxed);
	uint64_t begin;
	uint32_t taken = 0;

	if (policy_on_fault_path || !i->host->prefetch)
		return 0;
	begin = service_begin();
	for (; taken < n; taken++) {
		struct ebb_range r = ranges[taken];

		/* What cannot be is taken, and nothing comes of it. */
		if (r.first >= units || !r.count)
			continue;
		if (r.count > units - r.first)
			r.count = units - r.first;
		if (!i->host->prefetch(i->host->ctx, &r, 1))
			break;
	}
	service_end(i, begin);
	return taken;
}

static int service_pressure(void *ctx, struct ebb_pressure *out)
{
	struct policy_instance *i = ctx;
	struct ebb_pressure p = {.size = sizeof(p)};
	uint64_t begin, size = out->size;
	int r;

	if (policy_on_fault_path)
		return -EDEADLK;
	if (!i->host->pressure)
		return -ENOTSUP;
	begin = service_begin();
	r = i->host->pressure(i->host->ctx, &p);
	service_end(i, begin);
	if (r)
		return r;
	memcpy(out, &p, size < sizeof(p) ? size : sizeof(p));
	out->size = size;
	return 0;
}

static uint64_t service_now_ns(void *ctx)
{
	struct policy_instance *i = ctx;

	return i->host->now_ns(i->host->ctx);
}

static void service_log(void *ctx, int level, const char *fmt, ...)
	__attribute__((format(printf, 3, 4)));

static void service_log(void *ctx, int level, const char *fmt, ...)
{
	struct policy_instance *i = ctx;
	char line[256];
	va_list ap;

	if (policy_on_fault_path)
		return;
	va_start(ap, fmt);
	vsnprintf(line, sizeof(line), fmt, ap);
	va_end(ap);
	i->host->log(i->host->ctx,
		     level < 0	 ? 0
		     : level > 3 ? 3
				 : level,
		     "policy %s: %s", i->policy->name, line);
}

void policy_services_init(struct policy_instance *i)
{
	i->services = (struct ebb_policy_host){
		.size = sizeof(i->services),
		.abi_major = EBB_POLICY_ABI_MAJOR,
		.abi_minor = EBB_POLICY_ABI_MINOR,
		.ctx = i,
		.resident = service_resident,
		.evicted = service_evicted,
		.clear_accessed = service_clear_accessed,
		.accessed = service_accessed,
		.blocks = service_blocks,
		.now_ns = service_now_ns,
		.log = service_log,
		.prefetch = service_prefetch,
		.pressure = service_pressure,
	};
}
