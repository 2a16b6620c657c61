/* SPDX-License-Identifier: BSD-3-Clause */
/* class.h: the sizes that slots come in. */
#ifndef COMPRESSED_CLASS_H
#define COMPRESSED_CLASS_H

#include <stdbool.h>
#include <stdint.h>

#include "layout.h"

#define CLASSES_MAX   255u
#define SLOT_MIN      32u
#define CLASS_QUANTUM 8u

struct class_shape {
	uint32_t slot_bytes;
	uint16_t slots; /* per slab */
	uint8_t pages;	/* per slab: what the slots take */
	bool large;	/* lives in the large slabs */
};

struct class_table {
	struct class_shape shape[CLASSES_MAX];
	uint32_t n;
	uint32_t sum; /* tells one table from another */
	uint8_t of_quanta[PIECE_BYTES / CLASS_QUANTUM + 1];
};

void class_table_init(struct class_table *t);

/* The class for an object of `bytes`, at most PIECE_BYTES. */
static inline unsigned int class_of(const struct class_table *t, uint32_t bytes)
{
	return t->of_quanta[(bytes + CLASS_QUANTUM - 1) / CLASS_QUANTUM];
}

#endif
