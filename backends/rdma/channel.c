/* SPDX-License-Identifier: BSD-3-Clause */
/* channel.c: the data path: I/O in pieces, one-sided READs and WRITEs, completions. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#include "rdma.h"

/*
 * Theory of operation
 *
 * An I/O is an op; an op is 1 to 32 pieces. A piece in flight is a segment, which has a registered
 * buffer: a store is sealed into it and written from it to each donor that gets a copy, a load is
 * read into it and opened from it. Nothing is ever read into the caller's buffer before it was
 * verified.
 *
 * An op lies in one of two lists. What is demanded goes first, and a quarter of the segments is
 * kept for it. A piece that failed goes back to the op's `todo` and is done again, elsewhere or
 * when the donor is there again: a store whose WRITE was not acknowledged gets other slots; the old
 * ones are held until the donor has ended that session, since the WRITE may still arrive; a load
 * takes the other copy, or waits for the donor: WAIT_NS at most at a time (-EAGAIN: the engine asks
 * again), and no longer than the instance's patience since the donor was last there
 *   (-EIO: lost).
 *
 * A move (move.c) is an op of one piece, which is read from its old place and written as it is,
 * sealed, to the new one; it never waits for anything, but fails.
 *
 * Completion. poll() looks at the completion queues; while a demanded load is under way and loads
 * are fast, it does so for up to spin-us; then it asks for an event. The channel's descriptor is an
 * epoll set of the queues' completion channels and an eventfd for everything else.
 *
 * Threads. The channel's own thread does all I/O. Donors' threads attach and detach queues. That is
 * what the lock is for; under it nothing waits. A queue is detached in three steps: out of the
 * channel (lock), destroyed (no lock; the device is then off the buffers), its segments given up
 * (lock).
 */

#define WAIT_NS	       NS_PER_S	      /* a load waits so long for its donor, at a time */
#define STORE_WAIT_NS  (5 * NS_PER_S) /* a store for a slot that may come */
#define COMPLETIONS    16
#define SPIN_MAX_RATIO 2

/* ---- lists ---- */

static void list_add(struct op_list *l, struct op *op)
{
	op->next = NULL;
	op->prev = l->last;
	if (l->last)
		l->last->next = op;
	else
		l->first = op;
	l->last = op;
}

static void list_remove(struct op_list *l, struct op *op)
{
	if (op->prev)
		op->prev->next = op->next;
	else
		l->first = op->next;
	if (op->next)
		op->next->prev = op->prev;
	else
		l->last = op->prev;
}

static bool op_demand(const struct op *op)
{
	return op->io->flags & EBB_IO_DEMAND;
}

static uint8_t *segment_buffer(struct channel *ch, const struct segment *s)
{
	return ch->buffers + (size_t)(s - ch->segments) * PIECE_BYTES;
}

static struct segment *segment_take(struct channel *ch, bool demand)
{
	struct segment *s = ch->free_segments;

	if (!s || (!demand && ch->n_free_segments <= SEGMENTS_DEMAND))
		return NULL;
	ch->free_segments = s->next;
	ch->n_free_segments--;
	return s;
}

static void segment_put(struct channel *ch, struct segment *s)
{
	s->op = NULL;
	s->next = ch->free_segments;
	ch->free_segments = s;
	ch->n_free_segments++;
}

static uint32_t piece_bytes(const struct op *op)
{
	return PAGE_BYTES << piece_order(op->order);
}

static struct seal_id seal_id(const struct op *op, uint32_t i, uint64_t n)
{
	return (struct seal_id){.count = n, .owner = op->io->owner, .place = op->entries[i]};
}

/* ---- the end of an op ---- */

static void signal_fd(struct channel *ch)
{
	if (!atomic_exchange(&ch->signalled, true))
		eventfd_write(ch->event_fd, 1);
}

static void store_undo(struct op *op)
{
	struct space *sp = op->space;

	for (uint32_t i = 0; i < pieces_of(op->order); i++) {
		struct entry *e = &sp->entries[op->entries[i]];

		for (unsigned int k = 0; k < COPIES; k++) {
			uint64_t at = atomic_exchange(&e->at[k], 0);

			if (at)
				slot_put(sp, at);
		}
	}
	entries_put(sp, op->entries, pieces_of(op->order));
}

