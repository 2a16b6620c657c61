/* SPDX-License-Identifier: BSD-3-Clause */
/* space.c: one VM's part of the store: its memory, its limits, its sums. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>

#include "store.h"

/* RAM may be plugged in later, and a slab is not all slots: room for four times the RAM. */
#define SPAN_MIN (UINT64_C(16) << 30)
#define SPAN_MAX (UINT64_C(2) << 40)

static uint64_t round_up(uint64_t n, uint64_t to)
{
	return (n + to - 1) / to * to;
}

uint64_t space_span(uint64_t ram_bytes)
{
	uint64_t span = SPAN_MIN;

	while (span < SPAN_MAX && span / 4 < ram_bytes)
		span *= 2;
	return span;
}

void space_lay_out(struct space *sp, uint64_t span)
{
	sp->n_handles = span / PAGE_BYTES;
	sp->n_small = (uint32_t)(span / SMALL_STRIDE);
	sp->n_large = (uint32_t)(span / LARGE_STRIDE);
	sp->class_offset = PAGE_BYTES;
	sp->table_offset =
		sp->class_offset + round_up((uint64_t)sp->n_small + sp->n_large, PAGE_BYTES);
	sp->sums_offset = sp->table_offset + sp->n_handles * 8;
	sp->small_offset = round_up(sp->sums_offset + sp->n_handles * 4, LARGE_STRIDE);
	sp->large_offset = sp->small_offset + (uint64_t)sp->n_small * SMALL_STRIDE;
	sp->chunks_offset = sp->large_offset + (uint64_t)sp->n_large * LARGE_STRIDE;
	sp->running_offset =
		sp->chunks_offset + chunks_bytes(sp->store, sp->chunks_offset - sp->small_offset);
	sp->total_bytes = sp->running_offset + running_bytes(sp);
}

static_assert(SPAN_MAX / PAGE_BYTES <= HANDLES_MAX, "every page has a handle");
static_assert(SPAN_MAX / SMALL_STRIDE + SPAN_MAX / LARGE_STRIDE <= SLABS_MAX,
	      "every slab has a number");

void store_lock_init(pthread_mutex_t *lock)
{
	pthread_mutexattr_t attr;

	pthread_mutexattr_init(&attr);
	pthread_mutexattr_settype(&attr, PTHREAD_MUTEX_ADAPTIVE_NP);
	pthread_mutex_init(lock, &attr);
	pthread_mutexattr_destroy(&attr);
}

/* Memory of a device: it is there as soon as the part has a chunk. */
static bool on_device(const struct space *sp, uint64_t offset)
{
	return sp->parts && offset >= sp->small_offset && offset < sp->chunks_offset;
}

int space_populate(struct space *sp, uint64_t offset, uint64_t bytes)
{
	struct store *st = sp->store;
	uint64_t most = atomic_load_explicit(&st->max_bytes, memory_order_relaxed);

	if (atomic_fetch_add(&st->mem_bytes, bytes) + bytes > most && most)
		goto full;
	if (offset >= sp->small_offset && place_take(&st->place, bytes))
		goto full;
	if (on_device(sp, offset))
		goto out;
	if (madvise(sp->base + offset, bytes, MADV_POPULATE_WRITE)) {
		/* EINVAL: a kernel before 5.14, where the touch itself has to do. */
		if (errno != EINVAL)
			goto full;
	}
out:
	atomic_fetch_add(&sp->mem_bytes, bytes);
	return 0;
full:
	atomic_fetch_sub(&st->mem_bytes, bytes);
	return -ENOSPC;
}

int space_trim(struct space *sp, uint64_t offset, uint64_t bytes, uint64_t had)
{
	const struct ebb_backend_host *host = sp->store->host;
	int r = on_device(sp, offset)
			? 0
			: host->mem_trim(host->ctx, sp->host_ctx, MEM_NAME, offset, bytes);

	if (r)
		return r;
	atomic_fetch_sub(&sp->mem_bytes, had);
	atomic_fetch_sub(&sp->store->mem_bytes, had);
	return 0;
}

static uint32_t new_seed(struct store *st)
{
	/* Steps of the golden ratio keep the seeds of one daemon's spaces apart for sure. */
	return st->seed + atomic_fetch_add(&st->n_spaces_ever, 1) * 0x9e3779b1u;
}

static int format(struct space *sp)
{
	struct store_header *h = sp->header;
	int r = space_populate(sp, 0, PAGE_BYTES);

	if (!r)
		r = running_need(sp, 0, 0, 0);
	if (r)
		return r;
	h->version = STORE_VERSION;
	h->class_sum = sp->store->classes.sum;
	h->n_handles = sp->n_handles;
	h->n_small = sp->n_small;
	h->n_large = sp->n_large;
	h->total_bytes = sp->total_bytes;
	h->seed = new_seed(sp->store);
	/* Last: without the magic number there is no store here. */
	__atomic_store_n(&h->magic, STORE_MAGIC, __ATOMIC_RELEASE);
	return 0;
}

static void space_free(struct space *sp)
{
	chunks_close(sp, false);
	free(sp);
}

