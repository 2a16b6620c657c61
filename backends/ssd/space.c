/* SPDX-License-Identifier: BSD-3-Clause */
/* space.c: one VM's part: its map, its segments, its sums. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>

#include "ssd.h"

/*
 * Theory of operation
 *
 * The map was out of our hands when it is found, so nothing in it is believed before it is
 * checked: header against this device and this key, each live entry against the segment table
 * (only segments that the device says are ours), and no block may have two owners. An entry that
 * does not hold up is made free, with its generation moved on: its handle is refused from then on
 * and the page reported lost, never guessed.
 *
 * Segments: `ready` ones are filled one after the other; a unit of 2 MiB takes one of its own. A
 * segment in use goes back to the free ones when nothing lives in it any more, nothing is in
 * flight on it, and nothing more is put into it. A reader takes its reference first and looks at
 * the entry again then (channel.c): had the segment been given up between, the entry would show it.
 */

#define MAP_NAME "map"

/* RAM may be plugged in later; the map is sparse. */
#define SPAN_MIN (UINT64_C(16) << 30)
#define SPAN_MAX (UINT64_C(2) << 40)
static_assert(SPAN_MAX / BLOCK_BYTES <= UINT64_C(1) << INDEX_BITS, "every page has a handle");

static uint64_t handles_for(uint64_t ram_bytes)
{
	uint64_t span = SPAN_MIN;

	while (span < SPAN_MAX && span / 2 < ram_bytes)
		span *= 2;
	return span / BLOCK_BYTES;
}

static uint64_t map_bytes(uint64_t n)
{
	return BLOCK_BYTES + n * (sizeof(uint64_t) + sizeof(struct object_sum) + sizeof(uint64_t));
}

static void lay_out(struct space *sp, void *base)
{
	sp->map = base;
	sp->places = (_Atomic uint64_t *)((char *)base + BLOCK_BYTES);
	sp->sums = (struct object_sum *)(void *)(sp->places + sp->n_handles);
	sp->nonces = (uint64_t *)(sp->sums + sp->n_handles);
}

static int map_memory(struct space *sp, int *found)
{
	const struct ebb_backend_host *host = sp->ssd->host;
	void *addr;
	int r;

	sp->map_bytes = map_bytes(sp->n_handles);
	r = host->mem_open(host->ctx, sp->host_ctx, MAP_NAME, sp->map_bytes, &addr, found);
	if (!r)
		lay_out(sp, addr);
	return r;
}

static int format(struct space *sp)
{
	struct map_header *h = sp->map;
	uint64_t draw[2];

	if (getrandom(draw, sizeof(draw), 0) != sizeof(draw))
		return -EIO;
	if (madvise(h, BLOCK_BYTES, MADV_POPULATE_WRITE) && errno != EINVAL)
		return -ENOMEM;
	sp->id = draw[0] ? draw[0] : 1;
	h->version = MAP_VERSION;
	h->encrypted = sp->ssd->options.encrypt;
	memcpy(h->device, sp->ssd->super->id, sizeof(h->device));
	h->space_id = sp->id;
	h->n_handles = sp->n_handles;
	h->seed = (uint32_t)draw[1];
	return 0;
}

/* The map that a daemon before us left: is it of this device? */
static int check_header(struct space *sp)
{
	const struct ebb_backend_host *host = sp->ssd->host;
	const struct map_header *h = sp->map;

	if (h->magic != MAP_MAGIC || h->version != MAP_VERSION || !h->space_id ||
	    h->encrypted > 1 || handles_for(h->n_handles * BLOCK_BYTES / 2) != h->n_handles)
		return -EBADMSG;
	if (memcmp(h->device, sp->ssd->super->id, sizeof(h->device)) != 0) {
		host->log(host->ctx, 0, "%s is not what this VM's memory was stored in",
			  sp->ssd->options.path);
		return -EBADMSG;
	}
	return 0;
}

/* ---- taking over ---- */