static void op_end(struct channel *ch, struct op *op)
{
	struct ebb_io *io = op->io;
	struct rdma *inst = ch->inst;

	if (io->op == EBB_IO_STORE) {
		if (op->result) {
			store_undo(op);
			count(inst, COUNT_REFUSED, 1);
		} else {
			io->handle = object_commit(op->space, op);
			io->stored_bytes =
				io->len + pieces_of(op->order) * (uint32_t)sizeof(struct entry);
		}
	} else if (op->result == -EIO) {
		count(inst, COUNT_LOST, 1);
	} else if (!op->result && op_demand(op)) {
		ch->load_ns = (ch->load_ns * 7 + (now_ns() - op->start_ns)) / 8;
	}
	io->result = op->result;
	if (io->op == EBB_IO_LOAD && op_demand(op))
		ch->demand_loads--;
	list_remove(op_demand(op) ? &ch->demand : &ch->background, op);
	list_add(&ch->free_ops, op);
	ch->n_ops--;
	ch->done[(ch->done_head + ch->n_done++) % ch->depth] = io;
}

static void op_check(struct channel *ch, struct op *op)
{
	if (!op->in_flight && (!op->todo || op->result))
		op_end(ch, op);
}

/* ---- pieces ---- */

static bool queue_usable(const struct channel *ch, const struct link *l)
{
	const struct queue *q = ch->queues[l->index];

	return q && !q->dead && !atomic_load(&l->broken);
}

static uint32_t usable_links(const struct channel *ch)
{
	uint32_t links = 0;

	for (unsigned int i = 0; i < ch->inst->n_links; i++)
		links |= (uint32_t)queue_usable(ch, ch->inst->links[i]) << i;
	return links;
}

/* Starts one copy. False when it could not be, which is as if it had failed later. */
static bool post(struct channel *ch, struct segment *s, unsigned int copy, bool write)
{
	struct space *sp = s->op->space;
	uint32_t bytes = piece_bytes(s->op);
	struct chunk *c = &sp->chunks[place_chunk(s->at[copy])];
	struct link *l = sp->shares[c->donor].link;
	struct queue *q = ch->queues[l->index];
	struct ibv_sge sge = {
		.addr = (uintptr_t)segment_buffer(ch, s), .length = bytes, .lkey = q->mr->lkey};
	struct ibv_send_wr wr = {
		.wr_id = (uint64_t)(s - ch->segments) << 1 | copy,
		.sg_list = &sge,
		.num_sge = 1,
		.opcode = write ? IBV_WR_RDMA_WRITE : IBV_WR_RDMA_READ,
		.send_flags = IBV_SEND_SIGNALED,
		.wr.rdma = {.remote_addr = c->addr + (uint64_t)place_slot(s->at[copy]) * bytes,
			    .rkey = c->rkey}};
	struct ibv_send_wr *bad;

	s->link[copy] = (uint8_t)l->index;
	if (ibv_post_send(q->id->qp, &wr, &bad)) {
		q->dead = true;
		link_break(l);
		return false;
	}
	q->outstanding++;
	s->pending |= (uint8_t)(1u << copy);
	return true;
}

/* 1: not now. */
static int store_start(struct channel *ch, struct segment *s)
{
	struct op *op = s->op;
	struct space *sp = op->space;
	unsigned int copies = ch->inst->mirror ? COPIES : 1;
	uint32_t links = usable_links(ch), bytes = piece_bytes(op), avoid = NONE;

	for (unsigned int k = 0; k < copies; k++) {
		int r = slot_take(sp, piece_order(op->order), links, avoid, &s->at[k]);

		if (r) {
			while (k)
				slot_put(sp, s->at[--k]);
			if (r == -EAGAIN && now_ns() < op->start_ns + STORE_WAIT_NS)
				return 1;
			return -ENOSPC;
		}
		avoid = sp->chunks[place_chunk(s->at[k])].donor;
	}
	s->count = count_take(sp);
	seal_close(&sp->seal, op->encrypted, seal_id(op, s->i, s->count),
		   (const uint8_t *)op->io->buf + (size_t)s->i * bytes, bytes,
		   segment_buffer(ch, s), s->tag);
	for (unsigned int k = 0; k < copies; k++)
		if (!post(ch, s, k, true))
			s->failed |= (uint8_t)(1u << k);
	return 0;
}

