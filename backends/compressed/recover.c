/* SPDX-License-Identifier: BSD-3-Clause */
/* recover.c: taking over a space that another daemon left behind, at whatever instruction. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "store.h"

/*
 * Theory of operation
 *
 * The memory was out of our hands, so nothing in it is believed before it is checked: sizes
 * against what this build would lay out, each live entry against the slab that it names, and no
 * slot may have two owners (the first one found keeps it; content that two handles claim is at
 * least the right one for one of them). An entry that does not hold up is made free, with its
 * generation moved on, so that its handle is refused from then on.
 *
 * Then lists are checked: every live piece must be named by exactly one; those that none names
 * were being stored or freed when the daemon died, and are freed. At last everything that no slot
 * in use needs is trimmed, whoever left it there.
 *
 * Runs in space_open() or resume(), alone with the space.
 */

int recover_geometry(struct space *sp)
{
	const struct store_header *h = sp->header;
	uint64_t span = h->n_handles * PAGE_BYTES;

	if (h->magic != STORE_MAGIC || h->version != STORE_VERSION ||
	    h->class_sum != sp->store->classes.sum || h->n_handles > HANDLES_MAX)
		return -EBADMSG;
	/* Only what a daemon would have chosen. */
	if (space_span(span / 4) != span)
		return -EBADMSG;
	space_lay_out(sp, span);
	if (h->n_small != sp->n_small || h->n_large != sp->n_large ||
	    h->total_bytes != sp->total_bytes)
		return -EBADMSG;
	return 0;
}

/* Marks the slot of an entry as taken. False when it cannot be what it says. */
static bool claim(struct space *sp, uint64_t e)
{
	uint32_t slab = entry_slab(e), slot = entry_slot(e), used;
	bool list = entry_coding(e) == CODING_LIST;
	struct slot_sums sums;
	struct class_state *c;
	struct slab *s;

	if (e >> 63 || (entry_order(e) > PIECE_ORDER) != list || (list && (e & ENTRY_PIECE)) ||
	    ((e & ENTRY_PIECE) && entry_order(e) != PIECE_ORDER) ||
	    !object_sums(sp, e, &sums, &used))
		return false;
	s = &sp->slabs[slab];
	if (s->used[slot / 64] >> (slot % 64) & 1)
		return false;
	s->used[slot / 64] |= UINT64_C(1) << (slot % 64);
	s->live++;
	c = &sp->classes[atomic_load(&sp->slab_class[slab]) - 1];
	c->slots_used++;
	c->objects += sums.objects;
	c->logical_bytes += sums.logical_bytes;
	c->content_bytes += sums.content_bytes;
	return true;
}

static void recover_table_page(struct space *sp, uint32_t p, uint64_t *refused)
{
	struct table_page *page = &sp->pages[p];

	page->backed = 1;
	page->fresh = ENTRIES_PER_PAGE;
	/* With the page of checksums that it shares with the one before it. */
	sp->mem_bytes += p % 2 ? PAGE_BYTES : 2 * PAGE_BYTES;
	for (uint32_t i = ENTRIES_PER_PAGE; i-- > 0;) {
		uint32_t index = p * ENTRIES_PER_PAGE + i;
		uint64_t e = atomic_load(&sp->table[index]);
		uint32_t gen = entry_gen(e);

		if (e & ENTRY_LIVE) {
			if (claim(sp, e)) {
				page->used++;
				continue;
			}
			(*refused)++;
			gen++;
		} else if (!(e & ENTRY_USED)) {
			gen = handle_first_gen(sp, index);
		}
		atomic_store(&sp->table[index], entry_free(gen, page->free));
		page->free = (uint16_t)(i + 1);
	}
	if (page->used == ENTRIES_PER_PAGE)
		bits_add(&sp->full_pages, p);
}

/* Notes which pieces a list names. */
static void mark_pieces(const struct space *sp, uint64_t e, uint8_t *named, uint64_t entries)
{
	uint32_t slot_bytes, n = 1u << (entry_order(e) - PIECE_ORDER);
	const uint8_t *p = slot_at(sp, entry_slab(e), entry_slot(e), &slot_bytes);

	for (uint32_t i = 0; i < n; i++) {
		uint64_t handle;
		uint32_t index;

		memcpy(&handle, p + i * sizeof(handle), sizeof(handle));
		index = handle_index(handle);
		if (index < entries &&
		    entry_gen(atomic_load(&sp->table[index])) == handle_gen(handle))
			named[index / 8] |= (uint8_t)(1u << (index % 8));
	}
}

static void drop_piece(struct space *sp, uint32_t index, uint64_t e)
{
	struct slab *s = &sp->slabs[entry_slab(e)];
	struct class_state *c = &sp->classes[atomic_load(&sp->slab_class[entry_slab(e)]) - 1];
	struct slot_sums sums;
	uint32_t used;

	object_sums(sp, e, &sums, &used);
	atomic_store(&sp->table[index], entry_free(entry_gen(e) + 1, 0));
	handle_release(sp, index);
	s->used[entry_slot(e) / 64] &= ~(UINT64_C(1) << (entry_slot(e) % 64));
	s->live--;
	c->slots_used--;
	c->logical_bytes -= sums.logical_bytes;
	c->content_bytes -= sums.content_bytes;
}

