/* SPDX-License-Identifier: BSD-3-Clause */
/* replay.c: a VM under a limit, with a policy in each role, replays a sequence of touches. */
#include "sim/replay.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"

/*
 * Theory of operation
 *
 * The policies are those that the daemon loads, called through the same wrapper
 * (plugin/policy_host.c). Around them is the engine's behaviour without its work: a fault above the
 * target makes victims be asked for, in rounds of at most 256 units, urgently when half of the
 * headroom is gone, and a sweep takes over when none are named; the reclaimer hears of faults in
 * batches; what a prefetcher asks for waits for one thread that takes its time, and comes too late
 * if it is touched before; a prefetched unit is out of the page table until it is touched; windows
 * and ticks come as in the keeper. Time is made of what things cost and what the trace says passed.
 *
 * Left out: evictions are at once and never cancelled, and no cost of a hook is charged to the VM.
 */

/* As in engine/reclaim.c (1/64, at least 1 MiB), but that a tiny VM keeps most of its limit. */
#define HEADROOM_PART 64
#define HEADROOM_MIN  256u
#define ROUND_UNITS   256u
#define ROUND_RANGES  64u
#define ROUNDS	      32
#define FAULTS_KEPT   1024u
#define ASKS_MAX      64u /* ranges of one fault */
#define QUEUE	      1024u
#define BULK_MAX      65536u
#define TICK_NS	      NS_PER_S

enum {
	RESIDENT = 1,
	TOUCHED = 2,
	PRESENT = 4,
	PREFETCHED = 8,
	CLEARED = 16,
	DIRTY = 32,
	STORED = 64,
	ASKED = 128
};

struct queue {
	struct ebb_range *range;
	uint64_t head, tail, size;
};

struct replay {
	const struct replay_setup *setup;
	struct replay_result *out;
	struct ebb_policy_host host;
	struct ebb_policy_vm vm;
	struct policy_instance *reclaim, *prefetch;
	uint64_t units, resident, touched, target, now, next_tick, next_window;
	uint8_t *state;
	uint32_t *evicted_at; /* number of the eviction, from 1 */
	uint64_t recent;      /* so many evictions are "soon" */
	struct ebb_fault fault[FAULTS_KEPT];
	uint32_t n_faults;
	uint64_t *refault; /* bitmap over fault[] */
	struct queue asks, bulk;
	uint64_t prefetch_free_at;
	uint64_t sweep;
	uint64_t stall_ns, lost_ns;
	double saved_sum;
	uint64_t *watched, *accessed;
};

/* ---- the host table ---- */

static void by_state(const struct replay *r, uint64_t first, uint64_t count, uint64_t *bitmap,
		     uint8_t mask, uint8_t value)
{
	memset(bitmap, 0, (count + 63) / 64 * 8);
	for (uint64_t k = 0; k < count; k++)
		if ((r->state[first + k] & mask) == value)
			bitmap[k / 64] |= UINT64_C(1) << (k % 64);
}

static void host_resident(void *ctx, uint64_t first, uint64_t count, uint64_t *bitmap)
{
	by_state(ctx, first, count, bitmap, RESIDENT, RESIDENT);
}

static void host_evicted(void *ctx, uint64_t first, uint64_t count, uint64_t *bitmap)
{
	by_state(ctx, first, count, bitmap, RESIDENT | TOUCHED, TOUCHED);
}

/* A unit that was prefetched: was it used? Told once. */
static void tell_use(struct replay *r, uint64_t u, bool used)
{
	r->state[u] &= (uint8_t)~PREFETCHED;
	r->out->used += used;
	r->out->unused += !used;
	if (r->prefetch)
		policy_on_outcome(r->prefetch, used ? EBB_OUTCOME_USED : EBB_OUTCOME_UNUSED, &u, 1);
}

static void clear(struct replay *r, uint64_t u)
{
	if (!(r->state[u] & PRESENT))
		return;
	if (r->state[u] & PREFETCHED)
		tell_use(r, u, true);
	r->state[u] = (uint8_t)((r->state[u] & ~PRESENT) | CLEARED);
	r->out->cleared++;
}

