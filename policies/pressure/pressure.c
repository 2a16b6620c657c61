/* SPDX-License-Identifier: BSD-3-Clause */
/* pressure.c: a reclaimer that takes until the VM begins to feel it, and gives back when it does.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/ages.h"
#include "common/options.h"
#include "ebb/policy.h"

/*
 * Theory of operation
 *
 * After TMO's Senpai (Weiner et al.: TMO: Transparent Memory Offloading in Datacenters, ASPLOS
 * 2022, section 3.3). Every `interval` the pressure since the last time is looked at: the time that
 * the VM's threads waited for stored content, or its control group's PSI if that is more, in
 * proportion to the time that passed. (PSI alone would not do: the kernel does not count a wait for
 * a userfaultfd as a stall for memory.) Below the target, resident memory x step x (1 - pressure /
 * target) is asked for, as in Senpai; above it, nothing is taken, the step is halved, and what was
 * evicted last is brought back, as much as the excess calls for. Each interval below the target
 * lets the step grow back.
 *
 * Victims are the oldest (ranks.c, ages.h); what was used within min-age rounds is never taken
 * unasked. At the limit, the limit decides.
 */

#define TARGET_DEFAULT	 1000 /* parts per million of the time: 0.1 % as in TMO */
#define STEP_DEFAULT	 500  /* parts per million of resident memory, a second */
#define INTERVAL_DEFAULT 6
#define MIN_AGE_DEFAULT	 2
#define EVICTED_RING	 4096u
#define BACK_MAX	 1024u
#define STATE_VERSION	 1

struct pressure {
	struct ranks ranks; /* first: it has most of the hooks */
	uint64_t target_ppm, step_ppm, interval_s, min_age;
	uint64_t step_now_ppm; /* what outcomes allow */
	uint64_t looked_ns;
	struct ebb_pressure last;
	uint64_t felt_ppm; /* of the last interval */
	uint64_t limit_units, unit_bytes;
	uint32_t evicted[EVICTED_RING]; /* what went last */
	uint64_t evicted_n;		/* ever; what was given back is taken off again */
	uint64_t refaults, taken, given_back;
};

static uint16_t pass(void *policy, uint64_t unit, uint16_t state, bool resident, bool accessed,
		     bool *forget)
{
	struct pressure *p = policy;

	return ages_pass(&p->ranks, unit, state, accessed, forget);
}

static bool at_limit(const struct pressure *p)
{
	return p->limit_units && p->ranks.resident >= p->limit_units / 32 * 31;
}

static void on_round(void *policy)
{
	struct pressure *p = policy;

	p->ranks.cap = at_limit(p) ? RANKS - 1 : ages_rank_of((uint32_t)p->min_age);
	if (p->ranks.threshold > p->ranks.cap)
		p->ranks.threshold = p->ranks.cap;
}

static int pressure_attach(const struct ebb_policy_host *host, const struct ebb_policy_vm *vm,
			   uint32_t role, void **instance, char *err, uint64_t err_len)
{
	static const struct ranks_ops ops = {.pass = pass, .rank = ages_rank, .round = on_round};
	struct ebb_block block = {.unit_bytes = 4096};
	struct pressure *p;
	int r;

	if (!EBB_POLICY_HAS(host, pressure) || !EBB_POLICY_HAS(host, prefetch)) {
		snprintf(err, err_len, "this daemon does not tell the pressure of a VM");
		return -ENOTSUP;
	}
	p = calloc(1, sizeof(*p));
	r = p ? ranks_init(&p->ranks, host, vm, &ops, err, err_len) : -ENOMEM;
	if (r) {
		free(p);
		return r;
	}
	host->blocks(host->ctx, &block, 1);
	p->unit_bytes = block.unit_bytes ? block.unit_bytes : 4096;
	p->target_ppm = TARGET_DEFAULT;
	p->step_ppm = p->step_now_ppm = STEP_DEFAULT;
	p->interval_s = INTERVAL_DEFAULT;
	p->min_age = MIN_AGE_DEFAULT;
	*instance = p;
	return 0;
}

