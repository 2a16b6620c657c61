/* SPDX-License-Identifier: BSD-3-Clause */
/* replay.c: a prefetcher that brings a VM's working set back in bulk when its limit is raised. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "common/options.h"
#include "common/score.h"
#include "ebb/policy.h"

/*
 * Theory of operation
 *
 * When a limit is raised, what the VM wants back is what was touched first after the raise before,
 * and beyond that what was evicted last. (Working-set restore of Flexible Swapping for the Cloud,
 * arXiv 2409.13327; batch swap-in after a balloon is given back, MemFlex; first-touch order as in
 * REAP, Ustiugov et al., ASPLOS 2021.) So after each raise the units that fault are recorded in
 * their order; at the next one they are brought back in that order, then what was evicted since,
 * the last first, then the rest by address, as far as the new limit has room. All of it goes
 * through the host's bulk queue, behind faults: demand is served first, and what a fault has
 * brought back meanwhile is passed over.
 *
 * Where there is room for all that is evicted, the order matters less than how soon the last is
 * there: each unit brings its neighbours along, an aligned group of 64 KiB, since the host loads a
 * run of units for less than it loads them one by one. Nothing is asked for twice in a restore.
 *
 * Between raises it fetches nothing, but `ahead` units behind a fault, which is 0.
 *
 * State: three lists of an eighth of the units, four bytes an entry, and a bit a unit (0.04 % of
 * RAM with 4 KiB units). on_fault appends to the record with one atomic addition; all else is
 * serial.
 */

#define LIST_MIN    1024u
#define BATCH	    64u
#define GROUP_UNITS 16u
#define GROUP_BYTES (UINT64_C(64) << 10)
#define WORD_UNITS  64u
#define SAVE_MAGIC  0x594c5052u /* "RPLY" */
#define AHEAD_LIMIT 64
#define NS_PER_S    UINT64_C(1000000000)

enum phase { RECORDED, EVICTED, BY_ADDRESS, DONE };

struct replay {
	const struct ebb_policy_host *host;
	struct score score;
	_Atomic uint64_t units;
	uint64_t size;		  /* of each list */
	uint32_t *order;	  /* what the last record was: the order to bring back in */
	_Atomic uint32_t *record; /* what is recorded now */
	uint64_t n_order;
	_Atomic uint64_t n_record; /* may count beyond size */
	uint32_t *evicted;	   /* a ring */
	uint64_t n_evicted;	   /* ever */
	_Atomic uint32_t ahead;

	/* The restore under way. */
	enum phase phase;
	uint64_t at, left;  /* next entry, units that may still be asked for */
	uint64_t group;	    /* units that go together: a power of two, 1: each by itself */
	uint64_t *asked;    /* a bit for each unit that the VM had when we were made */
	uint64_t allocated; /* how many those are */
	struct ebb_range batch[BATCH];
	uint32_t n_batch, batch_at; /* what the host has yet to take */
	uint64_t unit_bytes;
	uint64_t restores, restored;
};

static void replay_detach(void *instance)
{
	struct replay *x = instance;

	free(x->order);
	free((void *)x->record);
	free(x->evicted);
	free(x->asked);
	free(x);
}

static int replay_attach(const struct ebb_policy_host *host, const struct ebb_policy_vm *vm,
			 uint32_t role, void **instance, char *err, uint64_t err_len)
{
	struct ebb_block block = {.unit_bytes = 4096};
	struct replay *x;

	if (!EBB_POLICY_HAS(host, prefetch)) {
		static const char why[] = "this daemon brings nothing back in bulk";

		memcpy(err, why, err_len < sizeof(why) ? err_len : sizeof(why));
		return -ENOTSUP;
	}
	x = calloc(1, sizeof(*x));
	if (!x)
		return -ENOMEM;
	x->host = host;
	x->size = vm->units / 8 < LIST_MIN ? LIST_MIN : vm->units / 8;
	x->order = calloc(x->size, sizeof(*x->order));
	x->record = calloc(x->size, sizeof(*x->record));
	x->evicted = calloc(x->size, sizeof(*x->evicted));
	x->allocated = vm->units;
	x->asked = calloc(x->allocated / WORD_UNITS + 1, sizeof(*x->asked));
	if (!x->order || !x->record || !x->evicted || !x->asked) {
		replay_detach(x);
		return -ENOMEM;
	}
	host->blocks(host->ctx, &block, 1);
	x->unit_bytes = block.unit_bytes ? block.unit_bytes : 4096;
	set(x->units, vm->units);
	x->phase = DONE;
	*instance = x;
	return 0;
}

static int replay_on_resize(void *instance, uint64_t units)
{
	struct replay *x = instance;

	/* Lists stay as long as they are; what they name beyond the end is passed over. */
	set(x->units, units);
	return 0;
}

