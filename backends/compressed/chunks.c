/* SPDX-License-Identifier: BSD-3-Clause */
/* chunks.c: a space whose slabs are not in its own memory but in chunks of a device. */
#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#define XXH_INLINE_ALL
#include <xxhash.h>

#include "store.h"

/*
 * Theory of operation
 *
 * Offsets of slabs mean the same as ever, but the bytes there are elsewhere: the range of the slabs
 * is cut into parts of the size of a chunk, and a part has a chunk of the device while a slab in it
 * is in use. content_at() (store.h) follows that; header, tables and running state stay in the
 * space's own memory.
 *
 * Which chunk a part has is kept twice. The copy in the space's memory outlives the daemon, and is
 * read once, by chunks_load(), which believes an entry only if the device's table says that the
 * chunk is this space's, and no other part has it. Loads go by a private copy.
 *
 * A chunk is the space's by the device's table before the kept entry names it, and after it no
 * longer does. What a daemon left half done, or what was damaged, is put right before anything is
 * changed the first time (make_sound()), and not earlier: a daemon that takes over may have to give
 * way to the one before.
 *
 * All that changes parts is under pool_lock, or alone with the space.
 */

#define CHUNKS_MAGIC UINT64_C(0x6b6e684362624531) /* "1EbbChnk" */

/* In the space's memory; its entries begin in the next page: 1 + the chunk, or 0. */
struct chunk_map {
	uint64_t magic;
	uint64_t checksum; /* of what follows */
	uint8_t device[16];
	uint64_t owner;
	uint64_t shift;
};
static_assert(sizeof(struct chunk_map) <= PAGE_BYTES, "one page");

static struct chunk_map *map_of(const struct space *sp)
{
	return (struct chunk_map *)(void *)(sp->base + sp->chunks_offset);
}

static _Atomic uint32_t *kept_of(const struct space *sp)
{
	return (_Atomic uint32_t *)(void *)(sp->base + sp->chunks_offset + PAGE_BYTES);
}

static uint64_t map_sum(const struct chunk_map *m)
{
	return XXH3_64bits(m->device, sizeof(*m) - offsetof(struct chunk_map, device));
}

static uint64_t n_parts(const struct space *sp)
{
	return (sp->chunks_offset - sp->small_offset) >> sp->device.shift;
}

uint64_t chunks_bytes(const struct store *st, uint64_t content_bytes)
{
	struct place_device d = place_device(&st->place);
	uint64_t bytes = PAGE_BYTES;

	if (!d.shift)
		return 0;
	bytes += (content_bytes >> d.shift) * sizeof(uint32_t);
	return (bytes + PAGE_BYTES - 1) / PAGE_BYTES * PAGE_BYTES;
}

static uint64_t part_of(const struct space *sp, uint32_t slab)
{
	return (slab_offset(sp, slab) - sp->small_offset) >> sp->device.shift;
}

/* Slabs of a kind in a part. */
static uint32_t slabs_in_part(const struct space *sp, bool large)
{
	return (uint32_t)((UINT64_C(1) << sp->device.shift) /
			  (large ? LARGE_STRIDE : SMALL_STRIDE));
}

/* Parts [*from, *to) are all of a kind. */
static void parts_of(const struct space *sp, bool large, uint64_t *from, uint64_t *to)
{
	uint64_t first_large = (uint64_t)sp->n_small * SMALL_STRIDE >> sp->device.shift;

	*from = large ? first_large : 0;
	*to = large ? n_parts(sp) : first_large;
}

/* Puts right what is kept, and the device's table: what they say beyond what we know is wrong. */
static void make_sound(struct space *sp)
{
	uint8_t *known;

	if (sp->parts_sound)
		return;
	known = calloc(sp->device.n_chunks, 1);
	if (!known)
		return; /* again the next time */
	for (uint64_t i = 0; i < n_parts(sp); i++) {
		uint32_t c = atomic_load(&sp->parts[i].chunk);

		atomic_store(&kept_of(sp)[i], c);
		if (c)
			known[c - 1] = 1;
	}
	for (uint32_t c = 1; c < sp->device.n_chunks; c++)
		if (!known[c] && place_chunk_is(&sp->store->place, c, sp->owner.id))
			place_chunk_give(&sp->store->place, c, false);
	free(known);
	sp->parts_sound = true;
}

/* ---- beginning and end ---- */

static int new_owner(uint64_t *id)
{
	do {
		if (getrandom(id, sizeof(*id), 0) != sizeof(*id))
			return -EIO;
	} while (*id < 2);
	return 0;
}

/* Memory for the whole map at once: it is small beside what it maps. */
static int begin(struct space *sp)
{
	uint64_t bytes = sp->running_offset - sp->chunks_offset;
	struct chunk_map m = {.magic = CHUNKS_MAGIC, .shift = sp->device.shift};
	int r = new_owner(&sp->owner.id);

	if (!r)
		r = space_populate(sp, sp->chunks_offset, bytes);
	if (r)
		return r;
	memcpy(m.device, sp->device.id, sizeof(m.device));
	m.owner = sp->owner.id;
	m.checksum = map_sum(&m);
	memcpy(map_of(sp), &m, sizeof(m));
	sp->parts_sound = true;
	return 0;
}

