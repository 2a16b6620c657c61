/* SPDX-License-Identifier: BSD-3-Clause */
/* pool.c: the memory that is lent, and who has what of it. */
#include "donor/pool.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "base/log.h"

#ifndef MADV_DONTNEED_LOCKED
#define MADV_DONTNEED_LOCKED 24 /* Linux 5.18 */
#endif

/*
 * Theory of operation
 *
 * One range of anonymous memory, cut into chunks. A chunk takes memory from when it is lent
 * (registering pins its pages) until it is given back. Whoever gets it next must not see what was
 * in it: giving back drops the pages, so that a chunk always begins as zeroes.
 *
 * Never swapped: what is lent is somebody's RAM. While a chunk is registered its pages are pinned;
 * while its owner is away they are held by mlock.
 */

int pool_init(struct pool *p, uint64_t bytes)
{
	uint64_t n = bytes / WIRE_CHUNK_BYTES;

	memset(p, 0, sizeof(*p));
	if (!n || n > UINT32_MAX)
		return -EINVAL;
	p->n_chunks = p->limit = (uint32_t)n;
	p->free = calloc(n, sizeof(*p->free));
	p->mrs = calloc(n, sizeof(struct ibv_mr *));
	p->base = mmap(NULL, n * WIRE_CHUNK_BYTES, PROT_READ | PROT_WRITE,
		       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (p->base == MAP_FAILED)
		p->base = NULL;
	if (!p->free || !p->mrs || !p->base) {
		pool_destroy(p);
		return -ENOMEM;
	}
	/* Guests' memory: not in a core dump of ours, nor in a child of whatever library forks. */
	madvise(p->base, n * WIRE_CHUNK_BYTES, MADV_DONTDUMP);
	madvise(p->base, n * WIRE_CHUNK_BYTES, MADV_DONTFORK);
	if (mlock2(p->base, n * WIRE_CHUNK_BYTES, MLOCK_ONFAULT))
		log_warning("memory of clients that are away may be swapped out: mlock: %s",
			    strerror(errno));
	/* The lowest numbers are taken first. */
	for (uint32_t i = 0; i < p->n_chunks; i++)
		p->free[i] = p->n_chunks - 1 - i;
	return 0;
}

void pool_destroy(struct pool *p)
{
	while (p->leases && p->mrs)
		pool_drop(p, p->leases);
	if (p->base)
		munmap(p->base, (uint64_t)p->n_chunks * WIRE_CHUNK_BYTES);
	free(p->free);
	free(p->mrs);
	memset(p, 0, sizeof(*p));
}

struct lease *pool_find(struct pool *p, const struct wire_lease *name)
{
	for (struct lease *l = p->leases; l; l = l->next)
		if (memcmp(&l->name, name, sizeof(*name)) == 0)
			return l;
	return NULL;
}

struct lease *pool_lease(struct pool *p, const struct wire_lease *name)
{
	struct lease *l = calloc(1, sizeof(*l));

	if (!l)
		return NULL;
	l->name = *name;
	l->next = p->leases;
	p->leases = l;
	return l;
}

static void *chunk_at(const struct pool *p, uint32_t number)
{
	return p->base + (uint64_t)number * WIRE_CHUNK_BYTES;
}

static void hide(struct pool *p, uint32_t number)
{
	int r = p->mrs[number] ? ibv_dereg_mr(p->mrs[number]) : 0;

	/* Memory that the device still reaches can go to nobody else. */
	if (r) {
		log_error("cannot take chunk %u back from the device: %s", number, strerror(r));
		abort();
	}
	p->mrs[number] = NULL;
}

static void reclaim(struct pool *p, uint32_t number)
{
	hide(p, number);
	if (madvise(chunk_at(p, number), WIRE_CHUNK_BYTES, MADV_DONTNEED_LOCKED))
		memset(chunk_at(p, number), 0, WIRE_CHUNK_BYTES);
	p->lent--;
	p->free[p->n_chunks - p->lent - 1] = number;
}

void pool_drop(struct pool *p, struct lease *l)
{
	for (struct lease **at = &p->leases; *at; at = &(*at)->next) {
		if (*at == l) {
			*at = l->next;
			break;
		}
	}
	for (uint32_t i = 0; i < l->n; i++)
		reclaim(p, l->chunks[i]);
	free(l->chunks);
	free(l);
}

static int show(struct pool *p, uint32_t number, struct ibv_pd *pd)
{
	hide(p, number);
	p->mrs[number] = ibv_reg_mr(pd, chunk_at(p, number), WIRE_CHUNK_BYTES,
				    IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_READ |
					    IBV_ACCESS_REMOTE_WRITE);
	return p->mrs[number] ? 0 : errno ? -errno : -ENOMEM;
}

int pool_take(struct pool *p, struct lease *l, struct ibv_pd *pd)
{
	uint32_t number;
	int r;

	if (p->lent >= p->limit)
		return -ENOSPC;
	if (l->n == l->room) {
		uint32_t room = l->room ? l->room * 2 : 16;
		uint32_t *chunks = realloc(l->chunks, room * sizeof(*chunks));

		if (!chunks)
			return -ENOSPC;
		l->chunks = chunks;
		l->room = room;
	}
	number = p->free[p->n_chunks - p->lent - 1];
	r = show(p, number, pd);
	if (r) {
		log_warning("cannot lend: registering memory: %s", strerror(-r));
		return -ENOSPC;
	}
	p->lent++;
	l->chunks[l->n++] = number;
	return 0;
}

int pool_put(struct pool *p, struct lease *l, uint32_t number)
{
	for (uint32_t i = 0; i < l->n; i++) {
		if (l->chunks[i] != number)
			continue;
		l->chunks[i] = l->chunks[--l->n];
		reclaim(p, number);
		return 0;
	}
	return -EINVAL;
}

int pool_open(struct pool *p, struct lease *l, uint32_t i, struct ibv_pd *pd)
{
	return show(p, l->chunks[i], pd);
}

void pool_close(struct pool *p, struct lease *l)
{
	for (uint32_t i = 0; i < l->n; i++)
		hide(p, l->chunks[i]);
}

void pool_describe(const struct pool *p, const struct lease *l, uint32_t i, struct wire_chunk *out)
{
	uint32_t number = l->chunks[i];

	*out = (struct wire_chunk){.addr = (uint64_t)(uintptr_t)chunk_at(p, number),
				   .rkey = p->mrs[number]->rkey,
				   .number = number};
}
