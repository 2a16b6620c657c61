/* SPDX-License-Identifier: BSD-3-Clause */
/* idle.c: proactive reclaim: which units nobody used for so long that they can go unasked. */
#include <string.h>

#include "clock.h"

/*
 * The age of a unit is counted in eighths of idle-age. Windows are shorter than that and come at
 * irregular times, so an idle window makes a unit older by a step only with the probability
 * window / step: right on average, and four bits are enough. An access makes it young again.
 */

#define EIGHT_IDLE UINT64_C(0x8080808080808080)

void idle_reset(struct clock *c)
{
	for (uint64_t unit = 0; unit < c->units; unit++)
		c->state[unit] &= (uint8_t)~STATE_AGE;
	c->idle_units = 0;
}

void idle_forget(struct clock *c, uint64_t unit)
{
	c->idle_units -= c->idle_units && c->state[unit] & STATE_IDLE;
	c->state[unit] &= (uint8_t)~STATE_AGE;
}

static void grow_older(struct clock *c, uint64_t unit, unsigned int steps)
{
	unsigned int age = c->state[unit] / AGE_STEP;

	if (age >= AGE_STEPS)
		return;
	age = age + steps < AGE_STEPS ? age + steps : AGE_STEPS;
	c->state[unit] = (uint8_t)((c->state[unit] & ~STATE_AGE) | age * AGE_STEP);
	c->idle_units += age == AGE_STEPS;
}

/* How many steps this window is worth, for the next 64 units. */
static unsigned int window_steps(struct clock *c, uint64_t window_ns)
{
	uint64_t step_ns = c->idle_age_ns / AGE_STEPS;
	uint64_t whole = window_ns / step_ns;

	if (whole >= AGE_STEPS)
		return AGE_STEPS;
	/* xorshift64, G. Marsaglia 2003 */
	c->random ^= c->random << 13;
	c->random ^= c->random >> 7;
	c->random ^= c->random << 17;
	return (unsigned int)whole + (c->random % step_ns < window_ns % step_ns);
}

void idle_window(struct clock *c, const struct ebb_access_window *w)
{
	uint64_t count = w->count;

	if (w->first >= c->units)
		return;
	if (count > c->units - w->first)
		count = c->units - w->first;
	for (uint64_t k = 0; k < count; k += 64) {
		uint64_t watched = w->watched[k / 64], accessed = w->accessed[k / 64];
		unsigned int steps = window_steps(c, w->window_ns);

		if (count - k < 64)
			watched &= (UINT64_C(1) << (count - k)) - 1;
		for (; watched; watched &= watched - 1) {
			unsigned int bit = (unsigned int)__builtin_ctzll(watched);

			if (accessed >> bit & 1) {
				idle_forget(c, w->first + k + bit);
				/* The back hand would ask after the window, and find it idle. */
				hands_touched(c, w->first + k + bit);
			} else if (steps) {
				grow_older(c, w->first + k + bit, steps);
			}
		}
	}
}

/* The next unit at or after first, and before end, whose mark says that it is idle; else end. */
static uint64_t next_idle(const struct clock *c, uint64_t first, uint64_t end)
{
	uint64_t eight;

	for (; first < end; first++) {
		while (first + 8 <= end) {
			memcpy(&eight, &c->state[first], sizeof(eight));
			if (eight & EIGHT_IDLE)
				break;
			first += 8;
		}
		if (first < end && c->state[first] & STATE_IDLE)
			return first;
	}
	return end;
}

uint64_t idle_count(struct clock *c)
{
	uint64_t resident[CHUNK_WORDS];

	for (uint64_t first = 0; first < c->units && c->idle_units; first += CHUNK_UNITS) {
		uint64_t end = c->units - first < CHUNK_UNITS ? c->units : first + CHUNK_UNITS;
		uint64_t unit = next_idle(c, first, end);

		if (unit < end)
			c->host->resident(c->host->ctx, first, end - first, resident);
		for (; unit < end; unit = next_idle(c, unit + 1, end))
			if (!bit_test(resident, unit - first))
				idle_forget(c, unit);
	}
	return c->idle_units;
}

void idle_pick(struct clock *c, struct pick *p)
{
	uint64_t resident[CHUNK_WORDS];

	for (uint64_t walked = 0; walked < c->units && c->idle_units && p->found < p->want;) {
		uint64_t first = c->idle_hand;
		uint64_t end = c->units - first < CHUNK_UNITS ? c->units : first + CHUNK_UNITS;
		uint64_t unit = next_idle(c, first, end);

		if (unit < end)
			c->host->resident(c->host->ctx, first, end - first, resident);
		for (; unit < end && p->found < p->want; unit = next_idle(c, unit + 1, end)) {
			if (!bit_test(resident, unit - first)) {
				idle_forget(c, unit);
				continue;
			}
			if (!pick_add(c, p, unit))
				return;
			c->idle_picks++;
		}
		walked += unit - first;
		c->idle_hand = unit < c->units ? unit : 0;
	}
}
