/* SPDX-License-Identifier: BSD-3-Clause */
/* ages.h: states of units (for ranks.h) that count the rounds since the last use. */
#ifndef COMMON_AGES_H
#define COMMON_AGES_H

#include "common/ranks.h"

/*
 * Bits 0-7: rounds since the last use, AGE_MAX at most; 8-10: rounds in a row in which it was used;
 * 13: it is known at all; 14: its last use was made forgotten; 15: came in since the last round.
 * The age of an evicted unit goes on.
 */
#define AGE_MAX	       255u
#define AGE(state)     ((state)&0xffu)
#define STREAK(state)  ((state) >> 8 & 7u)
#define AGE_KNOWN      0x2000u
#define AGE_WATCHED    0x4000u
#define AGE_FRESH      RANKS_FRESH
#define AGE_STREAK_MAX 4

static inline uint16_t ages_pass(const struct ranks *r, uint64_t unit, uint16_t state,
				 bool accessed, bool *forget)
{
	uint32_t age = AGE(state), streak = STREAK(state);

	if (!accessed && !(state & AGE_FRESH)) {
		age += age < AGE_MAX;
		streak = 0;
	} else {
		age = 0;
		streak += streak < 7 && state & (AGE_WATCHED | AGE_FRESH);
	}
	*forget = accessed && !ranks_back_off(r, unit, streak, AGE_STREAK_MAX);
	return (uint16_t)(age | streak << 8 | AGE_KNOWN | (accessed && !*forget ? 0 : AGE_WATCHED));
}

/* Exact up to 32 rounds, in steps of 8 beyond. */
static inline unsigned int ages_rank_of(uint32_t age)
{
	return age <= 32 ? RANKS - 1 - age : RANKS - 1 - 32 - (age - 32) / 8;
}

static inline unsigned int ages_rank(const void *policy, uint16_t state)
{
	(void)policy;
	return state & AGE_FRESH ? RANKS - 1 : ages_rank_of(AGE(state));
}

#endif
