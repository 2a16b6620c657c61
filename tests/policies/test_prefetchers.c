/* SPDX-License-Identifier: BSD-3-Clause */
/* test_prefetchers.c: trend, elastic, replay and correlation: what each is for. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "fake_vm.h"

#define UNITS 65536
#define SEED  UINT64_C(88172645463325252)
#define ASKS  64

static const char *const names[] = {"trend", "elastic", "replay", "correlation"};
#define N (sizeof(names) / sizeof(names[0]))
static struct policy *policies[N];
enum { TREND, ELASTIC, REPLAY, CORRELATION };

static void start(struct fake_vm *v, size_t policy, uint64_t units)
{
	struct error e = {0};

	fake_vm_init(v, units);
	for (uint64_t u = 0; u < units; u++)
		fake_vm_set(v, u, FAKE_EVICTED);
	if (policy_attach(policies[policy], &v->host, &v->vm, EBB_POLICY_PREFETCH, NULL, 0,
			  &v->prefetch, &e))
		fail_msg("%s", e.desc);
}

static void set_option(struct fake_vm *v, const char *name, const char *value)
{
	const struct ebb_policy_option opt = {name, value};
	struct error e = {0};

	if (policy_config(v->prefetch, &opt, &e))
		fail_msg("%s", e.desc);
}

static uint32_t fault(struct fake_vm *v, uint64_t unit, uint32_t thread, struct ebb_range *out)
{
	const struct ebb_fault f = {.unit = unit, .thread = thread, .flags = EBB_FAULT_LOADED};

	return policy_prefetch_fault(v->prefetch, &f, out, ASKS);
}

static void test_options(void **state)
{
	static const char *const good[N][2][2] = {{{"max", "512"}, {"max", "1"}},
						  {{"max-order", "0"}, {"aggressiveness", "9"}},
						  {{"ahead", "64"}, {"ahead", "0"}},
						  {{"depth", "64"}, {"confidence", "8"}}};
	static const char *const bad[N][2][2] = {{{"max", "0"}, {"colour", "red"}},
						 {{"max-order", "10"}, {"colour", "red"}},
						 {{"ahead", "65"}, {"colour", "red"}},
						 {{"depth", "0"}, {"colour", "red"}}};

	for (size_t p = 0; p < N; p++) {
		struct fake_vm v;

		start(&v, p, 1000);
		for (int k = 0; k < 2; k++)
			set_option(&v, good[p][k][0], good[p][k][1]);
		for (int k = 0; k < 2; k++) {
			const struct ebb_policy_option opt = {bad[p][k][0], bad[p][k][1]};
			struct error e = {0};

			assert_true(policy_config(v.prefetch, &opt, &e) < 0);
			assert_non_null(strstr(e.desc, bad[p][k][0]));
		}
		fake_vm_free(&v);
	}
}

/* Evicts what was touched longest ago, so that some 1000 units are resident. */
static void keep_few(struct fake_vm *v, uint64_t *ring, uint64_t n, uint64_t unit)
{
	uint64_t old = ring[n % 1000];

	if (n >= 1000 && v->state[old] == FAKE_RESIDENT)
		fake_vm_set(v, old, FAKE_EVICTED);
	ring[n % 1000] = unit;
}

static void test_silent_on_random_faults(void **state)
{
	static uint64_t ring[1000];

	for (size_t p = 0; p < N; p++) {
		uint64_t rng = SEED, advised;
		struct ebb_range out[ASKS];
		struct fake_vm v;

		start(&v, p, UNITS);
		for (uint64_t k = 0; k < 50000; k++) {
			uint64_t unit = fake_random(&rng) % UNITS;

			fault(&v, unit, 1 + (uint32_t)(k % 4), out);
			fake_vm_set(&v, unit, FAKE_RESIDENT);
			keep_few(&v, ring, k, unit);
		}
		advised = fake_stat(v.prefetch, "advised");
		print_message("%s: %llu units advised on 50000 random faults\n", names[p],
			      (unsigned long long)advised);
		/* Two percent of the faults. */
		assert_true(advised < 1000);
		fake_vm_free(&v);
	}
}

/* Faults that a scan with this step takes, by a thread, from a cold start. */
static double scan(size_t policy, int64_t step)
{
	uint64_t touched = 0;
	struct fake_vm v;
	double part;

	start(&v, policy, UNITS);
	for (uint64_t unit = step < 0 ? UNITS - 1 : 0; unit < UNITS; unit += (uint64_t)step) {
		fake_vm_touch(&v, unit);
		touched++;
	}
	part = (double)v.faults / (double)touched;
	print_message("%s, step %lld: %.3f of touches fault\n", names[policy], (long long)step,
		      part);
	fake_vm_free(&v);
	return part;
}

