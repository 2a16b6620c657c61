/* SPDX-License-Identifier: BSD-3-Clause */
/* trace.h: recording what a VM touches. */
#ifndef ENGINE_TRACE_H
#define ENGINE_TRACE_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

struct block;
struct vm;

#define TRACE_RING 16384u

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
/* Under policy_lock, before accesses of these units are made forgotten. */
void vm_trace_forget(struct block *b, uint64_t unit, uint64_t count, bool by_recording);
/* Under policy_lock: adds what policies are to see as accessed. */
void vm_trace_add_touched(struct vm *vm, uint64_t first, uint64_t count, uint64_t *bitmap);

#endif
