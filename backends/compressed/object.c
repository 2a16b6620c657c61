/* SPDX-License-Identifier: BSD-3-Clause */
/* object.c: objects: stored, loaded and freed through their handles. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#define XXH_INLINE_ALL
#include <xxhash.h>

#include "../../src/base/fault_point.h"
#include "store.h"

/*
 * Theory of operation
 *
 * store: pack, take a slot of the size that it needs, write the content, make the entry live.
 * load:  read the entry, check it against the handle, unpack from where it says.
 * free:  make the entry free with a compare-and-swap, release the slot, release the entry.
 *
 * A load takes no lock. Two things could pull the content away under it: a free, which the ABI
 * rules out while a load of the handle is in flight, and compaction, which gives memory back only
 * when every channel that might read it has left (channel_enter() in store.h). What a handle or
 * an entry says is checked against the bounds of the space before it is followed, and the codecs
 * bear any content, so damaged memory costs an error and never more.
 *
 * Checksums: an object's is made of what lies in its slot, how that is coded, and the owner that
 * came with the I/O (for a piece, also its place). A load that finds another one gives -EIO: the
 * content was damaged, or the handle, the entry or the slab's class leads to what is not this
 * owner's. They are looked at by loads only: taking a store over reads no content.
 *
 * Thread: any, one channel each, between channel_enter() and channel_leave().
 */

/* The least that coding must save to be worth the decoding: 1/32. */
#define SAVING_SHIFT 5

/* Whose an object is: what it is stored and loaded for, and which part of that. */
struct purpose {
	uint64_t owner;
	uint32_t piece; /* 1 + its place; 0: the whole, or the list of the pieces */
};

static uint32_t checksum(const struct purpose *of, enum coding coding, unsigned int order,
			 const void *content, uint32_t bytes)
{
	uint64_t how = (uint64_t)of->piece << 16 | (uint64_t)order << 8 | coding;
	uint64_t h = XXH3_64bits_withSeed(content, bytes, of->owner ^ how << 32);

	return (uint32_t)(h ^ h >> 32);
}

/* ---- store ---- */

/* Writes content into a slot of its size and makes it an object. */
static int publish(struct space *sp, const struct purpose *of, enum coding coding,
		   unsigned int order, const void *content, uint32_t bytes,
		   const struct slot_sums *sums, uint64_t *handle, uint32_t *stored_bytes)
{
	bool prefixed = coding == CODING_LZ4 || coding == CODING_ZSTD;
	uint16_t length = (uint16_t)bytes;
	uint32_t need = bytes + (prefixed ? LENGTH_BYTES : 0);
	unsigned int class = class_of(&sp->store->classes, need);
	uint32_t index, gen, slot_bytes = 0;
	struct slot at;
	uint8_t *p;
	int r;

	r = slot_take(sp, class, sums, &at);
	if (r)
		return r;
	r = handle_take(sp, &index, &gen);
	if (r) {
		slot_release(sp, at, sums);
		return r;
	}
	FAULT_POINT(object_slot);
	p = slot_at(sp, at.slab, at.slot, &slot_bytes);
	if (prefixed) {
		memcpy(p, &length, LENGTH_BYTES);
		p += LENGTH_BYTES;
	}
	memcpy(p, content, bytes);
	atomic_store_explicit(&sp->sums[index], checksum(of, coding, order, content, bytes),
			      memory_order_relaxed);
	FAULT_POINT(object_written);
	atomic_store_explicit(&sp->table[index],
			      entry_make(at.slab, at.slot, coding, order,
					 ENTRY_LIVE | (of->piece ? ENTRY_PIECE : 0), gen),
			      memory_order_release);
	FAULT_POINT(object_live);
	*handle = handle_make(index, gen);
	*stored_bytes += slot_bytes + (uint32_t)(sizeof(sp->table[0]) + sizeof(sp->sums[0]));
	return 0;
}

