/* SPDX-License-Identifier: BSD-3-Clause */
/* sequential.c: the default prefetcher: reads ahead of runs of faults. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/blocks.h"
#include "common/options.h"
#include "common/score.h"
#include "ebb/policy.h"
#include "streams.h"

/*
 * Theory of operation
 *
 * Faults that follow each other at neighbouring addresses, up or down, make a run (streams.c).
 * From the third fault of a run on, what lies ahead is asked for: 4 units, then twice as many each
 * time the run has used up half of it, up to a maximum that is bounded both in units and in bytes
 * (2 MiB units are fetched one or two at a time). Advice never crosses the end of a RAM block and
 * leaves out what has no content in a backend.
 *
 * What was fetched and evicted again unused halves the maximum, use brings it back: so where runs
 * look like runs and are not, the cost of being wrong is small.
 *
 * Threads: on_fault runs in fault threads, several at once and beside the serial hooks. Everything
 * shared is atomic; relaxed order is enough because each value is advice by itself: a torn view of
 * a block list that is just being changed costs one useless or missing prefetch. No allocation
 * after attach.
 */

#define WINDOW_DEFAULT	64
#define WINDOW_LIMIT	512
#define WINDOW_FLOOR	2
#define BYTES_DEFAULT	(UINT64_C(4) << 20)
#define TRIGGER_DEFAULT 3
#define VERDICT_UNITS	64 /* outcomes between two changes of the cap */

struct sequential {
	const struct ebb_policy_host *host;
	struct streams streams;
	struct blocks blocks;
	struct score score;

	_Atomic uint32_t max_units, trigger, stride;
	_Atomic uint64_t max_bytes;
	_Atomic uint32_t cap;		       /* at most max_units: what the outcomes allow */
	uint32_t verdict_used, verdict_unused; /* serial hooks only */
};

static const char *const option_help[] = {
	"max: the most units fetched ahead at once (1-512), default 64",
	"max-bytes: the same in bytes (4K-1G), default 4M; at least one unit is fetched",
	"trigger: faults in sequence before anything is fetched ahead (2-16), default 3",
	"stride: also follow runs that leave out units, up to this step (1-64), default 1: none",
	NULL,
};

static int sequential_attach(const struct ebb_policy_host *host, const struct ebb_policy_vm *vm,
			     uint32_t role, void **instance, char *err, uint64_t err_len)
{
	struct sequential *q = calloc(1, sizeof(*q));

	if (!q)
		return -ENOMEM;
	q->host = host;
	set(q->max_units, WINDOW_DEFAULT);
	set(q->cap, WINDOW_DEFAULT);
	set(q->max_bytes, BYTES_DEFAULT);
	set(q->trigger, TRIGGER_DEFAULT);
	set(q->stride, 1);
	blocks_read(&q->blocks, host);
	*instance = q;
	return 0;
}

static void sequential_detach(void *instance)
{
	free(instance);
}

static int sequential_on_resize(void *instance, uint64_t units)
{
	struct sequential *q = instance;

	blocks_read(&q->blocks, q->host);
	return 0;
}

/* ---- options ---- */

static int sequential_config(void *instance, const struct ebb_policy_option *opt, char *err,
			     uint64_t err_len)
{
	struct sequential *q = instance;
	uint64_t n;
	int r;

	if (strcmp(opt->name, "max") == 0) {
		r = option_shared(opt->value, 1, WINDOW_LIMIT, &q->max_units, err, err_len);
		if (!r)
			set(q->cap, get(q->max_units));
		return r;
	}
	if (strcmp(opt->name, "max-bytes") == 0) {
		r = option_number(opt->value, 4096, UINT64_C(1) << 30, &n, err, err_len);
		if (!r)
			set(q->max_bytes, n);
		return r;
	}
	if (strcmp(opt->name, "trigger") == 0)
		return option_shared(opt->value, 2, 16, &q->trigger, err, err_len);
	if (strcmp(opt->name, "stride") == 0)
		return option_shared(opt->value, 1, 64, &q->stride, err, err_len);
	return -ENOENT;
}

/* ---- faults ---- */

