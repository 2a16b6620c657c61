/* SPDX-License-Identifier: BSD-3-Clause */
/* slow.c: a policy for tests: hooks that take their time, alone or in a service of the host. */
#include <errno.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "ebb/policy.h"

struct sloth {
	const struct ebb_policy_host *host;
	uint64_t pick_us, fault_us, fault_busy_us;
	int yield;	/* on_fault gives the CPU to whoever wants it */
	int in_service; /* pick_victims lets the host be slow instead */
	uint64_t picks, ticks;
};

static void take(uint64_t us)
{
	struct timespec t = {.tv_sec = (time_t)(us / 1000000),
			     .tv_nsec = (long)(us % 1000000 * 1000)};

	if (us)
		nanosleep(&t, NULL);
}

static void compute(uint64_t us)
{
	struct timespec t;
	uint64_t begin, now;

	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
	begin = (uint64_t)t.tv_sec * 1000000 + (uint64_t)t.tv_nsec / 1000;
	do {
		clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
		now = (uint64_t)t.tv_sec * 1000000 + (uint64_t)t.tv_nsec / 1000;
	} while (now - begin < us);
}

static int slow_attach(const struct ebb_policy_host *host, const struct ebb_policy_vm *vm,
		       uint32_t role, void **instance, char *err, uint64_t err_len)
{
	struct sloth *x = calloc(1, sizeof(*x));

	if (!x)
		return -ENOMEM;
	x->host = host;
	*instance = x;
	return 0;
}

static void slow_detach(void *instance)
{
	free(instance);
}

static int slow_config(void *instance, const struct ebb_policy_option *opt, char *err,
		       uint64_t err_len)
{
	struct sloth *x = instance;

	if (strcmp(opt->name, "pick-us") == 0)
		x->pick_us = strtoull(opt->value, NULL, 10);
	else if (strcmp(opt->name, "fault-us") == 0)
		x->fault_us = strtoull(opt->value, NULL, 10);
	else if (strcmp(opt->name, "fault-busy-us") == 0)
		x->fault_busy_us = strtoull(opt->value, NULL, 10);
	else if (strcmp(opt->name, "yield") == 0)
		x->yield = atoi(opt->value);
	else if (strcmp(opt->name, "in-service") == 0)
		x->in_service = atoi(opt->value);
	else
		return -ENOENT;
	return 0;
}

static uint32_t slow_on_fault(void *instance, const struct ebb_fault *fault, struct ebb_range *out,
			      uint32_t max)
{
	struct sloth *x = instance;

	take(x->fault_us);
	if (x->fault_busy_us)
		compute(x->fault_busy_us);
	if (x->yield)
		sched_yield();
	if (!max)
		return 0;
	out[0] = (struct ebb_range){0, 1};
	return 1;
}

static uint32_t slow_pick_victims(void *instance, uint64_t want, int urgent, struct ebb_range *out,
				  uint32_t max)
{
	struct sloth *x = instance;
	uint64_t word;

	if (x->in_service)
		x->host->resident(x->host->ctx, 0, 1, &word);
	else
		take(x->pick_us);
	x->picks++;
	out[0] = (struct ebb_range){0, 1};
	return 1;
}

static uint64_t slow_tick(void *instance, uint64_t now_ns)
{
	struct sloth *x = instance;

	x->ticks++;
	return 1;
}

__attribute__((visibility("default"))) const struct ebb_policy *ebb_policy_entry(void)
{
	static const struct ebb_policy policy = {
		.size = sizeof(policy),
		.abi_major = EBB_POLICY_ABI_MAJOR,
		.abi_minor = EBB_POLICY_ABI_MINOR,
		.roles = EBB_POLICY_RECLAIM | EBB_POLICY_PREFETCH,
		.name = "slow",
		.description = "For tests: takes its time",
		.attach = slow_attach,
		.detach = slow_detach,
		.config = slow_config,
		.on_fault = slow_on_fault,
		.pick_victims = slow_pick_victims,
		.tick = slow_tick,
	};

	return &policy;
}
