/* SPDX-License-Identifier: BSD-3-Clause */
/* score.h: what all prefetchers count: how much of their advice was right, and in time. */
#ifndef COMMON_SCORE_H
#define COMMON_SCORE_H

#include <stdatomic.h>
#include <stdint.h>

#include "ebb/policy.h"

/*
 * accuracy: of what was fetched, how much was used. coverage: of what was used or missed, how much
 * had been fetched. timeliness: of what was asked for and wanted, how much was there in time. A use
 * is told when the unit's accesses are cleared or it is evicted, so these lag behind. Which units
 * were asked for is remembered in a small table, by hash: late ones are counted too seldom rather
 * than too often. on_fault may call score_fault() and score_asked().
 */
#define SCORE_ASKED 1024u

struct score {
	_Atomic uint64_t faults, ranges, advised, used, unused, late;
	_Atomic uint64_t asked[SCORE_ASKED]; /* unit + 1 */
};

#define SCORE_STATS 9

void score_fault(struct score *s, const struct ebb_fault *fault);
void score_asked(struct score *s, const struct ebb_range *ranges, uint32_t n);
/* on_outcome. */
void score_outcome(struct score *s, uint32_t outcome, uint32_t n);
/* Fills SCORE_STATS entries. */
void score_stats(const struct score *s, struct ebb_policy_stat *out);

#endif
