/* SPDX-License-Identifier: BSD-3-Clause */
/* replay.h: a VM under a limit, with a policy in each role, replays a sequence of touches. */
#ifndef SIM_REPLAY_H
#define SIM_REPLAY_H

#include <stdint.h>

#include "plugin/policy_host.h"
#include "sim/sequence.h"

/* What things cost in the replay, and the daemon's own settings. */
struct replay_costs {
	uint64_t access_ns;   /* a touch of what is mapped */
	uint64_t fault_ns;    /* a demand load */
	uint64_t zero_ns;     /* a first touch */
	uint64_t minor_ns;    /* a touch of what the tracker took out of the page table */
	uint64_t prefetch_ns; /* of the prefetcher's thread, for a unit */
	uint64_t window_ns;   /* access windows */
	uint64_t seed;
};

struct replay_setup {
	const struct sequence *sequence;
	struct replay_costs costs;
	uint64_t limit_units;		   /* 0: none */
	struct policy *reclaim, *prefetch; /* loaded; NULL: none */
	const struct ebb_policy_option *reclaim_opts, *prefetch_opts;
	uint32_t n_reclaim_opts, n_prefetch_opts;
};

struct replay_result {
	uint64_t accesses, first; /* touches, and those of units never touched before */
	uint64_t misses;	  /* demand loads */
	uint64_t refaults;	  /* of them soon after the eviction, as the daemon counts */
	uint64_t evictions;
	uint64_t prefetched, used, unused; /* units fetched ahead, and what became of them */
	uint64_t late;		 /* misses of units that were asked for and not there yet */
	uint64_t cleared, minor; /* units cleared by the tracker; minor faults of that */
	uint64_t named_in_vain;	 /* victims that were not resident */
	uint64_t swept;		 /* victims that the policy did not name */
	double saved;		 /* evicted, of all that was touched; mean over time */
	double slowdown;	 /* time of misses and minor faults, to that of touches */
	uint64_t state_bytes;	 /* of both policies */
	struct ebb_policy_stat stats[2][32]; /* of the reclaimer and the prefetcher */
	uint32_t n_stats[2];
	char failed[160]; /* why a policy was put aside; "" */
};

/* 0 or -errno with e filled. */
int replay_run(const struct replay_setup *setup, struct replay_result *out, struct error *e);

#endif
