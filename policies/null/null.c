/* SPDX-License-Identifier: BSD-3-Clause */
/* null.c: the policy that advises nothing. */
#include "ebb/policy.h"

/*
 * As a reclaimer it names no victim, as a prefetcher nothing to fetch. It is what a VM has while
 * its own policy is put aside, and the baseline that others are measured against. A VM at its
 * limit is then kept there by the engine's own last resort, which knows nothing of hot and cold.
 */

static int null_attach(const struct ebb_policy_host *host, const struct ebb_policy_vm *vm,
		       uint32_t role, void **instance, char *err, uint64_t err_len)
{
	*instance = NULL; /* there is no state */
	return 0;
}

static void null_detach(void *instance)
{
}

static uint32_t null_on_fault(void *instance, const struct ebb_fault *fault, struct ebb_range *out,
			      uint32_t max)
{
	return 0;
}

static uint32_t null_pick_victims(void *instance, uint64_t want, int urgent, struct ebb_range *out,
				  uint32_t max)
{
	return 0;
}

static uint32_t null_wants(void *instance)
{
	return 0;
}

__attribute__((visibility("default"))) const struct ebb_policy *ebb_policy_entry(void)
{
	static const struct ebb_policy policy = {
		.size = sizeof(policy),
		.abi_major = EBB_POLICY_ABI_MAJOR,
		.abi_minor = EBB_POLICY_ABI_MINOR,
		.roles = EBB_POLICY_RECLAIM | EBB_POLICY_PREFETCH,
		.name = "null",
		.description = "Advises nothing: takes nothing and fetches nothing ahead",
		.attach = null_attach,
		.detach = null_detach,
		.on_fault = null_on_fault,
		.pick_victims = null_pick_victims,
		.wants = null_wants,
	};

	return &policy;
}
