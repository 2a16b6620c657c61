/* SPDX-License-Identifier: BSD-3-Clause */
/* compact.c: idle-time work: moving objects together and giving memory back. */
#include <errno.h>
#include <string.h>
#include <time.h>

#include "../../src/base/fault_point.h"
#include "store.h"

/*
 * Theory of operation
 *
 * compact() is called now and then with a budget of time and keeps its place between calls:
 *
 *   REST       looks whether enough memory is taken beyond what the slots in use fill. If so, it
 *              sets the sparsest slabs of each class apart, as many as the others have room for
 *              and one whose objects would take fewer pages in a new slab, and begins a sweep.
 *              If not, it gives back what lies idle, and rests on.
 *   SWEEP      walks the handle table and moves each object that lives in a slab set apart. There
 *              is no map from slots to handles: a sweep serves all slabs at once, costs 8 bytes
 *              of reading a handle, and the map would cost 4 bytes an object at all times.
 *   GRACE      waits until every channel that may still read from the old places has left.
 *   GIVE_BACK  gives the emptied slabs back; one that did not become empty returns to its class.
 *
 * A move is: take a slot in another slab of the class, copy, compare-and-swap the entry, release
 * the old slot. If the swap fails the object was freed meanwhile, and the copy is dropped. No lock
 * is held while copying, so loads never wait, and stores and frees wait for no more than a slot.
 *
 * A crash anywhere in this leaves each object in exactly one place: where its entry says.
 *
 * Thread: any, one at a time (maintain_lock; a second caller goes away at once).
 */

/* A cycle begins when more than 1/32 of the memory is not filled by slots in use. */
#define WASTE_SHIFT 5
/* A sweep must promise to bring 1/128 of it back. */
#define GAIN_SHIFT    7
#define SET_APART_MAX 2048u /* slabs of a class in one cycle */
#define TRIM_LOOKS    64u   /* slabs of a class looked at for pages to trim */

static uint64_t now_us(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000 + (uint64_t)t.tv_nsec / 1000;
}

static enum slab_state state_of(const struct space *sp, uint32_t slab)
{
	return (enum slab_state)atomic_load_explicit(&sp->slab_state[slab], memory_order_relaxed);
}

static void set_state(struct space *sp, uint32_t slab, enum slab_state state)
{
	atomic_store_explicit(&sp->slab_state[slab], (uint8_t)state, memory_order_relaxed);
}

/* ---- REST ---- */

/* Takes a slab out of its class. Under the class's lock. */
static void take_apart(struct space *sp, unsigned int class, uint32_t i, uint32_t *chain)
{
	slab_unlist(sp, class, i);
	sp->classes[class].slabs--;
	set_state(sp, i, SLAB_APART);
	sp->slabs[i].next = *chain;
	*chain = i;
}

/* Ends that: back into the class, or into the pool when it is empty. Returns bytes given back. */
static uint64_t put_back(struct space *sp, uint32_t i)
{
	unsigned int class = atomic_load_explicit(&sp->slab_class[i], memory_order_relaxed) - 1u;
	struct class_state *c = &sp->classes[class];
	struct slab *s = &sp->slabs[i];
	uint64_t bytes = (uint64_t)__builtin_popcountll(s->backed) * PAGE_BYTES;
	bool empty;

	pthread_mutex_lock(&c->lock);
	empty = !s->live;
	set_state(sp, i, empty ? SLAB_IDLE : SLAB_OPEN);
	s->list = FULLNESS;
	if (!empty) {
		c->slabs++;
		slab_list(sp, class, i);
	}
	pthread_mutex_unlock(&c->lock);
	if (!empty)
		return 0;
	atomic_fetch_sub(&sp->slabs_open, 1);
	slab_give_back(sp, i, true);
	return bytes;
}

/*
 * The sparsest slab left of a class may hold its few objects scattered over many pages: in a new
 * slab they lie together. Under the class's lock. Returns bytes that this saves.
 */
static uint64_t set_scattered_apart(struct space *sp, unsigned int class)
{
	const struct class_shape *shape = &sp->store->classes.shape[class];
	struct class_state *c = &sp->classes[class];

	for (unsigned int f = 0; f < FULLNESS; f++) {
		uint32_t i = c->first[f];
		uint64_t have, need;

		if (i == NONE)
			continue;
		have = (uint64_t)__builtin_popcountll(sp->slabs[i].backed);
		need = ((uint64_t)sp->slabs[i].live * shape->slot_bytes + PAGE_BYTES - 1) /
		       PAGE_BYTES;
		if (have <= need + need / 4)
			break;
		take_apart(sp, class, i, &sp->compact.slabs);
		return (have - need) * PAGE_BYTES;
	}
	return 0;
}

