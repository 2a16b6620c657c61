/* SPDX-License-Identifier: BSD-3-Clause */
/* huge_reserve.c: huge pages kept back so that evicted hugetlb units can come back. */
#include <errno.h>
#include <stdatomic.h>
#include <sys/mman.h>

#include "engine/internal.h"

/*
 * Theory of operation
 *
 * Punching a hugetlb page gives it to the pool and drops its reservation, so whoever comes next can
 * take it, and the VM that is entitled to it (it is below its limit) finds the pool dry when it
 * faults. So each VM with hugetlb RAM keeps a few reservations: private hugetlb mappings of one
 * page that are never touched. The pool counts them as taken and refuses newcomers. Right before a
 * unit is filled one is given up, and the fill takes the page; after an eviction the reserve is
 * filled up again. A newcomer that slips in between makes the fill fail with -ENOMEM: the fault is
 * parked and its handle kept, until eviction has made room.
 *
 * Any thread; slots are taken and filled by atomic exchange.
 */

static void *const taking = (void *)1; /* a slot that somebody is filling */

/* How many pages a VM may keep back: what lies between its target and its limit. */
static unsigned int wanted(const struct vm *vm)
{
	uint64_t limit = atomic_load(&vm->limit_bytes), pages;

	if (!limit)
		return 0;
	pages = (limit - reclaim_target(vm)) / UNIT_MAX_BYTES;
	if (pages < 1)
		pages = 1;
	return pages < HUGE_RESERVE_MAX ? (unsigned int)pages : HUGE_RESERVE_MAX;
}

void huge_reserve_fill(struct vm *vm)
{
	for (unsigned int i = 0; i < wanted(vm); i++) {
		void *none = NULL, *p;

		if (!atomic_compare_exchange_strong(&vm->huge_reserve[i], &none, taking))
			continue;
		p = mmap(NULL, UNIT_MAX_BYTES, PROT_NONE,
			 MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB | (21 << MAP_HUGE_SHIFT), -1, 0);
		atomic_store(&vm->huge_reserve[i], p == MAP_FAILED ? NULL : p);
		if (p == MAP_FAILED)
			return;
	}
}

bool huge_reserve_release(struct vm *vm)
{
	for (unsigned int i = HUGE_RESERVE_MAX; i-- > 0;) {
		void *p = atomic_load(&vm->huge_reserve[i]);

		if (!p || p == taking ||
		    !atomic_compare_exchange_strong(&vm->huge_reserve[i], &p, NULL))
			continue;
		munmap(p, UNIT_MAX_BYTES);
		return true;
	}
	return false;
}

uint64_t huge_reserve_bytes(const struct vm *vm)
{
	uint64_t pages = 0;

	for (unsigned int i = 0; i < HUGE_RESERVE_MAX; i++) {
		void *p = atomic_load(&vm->huge_reserve[i]);

		pages += p && p != taking;
	}
	return pages * UNIT_MAX_BYTES;
}

void huge_reserve_drop(struct vm *vm)
{
	while (huge_reserve_release(vm))
		;
}
