/* SPDX-License-Identifier: BSD-3-Clause */
/* clean.c: moving what lives in sparse segments together, so that those become free. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "ssd.h"

/*
 * Theory of operation
 *
 * Greedy (M. Rosenblum, J. Ousterhout, The design and implementation of a log-structured file
 * system, 1992, 3.5): the segment with the least in it first. Moved objects go into a segment of
 * their own, so that what has lived long does not mix with what is new.
 *
 * Only the keeper's thread is here, under clean_lock. The content is copied as it is on the device
 * and not looked at: its sum belongs to the handle, not to the place, and a damaged object stays
 * what it is, found when it is loaded. An object moves with one compare-and-swap, which fails if
 * it was freed meanwhile; loads under way read the old place on, for which the segment stays.
 */

struct move {
	uint32_t index;
	uint64_t from, to; /* entries */
};

struct cleaning {
	struct ssd *d;
	struct space *sp;
	uint32_t first; /* block in sp->clean_seg where clean_out begins */
	uint32_t blocks, n;
	struct move moves[SEGMENT_BLOCKS];
};

/* The sparsest sealed segment, with a reference; NONE. */
static uint32_t pick(struct ssd *d, struct space *only, uint32_t most)
{
	uint32_t best = NONE;

	pthread_mutex_lock(&d->lock);
	for (uint32_t i = 0; i < d->n_segs; i++) {
		struct segment *s = &d->segs[i];
		uint32_t live = atomic_load(&s->live);

		if (s->state != SEG_SEALED || s->stuck || live > most || !live ||
		    (only && s->space != only) || atomic_load(&s->refs))
			continue;
		best = i;
		most = live - 1;
	}
	if (best != NONE)
		seg_ref(d, best);
	pthread_mutex_unlock(&d->lock);
	return best;
}

/* Writes what was gathered, then moves the entries. */
static int flush(struct cleaning *c)
{
	struct space *sp = c->sp;
	struct ssd *d = c->d;
	uint64_t bytes = (uint64_t)c->blocks * BLOCK_BYTES;
	struct segment *to;

	if (!c->n)
		return 0;
	to = &d->segs[sp->clean_seg];
	if (pwrite(d->fd, d->clean_out, bytes,
		   (off_t)(seg_offset(d, sp->clean_seg) + (uint64_t)c->first * BLOCK_BYTES)) !=
	    (ssize_t)bytes)
		return -EIO;
	atomic_fetch_add(&d->count[COUNT_WRITTEN], bytes);
	atomic_fetch_add(&d->count[COUNT_WRITES], 1);
	for (uint32_t i = 0; i < c->n; i++) {
		struct move *m = &c->moves[i];
		uint32_t blocks = place_blocks(m->from);
		uint64_t expected = m->from;

		atomic_store(&to->rmap[place_block(m->to) % SEGMENT_BLOCKS], m->index + 1);
		atomic_fetch_add(&to->live, blocks);
		if (atomic_compare_exchange_strong(&sp->places[m->index], &expected, m->to)) {
			seg_less(d, place_seg(m->from), blocks);
			atomic_fetch_add(&d->count[COUNT_MOVED], blocks * (uint64_t)BLOCK_BYTES);
		} else {
			seg_less(d, place_seg(m->to), blocks);
		}
	}
	c->n = 0;
	c->blocks = 0;
	c->first = sp->clean_fill;
	return 0;
}

/* Room for so many blocks behind what is gathered. */
static int make_room(struct cleaning *c, uint32_t blocks)
{
	struct space *sp = c->sp;
	int r;

	if (sp->clean_seg != NONE && sp->clean_fill + blocks <= SEGMENT_BLOCKS)
		return 0;
	r = flush(c);
	if (r)
		return r;
	seg_seal(c->d, &sp->clean_seg);
	r = keeper_lease(c->d, sp, true, &sp->clean_seg);
	if (r) {
		sp->clean_seg = NONE;
		return r;
	}
	atomic_store(&c->d->segs[sp->clean_seg].state, SEG_OPEN);
	sp->clean_fill = 0;
	c->first = 0;
	return device_write_table(c->d);
}

static int move_all(struct cleaning *c, uint32_t victim)
{
	struct ssd *d = c->d;
	struct segment *s = &d->segs[victim];
	int r = 0;

	for (uint32_t b = 0; b < SEGMENT_BLOCKS && !r;) {
		uint32_t index = atomic_load(&s->rmap[b]), blocks;
		uint64_t p = index ? atomic_load(&c->sp->places[index - 1]) : 0, to;

		if (!(p & PLACE_LIVE) || place_block(p) != (uint64_t)victim * SEGMENT_BLOCKS + b ||
		    !place_is_ours(c->sp, p)) {
			b++;
			continue;
		}
		blocks = place_blocks(p);
		r = make_room(c, blocks);
		if (r)
			break;
		to = (uint64_t)c->sp->clean_seg * SEGMENT_BLOCKS + c->sp->clean_fill;
		memcpy(d->clean_out + (uint64_t)c->blocks * BLOCK_BYTES,
		       d->clean_in + (uint64_t)b * BLOCK_BYTES, (uint64_t)blocks * BLOCK_BYTES);
		c->moves[c->n++] =
			(struct move){index - 1, p, place_make(to, place_order(p), place_gen(p))};
		c->blocks += blocks;
		c->sp->clean_fill += blocks;
		b += blocks;
	}
	return r ? r : flush(c);
}

struct cleaning *clean_new(void)
{
	return calloc(1, sizeof(struct cleaning));
}

int clean_one(struct ssd *d, struct space *only, uint32_t most)
{
	struct cleaning *c = d->cleaning;
	uint32_t victim = pick(d, only, most);
	int r = 0;

	if (victim == NONE)
		return 0;
	c->n = c->blocks = 0;
	c->d = d;
	c->sp = d->segs[victim].space;
	c->first = c->sp->clean_fill;
	if (pread(d->fd, d->clean_in, SEGMENT_BYTES, (off_t)seg_offset(d, victim)) !=
	    (ssize_t)SEGMENT_BYTES)
		r = -EIO;
	if (!r)
		r = move_all(c, victim);
	if (r && r != -ENOSPC && r != -EDQUOT) {
		/* What cannot be read stays where it is; its loads will tell. */
		d->segs[victim].stuck = 1;
		seg_seal(d, &c->sp->clean_seg);
	} else if (r) {
		/* What was gathered and not written is where it was. */
		c->sp->clean_fill = c->first;
	}
	if (!r)
		atomic_fetch_add(&d->count[COUNT_CLEANED], 1);
	seg_unref(d, victim);
	return r ? r : 1;
}
