/* SPDX-License-Identifier: BSD-3-Clause */
/* class.c: the sizes that slots come in. */
#include "class.h"

#include <string.h>

/*
 * Sizes grow by 1/36, so a slot is on average 1.4 % larger than what is put into it. The
 * powers of two from a page up, which plain content takes, are always among them. A slab has as
 * many pages as waste the least behind its last slot; the memory is sparse, so pages that a slab
 * does not reach cost nothing.
 */
#define GROWTH	   36u
#define LARGE_FROM 8192u /* larger slots than this go to the large slabs */

static void shape_slab(struct class_shape *s)
{
	uint32_t most = (s->large ? LARGE_STRIDE : SMALL_STRIDE) / PAGE_BYTES;
	uint32_t best_waste = UINT32_MAX;

	/* From many pages to few, so that of equals the larger slab is taken. */
	for (uint32_t pages = most; pages >= most * 3 / 4; pages--) {
		uint32_t slots = pages * PAGE_BYTES / s->slot_bytes;
		uint32_t waste;

		if (slots > SLOTS_MAX)
			slots = SLOTS_MAX;
		/* Per million bytes of the slab. */
		waste = (uint32_t)((uint64_t)(pages * PAGE_BYTES - slots * s->slot_bytes) *
				   1000000 / (pages * PAGE_BYTES));
		if (slots && waste < best_waste) {
			best_waste = waste;
			s->slots = (uint16_t)slots;
			s->pages = (uint8_t)((slots * s->slot_bytes + PAGE_BYTES - 1) / PAGE_BYTES);
		}
	}
}

static uint32_t next_size(uint32_t size)
{
	uint32_t step = (size / GROWTH + CLASS_QUANTUM / 2) / CLASS_QUANTUM * CLASS_QUANTUM;
	uint32_t next = size + (step ? step : CLASS_QUANTUM);

	for (uint32_t plain = PAGE_BYTES; plain <= PIECE_BYTES; plain *= 2)
		if (size < plain && next > plain)
			return plain;
	return next;
}

void class_table_init(struct class_table *t)
{
	uint32_t q = 0;

	memset(t, 0, sizeof(*t));
	for (uint32_t size = SLOT_MIN; size <= PIECE_BYTES && t->n < CLASSES_MAX;
	     size = next_size(size)) {
		struct class_shape *s = &t->shape[t->n];

		s->slot_bytes = size;
		s->large = size > LARGE_FROM;
		shape_slab(s);
		for (; q <= size / CLASS_QUANTUM; q++)
			t->of_quanta[q] = (uint8_t)t->n;
		t->sum = (t->sum ^ size ^ (uint32_t)s->slots << 17) * 0x9e3779b1u;
		t->n++;
	}
}
