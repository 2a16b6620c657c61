/* SPDX-License-Identifier: BSD-3-Clause */
/* test_page_entry.c: every edge between states, their names, and the bits of an entry. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

#include "model/page_entry.h"

/* Written out once more, by hand: a change of the model has to be meant twice. */
static const char *const legal[PE_STATES] = {
	/* to:                   N R P U S X E L I Q C   (X punching, I pinned, Q lost) */
	[PE_NONE] = "= R . . . . . L I . C",	  [PE_RESIDENT] = ". = P U . . . L I . C",
	[PE_PROTECTED] = ". . = U S . . . . . .", [PE_UNPROTECTING] = ". R . = . . . . I . .",
	[PE_STORING] = ". . . U = X . . . . .",	  [PE_PUNCHING] = ". . . U . = E . . . .",
	[PE_EVICTED] = ". . . . . . = L . . C",	  [PE_LOADING] = "N R . . . . E = I Q .",
	[PE_PINNED] = ". R . U . . . L = . C",	  [PE_LOST] = ". . . . . . . . . = C",
	[PE_CLEARING] = "N R . . . . E . I Q =",
};

static void test_every_edge(void **state)
{
	for (unsigned int from = 0; from < PE_STATES; from++) {
		assert_int_equal(strlen(legal[from]), 2 * PE_STATES - 1);
		for (unsigned int to = 0; to < PE_STATES; to++) {
			bool want = legal[from][(size_t)2 * to] != '.';

			if (page_entry_edge((enum page_state)from, (enum page_state)to) != want)
				fail_msg("%s -> %s should be %s",
					 page_state_name((enum page_state)from),
					 page_state_name((enum page_state)to),
					 want ? "legal" : "illegal");
		}
	}
}

static void test_no_edge_outside(void **state)
{
	for (unsigned int s = 0; s < 16; s++) {
		assert_false(page_entry_edge(PE_STATES, (enum page_state)s));
		assert_false(page_entry_edge((enum page_state)s, PE_STATES));
		assert_false(page_entry_edge((enum page_state)15, (enum page_state)s));
	}
}

/* What the safety of the whole rests on, said without the table. */
static void test_rules(void **state)
{
	for (unsigned int from = 0; from < PE_STATES; from++) {
		enum page_state s = (enum page_state)from;

		/* Content is dropped only after it was read and stored. */
		assert_int_equal(page_entry_edge(s, PE_EVICTED),
				 s == PE_PUNCHING || s == PE_LOADING || s == PE_CLEARING ||
					 s == PE_EVICTED);
		assert_int_equal(page_entry_edge(s, PE_PUNCHING),
				 s == PE_STORING || s == PE_PUNCHING);
		/* Nobody protects what is owned. */
		if (page_state_owned(s))
			assert_false(page_entry_edge(s, PE_PROTECTED));
		assert_int_equal(page_entry_edge(s, PE_PROTECTED),
				 s == PE_RESIDENT || s == PE_PROTECTED);
		/* An eviction is cancelled through UNPROTECTING. */
		if (s == PE_PROTECTED || s == PE_STORING || s == PE_PUNCHING) {
			assert_false(page_entry_edge(s, PE_RESIDENT));
			assert_true(page_entry_edge(s, PE_UNPROTECTING));
		}
		/* What is stored cannot become zero but by a discard or a load that owns it. */
		if (s == PE_EVICTED || s == PE_LOST)
			assert_false(page_entry_edge(s, PE_NONE));
		/* From everywhere there is a way on. */
		{
			bool any = false;

			for (unsigned int to = 0; to < PE_STATES; to++)
				any |= to != from && page_entry_edge(s, (enum page_state)to);
			assert_true(any);
		}
	}
}

static void test_names(void **state)
{
	for (unsigned int a = 0; a < PE_STATES; a++) {
		assert_true(strlen(page_state_name((enum page_state)a)) > 3);
		for (unsigned int b = 0; b < a; b++)
			assert_string_not_equal(page_state_name((enum page_state)a),
						page_state_name((enum page_state)b));
	}
	assert_string_equal(page_state_name(PE_UNPROTECTING), "unprotecting");
	assert_string_equal(page_state_name(PE_STATES), "invalid");
}

static void test_classes(void **state)
{
	static const char present[] = ". R P U S X . . I . .";
	static const char owned[] = ". . . U S X . L . . C";

	for (unsigned int s = 0; s < PE_STATES; s++) {
		assert_int_equal(page_state_present((enum page_state)s),
				 present[(size_t)2 * s] != '.');
		assert_int_equal(page_state_owned((enum page_state)s), owned[(size_t)2 * s] != '.');
	}
}

static void test_fields_do_not_overlap(void **state)
{
	static const uint64_t fields[] = {PE_STATE_MASK,  PE_WANTED, PE_COPY,
					  PE_PREFETCHED,  PE_PLAIN,  PE_TIER_MASK,
					  PE_HANDLE_MASK, PE_RECENT};
	uint64_t all = 0;

	for (size_t i = 0; i < sizeof(fields) / sizeof(fields[0]); i++) {
		assert_int_equal(all & fields[i], 0);
		all |= fields[i];
	}
	assert_true(PE_STATES <= PE_STATE_MASK + 1);
	/* A directory word of the page table marks itself with these. */
	assert_int_equal(all & (UINT64_C(3) << 62), 0);
}

