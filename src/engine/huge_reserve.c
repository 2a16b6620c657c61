/* SPDX-License-Identifier: BSD-3-Clause */
/* huge_reserve.c: huge pages kept back so that evicted hugetlb units can come back. */
#include <errno.h>
#include <stdatomic.h>
#include <unistd.h>

#include "engine/internal.h"
#include "sys/memfd.h"

/*
 * Theory of operation
 *
 * Punching a hugetlb page gives it to the pool and drops its reservation, so whoever comes next can
 * take it, and the VM that is entitled to it (it is below its limit) finds the pool dry when it
 * faults. So each VM with hugetlb RAM keeps a few reservations: memfds of one page that is never
 * touched. The pool counts them as taken and refuses newcomers. Right before a unit is filled one
 * is given up, and the fill takes the page; after an eviction the reserve is filled up again. A
 * newcomer that slips in between makes the fill fail with -ENOMEM: the fault is parked and its
 * handle kept, until eviction has made room.
 *
 * Being files, they go to a successor, and there is no moment at which nobody holds them. With a
 * daemon that is killed they are gone; the next one takes them anew when it has the VM.
 *
 * Any thread; slots are taken and filled by atomic exchange.
 */

/* A slot is a descriptor + 1, or one of these. */
#define SLOT_EMPTY  0
#define SLOT_TAKING -1 /* somebody is filling it */

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
		int empty = SLOT_EMPTY, fd;

		if (!atomic_compare_exchange_strong(&vm->huge_reserve[i], &empty, SLOT_TAKING))
			continue;
		fd = memfd_reserve_huge();
		atomic_store(&vm->huge_reserve[i], fd < 0 ? SLOT_EMPTY : fd + 1);
		if (fd < 0)
			return;
	}
}

void huge_reserve_renew(struct vm *vm)
{
	bool huge = false;

	for (unsigned int i = 0; i < VM_REGIONS_MAX; i++) {
		struct block *b = atomic_load(&vm->blocks[i]);

		huge |= b && b->kind == BLOCK_HUGETLB;
	}
	/* Above the target an eviction is due, which does it. */
	if (huge && atomic_load(&vm->evicted) > 0 &&
	    (uint64_t)atomic_load(&vm->resident) <= reclaim_target(vm))
		huge_reserve_fill(vm);
}

bool huge_reserve_release(struct vm *vm)
{
	for (unsigned int i = HUGE_RESERVE_MAX; i-- > 0;) {
		int slot = atomic_load(&vm->huge_reserve[i]);

		if (slot == SLOT_EMPTY || slot == SLOT_TAKING ||
		    !atomic_compare_exchange_strong(&vm->huge_reserve[i], &slot, SLOT_EMPTY))
			continue;
		memfd_unreserve_huge(slot - 1);
		close(slot - 1);
		return true;
	}
	return false;
}

int huge_reserve_fd(const struct vm *vm, unsigned int i)
{
	int slot = i < HUGE_RESERVE_MAX ? atomic_load(&vm->huge_reserve[i]) : SLOT_EMPTY;

	return slot == SLOT_TAKING ? -1 : slot - 1;
}

void huge_reserve_inherit(struct vm *vm, int fd)
{
	struct memfd_info info;

	for (unsigned int i = 0; i < HUGE_RESERVE_MAX; i++) {
		int empty = SLOT_EMPTY;

		if (fd < 0 || memfd_info(fd, &info) || info.page_bytes != UNIT_MAX_BYTES)
			break;
		if (atomic_compare_exchange_strong(&vm->huge_reserve[i], &empty, fd + 1))
			return;
	}
	if (fd >= 0)
		close(fd);
}

uint64_t huge_reserve_bytes(const struct vm *vm)
{
	uint64_t pages = 0;

	for (unsigned int i = 0; i < HUGE_RESERVE_MAX; i++)
		pages += huge_reserve_fd(vm, i) >= 0;
	return pages * UNIT_MAX_BYTES;
}

void huge_reserve_drop(struct vm *vm)
{
	while (huge_reserve_release(vm))
		;
}
