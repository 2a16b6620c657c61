/* SPDX-License-Identifier: BSD-3-Clause */
/* elastic.c: a prefetcher that learns for each part of memory how much to fetch at once. */
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
 * After Koh, Kim, Jeon, Huh: Disaggregated Cloud Memory with Elastic Block Management (IEEE
 * Transactions on Computers 68(1), 2019). Memory is cut into extents, aligned runs of a power of
 * two of units, at first of one. A fault on content brings its whole extent: the unit that was
 * touched at once, by the fault itself (critical page first), the others behind it. A fetch whose
 * buddy, the extent beside it, is of the same order and resident merges the two, and so on upward
 * for `aggressiveness` levels: the next fault there fetches twice as much. The order stays with the
 * memory while it is evicted.
 *
 * Shrinking: a unit that was fetched along and evicted again unused is marked; an extent of which
 * at most a quarter was touched is split into single units. (In an extent of two that is the one
 * that was not asked for.) And where half of all that was fetched goes unused, nothing grows beyond
 * half of what it is allowed now, so that loads without locality are left alone.
 *
 * State: a byte a unit, the order in the byte of an extent's first unit. Fault threads and the
 * serial hooks change them without a lock: a merge that meets a split leaves an extent that is
 * smaller than it could be, or one of the wrong size for one fetch.
 */

#define ORDER_MAX	       9
#define EXTENT_MAX	       (1u << ORDER_MAX)
#define EXTENT_BYTES_MAX       (UINT64_C(2) << 20)
#define AGGRESSIVENESS_DEFAULT 4 /* 64 KiB after one pass of a scan, 2 MiB after three */
#define ORDER_MASK	       0x0fu
#define UNUSED		       0x10u
#define VERDICT_UNITS	       64

struct elastic {
	const struct ebb_policy_host *host;
	struct blocks blocks;
	struct score score;
	_Atomic uint8_t *state;
	_Atomic uint64_t units;
	uint64_t allocated;
	_Atomic uint32_t max_order, cap, aggressiveness;
	uint32_t verdict_used, verdict_unused;
	_Atomic uint64_t merges, splits;
};

struct extent {
	uint64_t first;
	uint32_t order;
};

static int elastic_attach(const struct ebb_policy_host *host, const struct ebb_policy_vm *vm,
			  uint32_t role, void **instance, char *err, uint64_t err_len)
{
	struct elastic *x = calloc(1, sizeof(*x));

	if (!x)
		return -ENOMEM;
	/* Room for what may be plugged later would be guesswork: see on_resize. */
	x->allocated = vm->units ? vm->units : 1;
	x->state = calloc(x->allocated, 1);
	if (!x->state) {
		free(x);
		return -ENOMEM;
	}
	x->host = host;
	set(x->units, vm->units);
	set(x->max_order, ORDER_MAX);
	set(x->cap, ORDER_MAX);
	set(x->aggressiveness, AGGRESSIVENESS_DEFAULT);
	blocks_read(&x->blocks, host);
	*instance = x;
	return 0;
}

static void elastic_detach(void *instance)
{
	struct elastic *x = instance;

	free((void *)x->state);
	free(x);
}

/*
 * Fault threads may be looking at the states, so these cannot be moved: what was plugged later has
 * extents of one unit for ever. Its faults are served all the same.
 */
static int elastic_on_resize(void *instance, uint64_t units)
{
	struct elastic *x = instance;

	set(x->units, units < x->allocated ? units : x->allocated);
	blocks_read(&x->blocks, x->host);
	return 0;
}

static int elastic_config(void *instance, const struct ebb_policy_option *opt, char *err,
			  uint64_t err_len)
{
	struct elastic *x = instance;
	int r;

	if (strcmp(opt->name, "max-order") == 0) {
		r = option_shared(opt->value, 0, ORDER_MAX, &x->max_order, err, err_len);
		if (!r)
			set(x->cap, get(x->max_order));
		return r;
	}
	if (strcmp(opt->name, "aggressiveness") == 0)
		return option_shared(opt->value, 1, ORDER_MAX, &x->aggressiveness, err, err_len);
	return -ENOENT;
}

static struct extent extent_of(const struct elastic *x, uint64_t unit)
{
	for (uint32_t k = ORDER_MAX; k; k--) {
		uint64_t first = unit & ~((UINT64_C(1) << k) - 1);
		uint32_t order = get(x->state[first]) & ORDER_MASK;

		if (order >= k)
			return (struct extent){first, order <= ORDER_MAX ? order : ORDER_MAX};
	}
	return (struct extent){unit, 0};
}

