/* SPDX-License-Identifier: BSD-3-Clause */
/* test_clock.c: the reclaimer clock against a simulated VM and against exact LRU. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "fake_vm.h"

#define UNITS	  20000
#define TOUCHES	  400000
#define SEED	  UINT64_C(88172645463325252)
#define WINDOW_NS UINT64_C(2000000000)

static struct policy *clock_policy;

static void set_option(struct policy_instance *i, const char *name, const char *value)
{
	const struct ebb_policy_option opt = {name, value};
	struct error e = {0};

	if (policy_config(i, &opt, &e))
		fail_msg("%s", e.desc);
}

static void start_seeded(struct fake_vm *v, uint64_t units, uint64_t limit, uint64_t seed)
{
	struct error e = {0};

	fake_vm_init(v, units);
	v->vm.seed = seed;
	v->limit = limit;
	v->headroom = limit / 50;
	if (policy_attach(clock_policy, &v->host, &v->vm, EBB_POLICY_RECLAIM, NULL, 0, &v->reclaim,
			  &e))
		fail_msg("%s", e.desc);
}

static void start(struct fake_vm *v, uint64_t units, uint64_t limit)
{
	start_seeded(v, units, limit, 1);
}

static void fill_all(struct fake_vm *v)
{
	for (uint64_t u = 0; u < v->units; u++)
		fake_vm_touch(v, u);
}

static double ratio(uint64_t hits, uint64_t of)
{
	return (double)hits / (double)of;
}

static bool config_fails(struct policy_instance *i, const char *name, const char *value)
{
	const struct ebb_policy_option opt = {name, value};
	struct error e = {0};

	return policy_config(i, &opt, &e) != 0 && strstr(e.desc, name);
}

static void test_options(void **state)
{
	struct fake_vm v;

	start(&v, 100, 0);
	set_option(v.reclaim, "distance", "10");
	set_option(v.reclaim, "distance", "auto");
	set_option(v.reclaim, "chance-ms", "0");
	set_option(v.reclaim, "back-off", "off");
	set_option(v.reclaim, "idle-age", "86400");
	assert_true(config_fails(v.reclaim, "distance", "91"));
	assert_true(config_fails(v.reclaim, "distance", ""));
	assert_true(config_fails(v.reclaim, "chance-ms", "-1"));
	assert_true(config_fails(v.reclaim, "back-off", "yes"));
	assert_true(config_fails(v.reclaim, "idle-age", "0"));
	assert_true(config_fails(v.reclaim, "idle-age", "99999999999999999999999"));
	assert_true(config_fails(v.reclaim, "no-such", "1"));
	assert_false(policy_wants_windows(v.reclaim));
	set_option(v.reclaim, "proactive", "on");
	assert_true(policy_wants_windows(v.reclaim));
	fake_vm_free(&v);
}

static void test_empty_vm(void **state)
{
	struct fake_vm v;

	start(&v, 1000, 0);
	assert_int_equal(fake_vm_reclaim(&v, 100, false), 0);
	assert_int_equal(fake_vm_reclaim(&v, 100, true), 0);
	fake_vm_free(&v);
	start(&v, 0, 0);
	assert_int_equal(fake_vm_reclaim(&v, 100, true), 0);
	fake_vm_free(&v);
}

/* Whatever was touched since the front hand came by stays, the rest goes. */
static void test_takes_what_was_not_touched(void **state)
{
	struct fake_vm v;
	uint64_t gone = 0;

	start(&v, 4000, 0);
	set_option(v.reclaim, "distance", "90");
	fill_all(&v);
	/* The first call only sends the front hand out: nobody had a chance yet. */
	assert_int_equal(fake_vm_reclaim(&v, 1000, false), 0);
	assert_true(v.cleared_units > 0);
	for (uint64_t u = 0; u < v.units; u += 2)
		fake_vm_touch(&v, u);
	v.now_ns += UINT64_C(100000000);
	for (int k = 0; k < 4; k++)
		gone += fake_vm_reclaim(&v, 500, false);
	assert_true(gone > 500);
	for (uint64_t u = 0; u < v.units; u += 2)
		assert_int_equal(v.state[u], FAKE_RESIDENT);
	assert_int_equal(v.bad_victims, 0);
	fake_vm_free(&v);
}