static int recover_pieces(struct space *sp, uint32_t table_pages, uint64_t *dropped)
{
	uint64_t entries = (uint64_t)table_pages * ENTRIES_PER_PAGE;
	uint8_t *named = calloc(entries / 8 + 1, 1);

	if (!named)
		return -ENOMEM;
	for (uint64_t i = 0; i < entries; i++) {
		uint64_t e = atomic_load(&sp->table[i]);

		if ((e & ENTRY_LIVE) && entry_coding(e) == CODING_LIST)
			mark_pieces(sp, e, named, entries);
	}
	for (uint64_t i = 0; i < entries; i++) {
		uint64_t e = atomic_load(&sp->table[i]);

		if ((e & ENTRY_LIVE) && (e & ENTRY_PIECE) && !(named[i / 8] >> (i % 8) & 1)) {
			drop_piece(sp, (uint32_t)i, e);
			(*dropped)++;
		}
	}
	free(named);
	return 0;
}

/* Gives back [*from, to) if there is anything, and goes on behind `next`. */
static void trim_gap(struct space *sp, uint64_t *from, uint64_t to, uint64_t next)
{
	if (to > *from)
		space_trim(sp, *from, to - *from, 0);
	*from = next;
}

/* The slabs in use go back into their classes; the memory between their pages is trimmed. */
static void recover_slabs(struct space *sp, uint32_t first, uint32_t high, struct bits *used,
			  uint64_t end)
{
	uint64_t gap = slab_offset(sp, first);

	for (uint32_t i = first; i < first + high; i++) {
		unsigned int class = atomic_load(&sp->slab_class[i]);
		struct slab *s = &sp->slabs[i];

		if (!s->live) {
			if (class)
				atomic_store(&sp->slab_class[i], 0);
			continue;
		}
		class -= 1;
		s->backed = slab_pages_needed(&sp->store->classes.shape[class], s);
		s->list = FULLNESS;
		bits_add(used, i - first);
		atomic_store(&sp->slab_state[i], SLAB_OPEN);
		sp->classes[class].slabs++;
		sp->slabs_open++;
		slab_list(sp, class, i);
		for (uint64_t left = s->backed; left; left &= left - 1) {
			uint64_t at =
				slab_offset(sp, i) + (uint64_t)__builtin_ctzll(left) * PAGE_BYTES;

			sp->mem_bytes += PAGE_BYTES;
			trim_gap(sp, &gap, at, at + PAGE_BYTES);
		}
	}
	trim_gap(sp, &gap, end, end);
}

int recover(struct space *sp)
{
	const struct ebb_backend_host *host = sp->store->host;
	struct store_header *h = sp->header;
	uint32_t table_pages = atomic_load(&h->table_pages);
	uint64_t refused = 0, dropped = 0, counted, n_pages = sp->n_handles / ENTRIES_PER_PAGE;
	uint32_t p = 0;
	int r;

	if (table_pages > n_pages)
		table_pages = (uint32_t)n_pages;
	if (atomic_load(&h->small_high) > sp->n_small)
		atomic_store(&h->small_high, sp->n_small);
	if (atomic_load(&h->large_high) > sp->n_large)
		atomic_store(&h->large_high, sp->n_large);
	atomic_store(&h->table_pages, table_pages);

	sp->mem_bytes = PAGE_BYTES +
			(h->small_high + (uint64_t)PAGE_BYTES - 1) / PAGE_BYTES * PAGE_BYTES +
			(h->large_high + (uint64_t)PAGE_BYTES - 1) / PAGE_BYTES * PAGE_BYTES;
	counted = sp->mem_bytes;
	r = running_need(sp, h->small_high, h->large_high, table_pages);
	if (r)
		return r;
	counted = sp->mem_bytes - counted; /* by the store, already */
	for (uint32_t i = 0; i < table_pages; i++)
		recover_table_page(sp, i, &refused);
	r = recover_pieces(sp, table_pages, &dropped);
	if (r)
		return r;
	recover_slabs(sp, 0, h->small_high, &sp->small_used, sp->large_offset);
	recover_slabs(sp, sp->n_small, h->large_high, &sp->large_used, sp->running_offset);
	atomic_fetch_add(&sp->store->mem_bytes, sp->mem_bytes - counted);
	handle_pages_trim(sp, &p, table_pages);
	if (refused)
		host->log(host->ctx, 1, "%llu damaged entries were dropped",
			  (unsigned long long)refused);
	host->log(host->ctx, 2, "took over a store; %llu unfinished pieces were freed",
		  (unsigned long long)dropped);
	return 0;
}
