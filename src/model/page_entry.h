/* SPDX-License-Identifier: BSD-3-Clause */
/* page_entry.h: the state of one unit of guest RAM, in 64 bits. */
#ifndef MODEL_PAGE_ENTRY_H
#define MODEL_PAGE_ENTRY_H

#include <stdbool.h>
#include <stdint.h>

/*
 * Theory of operation
 *
 * A unit is what one page-table entry describes: 4 KiB, or 2 MiB for huge pages. Its entry is the
 * truth about where its content is; the kernel's page tables and the kind of a fault are only
 * hints. Every change is one compare-and-swap along an edge of page_entry_edge(); a state in which
 * somebody works on the unit is "owned", and only its owner may leave it. Others who want the unit
 * meanwhile set PE_WANTED and go away; whoever leaves the owned state takes the flag off and wakes
 * the faulting threads, who then fault again and find the new state.
 *
 *   state         content is          owner        what is legal
 *   NONE          zero                -            no page, no copy (a page may exist in the cache
 *                                                  that was never seen; a minor fault tells)
 *   RESIDENT      page cache          -            PE_COPY: a backend holds what it was at load
 *   PROTECTED     page cache          evictor      write-protected everywhere; content not yet
 * read. A fault may take it away (to UNPROTECTING) UNPROTECTING  page cache          who set it
 * protection is being lifted. Nobody may protect a unit in it, so a late lifting can never slip
 *                                                  under a new eviction
 *   STORING       page cache          evictor      protected; content is being read and stored
 *   PUNCHING      backend             evictor      stored and acknowledged; the page is being
 *                                                  dropped. A COPY now would meet the old page
 *   EVICTED       backend             -            no page; tier and handle say where
 *   LOADING       backend, or zero    who set it   on its way back; tier and handle stay valid
 *                                                  until the page is in place
 *   PINNED        page cache          -            as RESIDENT, and never to be evicted
 *   LOST          nowhere             -            could not be brought back; poisoned
 *   CLEARING      given up            who set it   the VM discarded it; page and copy are dropped
 *
 * Beside each entry the table keeps one bit, "away": the content is neither in the page cache nor
 * zero. It is set when PUNCHING is entered, before the page goes, and cleared before the entry says
 * that the content is back, or at the beginning of CLEARING. So it tells how far the owner of an
 * entry had come when it died, and it is a second witness: an entry in memory that was out of our
 * hands is believed only when the two agree (page_entry_sound()).
 *
 * After a crash, by state: PROTECTED, UNPROTECTING and STORING have their page: lift the
 * protection, RESIDENT (a handle that was being stored is unreachable and is swept by the
 * backend). PUNCHING: away: the store was acknowledged, finish the punch: EVICTED; not yet away:
 * nothing was dropped, RESIDENT. LOADING: if the page cache has a page, then it is whole (the
 * kernel shows a page only complete): RESIDENT; over a hole and away: EVICTED; else NONE, whose
 * content is zero. CLEARING: away: nothing was given up yet, EVICTED as before; else what is in the
 * page cache, RESIDENT, or NONE over a hole. Nobody was told that the discard is done.
 *
 * Layout: bits 0-3 state, 4-7 flags, 8-11 tier, 12-59 handle, 60-63 more flags.
 */
enum page_state {
	PE_NONE = 0,
	PE_RESIDENT,
	PE_PROTECTED,
	PE_UNPROTECTING,
	PE_STORING,
	PE_PUNCHING,
	PE_EVICTED,
	PE_LOADING,
	PE_PINNED,
	PE_LOST,
	PE_CLEARING,
	PE_STATES
};

#define PE_STATE_MASK UINT64_C(0xf)
#define PE_WANTED     (UINT64_C(1) << 4) /* owned states: a fault waits, wake when leaving */
#define PE_COPY	      (UINT64_C(1) << 5) /* resident, with tier and handle of a stored copy */
#define PE_PREFETCHED (UINT64_C(1) << 6) /* brought back ahead, not asked for since */
#define PE_PLAIN      (UINT64_C(1) << 7) /* did not compress the last time */
/*
 * EVICTED: a copy of what the handle names is being made in another tier; whoever makes it changes
 * the entry only while this is still set. A fault takes the unit all the same: what comes back and
 * is evicted again does not have it, so a copy that was made meanwhile is not taken for the new
 * content. The bit of PE_COPY, which means nothing in this state. A repair takes it off.
 */