static int host_clear(void *ctx, const struct ebb_range *ranges, uint32_t n)
{
	for (uint32_t i = 0; i < n; i++)
		for (uint64_t u = ranges[i].first; u < ranges[i].first + ranges[i].count; u++)
			clear(ctx, u);
	return 0;
}

static int host_accessed(void *ctx, uint64_t first, uint64_t count, uint64_t *bitmap)
{
	by_state(ctx, first, count, bitmap, PRESENT, PRESENT);
	return 0;
}

static uint32_t host_blocks(void *ctx, struct ebb_block *out, uint32_t n)
{
	const struct replay *r = ctx;

	if (n)
		*out = (struct ebb_block){.units = r->units,
					  .unit_bytes = r->setup->sequence->unit_bytes};
	return 1;
}

static uint64_t host_now(void *ctx)
{
	return ((const struct replay *)ctx)->now;
}

static void host_log(void *ctx, int level, const char *fmt, ...)
{
	va_list ap;

	if (level > 1)
		return;
	va_start(ap, fmt);
	vfprintf(stderr, fmt, ap);
	va_end(ap);
	fputc('\n', stderr);
}

static bool push(struct queue *q, const struct ebb_range *range)
{
	if (q->head - q->tail >= q->size)
		return false;
	q->range[q->head++ % q->size] = *range;
	return true;
}

static uint32_t host_prefetch(void *ctx, const struct ebb_range *ranges, uint32_t n)
{
	struct replay *r = ctx;
	uint32_t taken = 0;

	while (taken < n && push(&r->bulk, &ranges[taken]))
		taken++;
	return taken;
}

static int host_pressure(void *ctx, struct ebb_pressure *out)
{
	const struct replay *r = ctx;

	out->time_ns = r->now;
	out->faults = r->out->misses;
	out->refaults = r->out->refaults;
	out->stall_ns = r->stall_ns;
	out->known = 0;
	return 0;
}

/* ---- eviction ---- */

static void evict(struct replay *r, uint64_t u)
{
	uint8_t s = r->state[u];
	uint32_t outcome = (s & STORED) && !(s & DIRTY) ? EBB_OUTCOME_CLEAN : EBB_OUTCOME_EVICTED;

	r->state[u] = TOUCHED | STORED;
	r->resident--;
	r->evicted_at[u] = (uint32_t)++r->out->evictions;
	policy_on_outcome(r->reclaim, outcome, &u, 1);
	if (s & PREFETCHED)
		tell_use(r, u, s & PRESENT);
	if (r->prefetch && policy_wants_evictions(r->prefetch))
		policy_on_outcome(r->prefetch, outcome, &u, 1);
}

static void tell_faults(struct replay *r)
{
	for (uint32_t k = 0; k < r->n_faults; k++) {
		if (r->refault[k / 64] >> (k % 64) & 1)
			policy_on_outcome(r->reclaim, EBB_OUTCOME_REFAULT, &r->fault[k].unit, 1);
		policy_reclaim_fault(r->reclaim, &r->fault[k]);
	}
	r->n_faults = 0;
	memset(r->refault, 0, FAULTS_KEPT / 8);
}

static uint64_t sweep(struct replay *r, uint64_t want)
{
	uint64_t gone = 0;

	for (uint64_t walked = 0; walked < 2 * r->units && gone < want; walked++) {
		if (r->state[r->sweep] & RESIDENT) {
			evict(r, r->sweep);
			gone++;
		}
		r->sweep = (r->sweep + 1) % r->units;
	}
	r->out->swept += gone;
	return gone;
}