static void test_scans_fault_little(void **state)
{
	assert_true(scan(TREND, 1) < 0.1);
	assert_true(scan(TREND, -1) < 0.1);
	assert_true(scan(TREND, 7) < 0.1);
	assert_true(scan(TREND, -13) < 0.1);
}

/* One fault in four goes elsewhere, and four threads run at a time. */
static void test_trend_in_spite_of_noise(void **state)
{
	uint64_t rng = SEED, at[4] = {0, 16384, 32768, 49152}, hits = 0, touches = 0;
	struct fake_vm v;
	struct ebb_range out[ASKS];

	start(&v, TREND, UNITS);
	for (int k = 0; k < 8000; k++) {
		uint32_t t = (uint32_t)(k % 4);
		uint32_t n;

		if (fake_random(&rng) % 8 == 0) {
			fault(&v, fake_random(&rng) % UNITS, 100 + t, out);
			continue;
		}
		touches++;
		hits += v.state[at[t]] == FAKE_RESIDENT;
		if (v.state[at[t]] != FAKE_RESIDENT) {
			n = fault(&v, at[t], 100 + t, out);
			for (uint32_t r = 0; r < n; r++)
				for (uint64_t u = 0; u < out[r].count; u++)
					fake_vm_set(&v, out[r].first + u, FAKE_RESIDENT);
		}
		at[t] += 5;
	}
	print_message("trend among noise: %.3f of touches find their unit there\n",
		      (double)hits / (double)touches);
	assert_true(hits > touches / 2);
	fake_vm_free(&v);
}

static void test_trend_shrinks_when_unused(void **state)
{
	struct ebb_range out[ASKS];
	struct fake_vm v;
	uint64_t units[64];

	start(&v, TREND, UNITS);
	assert_int_equal(fake_stat(v.prefetch, "cap"), 64);
	for (uint64_t k = 0; k < 64; k++)
		units[k] = k;
	policy_on_outcome(v.prefetch, EBB_OUTCOME_UNUSED, units, 64);
	assert_int_equal(fake_stat(v.prefetch, "cap"), 32);
	assert_int_equal(fake_stat(v.prefetch, "accuracy-permille"), 0);
	policy_on_outcome(v.prefetch, EBB_OUTCOME_USED, units, 64);
	assert_int_equal(fake_stat(v.prefetch, "cap"), 64);
	assert_int_equal(fake_stat(v.prefetch, "accuracy-permille"), 500);
	/* Asked for and faulted all the same: late. */
	for (uint64_t u = 100; u < 105; u++)
		fault(&v, u, 1, out);
	assert_int_equal(fault(&v, 105, 1, out), 0);
	assert_int_equal(fake_stat(v.prefetch, "late"), 1);
	fake_vm_free(&v);
}

static void test_elastic_grows_with_its_buddy(void **state)
{
	struct ebb_range out[ASKS];
	struct fake_vm v;

	start(&v, ELASTIC, UNITS);
	set_option(&v, "aggressiveness", "1");
	/* Alone: one unit. Its buddy comes: a pair. */
	assert_int_equal(fault(&v, 8, 1, out), 0);
	fake_vm_set(&v, 8, FAKE_RESIDENT);
	assert_int_equal(fault(&v, 9, 1, out), 0);
	fake_vm_set(&v, 9, FAKE_RESIDENT);
	assert_int_equal(fake_stat(v.prefetch, "merges"), 1);
	/* It stays one while it is evicted. */
	fake_vm_set(&v, 8, FAKE_EVICTED);
	fake_vm_set(&v, 9, FAKE_EVICTED);
	assert_int_equal(fault(&v, 9, 1, out), 1);
	assert_int_equal(out[0].first, 8);
	assert_int_equal(out[0].count, 1);
	/* 10 and 11 are no pair yet, and 7 is no buddy of 8. */
	fake_vm_set(&v, 7, FAKE_RESIDENT);
	assert_int_equal(fake_stat(v.prefetch, "merges"), 1);
	/* What was not asked for goes unused: single units again. */
	policy_on_outcome(v.prefetch, EBB_OUTCOME_UNUSED, (const uint64_t[]){8}, 1);
	assert_int_equal(fake_stat(v.prefetch, "splits"), 1);
	assert_int_equal(fault(&v, 9, 1, out), 0);
	fake_vm_free(&v);
}

