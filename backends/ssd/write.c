/* SPDX-License-Identifier: BSD-3-Clause */
/* write.c: stores: gathered into large writes, complete when those are. */
#include <errno.h>

#include "ssd.h"

/*
 * Theory of operation
 *
 * Stores that are submitted together get blocks side by side in their space's open segment and go
 * to the device as one write, straight from the caller's buffers (or, encrypted, from the
 * channel's stage). When the write is complete the entries are made live, and only then are the
 * stores. Direct I/O that is complete is out of this process's hands: a daemon that is killed the
 * instant after loses nothing. (Power that fails takes the VM as well, so no flush is needed.)
 *
 * How many of them are at the device at a time, says channel_may_issue().
 *
 * A nonce is taken from the counter in the map for every encryption, a repeated one of the same
 * write too. The counter lives exactly as long as the key is good for anything (the map and the
 * VM's record are kept by the same client), so no nonce comes twice under one key.
 */

/* priv[0] of a store that was not begun. */
#define HANDLE_NONE UINT64_MAX

static bool valid_length(uint32_t len)
{
	return len >= BLOCK_BYTES && len <= SEGMENT_BYTES && !(len & (len - 1));
}

/* The write that a store at this place can go on with, or a new one; NULL: none is idle. */
static struct write *write_for(struct channel *ch, struct space *sp, uint32_t seg, uint32_t block,
			       const struct ebb_io *io, struct write *last)
{
	uint32_t blocks = io->len / BLOCK_BYTES;
	struct iovec *v;

	if (last && last->space == sp && last->seg == seg && last->block + last->blocks == block &&
	    last->blocks + blocks <= MERGE_BLOCKS) {
		v = &last->iov[last->n_iov - 1];
		if ((char *)v->iov_base + v->iov_len == (char *)io->buf) {
			v->iov_len += io->len;
			return last;
		}
		if (last->n_iov < WRITE_PIECES) {
			last->iov[last->n_iov++] = (struct iovec){io->buf, io->len};
			return last;
		}
	}
	last = ch->idle;
	if (!last)
		return NULL;
	ch->idle = last->next;
	last->next = NULL;
	last->space = sp;
	last->seg = seg;
	last->block = block;
	last->blocks = 0;
	last->first = last->last = NULL;
	last->n_iov = 1;
	last->iov[0] = (struct iovec){io->buf, io->len};
	*ch->waiting_end = last;
	ch->waiting_end = &last->next;
	return last;
}

/* 0: taken, completed at once with an error, or -EAGAIN: not taken. */
static int take(struct channel *ch, struct ebb_io *io, struct write **last)
{
	struct space *sp = io->space;
	uint32_t seg, block;
	uint64_t handle;
	struct write *w;
	int r;

	io->priv[0] = HANDLE_NONE;
	if (!valid_length(io->len) || (uintptr_t)io->buf % BLOCK_BYTES)
		return -EINVAL;
	if (!ch->idle) /* one more than merging may need */
		return -EAGAIN;
	r = handle_take(sp, &handle);
	if (r)
		return r;
	r = seg_alloc(sp, io->len / BLOCK_BYTES, &seg, &block);
	if (r) {
		handle_release(sp, handle_index(handle));
		return r;
	}
	w = write_for(ch, sp, seg, block, io, *last);
	*last = w;
	w->blocks += io->len / BLOCK_BYTES;
	io->priv[0] = handle;
	io_append(&w->first, &w->last, io);
	ch->in_flight++;
	return 0;
}

uint32_t writes_take(struct channel *ch, struct ebb_io **ios, uint32_t n)
{
	struct write *last = NULL;
	uint32_t i;

	for (i = 0; i < n && ios[i]->op == EBB_IO_STORE && ch->in_flight < ch->depth; i++) {
		int r = take(ch, ios[i], &last);

		if (r == -EAGAIN)
			break;
		count_add(ch, COUNT_STORES, 1);
		if (!r)
			continue;
		if (r == -ENOSPC)
			count_add(ch, COUNT_FULL, 1);
		ch->in_flight++;
		channel_complete(ch, ios[i], r);
	}
	return i;
}

void writes_sum(struct ebb_io *const *ios, uint32_t n)
{
	for (uint32_t i = 0; i < n; i++) {
		const struct ebb_io *io = ios[i];
		struct space *sp = io->space;

		if (io->op == EBB_IO_STORE && io->priv[0] != HANDLE_NONE && !sp->key.encrypt)
			sp->sums[handle_index(io->priv[0])] =
				proof_sum(&sp->key, (struct object_id){io->priv[0], io->owner},
					  io->buf, io->len);
	}
}