#define PE_MOVING	PE_COPY
#define PE_TIER_SHIFT	8
#define PE_TIER_MASK	(UINT64_C(0xf) << PE_TIER_SHIFT)
#define PE_HANDLE_SHIFT 12
#define PE_HANDLE_BITS	48
#define PE_HANDLE_MASK	(((UINT64_C(1) << PE_HANDLE_BITS) - 1) << PE_HANDLE_SHIFT)
#define PE_RECENT	(UINT64_C(1) << 60) /* evicted lately: coming back now is a refault */
/*
 * RESIDENT and PREFETCHED: has been named as a victim before its first use, and been kept that
 * once. The bit of PE_RECENT, which means nothing in this state.
 */
#define PE_SPARED PE_RECENT
/* Evicted, but part of it is in place already: see unit.c. Both bits or none. */
#define PE_PARTIAL (UINT64_C(3) << 61)
/*
 * PROTECTED: which evictor has claimed it, because between its claim and its taking it over a fault
 * may have cancelled that claim, and another evictor made its own, which is not protected yet.
 */
#define PE_CLAIM_SHIFT 60
#define PE_CLAIM       (UINT64_C(7) << PE_CLAIM_SHIFT)

/*
 * Tier 0 is no backend: the content is one 32-bit pattern repeated. Its handle is that pattern and,
 * above it, 16 bits that tell whether it belongs to this unit: there is no backend to notice.
 */
#define PE_TIER_FILL 0u
#define PE_TIERS     16u

static inline enum page_state page_entry_state(uint64_t e)
{
	return (enum page_state)(e & PE_STATE_MASK);
}

static inline unsigned int page_entry_tier(uint64_t e)
{
	return (unsigned int)((e & PE_TIER_MASK) >> PE_TIER_SHIFT);
}

static inline uint64_t page_entry_handle(uint64_t e)
{
	return (e & PE_HANDLE_MASK) >> PE_HANDLE_SHIFT;
}

/* The same entry in another state, without PE_WANTED. */
static inline uint64_t page_entry_in(uint64_t e, enum page_state s)
{
	return (e & ~(PE_STATE_MASK | PE_WANTED)) | (uint64_t)s;
}

static inline uint64_t page_entry_with_copy(uint64_t e, unsigned int tier, uint64_t handle)
{
	return (e & ~(PE_TIER_MASK | PE_HANDLE_MASK)) | (uint64_t)tier << PE_TIER_SHIFT |
	       handle << PE_HANDLE_SHIFT;
}

/*
 * A fill pattern as an entry's tier and handle. owner: a number of the unit that no other unit of
 * its VM has, in all its life.
 */
static inline uint64_t page_entry_with_fill(uint64_t e, uint32_t pattern, uint64_t owner)
{
	/* A multiplicative hash; its upper bits depend on all of what goes in. Never zero. */
	uint64_t h = (owner ^ (uint64_t)pattern << 32 ^ pattern) * UINT64_C(0x9e3779b97f4a7c15);

	h = (h ^ h >> 29) * UINT64_C(0xbf58476d1ce4e5b9);
	return page_entry_with_copy(e, PE_TIER_FILL, pattern | (h >> 49 | 0x8000) << 32);
}

static inline uint32_t page_entry_fill(uint64_t e)
{
	return (uint32_t)page_entry_handle(e);
}

/* True when an entry of tier 0 says the pattern of this unit. */
static inline bool page_entry_fill_sound(uint64_t e, uint64_t owner)
{
	return page_entry_tier(e) == PE_TIER_FILL &&
	       page_entry_with_fill(e, page_entry_fill(e), owner) == e;
}

/* No copy anywhere any more: tier, handle and all flags but `keep` go. */
static inline uint64_t page_entry_bare(enum page_state s)
{
	return (uint64_t)s;
}

/* True when the page is in the page cache and no one else's (counts against the limit). */
static inline bool page_state_present(enum page_state s)
{
	return s == PE_RESIDENT || s == PE_PROTECTED || s == PE_UNPROTECTING || s == PE_STORING ||
	       s == PE_PUNCHING || s == PE_PINNED;
}

/* True for states in which somebody works on the unit and others must wait. */
static inline bool page_state_owned(enum page_state s)
{
	return s == PE_UNPROTECTING || s == PE_STORING || s == PE_PUNCHING || s == PE_LOADING ||
	       s == PE_CLEARING;
}

/* True when the content is neither in the page cache nor zero; see "away" above. */
static inline bool page_state_away(enum page_state s)
{
	return s == PE_PUNCHING || s == PE_EVICTED || s == PE_LOST;
}

/*
 * Whether an entry that was found in memory which had been out of our hands can be believed, given
 * what its "away" bit says. What its handle leads to is for the backend to check.
 */
bool page_entry_sound(uint64_t e, bool away, uint64_t owner);

/* True when the model allows the change. Changes of flags within a state are always allowed. */
bool page_entry_edge(enum page_state from, enum page_state to);
/* "resident", "storing" ... for logs, tests and the docs. */
const char *page_state_name(enum page_state s);

#endif
