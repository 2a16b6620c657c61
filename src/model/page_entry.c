/* SPDX-License-Identifier: BSD-3-Clause */
/* page_entry.c: the state of one unit of guest RAM: its names and edges. */
#include "model/page_entry.h"

#include <assert.h>

#define TO(s) (1u << PE_##s)

/* For each state, the states that may follow. The comment in the header says why. */
static const uint16_t edges[] = {
	/* First touch; found in the page cache; an explicit discard. */
	[PE_NONE] = TO(LOADING) | TO(RESIDENT) | TO(PINNED) | TO(CLEARING),
	/* Eviction; a stale protection; the VMM punched it; a pin; a discard. */
	[PE_RESIDENT] = TO(PROTECTED) | TO(UNPROTECTING) | TO(LOADING) | TO(PINNED) | TO(CLEARING),
	/* Cancelled by a write; content may be read now. */
	[PE_PROTECTED] = TO(UNPROTECTING) | TO(STORING),
	[PE_UNPROTECTING] = TO(RESIDENT) | TO(PINNED),
	/* Stored; given up. */
	[PE_STORING] = TO(PUNCHING) | TO(UNPROTECTING),
	/* Dropped; could not be dropped. */
	[PE_PUNCHING] = TO(EVICTED) | TO(UNPROTECTING),
	[PE_EVICTED] = TO(LOADING) | TO(CLEARING),
	/* In place; put back for another try; nothing was there; gone for good. */
	[PE_LOADING] = TO(RESIDENT) | TO(PINNED) | TO(EVICTED) | TO(NONE) | TO(LOST),
	/* Unpinned; a stale protection; punched by the VMM; a discard. */
	[PE_PINNED] = TO(RESIDENT) | TO(UNPROTECTING) | TO(LOADING) | TO(CLEARING),
	[PE_LOST] = TO(CLEARING),
	/* Done; could not be dropped, or too late. */
	[PE_CLEARING] = TO(NONE) | TO(RESIDENT) | TO(PINNED) | TO(EVICTED) | TO(LOST),
};
static_assert(sizeof(edges) / sizeof(edges[0]) == PE_STATES, "a row per state");

static const char *const names[] = {
	[PE_NONE] = "none",	      [PE_RESIDENT] = "resident",
	[PE_PROTECTED] = "protected", [PE_UNPROTECTING] = "unprotecting",
	[PE_STORING] = "storing",     [PE_PUNCHING] = "punching",
	[PE_EVICTED] = "evicted",     [PE_LOADING] = "loading",
	[PE_PINNED] = "pinned",	      [PE_LOST] = "lost",
	[PE_CLEARING] = "clearing",
};
static_assert(sizeof(names) / sizeof(names[0]) == PE_STATES, "a name per state");

bool page_entry_edge(enum page_state from, enum page_state to)
{
	if (from >= PE_STATES || to >= PE_STATES)
		return false;
	return from == to || (edges[from] & (1u << to));
}

bool page_entry_sound(uint64_t e, bool away, uint64_t owner)
{
	bool has_content = page_entry_tier(e) != PE_TIER_FILL || page_entry_fill_sound(e, owner);

	if (e >> 63)
		return false;
	if (page_entry_state(e) == PE_PROTECTED || page_entry_state(e) == PE_UNPROTECTING)
		return !away; /* the claim may still be there */
	if ((e & PE_PARTIAL) && (e & PE_PARTIAL) != PE_PARTIAL)
		return false;
	switch (page_entry_state(e)) {
	case PE_NONE:
	case PE_RESIDENT:
	case PE_STORING:
	case PE_PINNED:
		return !away;
	case PE_EVICTED:
		return away && has_content;
	case PE_PUNCHING:
	case PE_LOADING:
	case PE_CLEARING:
		return !away || has_content;
	case PE_LOST:
		return away;
	default:
		return false;
	}
}

const char *page_state_name(enum page_state s)
{
	return s < PE_STATES ? names[s] : "invalid";
}
