/* SPDX-License-Identifier: BSD-3-Clause */
/* thp.h: guest RAM on transparent huge pages, taken and given back 2 MiB at a time. */
#ifndef ENGINE_THP_H
#define ENGINE_THP_H

#include "engine/internal.h"

/* True when a region can be kept on huge pages: aligned, eligible, and this kernel can do it. */
bool thp_suits(struct engine *eng, const struct attach_region *reg, pid_t pid);
/* True while the VMM may get more mappings by our registering parts of its RAM differently. */
bool thp_may_split(struct block *b);

/*
 * Makes any access to the unit a fault that comes to us. The caller has claimed it (PROTECTED).
 * -EBUSY when it cannot be done now; the caller then lifts what there is by thp_unprotect().
 */
int thp_protect(struct block *b, uint64_t unit);
/* Lifts it and wakes. The caller owns the unit, and all of it is in the page cache. */
void thp_unprotect(struct block *b, uint64_t unit);
/* True when the unit is registered as thp_protect() does; may be true for longer. */
bool thp_is_split(const struct block *b, uint64_t unit);
/*
 * After a takeover, which cannot know how each unit is registered: those that have no copy
 * elsewhere are registered as resident ones, the others count as protected.
 */
void thp_settle(struct block *b);
/* Makes one huge page of a resident unit. Takes milliseconds; not on the fault path. */
void thp_collapse(struct block *b, uint64_t unit);

#endif
