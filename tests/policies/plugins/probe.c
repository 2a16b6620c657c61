/* SPDX-License-Identifier: BSD-3-Clause */
/* probe.c: a policy for tests: keeps a record of what the host called, told by its stats. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ebb/policy.h"

/* Of the file, not of an instance: instances that were ended must be counted too. */
static uint64_t live_instances, loads;

struct probe {
	const struct ebb_policy_host *host;
	uint64_t units, level, faults, windows, outcomes, last_outcome, resizes;
	int windows_wanted, resize_fails;
	char state[8];
};

static int probe_load(char *err, uint64_t err_len)
{
	loads++;
	return 0;
}

static int probe_attach(const struct ebb_policy_host *host, const struct ebb_policy_vm *vm,
			uint32_t role, void **instance, char *err, uint64_t err_len)
{
	struct probe *p = calloc(1, sizeof(*p));

	if (!p)
		return -ENOMEM;
	p->host = host;
	p->units = vm->units;
	live_instances++;
	*instance = p;
	return 0;
}

static void probe_detach(void *instance)
{
	live_instances--;
	free(instance);
}

static int probe_config(void *instance, const struct ebb_policy_option *opt, char *err,
			uint64_t err_len)
{
	struct probe *p = instance;

	if (strcmp(opt->name, "level") == 0) {
		if (opt->value[0] < '0' || opt->value[0] > '9') {
			/* Not terminated: the host must see to it. */
			memset(err, 'x', err_len);
			return -EINVAL;
		}
		p->level = strtoull(opt->value, NULL, 10);
		return 0;
	}
	if (strcmp(opt->name, "windows") == 0)
		p->windows_wanted = atoi(opt->value);
	else if (strcmp(opt->name, "resize-fails") == 0)
		p->resize_fails = atoi(opt->value);
	else
		return -ENOENT;
	return 0;
}

static int probe_on_resize(void *instance, uint64_t units)
{
	struct probe *p = instance;

	p->resizes++;
	p->units = units;
	return p->resize_fails ? -ENOMEM : 0;
}

static uint32_t probe_on_fault(void *instance, const struct ebb_fault *fault, struct ebb_range *out,
			       uint32_t max)
{
	struct probe *p = instance;

	__atomic_fetch_add(&p->faults, 1, __ATOMIC_RELAXED);
	for (uint32_t k = 0; k < max; k++)
		out[k] = (struct ebb_range){fault->unit + 1 + k, 1};
	return max;
}

static void probe_on_access(void *instance, const struct ebb_access_window *window)
{
	struct probe *p = instance;

	p->windows++;
}

/* Names all units from `level` on, as one range. */
static uint32_t probe_pick_victims(void *instance, uint64_t want, int urgent, struct ebb_range *out,
				   uint32_t max)
{
	struct probe *p = instance;

	out[0] = (struct ebb_range){p->level, UINT64_MAX};
	return 1;
}

static void probe_on_outcome(void *instance, uint32_t outcome, const uint64_t *units, uint32_t n)
{
	struct probe *p = instance;

	p->outcomes += n;
	p->last_outcome = outcome;
}

static uint64_t probe_tick(void *instance, uint64_t now_ns)
{
	return UINT64_MAX;
}

static uint32_t probe_stats(void *instance, struct ebb_policy_stat *out, uint32_t n)
{
	const struct probe *p = instance;
	const struct ebb_policy_stat stats[] = {
		{"level", "h", p->level, 0, 0},
		{"live", "h", live_instances, 0, 0},
		{"loads", "h", loads, 1, 0},
		{"faults", "h", p->faults, 1, 0},
		{"windows", "h", p->windows, 1, 0},
		{"outcomes", "h", p->outcomes, 1, 0},
		{"last-outcome", "h", p->last_outcome, 0, 0},
		{"resizes", "h", p->resizes, 1, 0},
		{EBB_POLICY_STAT_STATE_BYTES, "h", 1000, 0, 0},
	};
	const uint32_t have = sizeof(stats) / sizeof(stats[0]);

	memcpy(out, stats, (n < have ? n : have) * sizeof(stats[0]));
	return have;
}

static int64_t probe_save(void *instance, void *buf, uint64_t max)
{
	struct probe *p = instance;

	if (max < 8)
		return -ENOSPC;
	memcpy(buf, &p->level, 8);
	return 8;
}

static int probe_restore(void *instance, const void *buf, uint64_t bytes)
{
	struct probe *p = instance;

	if (bytes != 8)
		return -EINVAL;
	memcpy(&p->level, buf, 8);
	return 0;
}

static uint32_t probe_wants(void *instance)
{
	const struct probe *p = instance;

	return EBB_POLICY_WANT_FAULTS | (p->windows_wanted ? EBB_POLICY_WANT_WINDOWS : 0);
}

static const char *const probe_options[] = {
	"level: where the victims begin",
	"windows: 1 to want them",
	"resize-fails: 1 to fail",
	NULL,
};

__attribute__((visibility("default"))) const struct ebb_policy *ebb_policy_entry(void)
{
	static const struct ebb_policy policy = {
		.size = sizeof(policy),
		.abi_major = EBB_POLICY_ABI_MAJOR,
		.abi_minor = EBB_POLICY_ABI_MINOR,
		.roles = EBB_POLICY_RECLAIM | EBB_POLICY_PREFETCH,
		.name = "probe",
		.description = "For tests: keeps a record",
		.option_help = probe_options,
		.load = probe_load,
		.attach = probe_attach,
		.detach = probe_detach,
		.config = probe_config,
		.on_resize = probe_on_resize,
		.on_fault = probe_on_fault,
		.on_access = probe_on_access,
		.pick_victims = probe_pick_victims,
		.on_outcome = probe_on_outcome,
		.tick = probe_tick,
		.stats = probe_stats,
		.save = probe_save,
		.restore = probe_restore,
		.state_version = 3,
		.wants = probe_wants,
	};

	return &policy;
}
