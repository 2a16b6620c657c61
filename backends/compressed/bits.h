/* SPDX-License-Identifier: BSD-3-Clause */
/* bits.h: a large set of numbers that finds its lowest absent one at once. */
#ifndef COMPRESSED_BITS_H
#define COMPRESSED_BITS_H

#include <stdbool.h>
#include <stdint.h>

#define BITS_LEVELS 6

/* A tree of words, 64 to one: a bit of an upper word says that the word below it is full. */
struct bits {
	uint64_t *level[BITS_LEVELS]; /* the uppermost first in memory */
	uint64_t words[BITS_LEVELS];
	unsigned int levels;
	uint64_t n;
};

/* How much memory a set of numbers below n lies in. */
uint64_t bits_bytes(uint64_t n);
/* How much of it, from its start, is read or written while all numbers in the set are below `top`.
 */
uint64_t bits_bytes_used(const struct bits *b, uint64_t top);
/*
 * A set in that memory, which the caller provides: zeroed (then it is empty), or as an earlier set
 * of the same n left it. 0, or -EINVAL when n is too large.
 */
int bits_init(struct bits *b, uint64_t n, void *memory);

void bits_add(struct bits *b, uint64_t i);
void bits_remove(struct bits *b, uint64_t i);
/* Whether the number is in the set. */
bool bits_has(const struct bits *b, uint64_t i);
/* The lowest number that is not in the set, or -1. */
int64_t bits_lowest_absent(const struct bits *b);

#endif
