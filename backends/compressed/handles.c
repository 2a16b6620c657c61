/* SPDX-License-Identifier: BSD-3-Clause */
/* handles.c: the handle table: which entries are free, and their generations. */
#include <errno.h>
#include <stdlib.h>

#include "store.h"

/*
 * Theory of operation
 *
 * The table is filled from its lowest page with a free entry, so that its use stays dense; the
 * free entries of a page are a list through the entries themselves. Only free entries are touched
 * here; live ones belong to object.c and change with atomic operations only.
 *
 * A generation is 19 bits. The first of an entry is drawn from the space's seed and the index, so
 * that handles of another space, and handles with a flipped bit in their index, meet a different
 * one; it grows by one with each free. When a page of the table is given back, its generations
 * are forgotten; a salt then makes the next first ones differ from those before.
 */

void handles_init(struct space *sp)
{
	store_lock_init(&sp->table_lock);
}

uint32_t handle_first_gen(const struct space *sp, uint32_t index)
{
	/* The finisher of MurmurHash3 (A. Appleby, public domain): every bit moves every other. */
	uint64_t x = ((uint64_t)index << 32 | sp->header->seed) ^
		     (uint64_t)atomic_load_explicit(&sp->header->salt, memory_order_relaxed) *
			     UINT64_C(0x9e3779b97f4a7c15);

	x ^= x >> 33;
	x *= UINT64_C(0xff51afd7ed558ccd);
	x ^= x >> 33;
	x *= UINT64_C(0xc4ceb9fe1a85ec53);
	x ^= x >> 33;
	return (uint32_t)x & GEN_MASK;
}

/* The other page of the table whose checksums lie in the same page. */
static bool sibling_backed(const struct space *sp, uint32_t p)
{
	return (uint64_t)(p ^ 1) * ENTRIES_PER_PAGE < sp->n_handles && sp->pages[p ^ 1].backed;
}

static uint64_t sums_page(const struct space *sp, uint32_t p)
{
	return sp->sums_offset + p / 2 * (uint64_t)PAGE_BYTES;
}

/* Memory for a page of the table and its checksums. Under table_lock. */
static int back_page(struct space *sp, uint32_t p)
{
	uint64_t at = sp->table_offset + p * (uint64_t)PAGE_BYTES;
	int r = space_populate(sp, at, PAGE_BYTES);

	if (!r && !sibling_backed(sp, p)) {
		r = space_populate(sp, sums_page(sp, p), PAGE_BYTES);
		if (r)
			space_trim(sp, at, PAGE_BYTES, PAGE_BYTES);
	}
	return r;
}

/* Gives it back; returns how many bytes. Under table_lock. */
static uint64_t unback_page(struct space *sp, uint32_t p)
{
	if (space_trim(sp, sp->table_offset + p * (uint64_t)PAGE_BYTES, PAGE_BYTES, PAGE_BYTES))
		return 0;
	sp->pages[p] = (struct table_page){0};
	if (sibling_backed(sp, p) || space_trim(sp, sums_page(sp, p), PAGE_BYTES, PAGE_BYTES))
		return PAGE_BYTES;
	return 2 * (uint64_t)PAGE_BYTES;
}

/* Takes an entry of a page that has a free one. */
static int take_from(struct space *sp, uint32_t p, uint32_t *index, uint32_t *gen)
{
	struct table_page *page = &sp->pages[p];
	uint64_t e;

	if (page->free) {
		*index = p * ENTRIES_PER_PAGE + page->free - 1;
		e = atomic_load_explicit(&sp->table[*index], memory_order_relaxed);
		page->free = (uint16_t)(e & 1023);
		if (e & ENTRY_LIVE || page->free > ENTRIES_PER_PAGE) {
			/* Damaged: nothing more is taken from this page. */
			page->free = 0;
			bits_add(&sp->full_pages, p);
			return -EIO;
		}
		*gen = entry_gen(e);
	} else {
		*index = p * ENTRIES_PER_PAGE + page->fresh++;
		*gen = handle_first_gen(sp, *index);
	}
	page->used++;
	if (page->used == ENTRIES_PER_PAGE)
		bits_add(&sp->full_pages, p);
	return 0;
}

int handle_take(struct space *sp, uint32_t *index, uint32_t *gen)
{
	uint32_t had;
	int64_t p;
	int r = 0;

	pthread_mutex_lock(&sp->table_lock);
	p = bits_lowest_absent(&sp->full_pages);
	if (p < 0) {
		r = -ENOSPC;
		goto out;
	}
	had = atomic_load(&sp->header->table_pages);
	if (had <= p) {
		r = running_need_table(sp, had, (uint32_t)p + 1);
		if (r)
			goto out;
		atomic_store(&sp->header->table_pages, (uint32_t)p + 1);
	}
	if (!sp->pages[p].backed) {
		r = back_page(sp, (uint32_t)p);
		if (r)
			goto out;
		sp->pages[p].backed = 1;
	}
	r = take_from(sp, (uint32_t)p, index, gen);
out:
	pthread_mutex_unlock(&sp->table_lock);
	return r;
}

void handle_release(struct space *sp, uint32_t index)
{
	struct table_page *page = &sp->pages[index / ENTRIES_PER_PAGE];
	uint64_t e;

	pthread_mutex_lock(&sp->table_lock);
	e = atomic_load_explicit(&sp->table[index], memory_order_relaxed);
	atomic_store_explicit(&sp->table[index], entry_free(entry_gen(e), page->free),
			      memory_order_relaxed);
	page->free = (uint16_t)(index % ENTRIES_PER_PAGE + 1);
	page->used--;
	bits_remove(&sp->full_pages, index / ENTRIES_PER_PAGE);
	pthread_mutex_unlock(&sp->table_lock);
}

bool handle_page_used(struct space *sp, uint32_t page)
{
	bool used;

	pthread_mutex_lock(&sp->table_lock);
	used = sp->pages[page].used > 0;
	pthread_mutex_unlock(&sp->table_lock);
	return used;
}

uint64_t handle_pages_trim(struct space *sp, uint32_t *page, uint32_t n)
{
	uint32_t end = atomic_load(&sp->header->table_pages);
	uint64_t freed = 0;

	for (; n && *page < end; n--, (*page)++) {
		pthread_mutex_lock(&sp->table_lock);
		if (sp->pages[*page].backed && !sp->pages[*page].used) {
			/* First the salt: a handle of now must not fit what comes after. */
			atomic_fetch_add(&sp->header->salt, 1);
			freed += unback_page(sp, *page);
		}
		pthread_mutex_unlock(&sp->table_lock);
	}
	return freed;
}

void handle_mark(const struct space *sp, uint64_t handle, uint8_t *named, uint64_t entries)
{
	uint32_t index = handle_index(handle);

	if (index < entries && entry_gen(atomic_load(&sp->table[index])) == handle_gen(handle))
		named[index / 8] |= (uint8_t)(1u << (index % 8));
}
