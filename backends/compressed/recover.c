/* SPDX-License-Identifier: BSD-3-Clause */
/* recover.c: taking over a space that another daemon left behind, at whatever instruction. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "../../src/base/fault_point.h"
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
 * Guests wait for their pages meanwhile, so there are two steps. recover(), in space_open() or
 * resume() and alone with the space, does what a load depends on: it looks at the tables only,
 * whose size follows the number of objects, and at no content. From then on the space is unsettled:
 * loads work (they check the content themselves), and a free only marks its entry as doomed.
 * recover_settle() does the rest, beside loads and frees: lengths and sums; lists, where every live
 * piece must be named by exactly one (those that none names were being stored or freed when the
 * daemon died, and are freed); the slabs in use go back into their classes; everything that no slot
 * in use needs is trimmed, whoever left it there. Doomed entries that it meets before it has their
 * sums are freed without; the others at the end, when nobody dooms any more. The first store
 * settles, if nobody did before.
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

static void add_memory(struct space *sp, uint64_t bytes)
{
	atomic_fetch_add(&sp->mem_bytes, bytes);
	atomic_fetch_add(&sp->store->mem_bytes, bytes);
}

/* Marks the slot of an entry as taken. False when it cannot be what it says. */
static bool claim(struct space *sp, uint64_t e)
{
	uint32_t slab = entry_slab(e), slot = entry_slot(e), slot_bytes;
	bool list = entry_coding(e) == CODING_LIST;
	struct slab *s;

	if ((e & ENTRY_DOOMED) || (entry_order(e) > PIECE_ORDER) != list ||
	    entry_order(e) > ORDER_MAX || (list && (e & ENTRY_PIECE)) ||
	    ((e & ENTRY_PIECE) && entry_order(e) != PIECE_ORDER) ||
	    !slot_at(sp, slab, slot, &slot_bytes))
		return false;
	s = &sp->slabs[slab];
	if (s->used[slot / 64] >> (slot % 64) & 1)
		return false;
	s->used[slot / 64] |= UINT64_C(1) << (slot % 64);
	s->live++;
	sp->classes[atomic_load(&sp->slab_class[slab]) - 1].slots_used++;
	return true;
}

/* Takes a claim back and frees the entry, which nobody else changes any more. */
static void unclaim(struct space *sp, uint32_t index, uint64_t e)
{
	struct class_state *c;
	uint32_t slot_bytes;
	struct slab *s;

	atomic_store(&sp->table[index], entry_free(entry_gen(e) + 1, 0));
	handle_release(sp, index);
	/* The memory may have been damaged since it was claimed. */
	if (!slot_at(sp, entry_slab(e), entry_slot(e), &slot_bytes))
		return;
	s = &sp->slabs[entry_slab(e)];
	if (!(s->used[entry_slot(e) / 64] >> (entry_slot(e) % 64) & 1))
		return;
	c = &sp->classes[atomic_load(&sp->slab_class[entry_slab(e)]) - 1];
	s->used[entry_slot(e) / 64] &= ~(UINT64_C(1) << (entry_slot(e) % 64));
	s->live--;
	pthread_mutex_lock(&c->lock);
	c->slots_used--;
	pthread_mutex_unlock(&c->lock);
}

