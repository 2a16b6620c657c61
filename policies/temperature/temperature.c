/* SPDX-License-Identifier: BSD-3-Clause */
/* temperature.c: a reclaimer that knows how often units were used, not only when. */
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/options.h"
#include "common/ranks.h"
#include "ebb/policy.h"

/*
 * Theory of operation
 *
 * After vTMM (Sha, Li, Luo, Wang, Wang: EuroSys 2023, sections on page tracking and on
 * classification). Each unit has a history of the rounds in which it was used and in which it was
 * written; its temperature is a weighted sum; units are sorted into buckets by temperature
 * (ranks.c), and the coldest buckets go first. Steadily hot units are looked at in ever fewer
 * rounds, each look being a fault for the guest.
 *
 * Other than vTMM: rounds are driven by how much memory is wanted, not by time alone. The history
 * is cut in two: four rounds as they were, and before that the rate, an average that gives each
 * round a weight of 2^-memory. It takes the rate to tell apart what is used every tenth round from
 * what is used every twentieth, and that is what most misses hang on; the last rounds tell when it
 * is not true any more (a hot unit that four rounds have not seen loses half of its rate each
 * round). The history of an evicted unit goes on: when it comes back it is known how often it was
 * used before. And nobody tells reads and writes apart here but the faults: a unit counts as
 * written in the round in which a write brought it in or cancelled its eviction.
 *
 * State of a unit: bits 0-7 rate; 8-11 used, newest lowest; 12-13 written; 14 its last use was made
 * forgotten, so that the next look tells something; 15 came in since the last round.
 */

#define RATE(state)    ((state)&0xffu)
#define USED_SHIFT     8
#define USED(state)    ((state) >> USED_SHIFT & 0xfu)
#define WRITTEN_SHIFT  12
#define WRITTEN(state) ((state) >> WRITTEN_SHIFT & 3u)
#define WATCHED	       0x4000u
#define FRESH	       RANKS_FRESH
#define STREAK_MAX     6
#define MEMORY_DEFAULT 6
#define TURN_DEFAULT   200 /* permille */
#define RATE_RANKS     58  /* of RANKS - 1: 2 are for the last rounds, 3 for writes */
#define STATE_VERSION  1

struct temperature {
	struct ranks ranks; /* first: it has most of the hooks */
	uint64_t memory;
	bool back_off, proactive;
	uint8_t rate_rank[256], used_rank[16];
	uint64_t refaults, backed_off;
};

/* a / 2^shift, rounded up or down by chance so that it is right on average. */
static uint32_t part(const struct temperature *t, uint64_t unit, uint32_t a)
{
	uint64_t chance = (unit + 1) * (t->ranks.round + 1) * UINT64_C(0x9e3779b97f4a7c15) >> 32;

	return (a + (uint32_t)(chance & ((1u << t->memory) - 1))) >> t->memory;
}

/* For how many rounds in a row it has been used: what four bits cannot tell, the rate does. */
static unsigned int streak(uint32_t rate, uint32_t used)
{
	unsigned int rounds = (unsigned int)__builtin_ctz(~used);

	return used == 0xf && rate > 128 ? rounds + (rate - 128) / 32 : rounds;
}

static uint16_t pass(void *policy, uint64_t unit, uint16_t state, bool resident, bool accessed,
		     bool *forget)
{
	struct temperature *t = policy;
	uint32_t rate = RATE(state), used = USED(state), written = WRITTEN(state);

	/* One that was left alone looks used in any case: that is no news. */
	if (!accessed || state & (WATCHED | FRESH)) {
		bool now = accessed || state & FRESH;

		used = (used << 1 | now) & 0xf;
		written = written << 1 & 3;
		if (now)
			rate += part(t, unit, 255 - rate);
		else if (!used && rate > 127)
			rate /= 2; /* as hot as that, it would have been used: it has changed */
		else
			rate -= part(t, unit, rate);
	}
	*forget = accessed &&
		  !(t->back_off && ranks_back_off(&t->ranks, unit, streak(rate, used), STREAK_MAX));
	t->backed_off += accessed && !*forget;
	return (uint16_t)(rate | used << USED_SHIFT | written << WRITTEN_SHIFT |
			  (accessed && !*forget ? 0 : WATCHED));
}

static unsigned int rank(const void *policy, uint16_t state)
{
	const struct temperature *t = policy;
	uint32_t used = USED(state);

	/* Its fault is a use, too, though no round has seen it. */
	if (state & FRESH)
		used = (used << 1 | 1) & 0xf;
	return t->rate_rank[RATE(state)] + t->used_rank[used] + WRITTEN(state);
}

/* The rate decides; what is used at the same rate is told apart by the last rounds. */
static void make_tables(struct temperature *t)
{
	for (unsigned int k = 0; k < 256; k++)
		t->rate_rank[k] = (uint8_t)(sqrt(k / 255.0) * RATE_RANKS);
	for (unsigned int k = 0; k < 16; k++)
		t->used_rank[k] = (uint8_t)((k & 1) + (k >> 1 & 1));
}

