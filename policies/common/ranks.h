/* SPDX-License-Identifier: BSD-3-Clause */
/* ranks.h: looks at a VM's memory round after round, and finds what ranks as coldest. */
#ifndef COMMON_RANKS_H
#define COMMON_RANKS_H

#include <stdbool.h>
#include <stdint.h>

#include "ebb/policy.h"

/*
 * Theory of operation
 *
 * A hand goes round the units. Where it passes it asks which units were used since it passed the
 * last time, lets the policy make a new state of the old one (16 bits a unit, kept also while the
 * unit is evicted), and makes the host forget the uses of those that the policy wants to know about
 * next time; the others are left alone. What was not used, and whose rank (0: coldest) is at most a
 * threshold, becomes a candidate, and pick_victims is served from those at once.
 *
 * The hand is driven by need: it moves on when candidates have run out, and with time, so that a
 * round takes no longer than `interval_ns`, and no more of a CPU than `cpu_permille`. The threshold
 * is set by how many units each rank had in the last round, so that a round's candidates are about
 * `turn_permille` of what is resident: the smaller, the more rounds are made until all memory has
 * been replaced once, and the more is known of each unit, at more cost.
 *
 * Urgent: something is named as long as anything is resident: what ranks coldest of the next
 * chunks, used or not. Without a tracker (in the round before) nothing counts as used but what has
 * just been faulted in.
 *
 * All hooks are serial, so there is no lock. State: 2 bytes a unit and some 20 KiB.
 */

#define RANKS	    64
#define CHUNK_UNITS 4096
#define RANKS_FRESH 0x8000u /* in a state: came in since the hand passed; set by the policy */

/* What the policy is: its instance, which begins with its struct ranks. */
struct ranks_ops {
	/*
	 * The hand passes the unit. accessed: it is resident and was used since. Gives the new
	 * state; *forget: make its use forgotten, so that the next round tells.
	 */
	uint16_t (*pass)(void *policy, uint64_t unit, uint16_t state, bool resident, bool accessed,
			 bool *forget);
	/* 0 (coldest) to RANKS - 1. */
	unsigned int (*rank)(const void *policy, uint16_t state);
	/* May be NULL: a round is complete. */
	void (*round)(void *policy);
};

struct ranks {
	const struct ebb_policy_host *host;
	const struct ranks_ops *ops;
	uint16_t *state;
	uint64_t *passed_ns; /* when the hand passed each chunk */
	uint64_t units, allocated;
	uint64_t hand, round; /* rounds completed */
	uint64_t resident;    /* in the last round */
	uint64_t count[RANKS], counting[RANKS];
	unsigned int threshold, cap; /* cap: what is warmer is named only when it is urgent */
	uint64_t turn_permille, interval_ns, cpu_permille;
	uint64_t round_ns, last_round_ns; /* when this round began; how long the last one took */
	uint64_t tick_ns, busy_ns;	  /* the last tick; time spent scanning since */
	uint64_t look_cost_ns;		  /* ebb_pressure.look_cost_ns at the last tick */
	uint64_t passed_since;		  /* units since the last tick */
	uint64_t owed_units;		  /* that time asks for, not scanned yet */
	uint64_t sweep;			  /* hand of the last resort */
	uint64_t dry;			  /* chunks without a candidate in a row */
	uint64_t refused; /* chunks of this round that the host could not tell about */
	bool blind;
	uint32_t candidate[CHUNK_UNITS], n, at;
	uint64_t found_ns, found_first; /* when, and the chunk that they are of */
	/* Counters. */
	uint64_t passed, cleared, picked, urgent_picks, too_late;
};

/* 0 or -ENOMEM with err filled. turn, interval and CPU have defaults. */
int ranks_init(struct ranks *r, const struct ebb_policy_host *host, const struct ebb_policy_vm *vm,
	       const struct ranks_ops *ops, char *err, uint64_t err_len);
/* Scans what time asks for. */
void ranks_tick(struct ranks *r, uint64_t now_ns);
/* How many resident units had at most this rank in the last round. */
uint64_t ranks_at_most(const struct ranks *r, unsigned int rank);

/* ---- hooks, as they stand in struct ebb_policy; the instance came from malloc() ---- */

void ranks_detach(void *instance);
/* Knows "interval" (seconds) and "cpu" (percent). */
int ranks_config(void *instance, const struct ebb_policy_option *opt, char *err, uint64_t err_len);
int ranks_on_resize(void *instance, uint64_t units);
uint32_t ranks_pick_victims(void *instance, uint64_t want, int urgent, struct ebb_range *out,
			    uint32_t max);
/* States of all units, for a successor. */
int64_t ranks_save(void *instance, void *buf, uint64_t max);
int ranks_restore(void *instance, const void *buf, uint64_t bytes);
/* For the hook: the policy's own, then these, then the memory that `bytes` of instance hold. */
uint32_t ranks_stats(const struct ranks *r, uint64_t bytes, const struct ebb_policy_stat *own,
		     uint32_t n_own, struct ebb_policy_stat *out, uint32_t n);

/*
 * A unit that was used L rounds in a row is left alone in all but one of 2^(L-1) rounds (vTMM,
 * EuroSys 2023): each look costs the guest a fault. Which round it is differs from unit to unit, so
 * that every round costs the same. True: leave it alone now.
 */
static inline bool ranks_back_off(const struct ranks *r, uint64_t unit, unsigned int streak,
				  unsigned int max)
{
	if (streak > max)
		streak = max;
	if (streak < 2)
		return false;
	return (r->round + (unit * UINT64_C(0x9e3779b97f4a7c15) >> 40)) &
	       ((1u << (streak - 1)) - 1);
}

#endif
