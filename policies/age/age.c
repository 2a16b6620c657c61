/* SPDX-License-Identifier: BSD-3-Clause */
/* age.c: a reclaimer that finds the age from which on memory is cold enough to go unasked. */
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
 * After Google's far memory (Lagar-Cavilla et al.: Software-Defined Far Memory in Warehouse-Scale
 * Computers, ASPLOS 2019, sections 4.2 to 4.4) and the dt-reclaimer of Flexible Swapping for the
 * Cloud (arXiv 2409.13327). Each unit has an age, the rounds since its last use (ranks.c, ages.h).
 * A histogram counts at which age units were used again, resident or evicted: the access distances.
 * From it follows how many units a minute would have come back, had everything of age T and more
 * been evicted. The smallest T for which that stays below the target, a part of the working set, is
 * the threshold, and what is older goes, unasked. The histogram fades, so that the threshold
 * follows the load; when refaults exceed the target anyway, it is raised at once.
 *
 * At the limit the oldest goes first, whatever the threshold is.
 */

#define TARGET_DEFAULT	2 /* permille of the working set, a minute: Google's 0.2 % */
#define MIN_AGE_DEFAULT 8
#define NS_PER_MINUTE	60000000000.0
#define STATE_VERSION	1

struct age {
	struct ranks ranks;	      /* first: it has most of the hooks */
	double distance[AGE_MAX + 1]; /* uses of units of that age, fading */
	uint64_t target_permille, min_age;
	bool proactive;
	uint32_t threshold; /* rounds */
	uint64_t limit_units, unit_bytes;
	uint64_t refaults, due;
};

static void note_distance(struct age *a, uint16_t state)
{
	if (state & AGE_KNOWN)
		a->distance[AGE(state)] += 1;
}

static uint16_t pass(void *policy, uint64_t unit, uint16_t state, bool resident, bool accessed,
		     bool *forget)
{
	struct age *a = policy;

	/* What a fault brought in has been counted by it. */
	if (accessed && !(state & AGE_FRESH) && AGE(state))
		note_distance(a, state);
	return ages_pass(&a->ranks, unit, state, accessed, forget);
}

/* The VM is at its limit: then there is no threshold to what goes. */
static bool at_limit(const struct age *a)
{
	return a->limit_units && a->ranks.resident >= a->limit_units / 32 * 31;
}

static void on_round(void *policy)
{
	struct age *a = policy;
	double uses = 0, minutes = (double)a->ranks.last_round_ns / NS_PER_MINUTE;
	uint64_t used_now = a->ranks.count[RANKS - 1] + a->ranks.count[RANKS - 2];
	double allowed = (double)a->target_permille / 1000 * (double)used_now * minutes;
	uint32_t t = AGE_MAX;

	/* The sum over past rounds, each with 7/8 of the weight of the next, is 8 rounds' worth. */
	while (t > a->min_age && uses + a->distance[t] <= 8 * allowed)
		uses += a->distance[t--];
	a->threshold = t < AGE_MAX ? t + 1 : AGE_MAX;
	for (uint32_t k = 0; k <= AGE_MAX; k++)
		a->distance[k] *= 7.0 / 8;
	a->due = 0;
	/* Who sees nothing being used must not take it for idle. */
	if (a->proactive && !a->ranks.blind && a->ranks.round > a->min_age)
		a->due = ranks_at_most(&a->ranks, ages_rank_of(a->threshold));
	a->ranks.cap = at_limit(a) ? RANKS - 1 : ages_rank_of(a->threshold);
	if (a->ranks.threshold > a->ranks.cap)
		a->ranks.threshold = a->ranks.cap;
}

static int age_attach(const struct ebb_policy_host *host, const struct ebb_policy_vm *vm,
		      uint32_t role, void **instance, char *err, uint64_t err_len)
{
	static const struct ranks_ops ops = {.pass = pass, .rank = ages_rank, .round = on_round};
	struct ebb_block block = {.unit_bytes = 4096};
	struct age *a = calloc(1, sizeof(*a));
	int r = a ? ranks_init(&a->ranks, host, vm, &ops, err, err_len) : -ENOMEM;

	if (r) {
		free(a);
		return r;
	}
	host->blocks(host->ctx, &block, 1);
	a->unit_bytes = block.unit_bytes ? block.unit_bytes : 4096;
	a->target_permille = TARGET_DEFAULT;
	a->min_age = MIN_AGE_DEFAULT;
	a->threshold = AGE_MAX;
	a->proactive = true;
	*instance = a;
	return 0;
}

