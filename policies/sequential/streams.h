/* SPDX-License-Identifier: BSD-3-Clause */
/* streams.h: finding runs in a stream of faults, from several threads at once. */
#ifndef STREAMS_H
#define STREAMS_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

/*
 * A small table of runs that were seen lately. Slots are grouped by faulting thread, so that one
 * thread's random faults push out only its own; a run is recognised by its addresses whatever
 * thread the fault is said to come from, because under KVM's asynchronous page faults that is a
 * kernel worker.
 */
#define STREAM_GROUPS	  4
#define STREAMS_PER_GROUP 8
#define STREAMS		  (STREAM_GROUPS * STREAMS_PER_GROUP)

/*
 * `pos`, `edge` and `step` are read without the lock to find a candidate and checked again under
 * it. Nobody ever waits for a lock: who does not get it gives up, and one chance to read ahead is
 * lost.
 */
struct stream {
	_Atomic uint64_t pos;  /* the last fault of the run */
	_Atomic uint64_t edge; /* the furthest unit asked for; pos when none */
	_Atomic int64_t step;  /* units from one fault to the next; 0: only one fault so far */
	_Atomic uint32_t used; /* when, in faults */
	_Atomic bool lock;
	uint16_t hits;	 /* faults in sequence */
	uint32_t window; /* units last asked for */
};

struct streams {
	struct stream slot[STREAMS];
	_Atomic uint32_t clock;
	_Atomic uint64_t contended, runs;
};

struct stream_settings {
	uint64_t reach;	     /* a run begins with two faults at most this far apart */
	uint16_t trigger;    /* faults in sequence before anything is asked for */
	uint32_t window_max; /* units */
};

/* What to fetch: count units, the first one `first`, each `step` from the one before. */
struct stream_advice {
	uint64_t first;
	uint32_t count;
	int64_t step;
};

/*
 * A fault on `unit`; hit: of a unit that was fetched ahead and is now used for the first time.
 * True when there is something to fetch. Bounded: at most two passes over the table.
 */
bool streams_fault(struct streams *s, const struct stream_settings *set, uint64_t unit,
		   uint32_t thread, bool hit, struct stream_advice *out);

#endif
