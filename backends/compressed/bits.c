/* SPDX-License-Identifier: BSD-3-Clause */
/* bits.c: a large set of numbers that finds its lowest absent one at once. */
#include "bits.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>

int bits_init(struct bits *b, uint64_t n)
{
	uint64_t words[BITS_LEVELS], total = 0, left = n;
	uint64_t *map;

	memset(b, 0, sizeof(*b));
	do {
		if (b->levels == BITS_LEVELS)
			return -EINVAL;
		left = (left + 63) / 64;
		words[b->levels++] = left;
		total += left;
	} while (left > 1);
	map = mmap(NULL, total * 8, PROT_READ | PROT_WRITE,
		   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (map == MAP_FAILED)
		return -errno;
	b->map_bytes = total * 8;
	b->n = n;
	for (unsigned int l = 0; l < b->levels; l++) {
		b->level[l] = map;
		map += words[l];
	}
	return 0;
}

void bits_destroy(struct bits *b)
{
	if (b->map_bytes)
		munmap(b->level[0], b->map_bytes);
	memset(b, 0, sizeof(*b));
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

int64_t bits_lowest_absent(const struct bits *b)
{
	uint64_t word = 0;

	for (unsigned int l = b->levels; l-- > 0;) {
		uint64_t w = b->level[l][word];

		if (!~w)
			return -1;
		word = word * 64 + (uint64_t)__builtin_ctzll(~w);
		/* Bits that stand for no word are never set: found one, all words are full. */
		if (l && word >= (uint64_t)(b->level[l] - b->level[l - 1]))
			return -1;
	}
	return word < b->n ? (int64_t)word : -1;
}
