/* SPDX-License-Identifier: BSD-3-Clause */
/* policy.h: the ABI between ebbd and a policy plugin (what to take, what to fetch ahead). */
#ifndef EBB_POLICY_H
#define EBB_POLICY_H

#include <stddef.h>
#include <stdint.h>

/*
 * Theory of operation
 *
 * A policy is a shared object in a plugin folder, policies/NAME.so, that exports
 * ebb_policy_entry(). It advises; the engine acts. Bad advice costs speed, never data: the engine
 * drops what is pinned, in flight, already gone or out of range.
 *
 * A policy has one or both roles: reclaim (which units to evict) and prefetch (which units to
 * bring back before they are asked for). Each VM has one instance for each role (`policy-set`),
 * made by attach() and ended by detach().
 *
 * Addresses are unit numbers of the VM: 0 to vm->units - 1, over all its RAM blocks one behind the
 * other. A unit is what one page-table entry describes: 4 KiB, or 2 MiB with huge pages; a VM may
 * have both, block by block, see struct ebb_block. RAM blocks that are plugged later come behind
 * the others (on_resize), and unplugged ones leave a gap that is never reported again.
 *
 * Threads: every hook of one instance is called by one thread at a time, off the fault path,
 * except on_fault of the prefetch role, which runs in the thread that serves the fault, beside the
 * others: it must not block, allocate or call anything of the host table that is not marked
 * "fault-safe".
 *
 * The host measures every hook; one that overruns its budget again and again, or crashes the
 * daemon, is put aside (POLICY_FAILED).
 */

#define EBB_POLICY_ABI_MAJOR 1
#define EBB_POLICY_ABI_MINOR 2

enum ebb_policy_role {
	EBB_POLICY_RECLAIM = 1 << 0,
	EBB_POLICY_PREFETCH = 1 << 1,
};

struct ebb_policy_option {
	const char *name;  /* kebab-case */
	const char *value; /* text; sizes may carry K, M, G, T */
};

/*
 * Every policy that holds memory for a VM reports it as a gauge of this name, in bytes: the engine
 * adds it to the VM's overhead.
 */
#define EBB_POLICY_STAT_STATE_BYTES "state-bytes"

struct ebb_policy_stat {
	const char *name; /* kebab-case, static */
	const char *help; /* one line, static */
	uint64_t value;
	uint32_t counter; /* 1: only ever grows; 0: a gauge */
	uint32_t reserved;
};

/* A run of units: [first, first + count). */
struct ebb_range {
	uint64_t first;
	uint64_t count;
};

/* One RAM block as policies see it. */
struct ebb_block {
	uint64_t first_unit;
	uint64_t units;
	uint32_t unit_bytes;
	uint32_t gone;	     /* 1: unplugged */
	uint64_t guest_addr; /* guest-physical address, UINT64_MAX when not known */
};

enum ebb_fault_flag {
	EBB_FAULT_WRITE = 1 << 0,
	EBB_FAULT_LOADED = 1 << 1,     /* content came from a backend */
	EBB_FAULT_ZERO = 1 << 2,       /* first touch, or content was zero */
	EBB_FAULT_PREFETCHED = 1 << 3, /* first use of a unit that was prefetched */
};

struct ebb_fault {
	uint64_t unit;
	uint32_t flags;
	uint32_t thread;  /* the faulting thread's id, 0 when not known */
	uint64_t time_ns; /* CLOCK_MONOTONIC */
};

enum ebb_outcome {
	EBB_OUTCOME_EVICTED = 1,   /* stored and dropped */
	EBB_OUTCOME_ZERO = 2,	   /* was zero or same-filled: dropped for nothing */
	EBB_OUTCOME_CLEAN = 3,	   /* dropped, the copy in the backend was still good */
	EBB_OUTCOME_CANCELLED = 4, /* written to meanwhile */
	EBB_OUTCOME_BUSY = 5,	   /* pinned or in flight */
	EBB_OUTCOME_FAILED = 6,	   /* no backend had room, or an error */
	EBB_OUTCOME_REFAULT = 7,   /* came back by a fault soon after its eviction */
	EBB_OUTCOME_USED = 8,	   /* prefetched and then touched */
	EBB_OUTCOME_UNUSED = 9,	   /* prefetched and evicted again untouched */
};

