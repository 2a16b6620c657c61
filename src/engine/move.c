/* SPDX-License-Identifier: BSD-3-Clause */
/* move.c: takes evicted content from one tier to another. */
#include <errno.h>
#include <poll.h>
#include <stdlib.h>

#include "base/fault_point.h"
#include "engine/internal.h"

/*
 * Theory of operation
 *
 * A mover is one thread's way of doing that: a loader, and a batch of up to 64 units of one block
 * (of 2 MiB: one), which goes through these steps together:
 *
 *   1 read    each unit is owned (EVICTED -> LOADING) while it is read, so that nobody frees the
 *             copy under the read, and goes back to EVICTED as soon as it was, with PE_MOVING. A
 *             fault that comes in between waits for that read, as it would for its own
 *   2 store   in the first of the tiers that takes it. A fault may take the unit meanwhile: it
 *             loads the old copy, which is untouched, and the entry loses PE_MOVING with that
 *   3 name    where PE_MOVING is still set nothing has happened to the unit, and the entry gets the
 *             new tier and handle. Else the new copy is freed
 *   4 free    the old copy
 *
 * The store is acknowledged before the entry names it, and the old copy is freed after: a crash
 * leaves a copy too many, which the next daemon frees, since nobody names it. What no tier takes
 * stays where it was.
 *
 * One batch of a VM at a time (vm.move_lock), the demoter's or that of a backend's removal: so a
 * PE_MOVING that is found is left over from a fault that could not have its load, and means
 * nothing. A removal takes the lock once when it has forbidden further stores to its tier: then
 * none is on its way there.
 */

struct move {
	uint64_t unit, entry; /* entry: EVICTED, without PE_MOVING */
	uint64_t handle;      /* of the new copy */
	unsigned int to;      /* its tier; 0: none */
	bool read;
	struct ebb_io io;
};

struct mover {
	struct loader loader; /* the content is in the first of its two buffers */
	struct block *block;
	unsigned int from, n;
	unsigned int pending; /* I/O on its way */
	struct move moves[MOVE_BATCH];
	struct ebb_io *list[MOVE_BATCH];
};

int mover_new(struct engine *eng, struct mover **out)
{
	struct mover *m = calloc(1, sizeof(*m));
	int r;

	if (!m)
		return -ENOMEM;
	r = loader_open(eng, &m->loader, MOVE_BATCH, 0);
	if (r) {
		free(m);
		return r;
	}
	*out = m;
	return 0;
}

void mover_free(struct mover *m)
{
	if (!m)
		return;
	loader_close(&m->loader);
	free(m);
}

void mover_refresh(struct mover *m)
{
	loader_flush_frees(&m->loader);
	loader_refresh(&m->loader, MOVE_BATCH);
}

struct loader *mover_loader(struct mover *m)
{
	return &m->loader;
}

unsigned int mover_batch(const struct block *b)
{
	uint64_t fit = UNIT_MAX_BYTES / block_unit_bytes(b);

	return fit < MOVE_BATCH ? (unsigned int)fit : MOVE_BATCH;
}

static void leave(struct mover *m, const struct move *mv, uint64_t to)
{
	if (page_table_leave(&m->block->table, mv->unit, to))
		unit_wake(m->block, mv->unit);
}

/* 1, its end: the load of this unit is complete. */
static void read_done(struct mover *m, struct move *mv)
{
	if (mv->io.result == -EIO || mv->io.result == -EINVAL) {
		loader_lost(&m->loader, m->block, mv->unit, mv->entry);
		return;
	}
	mv->read = !mv->io.result;
	leave(m, mv, mv->read ? mv->entry | PE_MOVING : mv->entry);
}

/* Takes what has completed on a tier's channel; waits for the first. */
static void take_completions(struct mover *m, unsigned int tier)
{
	struct backend_channel *ch = loader_channel(&m->loader, tier);
	struct pollfd pfd = {.fd = backend_event_fd(ch), .events = POLLIN};
	struct ebb_io *done[16];
	int n = backend_poll(ch, done, 16);

	if (!n) {
		poll(&pfd, pfd.fd >= 0, pfd.fd >= 0 ? 100 : 1);
		n = backend_poll(ch, done, 16);
	}
	for (int i = 0; i < n; i++) {
		m->pending--;
		if (done[i]->op == EBB_IO_LOAD)
			read_done(m, &m->moves[done[i]->user]);
	}
}

/* Submits one I/O of the batch, and is told of it when it is complete. */
static void submit(struct mover *m, unsigned int tier, struct ebb_io *io)
{
	struct backend_channel *ch = loader_channel(&m->loader, tier);
	struct backend_space *space = atomic_load(&m->block->vm->spaces[tier]);
	bool sync = backend_caps(backend_of(space)) & EBB_BACKEND_SYNC;

	io->owner = unit_owner(m->block, m->moves[io->user].unit);
	while (backend_submit(ch, &io, 1) != 1) {
		/* A channel that is full is emptied first. */
		if (m->pending)
			take_completions(m, tier);
		else
			poll(NULL, 0, 1);
	}
	if (!sync)
		m->pending++;
	else if (io->op == EBB_IO_LOAD)
		read_done(m, &m->moves[io->user]);
}

static bool reachable(struct mover *m, unsigned int tier)
{
	return loader_channel(&m->loader, tier) && atomic_load(&m->block->vm->spaces[tier]);
}

