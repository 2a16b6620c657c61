/* SPDX-License-Identifier: BSD-3-Clause */
/* thp.h: guest RAM on transparent huge pages: how it is split, and made whole again. */
#ifndef ENGINE_THP_H
#define ENGINE_THP_H

#include "engine/internal.h"

/* True when a region can be kept on huge pages: aligned, eligible, and this kernel can do it. */
bool thp_suits(struct engine *eng, const struct attach_region *reg, pid_t pid);
/* What a block of kind THP or MIXED needs beside its table; -ENOMEM. block_free() frees it. */
int thp_block_init(struct block *b);

/*
 * Makes any access to the unit a fault that comes to us. The caller has claimed it (PROTECTED).
 * -EBUSY when it cannot be done now; the caller then lifts what there is by thp_unprotect().
 */
int thp_protect(struct block *b, uint64_t unit);
/* Lifts it and wakes. The caller owns the unit, and all of it is in the page cache. */
void thp_unprotect(struct block *b, uint64_t unit);
/* True when the unit is registered as thp_protect() does; may be true for longer. */
bool thp_is_split(const struct block *b, uint64_t unit);

/* ---- blocks of kind MIXED ---- */

/*
 * Splits what is whole of the extents that the units are in, so that a unit can be protected by
 * itself. The caller has claimed one unit in each of them. 0 or -errno.
 */
int thp_split_run(struct block *b, uint64_t unit, uint64_t n);
/* All of it, by whoever takes a block over, before anybody else knows of it. */
void thp_set_all_split(struct block *b);
/*
 * Makes the extent of a unit one huge page again, if all of it is resident and nobody works on it.
 * Takes milliseconds; the prefetcher's.
 */
void thp_merge(struct block *b, uint64_t unit);
/*
 * Looks at some split extents, and has those made whole that were found resident and in use as a
 * whole a few times in a row. From time to time; the keeper's.
 */
void thp_look(struct vm *vm);
/* The range, grown over the whole extents at its ends: dropping a part would split them. */
void thp_grow(const struct block *b, uint64_t *unit, uint64_t *count);
/*
 * After a takeover, which cannot know how each unit is registered: those that have no copy
 * elsewhere are registered as resident ones, the others count as protected.
 */
void thp_settle(struct block *b);
/* Makes one huge page of a resident unit. Takes milliseconds; not on the fault path. */
void thp_collapse(struct block *b, uint64_t unit);

#endif