/* Sets slabs of a class apart while the others have room for what is in them. Returns bytes. */
static uint64_t set_apart(struct space *sp, unsigned int class)
{
	const struct class_shape *shape = &sp->store->classes.shape[class];
	struct class_state *c = &sp->classes[class];
	uint64_t room, moving = 0, bytes = 0;
	bool fits = true;

	pthread_mutex_lock(&c->lock);
	room = (uint64_t)c->slabs * shape->slots - c->slots_used;
	for (unsigned int f = 0, n = 0; f < FULLNESS && fits; f++) {
		while (c->first[f] != NONE && fits) {
			uint32_t i = c->first[f];
			struct slab *s = &sp->slabs[i];

			/* Without this slab's own free slots, all that moves must have a place. */
			fits = room >= (uint64_t)shape->slots + moving && n++ < SET_APART_MAX;
			if (!fits)
				break;
			room -= (uint64_t)shape->slots - s->live;
			moving += s->live;
			bytes += (uint64_t)__builtin_popcountll(s->backed) * PAGE_BYTES;
			take_apart(sp, class, i, &sp->compact.slabs);
		}
	}
	bytes += set_scattered_apart(sp, class);
	pthread_mutex_unlock(&c->lock);
	return bytes;
}

/* Bytes that have memory and are in no slot that is in use; and whether nothing moves here. */
static uint64_t waste(struct space *sp, uint64_t *in_use, bool *at_rest)
{
	uint64_t taken = 0, have = atomic_load(&sp->mem_bytes);

	*in_use = 0;
	for (unsigned int i = 0; i < sp->store->classes.n; i++) {
		struct class_state *c = &sp->classes[i];

		pthread_mutex_lock(&c->lock);
		*in_use += c->slots_used * sp->store->classes.shape[i].slot_bytes;
		taken += c->taken;
		pthread_mutex_unlock(&c->lock);
	}
	*at_rest = taken == sp->compact.last_taken;
	sp->compact.last_taken = taken;
	return have > *in_use ? have - *in_use : 0;
}

/* Gives back pages of a slab set apart that no slot in use lies in. */
static void trim_slab(struct space *sp, uint32_t i)
{
	unsigned int class = atomic_load_explicit(&sp->slab_class[i], memory_order_relaxed) - 1u;
	const struct class_shape *shape = &sp->store->classes.shape[class];
	struct slab *s = &sp->slabs[i];
	uint64_t spare;

	pthread_mutex_lock(&sp->classes[class].lock);
	spare = s->backed & ~slab_pages_needed(shape, s);
	pthread_mutex_unlock(&sp->classes[class].lock);
	while (spare) {
		uint32_t first = (uint32_t)__builtin_ctzll(spare), n = 0;
		uint64_t run = 0;

		for (; first + n < 64 && (spare >> (first + n) & 1); n++)
			run |= UINT64_C(1) << (first + n);
		if (space_trim(sp, slab_offset(sp, i) + (uint64_t)first * PAGE_BYTES,
			       (uint64_t)n * PAGE_BYTES, (uint64_t)n * PAGE_BYTES))
			break;
		s->backed &= ~run;
		spare &= ~run;
	}
}

/*
 * Trims the sparsest slabs of a class. Each is set apart for it, so that the calls into the
 * kernel are made without the lock.
 */
static void trim_class(struct space *sp, unsigned int class)
{
	const struct class_shape *shape = &sp->store->classes.shape[class];
	struct class_state *c = &sp->classes[class];
	unsigned int looks = TRIM_LOOKS;
	uint32_t chain = NONE;

	pthread_mutex_lock(&c->lock);
	for (unsigned int f = 0; f < FULLNESS && looks; f++) {
		uint32_t next;

		for (uint32_t i = c->first[f]; i != NONE && looks; i = next, looks--) {
			next = sp->slabs[i].next;
			if (sp->slabs[i].backed & ~slab_pages_needed(shape, &sp->slabs[i]))
				take_apart(sp, class, i, &chain);
		}
	}
	pthread_mutex_unlock(&c->lock);
	while (chain != NONE) {
		uint32_t i = chain;

		chain = sp->slabs[i].next;
		trim_slab(sp, i);
		put_back(sp, i);
	}
}