static int temperature_attach(const struct ebb_policy_host *host, const struct ebb_policy_vm *vm,
			      uint32_t role, void **instance, char *err, uint64_t err_len)
{
	static const struct ranks_ops ops = {.pass = pass, .rank = rank};
	struct temperature *t = calloc(1, sizeof(*t));
	int r = t ? ranks_init(&t->ranks, host, vm, &ops, err, err_len) : -ENOMEM;

	if (r) {
		free(t);
		return r;
	}
	t->memory = MEMORY_DEFAULT;
	t->back_off = true;
	t->ranks.turn_permille = TURN_DEFAULT;
	make_tables(t);
	*instance = t;
	return 0;
}

static int temperature_config(void *instance, const struct ebb_policy_option *opt, char *err,
			      uint64_t err_len)
{
	struct temperature *t = instance;
	uint64_t n;
	int r;

	if (strcmp(opt->name, "back-off") == 0)
		return option_switch(opt->value, &t->back_off, err, err_len);
	if (strcmp(opt->name, "proactive") == 0)
		return option_switch(opt->value, &t->proactive, err, err_len);
	if (strcmp(opt->name, "memory") == 0)
		return option_number(opt->value, 1, 8, &t->memory, err, err_len);
	if (strcmp(opt->name, "turn") == 0) {
		r = option_number(opt->value, 1, 100, &n, err, err_len);
		if (!r)
			t->ranks.turn_permille = n * 10;
		return r;
	}
	return ranks_config(instance, opt, err, err_len);
}

static uint32_t temperature_on_fault(void *instance, const struct ebb_fault *fault,
				     struct ebb_range *out, uint32_t max)
{
	struct temperature *t = instance;

	if (fault->unit < t->ranks.units) {
		t->ranks.state[fault->unit] |= FRESH;
		if (fault->flags & EBB_FAULT_WRITE)
			t->ranks.state[fault->unit] |= 1u << WRITTEN_SHIFT;
	}
	return 0;
}

static void temperature_on_outcome(void *instance, uint32_t outcome, const uint64_t *units,
				   uint32_t n)
{
	struct temperature *t = instance;

	for (uint32_t k = 0; k < n; k++) {
		if (units[k] >= t->ranks.units)
			continue;
		if (outcome == EBB_OUTCOME_CANCELLED)
			t->ranks.state[units[k]] |= FRESH | 1u << WRITTEN_SHIFT;
		else if (outcome == EBB_OUTCOME_EVICTED || outcome == EBB_OUTCOME_CLEAN ||
			 outcome == EBB_OUTCOME_ZERO)
			t->ranks.state[units[k]] &= (uint16_t)~FRESH;
		t->refaults += outcome == EBB_OUTCOME_REFAULT;
	}
}

static uint64_t temperature_tick(void *instance, uint64_t now_ns)
{
	struct temperature *t = instance;

	ranks_tick(&t->ranks, now_ns);
	return t->proactive && !t->ranks.blind && t->ranks.round > 1u << t->memory
		       ? ranks_at_most(&t->ranks, 0)
		       : 0;
}

static uint32_t temperature_wants(void *instance)
{
	return EBB_POLICY_WANT_FAULTS;
}

static uint32_t temperature_stats(void *instance, struct ebb_policy_stat *out, uint32_t n)
{
	const struct temperature *t = instance;
	const struct ebb_policy_stat stats[] = {
		{"refaults", "Victims that came back soon", t->refaults, 1, 0},
		{"backed-off", "Units not cleared because they are steadily hot", t->backed_off, 1,
		 0},
		{"coldest", "Resident units of the lowest temperature", t->ranks.count[0], 0, 0},
	};

	return ranks_stats(&t->ranks, sizeof(*t), stats, sizeof(stats) / sizeof(stats[0]), out, n);
}

static const char *const options[] = {
	"memory: rounds that the rate looks back on, as a power of two (1-8), default 6",
	"turn: percent of resident memory that a round may take (1-100), default 20",
	"back-off: on or off: look at steadily hot units ever less often (default on)",
	"interval: seconds that a round takes when no memory is wanted (1-3600), default 4",
	"cpu: percent of one CPU that such rounds may take (1-50), default 1",
	"proactive: on or off: evict unasked what has not been used for long (default off)",
	NULL,
};

__attribute__((visibility("default"))) const struct ebb_policy *ebb_policy_entry(void)
{
	static const struct ebb_policy policy = {
		.size = sizeof(policy),
		.abi_major = EBB_POLICY_ABI_MAJOR,
		.abi_minor = EBB_POLICY_ABI_MINOR,
		.roles = EBB_POLICY_RECLAIM,
		.name = "temperature",
		.description = "Takes what is used least often, by histories of uses and writes",
		.option_help = options,
		.attach = temperature_attach,
		.detach = ranks_detach,
		.config = temperature_config,
		.on_resize = ranks_on_resize,
		.on_fault = temperature_on_fault,
		.pick_victims = ranks_pick_victims,
		.on_outcome = temperature_on_outcome,
		.tick = temperature_tick,
		.stats = temperature_stats,
		.save = ranks_save,
		.restore = ranks_restore,
		.state_version = STATE_VERSION,
		.wants = temperature_wants,
	};

	return &policy;
}
