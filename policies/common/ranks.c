/* SPDX-License-Identifier: BSD-3-Clause */
/* ranks.c: looks at a VM's memory round after round, and finds what ranks as coldest. */
#include "ranks.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "options.h"

#define WORDS	      (CHUNK_UNITS / 64)
#define RANGES	      128
#define TURN_DEFAULT  250
#define INTERVAL_NS   UINT64_C(4000000000)
#define CPU_DEFAULT   10 /* permille of one CPU */
#define STALE_NS      UINT64_C(20000000)
#define CHANCE_NS     UINT64_C(50000000)
#define DRY_MAX	      4	 /* chunks without a candidate: the threshold is too low */
#define CHUNKS_A_PICK 16 /* scanned in one pick that is not urgent */
#define CHUNKS_URGENT 64
#define COST_TICKS    4
#define SAVE_MAGIC    0x534b4e52u /* "RNKS" */

struct saved {
	uint32_t magic, threshold;
	uint64_t units, hand;
};

static uint64_t min_u64(uint64_t a, uint64_t b)
{
	return a < b ? a : b;
}

/* Chunks that so many units make: the hand is always at the beginning of one. */
static uint64_t chunks(uint64_t units)
{
	return (units + CHUNK_UNITS - 1) / CHUNK_UNITS;
}

static void release(struct ranks *r)
{
	free(r->state);
	free(r->passed_ns);
	r->state = NULL;
	r->passed_ns = NULL;
}

int ranks_init(struct ranks *r, const struct ebb_policy_host *host, const struct ebb_policy_vm *vm,
	       const struct ranks_ops *ops, char *err, uint64_t err_len)
{
	memset(r, 0, sizeof(*r));
	r->host = host;
	r->ops = ops;
	r->turn_permille = TURN_DEFAULT;
	r->interval_ns = INTERVAL_NS;
	r->cpu_permille = CPU_DEFAULT;
	r->cap = RANKS - 1;
	r->units = vm->units;
	r->allocated = vm->units ? vm->units : 1;
	r->state = calloc(r->allocated, sizeof(*r->state));
	r->passed_ns = calloc(chunks(r->allocated), sizeof(*r->passed_ns));
	if (!r->state || !r->passed_ns) {
		release(r);
		snprintf(err, err_len, "no memory for the state of %llu units",
			 (unsigned long long)vm->units);
		return -ENOMEM;
	}
	/* Not where the guest's kernel has its text: nothing is known of it yet. */
	r->hand = vm->units / 4 / CHUNK_UNITS * CHUNK_UNITS;
	r->sweep = vm->units / 2;
	r->round_ns = r->tick_ns = host->now_ns(host->ctx);
	return 0;
}

void ranks_detach(void *instance)
{
	release(instance);
	free(instance);
}

int ranks_config(void *instance, const struct ebb_policy_option *opt, char *err, uint64_t err_len)
{
	struct ranks *r = instance;
	uint64_t n;
	int result;

	if (strcmp(opt->name, "interval") == 0) {
		result = option_number(opt->value, 1, 3600, &n, err, err_len);
		if (!result)
			r->interval_ns = n * UINT64_C(1000000000);
		return result;
	}
	if (strcmp(opt->name, "cpu") == 0) {
		result = option_number(opt->value, 1, 50, &n, err, err_len);
		if (!result)
			r->cpu_permille = n * 10;
		return result;
	}
	return -ENOENT;
}

int ranks_on_resize(void *instance, uint64_t units)
{
	struct ranks *r = instance;
	uint64_t *passed, before = chunks(r->allocated);
	uint16_t *state;

	if (units > r->allocated) {
		passed = realloc(r->passed_ns, chunks(units) * sizeof(*passed));
		if (!passed)
			return -ENOMEM;
		memset(passed + before, 0, (chunks(units) - before) * sizeof(*passed));
		r->passed_ns = passed;
		state = realloc(r->state, units * sizeof(*state));
		if (!state)
			return -ENOMEM;
		memset(state + r->allocated, 0, (units - r->allocated) * sizeof(*state));
		r->state = state;
		r->allocated = units;
	}
	if (units < r->units) {
		r->n = r->at = 0;
		r->hand = r->sweep = 0;
	}
	r->units = units;
	return 0;
}