static void test_a_page_gets_its_chance(void **state)
{
	struct fake_vm v;

	start(&v, 4000, 0);
	set_option(v.reclaim, "chance-ms", "1000");
	fill_all(&v);
	fake_vm_reclaim(&v, 1000, false);
	v.now_ns += UINT64_C(900000000);
	assert_int_equal(fake_vm_reclaim(&v, 1000, false), 0);
	v.now_ns += UINT64_C(1000000000);
	assert_true(fake_vm_reclaim(&v, 1000, false) > 0);
	fake_vm_free(&v);
}

static void test_urgent_always_delivers(void **state)
{
	struct fake_vm v;

	/* Everything is hot, all the time, until nothing is left. */
	start(&v, 5000, 0);
	fill_all(&v);
	while (v.resident) {
		uint64_t before = v.resident;

		for (uint64_t u = 0; u < v.units; u++)
			if (v.state[u] == FAKE_RESIDENT)
				fake_vm_touch(&v, u);
		assert_int_equal(fake_vm_reclaim(&v, 300, true), before < 300 ? before : 300);
	}
	assert_int_equal(v.bad_victims, 0);
	fake_vm_free(&v);
}

static void test_urgent_finds_the_last_one(void **state)
{
	struct fake_vm v;

	start(&v, 100000, 0);
	fake_vm_touch(&v, 99999);
	fake_vm_touch(&v, 77);
	/* More is wanted than there is: each is named once. */
	assert_int_equal(fake_vm_reclaim(&v, 1000, true), 2);
	assert_int_equal(v.bad_victims, 0);
	assert_int_equal(fake_vm_reclaim(&v, 1000, true), 0);
	fake_vm_free(&v);
}

/* Back hand and sweep in one call: what the one has named, the other leaves out. */
static void test_a_unit_is_named_once(void **state)
{
	struct fake_vm v;

	start(&v, 4000, 0);
	set_option(v.reclaim, "distance", "50");
	fill_all(&v);
	fake_vm_reclaim(&v, 1000, false);
	v.now_ns += UINT64_C(100000000);
	assert_int_equal(fake_vm_reclaim(&v, 4000, true), 4000);
	assert_true(fake_stat(v.reclaim, "urgent-picks") > 0);
	assert_true(fake_stat(v.reclaim, "urgent-picks") < 4000);
	assert_int_equal(v.bad_victims, 0);
	assert_int_equal(fake_stat(v.reclaim, "picked"), 4000);
	fake_vm_free(&v);
}

static void test_pinned_and_gone_units_are_never_named(void **state)
{
	struct fake_vm v;

	start(&v, 10000, 0);
	fill_all(&v);
	fake_vm_reclaim(&v, 2000, false);
	/* Between the hands some are pinned, some are discarded. */
	for (uint64_t u = 0; u < v.units; u += 3)
		fake_vm_set(&v, u, u % 2 ? FAKE_PINNED : FAKE_UNTOUCHED);
	v.now_ns += UINT64_C(100000000);
	for (int k = 0; k < 20; k++)
		fake_vm_reclaim(&v, 1000, k % 2);
	assert_int_equal(v.bad_victims, 0);
	assert_true(v.evictions > 5000);
	fake_vm_free(&v);
}

static void test_few_ranges_are_filled_and_no_more(void **state)
{
	struct ebb_range out[3];
	struct fake_vm v;
	uint32_t n;

	start(&v, 1000, 0);
	for (uint64_t u = 0; u < v.units; u += 2)
		fake_vm_touch(&v, u);
	n = policy_pick_victims(v.reclaim, 100, true, out, 3);
	assert_int_equal(n, 3);
	for (uint32_t k = 0; k < n; k++)
		assert_int_equal(out[k].count, 1);
	assert_int_equal(fake_stat(v.reclaim, "ranges-dropped"), 0);
	fake_vm_free(&v);
}