static void test_round_trips(void **state)
{
	static const uint64_t handles[] = {0, 1, 0xdeadbeef, (UINT64_C(1) << PE_HANDLE_BITS) - 1};
	const uint64_t flags = PE_COPY | PE_PREFETCHED | PE_PLAIN | PE_RECENT;

	for (unsigned int s = 0; s < PE_STATES; s++)
		for (unsigned int tier = 0; tier < PE_TIERS; tier++)
			for (size_t h = 0; h < sizeof(handles) / sizeof(handles[0]); h++) {
				uint64_t e = page_entry_bare((enum page_state)s) | flags;

				e = page_entry_with_copy(e, tier, handles[h]);
				assert_int_equal(page_entry_state(e), s);
				assert_int_equal(page_entry_tier(e), tier);
				assert_int_equal(page_entry_handle(e), handles[h]);
				assert_int_equal(e & flags, flags);
				/* Another copy leaves nothing of the first one. */
				e = page_entry_with_copy(e, 15 - tier, ~handles[h] & 0xffffffff);
				assert_int_equal(page_entry_tier(e), 15 - tier);
				assert_int_equal(page_entry_handle(e), ~handles[h] & 0xffffffff);
				assert_int_equal(page_entry_state(e), s);
			}
}

static void test_another_state_keeps_the_rest(void **state)
{
	uint64_t e = page_entry_with_copy(PE_EVICTED | PE_RECENT | PE_PLAIN | PE_WANTED, 7, 42);
	uint64_t l = page_entry_in(e, PE_LOADING);

	assert_int_equal(page_entry_state(l), PE_LOADING);
	assert_int_equal(page_entry_tier(l), 7);
	assert_int_equal(page_entry_handle(l), 42);
	assert_int_equal(l & (PE_RECENT | PE_PLAIN), PE_RECENT | PE_PLAIN);
	assert_int_equal(l & PE_WANTED, 0);
	assert_int_equal(page_entry_bare(PE_RESIDENT), PE_RESIDENT);
}

static void test_fill_patterns_know_their_owner(void **state)
{
	static const uint32_t patterns[] = {0, 1, 0xffffffff, 0xdeadbeef};

	for (size_t p = 0; p < sizeof(patterns) / sizeof(patterns[0]); p++)
		for (uint64_t owner = 1; owner < 2000; owner += 111) {
			uint64_t e = page_entry_with_fill(PE_EVICTED, patterns[p], owner);

			assert_int_equal(page_entry_fill(e), patterns[p]);
			assert_int_equal(page_entry_tier(e), PE_TIER_FILL);
			assert_true(page_entry_fill_sound(e, owner));
			assert_false(page_entry_fill_sound(e, owner + 1));
			/* No bit of tier and handle can change. */
			for (int bit = PE_TIER_SHIFT; bit < 60; bit++)
				assert_false(page_entry_fill_sound(e ^ UINT64_C(1) << bit, owner));
		}
}

/* Every single flipped bit of an entry is seen, or changes nothing about where the content is. */
static void test_damage_is_seen(void **state)
{
	static const char away_states[] = ". . . . . X E . . Q .";
	uint64_t fill = page_entry_with_fill(0, 7, 42), stored = page_entry_with_copy(0, 3, 99);

	for (unsigned int s = 0; s < PE_STATES; s++) {
		bool away = away_states[(size_t)2 * s] != '.';
		uint64_t e = (uint64_t)s | (s == PE_EVICTED ? stored : 0);

		assert_int_equal(page_state_away((enum page_state)s), away);
		/* An owner may have died before it set the bit, or cleared it. */
		if (s == PE_PUNCHING) {
			assert_true(page_entry_sound(e, false, 42));
			assert_false(page_entry_sound(e, true, 42)); /* no content named */
			assert_true(page_entry_sound(e | stored, true, 42));
			assert_true(page_entry_sound(e | fill, true, 42));
			assert_false(page_entry_sound(e | fill, true, 43));
			continue;
		}
		if (s == PE_LOADING || s == PE_CLEARING) {
			assert_true(page_entry_sound(e, false, 42));
			assert_true(page_entry_sound(e | stored, true, 42));
			assert_false(page_entry_sound(e, true, 42));
			continue;
		}
		assert_true(page_entry_sound(e, away, 42));
		assert_false(page_entry_sound(e, !away, 42));
	}
	for (unsigned int s = PE_STATES; s < 16; s++) {
		assert_false(page_entry_sound(s, false, 42));
		assert_false(page_entry_sound(s | stored, true, 42));
	}
	for (int bit = 61; bit < 64; bit++) {
		assert_false(page_entry_sound(PE_EVICTED | stored | UINT64_C(1) << bit, true, 42));
		assert_false(page_entry_sound(PE_RESIDENT | UINT64_C(1) << bit, false, 42));
	}
	assert_true(page_entry_sound(PE_EVICTED | stored | PE_PARTIAL, true, 42));
	/* A zero, as memory that was lost reads. */
	assert_false(page_entry_sound(0, true, 42));
	assert_true(page_entry_sound(0, false, 42));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_fields_do_not_overlap),
		cmocka_unit_test(test_names),
		cmocka_unit_test(test_classes),
		cmocka_unit_test(test_round_trips),
		cmocka_unit_test(test_another_state_keeps_the_rest),
		cmocka_unit_test(test_every_edge),
		cmocka_unit_test(test_no_edge_outside),
		cmocka_unit_test(test_rules),
		cmocka_unit_test(test_fill_patterns_know_their_owner),
		cmocka_unit_test(test_damage_is_seen),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
