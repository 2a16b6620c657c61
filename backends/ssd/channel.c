/* SPDX-License-Identifier: BSD-3-Clause */
/* channel.c: one thread's io_uring: loads, and what has ended. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "ssd.h"

/*
 * Theory of operation
 *
 * A channel is an io_uring with the device and the caller's buffers registered. Its descriptor is
 * the ring's own, which is readable while there are completions; what ends without I/O, or was
 * more than poll() was asked for, waits in `done`, and a NOP is sent to make the ring readable.
 *
 * A load reads straight into the caller's buffer. It takes a reference on the segment first and
 * looks at the entry again then: cleaning moves an object by changing the entry, and gives the
 * segment up only when it has no reference after that. Content that does not fit its sum is read
 * again (a transfer may fail as well as a medium), then reported lost: never handed on.
 *
 * What a vCPU waits for goes to the device at once. Of the rest, reads and writes, a channel has at
 * most OUT_MAX of each there, and while a vCPU waits, in whatever channel, one of each: what is at
 * the device cannot be overtaken any more. One always may be, so the end of it drives the next, and
 * nobody has to be woken. What was demanded is also given back first.
 */

struct io_uring_sqe *channel_sqe(struct channel *ch)
{
	struct io_uring_sqe *sqe;

	/* There are more entries than I/Os in flight, so that one submit always makes room. */
	while (!(sqe = io_uring_get_sqe(&ch->ring)))
		io_uring_submit(&ch->ring);
	return sqe;
}

bool channel_is_fixed(const struct channel *ch, const void *buf, uint64_t len)
{
	uint64_t at = (uint64_t)((const char *)buf - ch->buffers);

	return ch->fixed && (const char *)buf >= ch->buffers && at < ch->buffers_bytes &&
	       len <= ch->buffers_bytes - at;
}

bool channel_may_issue(struct channel *ch, uint32_t out)
{
	if (out && atomic_load_explicit(&ch->ssd->demand, memory_order_relaxed)) {
		count_add(ch, COUNT_HELD_BACK, 1);
		return false;
	}
	return out < OUT_MAX;
}

void channel_complete(struct channel *ch, struct ebb_io *io, int result)
{
	io->result = result;
	if (io->flags & EBB_IO_DEMAND)
		io_prepend(&ch->done, &ch->done_last, io);
	else
		io_append(&ch->done, &ch->done_last, io);
}

/* ---- loads ---- */

static void read_issue(struct channel *ch, struct ebb_io *io)
{
	uint64_t at = ch->ssd->data_offset + place_block(io->priv[0]) * BLOCK_BYTES;
	struct io_uring_sqe *sqe = channel_sqe(ch);

	if (channel_is_fixed(ch, io->buf, io->len))
		io_uring_prep_read_fixed(sqe, 0, io->buf, io->len, at, 0);
	else
		io_uring_prep_read(sqe, 0, io->buf, io->len, at);
	io_uring_sqe_set_flags(sqe, IOSQE_FIXED_FILE);
	sqe->ioprio = io->flags & EBB_IO_DEMAND ? IO_PRIORITY_HIGH : IO_PRIORITY_LOW;
	io_uring_sqe_set_data64(sqe, (uint64_t)(uintptr_t)io);
}

/* The live entry of a handle; false when there is none of that length. */
static bool find(const struct space *sp, uint64_t handle, uint32_t len, uint64_t *place)
{
	uint32_t index = handle_index(handle);

	if (handle > EBB_HANDLE_MASK || index >= sp->n_handles)
		return false;
	*place = atomic_load(&sp->places[index]);
	return (*place & PLACE_LIVE) && place_gen(*place) == handle_gen(handle) &&
	       (uint64_t)BLOCK_BYTES << place_order(*place) == len;
}

/* 0: on its way; else what it ends with. */
static int load_start(struct channel *ch, struct ebb_io *io)
{
	struct space *sp = io->space;
	uint64_t p, again;

	if ((uintptr_t)io->buf % BLOCK_BYTES || !find(sp, io->handle, io->len, &p)) {
		count_add(ch, COUNT_BAD_HANDLE, 1);
		return -EINVAL;
	}
	for (;;) {
		if (!place_is_ours(sp, p))
			return -EIO;
		seg_ref(ch->ssd, place_seg(p));
		again = atomic_load(&sp->places[handle_index(io->handle)]);
		if (again == p)
			break;
		/* Moved meanwhile. */
		seg_unref(ch->ssd, place_seg(p));
		if (!find(sp, io->handle, io->len, &p))
			return -EINVAL;
	}
	io->priv[0] = p;
	if (!(io->flags & EBB_IO_DEMAND)) {
		io_append(&ch->later, &ch->later_last, io);
		return 0;
	}
	atomic_fetch_add_explicit(&ch->ssd->demand, 1, memory_order_relaxed);
	io->priv[1] = 0; /* times that it was read again */
	read_issue(ch, io);
	return 0;
}