/* The work done for a small demand does not grow with the VM. */
static void test_work_is_in_proportion_to_demand(void **state)
{
	struct fake_vm v;

	start(&v, 400000, 0);
	fill_all(&v);
	for (int k = 0; k < 5; k++) {
		uint64_t cleared = v.cleared_units, scanned = fake_stat(v.reclaim, "scanned");

		fake_vm_reclaim(&v, 64, false);
		assert_true(v.cleared_units - cleared <= 64 * 4 + 1024);
		assert_true(fake_stat(v.reclaim, "scanned") - scanned <= 64 * 16 + 2 * 4096);
		v.now_ns += UINT64_C(100000000);
	}
	fake_vm_free(&v);
}

/* Each range costs the host a system call: holes do not cut one in two, hot units do. */
static void test_few_ranges_are_cleared(void **state)
{
	struct fake_vm v;

	start(&v, 4000, 0);
	set_option(v.reclaim, "distance", "90");
	for (uint64_t u = 0; u < v.units; u += 3)
		fake_vm_touch(&v, u);
	fake_vm_reclaim(&v, 1000, false);
	assert_true(v.cleared_units > 1000);
	assert_true(v.cleared_ranges <= 2);
	fake_vm_free(&v);
}

static void test_without_a_tracker(void **state)
{
	struct fake_vm v;

	start(&v, 5000, 0);
	v.tracker = false;
	fill_all(&v);
	assert_int_equal(fake_vm_reclaim(&v, 1000, false), 1000);
	assert_int_equal(fake_stat(v.reclaim, "blind"), 1);
	/* Second chance: what has just come back goes after the rest. */
	for (uint64_t u = 0; u < v.units; u++)
		if (v.state[u] == FAKE_EVICTED)
			fake_vm_touch(&v, u);
	assert_int_equal(fake_vm_reclaim(&v, 4000, true), 4000);
	for (uint64_t u = 0; u < v.units; u++)
		if (v.state[u] == FAKE_RESIDENT)
			v.hits++;
	assert_int_equal(v.resident, 1000);
	assert_int_equal(v.bad_victims, 0);
	/* A tracker that turns up later is used. */
	v.tracker = true;
	for (int k = 0; k < 70; k++)
		fake_vm_reclaim(&v, 1, false);
	assert_int_equal(fake_stat(v.reclaim, "blind"), 0);
	assert_true(v.cleared_units > 0);
	fake_vm_free(&v);
}

/* A block that cannot be tracked does not make the others blind, and pays its part at the limit. */
static void test_one_block_without_a_tracker(void **state)
{
	struct fake_vm v;
	uint64_t gone = 0;

	start(&v, 40000, 0);
	v.untracked = 12288;
	fill_all(&v);
	for (int k = 0; k < 50; k++) {
		gone += fake_vm_reclaim(&v, 500, false);
		v.now_ns += UINT64_C(100000000);
	}
	assert_int_equal(fake_stat(v.reclaim, "blind"), 0);
	assert_true(gone > 15000);
	for (uint64_t u = 0; u < v.untracked; u++)
		assert_int_equal(v.state[u], FAKE_RESIDENT);
	while (v.resident)
		assert_true(fake_vm_reclaim(&v, 500, true) > 0);
	assert_int_equal(v.bad_victims, 0);
	fake_vm_free(&v);
}

/* The first victims are blind guesses: not where a guest's kernel lies. */
static void test_begins_inside_the_memory(void **state)
{
	for (uint64_t seed = 0; seed < 50; seed++) {
		struct fake_vm v;

		start_seeded(&v, 40000, 0, seed * SEED);
		fill_all(&v);
		for (int k = 0; k < 4; k++)
			assert_int_equal(fake_vm_reclaim(&v, 500, true), 500);
		for (uint64_t u = 0; u < 10000; u++) {
			assert_int_equal(v.state[u], FAKE_RESIDENT);
			assert_int_equal(v.state[39999 - u / 2], FAKE_RESIDENT);
		}
		fake_vm_free(&v);
	}
}