static bool lost_for_good(const struct link *l, uint64_t now)
{
	return !atomic_load(&l->up) &&
	       now > atomic_load(&l->down_ns) + atomic_load(&l->inst->patience_ns);
}

/* 1: not now. */
static int load_start(struct channel *ch, struct segment *s)
{
	struct op *op = s->op;
	struct space *sp = op->space;
	struct entry *e = &sp->entries[op->entries[s->i]];
	uint64_t now = 0;
	bool wait = false;

	for (unsigned int k = 0; k < COPIES; k++) {
		uint64_t at = atomic_load(&e->at[k]);
		uint32_t row = place_chunk(at);
		struct chunk *c;
		struct link *l;

		if (!at || row >= sp->n_chunks || (op->bad[s->i] >> k & 1))
			continue;
		c = &sp->chunks[row];
		l = sp->shares[c->donor].link;
		if (c->state == CHUNK_LOST || c->state == CHUNK_FREE || !l)
			continue;
		if (atomic_load(&sp->shares[c->donor].open) && queue_usable(ch, l)) {
			s->at[k] = at;
			s->count = e->count;
			memcpy(s->tag, e->tag, sizeof(s->tag));
			if (k)
				count(ch->inst, COUNT_OTHER_COPY, 1);
			if (!post(ch, s, k, false))
				s->failed = (uint8_t)(1u << k);
			return 0;
		}
		now = now ? now : now_ns();
		wait = wait || !lost_for_good(l, now);
	}
	if (!wait)
		return -EIO;
	return now > op->start_ns + WAIT_NS ? -EAGAIN : 1;
}

static struct piece_move *op_move(const struct op *op)
{
	return op->io->op == IO_MOVE ? (struct piece_move *)op->io : NULL;
}

/* at[0] is the old place and read, at[1] the new one and written. */
static int move_start(struct channel *ch, struct segment *s)
{
	const struct piece_move *m = op_move(s->op);
	const struct chunk *c = &s->op->space->chunks[place_chunk(m->from)];
	const struct share *sh = &s->op->space->shares[c->donor];

	if (c->state != CHUNK_OPEN || !sh->link || !atomic_load(&sh->open) ||
	    !queue_usable(ch, sh->link))
		return -EAGAIN;
	s->at[0] = m->from;
	if (!post(ch, s, 0, false))
		s->failed = 1;
	return 0;
}

/* True when the piece goes on. Else the result is set. */
static bool move_step(struct channel *ch, struct segment *s)
{
	struct piece_move *m = op_move(s->op);
	struct space *sp = s->op->space;

	s->op->result = s->failed ? -EAGAIN : 0;
	if (!s->failed && !s->at[1]) {
		s->op->result = slot_take_for_move(sp, m, usable_links(ch), &s->at[1]);
		if (s->op->result)
			return false;
		if (post(ch, s, 1, true))
			return true;
		s->op->result = -EAGAIN;
	}
	if (!s->op->result)
		m->to = s->at[1];
	else if (s->at[1])
		slot_hold(sp, s->at[1]); /* the write may yet arrive */
	return false;
}

static void segment_end(struct channel *ch, struct segment *s);

/* Starts what can be of an op. False when there is no segment left for it. */
static bool op_start(struct channel *ch, struct op *op)
{
	while (op->todo && !op->result) {
		struct segment *s = segment_take(ch, op_demand(op));
		int r;

		if (!s)
			return false;
		s->op = op;
		s->i = (uint32_t)__builtin_ctz(op->todo);
		s->pending = s->failed = 0;
		memset(s->at, 0, sizeof(s->at));
		op->todo &= op->todo - 1;
		op->in_flight++;
		r = op->io->op == EBB_IO_STORE ? store_start(ch, s)
		    : op_move(op)	       ? move_start(ch, s)
					       : load_start(ch, s);
		if (r) {
			op->todo |= 1u << s->i;
			op->in_flight--;
			segment_put(ch, s);
			if (r < 0)
				op->result = r;
			break;
		}
		if (!s->pending) {
			segment_end(ch, s);
			break;
		}
	}
	return true;
}