/* 1 */
static void read_all(struct mover *m, const uint64_t *units, unsigned int n)
{
	struct block *b = m->block;
	uint64_t bytes = block_unit_bytes(b);

	m->n = 0;
	for (unsigned int i = 0; i < n; i++) {
		uint64_t e = page_table_get(&b->table, units[i]);
		struct move *mv = &m->moves[m->n];

		if (page_entry_state(e) != PE_EVICTED || page_entry_tier(e) != m->from ||
		    !page_table_cas(&b->table, units[i], &e,
				    page_entry_in(e & ~PE_MOVING, PE_LOADING)))
			continue;
		FAULT_POINT(move_owned);
		*mv = (struct move){.unit = units[i], .entry = e & ~PE_MOVING};
		backend_io_prepare(&mv->io, EBB_IO_LOAD, EBB_IO_BACKGROUND,
				   atomic_load(&b->vm->spaces[m->from]), page_entry_handle(e),
				   (char *)m->loader.buffers + m->n * bytes, (uint32_t)bytes, m->n);
		m->n++;
		submit(m, m->from, &mv->io);
	}
	while (m->pending)
		take_completions(m, m->from);
}

/* 2: what this tier takes; returns how many of the list are left. */
static unsigned int store_in(struct mover *m, unsigned int tier, unsigned int todo)
{
	struct backend_slot *slot = &m->loader.eng->slots[tier];
	struct vm *vm = m->block->vm;
	unsigned int left = 0;

	for (unsigned int i = 0; i < todo; i++) {
		struct ebb_io *io = m->list[i];
		bool plain = m->moves[io->user].entry & PE_PLAIN;

		backend_io_prepare(io, EBB_IO_STORE,
				   EBB_IO_BACKGROUND | (plain ? EBB_IO_NOCOMPRESS : 0),
				   atomic_load(&vm->spaces[tier]), 0, io->buf, io->len, io->user);
		submit(m, tier, io);
	}
	while (m->pending)
		take_completions(m, tier);
	for (unsigned int i = 0; i < todo; i++) {
		struct ebb_io *io = m->list[i];

		if (!io->result) {
			m->moves[io->user].to = tier;
			m->moves[io->user].handle = io->handle;
			continue;
		}
		if (io->result == -ENOSPC)
			backends_note_full(m->loader.eng, tier, vm->name);
		else
			atomic_fetch_add(&slot->failures, 1);
		m->list[left++] = io;
	}
	return left;
}

/* 2 */
static void store_all(struct mover *m, const unsigned int *to, unsigned int n_to)
{
	uint64_t now = clock_ns();
	unsigned int todo = 0;

	for (unsigned int i = 0; i < m->n; i++)
		if (m->moves[i].read)
			m->list[todo++] = &m->moves[i].io;
	for (unsigned int i = 0; i < n_to && todo; i++) {
		struct backend_slot *slot = &m->loader.eng->slots[to[i]];

		if (reachable(m, to[i]) && !atomic_load(&slot->draining) &&
		    now >= atomic_load(&slot->full_until_ns))
			todo = store_in(m, to[i], todo);
	}
}

/* 3 and 4: true when the entry names the new copy. */
static bool name_copy(struct mover *m, const struct move *mv)
{
	struct block *b = m->block;
	struct vm *vm = b->vm;
	uint64_t e = mv->entry | PE_MOVING, to;
	int64_t bytes = (int64_t)block_unit_bytes(b);

	for (;;) {
		to = mv->to ? page_entry_with_copy(e, mv->to, mv->handle) : e;
		if (page_table_cas(&b->table, mv->unit, &e, to & ~PE_MOVING))
			break;
		/* Other flags of it may change while it stays where it is. */
		if (page_entry_state(e) == PE_EVICTED && (e & PE_MOVING))
			continue;
		if (mv->to)
			loader_free_handle(&m->loader, b, mv->to, mv->handle);
		return false;
	}
	if (!mv->to)
		return false;
	FAULT_POINT(move_named);
	atomic_fetch_sub(&vm->tier_units[m->from], bytes);
	atomic_fetch_add(&vm->tier_units[mv->to], bytes);
	atomic_fetch_add(&vm->moved_out[m->from], (uint64_t)bytes);
	loader_free_handle(&m->loader, b, m->from, page_entry_handle(mv->entry));
	return true;
}

unsigned int mover_move(struct mover *m, struct block *b, const uint64_t *units, unsigned int n,
			unsigned int from, const unsigned int *to, unsigned int n_to)
{
	struct vm *vm = b->vm;
	unsigned int moved = 0;

	pthread_mutex_lock(&vm->move_lock);
	m->block = b;
	m->from = from;
	/* In this order: a removal, which takes the lock, forbids stores before it does. */
	if (reachable(m, from)) {
		read_all(m, units, n);
		if (m->n)
			FAULT_POINT(move_read);
		store_all(m, to, n_to);
		if (m->n)
			FAULT_POINT(move_stored);
		for (unsigned int i = 0; i < m->n; i++)
			if (m->moves[i].read)
				moved += name_copy(m, &m->moves[i]);
		loader_flush_frees(&m->loader);
	}
	pthread_mutex_unlock(&vm->move_lock);
	return moved;
}
