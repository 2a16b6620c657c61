/* SPDX-License-Identifier: BSD-3-Clause */
/* malicious.c: a policy for tests: every wrong answer and every wrong question there is. */
#include <errno.h>
#include <stdlib.h>

#include "ebb/policy.h"

/*
 * It does what a hostile or broken policy can do short of crashing the process: ranges that wrap
 * around, that lie outside, that are empty or the whole VM over and over, more ranges than there
 * is room for, absurd questions to the host, services that are forbidden on the fault path, stats
 * without names, state larger than its buffer.
 */

struct malice {
	const struct ebb_policy_host *host;
	uint64_t units, calls;
	uint64_t not_refused; /* forbidden calls on the fault path that went through */
};

static int malicious_attach(const struct ebb_policy_host *host, const struct ebb_policy_vm *vm,
			    uint32_t role, void **instance, char *err, uint64_t err_len)
{
	struct malice *x = calloc(1, sizeof(*x));

	if (!x)
		return -ENOMEM;
	x->host = host;
	x->units = vm->units;
	*instance = x;
	return 0;
}

static void malicious_detach(void *instance)
{
	free(instance);
}

static const struct ebb_range garbage[] = {
	{UINT64_MAX, 1}, {UINT64_MAX - 3, 8},	   {0, UINT64_MAX},
	{1, UINT64_MAX}, {UINT64_MAX, UINT64_MAX}, {0, 0},
	{5, 0},		 {UINT64_C(1) << 63, 4},
};
#define GARBAGE (sizeof(garbage) / sizeof(garbage[0]))

static uint32_t write_garbage(struct malice *x, struct ebb_range *out, uint32_t max)
{
	uint64_t call = __atomic_fetch_add(&x->calls, 1, __ATOMIC_RELAXED);

	for (uint32_t k = 0; k < max; k++)
		out[k] = garbage[(call + k) % GARBAGE];
	/* Around the end of the VM. */
	if (max > 2) {
		out[1] = (struct ebb_range){x->units - 1, 1000};
		out[2] = (struct ebb_range){x->units, 1};
	}
	switch (call % 3) {
	case 0:
		return max;
	case 1:
		return UINT32_MAX; /* though no more than max were written */
	default:
		return max / 2;
	}
}

static void ask_absurdities(struct malice *x)
{
	const struct ebb_policy_host *h = x->host;
	uint64_t word[64];

	h->resident(h->ctx, UINT64_MAX, 64, word);
	h->resident(h->ctx, x->units - 1, 64, word);
	h->evicted(h->ctx, UINT64_MAX - 1, 64, word);
	h->evicted(h->ctx, 0, 0, word);
	h->accessed(h->ctx, x->units + 7, 64, word);
	h->accessed(h->ctx, 0, 64, NULL);
	h->clear_accessed(h->ctx, garbage, GARBAGE);
	h->clear_accessed(h->ctx, NULL, 0);
	h->blocks(h->ctx, NULL, 1000);
	h->log(h->ctx, 99, "%s", "a line\nand a forged one");
	h->log(h->ctx, -99, "level below all");
}

static uint32_t malicious_on_fault(void *instance, const struct ebb_fault *fault,
				   struct ebb_range *out, uint32_t max)
{
	struct malice *x = instance;
	struct ebb_range r = {0, 1};
	uint64_t word = 0;

	if (!max) {
		ask_absurdities(x);
		return UINT32_MAX;
	}
	if (x->host->clear_accessed(x->host->ctx, &r, 1) != -EDEADLK ||
	    x->host->accessed(x->host->ctx, 0, 1, &word) != -EDEADLK)
		__atomic_fetch_add(&x->not_refused, 1, __ATOMIC_RELAXED);
	return write_garbage(x, out, max);
}

static uint32_t malicious_pick_victims(void *instance, uint64_t want, int urgent,
				       struct ebb_range *out, uint32_t max)
{
	struct malice *x = instance;

	ask_absurdities(x);
	return write_garbage(x, out, max);
}

static void malicious_on_access(void *instance, const struct ebb_access_window *window)
{
	ask_absurdities(instance);
}

static void malicious_on_outcome(void *instance, uint32_t outcome, const uint64_t *units,
				 uint32_t n)
{
	ask_absurdities(instance);
}

static uint64_t malicious_tick(void *instance, uint64_t now_ns)
{
	return UINT64_MAX;
}

static uint32_t malicious_stats(void *instance, struct ebb_policy_stat *out, uint32_t n)
{
	const struct malice *x = instance;

	for (uint32_t k = 0; k < n; k++)
		out[k] = (struct ebb_policy_stat){k % 2 ? NULL : "nameless", NULL, 1, 7, 7};
	if (n)
		out[0] = (struct ebb_policy_stat){"not-refused", NULL, x->not_refused, 1, 0};
	return UINT32_MAX;
}

static int64_t malicious_save(void *instance, void *buf, uint64_t max)
{
	return INT64_MAX;
}

static int malicious_restore(void *instance, const void *buf, uint64_t bytes)
{
	return 17;
}

__attribute__((visibility("default"))) const struct ebb_policy *ebb_policy_entry(void)
{
	static const struct ebb_policy policy = {
		.size = sizeof(policy),
		.abi_major = EBB_POLICY_ABI_MAJOR,
		.abi_minor = EBB_POLICY_ABI_MINOR,
		.roles = EBB_POLICY_RECLAIM | EBB_POLICY_PREFETCH,
		.name = "malicious",
		.description = "For tests: every wrong answer there is",
		.attach = malicious_attach,
		.detach = malicious_detach,
		.on_fault = malicious_on_fault,
		.on_access = malicious_on_access,
		.pick_victims = malicious_pick_victims,
		.on_outcome = malicious_on_outcome,
		.tick = malicious_tick,
		.stats = malicious_stats,
		.save = malicious_save,
		.restore = malicious_restore,
		.state_version = 1,
	};

	return &policy;
}