static bool all_resident(const struct elastic *x, const struct extent *e)
{
	uint64_t bitmap[EXTENT_MAX / 64], n = UINT64_C(1) << e->order;

	x->host->resident(x->host->ctx, e->first, n, bitmap);
	if (n < 64)
		return bitmap[0] == (UINT64_C(1) << n) - 1;
	for (uint64_t w = 0; w < n / 64; w++)
		if (~bitmap[w])
			return false;
	return true;
}

/* Merges with buddies that are there, upward. */
static void grow(struct elastic *x, struct extent e, const struct bounds *b, uint32_t top)
{
	for (uint32_t levels = get(x->aggressiveness); levels && e.order < top; levels--) {
		struct extent buddy = {e.first ^ UINT64_C(1) << e.order, e.order};
		uint64_t low = e.first < buddy.first ? e.first : buddy.first;
		uint64_t high = e.first < buddy.first ? buddy.first : e.first;

		if (low < b->first || high + (UINT64_C(1) << e.order) > b->end ||
		    high + (UINT64_C(1) << e.order) > get(x->units) ||
		    (get(x->state[buddy.first]) & ORDER_MASK) != e.order ||
		    !all_resident(x, &buddy))
			return;
		set(x->state[high], (uint8_t)(get(x->state[high]) & ~ORDER_MASK));
		e = (struct extent){low, e.order + 1};
		set(x->state[low], (uint8_t)((get(x->state[low]) & ~ORDER_MASK) | e.order));
		add(x->merges, 1);
	}
}

static uint32_t elastic_on_fault(void *instance, const struct ebb_fault *fault,
				 struct ebb_range *out, uint32_t max)
{
	struct elastic *x = instance;
	uint64_t evicted[EXTENT_MAX / 64], size;
	struct bounds b;
	struct extent e;
	uint32_t n = 0, top = get(x->cap);

	score_fault(&x->score, fault);
	if (fault->unit >= get(x->units) || !blocks_find(&x->blocks, fault->unit, &b))
		return 0;
	while (top && (uint64_t)b.unit_bytes << top > EXTENT_BYTES_MAX)
		top--;
	set(x->state[fault->unit], (uint8_t)(get(x->state[fault->unit]) & ~UNUSED));
	e = extent_of(x, fault->unit);
	/* Where little of what was fetched is used, less is fetched at once than was learned. */
	if (e.order > top)
		e = (struct extent){fault->unit & ~((UINT64_C(1) << top) - 1), top};
	size = UINT64_C(1) << e.order;
	if (size > 1)
		x->host->evicted(x->host->ctx, e.first, size, evicted);
	/* What is behind the fault first: it is the likelier to be next. */
	for (uint64_t k = 1; size > 1 && k < size; k++) {
		uint64_t unit = e.first + ((fault->unit - e.first + k) & (size - 1));

		if (!bit_test(evicted, unit - e.first) || unit < b.first || unit >= b.end)
			continue;
		if (n && out[n - 1].first + out[n - 1].count == unit)
			out[n - 1].count++;
		else if (n < max)
			out[n++] = (struct ebb_range){unit, 1};
		else
			break;
	}
	grow(x, e, &b, top);
	score_asked(&x->score, out, n);
	return n;
}

/* At most a quarter of the extent was touched: it is split into units. */
static void shrink(struct elastic *x, uint64_t unit)
{
	struct extent e = extent_of(x, unit);
	uint64_t size = UINT64_C(1) << e.order, unused = 0;

	if (!e.order || e.first + size > get(x->units))
		return;
	for (uint64_t u = e.first; u < e.first + size; u++)
		unused += (get(x->state[u]) & UNUSED) != 0;
	if (unused * 4 < (size - 1) * 3)
		return;
	for (uint64_t u = e.first; u < e.first + size; u++)
		set(x->state[u], 0);
	add(x->splits, 1);
}

static void judge(struct elastic *x)
{
	uint32_t cap = get(x->cap), max = get(x->max_order);

	if (x->verdict_used + x->verdict_unused < VERDICT_UNITS)
		return;
	if (x->verdict_unused > x->verdict_used)
		cap /= 2;
	else if (x->verdict_unused < x->verdict_used / 7 && cap < max)
		cap++;
	set(x->cap, cap);
	x->verdict_used = x->verdict_unused = 0;
}

