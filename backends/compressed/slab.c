/* SPDX-License-Identifier: BSD-3-Clause */
/* slab.c: slabs: where slots come from and where empty slabs go. */
#include <errno.h>
#include <string.h>

#include "store.h"

/*
 * Theory of operation
 *
 * A slab is a run of pages cut into slots of one size class. The memory under it is sparse: pages
 * get memory when the first slot in them is taken (asked for with a call that can fail, since a
 * touch without memory would be a SIGBUS), and the lowest free slot is taken first.
 *
 * The open slabs of a class that have a free slot are in one of FULLNESS lists; slots come from
 * the fullest, so that the sparse ones drain. A slab that becomes empty leaves its class: a few
 * are kept with their memory in a reserve, the rest are given back at once.
 *
 * What a slot holds is no business of this file.
 *
 * Locks: a class's slabs are under the class's lock; the pool of unused slabs is under pool_lock.
 * An APART slab belongs to maintain(): here its slots are released, and nothing more.
 */

/* A class with this many slabs gets its memory in runs of pages, to save calls. */
#define RUN_FROM_SLABS 16u
#define RUN_PAGES      4u

void slab_init(struct space *sp)
{
	pthread_mutex_init(&sp->pool_lock, NULL);
	for (unsigned int c = 0; c < CLASSES_MAX; c++) {
		store_lock_init(&sp->classes[c].lock);
		for (unsigned int f = 0; f < FULLNESS; f++)
			sp->classes[c].first[f] = NONE;
	}
}

uint64_t slab_offset(const struct space *sp, uint32_t slab)
{
	return slab < sp->n_small
		       ? sp->small_offset + (uint64_t)slab * SMALL_STRIDE
		       : sp->large_offset + (uint64_t)(slab - sp->n_small) * LARGE_STRIDE;
}

static uint64_t page_run(uint32_t first, uint32_t n)
{
	return (n >= 64 ? ~UINT64_C(0) : (UINT64_C(1) << n) - 1) << first;
}

uint64_t slot_pages(const struct class_shape *shape, uint32_t slot)
{
	uint32_t first = slot * shape->slot_bytes / PAGE_BYTES;
	uint32_t last = ((slot + 1) * shape->slot_bytes - 1) / PAGE_BYTES;

	return page_run(first, last - first + 1);
}

uint64_t slab_pages_needed(const struct class_shape *shape, const struct slab *s)
{
	uint64_t pages = 0;

	for (uint32_t w = 0; w < SLOTS_MAX / 64; w++)
		for (uint64_t left = s->used[w]; left; left &= left - 1)
			pages |= slot_pages(shape, w * 64 + (uint32_t)__builtin_ctzll(left));
	return pages;
}

/* ---- the lists of a class ---- */

static uint8_t fullness(const struct class_shape *shape, const struct slab *s)
{
	if (s->live == shape->slots)
		return FULLNESS;
	return (uint8_t)(s->live * FULLNESS / shape->slots);
}

void slab_unlist(struct space *sp, unsigned int class, uint32_t slab)
{
	struct class_state *c = &sp->classes[class];
	struct slab *s = &sp->slabs[slab];

	if (s->list == FULLNESS)
		return;
	if (s->prev != NONE)
		sp->slabs[s->prev].next = s->next;
	else
		c->first[s->list] = s->next;
	if (s->next != NONE)
		sp->slabs[s->next].prev = s->prev;
	s->list = FULLNESS;
}

void slab_list(struct space *sp, unsigned int class, uint32_t slab)
{
	struct class_state *c = &sp->classes[class];
	struct slab *s = &sp->slabs[slab];
	uint8_t list = fullness(&sp->store->classes.shape[class], s);

	if (list == s->list)
		return;
	slab_unlist(sp, class, slab);
	if (list == FULLNESS)
		return;
	s->list = list;
	s->prev = NONE;
	s->next = c->first[list];
	if (s->next != NONE)
		sp->slabs[s->next].prev = slab;
	c->first[list] = slab;
}

/* ---- the pool ---- */

static uint32_t pool_take_new(struct space *sp, bool large)
{
	struct bits *used = large ? &sp->large_used : &sp->small_used;
	_Atomic uint32_t *high = large ? &sp->header->large_high : &sp->header->small_high;
	int64_t i = bits_lowest_absent(used);
	uint32_t slab;

	if (i < 0)
		return NONE;
	slab = (uint32_t)i + (large ? sp->n_small : 0);
	if (chunks_need(sp, slab)) {
		slab = chunks_spare_slab(sp, large);
		if (slab == NONE)
			return NONE;
		i = slab - (large ? sp->n_small : 0);
	}
	if ((uint64_t)i >= atomic_load(high)) {
		uint64_t page = (sp->class_offset + slab) / PAGE_BYTES * PAGE_BYTES;

		/* The first slab whose class byte lies in a new page. */
		if ((sp->class_offset + slab) % PAGE_BYTES == 0)
			if (space_populate(sp, page, PAGE_BYTES))
				goto full;
		if (running_need_slabs(sp, large, atomic_load(high), (uint32_t)i + 1))
			goto full;
		atomic_store(high, (uint32_t)i + 1);
	}
	bits_add(used, (uint64_t)i);
	chunks_slab_used(sp, slab);
	return slab;
full:
	chunks_trim(sp, slab);
	return NONE;
}

