/* SPDX-License-Identifier: BSD-3-Clause */
/* fake_vm.h: a VM made of arrays, for tests of policies: residency, accesses, a limit, a clock. */
#ifndef TESTS_FAKE_VM_H
#define TESTS_FAKE_VM_H

#include <stdbool.h>
#include <stdint.h>

#include "ebb/policy.h"
#include "plugin/policy_host.h"

enum fake_state { FAKE_UNTOUCHED, FAKE_RESIDENT, FAKE_EVICTED, FAKE_PINNED };

struct fake_vm {
	struct ebb_policy_host host;
	struct ebb_policy_vm vm;
	struct ebb_block block[4];
	uint32_t blocks;
	uint64_t units, resident, now_ns;
	uint8_t *state;	   /* enum fake_state */
	uint8_t *accessed; /* since it was last cleared or loaded */
	uint8_t *window;   /* accessed in this window */
	bool tracker;
	uint64_t untracked; /* units below this one cannot be cleared */
	bool windows_clear; /* a window makes the host forget, as the engine's tracker does */

	/* The engine's part, when there is a limit. */
	uint64_t limit, headroom; /* units; limit 0: none */
	struct policy_instance *reclaim, *prefetch;

	uint64_t faults, hits, evictions, cleared_units, cleared_ranges, clear_calls, prefetched,
		prefetch_used;
	uint64_t bad_victims;		     /* named though not resident */
	uint64_t urgent_calls, urgent_empty; /* nothing named although something was resident */
	struct ebb_pressure pressure;	     /* what the policy is told; time_ns is ours */
	uint64_t bulk_asked;	 /* units that host->prefetch() was asked for: they come at once */
	uint64_t bulk_order[64]; /* the first of them */
	uint32_t bulk_room;	 /* so many ranges are taken, then the queue is full; 0: no end */
	uint64_t logged;
	char last_log[300];
};

/* One RAM block of `units` 4 KiB units, nothing touched, with a tracker. */
void fake_vm_init(struct fake_vm *v, uint64_t units);
void fake_vm_free(struct fake_vm *v);
void fake_vm_grow(struct fake_vm *v, uint64_t units);

/* The guest touches a unit; faults, eviction and prefetch happen as in the engine. True: a hit. */
bool fake_vm_touch(struct fake_vm *v, uint64_t unit);
/* Asks for victims and evicts them; returns how many units went. */
uint64_t fake_vm_reclaim(struct fake_vm *v, uint64_t want, bool urgent);
/* Evicts or loads one without any policy. */
void fake_vm_set(struct fake_vm *v, uint64_t unit, enum fake_state state);
/* Ends an access window of this length over all units and reports it. */
void fake_vm_window(struct fake_vm *v, uint64_t window_ns);

/* The value of one of an instance's stats; the test fails when there is none of that name. */
uint64_t fake_stat(struct policy_instance *i, const char *name);
/* Loads a policy from $EBB_BUILD/<sub>/policies; the test fails when it cannot. */
struct policy *fake_load(const char *sub, const char *name);

/* ---- access patterns ---- */

struct zipf {
	uint64_t n;
	double *cdf;
	uint64_t *place; /* rank to unit */
};
void zipf_init(struct zipf *z, uint64_t n, double alpha, uint64_t *rng);
uint64_t zipf_next(const struct zipf *z, uint64_t *rng);
void zipf_free(struct zipf *z);
uint64_t fake_random(uint64_t *rng);

/* Least recently used, exactly: what the clock is compared to. */
struct lru {
	uint64_t units, limit, resident, hits, faults;
	uint64_t *next, *prev; /* of units; index units is the list's head */
	bool *in;
};
void lru_init(struct lru *l, uint64_t units, uint64_t limit);
bool lru_touch(struct lru *l, uint64_t unit);
void lru_free(struct lru *l);

#endif
