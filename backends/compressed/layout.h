/* SPDX-License-Identifier: BSD-3-Clause */
/* layout.h: what a space looks like in the memory that outlives the daemon. */
#ifndef COMPRESSED_LAYOUT_H
#define COMPRESSED_LAYOUT_H

#include <assert.h>
#include <stdatomic.h>
#include <stdint.h>

/*
 * One sparse memfd per space, in this order, each part page-aligned:
 *
 *   header       one page
 *   slab classes one byte per slab: size class + 1, or 0
 *   handle table one 8-byte entry per handle
 *   checksums    4 bytes per handle: of the object's content and of whose it is
 *   small slabs  64 KiB apart
 *   large slabs  256 KiB apart
 *   chunks       where the slabs are, when they are not here but on a device: see chunks.c
 *   running      what the running daemon keeps beside the truth: see running.c
 *
 * Nothing in it is a pointer. The truth is in the live entries of the handle table and in the
 * class bytes of the slabs that they name; everything else (which slots are taken, free lists,
 * sums) is the running state, and can be made anew from them. So:
 *   - an object begins to exist with the one store that makes its entry live, after its content,
 *     its length, its checksum and the class byte of its slab were written;
 *   - it ceases to exist with the one store that makes its entry free;
 *   - it moves with one compare-and-swap of its entry, after the copy was made.
 * Whatever was half done when the daemon died is, by that, not there.
 */

#define PAGE_BYTES 4096u

#define STORE_MAGIC   UINT64_C(0x65726f7453626245) /* "EbbStore" */
#define STORE_VERSION 1u

#define SMALL_STRIDE (64u << 10)
#define LARGE_STRIDE (256u << 10)

struct store_header {
	uint64_t magic;
	uint32_t version;
	uint32_t class_sum; /* of the class table: the class bytes mean what they meant */
	uint64_t n_handles;
	uint32_t n_small, n_large; /* slabs */
	uint64_t total_bytes;
	uint32_t seed;				 /* makes generations of this space its own */
	_Atomic uint32_t salt;			 /* grows whenever entries were forgotten */
	_Atomic uint32_t table_pages;		 /* pages of the handle table ever used */
	_Atomic uint32_t small_high, large_high; /* slabs ever used */
};
static_assert(sizeof(struct store_header) <= PAGE_BYTES, "the header is one page");

/*
 * A handle table entry.
 *
 *   bits  0-25 slab   (small ones first, then the large ones)
 *        26-34 slot
 *        35-36 coding (enum coding)
 *        37-40 order  (the object's length in guest RAM is 4 KiB << order)
 *        41    piece  (part of a larger object: no handle from outside reaches it)
 *        42    live
 *        43    used   (free, but had a generation before)
 *        44-62 generation
 *        63    doomed (freed, and its slot is still to be released: see recover.c)
 *
 * In a free entry that was used, bits 0-9 are 1 + the index of the next free entry in the same
 * page of the table (a hint of the running daemon's), and the generation is the next to give out.
 */
enum coding { CODING_PLAIN = 0, CODING_LZ4 = 1, CODING_ZSTD = 2, CODING_LIST = 3 };

#define SLAB_BITS  26
#define SLOT_BITS  9
#define GEN_BITS   19
#define INDEX_BITS 29

#define ENTRY_PIECE  (UINT64_C(1) << 41)
#define ENTRY_LIVE   (UINT64_C(1) << 42)
#define ENTRY_USED   (UINT64_C(1) << 43)
#define ENTRY_DOOMED (UINT64_C(1) << 63)
#define GEN_SHIFT    44
#define GEN_MASK     ((1u << GEN_BITS) - 1)

#define SLOTS_MAX	 (1u << SLOT_BITS)
#define SLABS_MAX	 (1u << SLAB_BITS)
#define HANDLES_MAX	 (UINT64_C(1) << INDEX_BITS)
#define ENTRIES_PER_PAGE (PAGE_BYTES / 8)
#define SUMS_PER_PAGE	 (PAGE_BYTES / 4) /* a page of checksums for two pages of the table */

static_assert(INDEX_BITS + GEN_BITS == 48, "a handle has 48 bits");
static_assert(sizeof(_Atomic uint64_t) == 8, "an entry is one word");

static inline uint64_t entry_make(uint32_t slab, uint32_t slot, enum coding coding,
				  unsigned int order, uint64_t flags, uint32_t gen)
{
	return (uint64_t)slab | (uint64_t)slot << 26 | (uint64_t)coding << 35 |
	       (uint64_t)order << 37 | flags | (uint64_t)gen << GEN_SHIFT;
}

static inline uint32_t entry_slab(uint64_t e)
{
	return (uint32_t)(e & (SLABS_MAX - 1));
}

static inline uint32_t entry_slot(uint64_t e)
{
	return (uint32_t)(e >> 26) & (SLOTS_MAX - 1);
}

static inline enum coding entry_coding(uint64_t e)
{
	return (enum coding)((e >> 35) & 3);
}

static inline unsigned int entry_order(uint64_t e)
{
	return (unsigned int)(e >> 37) & 15;
}

static inline uint32_t entry_gen(uint64_t e)
{
	return (uint32_t)(e >> GEN_SHIFT) & GEN_MASK;
}

/* The same object elsewhere. */
static inline uint64_t entry_moved(uint64_t e, uint32_t slab, uint32_t slot)
{
	return (e & ~((UINT64_C(1) << 35) - 1)) | (uint64_t)slab | (uint64_t)slot << 26;
}

static inline uint64_t entry_free(uint32_t gen, unsigned int link)
{
	return ENTRY_USED | (uint64_t)(gen & GEN_MASK) << GEN_SHIFT | link;
}

static inline uint64_t handle_make(uint32_t index, uint32_t gen)
{
	return (uint64_t)index | (uint64_t)gen << INDEX_BITS;
}

static inline uint32_t handle_index(uint64_t handle)
{
	return (uint32_t)(handle & (HANDLES_MAX - 1));
}

static inline uint32_t handle_gen(uint64_t handle)
{
	return (uint32_t)(handle >> INDEX_BITS) & GEN_MASK;
}

/*
 * Objects longer than a piece are cut into pieces, each coded by itself, so that they can be
 * brought back in parallel; the object itself is then a list of its pieces' handles.
 */
#define ORDER_MAX   9u /* 2 MiB */
#define PIECE_ORDER 4u
#define PIECE_BYTES (PAGE_BYTES << PIECE_ORDER)
#define PIECES_MAX  (1u << (ORDER_MAX - PIECE_ORDER))

/* Coded content is preceded by its length in two bytes; plain content and lists are not. */
#define LENGTH_BYTES 2u

#endif