/* Half is taken at once before anything is known: it is soon known enough. */
static void test_a_cold_start_at_the_limit(void **state)
{
	uint64_t hot_left = 0, cold_left = 0, rng = SEED;
	struct fake_vm v;

	start(&v, 100000, 0);
	fill_all(&v);
	/* Half is to go, 512 at a time; each fourth unit is used every 30 ms or so. */
	while (v.resident > 50000) {
		if (!fake_vm_reclaim(&v, 512, false))
			assert_true(fake_vm_reclaim(&v, 512, true) > 0);
		for (uint64_t u = 0; u < v.units; u += 4)
			if (v.state[u] == FAKE_RESIDENT && fake_random(&rng) % 16 == 0)
				v.accessed[u] = 1;
		v.now_ns += UINT64_C(2000000);
	}
	for (uint64_t u = 0; u < v.units; u++) {
		hot_left += u % 4 == 0 && v.state[u] == FAKE_RESIDENT;
		cold_left += u % 4 != 0 && v.state[u] == FAKE_RESIDENT;
	}
	print_message("cold start: %llu of 25000 hot units stayed, %llu of 75000 cold ones\n",
		      (unsigned long long)hot_left, (unsigned long long)cold_left);
	assert_true(hot_left > 20000);
	fake_vm_free(&v);
}

static void test_resize(void **state)
{
	struct fake_vm v;

	start(&v, 3000, 0);
	fill_all(&v);
	fake_vm_reclaim(&v, 500, false);
	fake_vm_grow(&v, 9000);
	policy_on_resize(v.reclaim, 9000);
	fill_all(&v);
	v.now_ns += UINT64_C(100000000);
	/* The new units take part. */
	while (v.resident > 100)
		assert_true(fake_vm_reclaim(&v, 500, true) > 0);
	for (uint64_t u = 3000; u < 9000; u += 600)
		assert_int_equal(v.state[u] == FAKE_RESIDENT || v.state[u] == FAKE_EVICTED, 1);
	assert_int_equal(v.bad_victims, 0);
	fake_vm_free(&v);
}

/* ---- how good it is ---- */

typedef uint64_t pattern(const struct zipf *z, uint64_t k, uint64_t *rng);

static uint64_t pattern_zipf(const struct zipf *z, uint64_t k, uint64_t *rng)
{
	return zipf_next(z, rng);
}

/* Zipf on the lower half, and a scan over the upper half that takes a fifth of the time. */
static uint64_t pattern_scans(const struct zipf *z, uint64_t k, uint64_t *rng)
{
	uint64_t phase = k % 50000;

	return phase < 40000 ? zipf_next(z, rng) % (UNITS / 2) : UNITS / 2 + (phase - 40000);
}

/* At half-time all of the working set moves. */
static uint64_t pattern_shift(const struct zipf *z, uint64_t k, uint64_t *rng)
{
	uint64_t unit = zipf_next(z, rng) % (UNITS / 2);

	return k < TOUCHES / 2 ? unit : UNITS / 2 + unit;
}

