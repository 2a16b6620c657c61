/* SPDX-License-Identifier: BSD-3-Clause */
/* reference.h: what policies are held against. */
#ifndef SIM_REFERENCE_H
#define SIM_REFERENCE_H

#include <stdint.h>

#include "sim/sequence.h"

struct reference {
	uint64_t first; /* touches of units that were never touched before: the same for all */
	uint64_t lru;	/* further misses of exact LRU */
	uint64_t opt;	/* of Belady's optimum, which knows the future */
	/* Of the best set that never changes, where what is not in it takes no room at all. */
	uint64_t fixed;
};

/* All with room for `limit` units. 0 or -ENOMEM. */
int reference_run(const struct sequence *s, uint64_t limit, struct reference *out);

#endif