/* Hands reads that nobody waits for to the ring, as far as demand loads allow. */
static void reads_issue(struct channel *ch)
{
	while (ch->later && channel_may_issue(ch, ch->reads_out)) {
		struct ebb_io *io = ch->later;

		ch->later = io_next(io);
		io->priv[1] = 0;
		ch->reads_out++;
		read_issue(ch, io);
	}
}

static int verify(const struct ebb_io *io)
{
	struct space *sp = io->space;
	uint32_t index = handle_index(io->handle);

	if (sp->key.encrypt)
		return proof_decrypt(&sp->key, (struct object_id){io->handle, io->owner},
				     sp->nonces[index], io->buf, io->len, sp->sums[index]);
	return proof_equal(proof_sum(&sp->key, (struct object_id){io->handle, io->owner}, io->buf,
				     io->len),
			   sp->sums[index])
		       ? 0
		       : -EIO;
}

static void load_ended(struct channel *ch, struct ebb_io *io, int res)
{
	struct ssd *d = ch->ssd;
	int r = 0;

	if (res == -EAGAIN || res == -EINTR) {
		read_issue(ch, io);
		return;
	}
	if (res != (int)io->len)
		r = -EIO; /* also one that was cut short: the file ends there */
	else if (verify(io))
		r = -EUCLEAN;
	if (r && ++io->priv[1] < READ_TRIES) {
		count_add(ch, COUNT_REREAD, 1);
		read_issue(ch, io);
		return;
	}
	if (r)
		count_add(ch, r == -EIO ? COUNT_LOAD_ERRORS : COUNT_CORRUPT, 1);
	count_add(ch, COUNT_READ, io->len);
	if (io->flags & EBB_IO_DEMAND)
		atomic_fetch_sub_explicit(&d->demand, 1, memory_order_relaxed);
	else
		ch->reads_out--;
	seg_unref(d, place_seg(io->priv[0]));
	channel_complete(ch, io, r ? -EIO : 0);
}

int channel_matches(void *channel, void *space, uint64_t handle, uint64_t owner, const void *buf,
		    uint32_t len)
{
	struct channel *ch = channel;
	struct space *sp = space;
	uint32_t index = handle_index(handle);
	struct object_sum sum;
	uint64_t p;

	if (!find(sp, handle, len, &p))
		return 0;
	if (!sp->key.encrypt)
		return proof_equal(proof_sum(&sp->key, (struct object_id){handle, owner}, buf, len),
				   sp->sums[index]);
	/* What would the tag be? The ciphertext itself is thrown away. */
	sum = proof_encrypt(&sp->key, (struct object_id){handle, owner}, sp->nonces[index], buf,
			    len, ch->stage + STAGE_BYTES);
	return proof_equal(sum, sp->sums[index]);
}

/* ---- both ---- */

static void kick(struct channel *ch)
{
	struct io_uring_sqe *sqe;

	if (ch->kicked || !ch->done)
		return;
	sqe = channel_sqe(ch);
	io_uring_prep_nop(sqe);
	io_uring_sqe_set_data64(sqe, USER_NOP);
	ch->kicked = true;
}

int channel_submit(void *channel, struct ebb_io **ios, uint32_t n)
{
	struct channel *ch = channel;
	uint32_t i = 0;

	while (i < n && ch->in_flight < ch->depth) {
		int r = -EINVAL;

		if (ios[i]->op == EBB_IO_STORE) {
			uint32_t got = writes_take(ch, ios + i, n - i);

			i += got;
			if (!got)
				break;
			continue;
		}
		if (ios[i]->op == EBB_IO_LOAD) {
			count_add(ch, COUNT_LOADS, 1);
			r = load_start(ch, ios[i]);
		}
		ch->in_flight++;
		if (r)
			channel_complete(ch, ios[i], r);
		i++;
	}
	reads_issue(ch);
	writes_issue(ch);
	kick(ch);
	if (io_uring_sq_ready(&ch->ring))
		io_uring_submit(&ch->ring);
	writes_sum(ios, i);
	return (int)i;
}