static int pressure_config(void *instance, const struct ebb_policy_option *opt, char *err,
			   uint64_t err_len)
{
	struct pressure *p = instance;
	int r;

	if (strcmp(opt->name, "target") == 0)
		return option_number(opt->value, 1, 1000000, &p->target_ppm, err, err_len);
	if (strcmp(opt->name, "step") == 0) {
		r = option_number(opt->value, 1, 1000000, &p->step_ppm, err, err_len);
		p->step_now_ppm = p->step_ppm;
		return r;
	}
	if (strcmp(opt->name, "interval") == 0)
		return option_number(opt->value, 1, 3600, &p->interval_s, err, err_len);
	if (strcmp(opt->name, "min-age") == 0)
		return option_number(opt->value, 1, AGE_MAX - 1, &p->min_age, err, err_len);
	return ranks_config(instance, opt, err, err_len);
}

static int pressure_on_resize(void *instance, uint64_t units)
{
	struct pressure *p = instance;

	p->evicted_n = 0;
	return ranks_on_resize(p, units);
}

static uint32_t pressure_on_fault(void *instance, const struct ebb_fault *fault,
				  struct ebb_range *out, uint32_t max)
{
	struct pressure *p = instance;

	if (fault->unit < p->ranks.units)
		p->ranks.state[fault->unit] |= AGE_FRESH;
	return 0;
}

static void pressure_on_outcome(void *instance, uint32_t outcome, const uint64_t *units, uint32_t n)
{
	struct pressure *p = instance;

	for (uint32_t k = 0; k < n; k++) {
		if (units[k] >= p->ranks.units)
			continue;
		if (outcome == EBB_OUTCOME_CANCELLED) {
			p->ranks.state[units[k]] |= AGE_FRESH;
		} else if (outcome == EBB_OUTCOME_EVICTED || outcome == EBB_OUTCOME_CLEAN) {
			p->ranks.state[units[k]] &= (uint16_t)~AGE_FRESH;
			p->evicted[p->evicted_n++ % EVICTED_RING] = (uint32_t)units[k];
		}
		p->refaults += outcome == EBB_OUTCOME_REFAULT;
	}
}

/* Parts per million of the time since the last look that the VM has waited for memory. */
static bool feel(struct pressure *p)
{
	struct ebb_pressure now = {.size = sizeof(now)};
	uint64_t waited, passed;

	if (p->ranks.host->pressure(p->ranks.host->ctx, &now))
		return false;
	passed = now.time_ns - p->last.time_ns;
	waited = now.stall_ns - p->last.stall_ns;
	if ((now.known & p->last.known & EBB_PRESSURE_PSI) &&
	    now.psi_some_ns - p->last.psi_some_ns > waited)
		waited = now.psi_some_ns - p->last.psi_some_ns;
	if (p->last.time_ns && passed)
		p->felt_ppm = (uint64_t)((double)waited * 1e6 / (double)passed);
	p->last = now;
	return true;
}

/* What went last is brought back, the newest first. */
static void give_back(struct pressure *p, uint64_t n)
{
	struct ebb_range back[64];
	uint32_t k = 0;

	if (n > BACK_MAX)
		n = BACK_MAX;
	while (n-- && p->evicted_n) {
		back[k++] = (struct ebb_range){p->evicted[--p->evicted_n % EVICTED_RING], 1};
		if (k == 64 || !n || !p->evicted_n) {
			p->given_back += p->ranks.host->prefetch(p->ranks.host->ctx, back, k);
			k = 0;
		}
	}
}