static void load_end(struct channel *ch, struct segment *s)
{
	struct op *op = s->op;
	uint32_t bytes = piece_bytes(op);
	unsigned int copy = s->at[0] ? 0 : 1;

	if (s->failed) {
		op->todo |= 1u << s->i;
		count(ch->inst, COUNT_RETRIES, 1);
		return;
	}
	if (seal_open(&op->space->seal, op->encrypted, seal_id(op, s->i, s->count),
		      segment_buffer(ch, s), bytes, s->tag,
		      (uint8_t *)op->io->buf + (size_t)s->i * bytes)) {
		op->bad[s->i] |= (uint8_t)(1u << copy);
		op->todo |= 1u << s->i;
		count(ch->inst, COUNT_WRONG, 1);
	}
}

static void store_end(struct channel *ch, struct segment *s)
{
	struct op *op = s->op;
	struct entry *e = &op->space->entries[op->entries[s->i]];

	if (s->failed) {
		for (unsigned int k = 0; k < COPIES; k++) {
			if (!s->at[k])
				continue;
			if (s->failed >> k & 1)
				slot_hold(op->space, s->at[k]);
			else
				slot_put(op->space, s->at[k]);
		}
		op->todo |= 1u << s->i;
		count(ch->inst, COUNT_RETRIES, 1);
		return;
	}
	/* Not live yet: object_commit() says when. */
	for (unsigned int k = 0; k < COPIES; k++)
		atomic_store_explicit(&e->at[k], s->at[k], memory_order_relaxed);
	e->count = s->count;
	memcpy(e->tag, s->tag, sizeof(e->tag));
}

/* No copy of it is pending any more. */
static void segment_end(struct channel *ch, struct segment *s)
{
	struct op *op = s->op;

	if (op_move(op)) {
		if (move_step(ch, s))
			return;
	} else if (op->io->op == EBB_IO_STORE) {
		store_end(ch, s);
	} else {
		load_end(ch, s);
	}
	op->in_flight--;
	segment_put(ch, s);
}

static void copy_done(struct channel *ch, struct segment *s, unsigned int copy, bool ok)
{
	struct op *op = s->op;

	s->pending &= (uint8_t) ~(1u << copy);
	if (!ok)
		s->failed |= (uint8_t)(1u << copy);
	if (s->pending)
		return;
	segment_end(ch, s);
	op_check(ch, op);
}

/* ---- completions ---- */

static unsigned int reap_queue(struct channel *ch, struct queue *q)
{
	struct ibv_wc wc[COMPLETIONS];
	unsigned int total = 0;
	int n;

	do {
		n = ibv_poll_cq(q->cq, COMPLETIONS, wc);
		for (int i = 0; i < n; i++) {
			struct segment *s = &ch->segments[wc[i].wr_id >> 1];
			bool ok = wc[i].status == IBV_WC_SUCCESS;

			q->outstanding--;
			if (!ok && !q->dead) {
				q->dead = true;
				link_break(q->link);
			}
			copy_done(ch, s, wc[i].wr_id & 1, ok);
		}
		if (n < 0)
			q->dead = true;
		total += n > 0 ? (unsigned int)n : 0;
	} while (n == COMPLETIONS);
	return total;
}

static unsigned int reap(struct channel *ch)
{
	unsigned int total = 0;

	for (unsigned int i = 0; i < ch->inst->n_links; i++)
		if (ch->queues[i] && ch->queues[i]->outstanding)
			total += reap_queue(ch, ch->queues[i]);
	return total;
}

/*
 * Asks every queue with something under way for an event, and takes what came just before: for that
 * there will be none. Returns how many.
 */
static unsigned int arm(struct channel *ch)
{
	unsigned int came = 0;

	for (unsigned int i = 0; i < ch->inst->n_links; i++) {
		struct queue *q = ch->queues[i];

		if (!q || !q->outstanding || q->armed)
			continue;
		q->armed = ibv_req_notify_cq(q->cq, 0) == 0;
		came += reap_queue(ch, q);
	}
	return came;
}