/* An idle slab, preferably one that still has memory. NONE when there is none. */
static uint32_t pool_take(struct space *sp, bool large)
{
	struct slab_reserve *reserve = large ? &sp->large_reserve : &sp->small_reserve;
	uint32_t slab;

	pthread_mutex_lock(&sp->pool_lock);
	slab = reserve->n ? reserve->slab[--reserve->n] : pool_take_new(sp, large);
	pthread_mutex_unlock(&sp->pool_lock);
	return slab;
}

static void pool_forget(struct space *sp, uint32_t slab)
{
	if (slab < sp->n_small)
		bits_remove(&sp->small_used, slab);
	else
		bits_remove(&sp->large_used, slab - sp->n_small);
	chunks_slab_unused(sp, slab);
	chunks_trim(sp, slab);
}

static void slab_trim(struct space *sp, uint32_t slab)
{
	struct slab *s = &sp->slabs[slab];
	uint32_t stride = slab < sp->n_small ? SMALL_STRIDE : LARGE_STRIDE;

	/* If that fails, the memory is still there, for whoever gets the slab next. */
	if (s->backed && !space_trim(sp, slab_offset(sp, slab), stride,
				     (uint64_t)__builtin_popcountll(s->backed) * PAGE_BYTES))
		s->backed = 0;
}

void slab_give_back(struct space *sp, uint32_t slab, bool trim)
{
	bool large = slab >= sp->n_small;
	struct slab_reserve *reserve = large ? &sp->large_reserve : &sp->small_reserve;
	bool kept = false;

	if (!trim) {
		/* What is kept must stay small beside what is in use. */
		uint64_t most = atomic_load(&sp->slabs_open) / 64;

		pthread_mutex_lock(&sp->pool_lock);
		if (reserve->n < RESERVE_MAX && reserve->n < most) {
			reserve->slab[reserve->n++] = slab;
			kept = true;
		}
		pthread_mutex_unlock(&sp->pool_lock);
	}
	if (kept)
		return;
	slab_trim(sp, slab);
	atomic_store_explicit(&sp->slab_class[slab], 0, memory_order_relaxed);
	pthread_mutex_lock(&sp->pool_lock);
	pool_forget(sp, slab);
	pthread_mutex_unlock(&sp->pool_lock);
}

uint64_t slab_reserve_trim(struct space *sp)
{
	uint64_t freed = 0;

	for (int large = 0; large <= 1; large++) {
		struct slab_reserve *reserve = large ? &sp->large_reserve : &sp->small_reserve;

		for (;;) {
			uint32_t slab = NONE;

			pthread_mutex_lock(&sp->pool_lock);
			if (reserve->n)
				slab = reserve->slab[--reserve->n];
			pthread_mutex_unlock(&sp->pool_lock);
			if (slab == NONE)
				break;
			freed +=
				(uint64_t)__builtin_popcountll(sp->slabs[slab].backed) * PAGE_BYTES;
			slab_give_back(sp, slab, true);
		}
	}
	return freed;
}

/* ---- slots ---- */

/*
 * Gives the missing pages of a slot memory; in a large class, when there is enough, some more,
 * which come next anyway.
 */
static int slab_back(struct space *sp, unsigned int class, uint32_t slab, uint32_t slot)
{
	const struct class_shape *shape = &sp->store->classes.shape[class];
	struct slab *s = &sp->slabs[slab];
	uint64_t missing;

	while ((missing = slot_pages(shape, slot) & ~s->backed)) {
		uint64_t offset = slab_offset(sp, slab);
		uint32_t first = (uint32_t)__builtin_ctzll(missing);
		uint32_t n = 1, run = 1;
		int r = -ENOSPC;

		while (missing >> first >> n & 1)
			n++;
		if (sp->classes[class].slabs >= RUN_FROM_SLABS)
			while (run < RUN_PAGES && first + run < shape->pages &&
			       !(s->backed >> (first + run) & 1))
				run++;
		offset += (uint64_t)first * PAGE_BYTES;
		if (run > n && !space_populate(sp, offset, (uint64_t)run * PAGE_BYTES)) {
			n = run;
			r = 0;
		}
		if (r)
			r = space_populate(sp, offset, (uint64_t)n * PAGE_BYTES);
		if (r)
			return r;
		s->backed |= page_run(first, n);
	}
	return 0;
}

static uint32_t lowest_free_slot(const struct class_shape *shape, const struct slab *s)
{
	for (uint32_t w = 0; w < SLOTS_MAX / 64; w++) {
		if (~s->used[w]) {
			uint32_t slot = w * 64 + (uint32_t)__builtin_ctzll(~s->used[w]);

			return slot < shape->slots ? slot : NONE;
		}
	}
	return NONE;
}

