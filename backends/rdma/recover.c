/* SPDX-License-Identifier: BSD-3-Clause */
/* recover.c: taking over a map that another daemon left behind, at whatever instruction. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "rdma.h"

/*
 * Theory of operation
 *
 * The map was out of our hands, so nothing in it is believed before it is checked: a chunk's donor
 * must be one that the header names, an entry's places must be slots of chunks of its order that no
 * other entry has. What does not hold up is made free, with its generation moved on, so that its
 * handle is refused from then on. Then chains are checked: a piece that is not reached from exactly
 * one live first entry was being stored or freed when the daemon died, and is freed; an object that
 * lacks a piece goes as a whole.
 *
 * Whether the donors still have the chunks is told when they are claimed (share_claimed()).
 * Runs in space_open(), alone with the space.
 */

static bool chunk_good(const struct space *sp, uint64_t w)
{
	return !(w >> 41) && (w & CHUNK_OURS) && chunk_donor(w) < DONORS_MAX &&
	       sp->header->donors[chunk_donor(w)].name[0] && chunk_order(w) <= PIECE_ORDER;
}

static void recover_chunks(struct space *sp)
{
	for (uint32_t row = 0; row < sp->header->chunks_high; row++) {
		struct chunk *c = &sp->chunks[row];
		uint64_t w = atomic_load(&sp->words[row]);

		if (!w || !chunk_good(sp, w)) {
			chunk_give_row(sp, row);
			continue;
		}
		c->donor = (uint8_t)chunk_donor(w);
		c->order = (uint8_t)chunk_order(w);
		c->number = (uint32_t)w;
		c->state = w & CHUNK_GONE ? CHUNK_LOST : CHUNK_OPEN;
		sp->shares[c->donor].n_chunks += c->state == CHUNK_OPEN;
	}
}

/* Marks the slot of a place as taken. False when it cannot be. */
static bool claim(struct space *sp, uint64_t at, unsigned int order)
{
	uint32_t row = place_chunk(at), slot = place_slot(at);
	struct chunk *c;

	if (row >= sp->header->chunks_high)
		return false;
	c = &sp->chunks[row];
	if (c->state == CHUNK_FREE || c->order != order || slot >= SLOTS_MAX >> order ||
	    (c->slots[slot / 64] >> (slot % 64) & 1))
		return false;
	c->slots[slot / 64] |= UINT64_C(1) << (slot % 64);
	c->used++;
	return true;
}

static void unclaim(struct space *sp, uint64_t at)
{
	struct chunk *c = &sp->chunks[place_chunk(at)];

	c->slots[place_slot(at) / 64] &= ~(UINT64_C(1) << (place_slot(at) % 64));
	c->used--;
}

static void make_free(struct space *sp, uint32_t index, uint64_t head)
{
	struct entry *e = &sp->entries[index];
	uint16_t gen = head & HEAD_USED ? (uint16_t)(head_gen(head) + !!(head & HEAD_LIVE))
					: entry_first_gen(sp, index);

	atomic_store(&e->head, head_make(0, gen, 0, HEAD_USED));
	for (unsigned int k = 0; k < COPIES; k++)
		atomic_store(&e->at[k], 0);
	sp->free_entries[index] = sp->first_entry;
	sp->first_entry = index + 1;
}

/* Takes the places of a live entry. False when it is none. */
static bool recover_entry(struct space *sp, struct entry *e, uint64_t head)
{
	unsigned int order = piece_order(head_order(head)), copies = 0;

	if (head & ~HEAD_KNOWN || !(head & HEAD_USED) || head_order(head) > ORDER_MAX ||
	    e->count >= sp->next_count)
		return false;
	for (unsigned int k = 0; k < COPIES; k++) {
		uint64_t at = atomic_load(&e->at[k]);

		if (at && !claim(sp, at, order))
			atomic_store(&e->at[k], 0);
		else
			copies += at != 0;
	}
	return copies > 0;
}

/* Walks a chain. True when all of it is there; marks what it reaches. */
static bool chain(const struct space *sp, uint32_t first, uint64_t head, uint8_t *reached,
		  bool mark)
{
	uint32_t n = pieces_of(head_order(head)), index = first;
	unsigned int order = head_order(head);

	for (uint32_t i = 0;; i++) {
		if (mark)
			reached[index] = 1;
		if (i == n - 1)
			return !head_next(head);
		index = head_next(head) - 1;
		if (!head_next(head) || index >= sp->header->entries_high || reached[index])
			return false;
		head = atomic_load(&sp->entries[index].head);
		if (!(head & HEAD_LIVE) || !(head & HEAD_PIECE) || head_order(head) != order)
			return false;
	}
}

static void drop_unreached(struct space *sp, const uint8_t *reached)
{
	for (uint32_t i = sp->header->entries_high; i-- > 0;) {
		struct entry *e = &sp->entries[i];
		uint64_t head = atomic_load(&e->head);

		if (!(head & HEAD_LIVE) || reached[i])
			continue;
		for (unsigned int k = 0; k < COPIES; k++)
			if (atomic_load(&e->at[k]))
				unclaim(sp, atomic_load(&e->at[k]));
		make_free(sp, i, head);
	}
}

static void list_chunks(struct space *sp)
{
	for (uint32_t row = 0; row < sp->header->chunks_high; row++) {
		struct chunk *c = &sp->chunks[row];

		if (c->state == CHUNK_LOST && !c->used) {
			chunk_give_row(sp, row);
		} else if (c->state == CHUNK_OPEN) {
			if (!c->used)
				c->state = CHUNK_POOL;
			if (c->used < SLOTS_MAX >> c->order)
				chunk_list(sp, row);
		}
	}
}

int recover(struct space *sp)
{
	uint32_t high = sp->header->entries_high;
	uint8_t *reached = calloc(high + 1, 1);

	if (!reached)
		return -ENOMEM;
	recover_chunks(sp);
	for (uint32_t i = high; i-- > 0;) {
		struct entry *e = &sp->entries[i];
		uint64_t head = atomic_load(&e->head);

		if (!(head & HEAD_LIVE) || !recover_entry(sp, e, head))
			make_free(sp, i, head);
	}
	for (uint32_t i = 0; i < high; i++) {
		uint64_t head = atomic_load(&sp->entries[i].head);

		if (!(head & HEAD_LIVE) || (head & HEAD_PIECE) || reached[i] ||
		    !chain(sp, i, head, reached, false))
			continue;
		chain(sp, i, head, reached, true);
		sp->objects++;
		sp->pieces += pieces_of(head_order(head));
		sp->logical_bytes += (uint64_t)PAGE_BYTES << head_order(head);
	}
	drop_unreached(sp, reached);
	list_chunks(sp);
	free(reached);
	return 0;
}
