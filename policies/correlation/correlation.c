/* SPDX-License-Identifier: BSD-3-Clause */
/* correlation.c: a prefetcher that remembers which units were faulted one after the other. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "common/options.h"
#include "common/score.h"
#include "ebb/policy.h"

/*
 * Theory of operation
 *
 * A log holds the last faults in their order, and an index tells where in it a unit was last. (A
 * global history buffer: Nesbit, Smith: Data Cache Prefetching Using a Global History Buffer, HPCA
 * 2004, with pages for cache lines; what it finds is what Joseph and Grunwald's Markov predictor
 * finds, ISCA 1997.) When a unit faults that is in the log, what came behind it then is likely to
 * come now. That is believed when the faults before it are the same as then, too: at least
 * `confidence` of the last eight. Then the next `depth` of the log are asked for. So a set of pages
 * that is used together, wherever its parts lie, comes back together.
 *
 * What was asked for makes no fault when it is used, so it is written to the log as if it had.
 *
 * Threads: every word is atomic, and a mixed-up log is a wrong guess. Log and index take two bytes
 * a unit (0.05 % of RAM with 4 KiB units): a quarter of the VM's units can be in the log.
 */

#define LOG_MIN		   1024u
#define DEPTH_LIMIT	   64
#define DEPTH_DEFAULT	   16
#define CONTEXT		   8 /* faults before */
#define CONFIDENCE_DEFAULT 2
#define VERDICT_UNITS	   64

struct correlation {
	const struct ebb_policy_host *host;
	struct score score;
	uint64_t size;		 /* entries of both */
	_Atomic uint32_t *log;	 /* units */
	_Atomic uint32_t *index; /* by hash: place in the log, as far as 32 bits tell */
	_Atomic uint64_t head;	 /* faults ever written to the log */
	_Atomic uint32_t depth, confidence;
	_Atomic uint32_t strict; /* so much more must be the same, as outcomes say */
	uint32_t verdict_used, verdict_unused;
	_Atomic uint64_t known, believed;
};

static int correlation_attach(const struct ebb_policy_host *host, const struct ebb_policy_vm *vm,
			      uint32_t role, void **instance, char *err, uint64_t err_len)
{
	struct correlation *x = calloc(1, sizeof(*x));

	if (!x)
		return -ENOMEM;
	x->size = vm->units / 4 < LOG_MIN ? LOG_MIN : vm->units / 4;
	x->log = calloc(x->size, sizeof(*x->log));
	x->index = calloc(x->size, sizeof(*x->index));
	if (!x->log || !x->index) {
		free((void *)x->log);
		free((void *)x->index);
		free(x);
		return -ENOMEM;
	}
	x->host = host;
	/* So that no place is before the beginning. */
	set(x->head, x->size);
	set(x->depth, DEPTH_DEFAULT);
	set(x->confidence, CONFIDENCE_DEFAULT);
	*instance = x;
	return 0;
}

static void correlation_detach(void *instance)
{
	struct correlation *x = instance;

	free((void *)x->log);
	free((void *)x->index);
	free(x);
}

static int correlation_config(void *instance, const struct ebb_policy_option *opt, char *err,
			      uint64_t err_len)
{
	struct correlation *x = instance;

	if (strcmp(opt->name, "depth") == 0)
		return option_shared(opt->value, 1, DEPTH_LIMIT, &x->depth, err, err_len);
	if (strcmp(opt->name, "confidence") == 0)
		return option_shared(opt->value, 0, CONTEXT, &x->confidence, err, err_len);
	return -ENOENT;
}

static _Atomic uint32_t *index_of(const struct correlation *x, uint32_t unit)
{
	uint64_t hash = unit * UINT64_C(0x9e3779b97f4a7c15);

	return &x->index[(uint64_t)(((unsigned __int128)hash * x->size) >> 64)];
}

/* Writes a unit to the log; gives its place. */
static uint64_t write_log(struct correlation *x, uint32_t unit)
{
	uint64_t at = add(x->head, 1);

	set(x->log[at % x->size], unit);
	set(*index_of(x, unit), (uint32_t)at);
	return at;
}

/* Where the unit was before place `now`; false when the log has it no more. */
static bool find_before(const struct correlation *x, uint32_t unit, uint64_t now, uint64_t *place)
{
	uint32_t back = (uint32_t)now - get(*index_of(x, unit));

	/* The context and what came behind must be in the log still. */
	if (!back || (uint64_t)back + CONTEXT >= x->size)
		return false;
	*place = now - back;
	return get(x->log[*place % x->size]) == unit;
}

/* How many of the faults before place `now` were there before place `then`, too. */
static uint32_t common(const struct correlation *x, uint64_t now, uint64_t then)
{
	uint32_t n = 0;

	for (unsigned int i = 1; i <= CONTEXT; i++) {
		uint32_t unit = get(x->log[(now - i) % x->size]);

		for (unsigned int k = 1; k <= CONTEXT; k++)
			if (get(x->log[(then - k) % x->size]) == unit) {
				n++;
				break;
			}
	}
	return n;
}

