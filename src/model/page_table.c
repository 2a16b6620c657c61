/* SPDX-License-Identifier: BSD-3-Clause */
/* page_table.c: the entries of one RAM block, allocated as they are needed. */
#include "model/page_table.h"

#include <assert.h>
#include <errno.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/fault_point.h"

#define MAGIC	    UINT64_C(0x31304c4254424245) /* "EBBTBL01" */
#define HEADER_SIZE 64u

/*
 * Directory words: NONE or RESIDENT for the whole run, or one of these. That of a leaf has more
 * bits set than its mark, so that no single flipped bit makes another valid word of it.
 */
#define DIR_LEAF      (UINT64_C(1) << 63) /* look into the leaf */
#define DIR_FILL      (UINT64_C(1) << 62) /* the leaf is being filled with the low bits */
#define DIR_LEAF_WORD (DIR_LEAF | UINT64_C(0x005a5a5a5a5a5a5a))

struct page_table_header {
	uint64_t magic;
	uint64_t units;
	_Atomic uint64_t leaves; /* in use */
};
static_assert(sizeof(struct page_table_header) <= HEADER_SIZE, "the header has its room");

static uint64_t runs_of(uint64_t units)
{
	return (units + PAGE_TABLE_RUN - 1) / PAGE_TABLE_RUN;
}

static uint64_t pages(uint64_t bytes)
{
	return (bytes + 4095) & ~UINT64_C(4095);
}

static uint64_t dir_end(uint64_t units)
{
	return HEADER_SIZE + runs_of(units) * sizeof(uint64_t);
}

/* All that comes before the leaves. */
static uint64_t head_bytes(uint64_t units)
{
	return pages(dir_end(units) + runs_of(units) * PAGE_TABLE_RUN / 8);
}

uint64_t page_table_bytes(uint64_t units)
{
	return head_bytes(units) + runs_of(units) * PAGE_TABLE_RUN * sizeof(uint64_t);
}

static void place(struct page_table *pt, void *memory, uint64_t units)
{
	char *base = memory;

	pt->header = memory;
	pt->dir = (_Atomic uint64_t *)(void *)(base + HEADER_SIZE);
	pt->away = (_Atomic uint64_t *)(void *)(base + dir_end(units));
	pt->leaves = (_Atomic uint64_t *)(void *)(base + head_bytes(units));
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
		if (!(d & DIR_LEAF))
			d &= ~DIR_FILL;
		if (d != page_entry_bare(PE_NONE) && d != page_entry_bare(PE_RESIDENT)) {
			d = DIR_LEAF_WORD;
			leaves++;
		}
		atomic_store(&pt->dir[run], d);
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
	atomic_store_explicit(&pt->dir[run], DIR_LEAF_WORD, memory_order_release);
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

bool page_table_away(const struct page_table *pt, uint64_t unit)
{
	return atomic_load(&pt->away[unit / 64]) >> (unit % 64) & 1;
}

bool page_table_run_away(const struct page_table *pt, uint64_t unit)
{
	const _Atomic uint64_t *p = &pt->away[unit / PAGE_TABLE_RUN * (PAGE_TABLE_RUN / 64)];
	uint64_t any = 0;

	for (unsigned int i = 0; i < PAGE_TABLE_RUN / 64; i++)
		any |= atomic_load_explicit(&p[i], memory_order_relaxed);
	return any;
}

static void set_away(struct page_table *pt, uint64_t unit, bool away)
{
	uint64_t bit = UINT64_C(1) << (unit % 64);

	if (page_table_away(pt, unit) == away)
		return;
	if (away)
		atomic_fetch_or(&pt->away[unit / 64], bit);
	else
		atomic_fetch_and(&pt->away[unit / 64], ~bit);
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
	enum page_state from = page_entry_state(*expected), then = page_entry_state(to);

	check_edge(unit, *expected, to);
	need_leaf(pt, unit / PAGE_TABLE_RUN);
	/* The owner of a page that was not dropped after all; nobody else can change its entry. */
	if (from == PE_PUNCHING && then == PE_UNPROTECTING)
		set_away(pt, unit, false);
	if (!atomic_compare_exchange_strong(&pt->leaves[unit], expected, to))
		return false;
	/* In states that are owned: from PUNCHING on the page may go, in CLEARING all may. */
	if (from != then && then == PE_PUNCHING) {
		FAULT_POINT(table_punching);
		set_away(pt, unit, true);
	} else if (from != then && then == PE_CLEARING) {
		FAULT_POINT(table_clearing);
		set_away(pt, unit, false);
	}
	return true;
}

bool page_table_leave(struct page_table *pt, uint64_t unit, uint64_t to)
{
	uint64_t was;

	set_away(pt, unit, page_state_away(page_entry_state(to)));
	FAULT_POINT(table_leave);
	was = atomic_exchange(&pt->leaves[unit], to);
	check_edge(unit, was, to);
	return was & PE_WANTED;
}

void page_table_repair(struct page_table *pt, uint64_t unit, uint64_t to)
{
	need_leaf(pt, unit / PAGE_TABLE_RUN);
	set_away(pt, unit, page_state_away(page_entry_state(to)));
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
	return pages(dir_end(pt->units)) +
	       atomic_load(&pt->header->leaves) *
		       (PAGE_TABLE_RUN * sizeof(uint64_t) + PAGE_TABLE_RUN / 8);
}
