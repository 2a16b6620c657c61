/* SPDX-License-Identifier: BSD-3-Clause */
/* run_wait.c: faults of a run wait until there is room to read ahead. */
#include "base/clock.h"
#include "engine/internal.h"

/*
 * Theory of operation
 *
 * A guest that goes through its memory at its limit takes each page that an evictor frees at once.
 * Then there is never room to bring more than the faulting unit, each unit costs a fault with all
 * of its context switches, and they take the CPU from the evictor, so that it stays so. Such a
 * guest waits for eviction anyway; it gets further when it waits once for the room of a whole run.
 * So where the unit that follows a fault was asked for and found no room, that unit is remembered,
 * and a fault on it stays parked (nothing but its unit is kept: who waits is woken, and faults
 * again) until there is room.
 *
 * It waits once, and not for long: the second fault on the unit is served whatever there is. When
 * others take the room as fast as it is made, so that waiting was in vain, no run of this VM waits
 * for some time.
 */

#define ROOM_UNITS  (LOADER_RUN + LOADER_RUN / 2)
#define WAIT_MAX_NS (5 * NS_PER_MS)
#define IN_VAIN_NS  (100 * NS_PER_MS)

/* Resident bytes up to which there is room for n units: no less than eviction aims at. */
static bool room_for(struct vm *vm, uint64_t n)
{
	uint64_t limit = atomic_load(&vm->limit_bytes), target = reclaim_target(vm);
	uint64_t bytes = n * UINT64_C(4096);

	return !limit || (uint64_t)atomic_load(&vm->resident) + bytes <= limit ||
	       (uint64_t)atomic_load(&vm->resident) <= target;
}

/* A slot holds a unit above two bits: that it holds one, and that a fault has waited; 0: nothing.
 */
#define HELD   UINT64_C(1)
#define WAITED UINT64_C(2)

static uint64_t as_slot(uint64_t vm_unit)
{
	return vm_unit << 2 | HELD;
}

void run_wait_short(struct vm *vm, uint64_t vm_unit)
{
	struct run_wait *r = &vm->run_wait;
	uint64_t at = atomic_fetch_add_explicit(&r->hand, 1, memory_order_relaxed);

	atomic_store_explicit(&r->next[at % RUN_WAITS], as_slot(vm_unit), memory_order_relaxed);
}

bool run_wait_hold(struct vm *vm, uint64_t vm_unit)
{
	struct run_wait *r = &vm->run_wait;
	uint64_t now, slot, none = 0;

	for (unsigned int i = 0; i < RUN_WAITS; i++) {
		slot = atomic_load_explicit(&r->next[i], memory_order_relaxed);
		if ((slot & ~WAITED) != as_slot(vm_unit))
			continue;
		now = clock_ns();
		if ((slot & WAITED) || room_for(vm, LOADER_RUN) || reclaim_helpless(vm) ||
		    atomic_load(&vm->restoring) || now < atomic_load(&r->not_before_ns) ||
		    !atomic_compare_exchange_strong(&r->next[i], &slot, slot | WAITED)) {
			atomic_store_explicit(&r->next[i], 0, memory_order_relaxed);
			return false;
		}
		vm_count(vm, COUNTER_run_waits);
		if (atomic_compare_exchange_strong(&r->since_ns, &none, now))
			atomic_store(&r->from_bytes, atomic_load(&vm->resident));
		/* In this order: who ends the waiting looks at it the other way round. */
		atomic_store(&vm->parked, true);
		engine_kick(vm);
		return true;
	}
	return false;
}

bool run_wait_some(const struct vm *vm)
{
	return atomic_load(&vm->run_wait.since_ns) != 0;
}

bool run_wait_ended(struct vm *vm)
{
	struct run_wait *r = &vm->run_wait;
	uint64_t since = atomic_load(&r->since_ns), now;
	bool room;

	if (!since)
		return false;
	now = clock_ns();
	room = room_for(vm, ROOM_UNITS);
	if (!room && now - since < WAIT_MAX_NS)
		return false;
	if (!room && atomic_load(&vm->resident) >= atomic_load(&r->from_bytes))
		atomic_store(&r->not_before_ns, now + IN_VAIN_NS);
	atomic_store(&r->since_ns, 0);
	return true;
}
