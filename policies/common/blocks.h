/* SPDX-License-Identifier: BSD-3-Clause */
/* blocks.h: a prefetcher's own list of the VM's RAM blocks, for use on the fault path. */
#ifndef COMMON_BLOCKS_H
#define COMMON_BLOCKS_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "ebb/policy.h"

#define BLOCKS_MAX 64

struct blocks {
	struct {
		_Atomic uint64_t first, end;
		_Atomic uint32_t unit_bytes;
	} block[BLOCKS_MAX];
	_Atomic uint32_t n;
};

struct bounds {
	uint64_t first, end;
	uint32_t unit_bytes;
};

/* Serial hooks: reads the list anew. A torn view of it costs a prefetch that is of no use. */
void blocks_read(struct blocks *b, const struct ebb_policy_host *host);
/* Any thread. False when no block has the unit. */
bool blocks_find(const struct blocks *b, uint64_t unit, struct bounds *out);

#endif