static uint64_t round_of(struct replay *r, uint64_t want, bool urgent)
{
	struct ebb_range out[ROUND_RANGES];
	uint64_t gone = 0, named = 0;
	uint32_t n;

	if (want > ROUND_UNITS)
		want = ROUND_UNITS;
	tell_faults(r);
	n = policy_pick_victims(r->reclaim, want, false, out, ROUND_RANGES);
	if (!n && urgent)
		n = policy_pick_victims(r->reclaim, want, true, out, ROUND_RANGES);
	for (uint32_t k = 0; k < n; k++)
		for (uint64_t u = out[k].first;
		     u < out[k].first + out[k].count && named < ROUND_UNITS; u++, named++) {
			if (r->state[u] & RESIDENT) {
				evict(r, u);
				gone++;
			} else {
				r->out->named_in_vain++;
			}
		}
	return gone || !urgent ? gone : sweep(r, want);
}

static void keep_limit(struct replay *r)
{
	uint64_t limit = r->setup->limit_units, room = limit - r->target;

	/* An evictor finds more than one unit to take by the time it runs. */
	if (!limit || r->resident <= r->target + room / 16)
		return;
	for (int k = 0; k < ROUNDS && r->resident > r->target; k++) {
		bool urgent = r->resident > limit - room / 2;

		if (!round_of(r, r->resident - r->target, urgent) && !urgent)
			break;
	}
	/* Faults that find no room at all wait until there is some. */
	while (r->resident > limit && round_of(r, r->resident - r->target, true))
		;
}

/* ---- loading ---- */

static void load(struct replay *r, uint64_t u, uint8_t how)
{
	r->state[u] = (uint8_t)((r->state[u] & STORED) | RESIDENT | TOUCHED | how);
	r->resident++;
	keep_limit(r);
}

static bool has_room(struct replay *r)
{
	uint64_t limit = r->setup->limit_units;

	return !limit || r->resident < r->target + (limit - r->target) / 2;
}

/* The prefetcher's thread works until now. */
static void fetch_until_now(struct replay *r)
{
	while (r->prefetch_free_at + r->setup->costs.prefetch_ns <= r->now) {
		struct queue *q = r->asks.head != r->asks.tail ? &r->asks : &r->bulk;
		struct ebb_range *range;
		uint64_t u;

		if (q->head == q->tail) {
			r->prefetch_free_at = r->now;
			return;
		}
		range = &q->range[q->tail % q->size];
		u = range->first;
		if (!has_room(r)) {
			/* As the engine does: what there is no room for is dropped. */
			for (uint64_t k = 0; k < range->count; k++)
				r->state[u + k] &= (uint8_t)~ASKED;
			q->tail++;
			continue;
		}
		range->first++;
		if (!--range->count)
			q->tail++;
		if ((r->state[u] & (RESIDENT | TOUCHED)) != TOUCHED)
			continue;
		r->prefetch_free_at += r->setup->costs.prefetch_ns;
		r->out->prefetched++;
		load(r, u, PREFETCHED);
	}
}

static void ask_ahead(struct replay *r, const struct ebb_fault *f)
{
	struct ebb_range out[ASKS_MAX];
	uint32_t n = policy_prefetch_fault(r->prefetch, f, out, ASKS_MAX);

	if (r->asks.head == r->asks.tail && r->bulk.head == r->bulk.tail)
		r->prefetch_free_at = r->now;
	for (uint32_t k = 0; k < n; k++)
		if (push(&r->asks, &out[k]))
			for (uint64_t u = out[k].first; u < out[k].first + out[k].count; u++)
				if ((r->state[u] & (RESIDENT | TOUCHED)) == TOUCHED)
					r->state[u] |= ASKED;
}

static void on_fault(struct replay *r, const struct step *s)
{
	const struct replay_costs *c = &r->setup->costs;
	uint64_t u = s->unit;
	bool loaded = r->state[u] & TOUCHED;
	struct ebb_fault f = {.unit = u,
			      .flags = (loaded ? EBB_FAULT_LOADED : EBB_FAULT_ZERO) |
				       (s->write ? EBB_FAULT_WRITE : 0),
			      .thread = s->thread};
	uint64_t cost = loaded ? c->fault_ns : c->zero_ns;
	bool refault = loaded && r->out->evictions - r->evicted_at[u] < r->recent;

	r->now += cost;
	f.time_ns = r->now;
	if (loaded) {
		r->out->misses++;
		r->out->refaults += refault;
		r->out->late += (r->state[u] & ASKED) != 0;
		r->stall_ns += cost;
		r->lost_ns += cost;
	} else {
		r->out->first++;
		r->touched++;
	}
	if (r->n_faults == FAULTS_KEPT)
		tell_faults(r);
	if (refault)
		r->refault[r->n_faults / 64] |= UINT64_C(1) << (r->n_faults % 64);
	r->fault[r->n_faults++] = f;
	load(r, u, PRESENT | (s->write ? DIRTY : 0));
	if (r->prefetch && loaded)
		ask_ahead(r, &f);
}