static int map_memory(struct space *sp, int *found)
{
	const struct ebb_backend_host *host = sp->store->host;
	void *addr;
	int r = host->mem_open(host->ctx, sp->host_ctx, MEM_NAME, sp->total_bytes, &addr, found);

	if (r)
		return r;
	sp->base = addr;
	sp->header = addr;
	/* Content only: what every load looks into stays near. */
	return place_bind(&sp->store->place, sp->base + sp->small_offset,
			  sp->total_bytes - sp->small_offset);
}

static int space_start(struct space *sp, const struct ebb_space_params *params)
{
	uint64_t mapped;
	int found = 0, r;

	r = map_memory(sp, &found);
	if (r)
		return r;
	/* A daemon that died before the magic number was written left nothing. */
	found = found && sp->header->magic;
	mapped = sp->total_bytes;
	if (found) {
		r = recover_geometry(sp);
		/* The VM had more RAM then than it has now. */
		if (!r && sp->total_bytes > mapped)
			r = map_memory(sp, &found);
		if (r)
			return r;
	}
	sp->slab_class = (_Atomic uint8_t *)(sp->base + sp->class_offset);
	sp->table = (_Atomic uint64_t *)(sp->base + sp->table_offset);
	sp->sums = (_Atomic uint32_t *)(sp->base + sp->sums_offset);
	/* Memory is accounted by the page; a huge page would bring 511 that nobody asked for. */
	madvise(sp->base, sp->total_bytes, MADV_NOHUGEPAGE);
	madvise(sp->base, sp->total_bytes, MADV_DONTDUMP);
	slab_init(sp);
	handles_init(sp);
	r = running_map(sp);
	if (!r)
		r = chunks_open(sp, params, found);
	if (r || !found)
		return r ? r : format(sp);
	if (running_adopt(sp)) {
		r = chunks_load(sp);
		if (!r)
			chunks_recount(sp);
		return r;
	}
	running_disturb(sp);
	return space_recover_again(sp);
}

int space_recover_again(struct space *sp)
{
	int r;

	atomic_fetch_sub(&sp->store->mem_bytes, atomic_load(&sp->mem_bytes));
	atomic_store(&sp->mem_bytes, 0);
	atomic_store(&sp->slabs_open, 0);
	sp->compact = (struct compaction){.slabs = NONE};
	sp->small_reserve.n = sp->large_reserve.n = 0;
	sp->left_room = false;
	for (unsigned int i = 0; i < CLASSES_MAX; i++) {
		struct class_state *c = &sp->classes[i];

		for (unsigned int f = 0; f < FULLNESS; f++)
			c->first[f] = NONE;
		c->slabs = 0;
		c->slots_used = c->objects = c->logical_bytes = c->content_bytes = 0;
	}
	r = chunks_load(sp);
	if (r)
		return r;
	atomic_fetch_add(&sp->mem_bytes, sp->running_offset - sp->chunks_offset);
	atomic_fetch_add(&sp->store->mem_bytes, sp->running_offset - sp->chunks_offset);
	r = running_clear(sp);
	return r ? r : recover(sp);
}

int space_open(struct store *st, const struct ebb_space_params *params, struct space **out)
{
	struct space *sp = aligned_alloc(64, round_up(sizeof(*sp), 64));
	int r;

	if (!sp)
		return -ENOMEM;
	memset(sp, 0, sizeof(*sp));
	sp->store = st;
	sp->host_ctx = params->space_ctx;
	pthread_mutex_init(&sp->maintain_lock, NULL);
	pthread_mutex_init(&sp->settle_lock, NULL);
	pthread_mutex_init(&sp->doom_lock, NULL);
	sp->compact.slabs = NONE;
	space_lay_out(sp, space_span(params->ram_bytes));
	r = space_start(sp, params);
	if (r) {
		atomic_fetch_sub(&st->mem_bytes, sp->mem_bytes);
		space_free(sp);
		return r;
	}
	pthread_mutex_lock(&st->lock);
	sp->next = st->spaces;
	st->spaces = sp;
	pthread_mutex_unlock(&st->lock);
	*out = sp;
	return 0;
}

void space_close(struct space *sp)
{
	struct store *st = sp->store;

	pthread_mutex_lock(&st->lock);
	for (struct space **p = &st->spaces; *p; p = &(*p)->next) {
		if (*p == sp) {
			*p = sp->next;
			break;
		}
	}
	pthread_mutex_unlock(&st->lock);
	/* The content is given up for good, whoever else still holds the memory. */
	space_trim(sp, 0, sp->total_bytes, sp->mem_bytes);
	chunks_close(sp, true);
	space_free(sp);
}

void space_usage(struct space *sp, struct ebb_usage *out)
{
	uint64_t stored = 0, footprint;

	recover_settle(sp); /* without memory for that, it is too little */
	for (unsigned int i = 0; i < sp->store->classes.n; i++) {
		struct class_state *c = &sp->classes[i];

		pthread_mutex_lock(&c->lock);
		out->objects += c->objects;
		out->logical_bytes += c->logical_bytes;
		stored += c->content_bytes;
		pthread_mutex_unlock(&c->lock);
	}
	out->stored_bytes += stored;
	footprint = atomic_load(&sp->mem_bytes) + sizeof(*sp);
	out->footprint_bytes += footprint;
	out->overhead_bytes += footprint - stored;
	out->capacity_bytes = store_capacity(sp->store);
}
