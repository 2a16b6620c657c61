/* SPDX-License-Identifier: BSD-3-Clause */
/* unit.c: what is done to one unit of guest RAM in all of its mappings. */
#include <errno.h>
#include <sched.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "base/fault_point.h"
#include "engine/internal.h"
#include "engine/thp.h"
#include "sys/memfd.h"
#include "sys/uffd.h"

/*
 * Theory of operation
 *
 * One page of the cache may be mapped by several processes, each with a userfaultfd of its own.
 * Content goes in through the primary mapping only; afterwards the page is in the cache, and the
 * other mappings find it there as soon as their threads are woken. Protection must be set in
 * all of them before content is read, and is lifted in all of them before the unit is anybody's
 * again.
 *
 * A process that died answers -ESRCH to everything; its mapping protects nothing any more and
 * cannot write either, so that counts as done.
 */

#define AGAIN_TRIES 64

/* Calls op for each live mapping of [unit, unit + n); stops at the first error, if it may fail. */
#define FOR_EACH_MAPPING(b, m, i)                                        \
	for (unsigned int i = 0; i < atomic_load(&(b)->n_mappings); i++) \
		for (struct mapping *m = atomic_load(&(b)->mappings[i]); m; m = NULL)

enum page_state unit_settled(struct block *b, uint64_t unit)
{
	enum page_state s = PE_RESIDENT;

	if (!atomic_load_explicit(&b->n_pins, memory_order_acquire))
		return s;
	pthread_mutex_lock(&b->pin_lock);
	for (unsigned int i = 0; i < atomic_load(&b->n_pins); i++)
		if (unit - b->pins[i].first < b->pins[i].count)
			s = PE_PINNED;
	pthread_mutex_unlock(&b->pin_lock);
	return s;
}

void unit_wake(struct block *b, uint64_t unit)
{
	FOR_EACH_MAPPING(b, m, i)
	if (mapping_covers(m, unit))
		uffd_wake(m->att->uffd, mapping_addr(m, unit), block_unit_bytes(b));
}

void unit_wake_others(struct block *b, uint64_t unit)
{
	FOR_EACH_MAPPING(b, m, i)
	if (i > 0 && mapping_covers(m, unit))
		uffd_wake(m->att->uffd, mapping_addr(m, unit), block_unit_bytes(b));
}

/* The part of [unit, unit + n) that a mapping covers; false when there is none. */
static bool overlap(const struct mapping *m, uint64_t unit, uint64_t n, uint64_t *addr,
		    uint64_t *bytes)
{
	uint64_t first = unit > m->first_unit ? unit : m->first_unit;
	uint64_t end = unit + n, m_end = m->first_unit + m->units;

	if (end > m_end)
		end = m_end;
	if (first >= end)
		return false;
	*addr = mapping_addr(m, first);
	*bytes = (end - first) << m->block->unit_shift;
	return true;
}

int unit_protect_run(struct block *b, uint64_t unit, uint64_t n)
{
	if (b->kind == BLOCK_THP)
		return n == 1 ? thp_protect(b, unit) : -EINVAL;
	if (b->kind == BLOCK_MIXED) {
		int split = thp_split_run(b, unit, n);

		if (split)
			return split;
	}
	FOR_EACH_MAPPING(b, m, i)
	{
		uint64_t addr, bytes;
		int r = 0;

		if (!overlap(m, unit, n, &addr, &bytes))
			continue;
		for (int tries = 0; tries < AGAIN_TRIES; tries++) {
			r = uffd_protect(m->att->uffd, addr, bytes);
			if (r != -EAGAIN)
				break;
			sched_yield();
		}
		if (r && r != -ESRCH)
			return r;
	}
	return 0;
}

void unit_unprotect(struct block *b, uint64_t unit)
{
	if (b->kind == BLOCK_THP) {
		thp_unprotect(b, unit);
		return;
	}
	FOR_EACH_MAPPING(b, m, i)
	{
		uint64_t addr, bytes;

		if (!overlap(m, unit, 1, &addr, &bytes))
			continue;
		for (int tries = 0; tries < AGAIN_TRIES; tries++) {
			if (uffd_unprotect(m->att->uffd, addr, bytes) != -EAGAIN)
				break;
			sched_yield();
		}
	}
}

void unit_cancel(struct block *b, uint64_t unit, uint64_t keep)
{
	FAULT_POINT(cancel_owned);
	unit_unprotect(b, unit);
	FAULT_POINT(cancel_lifted);
	/* Lifting the protection woke the writers; WANTED may also stand for a missing fault. */
	if (page_table_leave(&b->table, unit,
			     page_entry_in(keep & ~PE_CLAIM, unit_settled(b, unit))))
		unit_wake(b, unit);
}

bool unit_in_cache(struct block *b, uint64_t unit)
{
	uint64_t start, stop, offset = block_file_offset(b, unit);

	return memfd_next_data(b->memfd, offset, offset + block_unit_bytes(b), &start, &stop);
}

/*
 * Another process read the hole and so put a page of zeroes there. The stored content is written
 * over it, through the file: nobody of ours can have written to the page, our mappings were all
 * without it.
 */
