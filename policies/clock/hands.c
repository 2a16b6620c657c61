/* SPDX-License-Identifier: BSD-3-Clause */
/* hands.c: the two hands of the clock, and the sweep of last resort. */
#include <errno.h>
#include <string.h>

#include "clock.h"

#define EIGHT_CLEARED	   UINT64_C(0x0808080808080808)
#define RANGES_BATCH	   128
#define DISTANCE_MIN_UNITS 64
/* How many chunks whose accesses cannot be forgotten one call passes over. */
#define REFUSALS_MAX 256

static uint64_t min_u64(uint64_t a, uint64_t b)
{
	return a < b ? a : b;
}

static unsigned int level_of(const struct clock *c, uint64_t unit)
{
	return c->state[unit] & STATE_LEVEL;
}

static void set_level(struct clock *c, uint64_t unit, unsigned int level)
{
	c->state[unit] = (uint8_t)((c->state[unit] & ~STATE_LEVEL) | level);
}

bool pick_add(struct clock *c, struct pick *p, uint64_t unit)
{
	if (p->n && p->out[p->n - 1].first + p->out[p->n - 1].count == unit)
		p->out[p->n - 1].count++;
	else if (p->n < p->max)
		p->out[p->n++] = (struct ebb_range){unit, 1};
	else
		return false;
	p->found++;
	idle_forget(c, unit);
	set_level(c, unit, LEVEL_NAMED);
	return true;
}

void pick_done(struct clock *c, const struct pick *p)
{
	for (uint32_t r = 0; r < p->n; r++)
		for (uint64_t u = 0; u < p->out[r].count; u++)
			set_level(c, p->out[r].first + u, 0);
}

void hands_reset(struct clock *c)
{
	c->front = 0;
	c->spans = 0;
	c->lead = 0;
	c->outstanding = 0;
	c->sweep = 0;
	c->counting = 0;
	c->whole_round = true;
}

/*
 * Until the front hand has been out for a while nobody knows what is cold, and the first victims
 * are as good as chosen by address. So the hands do not begin at either end of the guest's memory,
 * where its kernel has its text and its page structures.
 */
void hands_place(struct clock *c, uint64_t seed)
{
	uint64_t quarter = c->units / 4;

	c->front = quarter;
	if (quarter)
		c->front += (seed * UINT64_C(0x9e3779b97f4a7c15) >> 11) % quarter;
	/* The sweep begins apart, so that it does not take what is just being found out about. */
	c->sweep = c->front + quarter;
	c->whole_round = c->front == 0;
}

/* ---- the distance between the hands ---- */

static void count_resident(struct clock *c)
{
	uint64_t bitmap[CHUNK_WORDS];

	c->resident = 0;
	for (uint64_t first = 0; first < c->units; first += CHUNK_UNITS) {
		uint64_t n = min_u64(CHUNK_UNITS, c->units - first);

		c->host->resident(c->host->ctx, first, n, bitmap);
		for (uint64_t w = 0; w < (n + 63) / 64; w++)
			c->resident += (uint64_t)__builtin_popcountll(bitmap[w]);
	}
}

static uint64_t distance(const struct clock *c)
{
	uint64_t permille = c->distance_percent ? c->distance_percent * 10 : c->distance_permille;
	uint64_t units = c->resident * permille / 1000;

	return units < DISTANCE_MIN_UNITS ? DISTANCE_MIN_UNITS : units;
}

/*
 * Where nearly all is found cold the hands are too close to tell pages apart, and where nearly all
 * is found hot they are too far: between the two the clock can rank.
 */
static void adapt_distance(struct clock *c)
{
	if (c->seen < 1024 || c->seen < distance(c) / 4)
		return;
	if (c->seen_cold > c->seen / 8 * 7)
		c->distance_permille = min_u64(c->distance_permille * 9 / 8, 500);
	else if (c->seen_cold < c->seen / 8)
		c->distance_permille = c->distance_permille * 8 / 9;
	if (c->distance_permille < 60)
		c->distance_permille = 60;
	c->seen = 0;
	c->seen_cold = 0;
}

/* ---- the front hand: forgets accesses ---- */

/*
 * A unit that was hot L times in a row is left alone for a while (vTMM, EuroSys 2023, section on
 * its page tracking): it is cleared in one of 2^(L-1) rounds. Which one differs from unit to unit,
 * so that each round costs the same.
 */
static bool backs_off(const struct clock *c, uint64_t unit)
{
	unsigned int level = level_of(c, unit);

	if (!c->back_off || level < 2)
		return false;
	return (c->round + (unit * UINT64_C(0x9e3779b97f4a7c15) >> 40)) & ((1u << (level - 1)) - 1);
}

