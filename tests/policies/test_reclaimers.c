/* SPDX-License-Identifier: BSD-3-Clause */
/* test_reclaimers.c: age, pressure and temperature: what each is for. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "fake_vm.h"

#define UNITS 20000
#define SEED  UINT64_C(88172645463325252)
#define SEC   UINT64_C(1000000000)

static const char *const names[] = {"temperature", "age", "pressure"};
#define N (sizeof(names) / sizeof(names[0]))
static struct policy *policies[N];
enum { TEMPERATURE, AGE, PRESSURE };

static void start(struct fake_vm *v, size_t policy, uint64_t units, uint64_t limit)
{
	struct error e = {0};

	fake_vm_init(v, units);
	v->limit = limit;
	v->headroom = limit / 64;
	if (policy_attach(policies[policy], &v->host, &v->vm, EBB_POLICY_RECLAIM, NULL, 0,
			  &v->reclaim, &e))
		fail_msg("%s", e.desc);
}

static void set_option(struct fake_vm *v, const char *name, const char *value)
{
	const struct ebb_policy_option opt = {name, value};
	struct error e = {0};

	if (policy_config(v->reclaim, &opt, &e))
		fail_msg("%s", e.desc);
}

static void test_options(void **state)
{
	static const char *const good[N][6][2] = {{{"memory", "4"},
						   {"turn", "100"},
						   {"back-off", "off"},
						   {"proactive", "on"},
						   {"interval", "9"},
						   {"cpu", "2"}},
						  {{"target", "0"},
						   {"min-age", "254"},
						   {"interval", "1"},
						   {"cpu", "50"},
						   {"proactive", "off"},
						   {"proactive", "on"}},
						  {{"target", "1000000"},
						   {"step", "1"},
						   {"interval", "60"},
						   {"min-age", "1"},
						   {"cpu", "1"},
						   {"cpu", "50"}}};
	static const char *const bad[N][3][2] = {
		{{"memory", "9"}, {"turn", "0"}, {"colour", "red"}},
		{{"target", "1001"}, {"min-age", "255"}, {"colour", "red"}},
		{{"target", "0"}, {"step", "x"}, {"colour", "red"}}};

	for (size_t p = 0; p < N; p++) {
		struct fake_vm v;

		start(&v, p, 1000, 0);
		for (int k = 0; k < 6; k++)
			set_option(&v, good[p][k][0], good[p][k][1]);
		for (int k = 0; k < 3; k++) {
			const struct ebb_policy_option opt = {bad[p][k][0], bad[p][k][1]};
			struct error e = {0};

			assert_true(policy_config(v.reclaim, &opt, &e) < 0);
			assert_non_null(strstr(e.desc, bad[p][k][0]));
		}
		fake_vm_free(&v);
	}
}

/* Faults of each on a skewed load, against exact LRU. */
static void test_close_to_lru_on_zipf(void **state)
{
	static const double most[N] = {0.93, 1.08, 1.08};

	for (size_t p = 0; p < N; p++) {
		uint64_t rng = SEED;
		struct fake_vm v;
		struct zipf z;
		struct lru l;

		start(&v, p, UNITS, UNITS / 2);
		lru_init(&l, UNITS, UNITS / 2);
		zipf_init(&z, UNITS, 0.99, &rng);
		for (uint64_t k = 0; k < 2000000; k++) {
			uint64_t unit = zipf_next(&z, &rng);

			fake_vm_touch(&v, unit);
			lru_touch(&l, unit);
		}
		print_message("%s: faults %.3f of LRU's\n", names[p],
			      (double)v.faults / (double)l.faults);
		assert_true((double)v.faults <= most[p] * (double)l.faults);
		assert_int_equal(v.bad_victims, 0);
		zipf_free(&z);
		lru_free(&l);
		fake_vm_free(&v);
	}
}

static void test_urgent_always_delivers(void **state)
{
	for (size_t p = 0; p < N; p++) {
		struct fake_vm v;

		start(&v, p, UNITS, 0);
		for (uint64_t u = 0; u < UNITS; u++)
			fake_vm_touch(&v, u);
		/* Right after the start, all in use, down to the last one. */
		while (v.resident) {
			assert_true(fake_vm_reclaim(&v, 64, true) > 0);
			for (uint64_t u = 0; u < UNITS; u++)
				v.accessed[u] = v.state[u] == FAKE_RESIDENT;
		}
		fake_vm_free(&v);
	}
}

/* Without a tracker: what came in last stays the longest. */
static void test_without_a_tracker(void **state)
{
	for (size_t p = 0; p < N; p++) {
		uint64_t kept = 0;
		struct fake_vm v;

		start(&v, p, UNITS, 0);
		v.tracker = false;
		for (uint64_t u = 0; u < UNITS; u++)
			fake_vm_touch(&v, u);
		for (int k = 0; k < 4; k++) {
			fake_vm_reclaim(&v, 64, true);
			v.now_ns += SEC;
		}
		for (uint64_t u = 0; u < 1000; u++) {
			fake_vm_set(&v, u, FAKE_EVICTED);
			fake_vm_touch(&v, u);
		}
		while (v.resident > UNITS / 2)
			assert_true(fake_vm_reclaim(&v, 256, true) > 0);
		for (uint64_t u = 0; u < 1000; u++)
			kept += v.state[u] == FAKE_RESIDENT;
		assert_true(kept >= 500);
		fake_vm_free(&v);
	}
}