static int replay_config(void *instance, const struct ebb_policy_option *opt, char *err,
			 uint64_t err_len)
{
	struct replay *x = instance;

	if (strcmp(opt->name, "ahead") != 0)
		return -ENOENT;
	return option_shared(opt->value, 0, AHEAD_LIMIT, &x->ahead, err, err_len);
}

static uint32_t replay_on_fault(void *instance, const struct ebb_fault *fault,
				struct ebb_range *out, uint32_t max)
{
	struct replay *x = instance;
	uint32_t ahead = get(x->ahead);
	uint64_t at;

	score_fault(&x->score, fault);
	if (fault->unit > UINT32_MAX)
		return 0;
	/* When the record is full nothing is counted any more, so that it cannot wrap. */
	if (get(x->n_record) < x->size) {
		at = add(x->n_record, 1);
		if (at < x->size)
			set(x->record[at], (uint32_t)fault->unit);
	}
	if (!ahead || !max)
		return 0;
	out[0] = (struct ebb_range){fault->unit + 1, ahead};
	score_asked(&x->score, out, 1);
	return 1;
}

/* The next unit that the restore wants, evicted or not. False: the phase is over. */
static bool next_unit(struct replay *x, uint64_t *unit)
{
	uint64_t kept = x->n_evicted < x->size ? x->n_evicted : x->size;

	switch (x->phase) {
	case RECORDED:
		if (x->at == x->n_order)
			return false;
		*unit = x->order[x->at++];
		return true;
	case EVICTED:
		if (x->at == kept)
			return false;
		*unit = x->evicted[(x->n_evicted - 1 - x->at++) % x->size];
		return true;
	case BY_ADDRESS:
		if (x->at >= get(x->units))
			return false;
		*unit = x->at++;
		return true;
	case DONE:
		break;
	}
	return false;
}

/* The units of the group that the restore has yet to ask for; what is plugged later is in none. */
static uint64_t not_asked(const struct replay *x, uint64_t first, uint64_t count)
{
	uint64_t all = count < WORD_UNITS ? (UINT64_C(1) << count) - 1 : UINT64_MAX;

	if (first >= x->allocated)
		return all;
	return ~(x->asked[first / WORD_UNITS] >> first % WORD_UNITS) & all;
}

static void note_asked(struct replay *x, uint64_t unit)
{
	if (unit < x->allocated)
		bit_set(x->asked, unit);
}

/* Fills the batch with what comes next. A group is in it whole, or not yet. */
static void next_batch(struct replay *x)
{
	struct ebb_range *out = x->batch;
	uint32_t n = 0;

	while (x->phase != DONE && x->left && n + x->group <= BATCH) {
		uint64_t unit, first, wanted, evicted = 0;

		if (!next_unit(x, &unit)) {
			x->phase++;
			x->at = 0;
			continue;
		}
		if (unit >= get(x->units))
			continue;
		first = unit & ~(x->group - 1);
		wanted = not_asked(x, first, x->group);
		if (!(wanted >> (unit - first) & 1))
			continue;
		x->host->evicted(x->host->ctx, first, x->group, &evicted);
		wanted &= evicted;
		for (uint64_t k = 0; wanted >> k && x->left; k++) {
			if (!(wanted >> k & 1))
				continue;
			if (n && out[n - 1].first + out[n - 1].count == first + k)
				out[n - 1].count++;
			else
				out[n++] = (struct ebb_range){first + k, 1};
			note_asked(x, first + k);
			x->left--;
			x->restored++;
		}
	}
	x->n_batch = n;
	x->batch_at = 0;
}

/* Gives the host as much as it takes; the rest when its queue has run empty. */
static void feed(struct replay *x)
{
	for (;;) {
		if (x->batch_at == x->n_batch)
			next_batch(x);
		if (!x->n_batch)
			break;
		x->batch_at += x->host->prefetch(x->host->ctx, x->batch + x->batch_at,
						 x->n_batch - x->batch_at);
		if (x->batch_at < x->n_batch)
			return;
	}
	x->phase = DONE;
}

static uint64_t count_evicted(const struct replay *x)
{
	uint64_t n = 0, units = get(x->units);

	for (uint64_t u = 0; u < units; u += WORD_UNITS) {
		uint64_t word = 0, left = units - u;

		x->host->evicted(x->host->ctx, u, left < WORD_UNITS ? left : WORD_UNITS, &word);
		n += (uint64_t)__builtin_popcountll(word);
	}
	return n;
}

static void keep_record(struct replay *x)
{
	uint64_t n = get(x->n_record) < x->size ? get(x->n_record) : x->size;
	uint64_t old = x->n_order < x->size - n ? x->n_order : x->size - n;

	/* What had to be waited for comes first the next time; then what was there before. */
	memmove(x->order + n, x->order, old * sizeof(*x->order));
	for (uint64_t k = 0; k < n; k++)
		x->order[k] = get(x->record[k]);
	x->n_order = n + old;
	set(x->n_record, 0);
}