enum ebb_pressure_known {
	EBB_PRESSURE_PSI = 1 << 0, /* psi_some_ns is known */
};

/* What the VM suffers, as totals that only grow: differences tell. Since minor version 1. */
struct ebb_pressure {
	uint64_t size;	      /* in: sizeof(struct ebb_pressure) as the plugin knows it */
	uint64_t time_ns;     /* CLOCK_MONOTONIC, of these totals */
	uint64_t faults;      /* demand loads of stored content */
	uint64_t refaults;    /* of them soon after the eviction */
	uint64_t stall_ns;    /* how long threads of the VM waited for faults, all added up */
	uint64_t psi_some_ns; /* memory pressure ("some") of the VMM's control group */
	uint32_t known;	      /* enum ebb_pressure_known */
	uint32_t reserved;
	/*
	 * CPU time that the daemon spent because what clear_accessed() forgot was used again: where
	 * such a use is a fault that comes to it. 0 where the kernel serves it. Since minor version
	 * 2; stays as it was where the daemon is older.
	 */
	uint64_t look_cost_ns;
};

/*
 * What the engine gives to a policy instance. ctx is the first argument of every call. Bitmaps are
 * arrays of uint64_t, bit i of word i / 64 for unit first + i.
 */
struct ebb_policy_host {
	uint64_t size;
	uint16_t abi_major, abi_minor;
	uint32_t reserved;
	void *ctx;

	/* Which of [first, first + count) are resident and free to be evicted. Fault-safe. */
	void (*resident)(void *ctx, uint64_t first, uint64_t count, uint64_t *bitmap);
	/* Which hold content in a backend (prefetching them would be of use). Fault-safe. */
	void (*evicted)(void *ctx, uint64_t first, uint64_t count, uint64_t *bitmap);
	/*
	 * Forgets that units were accessed: from now on accessed() tells who was touched since.
	 * Costs 0.2 to 0.9 us a unit, and a minor fault for each unit that is touched again.
	 * Returns 0, or -ENOTSUP when this VM has no tracker (then everything reads as accessed).
	 */
	int (*clear_accessed)(void *ctx, const struct ebb_range *ranges, uint32_t n);
	/* Which units were touched since they were last cleared (or loaded). */
	int (*accessed)(void *ctx, uint64_t first, uint64_t count, uint64_t *bitmap);
	/* RAM blocks; fills at most n, returns how many there are. */
	uint32_t (*blocks)(void *ctx, struct ebb_block *out, uint32_t n);
	/* Monotonic time. Fault-safe. */
	uint64_t (*now_ns)(void *ctx);
	/* level: 0 error, 1 warning, 2 info, 3 debug. Rate-limited. */
	void (*log)(void *ctx, int level, const char *fmt, ...)
		__attribute__((format(printf, 3, 4)));

	/* Since minor version 1: look with EBB_POLICY_HAS() before you call them. */

	/*
	 * Bring these back, in this order, behind what faults and on_fault ask for, as far as the
	 * VM's limit has room. Returns how many of the n ranges were taken; the queue is full then:
	 * the rest may be asked for again at the next tick.
	 */
	uint32_t (*prefetch)(void *ctx, const struct ebb_range *ranges, uint32_t n);
	/* 0, or -errno and nothing is written. */
	int (*pressure)(void *ctx, struct ebb_pressure *out);
};

/* True when the daemon's table (or a plugin's descriptor) has this member at all. */
#define EBB_POLICY_HAS(table, member)                                                         \
	((table)->size >= offsetof(__typeof__(*(table)), member) + sizeof((table)->member) && \
	 (table)->member)

/* The VM as the policy sees it; lives as long as the instance. */
struct ebb_policy_vm {
	uint64_t size;
	const char *name;
	uint64_t units;	    /* at attach time; on_resize tells more */
	uint64_t seed;	    /* for randomised policies */
	uint64_t window_ns; /* the period of on_access windows */
};

/* The units touched in one access window. Units outside [first, first + count) were not watched. */
struct ebb_access_window {
	uint64_t size;
	uint64_t first, count;
	const uint64_t *watched;  /* bitmap: was watched for the whole window */
	const uint64_t *accessed; /* bitmap: touched within it */
	uint64_t window_ns;	  /* how long the window was */
};