/* No memory is left: a free slot in pages that have some. */
static bool find_backed(struct space *sp, unsigned int class, struct slot *out)
{
	const struct class_shape *shape = &sp->store->classes.shape[class];
	struct class_state *c = &sp->classes[class];
	unsigned int looks = 256;

	for (unsigned int f = FULLNESS; f-- > 0;) {
		for (uint32_t i = c->first[f]; i != NONE && looks; i = sp->slabs[i].next) {
			const struct slab *s = &sp->slabs[i];

			for (uint32_t slot = 0; slot < shape->slots && looks; slot++) {
				if (s->used[slot / 64] >> (slot % 64) & 1)
					continue;
				if (!(slot_pages(shape, slot) & ~s->backed)) {
					*out = (struct slot){i, slot};
					return true;
				}
				looks--;
			}
		}
	}
	return false;
}

/* A slab of the class with a free slot. Under the class's lock. */
static uint32_t slab_with_room(struct space *sp, unsigned int class)
{
	const struct class_shape *shape = &sp->store->classes.shape[class];
	struct class_state *c = &sp->classes[class];
	uint32_t slab;

	for (unsigned int f = FULLNESS; f-- > 0;)
		if (c->first[f] != NONE)
			return c->first[f];
	slab = pool_take(sp, shape->large);
	if (slab == NONE)
		return NONE;
	memset(sp->slabs[slab].used, 0, sizeof(sp->slabs[slab].used));
	sp->slabs[slab].live = 0;
	sp->slabs[slab].list = FULLNESS;
	atomic_store_explicit(&sp->slab_class[slab], (uint8_t)(class + 1), memory_order_relaxed);
	atomic_store_explicit(&sp->slab_state[slab], SLAB_OPEN, memory_order_relaxed);
	c->slabs++;
	atomic_fetch_add(&sp->slabs_open, 1);
	slab_list(sp, class, slab);
	return slab;
}

/* Takes an empty open slab out of its class. Under the class's lock. */
static void slab_leave_class(struct space *sp, unsigned int class, uint32_t slab)
{
	slab_unlist(sp, class, slab);
	atomic_store_explicit(&sp->slab_state[slab], SLAB_IDLE, memory_order_relaxed);
	sp->classes[class].slabs--;
	atomic_fetch_sub(&sp->slabs_open, 1);
}

int slot_take(struct space *sp, unsigned int class, const struct slot_sums *sums, struct slot *out)
{
	const struct class_shape *shape = &sp->store->classes.shape[class];
	struct class_state *c = &sp->classes[class];
	struct slot at = {NONE, 0};
	uint32_t empty = NONE;
	int r = -ENOSPC;

	pthread_mutex_lock(&c->lock);
	at.slab = slab_with_room(sp, class);
	if (at.slab == NONE)
		goto out;
	at.slot = lowest_free_slot(shape, &sp->slabs[at.slab]);
	r = slab_back(sp, class, at.slab, at.slot);
	if (r) {
		if (!sp->slabs[at.slab].live) {
			empty = at.slab;
			slab_leave_class(sp, class, empty);
		}
		if (!find_backed(sp, class, &at))
			goto out;
		r = 0;
	}
	sp->slabs[at.slab].used[at.slot / 64] |= UINT64_C(1) << (at.slot % 64);
	sp->slabs[at.slab].live++;
	slab_list(sp, class, at.slab);
	c->slots_used++;
	c->objects += sums->objects;
	c->logical_bytes += sums->logical_bytes;
	c->content_bytes += sums->content_bytes;
	c->taken++;
out:
	pthread_mutex_unlock(&c->lock);
	if (empty != NONE)
		slab_give_back(sp, empty, true);
	if (!r)
		*out = at;
	return r;
}

void slot_release(struct space *sp, struct slot at, const struct slot_sums *sums)
{
	unsigned int class;
	struct class_state *c;
	bool emptied = false;
	struct slab *s;
	uint32_t bytes;

	/* Only an entry that is damaged names what is no slot, or not taken. */
	if (!slot_at(sp, at.slab, at.slot, &bytes))
		return;
	class = atomic_load_explicit(&sp->slab_class[at.slab], memory_order_relaxed) - 1u;
	c = &sp->classes[class];
	s = &sp->slabs[at.slab];
	pthread_mutex_lock(&c->lock);
	if (!(s->used[at.slot / 64] >> (at.slot % 64) & 1))
		goto out;
	s->used[at.slot / 64] &= ~(UINT64_C(1) << (at.slot % 64));
	s->live--;
	c->slots_used--;
	c->objects -= sums->objects;
	c->logical_bytes -= sums->logical_bytes;
	c->content_bytes -= sums->content_bytes;
	if (atomic_load_explicit(&sp->slab_state[at.slab], memory_order_relaxed) == SLAB_OPEN) {
		if (s->live) {
			slab_list(sp, class, at.slab);
		} else {
			slab_leave_class(sp, class, at.slab);
			emptied = true;
		}
	}
out:
	pthread_mutex_unlock(&c->lock);
	if (emptied)
		slab_give_back(sp, at.slab, false);
}