/* Takes the segments that the table says are ours; they hold nothing so far. */
static int claim_segments(struct space *sp)
{
	struct ssd *d = sp->ssd;
	int r = 0;

	pthread_mutex_lock(&d->lock);
	for (uint32_t i = 0; i < d->n_segs && !r; i++) {
		struct segment *s = &d->segs[i];

		if (s->state != SEG_ABSENT || d->table[i].owner != sp->id)
			continue;
		s->rmap = calloc(SEGMENT_BLOCKS, sizeof(*s->rmap));
		if (!s->rmap) {
			r = -ENOMEM;
			break;
		}
		s->space = sp;
		s->state = SEG_SEALED;
		s->refs = 1; /* until all entries were looked at */
		d->n_absent--;
		sp->segments++;
	}
	pthread_mutex_unlock(&d->lock);
	return r;
}

/* Everything back to how it was before space_open(). */
static void unclaim_segments(struct space *sp)
{
	struct ssd *d = sp->ssd;

	pthread_mutex_lock(&d->lock);
	for (uint32_t i = 0; i < d->n_segs; i++) {
		struct segment *s = &d->segs[i];

		if (s->space != sp)
			continue;
		free((void *)s->rmap);
		*s = (struct segment){.state = SEG_ABSENT, .dirty = 1};
		d->n_absent++;
	}
	pthread_mutex_unlock(&d->lock);
}

static bool claim_object(struct space *sp, uint32_t index, uint64_t p)
{
	uint32_t at = (uint32_t)(place_block(p) % SEGMENT_BLOCKS), n = place_blocks(p);
	struct segment *s;

	if (!place_is_ours(sp, p))
		return false;
	s = &sp->ssd->segs[place_seg(p)];
	for (uint32_t i = 0; i < n; i++)
		if (s->rmap[at + i])
			return false;
	for (uint32_t i = 0; i < n; i++)
		s->rmap[at + i] = index + 1;
	s->live += n;
	sp->objects++;
	sp->blocks += n;
	return true;
}

static int recover(struct space *sp)
{
	const struct ebb_backend_host *host = sp->ssd->host;
	struct ssd *d = sp->ssd;
	uint64_t high = atomic_load(&sp->map->high), bad = 0;
	int r = claim_segments(sp);

	if (r)
		return r;
	if (high > sp->n_handles)
		high = sp->n_handles;
	/* Whole chunks, so that what comes next finds its memory. */
	high = (high + 511) / 512 * 512;
	atomic_store(&sp->map->high, high);
	for (uint64_t i = 0; i < high; i++) {
		uint64_t p = atomic_load_explicit(&sp->places[i], memory_order_relaxed);

		if (!(p & PLACE_LIVE))
			continue;
		if (claim_object(sp, (uint32_t)i, p)) {
			bits_add(&sp->taken, i);
			continue;
		}
		atomic_store(&sp->places[i], place_free(place_gen(p) + 1));
		bad++;
	}
	for (uint32_t i = 0; i < d->n_segs; i++)
		if (d->segs[i].space == sp)
			seg_unref(d, i);
	if (bad)
		host->log(host->ctx, 0, "%llu entries name what is not there: those are lost",
			  (unsigned long long)bad);
	host->log(host->ctx, 2, "took over %llu objects in %u segments",
		  (unsigned long long)atomic_load(&sp->objects), atomic_load(&sp->segments));
	return 0;
}

/* ---- open and close ---- */

static int start(struct space *sp, const struct ebb_space_params *params)
{
	const struct ebb_backend_host *host = sp->ssd->host;
	int found = 0, r = map_memory(sp, &found);

	if (r)
		return r;
	/* A daemon that died before the magic number was written left nothing. */
	found = found && sp->map->magic;
	if (found) {
		uint64_t mapped = sp->n_handles;

		r = check_header(sp);
		if (r)
			return r;
		sp->n_handles = sp->map->n_handles;
		/* The VM had more RAM then than it has now. */
		if (sp->n_handles > mapped)
			r = map_memory(sp, &found);
		else
			lay_out(sp, sp->map);
		if (r)
			return r;
		sp->id = sp->map->space_id;
	} else {
		r = format(sp);
		if (r)
			return r;
	}
	madvise(sp->map, sp->map_bytes, MADV_DONTDUMP);
	r = proof_key_init(&sp->key, params->key, sp->id, sp->map->encrypted);
	if (!r)
		r = handles_init(sp);
	if (r)
		return r;
	if (found) {
		if (sp->map->key_check != sp->key.check) {
			host->log(host->ctx, 0, "the key is not the one of this VM's memory");
			return -EKEYREJECTED;
		}
		return recover(sp);
	}
	sp->map->key_check = sp->key.check;
	/* Last: without the magic number there is no map here. */
	__atomic_store_n(&sp->map->magic, MAP_MAGIC, __ATOMIC_RELEASE);
	return 0;
}

