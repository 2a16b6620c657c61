/* SPDX-License-Identifier: BSD-3-Clause */
/* move.c: the thread that moves content away from donors that want their memory back. */
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <unistd.h>

#include "rdma.h"

/*
 * Theory of operation
 *
 * A donor says with each ping how many chunks it wants back. So many of those that hold the least
 * are marked: nothing new is put there. What is in them is moved, a batch of pieces at a time, to
 * other donors; or, when these have no room, closer together at the same one. A chunk that has
 * become empty goes back by the donor's thread, as any other.
 *
 *   1 copy   the piece is read and written as it is, sealed. Nobody knows of the new place yet, so
 *            a death here leaves a slot that nobody names
 *   2 name   the entry gets the new place, with one store, if it is what it was: an object that was
 *            freed meanwhile is not
 *   3 leave  loads that began before may be reading the old place: until these have ended (under
 *            each channel's lock, where a load looks up its place) it is not free
 *   4 free   the old slot
 *
 * During a batch no chunk of the space goes back to its donor, since what is freed meanwhile may be
 * what is being read. A piece is read unseen: what a donor has spoilt is spoilt at the new place as
 * well, and is found out when it is loaded.
 *
 * With nowhere to go a piece stays. The donors' room is what usage() gives as the capacity, without
 * what they want back; so with tiers below, the engine moves what is coldest down there, and what
 * remains finds room.
 *
 * Before an upgrade's hand-over the thread comes to rest (quiesce), and before its own resume() a
 * successor moves nothing (space.active).
 */

#define LOOK_MS	   250
#define SETTLE_MS  1500 /* until the donor has its chunks, and says what it wants yet */
#define QUEUES_MS  5000 /* connecting a channel may take so long */
#define AGAIN_MS   20
#define AGAIN_MAX  100 /* in a row: for donors that are slow to lend more */
#define MOVE_BATCH (SEGMENTS - SEGMENTS_DEMAND)

static bool must_stop(const struct rdma *inst)
{
	return atomic_load(&inst->stop) || atomic_load(&inst->quiet);
}

/* Sleeps so long, or until all has to stop. */
static void rest(const struct rdma *inst, unsigned int ms)
{
	for (unsigned int i = 0; i < ms / 50 && !must_stop(inst); i++)
		usleep(50000);
}

/* 1 */
static void copy_all(struct channel *ch, struct piece_move *m, uint32_t n)
{
	struct pollfd p = {.fd = ch->epoll_fd, .events = POLLIN};
	struct ebb_io *list[MOVE_BATCH], *done[MOVE_BATCH];
	uint32_t taken = 0, back = 0;

	for (uint32_t i = 0; i < n; i++)
		list[i] = &m[i].io;
	while (back < n) {
		int got;

		if (taken < n)
			taken += (uint32_t)channel_submit(ch, list + taken, n - taken);
		got = channel_poll(ch, done, MOVE_BATCH);
		back += (uint32_t)got;
		if (!got)
			poll(&p, 1, 100);
	}
}

/* Returns how many have moved. */
static uint32_t move_batch(struct channel *ch, struct space *sp, struct piece_move *m, uint32_t n)
{
	uint64_t left[MOVE_BATCH];
	uint32_t n_left = 0;

	copy_all(ch, m, n);
	for (uint32_t i = 0; i < n; i++) {
		if (!m[i].to)
			continue;
		if (move_commit(sp, &m[i]))
			left[n_left++] = m[i].from;
		else
			slot_put(sp, m[i].to);
	}
	channels_leave(sp->inst, left, n_left);
	for (uint32_t i = 0; i < n_left; i++)
		slot_put(sp, left[i]);
	count(sp->inst, COUNT_MOVED, n_left);
	return n_left;
}

static bool any_again(const struct piece_move *m, uint32_t n)
{
	for (uint32_t i = 0; i < n; i++)
		if (m[i].io.result == -EAGAIN)
			return true;
	return false;
}

/* Once through all entries. */
static void sweep(struct channel *ch, struct space *sp)
{
	unsigned int patience = AGAIN_MAX;
	struct piece_move m[MOVE_BATCH];
	uint32_t next = 0, n, moved;

	while (!must_stop(sp->inst) && !atomic_load(&sp->closing)) {
		space_moving(sp, true);
		n = moves_find(sp, &next, m, MOVE_BATCH);
		moved = n ? move_batch(ch, sp, m, n) : 0;
		space_moving(sp, false);
		if (!n)
			return;
		if (moved)
			patience = AGAIN_MAX;
		if (any_again(m, n) && patience) {
			/* Those that have moved are not found again. */
			patience--;
			next = m[0].index;
			usleep(AGAIN_MS * 1000);
		}
	}
}

/* A queue to each donor that is there. */
static void await_queues(struct channel *ch)
{
	struct rdma *inst = ch->inst;

	for (unsigned int ms = 0; ms < QUEUES_MS && !must_stop(inst); ms += 50) {
		bool all = true;

		pthread_mutex_lock(&ch->lock);
		for (unsigned int i = 0; i < inst->n_links; i++)
			all = all && (ch->queues[i] || !atomic_load(&inst->links[i]->up));
		pthread_mutex_unlock(&ch->lock);
		if (all)
			return;
		rest(inst, 50);
	}
}

/* What this donor wants back, from one space after the other. */
static void vacate(struct channel *ch, struct link *l)
{
	uint64_t left = atomic_load(&l->recall);
	struct space *sp = NULL;

	while ((sp = space_next(l->inst, sp))) {
		for (unsigned int i = 0; i < DONORS_MAX && left; i++) {
			uint32_t n;

			if (sp->shares[i].link != l || !atomic_load(&sp->shares[i].open) ||
			    !atomic_load(&sp->active))
				continue;
			n = share_vacate(sp, i, left);
			if (n)
				sweep(ch, sp);
			share_vacate_end(sp, i);
			left -= n;
		}
	}
	link_kick(l);
}

static bool recalled(const struct link *l)
{
	return atomic_load(&l->up) && atomic_load(&l->recall);
}

/* For as long as a donor wants something back: the channel takes memory at each donor. */
static void work(struct rdma *inst)
{
	struct channel *ch;
	bool any = true;

	if (channel_open(inst, MOVE_BATCH, &ch))
		return;
	await_queues(ch);
	while (any && !must_stop(inst)) {
		any = false;
		for (unsigned int i = 0; i < inst->n_links && !must_stop(inst); i++) {
			if (!recalled(inst->links[i]))
				continue;
			any = true;
			vacate(ch, inst->links[i]);
		}
		if (any)
			rest(inst, SETTLE_MS);
	}
	channel_close(ch);
}

void *mover_main(void *arg)
{
	struct rdma *inst = arg;

	while (!atomic_load(&inst->stop)) {
		bool any = false;

		usleep(LOOK_MS * 1000);
		for (unsigned int i = 0; i < inst->n_links; i++)
			any = any || recalled(inst->links[i]);
		/* In this order: who sets `quiet` and then finds us at rest will not see us move.
		 */
		atomic_store(&inst->moving, true);
		if (any && !must_stop(inst))
			work(inst);
		atomic_store(&inst->moving, false);
	}
	return NULL;
}