static void recover_table_page(struct space *sp, uint32_t p, uint64_t *refused)
{
	struct table_page *page = &sp->pages[p];

	page->backed = 1;
	page->fresh = ENTRIES_PER_PAGE;
	/* With the page of checksums that it shares with the one before it. */
	add_memory(sp, p % 2 ? PAGE_BYTES : 2 * PAGE_BYTES);
	for (uint32_t i = ENTRIES_PER_PAGE; i-- > 0;) {
		uint32_t index = p * ENTRIES_PER_PAGE + i;
		uint64_t e = atomic_load_explicit(&sp->table[index], memory_order_relaxed);
		uint32_t gen = entry_gen(e);

		if (e & ENTRY_LIVE) {
			if (claim(sp, e)) {
				page->used++;
				continue;
			}
			(*refused)++;
			gen++;
		} else if (e & ENTRY_DOOMED) {
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

/* ---- settling ---- */

/* What all objects add to their classes' sums; kept apart while they are summed up. */
struct sums {
	uint64_t objects[CLASSES_MAX], logical_bytes[CLASSES_MAX], content_bytes[CLASSES_MAX];
};

static void sum_up(struct space *sp, uint32_t index, struct sums *sums, uint64_t *refused)
{
	uint64_t e = atomic_load(&sp->table[index]);
	struct slot_sums one;
	unsigned int class;
	uint32_t used;

	if (e & ENTRY_LIVE) {
		if (object_sums(sp, e, &one, &used)) {
			class = atomic_load(&sp->slab_class[entry_slab(e)]) - 1u;
			sums->objects[class] += one.objects;
			sums->logical_bytes[class] += one.logical_bytes;
			sums->content_bytes[class] += one.content_bytes;
			return;
		}
		/* Nobody but a free changes it now, and then it is free all the same. */
		(*refused)++;
	} else if (!(e & ENTRY_DOOMED)) {
		return;
	}
	unclaim(sp, index, e);
}

/* Notes which pieces a list names. */
static void mark_pieces(const struct space *sp, uint64_t e, uint8_t *named, uint64_t entries)
{
	struct slot_sums sums;
	uint32_t used, slot_bytes;
	const uint8_t *p;

	if (!object_sums(sp, e, &sums, &used))
		return;
	p = slot_at(sp, entry_slab(e), entry_slot(e), &slot_bytes);
	for (uint32_t i = 0; i < 1u << (entry_order(e) - PIECE_ORDER); i++) {
		uint64_t handle;

		memcpy(&handle, p + i * sizeof(handle), sizeof(handle));
		handle_mark(sp, handle, named, entries);
	}
}

static void drop_piece(struct space *sp, uint32_t index, uint64_t e)
{
	struct class_state *c;
	struct slot_sums sums;
	uint32_t used;

	if (!object_sums(sp, e, &sums, &used))
		return;
	c = &sp->classes[atomic_load(&sp->slab_class[entry_slab(e)]) - 1];
	unclaim(sp, index, e);
	pthread_mutex_lock(&c->lock);
	c->logical_bytes -= sums.logical_bytes;
	c->content_bytes -= sums.content_bytes;
	pthread_mutex_unlock(&c->lock);
}

/* named: a bit for each entry, all clear. Returns how many pieces were dropped. */
static uint64_t settle_pieces(struct space *sp, uint64_t entries, uint8_t *named)
{
	uint64_t dropped = 0;

	for (uint64_t i = 0; i < entries; i++) {
		uint64_t e = atomic_load(&sp->table[i]);

		if ((e & ENTRY_LIVE) && entry_coding(e) == CODING_LIST)
			mark_pieces(sp, e, named, entries);
	}
	for (uint64_t i = 0; i < entries; i++) {
		uint64_t e = atomic_load(&sp->table[i]);

		if ((e & ENTRY_LIVE) && (e & ENTRY_PIECE) && !(named[i / 8] >> (i % 8) & 1)) {
			drop_piece(sp, (uint32_t)i, e);
			dropped++;
		}
	}
	return dropped;
}

/* Gives back [*from, to) if there is anything, and goes on behind `next`. */
static void trim_gap(struct space *sp, uint64_t *from, uint64_t to, uint64_t next)
{
	if (to > *from)
		space_trim(sp, *from, to - *from, 0);
	*from = next;
}

/* The slabs in use go back into their classes; the memory between their pages is trimmed. */
static void settle_slabs(struct space *sp, uint32_t first, uint32_t high, struct bits *used,
			 uint64_t end)
{
	uint64_t gap = slab_offset(sp, first), memory = 0;

	for (uint32_t i = first; i < first + high; i++) {
		unsigned int class = atomic_load(&sp->slab_class[i]);
		struct slab *s = &sp->slabs[i];

		if (!s->live) {
			if (class)
				atomic_store(&sp->slab_class[i], 0);
			continue;
		}
		if (!class || class > sp->store->classes.n)
			continue; /* damaged since: its slots are found by nobody any more */
		class -= 1;
		pthread_mutex_lock(&sp->classes[class].lock);
		s->backed = slab_pages_needed(&sp->store->classes.shape[class], s);
		s->list = FULLNESS;
		bits_add(used, i - first);
		chunks_slab_used(sp, i);
		atomic_store(&sp->slab_state[i], SLAB_OPEN);
		sp->classes[class].slabs++;
		sp->slabs_open++;
		slab_list(sp, class, i);
		pthread_mutex_unlock(&sp->classes[class].lock);
		for (uint64_t left = s->backed; left; left &= left - 1) {
			uint64_t at =
				slab_offset(sp, i) + (uint64_t)__builtin_ctzll(left) * PAGE_BYTES;

			memory += PAGE_BYTES;
			trim_gap(sp, &gap, at, at + PAGE_BYTES);
		}
	}
	trim_gap(sp, &gap, end, end);
	add_memory(sp, memory);
}

static uint64_t in_pages(uint64_t bytes)
{
	return (bytes + PAGE_BYTES - 1) / PAGE_BYTES * PAGE_BYTES;
}

int recover(struct space *sp)
{
	const struct ebb_backend_host *host = sp->store->host;
	struct store_header *h = sp->header;
	uint32_t table_pages = atomic_load(&h->table_pages);
	uint64_t refused = 0, n_pages = sp->n_handles / ENTRIES_PER_PAGE;
	int r;

	if (table_pages > n_pages)
		table_pages = (uint32_t)n_pages;
	if (atomic_load(&h->small_high) > sp->n_small)
		atomic_store(&h->small_high, sp->n_small);
	if (atomic_load(&h->large_high) > sp->n_large)
		atomic_store(&h->large_high, sp->n_large);
	atomic_store(&h->table_pages, table_pages);
	add_memory(sp, PAGE_BYTES + in_pages(h->small_high) + in_pages(h->large_high));
	r = running_need(sp, h->small_high, h->large_high, table_pages);
	if (r)
		return r;
	for (uint32_t i = 0; i < table_pages; i++)
		recover_table_page(sp, i, &refused);
	FAULT_POINT(recover_entries);
	if (refused)
		host->log(host->ctx, 1, "%llu damaged entries were dropped",
			  (unsigned long long)refused);
	atomic_store(&sp->unsettled, true);
	return 0;
}

/* All objects are looked at, and their classes told of them. */
static void settle_objects(struct space *sp, uint64_t entries, struct sums *sums)
{
	const struct ebb_backend_host *host = sp->store->host;
	uint64_t refused = 0;

	for (uint64_t i = 0; i < entries; i++)
		sum_up(sp, (uint32_t)i, sums, &refused);
	for (unsigned int i = 0; i < sp->store->classes.n; i++) {
		struct class_state *c = &sp->classes[i];

		pthread_mutex_lock(&c->lock);
		c->objects += sums->objects[i];
		c->logical_bytes += sums->logical_bytes[i];
		c->content_bytes += sums->content_bytes[i];
		pthread_mutex_unlock(&c->lock);
	}
	if (refused)
		host->log(host->ctx, 1, "%llu objects of impossible length were dropped",
			  (unsigned long long)refused);
}

/* Frees what was freed while nobody could: all of it has its sums by now. */
static void free_doomed(struct space *sp, uint64_t entries)
{
	for (uint64_t i = 0; i < entries; i++) {
		uint64_t e = atomic_load(&sp->table[i]);

		if (e & ENTRY_DOOMED)
			object_forget(sp, (uint32_t)i, e);
	}
}

static void settle(struct space *sp, uint32_t table_pages, struct sums *sums, uint8_t *named)
{
	const struct ebb_backend_host *host = sp->store->host;
	uint64_t entries = (uint64_t)table_pages * ENTRIES_PER_PAGE, dropped;
	struct store_header *h = sp->header;
	uint32_t p = 0;

	settle_objects(sp, entries, sums);
	dropped = settle_pieces(sp, entries, named);
	settle_slabs(sp, 0, h->small_high, &sp->small_used, sp->large_offset);
	settle_slabs(sp, sp->n_small, h->large_high, &sp->large_used, sp->chunks_offset);
	chunks_trim_all(sp);
	pthread_mutex_lock(&sp->doom_lock);
	atomic_store(&sp->unsettled, false);
	pthread_mutex_unlock(&sp->doom_lock);
	free_doomed(sp, entries);
	handle_pages_trim(sp, &p, table_pages);
	host->log(host->ctx, 2, "took over a store; %llu unfinished pieces were freed",
		  (unsigned long long)dropped);
}

int recover_settle(struct space *sp)
{
	uint32_t table_pages;
	struct sums *sums;
	uint8_t *named;
	int r = 0;

	pthread_mutex_lock(&sp->settle_lock);
	if (atomic_load(&sp->unsettled)) {
		table_pages = atomic_load(&sp->header->table_pages);
		sums = calloc(1, sizeof(*sums));
		named = calloc((uint64_t)table_pages * ENTRIES_PER_PAGE / 8 + 1, 1);
		if (sums && named)
			settle(sp, table_pages, sums, named);
		else
			r = -ENOMEM; /* nothing was begun: whoever comes next tries again */
		free(sums);
		free(named);
	}
	pthread_mutex_unlock(&sp->settle_lock);
	return r;
}