static void touch(struct replay *r, const struct step *s)
{
	const struct replay_costs *c = &r->setup->costs;
	uint8_t *state = &r->state[s->unit];

	r->now += s->wait_us * NS_PER_US + c->access_ns;
	fetch_until_now(r);
	r->out->accesses++;
	if (!(*state & RESIDENT)) {
		on_fault(r, s);
		return;
	}
	if (!(*state & PRESENT)) {
		/* A first use of what was prefetched costs the same as one of what was cleared. */
		r->out->minor += (*state & CLEARED) != 0;
		r->now += c->minor_ns;
		r->lost_ns += c->minor_ns;
	}
	*state |= PRESENT | (s->write ? DIRTY : 0);
}

/* ---- what comes from time to time ---- */

static void window(struct replay *r)
{
	struct ebb_access_window w = {.size = sizeof(w),
				      .count = r->units,
				      .watched = r->watched,
				      .accessed = r->accessed,
				      .window_ns = r->setup->costs.window_ns};

	if (!policy_wants_windows(r->reclaim))
		return;
	host_resident(r, 0, r->units, r->watched);
	host_accessed(r, 0, r->units, r->accessed);
	policy_on_access(r->reclaim, &w);
	for (uint64_t u = 0; u < r->units; u++)
		clear(r, u);
}

static void tick(struct replay *r)
{
	uint64_t want, gone = 1;

	tell_faults(r);
	want = policy_tick(r->reclaim, r->now);
	if (r->prefetch)
		policy_tick(r->prefetch, r->now);
	while (want && gone) {
		gone = round_of(r, want, false);
		want -= gone < want ? gone : want;
	}
}

static void keep_time(struct replay *r)
{
	if (r->now >= r->next_window) {
		window(r);
		r->next_window = r->now + r->setup->costs.window_ns;
	}
	if (r->now >= r->next_tick) {
		tick(r);
		r->next_tick = r->now + TICK_NS;
	}
}

/* ---- all of it ---- */

static int give(struct replay *r, struct policy *p, uint32_t role,
		const struct ebb_policy_option *opts, uint32_t n, struct policy_instance **out,
		struct error *e)
{
	if (!p)
		return 0;
	return policy_attach(p, &r->host, &r->vm, role, opts, n, out, e);
}

