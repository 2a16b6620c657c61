/* SPDX-License-Identifier: BSD-3-Clause */
/* trend.c: a prefetcher that follows the step that most of a thread's last faults have in common.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "common/blocks.h"
#include "common/options.h"
#include "common/score.h"
#include "ebb/policy.h"

/*
 * Theory of operation
 *
 * After Leap (Maruf, Chowdhury: Effectively Prefetching Remote Memory with Leap, USENIX ATC 2020,
 * sections 4.1 and 4.2). For each thread that faults, the last steps from fault to fault are kept;
 * the step that has a majority among them (Boyer and Moore's vote, first over few of them, then
 * twice as many, and so on) is the trend. Along it the next units are asked for.
 *
 * Leap learns from hits in its cache how far to look ahead. Here the first use of a fetched unit
 * makes no fault; but when the next fault comes just where the last window ended, all of it was
 * used, and the window doubles. A fault anywhere else along the trend leaves it; without a trend it
 * shrinks to nothing. As a fault comes once per window, a step of the window's length and one is
 * the trend's step too. What was fetched and evicted again unused halves the longest window
 * allowed.
 *
 * Threads: a slot for each of 32 threads (by hash), taken by a try-lock: who finds it taken goes
 * without. The rest is atomic.
 */

#define SLOTS	       32
#define HISTORY	       32 /* steps */
#define VOTE_MIN       4
#define WINDOW_MIN     4
#define WINDOW_DEFAULT 64
#define WINDOW_LIMIT   512
#define CAP_FLOOR      2
#define BYTES_MAX      (UINT64_C(4) << 20) /* in one window */
#define VERDICT_UNITS  64

struct slot {
	_Atomic bool taken;
	uint32_t thread;
	uint64_t last; /* unit of the last fault */
	uint64_t edge; /* the unit after the last window, along the trend; UINT64_MAX: none */
	int64_t trend; /* that it was asked for with */
	uint32_t window;
	uint32_t at, n;
	int64_t step[HISTORY];
};

struct trend {
	const struct ebb_policy_host *host;
	struct blocks blocks;
	struct score score;
	_Atomic uint32_t max_units, cap;
	uint32_t verdict_used, verdict_unused;
	_Atomic uint64_t trends, contended;
	struct slot slot[SLOTS];
};

static int trend_attach(const struct ebb_policy_host *host, const struct ebb_policy_vm *vm,
			uint32_t role, void **instance, char *err, uint64_t err_len)
{
	struct trend *t = calloc(1, sizeof(*t));

	if (!t)
		return -ENOMEM;
	t->host = host;
	set(t->max_units, WINDOW_DEFAULT);
	set(t->cap, WINDOW_DEFAULT);
	blocks_read(&t->blocks, host);
	*instance = t;
	return 0;
}

static void trend_detach(void *instance)
{
	free(instance);
}

static int trend_on_resize(void *instance, uint64_t units)
{
	struct trend *t = instance;

	blocks_read(&t->blocks, t->host);
	return 0;
}

static int trend_config(void *instance, const struct ebb_policy_option *opt, char *err,
			uint64_t err_len)
{
	struct trend *t = instance;
	int r;

	if (strcmp(opt->name, "max") != 0)
		return -ENOENT;
	r = option_shared(opt->value, 1, WINDOW_LIMIT, &t->max_units, err, err_len);
	if (!r)
		set(t->cap, get(t->max_units));
	return r;
}

/* The step that more than half of the last n steps are; 0: none is. */
static int64_t majority(const struct slot *s, uint32_t n)
{
	int64_t candidate = 0;
	uint32_t votes = 0, have = 0;

	for (uint32_t k = 1; k <= n; k++) {
		int64_t step = s->step[(s->at + HISTORY - k) % HISTORY];

		if (!votes)
			candidate = step;
		votes += step == candidate ? 1 : (uint32_t)-1;
	}
	for (uint32_t k = 1; k <= n; k++)
		have += s->step[(s->at + HISTORY - k) % HISTORY] == candidate;
	return have > n / 2 ? candidate : 0;
}

static int64_t find_trend(const struct slot *s)
{
	int64_t step = 0;

	for (uint32_t n = VOTE_MIN; !step && n <= s->n && n <= HISTORY; n *= 2)
		step = majority(s, n);
	return step;
}

/* The unit is one of those that were asked for last: they come too late, but they come. */
static bool within_window(const struct slot *s, uint64_t unit)
{
	int64_t away = (int64_t)(unit - s->last), left = (int64_t)(s->edge - s->last);

	return s->edge != UINT64_MAX && away % s->trend == 0 && away / s->trend > 0 &&
	       away / s->trend < left / s->trend;
}

/* One more fault of this thread. True: ask for `window` units along the trend. */
static bool advance(struct slot *s, uint64_t unit, uint32_t cap)
{
	bool whole = s->edge != UINT64_MAX && unit == s->edge;
	int64_t step = whole ? s->trend : (int64_t)(unit - s->last);

	if (within_window(s, unit)) {
		s->last = unit;
		return false;
	}

	s->last = unit;
	if (!step)
		return false;
	s->step[s->at++ % HISTORY] = step;
	if (s->n < HISTORY)
		s->n++;
	step = find_trend(s);
	if (!step) {
		s->window = 0;
		s->edge = UINT64_MAX;
		return false;
	}
	if (whole && step == s->trend)
		s->window *= 2;
	else if (step != s->trend || !s->window)
		s->window = WINDOW_MIN;
	if (s->window > cap)
		s->window = cap;
	s->trend = step;
	s->edge = unit + (uint64_t)step * (s->window + 1);
	return true;
}

