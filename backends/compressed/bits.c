/* SPDX-License-Identifier: BSD-3-Clause */
/* bits.c: a large set of numbers that finds its lowest absent one at once. */
#include "bits.h"

#include <errno.h>
#include <string.h>

/* Words of each level; returns how many levels, 0 when they are too many. */
static unsigned int measure(uint64_t n, uint64_t words[BITS_LEVELS])
{
	unsigned int levels = 0;

	do {
		if (levels == BITS_LEVELS)
			return 0;
		n = (n + 63) / 64;
		words[levels++] = n;
	} while (n > 1);
	return levels;
}

uint64_t bits_bytes(uint64_t n)
{
	uint64_t words[BITS_LEVELS], total = 0;
	unsigned int levels = measure(n, words);

	for (unsigned int l = 0; l < levels; l++)
		total += words[l];
	return total * 8;
}

uint64_t bits_bytes_used(const struct bits *b, uint64_t top)
{
	uint64_t words = top / 64 + 1; /* one word more is looked at */

	if (words > b->words[0])
		words = b->words[0];
	return (uint64_t)(b->level[0] + words - b->level[b->levels - 1]) * 8;
}

int bits_init(struct bits *b, uint64_t n, void *memory)
{
	uint64_t *at = memory;

	memset(b, 0, sizeof(*b));
	b->levels = measure(n, b->words);
	if (!b->levels)
		return -EINVAL;
	b->n = n;
	for (unsigned int l = b->levels; l-- > 0; at += b->words[l])
		b->level[l] = at;
	return 0;
}

void bits_add(struct bits *b, uint64_t i)
{
	for (unsigned int l = 0; l < b->levels; l++, i /= 64) {
		b->level[l][i / 64] |= UINT64_C(1) << (i % 64);
		if (~b->level[l][i / 64])
			break;
	}
}

void bits_remove(struct bits *b, uint64_t i)
{
	for (unsigned int l = 0; l < b->levels; l++, i /= 64) {
		int was_full = !~b->level[l][i / 64];

		b->level[l][i / 64] &= ~(UINT64_C(1) << (i % 64));
		if (!was_full)
			break;
	}
}

bool bits_has(const struct bits *b, uint64_t i)
{
	return b->level[0][i / 64] >> (i % 64) & 1;
}

int64_t bits_lowest_absent(const struct bits *b)
{
	uint64_t word = 0;

	for (unsigned int l = b->levels; l-- > 0;) {
		uint64_t w = b->level[l][word];

		if (!~w)
			return -1;
		word = word * 64 + (uint64_t)__builtin_ctzll(~w);
		/* Bits that stand for no word are never set: found one, all words are full. */
		if (l && word >= b->words[l - 1])
			return -1;
	}
	return word < b->n ? (int64_t)word : -1;
}