static int fill_over(struct block *b, uint64_t unit, const void *data)
{
	uint64_t offset = block_file_offset(b, unit), bytes = block_unit_bytes(b);
	struct mapping *m = atomic_load(&b->mappings[0]);
	int64_t r;

	if (b->kind == BLOCK_HUGETLB) {
		/* hugetlbfs has no write(): a mapping of this one page, for a moment. */
		void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, b->memfd,
			       (off_t)offset);
		if (p == MAP_FAILED)
			return -errno;
		__builtin_memcpy(p, data, bytes);
		munmap(p, bytes);
	} else {
		int w = memfd_write(b->memfd, data, bytes, offset);

		if (w)
			return w;
	}
	vm_count(b->vm, COUNTER_poisoned_fills);
	if (!m)
		return -ENXIO;
	r = uffd_continue(m->att->uffd, mapping_addr(m, unit), bytes, 0);
	if (r < 0 && r != -EEXIST)
		return (int)r;
	uffd_wake(m->att->uffd, mapping_addr(m, unit), bytes);
	return 0;
}

/*
 * COPY or ZEROPAGE said -EEXIST: a page is there. For zeroes it is left alone. A hugetlb pool that
 * is dry says -EEXIST too (on some kernels), so there a CONTINUE has to confirm it, or allocating
 * it through the file, which finds a page that is there and fails when there is none to be had.
 */
static int fill_exists(struct block *b, struct mapping *m, uint64_t unit, const void *data)
{
	uint64_t addr = mapping_addr(m, unit), bytes = block_unit_bytes(b);

	/* With content to come, not by a CONTINUE: the guest must not see the page before. */
	if (b->kind == BLOCK_HUGETLB && data) {
		if (memfd_allocate(b->memfd, block_file_offset(b, unit), bytes))
			return -ENOMEM;
	} else if (b->kind == BLOCK_HUGETLB) {
		int64_t r = uffd_continue(m->att->uffd, addr, bytes, 0);

		if (r == -EFAULT)
			return -ENOMEM;
		if (r < 0 && r != -EEXIST)
			return (int)r;
	}
	if (data)
		return fill_over(b, unit, data);
	if (b->kind != BLOCK_HUGETLB)
		uffd_continue(m->att->uffd, addr, bytes, 0);
	uffd_wake(m->att->uffd, addr, bytes);
	return 1;
}

/*
 * A small page of a huge unit is there already. If an earlier fill was cut off (partial), it is
 * ours, and the guest may have written to it since: left alone. Else another process made it by
 * reading the hole: written over.
 */
static int fill_small_exists(struct block *b, struct mapping *m, uint64_t unit, uint64_t at,
			     const void *data, bool partial)
{
	uint64_t addr = mapping_addr(m, unit) + at;
	int r = 0;

	if (!partial) {
		r = memfd_write(b->memfd, (const char *)data + at, 4096,
				block_file_offset(b, unit) + at);
		vm_count(b->vm, COUNTER_poisoned_fills);
	}
	if (!r)
		uffd_continue(m->att->uffd, addr, 4096, 0);
	uffd_wake(m->att->uffd, addr, 4096);
	return r;
}

int unit_fill(struct block *b, uint64_t unit, const void *data, bool *partial)
{
	struct mapping *m = atomic_load(&b->mappings[0]);
	uint64_t addr, bytes = block_unit_bytes(b), done = 0;
	bool was_partial = *partial;

	if (!m)
		return -ENXIO;
	addr = mapping_addr(m, unit);
	if (b->kind == BLOCK_HUGETLB)
		huge_reserve_release(b->vm);
	while (done < bytes) {
		int64_t r;

		if (data)
			r = uffd_copy(m->att->uffd, addr + done, (const char *)data + done,
				      bytes - done, 0);
		else if (block_is_small(b))
			r = uffd_zero(m->att->uffd, addr + done, bytes - done);
		else
			r = uffd_copy(m->att->uffd, addr + done, b->vm->eng->zeroes, bytes - done,
				      0);
		if (r == -EEXIST && b->kind == BLOCK_THP && data) {
			r = fill_small_exists(b, m, unit, done, data, was_partial);
			r = r ? r : 4096;
		} else if (r == -EEXIST && b->kind == BLOCK_THP) {
			r = 4096; /* zeroes never go over anything */
		} else if (r == -EEXIST) {
			return fill_exists(b, m, unit, data);
		}
		if (r < 0) {
			*partial = was_partial || done;
			return (int)r;
		}
		done += (uint64_t)r;
	}
	return 0;
}

unsigned int unit_fill_run(struct block *b, uint64_t unit, const void *data, unsigned int n)
{
	struct mapping *m = atomic_load(&b->mappings[0]);
	int64_t r;

	if (!m || !block_is_small(b))
		return 0;
	r = uffd_copy(m->att->uffd, mapping_addr(m, unit), data, (uint64_t)n << b->unit_shift, 0);
	return r > 0 ? (unsigned int)(r >> b->unit_shift) : 0;
}

void unit_poison(struct block *b, uint64_t unit)
{
	FOR_EACH_MAPPING(b, m, i)
	{
		uint64_t addr, bytes;

		if (!overlap(m, unit, 1, &addr, &bytes))
			continue;
		/* The protection of the eviction outlives the page as a marker in the page table,
		 * and nothing is written over a marker. */
		if (uffd_poison(m->att->uffd, addr, bytes) == -EEXIST) {
			uffd_unprotect(m->att->uffd, addr, bytes);
			uffd_poison(m->att->uffd, addr, bytes);
		}
	}
}
