/* SPDX-License-Identifier: BSD-3-Clause */
/* discard.c: what the VMM tells the kernel about its RAM, passed on to the daemon. */
#include <errno.h>
#include <sys/stat.h>

#include "base/clock.h"
#include "client/client.h"

/*
 * A discard has been done by the VMM before it gets here, so a page that was resident reads as
 * zero already. One that was evicted would come back with its old content: the daemon has to
 * forget it before the VMM goes on, so each is waited for, and none is put off to be sent with
 * others. The deadline that goes with it is never later than the VMM goes on: a daemon that is too
 * slow then keeps what it has, and takes nothing that was written since.
 */

#define DISCARD_WAIT_MS 1000

/* [from, from + bytes) of region i, in bytes from its start. With the lock held. */
static struct op *submit_discard(struct client *c, unsigned int i, uint64_t from, uint64_t bytes)
{
	uint32_t page = c->regions[i].page_size;
	uint64_t start = (from + page - 1) / page * page, end = (from + bytes) / page * page;
	struct op *op;

	/* A part of a page that was cleared is a write, not a discard. */
	if (start >= end || !region_known(&c->regions[i]))
		return NULL;
	while (!(op = op_submit(c, OP_DISCARD, i)) && c->link == LINK_ATTACHED)
		if (client_wait(c, clock_ns() + DISCARD_WAIT_MS * NS_PER_MS) == -ETIMEDOUT)
			return NULL;
	if (op) {
		op->offset = start;
		op->size = end - start;
		op->deadline_ns = clock_ns() + DISCARD_WAIT_MS * NS_PER_MS;
	}
	return op;
}

static void await_discards(struct client *c, struct op **ops, unsigned int n)
{
	for (unsigned int i = 0; i < n; i++)
		op_start(c, ops[i]);
	for (unsigned int i = 0; i < n; i++) {
		uint64_t deadline = ops[i]->deadline_ns;

		/* The connection broke: the daemon may still be at it, until the deadline. */
		if (op_wait(c, ops[i], DISCARD_WAIT_MS) == -ENOTCONN)
			while (clock_ns() < deadline && client_wait(c, deadline) != -ETIMEDOUT)
				;
	}
}

void client_discarded(struct client *c, void *addr, size_t bytes)
{
	uint64_t start = (uintptr_t)addr, end = start + bytes;
	struct op *ops[CLIENT_REGIONS_MAX], *op;
	unsigned int n = 0;

	if (!atomic_load_explicit(&c->started, memory_order_acquire))
		return;
	pthread_mutex_lock(&c->lock);
	/* A daemon may have evicted before we read its answer to the attach. */
	region_wait_offers(c, clock_ns() + DISCARD_WAIT_MS * NS_PER_MS);
	for (unsigned int i = 0; i < CLIENT_REGIONS_MAX; i++) {
		struct region *r = &c->regions[i];
		uint64_t from, to;

		if (!region_overlaps(r, start, bytes))
			continue;
		from = start > r->addr ? start - r->addr : 0;
		to = end < r->addr + r->size ? end - r->addr : r->size;
		op = submit_discard(c, i, from, to - from);
		if (op)
			ops[n++] = op;
	}
	await_discards(c, ops, n);
	pthread_mutex_unlock(&c->lock);
}

void client_punched(struct client *c, int fd, off_t offset, off_t bytes)
{
	uint64_t start = (uint64_t)offset, end = start + (uint64_t)bytes;
	struct op *ops[CLIENT_REGIONS_MAX], *op;
	unsigned int n = 0;
	struct stat st;

	if (!atomic_load_explicit(&c->started, memory_order_acquire) || fstat(fd, &st))
		return;
	pthread_mutex_lock(&c->lock);
	/* A daemon may have evicted before we read its answer to the attach. */
	region_wait_offers(c, clock_ns() + DISCARD_WAIT_MS * NS_PER_MS);
	for (unsigned int i = 0; i < CLIENT_REGIONS_MAX; i++) {
		struct region *r = &c->regions[i];
		uint64_t from, to;

		if (!region_is_file(r, st.st_dev, st.st_ino) || start >= r->offset + r->size ||
		    end <= r->offset)
			continue;
		from = start > r->offset ? start - r->offset : 0;
		to = end < r->offset + r->size ? end - r->offset : r->size;
		op = submit_discard(c, i, from, to - from);
		if (op)
			ops[n++] = op;
	}
	await_discards(c, ops, n);
	pthread_mutex_unlock(&c->lock);
}

void client_populating(struct client *c, void *addr, size_t bytes, int by)
{
	if (!atomic_load_explicit(&c->started, memory_order_acquire))
		return;
	pthread_mutex_lock(&c->lock);
	for (unsigned int i = 0; i < CLIENT_REGIONS_MAX; i++) {
		struct region *r = &c->regions[i];

		if (!region_overlaps(r, (uintptr_t)addr, bytes))
			continue;
		if (by > 0)
			r->busy++;
		else if (r->busy)
			r->busy--;
		r->since_ns = clock_ns();
	}
	pthread_mutex_unlock(&c->lock);
	helper_wake(c);
}

void client_dontfork(struct client *c, void *addr, size_t bytes, bool on)
{
	uint64_t start = (uintptr_t)addr;

	if (!atomic_load_explicit(&c->started, memory_order_acquire))
		return;
	pthread_mutex_lock(&c->lock);
	for (unsigned int i = 0; i < CLIENT_REGIONS_MAX; i++) {
		struct region *r = &c->regions[i];

		if (!region_overlaps(r, start, bytes))
			continue;
		r->dontfork = on && start <= r->addr && start + bytes >= r->addr + r->size;
	}
	pthread_mutex_unlock(&c->lock);
}