/* Events that came make the descriptor readable until they are taken. */
static void disarm(struct channel *ch)
{
	for (unsigned int i = 0; i < ch->inst->n_links; i++) {
		struct queue *q = ch->queues[i];
		struct ibv_cq *cq;
		void *context;

		if (!q || !q->armed || ibv_get_cq_event(q->comp, &cq, &context))
			continue;
		q->armed = false;
		q->events++;
	}
}

static void start_list(struct channel *ch, struct op_list *l, uint32_t *waiting)
{
	struct op *next;

	for (struct op *op = l->first; op; op = next) {
		bool more = !op->todo || op->result || op_start(ch, op);

		next = op->next;
		*waiting += op->todo && !op->in_flight && !op->result;
		op_check(ch, op);
		if (!more)
			break;
	}
}

static void start_all(struct channel *ch)
{
	uint32_t waiting = 0;

	start_list(ch, &ch->demand, &waiting);
	start_list(ch, &ch->background, &waiting);
	atomic_store(&ch->waiting, waiting);
}

static bool spin(struct channel *ch)
{
	uint64_t most = atomic_load(&ch->inst->spin_ns), start, limit;

	if (!ch->demand_loads || !most || ch->load_ns > most)
		return false;
	limit = ch->load_ns * SPIN_MAX_RATIO;
	limit = limit < most ? limit : most;
	start = now_ns();
	do {
		if (reap(ch))
			return true;
	} while (now_ns() - start < limit);
	return false;
}

/* ---- what the plugin's face calls ---- */

static int order_of(uint32_t len)
{
	for (unsigned int order = 0; order <= ORDER_MAX; order++)
		if (len == PAGE_BYTES << order)
			return (int)order;
	return -EINVAL;
}

static int op_begin(struct op *op, struct ebb_io *io, bool encrypt)
{
	int order = order_of(io->len), r;

	op->io = io;
	op->space = io->space;
	op->todo = op->in_flight = 0;
	op->order = 0;
	op->encrypted = encrypt;
	op->start_ns = now_ns();
	if (order < 0 || (io->op != EBB_IO_STORE && io->op != EBB_IO_LOAD && io->op != IO_MOVE))
		return -EINVAL;
	op->order = (uint8_t)order;
	if (io->op == IO_MOVE) {
		op->entries[0] = op_move(op)->index;
		op->todo = 1;
		return 0;
	}
	r = io->op == EBB_IO_STORE ? entries_take(op->space, op->entries, pieces_of(op->order))
				   : object_find(op->space, io->handle, op);
	if (r)
		return r;
	atomic_store_explicit(&op->space->active, true, memory_order_relaxed);
	memset(op->bad, 0, pieces_of(op->order));
	op->todo = (uint32_t)((UINT64_C(1) << pieces_of(op->order)) - 1);
	return 0;
}

static void take(struct channel *ch, struct ebb_io *io)
{
	struct rdma *inst = ch->inst;
	struct op *op = ch->free_ops.first;
	int r;

	list_remove(&ch->free_ops, op);
	r = op_begin(op, io, atomic_load(&inst->encrypt));
	if (io->op != IO_MOVE)
		count(inst, io->op == EBB_IO_STORE ? COUNT_STORES : COUNT_LOADS, 1);
	if (r) {
		/* Nothing of it was begun, so nothing has to be undone. */
		if (r == -EINVAL)
			count(inst, COUNT_BAD_HANDLE, 1);
		io->result = r;
		list_add(&ch->free_ops, op);
		ch->done[(ch->done_head + ch->n_done++) % ch->depth] = io;
		return;
	}
	op->result = 0;
	if (io->op == EBB_IO_LOAD && op_demand(op))
		ch->demand_loads++;
	list_add(op_demand(op) ? &ch->demand : &ch->background, op);
	ch->n_ops++;
}

int channel_submit(struct channel *ch, struct ebb_io **ios, uint32_t n)
{
	uint32_t taken = 0;

	pthread_mutex_lock(&ch->lock);
	for (; taken < n && ch->free_ops.first && ch->n_ops + ch->n_done < ch->depth; taken++)
		take(ch, ios[taken]);
	do
		start_all(ch);
	while (arm(ch));
	if (ch->n_done)
		signal_fd(ch);
	pthread_mutex_unlock(&ch->lock);
	return (int)taken;
}

