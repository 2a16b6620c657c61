/* SPDX-License-Identifier: BSD-3-Clause */
/* layout.h: what is on the device, and what is in the memory that outlives the daemon. */
#ifndef SSD_LAYOUT_H
#define SSD_LAYOUT_H

#include <assert.h>
#include <stdatomic.h>
#include <stdint.h>

/*
 * On the device:
 *
 *   block 0   superblock
 *   blocks 1- segment table: who owns each segment
 *   segments  of 2 MiB, each of one space; nothing but content (or ciphertext) in them
 *
 * In a memfd per space, which the VM's client keeps (the "map"):
 *
 *   header    one page
 *   places    8 bytes a handle: where the object is, and whether there is one
 *   sums      16 bytes a handle: checksum, or tag of the encryption
 *   nonces    8 bytes a handle; only with encryption
 *
 * The truth is in the live entries of `places`. An object begins to exist with the one store that
 * makes its entry live, after its content is on the device and its sum is written; it ends with
 * the one that makes it free; it moves with one compare-and-swap. A segment's owner is on the
 * device before anything is written into it, so whoever opens the device after a crash knows which
 * segments may hold something, also of VMs that have not come back yet. Which blocks of its own
 * segments are in use a space learns from its map.
 */

#define BLOCK_BYTES    4096u
#define SEGMENT_BYTES  (2u << 20)
#define SEGMENT_BLOCKS (SEGMENT_BYTES / BLOCK_BYTES)

#define SUPER_MAGIC   UINT64_C(0x3144535362624500) /* "\0EbbSSD1" */
#define SUPER_VERSION 1u
#define MAP_MAGIC     UINT64_C(0x70614d4453626245) /* "EbbSDMap" */
#define MAP_VERSION   1u

struct super_block {
	uint64_t magic;
	uint32_t version;
	uint32_t closed; /* by a daemon that had nothing in it any more */
	uint64_t size_bytes;
	uint64_t n_segs, data_offset;
	uint8_t id[16];	      /* of this format; in every map too */
	char boot[40];	      /* boot_id of the kernel that the spaces belong to */
	char machine[40];     /* machine-id */
	uint64_t budget_left; /* bytes, at: */
	uint64_t budget_at_s; /* CLOCK_REALTIME */
	uint64_t sum;	      /* of all before it */
};
static_assert(sizeof(struct super_block) <= BLOCK_BYTES, "one block");

struct table_entry {
	uint64_t owner;		 /* id of a space; 0: free */
	uint32_t pid, pid_start; /* who keeps that space's map, and when it began; 0: not known */
};
static_assert(sizeof(struct table_entry) == 16, "");
#define TABLE_PER_BLOCK (BLOCK_BYTES / sizeof(struct table_entry))

struct object_sum {
	uint64_t w[2];
};

struct map_header {
	uint64_t magic;
	uint32_t version;
	uint32_t encrypted;
	uint8_t device[16]; /* super_block.id */
	uint64_t space_id;
	uint64_t n_handles;
	uint64_t key_check;
	uint32_t seed; /* makes generations of this space its own */
	uint32_t reserved;
	_Atomic uint64_t high;	/* handles ever used */
	_Atomic uint64_t nonce; /* the next; never goes back while this memory lives */
};
static_assert(sizeof(struct map_header) <= BLOCK_BYTES, "one page");

/*
 * An entry of `places`:
 *   bits 0-35 block, counted from the first segment
 *       36-39 order: the object is 4 KiB << order
 *       40    live
 *       41    used: free now, but its generation counts
 *       42-60 generation
 */
#define PLACE_BLOCK_BITS 36
#define PLACE_BLOCK_MASK ((UINT64_C(1) << PLACE_BLOCK_BITS) - 1)
#define PLACE_LIVE	 (UINT64_C(1) << 40)
#define PLACE_USED	 (UINT64_C(1) << 41)
#define PLACE_GEN_SHIFT	 42
#define ORDER_MAX	 9u

#define INDEX_BITS 29
#define GEN_BITS   19
#define GEN_MASK   ((1u << GEN_BITS) - 1)
static_assert(INDEX_BITS + GEN_BITS == 48, "a handle has 48 bits");
static_assert(BLOCK_BYTES << ORDER_MAX == SEGMENT_BYTES, "the largest unit fills a segment");

static inline uint64_t place_make(uint64_t block, unsigned int order, uint32_t gen)
{
	return block | (uint64_t)order << 36 | PLACE_LIVE |
	       (uint64_t)(gen & GEN_MASK) << PLACE_GEN_SHIFT;
}

static inline uint64_t place_free(uint32_t gen)
{
	return PLACE_USED | (uint64_t)(gen & GEN_MASK) << PLACE_GEN_SHIFT;
}

static inline uint64_t place_block(uint64_t p)
{
	return p & PLACE_BLOCK_MASK;
}

static inline unsigned int place_order(uint64_t p)
{
	return (unsigned int)(p >> 36) & 15;
}

static inline uint32_t place_blocks(uint64_t p)
{
	return 1u << place_order(p);
}

static inline uint32_t place_gen(uint64_t p)
{
	return (uint32_t)(p >> PLACE_GEN_SHIFT) & GEN_MASK;
}

static inline uint32_t place_seg(uint64_t p)
{
	return (uint32_t)(place_block(p) / SEGMENT_BLOCKS);
}

static inline uint64_t handle_make(uint32_t index, uint32_t gen)
{
	return (uint64_t)index | (uint64_t)(gen & GEN_MASK) << INDEX_BITS;
}

static inline uint32_t handle_index(uint64_t handle)
{
	return (uint32_t)(handle & ((1u << INDEX_BITS) - 1));
}

static inline uint32_t handle_gen(uint64_t handle)
{
	return (uint32_t)(handle >> INDEX_BITS) & GEN_MASK;
}

#endif
