/* SPDX-License-Identifier: BSD-3-Clause */
/* bad.c: policies for tests, each wrong in one way, chosen by a definition of the build. */
#include <errno.h>
#include <stdio.h>

#include "ebb/policy.h"

static int bad_load(char *err, uint64_t err_len)
{
	snprintf(err, err_len, "the moon is in the wrong quarter");
	return -EPERM;
}

static int bad_attach(const struct ebb_policy_host *host, const struct ebb_policy_vm *vm,
		      uint32_t role, void **instance, char *err, uint64_t err_len)
{
#ifdef BAD_ATTACH
	snprintf(err, err_len, "no more than zero VMs");
	return -EMFILE;
#else
	return 0;
#endif
}

static void bad_detach(void *instance)
{
}

static uint32_t bad_on_fault(void *instance, const struct ebb_fault *fault, struct ebb_range *out,
			     uint32_t max)
{
	return 0;
}

static uint32_t bad_pick_victims(void *instance, uint64_t want, int urgent, struct ebb_range *out,
				 uint32_t max)
{
	return 0;
}

static uint64_t bad_tick(void *instance, uint64_t now_ns)
{
	return 42;
}

static int64_t bad_save(void *instance, void *buf, uint64_t max)
{
	return 0;
}

static struct ebb_policy policy = {
	.size = sizeof(struct ebb_policy),
	.abi_major = EBB_POLICY_ABI_MAJOR,
	.abi_minor = EBB_POLICY_ABI_MINOR,
	.roles = EBB_POLICY_RECLAIM | EBB_POLICY_PREFETCH,
	.name = POLICY_NAME,
	.description = "For tests: wrong in one way",
	.attach = bad_attach,
	.detach = bad_detach,
	.on_fault = bad_on_fault,
	.pick_victims = bad_pick_victims,
	.tick = bad_tick,
};

__attribute__((visibility("default"))) const struct ebb_policy *ebb_policy_entry(void)
{
#if defined(BAD_ABI)
	policy.abi_major = EBB_POLICY_ABI_MAJOR + 1;
#elif defined(BAD_SIZE)
	policy.size = 4;
#elif defined(BAD_NULL)
	return NULL;
#elif defined(BAD_ROLE)
	policy.roles = 0;
#elif defined(BAD_ROLES)
	policy.roles = 0x100 | EBB_POLICY_RECLAIM;
#elif defined(BAD_PICK)
	policy.pick_victims = NULL;
#elif defined(BAD_FAULT)
	policy.on_fault = NULL;
#elif defined(BAD_DETACH)
	policy.detach = NULL;
#elif defined(BAD_LOAD)
	policy.load = bad_load;
#elif defined(BAD_RESTORE)
	policy.save = bad_save;
#elif defined(SHORT)
	/* An older plugin, that ends before tick: what is there behind it is not ours to read. */
	policy.size = offsetof(struct ebb_policy, tick);
#endif
	(void)bad_load;
	(void)bad_save;
	return &policy;
}
