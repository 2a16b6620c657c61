/* SPDX-License-Identifier: BSD-3-Clause */
/* page_table.h: the entries of one RAM block, allocated as they are needed. */
#ifndef MODEL_PAGE_TABLE_H
#define MODEL_PAGE_TABLE_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "model/page_entry.h"

/*
 * Theory of operation
 *
 * A table lives in one piece of memory that its user provides: sparse and zeroed (a memfd), so
 * that it can outlive the daemon. It holds no pointer. Layout: a header, a directory of one word
 * per run of 512 units, the "away" bits (see page_entry.h), one a unit, and one 4 KiB leaf of 512
 * entries per run, each at a fixed place. A run whose units are all alike needs only its directory
 * word; its leaf is filled the first time that one of them changes alone, and stays from then on.
 * So a VM that was never touched costs nothing, one that was never reclaimed from costs 4 bytes a
 * MiB, and the worst case is 8 bytes and a bit a unit and 8 bytes a run: 0.1988 % of RAM with 4 KiB
 * units.
 *
 * The "away" bits follow the entries by themselves: see page_table_cas() and page_table_leave().
 * They are apart from the entries, and a run's 64 bytes of them apart from its leaf, so that damage
 * to one of the two is told by the other.
 *
 * The directory word of a run with a leaf holds the sum of the run's away set: the exclusive or of
 * a number for each unit whose bit is set. It changes right after the bit, while the unit is owned.
 * So an entry and its bit that were both changed, and agree, are told by the sum, and which unit it
 * was by the number: page_table_suspects(). Tables of version 1 ("EBBTBL01") have no sums.
 *
 * Any thread, lock-free but for the one-time fill of a leaf, for which others spin (512 stores).
 * The table makes no system call; touching a new leaf makes the kernel allocate a page for it.
 */
#define PAGE_TABLE_RUN 512u

struct page_table_header;

struct page_table {
	struct page_table_header *header;
	_Atomic uint64_t *dir;
	_Atomic uint64_t *away;
	_Atomic uint64_t *leaves;
	uint64_t units;
	bool sums;
};

/* Bytes of memory for a table of `units` (address space; what is touched is less). */
uint64_t page_table_bytes(uint64_t units);
/* Makes an empty table (all NONE) in zeroed memory. */
void page_table_init(struct page_table *pt, void *memory, uint64_t units);
/*
 * Opens a table that another daemon left in memory, `bytes` long. Checks magic, version and
 * sizes; finishes a leaf fill that was cut off. A directory word that cannot be is taken for that
 * of a leaf, whose entries are then looked at like all others. 0, or -EUCLEAN when it cannot be
 * believed.
 */
int page_table_open(struct page_table *pt, void *memory, uint64_t bytes);

/* The entry now. */
uint64_t page_table_get(const struct page_table *pt, uint64_t unit);
/*
 * Changes *expected to `to` if the entry still is *expected; else writes what it is now into
 * *expected and returns false. The edge must be legal: a wrong one ends the process, because
 * whatever follows would be somebody's memory.
 */
bool page_table_cas(struct page_table *pt, uint64_t unit, uint64_t *expected, uint64_t to);
/*
 * The owner leaves an owned state: sets the entry to `to`, whatever flags were set meanwhile.
 * Returns true when PE_WANTED was set: wake the unit's waiters.
 */
bool page_table_leave(struct page_table *pt, uint64_t unit, uint64_t to);
/*
 * Sets an entry whatever it was, by whoever takes a table over before anyone else knows of it: no
 * edge is checked, because the owner of the old state is dead.
 */
void page_table_repair(struct page_table *pt, uint64_t unit, uint64_t to);
/*
 * Gives units [first, first + count) the state `s`, RESIDENT or NONE, before anyone else knows of
 * the table. Whole runs stay in the directory.
 */
void page_table_set_run(struct page_table *pt, uint64_t first, uint64_t count, enum page_state s);

/* The unit's "away" bit: its content is neither in the page cache nor zero. */
bool page_table_away(const struct page_table *pt, uint64_t unit);
/* Whether the sum of the run of `unit` fits its bits. */
bool page_table_sum_fits(const struct page_table *pt, uint64_t unit);
/*
 * When it does not, which units could be why; before anything in the run is repaired. sound[i]:
 * that entry of the run and its bit agree (units of the last run that are beyond the table are
 * sound). What its owner had not come to, when it died, is none. Sets suspect[i] for the units of
 * the run whose entries and bits say that they are not away, while the sum says that they are; all
 * that say so, when these cannot be told. Returns how many.
 */
unsigned int page_table_suspects(const struct page_table *pt, uint64_t unit,
				 const bool sound[PAGE_TABLE_RUN], bool suspect[PAGE_TABLE_RUN]);
/* Makes the sum of the run of `unit` fit its bits; by whoever takes over, after the repair. */
void page_table_seal(struct page_table *pt, uint64_t unit);

/* Any such bit in the run of `unit`. */
bool page_table_run_away(const struct page_table *pt, uint64_t unit);

/* If all 512 units of the run of `unit` are alike and have no leaf: true and the entry. */
bool page_table_uniform(const struct page_table *pt, uint64_t unit, uint64_t *entry);
/* Memory that the table takes now: header, directory and the leaves in use. */
uint64_t page_table_footprint(const struct page_table *pt);

#endif
