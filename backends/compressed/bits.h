/* SPDX-License-Identifier: BSD-3-Clause */
/* bits.h: a large set of numbers that finds its lowest absent one at once. */
#ifndef COMPRESSED_BITS_H
#define COMPRESSED_BITS_H

#include <stdint.h>

#define BITS_LEVELS 6

/* A tree of words, 64 to one: a bit of an upper word says that the word below it is full. */
struct bits {
	uint64_t *level[BITS_LEVELS];
	unsigned int levels;
	uint64_t n;
	uint64_t map_bytes;
};

/* An empty set of numbers below n. Its memory is sparse: it costs what is used. 0 or -errno. */
int bits_init(struct bits *b, uint64_t n);
void bits_destroy(struct bits *b);

void bits_add(struct bits *b, uint64_t i);
void bits_remove(struct bits *b, uint64_t i);
/* The lowest number that is not in the set, or -1. */
int64_t bits_lowest_absent(const struct bits *b);

#endif