/* One second of the VM: some units are used, then the policy ticks. */
static void second(struct fake_vm *v, uint64_t first, uint64_t n)
{
	for (uint64_t u = first; u < first + n; u++)
		fake_vm_touch(v, u);
	v->now_ns += SEC;
}

static uint64_t tick_and_take(struct fake_vm *v)
{
	uint64_t want = policy_tick(v->reclaim, v->now_ns), before = v->evictions;

	while (want) {
		uint64_t gone = fake_vm_reclaim(v, want < 256 ? want : 256, false);

		if (!gone)
			break;
		want -= gone < want ? gone : want;
	}
	return v->evictions - before;
}

static void test_age_takes_what_is_idle_and_no_more(void **state)
{
	struct fake_vm v;

	start(&v, AGE, UNITS, 0);
	set_option(&v, "interval", "1");
	for (uint64_t u = 0; u < UNITS; u++)
		fake_vm_touch(&v, u);
	for (int s = 0; s < 60; s++) {
		second(&v, 0, UNITS / 4);
		tick_and_take(&v);
		if (s < 5)
			assert_int_equal(v.evictions, 0);
	}
	assert_true(v.evictions >= UNITS / 4 * 3 - 100);
	for (uint64_t u = 0; u < UNITS / 4; u++)
		assert_int_equal(v.state[u], FAKE_RESIDENT);
	fake_vm_free(&v);
}

/* What comes back every 20 rounds must not go after 8: the threshold rises above that. */
static void test_age_learns_the_distance(void **state)
{
	uint64_t early = 0, late = 0;
	struct fake_vm v;

	start(&v, AGE, UNITS, 0);
	set_option(&v, "interval", "1");
	for (uint64_t u = 0; u < UNITS; u++)
		fake_vm_touch(&v, u);
	for (int s = 0; s < 400; s++) {
		uint64_t before = v.faults;

		second(&v, 0, UNITS / 4);
		if (s % 20 == 19)
			second(&v, UNITS / 4, UNITS / 4);
		*(s < 100 ? &early : &late) += v.faults - before;
		tick_and_take(&v);
	}
	print_message("age: %llu refaults in 100 s, %llu in the next 300; cold from %llu rounds\n",
		      (unsigned long long)early, (unsigned long long)late,
		      (unsigned long long)fake_stat(v.reclaim, "cold-age"));
	assert_true(fake_stat(v.reclaim, "cold-age") > 19);
	assert_true(late < UNITS / 4);
	/* And the half that nobody uses has gone all the same. */
	assert_true(v.resident <= UNITS / 2 + 100);
	fake_vm_free(&v);
}

static void test_pressure_takes_and_gives_back(void **state)
{
	struct fake_vm v;
	uint64_t resident, asked;

	start(&v, PRESSURE, UNITS, 0);
	set_option(&v, "step", "10000");
	set_option(&v, "interval", "1");
	for (uint64_t u = 0; u < UNITS; u++)
		fake_vm_touch(&v, u);
	for (int s = 0; s < 60; s++) {
		second(&v, 0, UNITS / 4);
		tick_and_take(&v);
	}
	/* Nobody felt anything: it has taken, a percent a second at most. */
	resident = v.resident;
	assert_true(resident < UNITS * 9 / 10 && resident > UNITS / 2);
	for (uint64_t u = 0; u < UNITS / 4; u++)
		assert_int_equal(v.state[u], FAKE_RESIDENT);
	assert_int_equal(v.bulk_asked, 0);
	/* One percent of the time is lost: ten times the target. */
	for (int s = 0; s < 10; s++) {
		v.pressure.stall_ns += SEC / 100;
		second(&v, 0, UNITS / 4);
		assert_int_equal(tick_and_take(&v), 0);
	}
	assert_true(v.bulk_asked > 100 && v.resident > resident);
	assert_int_equal(fake_stat(v.reclaim, "given-back"), v.bulk_asked);
	/* The same by the kernel's own measure. */
	asked = v.bulk_asked;
	v.pressure.known = EBB_PRESSURE_PSI;
	second(&v, 0, 10);
	tick_and_take(&v);
	v.pressure.psi_some_ns += SEC / 100;
	second(&v, 0, 10);
	assert_int_equal(tick_and_take(&v), 0);
	assert_true(v.bulk_asked > asked);
	/* And when it is over, it begins to take again. */
	resident = v.resident;
	for (int s = 0; s < 60; s++) {
		second(&v, 0, UNITS / 4);
		tick_and_take(&v);
	}
	assert_true(v.resident < resident);
	fake_vm_free(&v);
}