/* One object of at most PIECE_BYTES. */
static int store_one(struct channel *ch, struct space *sp, const struct purpose *of,
		     const void *buf, unsigned int order, uint32_t flags, uint64_t *handle,
		     uint32_t *stored_bytes)
{
	uint32_t len = PAGE_BYTES << order, bytes = 0;
	enum coding coding =
		(enum coding)atomic_load_explicit(&sp->store->coding, memory_order_relaxed);
	struct slot_sums sums = {.objects = !of->piece, .logical_bytes = len};

	if (coding != CODING_PLAIN && !(flags & EBB_IO_NOCOMPRESS)) {
		int level = atomic_load_explicit(coding == CODING_LZ4 ? &sp->store->lz4_level
								      : &sp->store->zstd_level,
						 memory_order_relaxed);

		bytes = codec_pack(ch->codec, coding, level, buf, len, ch->scratch,
				   len - (len >> SAVING_SHIFT) - LENGTH_BYTES);
	}
	if (!bytes) {
		coding = CODING_PLAIN;
		bytes = len;
		channel_count(ch, COUNT_PLAIN);
	}
	sums.content_bytes = bytes;
	return publish(sp, of, coding, order, coding == CODING_PLAIN ? buf : ch->scratch, bytes,
		       &sums, handle, stored_bytes);
}

static int free_entry(struct channel *ch, struct space *sp, uint64_t handle, uint64_t kind);

static int store_pieces(struct channel *ch, struct space *sp, uint64_t owner, const uint8_t *buf,
			unsigned int order, uint32_t flags, uint64_t *handle,
			uint32_t *stored_bytes)
{
	const struct purpose whole = {.owner = owner};
	const struct slot_sums sums = {.objects = 1};
	uint32_t n = 1u << (order - PIECE_ORDER), i;
	uint64_t list[PIECES_MAX];
	int r = 0;

	for (i = 0; i < n && !r; i++) {
		const struct purpose of = {.owner = owner, .piece = 1 + i};

		r = store_one(ch, sp, &of, buf + (size_t)i * PIECE_BYTES, PIECE_ORDER, flags,
			      &list[i], stored_bytes);
		FAULT_POINT(object_piece);
	}
	if (r)
		i--;
	else
		r = publish(sp, &whole, CODING_LIST, order, list, n * (uint32_t)sizeof(*list),
			    &sums, handle, stored_bytes);
	if (r)
		while (i-- > 0)
			free_entry(ch, sp, list[i], ENTRY_PIECE);
	return r;
}

static int order_of(uint32_t len)
{
	if (len < PAGE_BYTES || len > PAGE_BYTES << ORDER_MAX || (len & (len - 1)))
		return -EINVAL;
	return __builtin_ctz(len / PAGE_BYTES);
}

int object_store(struct channel *ch, struct space *sp, const struct ebb_io *io, uint64_t *handle,
		 uint32_t *stored_bytes)
{
	const struct purpose whole = {.owner = io->owner};
	int order = order_of(io->len), r;

	if (order < 0)
		return order;
	if (atomic_load_explicit(&sp->unsettled, memory_order_acquire)) {
		r = recover_settle(sp);
		if (r)
			return r;
	}
	if ((unsigned int)order <= PIECE_ORDER)
		return store_one(ch, sp, &whole, io->buf, (unsigned int)order, io->flags, handle,
				 stored_bytes);
	return store_pieces(ch, sp, io->owner, io->buf, (unsigned int)order, io->flags, handle,
			    stored_bytes);
}

/* ---- load ---- */

/* The live entry of a handle; `kind` is ENTRY_PIECE or 0. */
static int find(const struct space *sp, uint64_t handle, uint64_t kind, uint64_t *entry)
{
	uint32_t index = handle_index(handle);
	uint64_t e;

	/* Behind table_pages nothing has memory, and even a read would give it some. */
	if (handle & ~EBB_HANDLE_MASK || index >= sp->n_handles ||
	    index / ENTRIES_PER_PAGE >=
		    atomic_load_explicit(&sp->header->table_pages, memory_order_relaxed))
		return -EINVAL;
	e = atomic_load(&sp->table[index]);
	if (!(e & ENTRY_LIVE) || (e & ENTRY_PIECE) != kind || entry_gen(e) != handle_gen(handle))
		return -EINVAL;
	*entry = e;
	return 0;
}