static void replay_on_limit(void *instance, const struct ebb_limit *limit)
{
	struct replay *x = instance;

	x->n_batch = x->batch_at = 0;
	if (!limit->old_bytes || (limit->new_bytes && limit->new_bytes <= limit->old_bytes)) {
		x->phase = DONE;
		return;
	}
	/* The record of the raise before ends here; its order is what this one goes by. */
	keep_record(x);
	x->left = limit->new_bytes ? (limit->new_bytes - limit->old_bytes) / x->unit_bytes
				   : UINT64_MAX;
	x->group = x->unit_bytes * GROUP_UNITS <= GROUP_BYTES && count_evicted(x) <= x->left
			   ? GROUP_UNITS
			   : 1;
	memset(x->asked, 0, (x->allocated / WORD_UNITS + 1) * sizeof(*x->asked));
	x->phase = RECORDED;
	x->at = 0;
	x->restores++;
	feed(x);
}

/* Faults under a low limit say little of what is wanted first: the record begins with the raise. */
static uint64_t replay_tick(void *instance, uint64_t now_ns)
{
	feed(instance);
	return 0;
}

static void replay_on_outcome(void *instance, uint32_t outcome, const uint64_t *units, uint32_t n)
{
	struct replay *x = instance;

	score_outcome(&x->score, outcome, n);
	if (outcome != EBB_OUTCOME_EVICTED && outcome != EBB_OUTCOME_CLEAN)
		return;
	for (uint32_t k = 0; k < n; k++)
		x->evicted[x->n_evicted++ % x->size] = (uint32_t)units[k];
}

static uint32_t replay_wants(void *instance)
{
	return EBB_POLICY_WANT_FAULTS | EBB_POLICY_WANT_EVICTIONS;
}

static uint32_t replay_stats(void *instance, struct ebb_policy_stat *out, uint32_t n)
{
	const struct replay *x = instance;
	struct ebb_policy_stat stats[SCORE_STATS + 5] = {
		{"restores", "Raised limits that memory was brought back for", x->restores, 1, 0},
		{"restored", "Units asked for because of that", x->restored, 1, 0},
		{"recorded", "Units whose order is known", x->n_order, 0, 0},
		{"restoring", "1 while there is more to ask for", x->phase != DONE, 0, 0},
		{EBB_POLICY_STAT_STATE_BYTES, "Memory held for this VM",
		 sizeof(*x) + x->size * 3 * sizeof(uint32_t) + x->allocated / 8, 0, 0},
	};

	score_stats(&x->score, stats + 5);
	memcpy(out, stats, (n < SCORE_STATS + 5 ? n : SCORE_STATS + 5) * sizeof(stats[0]));
	return SCORE_STATS + 5;
}

struct saved {
	uint32_t magic, reserved;
	uint64_t units, n_order;
};

static int64_t replay_save(void *instance, void *buf, uint64_t max)
{
	const struct replay *x = instance;
	const struct saved h = {.magic = SAVE_MAGIC, .units = get(x->units), .n_order = x->n_order};
	uint64_t bytes = sizeof(h) + x->n_order * sizeof(*x->order);

	if (bytes > max)
		return -ENOSPC;
	memcpy(buf, &h, sizeof(h));
	memcpy((char *)buf + sizeof(h), x->order, bytes - sizeof(h));
	return (int64_t)bytes;
}

static int replay_restore(void *instance, const void *buf, uint64_t bytes)
{
	struct replay *x = instance;
	struct saved h;

	if (bytes < sizeof(h))
		return -EINVAL;
	memcpy(&h, buf, sizeof(h));
	if (h.magic != SAVE_MAGIC || h.units != get(x->units) || h.n_order > x->size ||
	    bytes != sizeof(h) + h.n_order * sizeof(*x->order))
		return -EINVAL;
	memcpy(x->order, (const char *)buf + sizeof(h), bytes - sizeof(h));
	x->n_order = h.n_order;
	return 0;
}

static const char *const options[] = {
	"ahead: units to fetch behind every fault, beside restores (0-64), default 0",
	NULL,
};

__attribute__((visibility("default"))) const struct ebb_policy *ebb_policy_entry(void)
{
	static const struct ebb_policy policy = {
		.size = sizeof(policy),
		.abi_major = EBB_POLICY_ABI_MAJOR,
		.abi_minor = EBB_POLICY_ABI_MINOR,
		.roles = EBB_POLICY_PREFETCH,
		.name = "replay",
		.description = "Brings the working set back in bulk when the limit is raised",
		.option_help = options,
		.attach = replay_attach,
		.detach = replay_detach,
		.config = replay_config,
		.on_resize = replay_on_resize,
		.on_fault = replay_on_fault,
		.on_outcome = replay_on_outcome,
		.tick = replay_tick,
		.stats = replay_stats,
		.save = replay_save,
		.restore = replay_restore,
		.state_version = 1,
		.wants = replay_wants,
		.on_limit = replay_on_limit,
	};

	return &policy;
}