/* Rounds over neighbouring units that are evicted in between: ever fewer faults. */
static void test_elastic_learns_a_region(void **state)
{
	uint64_t faults[6];
	struct fake_vm v;

	start(&v, ELASTIC, UNITS);
	/* The largest extents take too long for the fault path under a sanitizer. */
	set_option(&v, "max-order", "6");
	for (int round = 0; round < 6; round++) {
		uint64_t before = v.faults;

		for (uint64_t u = 4096; u < 8192; u++)
			fake_vm_touch(&v, u);
		faults[round] = v.faults - before;
		for (uint64_t u = 4096; u < 8192; u++)
			fake_vm_set(&v, u, FAKE_EVICTED);
	}
	print_message("elastic: faults in rounds over 4096 units: %llu, %llu, ... %llu\n",
		      (unsigned long long)faults[0], (unsigned long long)faults[1],
		      (unsigned long long)faults[5]);
	/* Four orders a round, up to the largest extent: nine in ten faults are avoided at once. */
	assert_int_equal(faults[1], 4096 / 16);
	assert_int_equal(faults[2], 4096 / 64);
	assert_int_equal(faults[5], 4096 / 64);
	/* Of an extent of 64, a quarter used is too little; more is not. */
	for (uint64_t u = 4096; u < 4096 + 40; u++)
		policy_on_outcome(v.prefetch, EBB_OUTCOME_UNUSED, &u, 1);
	assert_int_equal(fake_stat(v.prefetch, "splits"), 0);
	for (uint64_t u = 4096 + 40; u < 4096 + 50; u++)
		policy_on_outcome(v.prefetch, EBB_OUTCOME_UNUSED, &u, 1);
	assert_true(fake_stat(v.prefetch, "splits") > 0);
	fake_vm_free(&v);
}

static void test_replay_brings_back_in_order(void **state)
{
	struct ebb_range out[ASKS];
	struct fake_vm v;
	const uint64_t mib = 1 << 20;

	start(&v, REPLAY, UNITS);
	policy_on_limit(v.prefetch, 0, 64 * mib);
	assert_int_equal(v.bulk_asked, 0);
	/* Nothing is known yet but what was evicted last. */
	policy_on_outcome(v.prefetch, EBB_OUTCOME_EVICTED, (const uint64_t[]){500, 400, 300}, 3);
	policy_on_limit(v.prefetch, 64 * mib, 65 * mib);
	assert_int_equal(v.bulk_asked, 256);
	assert_int_equal(v.bulk_order[0], 300);
	assert_int_equal(v.bulk_order[1], 400);
	assert_int_equal(v.bulk_order[2], 500);
	/* These are waited for after the raise: the next time they come first, in that order. */
	fault(&v, 9000, 1, out);
	fault(&v, 8000, 1, out);
	fault(&v, 8500, 1, out);
	v.bulk_asked = 0;
	policy_on_limit(v.prefetch, 65 * mib, 64 * mib);
	assert_int_equal(v.bulk_asked, 0);
	policy_on_limit(v.prefetch, 64 * mib, 66 * mib);
	assert_int_equal(v.bulk_asked, 512);
	assert_int_equal(v.bulk_order[0], 9000);
	assert_int_equal(v.bulk_order[1], 8000);
	assert_int_equal(v.bulk_order[2], 8500);
	assert_int_equal(fake_stat(v.prefetch, "restores"), 2);
	fake_vm_free(&v);
}

/* Room for all: each comes with its neighbours. */
static void test_replay_brings_neighbours(void **state)
{
	static const uint64_t group[] = {288, 400, 496};
	struct fake_vm v;

	start(&v, REPLAY, UNITS);
	policy_on_outcome(v.prefetch, EBB_OUTCOME_EVICTED, (const uint64_t[]){500, 400, 300}, 3);
	policy_on_limit(v.prefetch, 64 << 20, 0);
	for (uint64_t k = 0; k < 48; k++)
		assert_int_equal(v.bulk_order[k], group[k / 16] + k % 16);
	assert_int_equal(v.bulk_asked, UNITS);
	fake_vm_free(&v);
}

/* The queue is full: it goes on where it was, until all is back. */
static void test_replay_goes_on(void **state)
{
	struct fake_vm v;
	int ticks = 0;

	start(&v, REPLAY, UNITS);
	/* Every other unit, so that no two of them make one range. */
	for (uint64_t u = 0; u < UNITS; u += 2)
		fake_vm_set(&v, u, FAKE_UNTOUCHED);
	v.bulk_room = 1000;
	policy_on_limit(v.prefetch, 64 << 20, 0);
	assert_int_equal(v.bulk_asked, 999);
	while (v.resident < UNITS / 2) {
		v.bulk_room = 1000;
		policy_tick(v.prefetch, v.now_ns);
		assert_true(ticks++ < 100);
	}
	assert_int_equal(fake_stat(v.prefetch, "restoring"), 0);
	/* A limit that is lowered ends it. */
	for (uint64_t u = 1; u < UNITS; u += 2)
		fake_vm_set(&v, u, FAKE_EVICTED);
	v.bulk_room = 10;
	policy_on_limit(v.prefetch, 64 << 20, 0);
	policy_on_limit(v.prefetch, 128 << 20, 64 << 20);
	v.bulk_room = 1000;
	v.bulk_asked = 0;
	policy_tick(v.prefetch, v.now_ns);
	assert_int_equal(v.bulk_asked, 0);
	fake_vm_free(&v);
}

