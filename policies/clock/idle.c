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

void idle_pick(struct clock *c, struct pick *p)
{
	uint64_t resident[CHUNK_WORDS];

	for (uint64_t walked = 0; walked < c->units && c->idle_units && p->found < p->want;) {
		uint64_t first = c->idle_hand, n = c->units - first, k, eight;

		n = n < CHUNK_UNITS ? n : CHUNK_UNITS;
		c->host->resident(c->host->ctx, first, n, resident);
		for (k = 0; k < n && p->found < p->want; k++) {
			if (k + 8 <= n) {
				memcpy(&eight, &c->state[first + k], sizeof(eight));
				if (!(eight & EIGHT_IDLE)) {
					k += 7;
					continue;
				}
			}
			if (!(c->state[first + k] & STATE_IDLE))
				continue;
			if (bit_test(resident, k)) {
				if (!pick_add(c, p, first + k))
					return;
				c->idle_picks++;
			} else {
				idle_forget(c, first + k);
			}
		}
		walked += k;
		c->idle_hand = first + k < c->units ? first + k : 0;
	}
}