int space_open(struct ssd *d, const struct ebb_space_params *params, struct space **out)
{
	struct space *sp = calloc(1, sizeof(*sp));
	int r;

	if (!sp)
		return -ENOMEM;
	sp->ssd = d;
	sp->host_ctx = params->space_ctx;
	sp->n_handles = handles_for(params->ram_bytes);
	sp->open_seg = sp->clean_seg = NONE;
	sp->ahead = 1;
	if (params->size >= sizeof(*params)) {
		sp->pid = params->keeper_pid;
		sp->pid_start = (uint32_t)params->keeper_start;
	}
	pthread_mutex_init(&sp->alloc_lock, NULL);
	r = start(sp, params);
	if (r) {
		unclaim_segments(sp);
		handles_destroy(sp);
		proof_key_clear(&sp->key);
		free(sp);
		return r;
	}
	pthread_mutex_lock(&d->lock);
	sp->next = d->spaces;
	d->spaces = sp;
	pthread_mutex_unlock(&d->lock);
	*out = sp;
	return 0;
}

void seg_free(struct ssd *d, uint32_t i)
{
	struct segment *s = &d->segs[i];

	free((void *)s->rmap);
	if (s->space)
		atomic_fetch_sub(&s->space->segments, 1);
	s->rmap = NULL;
	s->space = NULL;
	s->live = 0;
	s->dirty = 1;
	s->rested = 0;
	s->stuck = 0;
	s->state = SEG_FREE;
	d->table[i] = (struct table_entry){0};
	d->table_dirty[i / TABLE_PER_BLOCK] = 1;
	bits_remove(&d->used, i);
	atomic_fetch_add(&d->n_free, 1);
}

void space_close(struct space *sp)
{
	const struct ebb_backend_host *host = sp->ssd->host;
	struct ssd *d = sp->ssd;

	pthread_mutex_lock(&d->clean_lock);
	pthread_mutex_lock(&d->lock);
	for (struct space **p = &d->spaces; *p; p = &(*p)->next) {
		if (*p == sp) {
			*p = sp->next;
			break;
		}
	}
	for (uint32_t i = 0; i < d->n_segs; i++)
		if (d->segs[i].space == sp)
			seg_free(d, i);
	pthread_mutex_unlock(&d->lock);
	pthread_mutex_unlock(&d->clean_lock);
	/* The content is given up for good, whoever else still holds the map. */
	host->mem_trim(host->ctx, sp->host_ctx, MAP_NAME, 0, sp->map_bytes);
	handles_destroy(sp);
	proof_key_clear(&sp->key);
	pthread_mutex_destroy(&sp->alloc_lock);
	free(sp);
}

void space_usage(struct space *sp, struct ebb_usage *out)
{
	uint64_t blocks = atomic_load(&sp->blocks), high = atomic_load(&sp->map->high);
	uint64_t disk = (uint64_t)atomic_load(&sp->segments) * SEGMENT_BYTES;
	uint64_t memory = map_bytes((high + 511) / 512 * 512) + sizeof(*sp) +
			  (uint64_t)atomic_load(&sp->segments) * SEGMENT_BLOCKS * 4;

	out->objects += atomic_load(&sp->objects);
	out->logical_bytes += blocks * BLOCK_BYTES;
	out->stored_bytes += blocks * BLOCK_BYTES;
	if (disk < blocks * BLOCK_BYTES)
		disk = blocks * BLOCK_BYTES; /* between two counters */
	out->footprint_bytes += disk + memory;
	out->overhead_bytes += disk + memory - blocks * BLOCK_BYTES;
	out->capacity_bytes = (uint64_t)sp->ssd->n_segs * SEGMENT_BYTES;
}