/* The content of an entry: where it begins and how long it is. NULL when it cannot be. */
static const uint8_t *content_of(const struct space *sp, uint64_t e, uint32_t *bytes)
{
	uint32_t slot_bytes, need = 0;
	uint16_t length;
	const uint8_t *p = slot_at(sp, entry_slab(e), entry_slot(e), &slot_bytes);

	if (!p)
		return NULL;
	switch (entry_coding(e)) {
	case CODING_PLAIN:
		need = PAGE_BYTES << entry_order(e);
		*bytes = need;
		break;
	case CODING_LIST:
		if (entry_order(e) <= PIECE_ORDER || entry_order(e) > ORDER_MAX)
			return NULL;
		need = 8u << (entry_order(e) - PIECE_ORDER);
		*bytes = need;
		break;
	case CODING_LZ4:
	case CODING_ZSTD:
		memcpy(&length, p, LENGTH_BYTES);
		p += LENGTH_BYTES;
		need = length + LENGTH_BYTES;
		*bytes = length;
		break;
	}
	return need <= slot_bytes ? p : NULL;
}

/* Why an object could not be read: it went away meanwhile, or it is damaged. */
static int load_failure(struct channel *ch, const struct space *sp, uint64_t handle, uint64_t kind)
{
	uint64_t e;

	if (find(sp, handle, kind, &e))
		return -EINVAL;
	channel_count(ch, COUNT_CORRUPT);
	return -EIO;
}

/* True when content is what was stored for this under this handle. */
static bool is_whole(const struct space *sp, const struct purpose *of, uint64_t handle, uint64_t e,
		     const void *content, uint32_t bytes)
{
	return atomic_load_explicit(&sp->sums[handle_index(handle)], memory_order_relaxed) ==
	       checksum(of, entry_coding(e), entry_order(e), content, bytes);
}

static int load_one(struct channel *ch, const struct space *sp, const struct purpose *of,
		    uint64_t handle, uint64_t e, void *buf)
{
	uint64_t kind = of->piece ? ENTRY_PIECE : 0;
	uint32_t bytes, len = PAGE_BYTES << entry_order(e);
	const uint8_t *p = content_of(sp, e, &bytes);

	if (!p)
		return load_failure(ch, sp, handle, kind);
	if (entry_coding(e) == CODING_PLAIN) {
		/* Copied first: it is read twice, and the copy is in the cache then. */
		memcpy(buf, p, len);
		return is_whole(sp, of, handle, e, buf, len) ? 0
							     : load_failure(ch, sp, handle, kind);
	}
	if (!is_whole(sp, of, handle, e, p, bytes) ||
	    codec_unpack(ch->codec, entry_coding(e), p, bytes, buf, len))
		return load_failure(ch, sp, handle, kind);
	return 0;
}

int object_load(struct channel *ch, struct space *sp, const struct ebb_io *io)
{
	struct purpose of = {.owner = io->owner};
	uint64_t list[PIECES_MAX], e, handle = io->handle;
	uint32_t bytes;
	const uint8_t *p;
	int r = find(sp, handle, 0, &e);

	if (r || order_of(io->len) != (int)entry_order(e)) {
		channel_count(ch, COUNT_BAD_HANDLE);
		return -EINVAL;
	}
	if (entry_coding(e) != CODING_LIST)
		return entry_order(e) <= PIECE_ORDER ? load_one(ch, sp, &of, handle, e, io->buf)
						     : load_failure(ch, sp, handle, 0);
	p = content_of(sp, e, &bytes);
	if (!p)
		return load_failure(ch, sp, handle, 0);
	memcpy(list, p, bytes);
	if (!is_whole(sp, &of, handle, e, list, bytes))
		return load_failure(ch, sp, handle, 0);
	for (uint32_t i = 0; i < bytes / sizeof(*list); i++) {
		if (find(sp, list[i], ENTRY_PIECE, &e) || entry_order(e) != PIECE_ORDER ||
		    entry_coding(e) == CODING_LIST)
			return load_failure(ch, sp, handle, 0);
		of.piece = 1 + i;
		r = load_one(ch, sp, &of, list[i], e, (uint8_t *)io->buf + (size_t)i * PIECE_BYTES);
		if (r)
			return r;
	}
	return 0;
}

/* ---- free ---- */

bool object_sums(const struct space *sp, uint64_t e, struct slot_sums *sums, uint32_t *slot_used)
{
	bool prefixed = entry_coding(e) == CODING_LZ4 || entry_coding(e) == CODING_ZSTD;
	uint32_t bytes, slot_bytes;
	bool sound = content_of(sp, e, &bytes);

	*sums = (struct slot_sums){.objects = !(e & ENTRY_PIECE)};
	if (!sound) {
		if (!slot_at(sp, entry_slab(e), entry_slot(e), &slot_bytes))
			return false;
		bytes = slot_bytes - LENGTH_BYTES;
	}
	*slot_used = bytes + (prefixed ? LENGTH_BYTES : 0);
	if (entry_coding(e) != CODING_LIST) {
		sums->logical_bytes = PAGE_BYTES << entry_order(e);
		sums->content_bytes = bytes;
	}
	return sound;
}

