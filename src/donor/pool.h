/* SPDX-License-Identifier: BSD-3-Clause */
/* pool.h: the memory that is lent, and who has what of it. */
#ifndef DONOR_POOL_H
#define DONOR_POOL_H

#include <stdbool.h>
#include <stdint.h>

#include <infiniband/verbs.h>

#include "rdma/wire.h"

struct session;

/* What one VM of a client has. Outlives its session. */
struct lease {
	struct wire_lease name;
	struct session *owner; /* NULL: nobody is connected */
	uint64_t left_ns;      /* since when, then */
	uint32_t *chunks;
	uint32_t n, room;
	struct lease *next;
};

struct pool {
	uint8_t *base;	   /* owned: n_chunks of address space */
	uint32_t n_chunks; /* that there can be */
	uint32_t limit;	   /* that may be lent now */
	uint32_t lent;
	uint32_t *free;	      /* stack; n_chunks - lent of them */
	struct ibv_mr **mrs;  /* of a chunk: reachable by its lease's session */
	struct lease *leases; /* owned */
};

/* bytes are rounded down to chunks; at least one. 0 or -errno. */
int pool_init(struct pool *p, uint64_t bytes);
void pool_destroy(struct pool *p);

struct lease *pool_find(struct pool *p, const struct wire_lease *name);
/* A new lease without chunks; NULL without memory. */
struct lease *pool_lease(struct pool *p, const struct wire_lease *name);
/* Gives all of it back and forgets it. */
void pool_drop(struct pool *p, struct lease *l);

/* One more chunk for a lease, zeroed, reachable through pd. 0, -ENOSPC. */
int pool_take(struct pool *p, struct lease *l, struct ibv_pd *pd);
/* Gives chunk `number` back. -EINVAL when the lease does not have it. */
int pool_put(struct pool *p, struct lease *l, uint32_t number);

/* Makes chunk l->chunks[i] reachable through pd (again). 0 or -errno. */
int pool_open(struct pool *p, struct lease *l, uint32_t i, struct ibv_pd *pd);
/* Nobody reaches the lease's chunks any more; what is in them stays. */
void pool_close(struct pool *p, struct lease *l);

void pool_describe(const struct pool *p, const struct lease *l, uint32_t i, struct wire_chunk *out);

#endif