static void ended(struct channel *ch, uint64_t user, int res)
{
	if (user & USER_NOP)
		ch->kicked = false;
	else if (user & USER_WRITE)
		write_ended(ch, (struct write *)(uintptr_t)(user & ~USER_WRITE), res);
	else
		load_ended(ch, (struct ebb_io *)(uintptr_t)user, res);
}

int channel_poll(void *channel, struct ebb_io **ios, uint32_t n)
{
	struct channel *ch = channel;
	struct io_uring_cqe *cqe;
	uint32_t got = 0;

	while (io_uring_peek_cqe(&ch->ring, &cqe) == 0) {
		uint64_t user = io_uring_cqe_get_data64(cqe);
		int res = cqe->res;

		io_uring_cqe_seen(&ch->ring, cqe);
		ended(ch, user, res);
	}
	reads_issue(ch);
	writes_issue(ch);
	while (got < n && ch->done) {
		ios[got++] = ch->done;
		ch->done = io_next(ch->done);
		ch->in_flight--;
	}
	kick(ch);
	if (io_uring_sq_ready(&ch->ring))
		io_uring_submit(&ch->ring);
	return (int)got;
}

int channel_event_fd(void *channel)
{
	const struct channel *ch = channel;

	return ch->ring.ring_fd;
}

/* ---- open and close ---- */

static int ring_init(struct channel *ch)
{
	struct io_uring_params p = {.flags = IORING_SETUP_CQSIZE};
	struct iovec v = {ch->buffers, ch->buffers_bytes};
	unsigned int entries = 4;
	int r;

	while (entries < ch->depth + 2)
		entries *= 2;
	p.cq_entries = entries * 2;
	r = io_uring_queue_init_params(entries, &ch->ring, &p);
	if (r)
		return r;
	r = io_uring_register_files(&ch->ring, &ch->ssd->fd, 1);
	if (r) {
		io_uring_queue_exit(&ch->ring);
		return r;
	}
	/* Pinning buffers for a channel that does one thing at a time costs more than it saves; and
	 * where the system does not let us pin, everything works as well, slower. */
	ch->fixed = ch->buffers_bytes && ch->depth > 1 &&
		    io_uring_register_buffers(&ch->ring, &v, 1) == 0;
	return 0;
}

int channel_open(struct ssd *d, const struct ebb_channel_params *params, struct channel **out)
{
	struct channel *ch = calloc(1, sizeof(*ch));
	int r;

	if (!ch)
		return -ENOMEM;
	ch->ssd = d;
	ch->buffers = params->buffers;
	ch->buffers_bytes = params->buffers ? params->buffers_bytes : 0;
	ch->depth = params->queue_depth < 1024 ? params->queue_depth : 1024;
	ch->waiting_end = &ch->waiting;
	for (unsigned int i = 0; i < WRITES_MAX; i++) {
		ch->writes[i].next = ch->idle;
		ch->idle = &ch->writes[i];
	}
	/* Spaces found may be encrypted when new ones are not; without use it takes no memory. */
	ch->stage = mmap(NULL, STAGE_BYTES + SEGMENT_BYTES, PROT_READ | PROT_WRITE,
			 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (ch->stage == MAP_FAILED) {
		ch->stage = NULL;
		r = -ENOMEM;
		goto fail;
	}
	r = ring_init(ch);
	if (r)
		goto fail;
	pthread_mutex_lock(&d->lock);
	ch->next = d->channels;
	d->channels = ch;
	pthread_mutex_unlock(&d->lock);
	*out = ch;
	return 0;
fail:
	if (ch->stage)
		munmap(ch->stage, STAGE_BYTES + SEGMENT_BYTES);
	free(ch);
	return r;
}

void channel_close(struct channel *ch)
{
	struct ssd *d = ch->ssd;

	pthread_mutex_lock(&d->lock);
	for (struct channel **p = &d->channels; *p; p = &(*p)->next) {
		if (*p == ch) {
			*p = ch->next;
			break;
		}
	}
	for (unsigned int i = 0; i < COUNTS; i++)
		atomic_fetch_add(&d->count[i], ch->count[i]);
	pthread_mutex_unlock(&d->lock);
	io_uring_queue_exit(&ch->ring);
	munmap(ch->stage, STAGE_BYTES + SEGMENT_BYTES);
	free(ch);
}