/* Two sets, used equally lately, one four times as often: that one stays. */
static void test_temperature_knows_how_often(void **state)
{
	uint64_t often = 0, seldom = 0;
	struct fake_vm v;

	start(&v, TEMPERATURE, UNITS, 0);
	set_option(&v, "interval", "1");
	for (uint64_t u = 0; u < UNITS; u++)
		fake_vm_touch(&v, u);
	for (int s = 0; s < 161; s++) {
		if (s % 4 == 0)
			for (uint64_t u = 0; u < UNITS; u += 2)
				fake_vm_touch(&v, u);
		if (s % 16 == 0)
			for (uint64_t u = 1; u < UNITS; u += 2)
				fake_vm_touch(&v, u);
		v.now_ns += SEC;
		policy_tick(v.reclaim, v.now_ns);
	}
	while (v.resident > UNITS / 2)
		assert_true(fake_vm_reclaim(&v, 64, true) > 0);
	for (uint64_t u = 0; u < UNITS; u++)
		*(u % 2 ? &seldom : &often) += v.state[u] == FAKE_RESIDENT;
	print_message("temperature: %llu of those often used stay, %llu of the others\n",
		      (unsigned long long)often, (unsigned long long)seldom);
	assert_true(often > 9 * seldom);
	fake_vm_free(&v);
}

/* A look at time costs a part of a CPU, whatever the options say, and hot units are left alone. */
static void test_looks_are_bounded(void **state)
{
	for (size_t p = 0; p < N; p++) {
		struct fake_vm v;

		start(&v, p, UNITS, 0);
		for (uint64_t u = 0; u < UNITS; u++)
			fake_vm_touch(&v, u);
		for (int s = 0; s < 200; s++) {
			second(&v, 0, UNITS);
			policy_tick(v.reclaim, v.now_ns);
		}
		/* A round in four seconds (pressure: too), and of 50 rounds most are left out. */
		assert_true(fake_stat(v.reclaim, "rounds") >= 40);
		assert_true(fake_stat(v.reclaim, "rounds") <= 52);
		assert_true(v.cleared_units < 20 * UNITS);
		fake_vm_free(&v);
	}
}

static void test_save_and_restore(void **state)
{
	for (size_t p = 0; p < N; p++) {
		const uint64_t max = 2 * UNITS + 4096;
		char *buf = malloc(max), *copy = malloc(max);
		struct fake_vm v, w;
		int64_t n;
		uint32_t version;

		start(&v, p, UNITS, 0);
		for (uint64_t u = 0; u < UNITS; u++)
			fake_vm_touch(&v, u);
		for (int s = 0; s < 200; s++) {
			second(&v, 0, UNITS / 2);
			policy_tick(v.reclaim, v.now_ns);
		}
		assert_true(policy_save(v.reclaim, buf, 100) < 0);
		n = policy_save(v.reclaim, buf, max);
		assert_true(n > UNITS);
		version = policy_state_version(v.reclaim);
		start(&w, p, UNITS, 0);
		memcpy(w.state, v.state, UNITS);
		w.resident = v.resident;
		w.now_ns = v.now_ns;
		assert_true(policy_restore(w.reclaim, buf, (uint64_t)n, version + 1) < 0);
		for (int64_t cut = 0; cut < n; cut += 1 + n / 50)
			assert_true(policy_restore(w.reclaim, buf, (uint64_t)cut, version) < 0);
		for (int bit = 0; bit < 32; bit++) {
			memcpy(copy, buf, (size_t)n);
			copy[bit / 8] ^= (char)(1 << (bit % 8));
			assert_true(policy_restore(w.reclaim, copy, (uint64_t)n, version) < 0);
		}
		assert_int_equal(policy_restore(w.reclaim, buf, (uint64_t)n, version), 0);
		/* It knows at once what its predecessor knew: the idle half goes. */
		memset(w.accessed, 0, UNITS);
		for (uint64_t u = 0; u < UNITS / 2; u++)
			w.accessed[u] = 1;
		while (w.resident > UNITS * 6 / 10)
			assert_true(fake_vm_reclaim(&w, 64, true) > 0);
		for (uint64_t u = 0; u < UNITS / 2; u++)
			assert_int_equal(w.state[u], FAKE_RESIDENT);
		fake_vm_free(&v);
		fake_vm_free(&w);
		free(buf);
		free(copy);
	}
}

static void test_state_is_small(void **state)
{
	const uint64_t units = 1 << 18; /* 1 GiB */

	for (size_t p = 0; p < N; p++) {
		struct fake_vm v;

		start(&v, p, units, 0);
		assert_true(policy_state_bytes(v.reclaim) <= units * 4096 / 1000 * 3 / 5);
		fake_vm_free(&v);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_options),
		cmocka_unit_test(test_urgent_always_delivers),
		cmocka_unit_test(test_without_a_tracker),
		cmocka_unit_test(test_close_to_lru_on_zipf),
		cmocka_unit_test(test_age_takes_what_is_idle_and_no_more),
		cmocka_unit_test(test_age_learns_the_distance),
		cmocka_unit_test(test_pressure_takes_and_gives_back),
		cmocka_unit_test(test_temperature_knows_how_often),
		cmocka_unit_test(test_looks_are_bounded),
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
