/* SPDX-License-Identifier: BSD-3-Clause */
/* handles.c: the table through which handles find their objects. */
#include <errno.h>
#include <sys/mman.h>

#include "ssd.h"

/*
 * Theory of operation
 *
 * Handles are taken from the lowest free index, so that the table stays dense. A generation is 19
 * bits: the first of an index is drawn from the space's seed, so that a handle of another space or
 * one with a flipped bit meets a different one, and it grows by one with each free. The memory of
 * the table is taken 512 entries at a time, with a call that can fail, and stays until the space
 * is closed.
 */

#define CHUNK 512u /* entries; one page of `places` */

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif

int handles_init(struct space *sp)
{
	pthread_mutex_init(&sp->handle_lock, NULL);
	return sparse_bits_init(&sp->taken, sp->n_handles, &sp->taken_memory);
}

void handles_destroy(struct space *sp)
{
	sparse_bits_destroy(&sp->taken, sp->taken_memory);
	pthread_mutex_destroy(&sp->handle_lock);
}

uint32_t handle_first_gen(const struct space *sp, uint32_t index)
{
	/* The finisher of MurmurHash3 (A. Appleby, public domain): every bit moves every other. */
	uint64_t x = (uint64_t)index << 32 | sp->map->seed;

	x ^= x >> 33;
	x *= UINT64_C(0xff51afd7ed558ccd);
	x ^= x >> 33;
	x *= UINT64_C(0xc4ceb9fe1a85ec53);
	x ^= x >> 33;
	return (uint32_t)x & GEN_MASK;
}

/* Memory under the entries of a chunk, now rather than at the touch, where none is a SIGBUS. */
static int back_chunk(struct space *sp, uint64_t index)
{
	struct {
		void *at;
		uint64_t bytes;
	} parts[] = {
		{(void *)(sp->places + index), CHUNK * sizeof(*sp->places)},
		{sp->sums + index, CHUNK * sizeof(*sp->sums)},
		{sp->nonces + index, sp->key.encrypt ? CHUNK * sizeof(*sp->nonces) : 0},
	};

	for (unsigned int i = 0; i < sizeof(parts) / sizeof(parts[0]); i++)
		/* EINVAL: a kernel before 5.14, where the touch itself has to do. */
		if (parts[i].bytes && madvise(parts[i].at, parts[i].bytes, MADV_POPULATE_WRITE) &&
		    errno != EINVAL)
			return -ENOSPC;
	return 0;
}

int handle_take(struct space *sp, uint64_t *handle)
{
	uint64_t high, p;
	int64_t i;
	int r = 0;

	pthread_mutex_lock(&sp->handle_lock);
	i = bits_lowest_absent(&sp->taken);
	high = atomic_load(&sp->map->high);
	if (i < 0 || i >= (int64_t)sp->n_handles)
		r = -ENOSPC;
	else if ((uint64_t)i >= high && i % CHUNK == 0)
		r = back_chunk(sp, (uint64_t)i);
	if (!r) {
		p = atomic_load(&sp->places[i]);
		bits_add(&sp->taken, (uint64_t)i);
		if ((uint64_t)i >= high)
			atomic_store(&sp->map->high, (uint64_t)i + 1);
		*handle = handle_make((uint32_t)i, p & PLACE_USED
							   ? place_gen(p)
							   : handle_first_gen(sp, (uint32_t)i));
	}
	pthread_mutex_unlock(&sp->handle_lock);
	return r;
}

void handle_release(struct space *sp, uint32_t index)
{
	pthread_mutex_lock(&sp->handle_lock);
	bits_remove(&sp->taken, index);
	pthread_mutex_unlock(&sp->handle_lock);
}

bool object_free(struct space *sp, uint64_t handle)
{
	uint32_t index = handle_index(handle);
	uint64_t p;

	if (handle > EBB_HANDLE_MASK || index >= sp->n_handles)
		return false;
	p = atomic_load(&sp->places[index]);
	do {
		if (!(p & PLACE_LIVE) || place_gen(p) != handle_gen(handle))
			return false;
		/* Again when cleaning has moved it just now. */
	} while (!atomic_compare_exchange_weak(&sp->places[index], &p,
					       place_free(place_gen(p) + 1)));
	atomic_fetch_sub(&sp->objects, 1);
	atomic_fetch_sub(&sp->blocks, place_blocks(p));
	atomic_store_explicit(&sp->thinned, true, memory_order_relaxed);
	if (place_is_ours(sp, p))
		seg_less(sp->ssd, place_seg(p), place_blocks(p));
	handle_release(sp, index);
	return true;
}
