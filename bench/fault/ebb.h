/* SPDX-License-Identifier: BSD-3-Clause */
/* ebb.h: a daemon of its own and a VM attached to it. */
#ifndef BENCH_FAULT_EBB_H
#define BENCH_FAULT_EBB_H

#include <stdint.h>

#include "attach/native.h"
#include "guest.h"
#include "stress/daemon.h"

/* One daemon and one VM, this process. Ends the program where the daemon does not do its part. */
struct ebb {
	struct daemon daemon;
	struct native *client;
	struct native_ram mem;
	struct guest_ram ram;
};

struct ebb_overhead {
	double table_percent;  /* of guest RAM */
	double store_percent;  /* of what is stored */
	double policy_percent; /* of guest RAM */
};

struct ebb_counters {
	uint64_t faults, parked, evictions, evict_cpu_ns;
};

/* Fills `bytes` of RAM and attaches it. 0 or -errno: the memory cannot be had. */
int ebb_start(struct ebb *e, const struct guest_content *c, enum native_kind kind, uint64_t bytes);
/* Takes everything back that can be had; returns the bytes that are evicted now. */
uint64_t ebb_reclaim(struct ebb *e);
/* Sets a limit and waits until it is kept. */
void ebb_limit(struct ebb *e, uint64_t bytes);
void ebb_prefetch_policy(struct ebb *e, const char *name);
void ebb_overhead(struct ebb *e, struct ebb_overhead *out);
void ebb_counters(struct ebb *e, struct ebb_counters *out);
uint64_t ebb_number(struct ebb *e, const char *name);
/* CPU time that the daemon has taken, all of its threads. */
uint64_t ebb_cpu_ns(const struct ebb *e);
/* Detaches, verifies and ends the daemon; returns wrong pages. */
uint64_t ebb_stop(struct ebb *e, const struct guest_content *c);

#endif