/* Sets of scattered units that are used as wholes. */
static void test_correlation_finds_sets(void **state)
{
	uint64_t rng = SEED, late_faults = 0, late_touches = 0;
	static uint64_t unit[20][40];
	struct fake_vm v;

	start(&v, CORRELATION, UNITS);
	for (int s = 0; s < 20; s++)
		for (int k = 0; k < 40; k++)
			unit[s][k] = fake_random(&rng) % UNITS;
	for (int t = 0; t < 400; t++) {
		uint64_t s = fake_random(&rng) % 20, before = v.faults;

		for (int k = 0; k < 40; k++)
			fake_vm_touch(&v, unit[s][k]);
		if (t >= 200) {
			late_faults += v.faults - before;
			late_touches += 40;
		}
		for (int k = 0; k < 40; k++)
			fake_vm_set(&v, unit[s][k], FAKE_EVICTED);
	}
	print_message("correlation: %.3f of touches fault\n",
		      (double)late_faults / (double)late_touches);
	assert_true(late_faults < late_touches / 4);
	fake_vm_free(&v);
}

static void test_save_and_restore(void **state)
{
	for (size_t p = 1; p < N; p++) {
		const uint64_t max = 1 << 20;
		char *buf = malloc(max);
		struct ebb_range out[ASKS];
		struct fake_vm v, w;
		uint32_t version;
		int64_t n;

		start(&v, p, UNITS);
		start(&w, p, UNITS);
		policy_on_limit(v.prefetch, 64 << 20, 65 << 20);
		for (uint64_t u = 20000; u < 20100; u++)
			fake_vm_touch(&v, u);
		policy_on_limit(v.prefetch, 65 << 20, 66 << 20);
		assert_true(policy_save(v.prefetch, buf, 10) < 0);
		n = policy_save(v.prefetch, buf, max);
		version = policy_state_version(v.prefetch);
		assert_true(n > 100);
		assert_true(policy_restore(w.prefetch, buf, (uint64_t)n - 1, version) < 0);
		assert_true(policy_restore(w.prefetch, buf, 0, version) < 0);
		assert_int_equal(policy_restore(w.prefetch, buf, (uint64_t)n, version), 0);
		/* The successor knows what its predecessor had learned. */
		if (p == REPLAY) {
			policy_on_limit(w.prefetch, 64 << 20, 65 << 20);
			assert_int_equal(w.bulk_order[0], 20000);
			assert_int_equal(w.bulk_order[1], 20001);
		} else {
			uint64_t asked = 0;

			for (uint64_t u = 20008; u < 20024; u++)
				for (uint32_t r = fault(&w, u, 1, out); r; r--)
					asked += out[r - 1].count;
			assert_true(asked > 0);
		}
		/* An extent that cannot be. */
		if (p == ELASTIC) {
			buf[1] = 5;
			assert_true(policy_restore(w.prefetch, buf, (uint64_t)n, version) < 0);
		}
		fake_vm_free(&v);
		fake_vm_free(&w);
		free(buf);
	}
}

static void test_state_is_small(void **state)
{
	const uint64_t units = 1 << 18; /* 1 GiB */

	for (size_t p = 0; p < N; p++) {
		struct fake_vm v;

		start(&v, p, units);
		/* With the reclaimers' two bytes a unit, within 0.1 % of RAM. */
		assert_true(policy_state_bytes(v.prefetch) <= units * 2 + 32768);
		fake_vm_free(&v);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_options),
		cmocka_unit_test(test_silent_on_random_faults),
		cmocka_unit_test(test_scans_fault_little),
		cmocka_unit_test(test_trend_in_spite_of_noise),
		cmocka_unit_test(test_trend_shrinks_when_unused),
		cmocka_unit_test(test_elastic_grows_with_its_buddy),
		cmocka_unit_test(test_elastic_learns_a_region),
		cmocka_unit_test(test_replay_brings_back_in_order),
		cmocka_unit_test(test_replay_brings_neighbours),
		cmocka_unit_test(test_replay_goes_on),
		cmocka_unit_test(test_correlation_finds_sets),
		cmocka_unit_test(test_save_and_restore),
		cmocka_unit_test(test_state_is_small),
	};
	int failed;

	for (size_t p = 0; p < N; p++)
		policies[p] = fake_load(".", names[p]);
	failed = cmocka_run_group_tests(tests, NULL, NULL);
	for (size_t p = 0; p < N; p++)
		policy_unload(policies[p]);
	return failed;
}
