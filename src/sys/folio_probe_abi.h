/* SPDX-License-Identifier: BSD-3-Clause */
/* folio_probe_abi.h: what the folio probe's two halves, here and in the kernel, hand each other. */
#ifndef SYS_FOLIO_PROBE_ABI_H
#define SYS_FOLIO_PROBE_ABI_H

#include <linux/types.h>

/* The most pages of one folio_probe_check(). */
#define FOLIO_PROBE_MAX 512

enum folio_verdict {
	/* Nothing is cached at that index. */
	FOLIO_HOLE = 0,
	/* Cached, and every reference is one of the page cache's or of a page table's. */
	FOLIO_IDLE = 1,
	/*
	 * Somebody else holds a reference (a pin for DMA, O_DIRECT in flight, a pipe, ...), or the
	 * page was changing while it was looked at. A page that was just added to the cache is held
	 * by a per-CPU batch until some 15 to 31 others have followed on that CPU: that is BUSY
	 * too.
	 */
	FOLIO_BUSY = 2,
	/* Not to be told: swapped out, or a kind of folio that this kernel's rules do not cover. */
	FOLIO_UNKNOWN = 3,
};

/* One batch of questions and answers, in a map that both sides see. */
struct folio_probe_slot {
	__u64 index[FOLIO_PROBE_MAX]; /* in 4 KiB pages */
	__u8 verdict[FOLIO_PROBE_MAX];
};

/* The program's context: one call. */
struct folio_probe_call {
	__u32 fd;
	__u32 slot; /* which element of the map */
	__u32 n;    /* how many of its questions */
	__u32 flags;
};

/* The large folios of this kernel were tried and their counts add up. */
#define FOLIO_PROBE_LARGE_OK 1u

#endif