static void compare(const char *name, pattern *next, uint64_t limit, double worse_by)
{
	uint64_t rng = SEED;
	struct fake_vm v;
	struct zipf z;
	struct lru l;

	zipf_init(&z, UNITS, 0.9, &rng);
	start(&v, UNITS, limit);
	lru_init(&l, UNITS, limit);
	for (uint64_t k = 0; k < TOUCHES; k++) {
		uint64_t unit = next(&z, k, &rng);

		fake_vm_touch(&v, unit);
		lru_touch(&l, unit);
	}
	print_message("%s, %llu of %d units: clock %.4f, LRU %.4f, cleared %.2f per eviction\n",
		      name, (unsigned long long)limit, UNITS, ratio(v.hits, TOUCHES),
		      ratio(l.hits, TOUCHES), ratio(v.cleared_units, v.evictions));
	assert_true(ratio(v.hits, TOUCHES) >= ratio(l.hits, TOUCHES) - worse_by);
	/* Telling hot from cold must not cost more than it is worth. */
	assert_true(v.cleared_units < 3 * v.evictions);
	assert_true(v.resident <= limit);
	assert_int_equal(v.bad_victims, 0);
	assert_int_equal(v.urgent_empty, 0);
	zipf_free(&z);
	lru_free(&l);
	fake_vm_free(&v);
}

static void test_close_to_lru_on_zipf(void **state)
{
	compare("zipf", pattern_zipf, UNITS / 2, 0.01);
	compare("zipf", pattern_zipf, UNITS / 4, 0.01);
	compare("zipf", pattern_zipf, UNITS / 10, 0.01);
}

static void test_close_to_lru_with_scans(void **state)
{
	compare("scans", pattern_scans, UNITS / 4, 0.015);
}

static void test_close_to_lru_when_the_set_moves(void **state)
{
	compare("shift", pattern_shift, UNITS / 4, 0.02);
}

/* A scan over everything while a small set is hot: the set stays, better than under LRU. */
static void test_a_scan_does_not_push_out_the_hot_set(void **state)
{
	uint64_t rng = SEED, hits = 0, lru_hits = 0;
	const uint64_t hot = 2000, touches = 60000, limit = 5000;
	struct fake_vm v;
	struct lru l;

	start(&v, UNITS, limit);
	lru_init(&l, UNITS, limit);
	for (uint64_t k = 0; k < 2 * touches; k++) {
		uint64_t unit = fake_random(&rng) % hot, scanned = hot + k / 2 % (UNITS - hot);

		hits += fake_vm_touch(&v, unit) && k >= touches;
		lru_hits += lru_touch(&l, unit) && k >= touches;
		/* In the second half, one unit of the scan for two of the hot set. */
		if (k >= touches && k % 2) {
			fake_vm_touch(&v, scanned);
			lru_touch(&l, scanned);
		}
	}
	print_message("hot hits during a scan: %.4f, LRU %.4f\n", ratio(hits, touches),
		      ratio(lru_hits, touches));
	assert_true(hits > lru_hits);
	lru_free(&l);
	fake_vm_free(&v);
}

/* Looking at what is steadily hot costs the guest a fault each time. */
static void test_back_off_from_steadily_hot_units(void **state)
{
	uint64_t cleared[2];

	for (int on = 0; on < 2; on++) {
		uint64_t rng = SEED;
		struct fake_vm v;

		start(&v, UNITS, 6000);
		set_option(v.reclaim, "back-off", on ? "on" : "off");
		/* 4000 units hot, the rest of the limit goes to and fro. */
		for (uint64_t k = 0; k < 300000; k++)
			fake_vm_touch(&v, k % 8 ? fake_random(&rng) % 4000
						: 4000 + fake_random(&rng) % (UNITS - 4000));
		cleared[on] = v.cleared_units;
		assert_int_equal(fake_stat(v.reclaim, "backed-off") > 0, on);
		fake_vm_free(&v);
	}
	print_message("cleared: %llu without back-off, %llu with\n", (unsigned long long)cleared[0],
		      (unsigned long long)cleared[1]);
	assert_true(cleared[1] < cleared[0] * 4 / 5);
}

/* ---- proactive ---- */

