/* SPDX-License-Identifier: BSD-3-Clause */
/* random.c: a policy for tests: advice at random, within the VM. */
#include <stdlib.h>

#include "ebb/policy.h"

/* Valid advice without any sense: what the engine must survive day and night. */

struct chance {
	const struct ebb_policy_host *host;
	uint64_t units;
	uint64_t serial, fault; /* generators; the second one is shared by fault threads */
};

static uint64_t next(uint64_t *x)
{
	uint64_t v = __atomic_load_n(x, __ATOMIC_RELAXED);

	v ^= v << 13;
	v ^= v >> 7;
	v ^= v << 17;
	__atomic_store_n(x, v, __ATOMIC_RELAXED);
	return v;
}

static int random_attach(const struct ebb_policy_host *host, const struct ebb_policy_vm *vm,
			 uint32_t role, void **instance, char *err, uint64_t err_len)
{
	struct chance *x = calloc(1, sizeof(*x));

	if (!x)
		return -1;
	x->host = host;
	x->units = vm->units;
	x->serial = vm->seed * 2 + 1;
	x->fault = vm->seed * 2 + 12345;
	*instance = x;
	return 0;
}

static void random_detach(void *instance)
{
	free(instance);
}

static int random_on_resize(void *instance, uint64_t units)
{
	struct chance *x = instance;

	__atomic_store_n(&x->units, units, __ATOMIC_RELAXED);
	return 0;
}

static uint32_t random_on_fault(void *instance, const struct ebb_fault *fault,
				struct ebb_range *out, uint32_t max)
{
	struct chance *x = instance;
	uint64_t units = __atomic_load_n(&x->units, __ATOMIC_RELAXED);

	if (!max || !units || next(&x->fault) % 4)
		return 0;
	out[0].first = next(&x->fault) % units;
	out[0].count = 1 + next(&x->fault) % 16;
	return 1;
}

static uint32_t random_pick_victims(void *instance, uint64_t want, int urgent,
				    struct ebb_range *out, uint32_t max)
{
	struct chance *x = instance;
	uint64_t named = 0;
	uint32_t n = 0;

	while (x->units && n < max && named < want) {
		uint64_t bitmap = 0, count = 1 + next(&x->serial) % 8;

		out[n].first = next(&x->serial) % x->units;
		out[n].count = count;
		/* Now and then look first, and forget that it was accessed. */
		if (next(&x->serial) % 4 == 0) {
			x->host->resident(x->host->ctx, out[n].first, count, &bitmap);
			x->host->clear_accessed(x->host->ctx, &out[n], 1);
			x->host->accessed(x->host->ctx, out[n].first, count, &bitmap);
		}
		named += count;
		n++;
	}
	return n;
}

static uint64_t random_tick(void *instance, uint64_t now_ns)
{
	struct chance *x = instance;

	return next(&x->serial) % 64;
}

__attribute__((visibility("default"))) const struct ebb_policy *ebb_policy_entry(void)
{
	static const struct ebb_policy policy = {
		.size = sizeof(policy),
		.abi_major = EBB_POLICY_ABI_MAJOR,
		.abi_minor = EBB_POLICY_ABI_MINOR,
		.roles = EBB_POLICY_RECLAIM | EBB_POLICY_PREFETCH,
		.name = "random",
		.description = "For tests: advice at random",
		.attach = random_attach,
		.detach = random_detach,
		.on_resize = random_on_resize,
		.on_fault = random_on_fault,
		.pick_victims = random_pick_victims,
		.tick = random_tick,
	};

	return &policy;
}