int channel_poll(struct channel *ch, struct ebb_io **ios, uint32_t n)
{
	uint32_t given = 0;
	eventfd_t ignored;

	pthread_mutex_lock(&ch->lock);
	/* Before looking, so that a kick that comes later is not taken for this one. */
	if (atomic_exchange(&ch->signalled, false))
		eventfd_read(ch->event_fd, &ignored);
	reap(ch);
	start_all(ch);
	if (!ch->n_done)
		spin(ch);
	disarm(ch);
	/* What has ended makes room for what has not begun, of which no event would tell. */
	do
		start_all(ch);
	while (arm(ch));
	for (; given < n && ch->n_done; given++, ch->n_done--) {
		ios[given] = ch->done[ch->done_head];
		ch->done_head = (ch->done_head + 1) % ch->depth;
	}
	/* More to give, or more to start (with what has become free): come again. */
	if (ch->n_done)
		signal_fd(ch);
	pthread_mutex_unlock(&ch->lock);
	return (int)given;
}

void channel_kick(struct channel *ch)
{
	/* Under the lock: between its two halves a poll would take the mark and leave the
	 * descriptor readable, with nobody to take that any more. */
	pthread_mutex_lock(&ch->lock);
	signal_fd(ch);
	pthread_mutex_unlock(&ch->lock);
}

void channels_kick(struct rdma *inst)
{
	pthread_mutex_lock(&inst->lock);
	for (struct channel *ch = inst->channels; ch; ch = ch->next)
		if (atomic_load(&ch->waiting))
			channel_kick(ch);
	pthread_mutex_unlock(&inst->lock);
}

static bool is_at(struct channel *ch, const uint64_t *places, uint32_t n)
{
	bool found = false;

	pthread_mutex_lock(&ch->lock);
	for (unsigned int i = 0; i < SEGMENTS; i++)
		for (unsigned int k = 0; k < COPIES; k++)
			for (uint32_t p = 0; p < n && ch->segments[i].op; p++)
				found = found || ((ch->segments[i].pending >> k & 1) &&
						  ch->segments[i].at[k] == places[p]);
	pthread_mutex_unlock(&ch->lock);
	return found;
}

void channels_leave(struct rdma *inst, const uint64_t *places, uint32_t n)
{
	struct channel *ch = NULL;

	/* A READ ends, or its donor's session does; neither takes longer than a few seconds. */
	while ((ch = channel_next(inst, ch)))
		while (is_at(ch, places, n))
			usleep(200);
}

/* ---- queues ---- */

bool channel_attach(struct channel *ch, struct queue *q)
{
	struct epoll_event ev = {.events = EPOLLIN};
	bool ok;

	pthread_mutex_lock(&ch->lock);
	ok = !ch->closed && !ch->queues[q->link->index] &&
	     epoll_ctl(ch->epoll_fd, EPOLL_CTL_ADD, q->comp->fd, &ev) == 0;
	if (ok)
		ch->queues[q->link->index] = q;
	pthread_mutex_unlock(&ch->lock);
	if (ok)
		channel_kick(ch);
	return ok;
}

static struct queue *detach(struct channel *ch, unsigned int index)
{
	struct queue *q;

	pthread_mutex_lock(&ch->lock);
	q = ch->queues[index];
	ch->queues[index] = NULL;
	pthread_mutex_unlock(&ch->lock);
	return q;
}

/* The device is off their buffers: what was under way there has failed. */
static void give_up(struct channel *ch, unsigned int index)
{
	pthread_mutex_lock(&ch->lock);
	for (unsigned int i = 0; i < SEGMENTS; i++) {
		struct segment *s = &ch->segments[i];

		for (unsigned int k = 0; k < COPIES && s->op; k++)
			if ((s->pending >> k & 1) && s->link[k] == index)
				copy_done(ch, s, k, false);
	}
	/* The channel's thread starts them again, or somewhere else. */
	signal_fd(ch);
	pthread_mutex_unlock(&ch->lock);
}

void channels_detach(struct link *l)
{
	struct channel *ch = NULL;

	while ((ch = channel_next(l->inst, ch))) {
		struct queue *q = detach(ch, l->index);

		if (!q)
			continue;
		queue_free(q);
		give_up(ch, l->index);
	}
}