static int take_over(struct space *sp)
{
	const struct ebb_backend_host *host = sp->store->host;
	const struct chunk_map *m = map_of(sp);

	if (m->magic != CHUNKS_MAGIC || m->checksum != map_sum(m) || m->owner < 2)
		return -EBADMSG;
	if (m->shift != sp->device.shift ||
	    memcmp(m->device, sp->device.id, sizeof(m->device)) != 0) {
		host->log(host->ctx, 0, "what a VM had here is on another device, or was erased");
		return -ENODEV;
	}
	sp->owner.id = m->owner;
	return 0;
}

int chunks_open(struct space *sp, const struct ebb_space_params *params, bool found)
{
	struct part *parts;
	int r;

	sp->device = place_device(&sp->store->place);
	if (!sp->device.shift)
		return 0;
	sp->owner.pid = params->keeper_pid;
	sp->owner.pid_start = (uint32_t)params->keeper_start;
	r = found ? take_over(sp) : begin(sp);
	if (r)
		return r;
	parts = calloc(n_parts(sp), sizeof(*parts));
	if (!parts)
		return -ENOMEM;
	sp->parts = parts;
	place_owner_enter(&sp->store->place, &sp->owner);
	return 0;
}

int chunks_load(struct space *sp)
{
	const struct ebb_backend_host *host = sp->store->host;
	uint64_t refused = 0;
	uint8_t *taken;

	if (!sp->parts)
		return 0;
	taken = calloc(sp->device.n_chunks, 1);
	if (!taken)
		return -ENOMEM;
	for (uint64_t i = 0; i < n_parts(sp); i++) {
		uint32_t c = atomic_load(&kept_of(sp)[i]);
		bool good = c && c - 1 < sp->device.n_chunks && !taken[c - 1] &&
			    place_chunk_is(&sp->store->place, c - 1, sp->owner.id);

		refused += c && !good;
		if (good)
			taken[c - 1] = 1;
		atomic_store(&sp->parts[i].chunk, good ? c : 0);
		sp->parts[i].slabs = 0;
	}
	free(taken);
	sp->parts_sound = false;
	if (refused)
		host->log(host->ctx, 1, "%llu chunks that are not this VM's were dropped",
			  (unsigned long long)refused);
	return 0;
}

void chunks_close(struct space *sp, bool give_up)
{
	if (!sp->parts)
		return;
	if (give_up)
		make_sound(sp);
	for (uint64_t i = 0; give_up && i < n_parts(sp); i++) {
		uint32_t c = atomic_load(&sp->parts[i].chunk);

		if (c)
			place_chunk_give(&sp->store->place, c - 1, true);
	}
	place_owner_leave(&sp->store->place, &sp->owner);
	free(sp->parts);
	sp->parts = NULL;
}

/* ---- counting ---- */

void chunks_slab_used(struct space *sp, uint32_t slab)
{
	if (sp->parts)
		sp->parts[part_of(sp, slab)].slabs++;
}

void chunks_slab_unused(struct space *sp, uint32_t slab)
{
	if (sp->parts)
		sp->parts[part_of(sp, slab)].slabs--;
}

void chunks_recount(struct space *sp)
{
	if (!sp->parts)
		return;
	for (int large = 0; large <= 1; large++) {
		const struct bits *used = large ? &sp->large_used : &sp->small_used;
		uint32_t high =
			atomic_load(large ? &sp->header->large_high : &sp->header->small_high);

		for (uint32_t i = 0; i < high; i++)
			if (bits_has(used, i))
				chunks_slab_used(sp, i + (large ? sp->n_small : 0));
	}
}

/* ---- chunks come and go ---- */

int chunks_need(struct space *sp, uint32_t slab)
{
	uint64_t i;
	uint32_t c;
	int r;

	if (!sp->parts)
		return 0;
	i = part_of(sp, slab);
	if (atomic_load(&sp->parts[i].chunk))
		return 0;
	make_sound(sp);
	if (!sp->parts_sound)
		return -ENOSPC;
	r = place_chunk_take(&sp->store->place, &sp->owner, &c);
	if (r)
		return r;
	atomic_store(&kept_of(sp)[i], c + 1);
	atomic_store(&sp->parts[i].chunk, c + 1);
	return 0;
}

uint32_t chunks_spare_slab(struct space *sp, bool large)
{
	const struct bits *used = large ? &sp->large_used : &sp->small_used;
	uint32_t per = slabs_in_part(sp, large);
	uint64_t from, to;

	if (!sp->parts)
		return NONE;
	parts_of(sp, large, &from, &to);
	for (uint64_t i = from; i < to; i++) {
		if (!atomic_load(&sp->parts[i].chunk) || sp->parts[i].slabs >= per)
			continue;
		for (uint64_t s = (i - from) * per; s < (i - from + 1) * per; s++)
			if (!bits_has(used, s))
				return (uint32_t)s + (large ? sp->n_small : 0);
	}
	return NONE;
}

static void trim_part(struct space *sp, uint64_t i)
{
	uint32_t c = atomic_load(&sp->parts[i].chunk);

	if (!c || sp->parts[i].slabs)
		return;
	make_sound(sp);
	if (!sp->parts_sound)
		return;
	atomic_store(&sp->parts[i].chunk, 0);
	atomic_store(&kept_of(sp)[i], 0);
	place_chunk_give(&sp->store->place, c - 1, false);
}

void chunks_trim(struct space *sp, uint32_t slab)
{
	if (sp->parts)
		trim_part(sp, part_of(sp, slab));
}

void chunks_trim_all(struct space *sp)
{
	for (uint64_t i = 0; sp->parts && i < n_parts(sp); i++)
		trim_part(sp, i);
}