/* The span that the front hand is filling. */
static struct span *newest_span(struct clock *c)
{
	struct span *s = c->spans ? &c->span[(c->oldest + c->spans - 1) % SPANS_MAX] : NULL;

	if (s && s->end == c->front &&
	    (c->spans == SPANS_MAX || s->cleared < distance(c) / (SPANS_MAX / 2)))
		return s;
	if (c->spans == SPANS_MAX)
		return NULL;
	s = &c->span[(c->oldest + c->spans++) % SPANS_MAX];
	*s = (struct span){.first = c->front, .end = c->front};
	return s;
}

/* What one step of the front hand clears. */
struct clearing {
	uint64_t wanted[CHUNK_WORDS]; /* units, from front on */
	struct ebb_range ranges[RANGES_BATCH];
	uint32_t used;
	uint64_t units;
};

/*
 * Chooses up to `most` resident units of [front, front + n); returns how far it came. Ranges are
 * joined over what is not resident: there is nothing to clear in between, and each range costs the
 * host a system call's worth, however short it is.
 */
static uint64_t choose(struct clock *c, uint64_t n, uint64_t most, struct clearing *x)
{
	uint64_t joined_from = 0, k; /* no range that ends before this one may be lengthened */

	x->used = 0;
	x->units = 0;
	c->host->resident(c->host->ctx, c->front, n, x->wanted);
	for (k = 0; k < n && x->units < most; k++) {
		uint64_t unit = c->front + k;
		struct ebb_range *last = x->used ? &x->ranges[x->used - 1] : NULL;

		if (!x->wanted[k / 64]) {
			k |= 63;
			continue;
		}
		if (!bit_test(x->wanted, k))
			continue;
		if (backs_off(c, unit)) {
			x->wanted[k / 64] &= ~(UINT64_C(1) << (k % 64));
			joined_from = unit;
			c->counting++;
			c->backed_off++;
			continue;
		}
		if (last && last->first >= joined_from)
			last->count = unit - last->first + 1;
		else if (x->used == RANGES_BATCH)
			break;
		else
			x->ranges[x->used++] = (struct ebb_range){unit, 1};
		x->units++;
	}
	return min_u64(k, n);
}

/*
 * Clears up to `most` units of [front, front + n); returns how far it came, or -errno. A RAM block
 * without a tracker is passed over: there may be others. Its units are left to the sweep.
 */
static int64_t clear_chunk(struct clock *c, uint64_t n, uint64_t most, uint64_t *cleared)
{
	struct clearing x;
	uint64_t moved = choose(c, n, most, &x);
	int r = x.used ? c->host->clear_accessed(c->host->ctx, x.ranges, x.used) : 0;

	if (r && r != -ENOTSUP)
		return r;
	*cleared = r ? 0 : x.units;
	c->counting += x.units;
	c->refused = r ? c->refused + x.units : x.used ? 0 : c->refused;
	for (uint64_t k = 0; *cleared && k < moved; k++)
		if (bit_test(x.wanted, k))
			c->state[c->front + k] |= STATE_CLEARED;
	return (int64_t)moved;
}

static void finish_round(struct clock *c)
{
	if (c->whole_round)
		c->resident = c->counting;
	c->whole_round = true;
	c->counting = 0;
	c->front = 0;
	c->round++;
}

/* Moves on until the hands are `distance` apart, or budget units were cleared. */
void hands_front(struct clock *c, uint64_t budget)
{
	uint64_t walked = 0, refusals = 0;

	if (!c->resident)
		count_resident(c);
	/* Never over the back hand, and never more than once around in one call. */
	while (budget && walked < c->units && c->outstanding < distance(c)) {
		uint64_t n = min_u64(CHUNK_UNITS, c->units - c->front);
		struct span *s;
		uint64_t cleared;
		int64_t moved;

		n = min_u64(n, c->units - c->lead);
		s = n ? newest_span(c) : NULL;
		if (!s)
			return;
		moved = clear_chunk(c, n, min_u64(budget, distance(c) - c->outstanding), &cleared);
		if (moved < 0)
			return;
		if (c->refused && c->refused >= c->resident) {
			c->refused = 0;
			c->blind = true;
			hands_reset(c);
			return;
		}
		s->end += (uint64_t)moved;
		s->cleared += cleared;
		s->time_ns = c->host->now_ns(c->host->ctx);
		c->lead += (uint64_t)moved;
		c->front += (uint64_t)moved;
		c->outstanding += cleared;
		c->cleared += cleared;
		budget -= cleared;
		walked += (uint64_t)moved;
		if (c->front == c->units)
			finish_round(c);
		refusals += c->refused > 0;
		if (refusals == REFUSALS_MAX)
			return;
	}
}

