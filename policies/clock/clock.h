/* SPDX-License-Identifier: BSD-3-Clause */
/* clock.h: the state of one two-handed clock, shared by its files. */
#ifndef CLOCK_H
#define CLOCK_H

#include <stdbool.h>
#include <stdint.h>

#include "ebb/policy.h"

/* How many units are looked at in one step of a hand: a bitmap of 512 bytes. */
#define CHUNK_UNITS 4096
#define CHUNK_WORDS (CHUNK_UNITS / 64)
#define SPANS_MAX   128

/*
 * One byte per unit. LEVEL counts how often in a row the unit was found hot. CLEARED: the front
 * hand has passed and the back hand has not. AGE counts eighths of idle-age without an access, so
 * that its top bit alone means "idle".
 */
#define STATE_LEVEL   0x07
#define STATE_CLEARED 0x08
#define STATE_AGE     0xf0
#define STATE_IDLE    0x80
#define AGE_STEP      0x10
#define AGE_STEPS     8

#define LEVEL_MAX     5 /* looked at every 16th round */
#define LEVEL_REFAULT 2
#define LEVEL_NAMED   7 /* not a level: named in the pick under way, not to be named again */

/* Units that the front hand has passed at about the same time and the back hand has not reached. */
struct span {
	uint64_t first, end;
	uint64_t cleared; /* of them still to be examined */
	uint64_t time_ns; /* when the last of them was cleared */
};

struct clock {
	const struct ebb_policy_host *host;
	uint8_t *state;
	uint64_t units, allocated;

	/* Hands. Spans are oldest first, and cover [back, front) without a gap. */
	uint64_t front, round;
	struct span span[SPANS_MAX];
	unsigned int oldest, spans;
	uint64_t lead;		     /* units in all spans */
	uint64_t outstanding;	     /* of them cleared and not examined */
	uint64_t resident, counting; /* as counted over the front hand's last round; this one's */
	bool whole_round;	    /* this round began at the first unit: its count will be good */
	uint64_t distance_permille; /* of resident, as adapted */
	uint64_t seen, seen_cold;   /* since the distance was last adapted */
	uint64_t sweep;		    /* hand of the last resort */
	uint64_t refused;	    /* units in a row that the host could not clear */
	bool blind;		    /* the VM has no tracker */
	uint32_t blind_calls;

	/* Proactive reclaim. */
	uint64_t idle_units, idle_hand;
	uint64_t random;

	/* Options. */
	uint32_t distance_percent; /* 0: adapted */
	uint64_t chance_ns;
	bool back_off;
	bool proactive;
	uint64_t idle_age_ns;

	/* Counters. */
	uint64_t scanned, cleared, backed_off, kept_hot, picked, urgent_picks, idle_picks, refaults;
};

/* Collects victims into the engine's array, joining neighbours. */
struct pick {
	struct ebb_range *out;
	uint32_t max, n;
	uint64_t want, found;
};

/* Names a victim. False, and nothing changed, when there is no room for another range. */
bool pick_add(struct clock *c, struct pick *p, uint64_t unit);
/* The pick is complete: its victims begin anew if they come back. */
void pick_done(struct clock *c, const struct pick *p);

static inline bool bit_test(const uint64_t *bitmap, uint64_t bit)
{
	return bitmap[bit / 64] >> (bit % 64) & 1;
}

/* hands.c */
void hands_back(struct clock *c, struct pick *p, bool urgent);
void hands_front(struct clock *c, uint64_t budget);
/* An access window saw the unit in use, and made the host forget it. */
void hands_touched(struct clock *c, uint64_t unit);
/* Takes the first of what is resident, least often hot first. */
void hands_sweep(struct clock *c, struct pick *p);
void hands_reset(struct clock *c);
/* Where the hands begin. */
void hands_place(struct clock *c, uint64_t seed);

/* idle.c */
void idle_window(struct clock *c, const struct ebb_access_window *w);
void idle_pick(struct clock *c, struct pick *p);
/* How many units are idle and resident. */
uint64_t idle_count(struct clock *c);
/* The unit was used, or is gone. */
void idle_forget(struct clock *c, uint64_t unit);
void idle_reset(struct clock *c);

#endif