static void test_proactive_takes_only_what_is_idle(void **state)
{
	struct fake_vm v;
	uint64_t due;

	start(&v, 4000, 0);
	set_option(v.reclaim, "proactive", "on");
	set_option(v.reclaim, "idle-age", "120");
	fill_all(&v);
	/* Half an idle age: nothing is due yet. */
	for (int w = 0; w < 25; w++) {
		for (uint64_t u = 0; u < 1000; u++)
			fake_vm_touch(&v, u);
		fake_vm_window(&v, WINDOW_NS);
	}
	assert_int_equal(policy_tick(v.reclaim, v.now_ns), 0);
	for (int w = 0; w < 100; w++) {
		for (uint64_t u = 0; u < 1000; u++)
			fake_vm_touch(&v, u);
		fake_vm_window(&v, WINDOW_NS);
	}
	due = policy_tick(v.reclaim, v.now_ns);
	assert_true(due > 2900 && due <= 3000);
	/* What was given up by the guest meanwhile is not due any more. */
	for (uint64_t u = 3900; u < 4000; u++)
		fake_vm_set(&v, u, FAKE_UNTOUCHED);
	assert_in_range(policy_tick(v.reclaim, v.now_ns), due - 100, due - 90);
	due = policy_tick(v.reclaim, v.now_ns);
	assert_int_equal(fake_vm_reclaim(&v, due, false), due);
	assert_int_equal(v.cleared_units, 0);
	for (uint64_t u = 0; u < 1000; u++)
		assert_int_equal(v.state[u], FAKE_RESIDENT);
	assert_int_equal(fake_stat(v.reclaim, "idle-picks"), due);
	assert_int_equal(fake_stat(v.reclaim, "idle-units"), 0);
	assert_int_equal(policy_tick(v.reclaim, v.now_ns), 0);
	assert_int_equal(v.bad_victims, 0);
	fake_vm_free(&v);
}

/* Windows make the host forget, also for the back hand: what they saw must not be lost. */
static void test_windows_and_hands_together(void **state)
{
	struct fake_vm v;

	start(&v, 4000, 0);
	v.windows_clear = true;
	set_option(v.reclaim, "proactive", "on");
	set_option(v.reclaim, "distance", "90");
	fill_all(&v);
	fake_vm_window(&v, WINDOW_NS);
	fake_vm_reclaim(&v, 1000, false);
	for (uint64_t u = 0; u < v.units; u += 2)
		fake_vm_touch(&v, u);
	fake_vm_window(&v, WINDOW_NS);
	for (int k = 0; k < 4; k++)
		fake_vm_reclaim(&v, 500, false);
	assert_true(v.evictions > 500);
	for (uint64_t u = 0; u < v.units; u += 2)
		assert_int_equal(v.state[u], FAKE_RESIDENT);
	fake_vm_free(&v);
}

static void test_proactive_off_does_nothing(void **state)
{
	struct fake_vm v;

	start(&v, 1000, 0);
	fill_all(&v);
	for (int w = 0; w < 200; w++)
		fake_vm_window(&v, WINDOW_NS);
	assert_int_equal(policy_tick(v.reclaim, v.now_ns), 0);
	/* Switched on and off again, it has forgotten. */
	set_option(v.reclaim, "proactive", "on");
	for (int w = 0; w < 200; w++)
		fake_vm_window(&v, WINDOW_NS);
	assert_int_equal(policy_tick(v.reclaim, v.now_ns), 1000);
	set_option(v.reclaim, "proactive", "off");
	assert_int_equal(policy_tick(v.reclaim, v.now_ns), 0);
	assert_int_equal(fake_stat(v.reclaim, "idle-units"), 0);
	fake_vm_free(&v);
}

/* ---- for a successor ---- */

