/* SPDX-License-Identifier: BSD-3-Clause */
/* score.c: what all prefetchers count: how much of their advice was right, and in time. */
#include "score.h"

#include "options.h"

static _Atomic uint64_t *slot(struct score *s, uint64_t unit)
{
	return &s->asked[unit * UINT64_C(0x9e3779b97f4a7c15) >> 54];
}

void score_fault(struct score *s, const struct ebb_fault *fault)
{
	_Atomic uint64_t *at = slot(s, fault->unit);

	add(s->faults, 1);
	if (get(*at) == fault->unit + 1) {
		set(*at, 0);
		add(s->late, 1);
	}
}

void score_asked(struct score *s, const struct ebb_range *ranges, uint32_t n)
{
	uint64_t units = 0;

	for (uint32_t r = 0; r < n; r++) {
		units += ranges[r].count;
		/* More than the table holds is not remembered. */
		for (uint64_t k = 0; k < ranges[r].count && k < SCORE_ASKED / 4; k++)
			set(*slot(s, ranges[r].first + k), ranges[r].first + k + 1);
	}
	add(s->ranges, n);
	add(s->advised, units);
}

void score_outcome(struct score *s, uint32_t outcome, uint32_t n)
{
	if (outcome == EBB_OUTCOME_USED)
		add(s->used, n);
	else if (outcome == EBB_OUTCOME_UNUSED)
		add(s->unused, n);
}

static uint64_t permille(uint64_t a, uint64_t b)
{
	return b ? a * 1000 / b : 0;
}

void score_stats(const struct score *s, struct ebb_policy_stat *out)
{
	uint64_t used = get(s->used), unused = get(s->unused), faults = get(s->faults);
	const struct ebb_policy_stat stats[SCORE_STATS] = {
		{"faults", "Faults seen", faults, 1, 0},
		{"ranges", "Ranges named to fetch ahead", get(s->ranges), 1, 0},
		{"advised", "Units named to fetch ahead", get(s->advised), 1, 0},
		{"used", "Units fetched ahead and then used", used, 1, 0},
		{"unused", "Units fetched ahead and evicted again unused", unused, 1, 0},
		{"late", "Faults on units that were asked for and not there yet", get(s->late), 1,
		 0},
		{"accuracy-permille", "Units used, of those fetched", permille(used, used + unused),
		 0, 0},
		{"coverage-permille", "Units fetched ahead and used, of all that were wanted",
		 permille(used, used + faults), 0, 0},
		{"timeliness-permille", "Units there in time, of those asked for and wanted",
		 permille(used, used + get(s->late)), 0, 0},
	};

	for (unsigned int k = 0; k < SCORE_STATS; k++)
		out[k] = stats[k];
}