/* What an instance wants to be told at present; see ebb_policy.wants. */
enum ebb_policy_want {
	EBB_POLICY_WANT_FAULTS = 1 << 0,  /* on_fault */
	EBB_POLICY_WANT_WINDOWS = 1 << 1, /* on_access */
	/*
	 * Prefetch role: on_outcome also tells what was evicted (EVICTED, ZERO, CLEAN). Never
	 * taken for granted: a policy without wants() does not get it. Since minor version 1.
	 */
	EBB_POLICY_WANT_EVICTIONS = 1 << 2,
};

/* What a VM's limit was and is, in bytes; 0: none. */
struct ebb_limit {
	uint64_t size;
	uint64_t old_bytes, new_bytes;
};

struct ebb_policy {
	uint64_t size; /* sizeof(struct ebb_policy) as the plugin knew it */
	uint16_t abi_major, abi_minor;
	uint32_t roles;			/* enum ebb_policy_role */
	const char *name;		/* as in the file name */
	const char *description;	/* one line */
	const char *const *option_help; /* "name: help" lines, NULL-terminated; may be NULL */

	/* Once per loaded file. May be NULL. */
	int (*load)(char *err, uint64_t err_len);
	void (*unload)(void);

	/* An instance for one VM in one role (exactly one bit set). host and vm outlive it. */
	int (*attach)(const struct ebb_policy_host *host, const struct ebb_policy_vm *vm,
		      uint32_t role, void **instance, char *err, uint64_t err_len);
	void (*detach)(void *instance);
	/* One option, before use or at run time. -ENOENT: no such option; -EINVAL: bad value. */
	int (*config)(void *instance, const struct ebb_policy_option *opt, char *err,
		      uint64_t err_len);
	/* The VM has `units` units now. -ENOMEM ends the instance. */
	int (*on_resize)(void *instance, uint64_t units);

	/*
	 * Prefetch: a demand fault was taken; write up to max ranges to fetch next into out and
	 * return how many. Runs on the fault path: bounded time, no blocking, no allocation.
	 * Reclaim: told of it later, in batches, with max 0 and out NULL; the result is ignored.
	 */
	uint32_t (*on_fault)(void *instance, const struct ebb_fault *fault, struct ebb_range *out,
			     uint32_t max);
	/* One access window is over. May be NULL: then no windows are taken for it; see wants. */
	void (*on_access)(void *instance, const struct ebb_access_window *window);
	/*
	 * Reclaim: name about `want` units to evict, coldest first, as at most max ranges; returns
	 * how many ranges. Fewer units (or none) mean "nothing cold enough now". `urgent` is 1
	 * when the VM is at its limit: then the best of what there is must be named.
	 */
	uint32_t (*pick_victims)(void *instance, uint64_t want, int urgent, struct ebb_range *out,
				 uint32_t max);
	/* What became of earlier advice; n units with the same outcome. May be NULL. */
	void (*on_outcome)(void *instance, uint32_t outcome, const uint64_t *units, uint32_t n);
	/*
	 * Every second or so. Returns how many units should be evicted now although no limit asks
	 * for it (0: none): the engine then calls pick_victims. May be NULL.
	 */
	uint64_t (*tick)(void *instance, uint64_t now_ns);

	/* Fills at most n; returns how many there are. May be NULL. */
	uint32_t (*stats)(void *instance, struct ebb_policy_stat *out, uint32_t n);

	/*
	 * State for a successor: writes at most max bytes, returns how many (or -errno). restore
	 * may fail: the instance then starts cold. Both may be NULL.
	 */
	int64_t (*save)(void *instance, void *buf, uint64_t max);
	int (*restore)(void *instance, const void *buf, uint64_t bytes);
	uint32_t state_version; /* of what save writes; restore is given only the same */
	uint32_t reserved;

	/*
	 * Which of the hooks that cost the VM something are of use with the present options, as a
	 * mask of enum ebb_policy_want: a tracker's windows are taken only for those who read
	 * them. Asked after attach and after every config. NULL: all hooks that are there.
	 */
	uint32_t (*wants)(void *instance);

	/* The limit was changed. Both roles. May be NULL. Since minor version 1. */
	void (*on_limit)(void *instance, const struct ebb_limit *limit);
};

/* The one symbol that a policy exports. */
const struct ebb_policy *ebb_policy_entry(void);
#define EBB_POLICY_ENTRY "ebb_policy_entry"

#endif