static void test_save_and_restore(void **state)
{
	char buf[UNITS + 100];
	struct fake_vm v, w;
	uint64_t rng = SEED, kept[2] = {0, 0};
	int64_t n;
	uint32_t version;

	start(&v, UNITS, 6000);
	for (uint64_t k = 0; k < 300000; k++)
		fake_vm_touch(&v, k % 8 ? fake_random(&rng) % 4000
					: 4000 + fake_random(&rng) % (UNITS - 4000));
	assert_true(policy_save(v.reclaim, buf, 100) < 0);
	n = policy_save(v.reclaim, buf, sizeof(buf));
	version = policy_state_version(v.reclaim);
	assert_true(n > (int64_t)UNITS);
	start(&w, UNITS, 0);
	assert_true(policy_restore(w.reclaim, buf, (uint64_t)n, version + 1) < 0);
	assert_true(policy_restore(w.reclaim, buf, (uint64_t)n - 1, version) < 0);
	buf[n - 1] ^= 8; /* between the hands: never saved */
	assert_true(policy_restore(w.reclaim, buf, (uint64_t)n, version) < 0);
	buf[n - 1] ^= 8;
	buf[0] ^= 1;
	assert_true(policy_restore(w.reclaim, buf, (uint64_t)n, version) < 0);
	buf[0] ^= 1;
	assert_int_equal(policy_restore(w.reclaim, buf, (uint64_t)n, version), 0);
	/* All look alike to it now but for what it was told: the hot ones stay the longest. */
	fill_all(&w);
	while (w.resident > UNITS / 2)
		assert_true(fake_vm_reclaim(&w, 64, true) > 0);
	for (uint64_t u = 0; u < UNITS; u++)
		kept[u < 4000] += w.state[u] == FAKE_RESIDENT;
	print_message("kept by a successor: %llu of 4000 hot units, %llu of the others\n",
		      (unsigned long long)kept[1], (unsigned long long)kept[0]);
	assert_true(kept[1] > 3500);
	fake_vm_free(&v);
	fake_vm_free(&w);
}

/* ---- overhead ---- */

static void test_state_is_small(void **state)
{
	const uint64_t units = 1 << 20; /* 4 GiB */
	struct fake_vm v;

	start(&v, units, 0);
	fill_all(&v);
	for (int k = 0; k < 20; k++)
		fake_vm_reclaim(&v, 5000, k % 2);
	print_message("state: %llu bytes for 4 GiB\n",
		      (unsigned long long)policy_state_bytes(v.reclaim));
	/* A quarter of the 0.1 % that policy and tracker may take together. */
	assert_true(policy_state_bytes(v.reclaim) <= units * 4096 / 1000 / 4 + 16384);
	fake_vm_free(&v);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_options),
		cmocka_unit_test(test_empty_vm),
		cmocka_unit_test(test_takes_what_was_not_touched),
		cmocka_unit_test(test_a_page_gets_its_chance),
		cmocka_unit_test(test_urgent_always_delivers),
		cmocka_unit_test(test_urgent_finds_the_last_one),
		cmocka_unit_test(test_a_unit_is_named_once),
		cmocka_unit_test(test_pinned_and_gone_units_are_never_named),
		cmocka_unit_test(test_few_ranges_are_filled_and_no_more),
		cmocka_unit_test(test_work_is_in_proportion_to_demand),
		cmocka_unit_test(test_few_ranges_are_cleared),
		cmocka_unit_test(test_without_a_tracker),
		cmocka_unit_test(test_one_block_without_a_tracker),
		cmocka_unit_test(test_begins_inside_the_memory),
		cmocka_unit_test(test_a_cold_start_at_the_limit),
		cmocka_unit_test(test_resize),
		cmocka_unit_test(test_close_to_lru_on_zipf),
		cmocka_unit_test(test_close_to_lru_with_scans),
		cmocka_unit_test(test_close_to_lru_when_the_set_moves),
		cmocka_unit_test(test_a_scan_does_not_push_out_the_hot_set),
		cmocka_unit_test(test_back_off_from_steadily_hot_units),
		cmocka_unit_test(test_proactive_takes_only_what_is_idle),
		cmocka_unit_test(test_windows_and_hands_together),
		cmocka_unit_test(test_proactive_off_does_nothing),
		cmocka_unit_test(test_save_and_restore),
		cmocka_unit_test(test_state_is_small),
	};
	int failed;

	clock_policy = fake_load(".", "clock");
	failed = cmocka_run_group_tests(tests, NULL, NULL);
	policy_unload(clock_policy);
	return failed;
}