uint64_t ranks_at_most(const struct ranks *r, unsigned int rank)
{
	uint64_t n = 0;

	for (unsigned int k = 0; k <= rank && k < RANKS; k++)
		n += r->count[k];
	return n;
}

static void finish_round(struct ranks *r)
{
	uint64_t now = r->host->now_ns(r->host->ctx), sum = 0;
	unsigned int t = 0;

	memcpy(r->count, r->counting, sizeof(r->count));
	memset(r->counting, 0, sizeof(r->counting));
	r->resident = 0;
	for (unsigned int k = 0; k < RANKS; k++)
		r->resident += r->count[k];
	while (t < RANKS - 1) {
		sum += r->count[t];
		if (sum * 1000 >= r->resident * r->turn_permille)
			break;
		t++;
	}
	r->threshold = t < r->cap ? t : r->cap;
	r->hand = 0;
	/* It may come and go: swap that is switched on takes the tracker away. */
	r->blind = r->refused && r->refused >= chunks(r->units) / 2;
	r->refused = 0;
	r->round++;
	r->last_round_ns = now - r->round_ns;
	r->round_ns = now;
	if (r->ops->round)
		r->ops->round(r);
}

/* What is to be forgotten, gathered: each call costs more than each range. */
struct clearing {
	struct ebb_range range[RANGES];
	uint32_t n;
	uint64_t join_from; /* no range that begins before this may be made longer over a gap */
};

static void flush_clearing(struct ranks *r, struct clearing *c)
{
	if (c->n && r->host->clear_accessed(r->host->ctx, c->range, c->n))
		r->refused++;
	c->n = 0;
}

/* Adds a unit, joined over what was not used: there is nothing to forget. */
static void clear_unit(struct ranks *r, struct clearing *c, uint64_t unit)
{
	struct ebb_range *last = c->n ? &c->range[c->n - 1] : NULL;

	r->cleared++;
	if (last && (last->first >= c->join_from || last->first + last->count == unit)) {
		last->count = unit - last->first + 1;
		return;
	}
	if (c->n == RANGES)
		flush_clearing(r, c);
	c->range[c->n++] = (struct ebb_range){unit, 1};
}

/* The hand passes up to a chunk. Candidates are added when there is none left. */
static void pass_chunk(struct ranks *r)
{
	uint64_t resident[WORDS], accessed[WORDS], begin = r->host->now_ns(r->host->ctx), now;
	uint64_t first = r->hand, n = min_u64(CHUNK_UNITS, r->units - first);
	struct clearing clearing = {.join_from = first};
	/* Older candidates of the same chunk are no better than what is found now. */
	bool collect = r->at == r->n || r->found_first == first;

	if (collect)
		r->at = r->n = 0;
	r->host->resident(r->host->ctx, first, n, resident);
	if (r->host->accessed(r->host->ctx, first, n, accessed)) {
		memset(accessed, 0, sizeof(accessed));
		r->refused++;
	}
	if (r->blind)
		memset(accessed, 0, sizeof(accessed)); /* what is mapped need not have been used */
	for (uint64_t k = 0; k < n; k++) {
		uint64_t unit = first + k;
		bool is = bit_test(resident, k), used = is && bit_test(accessed, k);
		bool forget = false, fresh = r->state[unit] & RANKS_FRESH;

		if (!is && !r->state[unit])
			continue;
		r->state[unit] = r->ops->pass(r, unit, r->state[unit], is, used, &forget);
		if (is) {
			unsigned int rank = r->ops->rank(r, r->state[unit]);

			r->counting[rank]++;
			if (collect && !used && !fresh && rank <= r->threshold)
				r->candidate[r->n++] = (uint32_t)unit;
		}
		if (!used)
			continue;
		if (forget)
			clear_unit(r, &clearing, unit);
		else
			clearing.join_from = unit + 1; /* its use is to stay */
	}
	flush_clearing(r, &clearing);
	now = r->host->now_ns(r->host->ctx);
	if (collect) {
		r->found_ns = now;
		r->found_first = first;
	}
	r->passed_ns[first / CHUNK_UNITS] = now;
	r->busy_ns += now - begin;
	r->passed += n;
	r->passed_since += n;
	r->hand += n;
	if (r->hand >= r->units)
		finish_round(r);
}

/* ---- victims ---- */

struct pick {
	struct ebb_range *out;
	uint32_t max, n;
	uint64_t want, found;
};