static int begin(struct replay *r, const struct replay_setup *setup, struct error *e)
{
	const struct sequence *s = setup->sequence;
	uint64_t limit = setup->limit_units, words = (s->units + 63) / 64;
	uint64_t headroom = limit / HEADROOM_PART;
	int err;

	if (headroom < HEADROOM_MIN)
		headroom = limit / 8 < HEADROOM_MIN ? limit / 8 : HEADROOM_MIN;
	r->setup = setup;
	r->units = s->units;
	r->target = limit > headroom ? limit - headroom : limit;
	/* Policies may take 0 for "never". */
	r->now = NS_PER_S;
	r->next_tick = r->now + TICK_NS;
	r->next_window = r->now + setup->costs.window_ns;
	r->recent = s->units / 32 < 256 ? 256 : s->units / 32 > 65536 ? 65536 : s->units / 32;
	r->host = (struct ebb_policy_host){.size = sizeof(r->host),
					   .abi_major = EBB_POLICY_ABI_MAJOR,
					   .abi_minor = EBB_POLICY_ABI_MINOR,
					   .ctx = r,
					   .resident = host_resident,
					   .evicted = host_evicted,
					   .clear_accessed = host_clear,
					   .accessed = host_accessed,
					   .blocks = host_blocks,
					   .now_ns = host_now,
					   .log = host_log,
					   .prefetch = host_prefetch,
					   .pressure = host_pressure};
	r->vm = (struct ebb_policy_vm){.size = sizeof(r->vm),
				       .name = "trace",
				       .units = s->units,
				       .seed = setup->costs.seed,
				       .window_ns = setup->costs.window_ns};
	r->asks.size = QUEUE;
	r->bulk.size = BULK_MAX;
	r->state = calloc(s->units, 1);
	r->evicted_at = calloc(s->units, sizeof(*r->evicted_at));
	r->refault = calloc(1, FAULTS_KEPT / 8);
	r->asks.range = calloc(QUEUE, sizeof(*r->asks.range));
	r->bulk.range = calloc(BULK_MAX, sizeof(*r->bulk.range));
	r->watched = calloc(words, 8);
	r->accessed = calloc(words, 8);
	if (!r->state || !r->evicted_at || !r->refault || !r->asks.range || !r->bulk.range ||
	    !r->watched || !r->accessed)
		return error_set(e, ENOMEM, ERROR_GENERIC, "not enough memory for the VM's state");
	err = give(r, setup->reclaim, EBB_POLICY_RECLAIM, setup->reclaim_opts,
		   setup->n_reclaim_opts, &r->reclaim, e);
	if (!err)
		err = give(r, setup->prefetch, EBB_POLICY_PREFETCH, setup->prefetch_opts,
			   setup->n_prefetch_opts, &r->prefetch, e);
	if (!err && limit)
		policy_on_limit(r->reclaim, 0, limit * s->unit_bytes);
	if (!err && limit && r->prefetch)
		policy_on_limit(r->prefetch, 0, limit * s->unit_bytes);
	return err;
}

static void finish(struct replay *r)
{
	struct replay_result *out = r->out;
	struct policy_instance *roles[] = {r->reclaim, r->prefetch};
	double touching = (double)out->accesses * (double)r->setup->costs.access_ns;

	/* What is still there counts as it is now. */
	for (uint64_t u = 0; u < r->units; u++)
		if (r->state[u] & PREFETCHED)
			tell_use(r, u, r->state[u] & PRESENT);
	out->saved = out->accesses ? r->saved_sum / (double)out->accesses : 0;
	out->slowdown = touching > 0 ? (double)r->lost_ns / touching : 0;
	for (int k = 0; k < 2; k++) {
		if (!roles[k])
			continue;
		if (policy_failed(roles[k]))
			snprintf(out->failed, sizeof(out->failed), "%s", policy_failed(roles[k]));
		out->n_stats[k] = policy_stats(roles[k], out->stats[k], 32);
		if (out->n_stats[k] > 32)
			out->n_stats[k] = 32;
	}
	out->state_bytes = policy_state_bytes(r->reclaim);
	if (r->prefetch)
		out->state_bytes += policy_state_bytes(r->prefetch);
}

int replay_run(const struct replay_setup *setup, struct replay_result *out, struct error *e)
{
	struct replay *r = calloc(1, sizeof(*r));
	int err;

	if (!r)
		return error_set(e, ENOMEM, ERROR_GENERIC, "out of memory");
	memset(out, 0, sizeof(*out));
	r->out = out;
	err = begin(r, setup, e);
	for (uint64_t k = 0; !err && k < setup->sequence->n; k++) {
		touch(r, &setup->sequence->step[k]);
		r->saved_sum += 1 - (double)r->resident / (double)(r->touched ? r->touched : 1);
		keep_time(r);
	}
	if (!err)
		finish(r);
	policy_detach(r->reclaim);
	policy_detach(r->prefetch);
	free(r->state);
	free(r->evicted_at);
	free(r->refault);
	free(r->asks.range);
	free(r->bulk.range);
	free(r->watched);
	free(r->accessed);
	free(r);
	return err;
}