/* ---- the back hand: takes what was not used since ---- */

/* False: no room for a victim, the unit stays as it is. */
static bool examine(struct clock *c, struct pick *p, uint64_t unit, bool resident, bool accessed)
{
	unsigned int level = level_of(c, unit);

	if (level == LEVEL_NAMED)
		resident = false;
	if (resident && !accessed && level < 2) {
		if (!pick_add(c, p, unit))
			return false;
	} else if (resident) {
		/* One that was steadily hot gets a second round before it goes. */
		if (accessed)
			set_level(c, unit, level < LEVEL_MAX ? level + 1 : LEVEL_MAX);
		else
			set_level(c, unit, level / 2);
		c->kept_hot += accessed;
	}
	c->state[unit] &= (uint8_t)~STATE_CLEARED;
	c->scanned += resident;
	c->seen += resident;
	c->seen_cold += resident && !accessed;
	return true;
}

void hands_touched(struct clock *c, uint64_t unit)
{
	unsigned int level = level_of(c, unit);

	if (!(c->state[unit] & STATE_CLEARED))
		return;
	set_level(c, unit, level < LEVEL_MAX ? level + 1 : LEVEL_MAX);
	c->state[unit] &= (uint8_t)~STATE_CLEARED;
	c->kept_hot++;
}

/* Examines what the span's next chunk has; returns false when the pick is complete. */
static bool back_chunk(struct clock *c, struct span *s, struct pick *p)
{
	uint64_t first = s->first, n = min_u64(CHUNK_UNITS, s->end - s->first), k;
	uint64_t resident[CHUNK_WORDS], accessed[CHUNK_WORDS];
	bool more = true;

	c->host->resident(c->host->ctx, first, n, resident);
	if (c->host->accessed(c->host->ctx, first, n, accessed))
		memset(accessed, 0xff, sizeof(accessed));
	for (k = 0; k < n && more; k++) {
		uint64_t eight;

		if (k + 8 <= n) {
			memcpy(&eight, &c->state[first + k], sizeof(eight));
			if (!(eight & EIGHT_CLEARED)) {
				k += 7;
				continue;
			}
		}
		if (!(c->state[first + k] & STATE_CLEARED))
			continue;
		if (!examine(c, p, first + k, bit_test(resident, k), bit_test(accessed, k)))
			break;
		s->cleared -= s->cleared > 0;
		c->outstanding -= c->outstanding > 0;
		more = p->found < p->want;
	}
	s->first += k;
	c->lead -= k;
	return more && k == n;
}

void hands_back(struct clock *c, struct pick *p, bool urgent)
{
	uint64_t now = c->host->now_ns(c->host->ctx);
	/* Where all is hot, the work must still be in proportion to the demand. */
	uint64_t stop = c->scanned + (urgent ? c->units : 16 * p->want + CHUNK_UNITS);

	while (c->spans && p->found < p->want && c->scanned < stop) {
		struct span *s = &c->span[c->oldest];

		if (!urgent && now - s->time_ns < c->chance_ns)
			break;
		if (s->first < s->end && !back_chunk(c, s, p))
			break;
		if (s->first < s->end)
			continue;
		c->outstanding -= min_u64(c->outstanding, s->cleared);
		c->oldest = (c->oldest + 1) % SPANS_MAX;
		c->spans--;
	}
	adapt_distance(c);
}

/* ---- when there is nothing cold, or nobody can tell ---- */

void hands_sweep(struct clock *c, struct pick *p)
{
	/* Levels halve on the way, so the fourth time around everything is fair game. */
	uint64_t left = 4 * c->units;
	uint64_t bitmap[CHUNK_WORDS];
	bool room = true;

	while (left && room && p->found < p->want) {
		uint64_t n = min_u64(CHUNK_UNITS, c->units - c->sweep), k;

		c->host->resident(c->host->ctx, c->sweep, n, bitmap);
		for (k = 0; k < n && p->found < p->want; k++) {
			uint64_t unit = c->sweep + k;

			if (!bitmap[k / 64]) {
				k |= 63;
				continue;
			}
			if (!bit_test(bitmap, k) || level_of(c, unit) == LEVEL_NAMED)
				continue;
			if (level_of(c, unit)) {
				set_level(c, unit, level_of(c, unit) / 2);
				continue;
			}
			room = pick_add(c, p, unit);
			if (!room)
				break;
		}
		k = min_u64(k, n);
		c->sweep += k;
		if (c->sweep == c->units)
			c->sweep = 0;
		left -= min_u64(left, k);
	}
}
