/* SPDX-License-Identifier: BSD-3-Clause */
/* trace.h: recording what a VM touches. */
#ifndef ENGINE_TRACE_H
#define ENGINE_TRACE_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

struct block;
struct ebb_fault;
struct error;
struct vm;

#define TRACE_RING     16384u
#define TRACE_DRAIN_MS 5u /* how often the ring is to be emptied */

struct vm_trace_slot {
	_Atomic uint64_t turn; /* one more than the place in the order of all; 0: never written */
	_Atomic uint64_t unit, time_ns, flags_thread;
};

/*
 * A recording under way. Fault threads write to the ring; the rest belongs to policy_lock. touched
 * is what the recording has made the host forget: policies still see it as accessed. window is what
 * was accessed since the last window and made forgotten since, by whomever.
 */
struct vm_trace {
	uint64_t units;
	uint64_t *touched, *window;
	_Atomic uint64_t head;
	uint64_t tail;
	struct vm_trace_slot slot[TRACE_RING];
};

/* From the fault path: no lock, no allocation. A full ring is written over: counted as lost. */
void vm_trace_fault(struct vm_trace *t, uint64_t unit, uint32_t flags, uint32_t thread,
		    uint64_t now_ns);
/* Begins a recording of the VM. 0, or -EBUSY or -ENOMEM with e filled. */
int vm_trace_begin(struct vm *vm, struct vm_trace **out, struct error *e);
/* Ends it and frees t. Not from an engine thread. */
void vm_trace_end(struct vm *vm, struct vm_trace *t);
/*
 * Takes the next fault from the ring; false when there is none. *lost: how many before it came too
 * fast and are not known.
 */
bool vm_trace_next_fault(struct vm_trace *t, struct ebb_fault *out, uint64_t *lost);
/*
 * Adds what is accessed by now to the trace's window, and makes it forgotten: each such page costs
 * the guest a minor fault when it is used again. The window is then read and emptied by the caller,
 * under policy_lock.
 */
void vm_trace_gather(struct vm *vm);

/* Under policy_lock, before accesses of these units are made forgotten. */
void vm_trace_forget(struct block *b, uint64_t unit, uint64_t count, bool by_recording);
/* Under policy_lock: adds what policies are to see as accessed. */
void vm_trace_add_touched(struct vm *vm, uint64_t first, uint64_t count, uint64_t *bitmap);

#endif