void object_forget(struct space *sp, uint32_t index, uint64_t e)
{
	struct slot_sums sums;
	uint32_t used;

	atomic_store(&sp->table[index], entry_free(entry_gen(e) + 1, 0));
	object_sums(sp, e, &sums, &used);
	slot_release(sp, (struct slot){entry_slab(e), entry_slot(e)}, &sums);
	handle_release(sp, index);
}

/* Marks an entry for recovery to free. -EAGAIN when that is over. */
static int doom(struct space *sp, uint64_t handle, uint64_t kind)
{
	uint32_t index = handle_index(handle);
	int r = -EAGAIN;
	uint64_t e;

	pthread_mutex_lock(&sp->doom_lock);
	if (atomic_load(&sp->unsettled))
		do {
			r = find(sp, handle, kind, &e);
		} while (!r && !atomic_compare_exchange_strong(&sp->table[index], &e,
							       (e & ~ENTRY_LIVE) | ENTRY_DOOMED));
	pthread_mutex_unlock(&sp->doom_lock);
	return r;
}

/* Frees one entry and its slot. Returns 0, or -EINVAL when the handle is not live. */
static int free_entry(struct channel *ch, struct space *sp, uint64_t handle, uint64_t kind)
{
	uint32_t index = handle_index(handle), used;
	struct slot_sums sums;
	uint64_t e;
	int r;

	if (atomic_load_explicit(&sp->unsettled, memory_order_acquire)) {
		r = doom(sp, handle, kind);
		if (r != -EAGAIN)
			return r;
	}
	do {
		if (find(sp, handle, kind, &e))
			return -EINVAL;
		/* Compaction may have moved it meanwhile: then the entry is read again. */
	} while (!atomic_compare_exchange_strong(&sp->table[index], &e,
						 entry_free(entry_gen(e) + 1, 0)));
	object_sums(sp, e, &sums, &used);
	FAULT_POINT(object_freed);
	slot_release(sp, (struct slot){entry_slab(e), entry_slot(e)}, &sums);
	FAULT_POINT(object_released);
	handle_release(sp, index);
	return 0;
}

int object_free(struct channel *ch, struct space *sp, uint64_t handle)
{
	uint64_t list[PIECES_MAX], e;
	uint32_t bytes = 0;
	const uint8_t *p;

	if (find(sp, handle, 0, &e)) {
		channel_count(ch, COUNT_BAD_HANDLE);
		return -EINVAL;
	}
	if (entry_coding(e) == CODING_LIST) {
		p = content_of(sp, e, &bytes);
		if (p)
			memcpy(list, p, bytes);
		else
			bytes = 0;
	}
	/* The whole before its parts: pieces that nothing names are swept up by recovery. */
	if (free_entry(ch, sp, handle, 0)) {
		channel_count(ch, COUNT_BAD_HANDLE);
		return -EINVAL;
	}
	for (uint32_t i = 0; i < bytes / sizeof(*list); i++)
		free_entry(ch, sp, list[i], ENTRY_PIECE);
	return 0;
}

/* ---- retain ---- */

int64_t object_retain(struct channel *ch, struct space *sp, const uint64_t *handles, uint64_t n)
{
	uint64_t entries = (uint64_t)atomic_load(&sp->header->table_pages) * ENTRIES_PER_PAGE;
	uint8_t *named = calloc(entries / 8 + 1, 1);
	int64_t freed = 0;
	int r = named ? recover_settle(sp) : -ENOMEM;

	if (r) {
		free(named);
		return r;
	}
	for (uint64_t i = 0; i < n; i++)
		handle_mark(sp, handles[i], named, entries);
	for (uint64_t i = 0; i < entries; i++) {
		uint64_t e = atomic_load(&sp->table[i]);

		/* Pieces go with the list that names them. */
		if (!(e & ENTRY_LIVE) || (e & ENTRY_PIECE) || named[i / 8] >> (i % 8) & 1)
			continue;
		if (object_free(ch, sp, handle_make((uint32_t)i, entry_gen(e))) == 0)
			freed++;
	}
	free(named);
	return freed;
}