/* ---- channels ---- */

struct channel *channel_next(struct rdma *inst, struct channel *after)
{
	struct channel *ch;

	pthread_mutex_lock(&inst->lock);
	ch = after ? after->next : inst->channels;
	if (ch)
		ch->refs++;
	pthread_mutex_unlock(&inst->lock);
	if (after)
		channel_put(after);
	return ch;
}

static void channel_free(struct channel *ch)
{
	if (ch->buffers)
		munmap(ch->buffers, SEGMENTS * PIECE_BYTES);
	if (ch->event_fd >= 0)
		close(ch->event_fd);
	if (ch->epoll_fd >= 0)
		close(ch->epoll_fd);
	pthread_mutex_destroy(&ch->lock);
	free(ch->ops);
	free(ch->done);
	free(ch);
}

void channel_put(struct channel *ch)
{
	struct rdma *inst = ch->inst;
	bool last;

	pthread_mutex_lock(&inst->lock);
	last = --ch->refs == 0;
	/* Unlinked by the last one, so that who walks the list can go on from it. */
	if (last) {
		for (struct channel **at = &inst->channels; *at; at = &(*at)->next) {
			if (*at == ch) {
				*at = ch->next;
				break;
			}
		}
	}
	pthread_mutex_unlock(&inst->lock);
	if (last)
		channel_free(ch);
}

int channel_open(struct rdma *inst, uint32_t depth, struct channel **out)
{
	struct channel *ch = calloc(1, sizeof(*ch));
	struct epoll_event ev = {.events = EPOLLIN};
	pthread_mutexattr_t attr;

	if (!ch)
		return -ENOMEM;
	ch->inst = inst;
	ch->refs = 1;
	ch->depth = depth;
	pthread_mutexattr_init(&attr);
	pthread_mutexattr_settype(&attr, PTHREAD_MUTEX_ADAPTIVE_NP);
	pthread_mutex_init(&ch->lock, &attr);
	pthread_mutexattr_destroy(&attr);
	ch->event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	ch->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
	ch->ops = calloc(depth, sizeof(*ch->ops));
	ch->done = calloc(depth, sizeof(struct ebb_io *));
	ch->buffers = mmap(NULL, SEGMENTS * PIECE_BYTES, PROT_READ | PROT_WRITE,
			   MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (ch->buffers == MAP_FAILED)
		ch->buffers = NULL;
	if (ch->event_fd < 0 || ch->epoll_fd < 0 || !ch->ops || !ch->done || !ch->buffers ||
	    epoll_ctl(ch->epoll_fd, EPOLL_CTL_ADD, ch->event_fd, &ev)) {
		channel_free(ch);
		return -ENOMEM;
	}
	/* Guest content, and memory that a device writes to: not for dumps and children. */
	madvise(ch->buffers, SEGMENTS * PIECE_BYTES, MADV_DONTDUMP);
	madvise(ch->buffers, SEGMENTS * PIECE_BYTES, MADV_DONTFORK);
	for (uint32_t i = 0; i < depth; i++)
		list_add(&ch->free_ops, &ch->ops[i]);
	for (uint32_t i = SEGMENTS; i-- > 0;)
		segment_put(ch, &ch->segments[i]);
	pthread_mutex_lock(&inst->lock);
	ch->next = inst->channels;
	inst->channels = ch;
	pthread_mutex_unlock(&inst->lock);
	/* Connecting takes a while; nobody waits for it here. */
	for (unsigned int i = 0; i < inst->n_links; i++)
		link_kick(inst->links[i]);
	*out = ch;
	return 0;
}

void channel_close(struct channel *ch)
{
	struct queue *gone[DONORS_MAX];

	pthread_mutex_lock(&ch->lock);
	ch->closed = true;
	memcpy(gone, ch->queues, sizeof(gone));
	memset(ch->queues, 0, sizeof(ch->queues));
	pthread_mutex_unlock(&ch->lock);
	for (unsigned int i = 0; i < DONORS_MAX; i++)
		if (gone[i])
			queue_free(gone[i]);
	channel_put(ch);
}