static bool take(struct pick *p, uint64_t unit)
{
	if (p->n && p->out[p->n - 1].first + p->out[p->n - 1].count == unit)
		p->out[p->n - 1].count++;
	else if (p->n < p->max)
		p->out[p->n++] = (struct ebb_range){unit, 1};
	else
		return false;
	p->found++;
	return true;
}

/* Candidates that were found a while ago may have been used, or have gone, since. */
static void serve(struct ranks *r, struct pick *p)
{
	bool stale = r->host->now_ns(r->host->ctx) - r->found_ns > STALE_NS;
	uint64_t resident[WORDS + 1], accessed[WORDS + 1], base;

	if (r->at == r->n)
		return;
	base = r->candidate[r->at];
	if (stale) {
		uint64_t span = r->candidate[r->n - 1] - base + 1;

		r->host->resident(r->host->ctx, base, span, resident);
		if (r->host->accessed(r->host->ctx, base, span, accessed))
			memset(accessed, 0, sizeof(accessed));
	}
	while (r->at < r->n && p->found < p->want) {
		uint64_t unit = r->candidate[r->at];

		if (stale && (!bit_test(resident, unit - base) || bit_test(accessed, unit - base)))
			r->too_late++;
		else if (!take(p, unit))
			return;
		r->at++;
	}
}

/* The coldest of the next chunk at the last resort's hand, used or not. */
static void sweep_chunk(struct ranks *r, struct pick *p)
{
	uint64_t resident[WORDS], n = min_u64(CHUNK_UNITS, r->units - r->sweep);
	uint64_t per_rank[RANKS] = {0}, left = p->want - p->found;
	unsigned int most = 0;

	r->host->resident(r->host->ctx, r->sweep, n, resident);
	for (uint64_t k = 0; k < n; k++)
		if (bit_test(resident, k))
			per_rank[r->ops->rank(r, r->state[r->sweep + k])]++;
	/* Ranks below `most` do not suffice by themselves. */
	for (uint64_t sum = per_rank[0]; most < RANKS - 1 && sum < left; sum += per_rank[most])
		most++;
	for (uint64_t k = 0; k < n && p->found < p->want; k++)
		if (bit_test(resident, k) && r->ops->rank(r, r->state[r->sweep + k]) <= most) {
			if (!take(p, r->sweep + k))
				break;
			r->urgent_picks++;
		}
	r->sweep += n;
	if (r->sweep >= r->units)
		r->sweep = 0;
}

/* The units that come next were looked at a moment ago: that they were not used says nothing. */
static bool too_soon(const struct ranks *r)
{
	uint64_t passed = r->passed_ns[r->hand / CHUNK_UNITS];

	return passed && r->host->now_ns(r->host->ctx) - passed < CHANCE_NS;
}

uint32_t ranks_pick_victims(void *instance, uint64_t want, int urgent, struct ebb_range *out,
			    uint32_t max)
{
	struct ranks *r = instance;
	struct pick p = {.out = out, .max = max, .want = want};
	unsigned int chunks = urgent ? CHUNKS_URGENT : CHUNKS_A_PICK;

	if (!r->units || !out || !max)
		return 0;
	for (; chunks; chunks--) {
		serve(r, &p);
		if (p.found == p.want || p.n == p.max || too_soon(r))
			break;
		pass_chunk(r);
		if (r->at < r->n) {
			r->dry = 0;
		} else if (++r->dry >= DRY_MAX && r->round && r->threshold < r->cap) {
			r->threshold++;
			r->dry = 0;
		}
	}
	serve(r, &p);
	for (uint64_t walked = 0; urgent && !p.found && walked <= r->units; walked += CHUNK_UNITS)
		sweep_chunk(r, &p);
	r->picked += p.found;
	return p.n;
}

/* ---- time ---- */

/*
 * What our looks have cost the daemon besides, since the last tick: as much of our own time as if
 * we had spent it. Not more than some seconds' worth at once: others may have looked, too.
 */
static uint64_t cost_of_looks(struct ranks *r, uint64_t most)
{
	struct ebb_pressure p = {.size = sizeof(p)};
	uint64_t cost;

	if (!EBB_POLICY_HAS(r->host, pressure) || r->host->pressure(r->host->ctx, &p))
		return 0;
	cost = p.look_cost_ns - r->look_cost_ns;
	r->look_cost_ns = p.look_cost_ns;
	return min_u64(cost, most);
}