/* Ciphertext into the stage; NULL: no room before the writes that are under way have ended. */
static char *stage(struct channel *ch, struct write *w)
{
	struct space *sp = w->space;
	uint64_t bytes = (uint64_t)w->blocks * BLOCK_BYTES;
	char *from, *to;

	if (!ch->stage_writes)
		ch->stage_used = 0;
	if (ch->stage_used + bytes > STAGE_BYTES)
		return NULL;
	to = from = ch->stage + ch->stage_used;
	for (struct ebb_io *io = w->first; io; io = io_next(io)) {
		uint32_t index = handle_index(io->priv[0]);
		uint64_t nonce = atomic_fetch_add(&sp->map->nonce, 1);

		sp->nonces[index] = nonce;
		sp->sums[index] =
			proof_encrypt(&sp->key, (struct object_id){io->priv[0], io->owner}, nonce,
				      io->buf, io->len, to);
		to += io->len;
	}
	ch->stage_used += (uint32_t)bytes;
	ch->stage_writes++;
	return from;
}

static void issue(struct channel *ch, struct write *w, char *staged)
{
	uint64_t bytes = (uint64_t)w->blocks * BLOCK_BYTES;
	uint64_t at = seg_offset(ch->ssd, w->seg) + (uint64_t)w->block * BLOCK_BYTES;
	struct io_uring_sqe *sqe = channel_sqe(ch);

	if (staged)
		io_uring_prep_write(sqe, 0, staged, (unsigned int)bytes, at);
	else if (w->n_iov > 1)
		io_uring_prep_writev(sqe, 0, w->iov, w->n_iov, at);
	else if (channel_is_fixed(ch, w->iov[0].iov_base, bytes))
		io_uring_prep_write_fixed(sqe, 0, w->iov[0].iov_base, (unsigned int)bytes, at, 0);
	else
		io_uring_prep_write(sqe, 0, w->iov[0].iov_base, (unsigned int)bytes, at);
	io_uring_sqe_set_flags(sqe, IOSQE_FIXED_FILE);
	sqe->ioprio = IO_PRIORITY_LOW;
	io_uring_sqe_set_data64(sqe, (uint64_t)(uintptr_t)w | USER_WRITE);
	ch->writes_out++;
	count_add(ch, COUNT_WRITES, 1);
	count_add(ch, COUNT_WRITTEN, bytes);
}

void writes_issue(struct channel *ch)
{
	struct write *w;

	while ((w = ch->waiting)) {
		char *staged = NULL;

		if (!channel_may_issue(ch, ch->writes_out))
			break;
		if (w->space->key.encrypt && !(staged = stage(ch, w)))
			break;
		ch->waiting = w->next;
		if (!ch->waiting)
			ch->waiting_end = &ch->waiting;
		w->next = NULL;
		issue(ch, w, staged);
	}
}

void write_ended(struct channel *ch, struct write *w, int res)
{
	ch->writes_out--;
	if (w->space->key.encrypt)
		ch->stage_writes--;
	if (res == -EAGAIN || res == -EINTR) {
		w->next = ch->waiting;
		ch->waiting = w;
		if (!w->next)
			ch->waiting_end = &w->next;
		return;
	}
	write_done(ch, w, res);
}

/* The content is on the device: from here on the object exists. */
static void commit(struct write *w, struct ebb_io *io, uint32_t block)
{
	struct space *sp = w->space;
	struct segment *s = &sp->ssd->segs[w->seg];
	uint32_t index = handle_index(io->priv[0]), n = io->len / BLOCK_BYTES;
	unsigned int order = (unsigned int)__builtin_ctz(n);
	uint64_t at = (uint64_t)w->seg * SEGMENT_BLOCKS + block;

	atomic_store(&s->rmap[block], index + 1);
	atomic_fetch_add(&s->live, n);
	atomic_fetch_add(&sp->objects, 1);
	atomic_fetch_add(&sp->blocks, n);
	/* Releases: sum and nonce are there for whoever sees it. */
	atomic_store(&sp->places[index], place_make(at, order, handle_gen(io->priv[0])));
	io->handle = io->priv[0];
	io->stored_bytes = io->len + (uint32_t)sizeof(struct object_sum) + 16;
}

void write_done(struct channel *ch, struct write *w, int res)
{
	bool good = res == (int)(w->blocks * BLOCK_BYTES);
	int result = good ? 0 : res == -ENOSPC ? -ENOSPC : -EIO;
	uint32_t block = w->block;
	struct ebb_io *next;

	if (!good) {
		count_add(ch, result == -ENOSPC ? COUNT_FULL : COUNT_STORE_ERRORS, 1);
		seg_give_up(w->space, w->seg);
	}
	for (struct ebb_io *io = w->first; io; io = next) {
		next = io_next(io);
		if (good)
			commit(w, io, block);
		else
			handle_release(w->space, handle_index(io->priv[0]));
		block += io->len / BLOCK_BYTES;
		channel_complete(ch, io, result);
		seg_unref(ch->ssd, w->seg);
	}
	w->next = ch->idle;
	ch->idle = w;
}