static uint64_t pressure_tick(void *instance, uint64_t now_ns)
{
	struct pressure *p = instance;
	uint64_t want, second = UINT64_C(1000000000);

	ranks_tick(&p->ranks, now_ns);
	if (now_ns - p->looked_ns < p->interval_s * second || !feel(p))
		return 0;
	p->looked_ns = now_ns;
	/* Who sees nothing being used must not take it for idle. */
	if (at_limit(p) || p->ranks.blind)
		return 0;
	want = p->ranks.resident * p->step_now_ppm / 1000000 * p->interval_s;
	if (p->felt_ppm > p->target_ppm) {
		uint64_t excess = p->felt_ppm / p->target_ppm;

		/* Older entries of the ring have been written over. */
		if (p->evicted_n > EVICTED_RING)
			p->evicted_n = EVICTED_RING + p->evicted_n % EVICTED_RING;
		give_back(p, want * (excess < 8 ? excess : 8) + 1);
		p->step_now_ppm = p->step_now_ppm / 2 + 1;
		return 0;
	}
	want -= want * p->felt_ppm / p->target_ppm;
	p->step_now_ppm += p->step_now_ppm / 8 + 1;
	if (p->step_now_ppm > p->step_ppm)
		p->step_now_ppm = p->step_ppm;
	p->taken += want;
	return want;
}

static void pressure_on_limit(void *instance, const struct ebb_limit *limit)
{
	struct pressure *p = instance;

	p->limit_units = limit->new_bytes / p->unit_bytes;
	p->ranks.cap = RANKS - 1;
}

static uint32_t pressure_wants(void *instance)
{
	return EBB_POLICY_WANT_FAULTS;
}

static uint32_t pressure_stats(void *instance, struct ebb_policy_stat *out, uint32_t n)
{
	const struct pressure *p = instance;
	const struct ebb_policy_stat stats[] = {
		{"refaults", "Victims that came back soon", p->refaults, 1, 0},
		{"pressure-ppm", "Time waited for memory in the last interval, parts per million",
		 p->felt_ppm, 0, 0},
		{"step-ppm", "Part of resident memory that a second may take, at present",
		 p->step_now_ppm, 0, 0},
		{"taken", "Units asked for because the VM did not feel it", p->taken, 1, 0},
		{"given-back", "Units brought back because it did", p->given_back, 1, 0},
		{"psi", "1 when the PSI of the VM's control group is known",
		 p->last.known & EBB_PRESSURE_PSI, 0, 0},
	};

	return ranks_stats(&p->ranks, sizeof(*p), stats, sizeof(stats) / sizeof(stats[0]), out, n);
}

static const char *const options[] = {
	"target: time that may be spent waiting for memory, parts per million (default 1000)",
	"step: part of resident memory that a second may take, parts per million (default 500)",
	"interval: seconds between two looks at the pressure (1-3600), default 6",
	"min-age: rounds without a use before anything goes unasked (1-254), default 2",
	"cpu: percent of one CPU that rounds may take (1-50), default 1",
	NULL,
};

__attribute__((visibility("default"))) const struct ebb_policy *ebb_policy_entry(void)
{
	static const struct ebb_policy policy = {
		.size = sizeof(policy),
		.abi_major = EBB_POLICY_ABI_MAJOR,
		.abi_minor = EBB_POLICY_ABI_MINOR,
		.roles = EBB_POLICY_RECLAIM,
		.name = "pressure",
		.description = "Takes until the VM waits for memory, and gives back when it does",
		.option_help = options,
		.attach = pressure_attach,
		.detach = ranks_detach,
		.config = pressure_config,
		.on_resize = pressure_on_resize,
		.on_fault = pressure_on_fault,
		.pick_victims = ranks_pick_victims,
		.on_outcome = pressure_on_outcome,
		.tick = pressure_tick,
		.stats = pressure_stats,
		.save = ranks_save,
		.restore = ranks_restore,
		.state_version = STATE_VERSION,
		.wants = pressure_wants,
		.on_limit = pressure_on_limit,
	};

	return &policy;
}
