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

#define MAGIC_1	    UINT64_C(0x31304c4254424245) /* "EBBTBL01": without sums */
#define MAGIC	    UINT64_C(0x32304c4254424245) /* "EBBTBL02" */
#define HEADER_SIZE 64u

/*
 * Directory words: NONE or RESIDENT for the whole run, or one of these. That of a leaf has more
 * bits set than its mark, so that no single flipped bit makes another valid word of it; its low 62
 * bits are the sum (of nothing: what is here).
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
	pt->sums = true;
}

int page_table_open(struct page_table *pt, void *memory, uint64_t bytes)
{
	struct page_table_header *h = memory;
	uint64_t leaves = 0;

	if (bytes < HEADER_SIZE || (h->magic != MAGIC && h->magic != MAGIC_1) ||
	    h->units > UINT64_C(1) << 44 || page_table_bytes(h->units) != bytes)
		return -EUCLEAN;
	place(pt, memory, h->units);
	pt->sums = h->magic == MAGIC;
	for (uint64_t run = 0; run < runs_of(h->units); run++) {
		uint64_t d = atomic_load(&pt->dir[run]);

		/* A fill that was cut off had changed nothing yet: its run is still uniform. */
		if (!(d & DIR_LEAF))
			d &= ~DIR_FILL;
		if (d != page_entry_bare(PE_NONE) && d != page_entry_bare(PE_RESIDENT)) {
			/* One that is none has no sum that fits, as if it were changed itself. */
			d = pt->sums ? (d | DIR_LEAF) & ~DIR_FILL : DIR_LEAF_WORD;
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

#define SUM_MASK (DIR_FILL - 1)

/* The unit's number: the finalizer of splitmix64 (S. Vigna), so that few of them never cancel out.
 */
static uint64_t number_of(uint64_t unit)
{
	uint64_t x = (unit + 1) * UINT64_C(0x9e3779b97f4a7c15);

	x = (x ^ x >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
	x = (x ^ x >> 27) * UINT64_C(0x94d049bb133111eb);
	return (x ^ x >> 31) & SUM_MASK;
}

static uint64_t sum_of(const struct page_table *pt, uint64_t run)
{
	uint64_t sum = DIR_LEAF_WORD & SUM_MASK;

	for (uint64_t w = run * (PAGE_TABLE_RUN / 64); w < (run + 1) * (PAGE_TABLE_RUN / 64); w++)
		for (uint64_t bits = atomic_load(&pt->away[w]); bits; bits &= bits - 1)
			sum ^= number_of(w * 64 + (uint64_t)__builtin_ctzll(bits));
	return sum;
}

bool page_table_sum_fits(const struct page_table *pt, uint64_t unit)
{
	uint64_t run = unit / PAGE_TABLE_RUN, d = atomic_load(&pt->dir[run]);

	return !pt->sums || !(d & DIR_LEAF) || (d & SUM_MASK) == sum_of(pt, run);
}

void page_table_seal(struct page_table *pt, uint64_t unit)
{
	uint64_t run = unit / PAGE_TABLE_RUN;

	if (pt->sums && (atomic_load(&pt->dir[run]) & DIR_LEAF))
		atomic_store(&pt->dir[run], DIR_LEAF | sum_of(pt, run));
}

/*
 * Units whose part in the sum is open: whoever owned them may have died between bit and sum, or
 * their bit does not agree with their entry. Few numbers are looked at as a linear space over
 * GF(2), of many only one or two together.
 */
#define OPEN_FEW   40u /* their space is a small part of all numbers */
#define OPEN_FEWER 16u /* and this is when half a million are tried */

struct open_units {
	uint64_t number[PAGE_TABLE_RUN];
	unsigned int n, rank;
	uint64_t basis[OPEN_FEW];
};

static uint64_t reduce(const struct open_units *o, uint64_t x)
{
	for (unsigned int i = 0; i < o->rank; i++)
		if ((x ^ o->basis[i]) < x)
			x ^= o->basis[i];
	return x;
}

/* Keeps the basis such that reduce() works in order: each has a leading bit of its own. */
static void add_to_basis(struct open_units *o, uint64_t number)
{
	uint64_t x = reduce(o, number);
	unsigned int at = o->rank;

	if (!x)
		return;
	for (; at && o->basis[at - 1] < x; at--)
		o->basis[at] = o->basis[at - 1];
	o->basis[at] = x;
	o->rank++;
}

static bool explained(const struct open_units *o, uint64_t difference)
{
	if (o->n <= OPEN_FEW)
		return !reduce(o, difference);
	if (!difference)
		return true;
	for (unsigned int i = 0; i < o->n; i++)
		for (unsigned int k = i; k < o->n; k++)
			if (difference == (o->number[i] ^ (k == i ? 0 : o->number[k])))
				return true;
	return false;
}

/* Its owner may have died before the sum followed the bit. */
static bool in_between(enum page_state s)
{
	return s == PE_PUNCHING || s == PE_LOADING || s == PE_CLEARING;
}

unsigned int page_table_suspects(const struct page_table *pt, uint64_t unit,
				 const bool sound[PAGE_TABLE_RUN], bool suspect[PAGE_TABLE_RUN])
{
	uint64_t run = unit / PAGE_TABLE_RUN, first = run * PAGE_TABLE_RUN;
	uint64_t d = atomic_load(&pt->dir[run]), closed[PAGE_TABLE_RUN];
	struct open_units open = {.n = 0};
	unsigned int n_closed = 0;

	memset(suspect, 0, PAGE_TABLE_RUN * sizeof(*suspect));
	if (page_table_sum_fits(pt, unit))
		return 0;
	d = (d & SUM_MASK) ^ sum_of(pt, run);
	for (uint64_t i = 0; i < PAGE_TABLE_RUN && first + i < pt->units; i++) {
		if (!sound[i] || in_between(page_entry_state(page_table_get(pt, first + i))))
			open.number[open.n++] = number_of(first + i);
		else if (!page_table_away(pt, first + i))
			closed[n_closed++] = i;
	}
	for (unsigned int i = 0; i < open.n && open.n <= OPEN_FEW; i++)
		add_to_basis(&open, open.number[i]);
	if (explained(&open, d))
		return 0;
	for (unsigned int i = 0; i < n_closed; i++)
		if (explained(&open, d ^ number_of(first + closed[i]))) {
			suspect[closed[i]] = true;
			return 1;
		}
	for (unsigned int i = 0; i < n_closed && open.n <= OPEN_FEWER; i++)
		for (unsigned int k = i + 1; k < n_closed; k++)
			if (explained(&open, d ^ number_of(first + closed[i]) ^
						     number_of(first + closed[k]))) {
				suspect[closed[i]] = suspect[closed[k]] = true;
				return 2;
			}
	for (unsigned int i = 0; i < n_closed; i++)
		suspect[closed[i]] = true;
	return n_closed;
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
	FAULT_POINT(table_away);
	if (pt->sums)
		atomic_fetch_xor(&pt->dir[unit / PAGE_TABLE_RUN], number_of(unit));
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
