/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * crash.c: a policy for tests: it crashes in the hook that its option "in" or EBB_CRASH_IN names,
 * in the way that its option "by" names, and as soon as there is the file that "when" names.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "ebb/policy.h"

static char chosen[32], way[8] = "trap", when[128];

static int *volatile nowhere;

static void crash(void)
{
	if (strcmp(way, "abort") == 0)
		abort();
	if (strcmp(way, "segv") == 0)
		*nowhere = 1;
	__builtin_trap();
}

static void maybe(const char *hook)
{
	const char *env = getenv("EBB_CRASH_IN");

	if (env && strcmp(env, hook) == 0)
		crash();
	if (strcmp(chosen, hook) == 0 && (!when[0] || access(when, F_OK) == 0))
		crash();
}

static int crash_load(char *err, uint64_t err_len)
{
	maybe("load");
	return 0;
}

static void crash_unload(void)
{
	maybe("unload");
}

static int crash_config(void *instance, const struct ebb_policy_option *opt, char *err,
			uint64_t err_len)
{
	if (strcmp(opt->name, "in") == 0)
		strncpy(chosen, opt->value, sizeof(chosen) - 1);
	else if (strcmp(opt->name, "by") == 0)
		strncpy(way, opt->value, sizeof(way) - 1);
	else if (strcmp(opt->name, "when") == 0)
		strncpy(when, opt->value, sizeof(when) - 1);
	else
		return -ENOENT;
	maybe("config");
	return 0;
}

static int crash_attach(const struct ebb_policy_host *host, const struct ebb_policy_vm *vm,
			uint32_t role, void **instance, char *err, uint64_t err_len)
{
	maybe("attach");
	*instance = chosen;
	return 0;
}

static void crash_detach(void *instance)
{
	maybe("detach");
}

static uint32_t crash_wants(void *instance)
{
	maybe("wants");
	return EBB_POLICY_WANT_FAULTS | EBB_POLICY_WANT_WINDOWS;
}

static int crash_on_resize(void *instance, uint64_t units)
{
	maybe("on_resize");
	return 0;
}

static uint32_t crash_on_fault(void *instance, const struct ebb_fault *f, struct ebb_range *out,
			       uint32_t max)
{
	maybe("on_fault");
	return 0;
}

static void crash_on_access(void *instance, const struct ebb_access_window *w)
{
	maybe("on_access");
}

static uint32_t crash_pick_victims(void *instance, uint64_t want, int urgent, struct ebb_range *out,
				   uint32_t max)
{
	maybe("pick_victims");
	return 0;
}

static void crash_on_outcome(void *instance, uint32_t outcome, const uint64_t *units, uint32_t n)
{
	maybe("on_outcome");
}

static void crash_on_limit(void *instance, const struct ebb_limit *limit)
{
	maybe("on_limit");
}

static uint64_t crash_tick(void *instance, uint64_t now_ns)
{
	maybe("tick");
	return 0;
}

static uint32_t crash_stats(void *instance, struct ebb_policy_stat *out, uint32_t n)
{
	maybe("stats");
	return 0;
}

static int64_t crash_save(void *instance, void *buf, uint64_t max)
{
	maybe("save");
	return 0;
}

static int crash_restore(void *instance, const void *buf, uint64_t bytes)
{
	maybe("restore");
	return 0;
}

static const char *const option_help[] = {"in: the hook to crash in",
					  "by: trap (default), segv or abort",
					  "when: a file: not before it is there", NULL};

__attribute__((visibility("default"))) const struct ebb_policy *ebb_policy_entry(void)
{
	static const struct ebb_policy policy = {
		.size = sizeof(policy),
		.abi_major = EBB_POLICY_ABI_MAJOR,
		.abi_minor = EBB_POLICY_ABI_MINOR,
		.name = POLICY_NAME,
		.description = "For tests: crashes",
		.roles = EBB_POLICY_RECLAIM | EBB_POLICY_PREFETCH,
		.option_help = option_help,
		.load = crash_load,
		.unload = crash_unload,
		.config = crash_config,
		.attach = crash_attach,
		.detach = crash_detach,
		.wants = crash_wants,
		.on_resize = crash_on_resize,
		.on_fault = crash_on_fault,
		.on_access = crash_on_access,
		.pick_victims = crash_pick_victims,
		.on_outcome = crash_on_outcome,
		.tick = crash_tick,
		.stats = crash_stats,
		.save = crash_save,
		.restore = crash_restore,
		.on_limit = crash_on_limit,
	};

	return &policy;
}