static void elastic_on_outcome(void *instance, uint32_t outcome, const uint64_t *units, uint32_t n)
{
	struct elastic *x = instance;

	score_outcome(&x->score, outcome, n);
	for (uint32_t k = 0; k < n; k++) {
		uint8_t s;

		if (units[k] >= get(x->units))
			continue;
		s = get(x->state[units[k]]);
		if (outcome == EBB_OUTCOME_USED) {
			x->verdict_used++;
			set(x->state[units[k]], (uint8_t)(s & ~UNUSED));
		} else if (outcome == EBB_OUTCOME_UNUSED) {
			x->verdict_unused++;
			set(x->state[units[k]], (uint8_t)(s | UNUSED));
			shrink(x, units[k]);
		}
	}
	judge(x);
}

/* Without any use to judge by, a cap of nothing would stay for ever: it is tried again. */
static uint64_t elastic_tick(void *instance, uint64_t now_ns)
{
	struct elastic *x = instance;

	if (!get(x->cap) && get(x->max_order) && now_ns / UINT64_C(1000000000) % 30 == 0)
		set(x->cap, 1);
	return 0;
}

static uint32_t elastic_stats(void *instance, struct ebb_policy_stat *out, uint32_t n)
{
	const struct elastic *x = instance;
	struct ebb_policy_stat stats[SCORE_STATS + 4] = {
		{"merges", "Extents that were merged with their buddy", get(x->merges), 1, 0},
		{"splits", "Extents that were split because most went unused", get(x->splits), 1,
		 0},
		{"cap", "The highest order that extents may grow to, as outcomes allow",
		 get(x->cap), 0, 0},
		{EBB_POLICY_STAT_STATE_BYTES, "Memory held for this VM", sizeof(*x) + x->allocated,
		 0, 0},
	};

	score_stats(&x->score, stats + 4);
	memcpy(out, stats, (n < SCORE_STATS + 4 ? n : SCORE_STATS + 4) * sizeof(stats[0]));
	return SCORE_STATS + 4;
}

static int64_t elastic_save(void *instance, void *buf, uint64_t max)
{
	const struct elastic *x = instance;
	uint64_t units = get(x->units);

	if (units > max)
		return -ENOSPC;
	for (uint64_t u = 0; u < units; u++)
		((uint8_t *)buf)[u] = get(x->state[u]);
	return (int64_t)units;
}

static int elastic_restore(void *instance, const void *buf, uint64_t bytes)
{
	struct elastic *x = instance;
	const uint8_t *from = buf;

	if (bytes != get(x->units))
		return -EINVAL;
	/* An extent begins where its order says that it may, and ends within the VM. */
	for (uint64_t u = 0; u < bytes; u++) {
		uint32_t order = from[u] & ORDER_MASK;

		if (from[u] & ~(ORDER_MASK | UNUSED) || order > ORDER_MAX ||
		    u & ((UINT64_C(1) << order) - 1) || u + (UINT64_C(1) << order) > bytes)
			return -EINVAL;
	}
	for (uint64_t u = 0; u < bytes; u++)
		set(x->state[u], from[u]);
	return 0;
}

static const char *const options[] = {
	"max-order: extents grow to at most 2^max-order units, and 2 MiB (0-9), default 9",
	"aggressiveness: by how many orders one fault may let an extent grow (1-9), default 4",
	NULL,
};

__attribute__((visibility("default"))) const struct ebb_policy *ebb_policy_entry(void)
{
	static const struct ebb_policy policy = {
		.size = sizeof(policy),
		.abi_major = EBB_POLICY_ABI_MAJOR,
		.abi_minor = EBB_POLICY_ABI_MINOR,
		.roles = EBB_POLICY_PREFETCH,
		.name = "elastic",
		.description = "Learns for each part of memory how much to fetch at once",
		.option_help = options,
		.attach = elastic_attach,
		.detach = elastic_detach,
		.config = elastic_config,
		.on_resize = elastic_on_resize,
		.on_fault = elastic_on_fault,
		.on_outcome = elastic_on_outcome,
		.tick = elastic_tick,
		.stats = elastic_stats,
		.save = elastic_save,
		.restore = elastic_restore,
		.state_version = 1,
	};

	return &policy;
}