static uint32_t correlation_on_fault(void *instance, const struct ebb_fault *fault,
				     struct ebb_range *out, uint32_t max)
{
	struct correlation *x = instance;
	uint32_t depth = get(x->depth), n = 0;
	uint64_t now = get(x->head), then;
	bool found;

	score_fault(&x->score, fault);
	if (fault->unit > UINT32_MAX)
		return 0;
	found = find_before(x, (uint32_t)fault->unit, now, &then);
	now = write_log(x, (uint32_t)fault->unit);
	if (!found || then == now)
		return 0;
	add(x->known, 1);
	if (common(x, now, then) < get(x->confidence) + get(x->strict))
		return 0;
	add(x->believed, 1);
	for (uint64_t place = then + 1; place < now && place <= then + depth && n < max; place++) {
		uint32_t unit = get(x->log[place % x->size]);
		uint64_t bit = 0;

		x->host->evicted(x->host->ctx, unit, 1, &bit);
		if (bit & 1)
			out[n++] = (struct ebb_range){unit, 1};
	}
	for (uint32_t k = 0; k < n; k++)
		write_log(x, (uint32_t)out[k].first);
	score_asked(&x->score, out, n);
	return n;
}

static void correlation_on_outcome(void *instance, uint32_t outcome, const uint64_t *units,
				   uint32_t n)
{
	struct correlation *x = instance;
	uint32_t strict = get(x->strict);

	score_outcome(&x->score, outcome, n);
	x->verdict_used += outcome == EBB_OUTCOME_USED ? n : 0;
	x->verdict_unused += outcome == EBB_OUTCOME_UNUSED ? n : 0;
	if (x->verdict_used + x->verdict_unused < VERDICT_UNITS)
		return;
	if (x->verdict_unused > x->verdict_used && get(x->confidence) + strict < CONTEXT)
		set(x->strict, strict + 1);
	else if (x->verdict_unused < x->verdict_used / 7 && strict)
		set(x->strict, strict - 1);
	x->verdict_used = x->verdict_unused = 0;
}

static uint32_t correlation_stats(void *instance, struct ebb_policy_stat *out, uint32_t n)
{
	const struct correlation *x = instance;
	struct ebb_policy_stat stats[SCORE_STATS + 4] = {
		{"known", "Faults on units that the log has from before", get(x->known), 1, 0},
		{"believed", "Of them those whose context was the same", get(x->believed), 1, 0},
		{"strict", "By how much more than `confidence` must be seen, as outcomes say",
		 get(x->strict), 0, 0},
		{EBB_POLICY_STAT_STATE_BYTES, "Memory held for this VM",
		 sizeof(*x) + x->size * 2 * sizeof(*x->log), 0, 0},
	};

	score_stats(&x->score, stats + 4);
	memcpy(out, stats, (n < SCORE_STATS + 4 ? n : SCORE_STATS + 4) * sizeof(stats[0]));
	return SCORE_STATS + 4;
}

/* The log, oldest first: the index is made anew. */
static int64_t correlation_save(void *instance, void *buf, uint64_t max)
{
	const struct correlation *x = instance;
	uint64_t bytes = x->size * sizeof(uint32_t), head = get(x->head);

	if (bytes > max)
		return -ENOSPC;
	for (uint64_t k = 0; k < x->size; k++)
		((uint32_t *)buf)[k] = get(x->log[(head + k) % x->size]);
	return (int64_t)bytes;
}

/* Any content will do: units beyond the VM are never evicted, so they are never asked for. */
static int correlation_restore(void *instance, const void *buf, uint64_t bytes)
{
	struct correlation *x = instance;

	if (bytes != x->size * sizeof(uint32_t))
		return -EINVAL;
	for (uint64_t k = 0; k < x->size; k++)
		write_log(x, ((const uint32_t *)buf)[k]);
	return 0;
}

static const char *const options[] = {
	"depth: how many faults of the log are asked for at once (1-64), default 16",
	"confidence: how many of the 8 faults before must be the same (0-8), default 2",
	NULL,
};

__attribute__((visibility("default"))) const struct ebb_policy *ebb_policy_entry(void)
{
	static const struct ebb_policy policy = {
		.size = sizeof(policy),
		.abi_major = EBB_POLICY_ABI_MAJOR,
		.abi_minor = EBB_POLICY_ABI_MINOR,
		.roles = EBB_POLICY_PREFETCH,
		.name = "correlation",
		.description = "Remembers which units were faulted one after the other",
		.option_help = options,
		.attach = correlation_attach,
		.detach = correlation_detach,
		.config = correlation_config,
		.on_fault = correlation_on_fault,
		.on_outcome = correlation_on_outcome,
		.stats = correlation_stats,
		.save = correlation_save,
		.restore = correlation_restore,
		.state_version = 1,
	};

	return &policy;
}