static int age_config(void *instance, const struct ebb_policy_option *opt, char *err,
		      uint64_t err_len)
{
	struct age *a = instance;

	if (strcmp(opt->name, "proactive") == 0)
		return option_switch(opt->value, &a->proactive, err, err_len);
	if (strcmp(opt->name, "target") == 0)
		return option_number(opt->value, 0, 1000, &a->target_permille, err, err_len);
	if (strcmp(opt->name, "min-age") == 0)
		return option_number(opt->value, 1, AGE_MAX - 1, &a->min_age, err, err_len);
	return ranks_config(instance, opt, err, err_len);
}

static uint32_t age_on_fault(void *instance, const struct ebb_fault *fault, struct ebb_range *out,
			     uint32_t max)
{
	struct age *a = instance;

	if (fault->unit >= a->ranks.units)
		return 0;
	if (fault->flags & EBB_FAULT_LOADED)
		note_distance(a, a->ranks.state[fault->unit]);
	a->ranks.state[fault->unit] |= AGE_FRESH;
	return 0;
}

static void age_on_outcome(void *instance, uint32_t outcome, const uint64_t *units, uint32_t n)
{
	struct age *a = instance;

	for (uint32_t k = 0; k < n; k++) {
		if (units[k] >= a->ranks.units)
			continue;
		if (outcome == EBB_OUTCOME_CANCELLED)
			a->ranks.state[units[k]] |= AGE_FRESH;
		else if (outcome == EBB_OUTCOME_EVICTED || outcome == EBB_OUTCOME_CLEAN ||
			 outcome == EBB_OUTCOME_ZERO)
			a->ranks.state[units[k]] &= (uint16_t)~AGE_FRESH;
		a->refaults += outcome == EBB_OUTCOME_REFAULT;
	}
}

static uint64_t age_tick(void *instance, uint64_t now_ns)
{
	struct age *a = instance;
	uint64_t due;

	ranks_tick(&a->ranks, now_ns);
	/* What one round found is asked for once. */
	due = a->due;
	a->due = 0;
	return due;
}

static void age_on_limit(void *instance, const struct ebb_limit *limit)
{
	struct age *a = instance;

	a->limit_units = limit->new_bytes / a->unit_bytes;
	/* Until a round has shown how it stands: the limit goes first. */
	a->ranks.cap = RANKS - 1;
}

static uint32_t age_wants(void *instance)
{
	return EBB_POLICY_WANT_FAULTS;
}

static uint32_t age_stats(void *instance, struct ebb_policy_stat *out, uint32_t n)
{
	const struct age *a = instance;
	const struct ebb_policy_stat stats[] = {
		{"refaults", "Victims that came back soon", a->refaults, 1, 0},
		{"cold-age", "Rounds without a use from which on a unit is cold", a->threshold, 0,
		 0},
		{"cold-units", "Resident units that are as old as that",
		 ranks_at_most(&a->ranks, ages_rank_of(a->threshold)), 0, 0},
	};

	return ranks_stats(&a->ranks, sizeof(*a), stats, sizeof(stats) / sizeof(stats[0]), out, n);
}

static const char *const options[] = {
	"target: permille of the working set that may come back each minute (0-1000), default 2",
	"min-age: rounds without a use before anything goes unasked (1-254), default 8",
	"interval: seconds that a round takes when no memory is wanted (1-3600), default 4",
	"cpu: percent of one CPU that such rounds may take (1-50), default 1",
	"proactive: on or off: evict what is older than the threshold, unasked (default on)",
	NULL,
};

__attribute__((visibility("default"))) const struct ebb_policy *ebb_policy_entry(void)
{
	static const struct ebb_policy policy = {
		.size = sizeof(policy),
		.abi_major = EBB_POLICY_ABI_MAJOR,
		.abi_minor = EBB_POLICY_ABI_MINOR,
		.roles = EBB_POLICY_RECLAIM,
		.name = "age",
		.description = "Takes what is older than an age that keeps refaults below a target",
		.option_help = options,
		.attach = age_attach,
		.detach = ranks_detach,
		.config = age_config,
		.on_resize = ranks_on_resize,
		.on_fault = age_on_fault,
		.pick_victims = ranks_pick_victims,
		.on_outcome = age_on_outcome,
		.tick = age_tick,
		.stats = age_stats,
		.save = ranks_save,
		.restore = ranks_restore,
		.state_version = STATE_VERSION,
		.wants = age_wants,
		.on_limit = age_on_limit,
	};

	return &policy;
}