/* Begins a cycle, or trims what can be trimmed without one. True when there is more to do. */
static bool rest(struct space *sp)
{
	struct compaction *k = &sp->compact;
	uint64_t in_use, gain = 0, wasted;
	uint32_t page = 0;
	bool at_rest;

	wasted = waste(sp, &in_use, &at_rest);
	if (wasted <= in_use >> WASTE_SHIFT) {
		if (at_rest)
			slab_reserve_trim(sp);
		return false;
	}
	for (unsigned int i = 0; i < sp->store->classes.n; i++)
		gain += set_apart(sp, i);
	if (gain && gain >= in_use >> GAIN_SHIFT) {
		k->phase = COMPACT_SWEEP;
		k->page = 0;
		k->given_back = 0;
		return true;
	}
	while (k->slabs != NONE) {
		uint32_t i = k->slabs;

		k->slabs = sp->slabs[i].next;
		put_back(sp, i);
	}
	/* Pages that a growing slab needs next are left to it. */
	if (at_rest) {
		slab_reserve_trim(sp);
		for (unsigned int i = 0; i < sp->store->classes.n; i++)
			trim_class(sp, i);
		handle_pages_trim(sp, &page, UINT32_MAX);
	}
	return false;
}

/* ---- SWEEP ---- */

static void move(struct space *sp, uint32_t index, uint64_t e)
{
	const struct slot_sums none = {0};
	struct slot from = {entry_slab(e), entry_slot(e)}, to;
	unsigned int class;
	struct slot_sums sums;
	uint32_t bytes, room;

	/* What is damaged stays where it is. */
	if (!object_sums(sp, e, &sums, &bytes))
		return;
	class = atomic_load_explicit(&sp->slab_class[from.slab], memory_order_relaxed) - 1u;
	if (slot_take(sp, class, &none, &to))
		return;
	memcpy(slot_at(sp, to.slab, to.slot, &room), slot_at(sp, from.slab, from.slot, &room),
	       bytes);
	FAULT_POINT(compact_copied);
	if (atomic_compare_exchange_strong(&sp->table[index], &e,
					   entry_moved(e, to.slab, to.slot))) {
		FAULT_POINT(compact_moved);
		slot_release(sp, from, &none);
		atomic_fetch_add(&sp->store->count[COUNT_MOVED], 1);
	} else {
		slot_release(sp, to, &none);
	}
}

static bool sweep(struct space *sp, uint64_t deadline_us)
{
	struct compaction *k = &sp->compact;
	uint32_t end = atomic_load(&sp->header->table_pages);

	for (; k->page < end; k->page++) {
		uint32_t index = k->page * ENTRIES_PER_PAGE;

		if (now_us() >= deadline_us)
			return true;
		if (!handle_page_used(sp, k->page))
			continue;
		for (uint32_t i = 0; i < ENTRIES_PER_PAGE; i++, index++) {
			uint64_t e = atomic_load(&sp->table[index]);

			if ((e & ENTRY_LIVE) && entry_slab(e) < sp->n_small + sp->n_large &&
			    state_of(sp, entry_slab(e)) == SLAB_APART)
				move(sp, index, e);
		}
	}
	k->retired = atomic_fetch_add(&sp->store->epoch, 1) + 1;
	k->phase = COMPACT_GRACE;
	return true;
}

/* ---- GRACE, GIVE_BACK ---- */

bool store_quiescent(struct store *st, uint64_t retired)
{
	bool quiescent = true;

	pthread_mutex_lock(&st->lock);
	for (const struct channel *ch = st->channels; ch && quiescent; ch = ch->next) {
		uint64_t e = atomic_load(&ch->epoch);

		quiescent = !e || e >= retired;
	}
	pthread_mutex_unlock(&st->lock);
	return quiescent;
}

static bool give_back(struct space *sp, uint64_t deadline_us)
{
	struct compaction *k = &sp->compact;

	while (k->slabs != NONE) {
		uint32_t i = k->slabs;

		if (now_us() >= deadline_us)
			return true;
		k->slabs = sp->slabs[i].next;
		k->given_back += put_back(sp, i);
	}
	k->phase = COMPACT_REST;
	atomic_fetch_add(&sp->store->count[COUNT_CYCLES], 1);
	atomic_fetch_add(&sp->store->count[COUNT_RELEASED], k->given_back);
	return k->given_back > 0;
}

int compact(struct space *sp, uint32_t budget_us)
{
	uint64_t deadline_us = now_us() + budget_us;
	bool more = true;

	if (atomic_load(&sp->unsettled) || pthread_mutex_trylock(&sp->maintain_lock))
		return 0;
	do {
		switch (sp->compact.phase) {
		case COMPACT_REST:
			more = rest(sp);
			break;
		case COMPACT_SWEEP:
			more = sweep(sp, deadline_us);
			break;
		case COMPACT_GRACE:
			if (!store_quiescent(sp->store, sp->compact.retired))
				goto out;
			sp->compact.phase = COMPACT_GIVE_BACK;
			break;
		case COMPACT_GIVE_BACK:
			more = give_back(sp, deadline_us);
			break;
		}
	} while (more && now_us() < deadline_us);
out:
	pthread_mutex_unlock(&sp->maintain_lock);
	return more;
}