void ranks_tick(struct ranks *r, uint64_t now_ns)
{
	uint64_t elapsed = now_ns - r->tick_ns, allowed, due;

	if (!elapsed || !r->units)
		return;
	/* What victims asked for was scanned anyway. */
	due = r->owed_units +
	      (uint64_t)((double)r->units * (double)elapsed / (double)r->interval_ns);
	due = due > r->passed_since ? due - r->passed_since : 0;
	if (due > r->units)
		due = r->units;
	allowed = elapsed * r->cpu_permille / 1000;
	r->busy_ns += cost_of_looks(r, COST_TICKS * allowed);
	r->passed_since = 0;
	r->tick_ns = now_ns;
	/* A look is a chunk at least; what is over is owed to the next tick. */
	while (due >= min_u64(CHUNK_UNITS, r->units) && r->busy_ns <= allowed) {
		uint64_t before = r->passed;

		pass_chunk(r);
		due -= min_u64(due, r->passed - before);
	}
	r->owed_units = due;
	r->passed_since = 0;
	r->busy_ns = r->busy_ns > allowed ? r->busy_ns - allowed : 0;
}

/* As many of them as there is room for, behind those that are there; how many there are then. */
static uint32_t append(const struct ebb_policy_stat *stats, uint32_t have,
		       struct ebb_policy_stat *out, uint32_t n, uint32_t at)
{
	if (at < n)
		memcpy(out + at, stats, (n - at < have ? n - at : have) * sizeof(*stats));
	return at + have;
}

uint32_t ranks_stats(const struct ranks *r, uint64_t bytes, const struct ebb_policy_stat *own,
		     uint32_t n_own, struct ebb_policy_stat *out, uint32_t n)
{
	const struct ebb_policy_stat stats[] = {
		{"scanned", "Units that the hand has passed", r->passed, 1, 0},
		{"cleared", "Units whose accesses were made forgotten", r->cleared, 1, 0},
		{"rounds", "Times that all memory was looked at", r->round, 1, 0},
		{"picked", "Units named as victims", r->picked, 1, 0},
		{"urgent-picks", "Victims taken by the sweep, for want of cold ones",
		 r->urgent_picks, 1, 0},
		{"too-late", "Candidates that were used before they were named", r->too_late, 1, 0},
		{"threshold", "Rank up to which units are candidates", r->threshold, 0, 0},
		{"round-ms", "How long the last round took", r->last_round_ns / 1000000, 0, 0},
		{"blind", "1 when the VM has no tracker", r->blind, 0, 0},
		{EBB_POLICY_STAT_STATE_BYTES, "Memory held for this VM",
		 bytes + r->allocated * sizeof(*r->state), 0, 0},
	};
	uint32_t have = append(own, n_own, out, n, 0);

	return append(stats, sizeof(stats) / sizeof(stats[0]), out, n, have);
}

/* ---- for a successor ---- */

int64_t ranks_save(void *instance, void *buf, uint64_t max)
{
	const struct ranks *r = instance;
	const struct saved h = {
		.magic = SAVE_MAGIC, .threshold = r->threshold, .units = r->units, .hand = r->hand};
	uint64_t bytes = sizeof(h) + r->units * sizeof(*r->state);

	if (bytes > max)
		return -ENOSPC;
	memcpy(buf, &h, sizeof(h));
	memcpy((char *)buf + sizeof(h), r->state, bytes - sizeof(h));
	return (int64_t)bytes;
}

int ranks_restore(void *instance, const void *buf, uint64_t bytes)
{
	struct ranks *r = instance;
	struct saved h;

	if (bytes < sizeof(h))
		return -EINVAL;
	memcpy(&h, buf, sizeof(h));
	if (h.magic != SAVE_MAGIC || h.units != r->units || h.threshold >= RANKS ||
	    (h.units && h.hand >= h.units) || h.hand % CHUNK_UNITS ||
	    bytes != sizeof(h) + h.units * sizeof(*r->state))
		return -EINVAL;
	memcpy(r->state, (const char *)buf + sizeof(h), bytes - sizeof(h));
	r->threshold = h.threshold;
	r->hand = h.hand;
	r->n = r->at = 0;
	return 0;
}