/* What of the window has content to fetch, as ranges. */
static uint32_t write_ranges(struct trend *t, uint64_t unit, int64_t step, uint32_t window,
			     const struct bounds *b, struct ebb_range *out, uint32_t max)
{
	uint32_t n = 0;

	for (uint32_t k = 0; k < window; k++) {
		uint64_t evicted = 0;

		unit += (uint64_t)step;
		if (unit < b->first || unit >= b->end)
			break;
		t->host->evicted(t->host->ctx, unit, 1, &evicted);
		if (!(evicted & 1))
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
	return n;
}

static uint32_t trend_on_fault(void *instance, const struct ebb_fault *fault, struct ebb_range *out,
			       uint32_t max)
{
	struct trend *t = instance;
	struct slot *s = &t->slot[fault->thread * UINT32_C(0x9e3779b9) >> 27];
	uint32_t window = 0, cap = get(t->cap), n = 0;
	int64_t step = 0;
	struct bounds b;

	score_fault(&t->score, fault);
	if (!blocks_find(&t->blocks, fault->unit, &b))
		return 0;
	if (cap > BYTES_MAX / b.unit_bytes)
		cap = BYTES_MAX / b.unit_bytes ? (uint32_t)(BYTES_MAX / b.unit_bytes) : 1;
	if (atomic_exchange_explicit(&s->taken, true, memory_order_acquire)) {
		add(t->contended, 1);
		return 0;
	}
	if (s->thread != fault->thread || !s->n) {
		uint64_t last = s->thread == fault->thread ? s->last : fault->unit;

		if (s->thread != fault->thread)
			s->n = 0;
		s->thread = fault->thread;
		s->last = last;
		s->edge = UINT64_MAX;
		s->window = 0;
	}
	if (advance(s, fault->unit, cap)) {
		window = s->window;
		step = s->trend;
		if (window == WINDOW_MIN)
			add(t->trends, 1);
	}
	atomic_store_explicit(&s->taken, false, memory_order_release);
	if (window)
		n = write_ranges(t, fault->unit, step, window, &b, out, max);
	score_asked(&t->score, out, n);
	return n;
}

static void trend_on_outcome(void *instance, uint32_t outcome, const uint64_t *units, uint32_t n)
{
	struct trend *t = instance;
	uint32_t cap = get(t->cap);

	score_outcome(&t->score, outcome, n);
	t->verdict_used += outcome == EBB_OUTCOME_USED ? n : 0;
	t->verdict_unused += outcome == EBB_OUTCOME_UNUSED ? n : 0;
	if (t->verdict_used + t->verdict_unused < VERDICT_UNITS)
		return;
	if (t->verdict_unused > t->verdict_used)
		cap = cap / 2 > CAP_FLOOR ? cap / 2 : CAP_FLOOR;
	else if (t->verdict_unused < t->verdict_used / 7)
		cap *= 2;
	set(t->cap, cap < get(t->max_units) ? cap : get(t->max_units));
	t->verdict_used = t->verdict_unused = 0;
}

static uint32_t trend_stats(void *instance, struct ebb_policy_stat *out, uint32_t n)
{
	const struct trend *t = instance;
	struct ebb_policy_stat stats[SCORE_STATS + 4] = {
		{"trends", "Trends found anew", get(t->trends), 1, 0},
		{"contended", "Faults passed over because another thread had the same slot",
		 get(t->contended), 1, 0},
		{"cap", "The most units fetched ahead at once, as outcomes allow", get(t->cap), 0,
		 0},
		{EBB_POLICY_STAT_STATE_BYTES, "Memory held for this VM", sizeof(*t), 0, 0},
	};

	score_stats(&t->score, stats + 4);
	memcpy(out, stats, (n < SCORE_STATS + 4 ? n : SCORE_STATS + 4) * sizeof(stats[0]));
	return SCORE_STATS + 4;
}

static const char *const options[] = {
	"max: the most units fetched ahead at once (1-512), default 64",
	NULL,
};

__attribute__((visibility("default"))) const struct ebb_policy *ebb_policy_entry(void)
{
	static const struct ebb_policy policy = {
		.size = sizeof(policy),
		.abi_major = EBB_POLICY_ABI_MAJOR,
		.abi_minor = EBB_POLICY_ABI_MINOR,
		.roles = EBB_POLICY_PREFETCH,
		.name = "trend",
		.description =
			"Follows the step that most of a thread's last faults have in common",
		.option_help = options,
		.attach = trend_attach,
		.detach = trend_detach,
		.config = trend_config,
		.on_resize = trend_on_resize,
		.on_fault = trend_on_fault,
		.on_outcome = trend_on_outcome,
		.stats = trend_stats,
	};

	return &policy;
}