/* ---- segments ---- */

bool place_is_ours(const struct space *sp, uint64_t p)
{
	const struct ssd *d = sp->ssd;

	return place_order(p) <= ORDER_MAX && place_block(p) / SEGMENT_BLOCKS < d->n_segs &&
	       place_block(p) % SEGMENT_BLOCKS + place_blocks(p) <= SEGMENT_BLOCKS &&
	       d->segs[place_seg(p)].space == sp;
}

void seg_ref(struct ssd *d, uint32_t seg)
{
	atomic_fetch_add(&d->segs[seg].refs, 1);
}

static void try_free(struct ssd *d, uint32_t seg)
{
	struct segment *s = &d->segs[seg];

	if (atomic_load(&s->live) || atomic_load(&s->refs) || s->state != SEG_SEALED)
		return;
	pthread_mutex_lock(&d->lock);
	if (!atomic_load(&s->live) && !atomic_load(&s->refs) && s->state == SEG_SEALED)
		seg_free(d, seg);
	pthread_mutex_unlock(&d->lock);
}

void seg_unref(struct ssd *d, uint32_t seg)
{
	if (atomic_fetch_sub(&d->segs[seg].refs, 1) == 1)
		try_free(d, seg);
}

void seg_less(struct ssd *d, uint32_t seg, uint32_t blocks)
{
	if (atomic_fetch_sub(&d->segs[seg].live, blocks) == blocks)
		try_free(d, seg);
}

void seg_seal(struct ssd *d, uint32_t *seg)
{
	uint32_t i = *seg;

	if (i == NONE)
		return;
	*seg = NONE;
	atomic_store(&d->segs[i].state, SEG_SEALED);
	try_free(d, i);
}

void seg_give_up(struct space *sp, uint32_t seg)
{
	pthread_mutex_lock(&sp->alloc_lock);
	if (sp->open_seg == seg)
		seg_seal(sp->ssd, &sp->open_seg);
	pthread_mutex_unlock(&sp->alloc_lock);
}

/* A leased segment to fill. Under alloc_lock. */
static int next_ready(struct space *sp, uint32_t *seg)
{
	int denied;

	if (sp->n_ready) {
		*seg = sp->ready[0];
		memmove(sp->ready, sp->ready + 1, --sp->n_ready * sizeof(sp->ready[0]));
		atomic_store(&sp->ssd->segs[*seg].state, SEG_OPEN);
		if (sp->n_ready * 2 <= sp->ahead && !atomic_exchange(&sp->wanted, true))
			keeper_kick(sp->ssd);
		return 0;
	}
	denied = atomic_load(&sp->denied);
	if (!atomic_exchange(&sp->wanted, true)) {
		/* It goes faster than we thought; but none hoards what others could use. */
		if (sp->ahead < READY_MAX && sp->ahead < sp->ssd->n_segs / 16 && !denied)
			sp->ahead++;
		keeper_kick(sp->ssd);
	}
	return denied ? denied : -EAGAIN;
}

int seg_alloc(struct space *sp, uint32_t blocks, uint32_t *seg, uint32_t *block)
{
	int r = 0;

	pthread_mutex_lock(&sp->alloc_lock);
	if (blocks == SEGMENT_BLOCKS) {
		uint32_t own;

		/* One of its own; the one that is being filled stays. */
		r = next_ready(sp, &own);
		if (!r) {
			*seg = own;
			*block = 0;
			seg_ref(sp->ssd, own);
			seg_seal(sp->ssd, &own);
		}
		goto out;
	}
	if (sp->open_seg != NONE && sp->open_fill + blocks > SEGMENT_BLOCKS)
		seg_seal(sp->ssd, &sp->open_seg);
	if (sp->open_seg == NONE) {
		r = next_ready(sp, &sp->open_seg);
		if (r) {
			sp->open_seg = NONE;
			goto out;
		}
		sp->open_fill = 0;
	}
	*seg = sp->open_seg;
	*block = sp->open_fill;
	sp->open_fill += blocks;
	seg_ref(sp->ssd, *seg);
out:
	pthread_mutex_unlock(&sp->alloc_lock);
	return r;
}
