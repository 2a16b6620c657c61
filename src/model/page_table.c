/* SPDX-License-Identifier: BSD-3-Clause */
/* page_table.c: the entries of one RAM block, allocated as they are needed. */
#include "model/page_table.h"

#include <errno.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAGIC	    UINT64_C(0x31304c4254424245) /* "EBBTBL01" */
#define HEADER_SIZE 4096u

/* Directory words: an entry that holds for the whole run, or one of these. */
#define DIR_LEAF (UINT64_C(1) << 63) /* look into the leaf */
#define DIR_FILL (UINT64_C(1) << 62) /* the leaf is being filled with the low bits */

struct page_table_header {
	uint64_t magic;
	uint64_t units;
	_Atomic uint64_t leaves; /* in use */
};

static uint64_t runs_of(uint64_t units)
{
	return (units + PAGE_TABLE_RUN - 1) / PAGE_TABLE_RUN;
}

static uint64_t dir_bytes(uint64_t units)
{
	return (runs_of(units) * sizeof(uint64_t) + 4095) & ~UINT64_C(4095);
}

uint64_t page_table_bytes(uint64_t units)
{
	return HEADER_SIZE + dir_bytes(units) + runs_of(units) * PAGE_TABLE_RUN * sizeof(uint64_t);
}

static void place(struct page_table *pt, void *memory, uint64_t units)
{
	char *base = memory;

	pt->header = memory;
	pt->dir = (_Atomic uint64_t *)(void *)(base + HEADER_SIZE);
	pt->leaves = (_Atomic uint64_t *)(void *)(base + HEADER_SIZE + dir_bytes(units));
	pt->units = units;
}

void page_table_init(struct page_table *pt, void *memory, uint64_t units)
{
	place(pt, memory, units);
	pt->header->units = units;
	pt->header->magic = MAGIC;
}

int page_table_open(struct page_table *pt, void *memory, uint64_t bytes)
{
	struct page_table_header *h = memory;
	uint64_t leaves = 0;

	if (bytes < HEADER_SIZE || h->magic != MAGIC || h->units > UINT64_C(1) << 44 ||
	    page_table_bytes(h->units) != bytes)
		return -EUCLEAN;
	place(pt, memory, h->units);
	for (uint64_t run = 0; run < runs_of(h->units); run++) {
		uint64_t d = atomic_load(&pt->dir[run]);

		/* A fill that was cut off had changed nothing yet: its run is still uniform. */
		if (d & DIR_FILL)
			atomic_store(&pt->dir[run], d & ~DIR_FILL);
		else if (d & DIR_LEAF)
			leaves++;
	}
	atomic_store(&h->leaves, leaves);
	return 0;
}

/* Makes sure that the run has a leaf. */
static void need_leaf(struct page_table *pt, uint64_t run)
{
	_Atomic uint64_t *leaf = &pt->leaves[run * PAGE_TABLE_RUN];
	uint64_t d = atomic_load_explicit(&pt->dir[run], memory_order_acquire);

	for (;;) {
		if (d & DIR_LEAF)
			return;
		if (d & DIR_FILL) {
			sched_yield();
			d = atomic_load_explicit(&pt->dir[run], memory_order_acquire);
			continue;
		}
		if (atomic_compare_exchange_weak(&pt->dir[run], &d, d | DIR_FILL))
			break;
	}
	for (unsigned int i = 0; i < PAGE_TABLE_RUN; i++)
		atomic_store_explicit(&leaf[i], d, memory_order_relaxed);
	atomic_fetch_add_explicit(&pt->header->leaves, 1, memory_order_relaxed);
	atomic_store_explicit(&pt->dir[run], DIR_LEAF, memory_order_release);
}

uint64_t page_table_get(const struct page_table *pt, uint64_t unit)
{
	uint64_t d = atomic_load_explicit(&pt->dir[unit / PAGE_TABLE_RUN], memory_order_acquire);

	if (!(d & DIR_LEAF))
		return d & ~DIR_FILL;
	return atomic_load_explicit(&pt->leaves[unit], memory_order_acquire);
}

bool page_table_uniform(const struct page_table *pt, uint64_t unit, uint64_t *entry)
{
	uint64_t d = atomic_load_explicit(&pt->dir[unit / PAGE_TABLE_RUN], memory_order_acquire);

	if (d & (DIR_LEAF | DIR_FILL))
		return false;
	*entry = d;
	return true;
}

static void check_edge(uint64_t unit, uint64_t from, uint64_t to)
{
	if (__builtin_expect(page_entry_edge(page_entry_state(from), page_entry_state(to)), 1))
		return;
	fprintf(stderr, "page table: unit %llu cannot go from %s to %s\n", (unsigned long long)unit,
		page_state_name(page_entry_state(from)), page_state_name(page_entry_state(to)));
	abort();
}

bool page_table_cas(struct page_table *pt, uint64_t unit, uint64_t *expected, uint64_t to)
{
	check_edge(unit, *expected, to);
	need_leaf(pt, unit / PAGE_TABLE_RUN);
	return atomic_compare_exchange_strong(&pt->leaves[unit], expected, to);
}

bool page_table_leave(struct page_table *pt, uint64_t unit, uint64_t to)
{
	uint64_t was = atomic_exchange(&pt->leaves[unit], to);

	check_edge(unit, was, to);
	return was & PE_WANTED;
}

void page_table_repair(struct page_table *pt, uint64_t unit, uint64_t to)
{
	need_leaf(pt, unit / PAGE_TABLE_RUN);
	atomic_store(&pt->leaves[unit], to);
}

void page_table_set_run(struct page_table *pt, uint64_t first, uint64_t count, enum page_state s)
{
	uint64_t entry = page_entry_bare(s);

	while (count) {
		uint64_t run = first / PAGE_TABLE_RUN, in_run = first % PAGE_TABLE_RUN;
		uint64_t n = PAGE_TABLE_RUN - in_run;

		if (n > count)
			n = count;
		if (n == PAGE_TABLE_RUN && !(atomic_load(&pt->dir[run]) & DIR_LEAF)) {
			atomic_store(&pt->dir[run], entry);
		} else {
			need_leaf(pt, run);
			for (uint64_t i = 0; i < n; i++)
				atomic_store(&pt->leaves[first + i], entry);
		}
		first += n;
		count -= n;
	}
}

uint64_t page_table_footprint(const struct page_table *pt)
{
	return HEADER_SIZE + dir_bytes(pt->units) +
	       atomic_load(&pt->header->leaves) * PAGE_TABLE_RUN * sizeof(uint64_t);
}