/* The advice as ranges within the block, of units that have content to fetch. */
static uint32_t write_ranges(struct sequential *q, const struct stream_advice *a,
			     const struct bounds *b, struct ebb_range *out, uint32_t max)
{
	uint64_t evicted[WINDOW_LIMIT / 64], base = 0, base_end = 0;
	uint64_t unit = a->first;
	uint32_t n = 0;

	for (uint32_t k = 0; k < a->count; k++, unit += (uint64_t)a->step) {
		if (unit < b->first || unit >= b->end)
			break;
		if (unit < base || unit >= base_end) {
			/* The bitmap of what comes next, in the direction of the run. */
			uint64_t left = a->count - k;

			base = a->step == -1 ? (unit - b->first < left ? b->first : unit - left + 1)
					     : unit;
			base_end = a->step == -1 ? unit + 1 : unit + (a->step == 1 ? left : 1);
			if (base_end > b->end)
				base_end = b->end;
			q->host->evicted(q->host->ctx, base, base_end - base, evicted);
		}
		if (!(evicted[(unit - base) / 64] >> ((unit - base) % 64) & 1))
			continue;
		if (n && out[n - 1].first + out[n - 1].count == unit) {
			out[n - 1].count++;
		} else if (n && unit + 1 == out[n - 1].first) {
			out[n - 1].first--;
			out[n - 1].count++;
		} else if (n < max) {
			out[n++] = (struct ebb_range){unit, 1};
		} else {
			break;
		}
	}
	score_asked(&q->score, out, n);
	return n;
}

static uint32_t sequential_on_fault(void *instance, const struct ebb_fault *fault,
				    struct ebb_range *out, uint32_t max)
{
	struct sequential *q = instance;
	struct stream_settings settings = {.reach = get(q->stride),
					   .trigger = (uint16_t)get(q->trigger),
					   .window_max = get(q->cap)};
	struct stream_advice advice;
	struct bounds b;
	uint64_t units;

	score_fault(&q->score, fault);
	if (!blocks_find(&q->blocks, fault->unit, &b))
		return 0;
	units = get(q->max_bytes) / b.unit_bytes;
	if (units < settings.window_max)
		settings.window_max = units ? (uint32_t)units : 1;
	if (!streams_fault(&q->streams, &settings, fault->unit, fault->thread,
			   fault->flags & EBB_FAULT_PREFETCHED, &advice))
		return 0;
	return write_ranges(q, &advice, &b, out, max);
}

/* ---- what came of it ---- */

static void judge(struct sequential *q)
{
	uint32_t cap = get(q->cap), total = q->verdict_used + q->verdict_unused;

	if (total < VERDICT_UNITS)
		return;
	if (q->verdict_unused > total / 2)
		cap = cap / 2 > WINDOW_FLOOR ? cap / 2 : WINDOW_FLOOR;
	else if (q->verdict_unused < total / 8)
		cap = cap * 2;
	if (cap > get(q->max_units))
		cap = get(q->max_units);
	set(q->cap, cap);
	q->verdict_used = 0;
	q->verdict_unused = 0;
}

static void sequential_on_outcome(void *instance, uint32_t outcome, const uint64_t *units,
				  uint32_t n)
{
	struct sequential *q = instance;

	score_outcome(&q->score, outcome, n);
	if (outcome == EBB_OUTCOME_USED)
		q->verdict_used += n;
	else if (outcome == EBB_OUTCOME_UNUSED)
		q->verdict_unused += n;
	else
		return;
	judge(q);
}

static uint32_t sequential_stats(void *instance, struct ebb_policy_stat *out, uint32_t n)
{
	struct sequential *q = instance;
	struct ebb_policy_stat stats[SCORE_STATS + 4] = {
		{"runs", "Runs of faults found", get(q->streams.runs), 1, 0},
		{"contended", "Faults not looked at because another thread was at the same run",
		 get(q->streams.contended), 1, 0},
		{"cap", "The most units fetched ahead at once, as outcomes allow", get(q->cap), 0,
		 0},
		{EBB_POLICY_STAT_STATE_BYTES, "Memory held for this VM", sizeof(*q), 0, 0},
	};

	score_stats(&q->score, stats + 4);
	memcpy(out, stats, (n < SCORE_STATS + 4 ? n : SCORE_STATS + 4) * sizeof(stats[0]));
	return SCORE_STATS + 4;
}

__attribute__((visibility("default"))) const struct ebb_policy *ebb_policy_entry(void)
{
	static const struct ebb_policy policy = {
		.size = sizeof(policy),
		.abi_major = EBB_POLICY_ABI_MAJOR,
		.abi_minor = EBB_POLICY_ABI_MINOR,
		.roles = EBB_POLICY_PREFETCH,
		.name = "sequential",
		.description = "Reads ahead of runs of faults, forward and backward",
		.option_help = option_help,
		.attach = sequential_attach,
		.detach = sequential_detach,
		.config = sequential_config,
		.on_resize = sequential_on_resize,
		.on_fault = sequential_on_fault,
		.on_outcome = sequential_on_outcome,
		.stats = sequential_stats,
	};

	return &policy;
}
