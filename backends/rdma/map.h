/* SPDX-License-Identifier: BSD-3-Clause */
/* map.h: what outlives the daemon: where each object is, and what it must be. */
#ifndef RDMA_MAP_H
#define RDMA_MAP_H

#include <assert.h>
#include <stdatomic.h>
#include <stdint.h>

#include "rdma/wire.h"
#include "seal.h"

/*
 * One sparse memfd per space: header (one page), table of chunks, table of entries.
 *
 * An object is one piece of up to 64 KiB, or several of 64 KiB, one entry each; the handle is the
 * first one's index and generation. Pieces lie in slots of their size in chunks that donors lend.
 * The truth is in the live entries: an object begins to exist with the store that makes its first
 * entry live, after everything else of it was written, and ends with the one that makes it free.
 * Pieces that no first entry names, and slots that no entry names, are free.
 *
 * The tag of a piece is here, not beside it on the donor: what is read is then as long as what was
 * asked for, and a donor never has both.
 */

#define MAP_MAGIC    UINT64_C(0x616d645262624561) /* "aEbbRdma" */
#define MAP_VERSION  1u
#define MAP_NAME     "map"
#define PAGE_BYTES   4096u
#define DONORS_MAX   15u
#define COPIES	     2u
#define ORDER_MAX    9u /* an object: 4 KiB << order */
#define PIECE_ORDER  4u /* a piece: at most */
#define PIECE_BYTES  (PAGE_BYTES << PIECE_ORDER)
#define PIECES_MAX   (1u << (ORDER_MAX - PIECE_ORDER))
#define SLOTS_MAX    (WIRE_CHUNK_BYTES / PAGE_BYTES)
#define COUNTS_AHEAD 65536u

struct map_donor {
	char name[WIRE_NAME_BYTES]; /* host:port, as in the options; "": not in use */
	struct wire_lease lease;
};

struct map_header {
	uint64_t magic;
	uint32_t version;
	uint32_t seed; /* makes generations of this space its own */
	uint64_t n_entries, n_chunks;
	uint8_t key[32];
	/* Counts below this may have been given out; they are never given out again. */
	_Atomic uint64_t counts;
	_Atomic uint32_t entries_high, chunks_high; /* ever used */
	_Atomic uint32_t lives;			    /* how often it was opened */
	uint32_t reserved;
	struct map_donor donors[DONORS_MAX];
};
static_assert(sizeof(struct map_header) <= PAGE_BYTES, "the header is one page");

/*
 * A chunk that was lent to us.
 *   bits  0-31 the donor's number of it
 *        32-35 index in donors[]
 *        36-38 order of its slots
 *        39    ours
 *        40    lost: the donor does not have it any more
 */
#define CHUNK_OURS (UINT64_C(1) << 39)
#define CHUNK_GONE (UINT64_C(1) << 40)

static inline uint64_t chunk_word(uint32_t number, unsigned int donor, unsigned int order,
				  uint64_t flags)
{
	return number | (uint64_t)donor << 32 | (uint64_t)order << 36 | flags;
}

static inline unsigned int chunk_donor(uint64_t w)
{
	return (unsigned int)(w >> 32) & 15;
}

static inline unsigned int chunk_order(uint64_t w)
{
	return (unsigned int)(w >> 36) & 7;
}

/*
 * The head of an entry.
 *   bits  0-31 index of the object's next piece + 1; 0: the last
 *        32-47 generation
 *        48-51 order of the object
 *        52    a piece that no handle reaches: not the first
 *        53    live
 *        54    used: free, but had a generation before
 *        55    encrypted
 */
#define HEAD_PIECE     (UINT64_C(1) << 52)
#define HEAD_LIVE      (UINT64_C(1) << 53)
#define HEAD_USED      (UINT64_C(1) << 54)
#define HEAD_ENCRYPTED (UINT64_C(1) << 55)
#define HEAD_KNOWN     ((UINT64_C(1) << 56) - 1)

static inline uint64_t head_make(uint32_t next, uint16_t gen, unsigned int order, uint64_t flags)
{
	return next | (uint64_t)gen << 32 | (uint64_t)order << 48 | flags;
}

static inline uint32_t head_next(uint64_t h)
{
	return (uint32_t)h;
}

static inline uint16_t head_gen(uint64_t h)
{
	return (uint16_t)(h >> 32);
}

static inline unsigned int head_order(uint64_t h)
{
	return (unsigned int)(h >> 48) & 15;
}

/* Where a copy is: chunk + 1 (bits 16-47) and slot (0-15); 0: there is none. */
static inline uint64_t place_make(uint32_t chunk, uint32_t slot)
{
	return ((uint64_t)chunk + 1) << 16 | slot;
}

static inline uint32_t place_chunk(uint64_t at)
{
	return (uint32_t)(at >> 16) - 1;
}

static inline uint32_t place_slot(uint64_t at)
{
	return (uint32_t)at & 0xffff;
}

struct entry {
	_Atomic uint64_t head;
	_Atomic uint64_t at[COPIES];
	uint64_t count; /* of its seal */
	uint8_t tag[SEAL_TAG_BYTES];
};
static_assert(sizeof(struct entry) == 48, "an entry is what docs/backends.md says");

/* A handle: index (bits 0-31) and generation (32-47). */
static inline uint64_t handle_make(uint32_t index, uint16_t gen)
{
	return index | (uint64_t)gen << 32;
}

static inline unsigned int piece_order(unsigned int object_order)
{
	return object_order < PIECE_ORDER ? object_order : PIECE_ORDER;
}

static inline uint32_t pieces_of(unsigned int object_order)
{
	return object_order <= PIECE_ORDER ? 1 : 1u << (object_order - PIECE_ORDER);
}

#endif
