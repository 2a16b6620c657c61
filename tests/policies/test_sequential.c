/* SPDX-License-Identifier: BSD-3-Clause */
/* test_sequential.c: the prefetcher sequential: finds runs, keeps silent otherwise. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <cmocka.h>

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "fake_vm.h"

#define UNITS 100000
#define SEED  UINT64_C(88172645463325252)

static struct policy *sequential;

static void set_option(struct policy_instance *i, const char *name, const char *value)
{
	const struct ebb_policy_option opt = {name, value};
	struct error e = {0};

	if (policy_config(i, &opt, &e))
		fail_msg("%s", e.desc);
}

static void start(struct fake_vm *v)
{
	struct error e = {0};

	for (uint64_t u = 0; u < v->units; u++)
		fake_vm_set(v, u, FAKE_EVICTED);
	if (policy_attach(sequential, &v->host, &v->vm, EBB_POLICY_PREFETCH, NULL, 0, &v->prefetch,
			  &e))
		fail_msg("%s", e.desc);
}

static uint32_t fault(struct fake_vm *v, uint64_t unit, uint32_t thread, uint32_t flags,
		      struct ebb_range *out)
{
	const struct ebb_fault f = {.unit = unit, .thread = thread, .flags = flags};

	return policy_prefetch_fault(v->prefetch, &f, out, 16);
}

static void test_options(void **state)
{
	static const char *const bad[][2] = {
		{"max", "0"},	     {"max", "513"},   {"max", "8x"},	 {"max-bytes", "4"},
		{"max-bytes", "2G"}, {"trigger", "1"}, {"stride", "65"}, {"colour", "red"}};
	struct fake_vm v;

	fake_vm_init(&v, 1000);
	start(&v);
	set_option(v.prefetch, "max", "512");
	set_option(v.prefetch, "max-bytes", "1M");
	set_option(v.prefetch, "trigger", "2");
	set_option(v.prefetch, "stride", "64");
	for (size_t k = 0; k < sizeof(bad) / sizeof(bad[0]); k++) {
		const struct ebb_policy_option opt = {bad[k][0], bad[k][1]};
		struct error e = {0};

		assert_true(policy_config(v.prefetch, &opt, &e) < 0);
		assert_non_null(strstr(e.desc, bad[k][0]));
	}
	fake_vm_free(&v);
}

static void test_forward_run_doubles_its_window(void **state)
{
	struct ebb_range out[16];
	struct fake_vm v;
	uint64_t at = 1000, window = 4;

	fake_vm_init(&v, UNITS);
	start(&v);
	assert_int_equal(fault(&v, at, 0, EBB_FAULT_LOADED, out), 0);
	assert_int_equal(fault(&v, at + 1, 0, EBB_FAULT_LOADED, out), 0);
	at += 2;
	for (int k = 0; k < 8; k++) {
		assert_int_equal(fault(&v, at, 0, EBB_FAULT_LOADED, out), 1);
		assert_int_equal(out[0].first, at + 1);
		assert_int_equal(out[0].count, window);
		at += window + 1;
		window = window * 2 > 64 ? 64 : window * 2;
	}
	assert_int_equal(fake_stat(v.prefetch, "runs"), 1);
	fake_vm_free(&v);
}

static void test_backward_run(void **state)
{
	struct ebb_range out[16];
	struct fake_vm v;

	fake_vm_init(&v, UNITS);
	start(&v);
	fault(&v, 1000, 0, EBB_FAULT_LOADED, out);
	fault(&v, 999, 0, EBB_FAULT_LOADED, out);
	assert_int_equal(fault(&v, 998, 0, EBB_FAULT_LOADED, out), 1);
	assert_int_equal(out[0].first, 994);
	assert_int_equal(out[0].count, 4);
	/* Down to the first unit and not beyond. */
	fault(&v, 3, 0, EBB_FAULT_LOADED, out);
	fault(&v, 2, 0, EBB_FAULT_LOADED, out);
	assert_int_equal(fault(&v, 1, 0, EBB_FAULT_LOADED, out), 1);
	assert_int_equal(out[0].first, 0);
	assert_int_equal(out[0].count, 1);
	fake_vm_free(&v);
}

/* First uses of fetched units carry the run on before it has to wait. */
static void test_hits_ask_for_more_in_time(void **state)
{
	struct ebb_range out[16];
	struct fake_vm v;
	uint64_t asked_to = 0, waits = 0;

	fake_vm_init(&v, UNITS);
	start(&v);
	for (uint64_t u = 5000; u < 9000; u++) {
		bool there = u < asked_to;
		uint32_t n = fault(&v, u, 0, there ? EBB_FAULT_PREFETCHED : EBB_FAULT_LOADED, out);

		waits += !there;
		for (uint32_t r = 0; r < n; r++)
			asked_to = out[r].first + out[r].count;
	}
	/* The run's first three, and none after. */
	assert_int_equal(waits, 3);
	fake_vm_free(&v);
}

/* The guest overtakes what was asked for: what comes next is asked for with each of its faults. */
static void test_late_units_are_asked_for_again(void **state)
{
	struct ebb_range out[16];
	struct fake_vm v;

	fake_vm_init(&v, UNITS);
	start(&v);
	set_option(v.prefetch, "trigger", "2");
	fault(&v, 1000, 0, EBB_FAULT_LOADED, out);
	for (uint64_t at = 1001, window = 4; window <= 64; at += window + 1, window *= 2)
		assert_int_equal(fault(&v, at, 0, EBB_FAULT_LOADED, out), 1);
	/* The last one was for 1066 to 1129. */
	assert_int_equal(out[0].first, 1066);
	assert_int_equal(out[0].count, 64);
	assert_int_equal(fault(&v, 1070, 0, EBB_FAULT_LOADED, out), 1);
	assert_int_equal(out[0].first, 1071);
	assert_int_equal(out[0].count, 16);
	assert_int_equal(fault(&v, 1120, 0, EBB_FAULT_LOADED, out), 1);
	assert_int_equal(out[0].first, 1121);
	assert_int_equal(out[0].count, 9);
	fake_vm_free(&v);
}

static void test_only_what_is_evicted_is_asked_for(void **state)
{
	struct ebb_range out[16];
	struct fake_vm v;

	fake_vm_init(&v, UNITS);
	start(&v);
	fake_vm_set(&v, 14, FAKE_RESIDENT);
	fault(&v, 10, 0, EBB_FAULT_LOADED, out);
	fault(&v, 11, 0, EBB_FAULT_LOADED, out);
	assert_int_equal(fault(&v, 12, 0, EBB_FAULT_LOADED, out), 2);
	assert_int_equal(out[0].first, 13);
	assert_int_equal(out[0].count, 1);
	assert_int_equal(out[1].first, 15);
	assert_int_equal(out[1].count, 2);
	/* Memory that is touched for the first time holds nothing to fetch. */
	for (uint64_t u = 0; u < UNITS; u++)
		fake_vm_set(&v, u, FAKE_UNTOUCHED);
	for (uint64_t u = 40000; u < 41000; u++)
		assert_int_equal(fault(&v, u, 0, EBB_FAULT_ZERO, out), 0);
	fake_vm_free(&v);
}

static void test_never_over_the_end_of_a_block(void **state)
{
	struct ebb_range out[16];
	struct fake_vm v;

	fake_vm_init(&v, 2000);
	v.block[0].units = 1000;
	v.block[1] = (struct ebb_block){.first_unit = 1000, .units = 1000, .unit_bytes = 4096};
	v.blocks = 2;
	start(&v);
	fault(&v, 995, 0, EBB_FAULT_LOADED, out);
	fault(&v, 996, 0, EBB_FAULT_LOADED, out);
	assert_int_equal(fault(&v, 997, 0, EBB_FAULT_LOADED, out), 1);
	assert_int_equal(out[0].first, 998);
	assert_int_equal(out[0].count, 2);
	fake_vm_free(&v);
}

static void test_huge_units_are_bounded_in_bytes(void **state)
{
	struct ebb_range out[16];
	struct fake_vm v;

	fake_vm_init(&v, 1000);
	v.block[0].unit_bytes = 2 << 20;
	start(&v);
	for (uint64_t u = 10; u < 100; u++)
		for (uint32_t n = fault(&v, u, 0, EBB_FAULT_LOADED, out); n; n--)
			assert_true(out[n - 1].count <= 2);
	assert_true(fake_stat(v.prefetch, "advised") > 0);
	fake_vm_free(&v);
}

static void test_silent_on_random_faults(void **state)
{
	uint64_t rng = SEED;
	struct ebb_range out[16];
	struct fake_vm v;

	fake_vm_init(&v, UNITS);
	start(&v);
	for (int k = 0; k < 50000; k++)
		fault(&v, fake_random(&rng) % UNITS, (uint32_t)(k % 4), EBB_FAULT_LOADED, out);
	print_message("random: %llu units advised on 50000 faults\n",
		      (unsigned long long)fake_stat(v.prefetch, "advised"));
	assert_true(fake_stat(v.prefetch, "advised") < 500);
	fake_vm_free(&v);
}

/* Four runs, each in its thread, among random faults of a fifth one. */
static void test_interleaved_runs(void **state)
{
	uint64_t rng = SEED, at[4] = {1000, 20000, 40000, 60000}, found = 0;
	struct ebb_range out[16];
	struct fake_vm v;

	fake_vm_init(&v, UNITS);
	start(&v);
	for (int k = 0; k < 400; k++) {
		uint64_t *u = &at[k % 4];
		uint32_t n = fault(&v, *u, 1000 + (uint32_t)(k % 4), EBB_FAULT_LOADED, out);

		*u += n ? out[0].count + 1 : 1;
		found += n;
		fault(&v, fake_random(&rng) % UNITS, 99, EBB_FAULT_LOADED, out);
	}
	/* All but the first two faults of each run. */
	assert_true(found >= 4 * 95);
	fake_vm_free(&v);
}

static void test_the_thread_may_be_unknown_or_wrong(void **state)
{
	struct ebb_range out[16];
	struct fake_vm v;
	uint64_t u = 1000, found = 0;

	fake_vm_init(&v, UNITS);
	start(&v);
	for (uint32_t k = 0; k < 100; k++) {
		uint32_t n = fault(&v, u, k % 3 ? k : 0, EBB_FAULT_LOADED, out);

		u += n ? out[0].count + 1 : 1;
		found += n;
	}
	assert_int_equal(found, 98);
	fake_vm_free(&v);
}

static void test_strides_are_an_option(void **state)
{
	struct ebb_range out[16];
	struct fake_vm v;
	uint64_t advised;

	fake_vm_init(&v, UNITS);
	start(&v);
	for (uint64_t u = 0; u < 1000; u += 10)
		assert_int_equal(fault(&v, u, 0, EBB_FAULT_LOADED, out), 0);
	set_option(v.prefetch, "stride", "16");
	fault(&v, 50000, 0, EBB_FAULT_LOADED, out);
	fault(&v, 50010, 0, EBB_FAULT_LOADED, out);
	assert_int_equal(fault(&v, 50020, 0, EBB_FAULT_LOADED, out), 4);
	for (uint32_t k = 0; k < 4; k++) {
		assert_int_equal(out[k].first, 50030 + 10 * k);
		assert_int_equal(out[k].count, 1);
	}
	/* No more ranges than there is room for. */
	advised = fake_stat(v.prefetch, "advised");
	for (uint64_t u = 50070; u < 52000; u += 10)
		assert_true(fault(&v, u, 0, EBB_FAULT_LOADED, out) <= 16);
	assert_true(fake_stat(v.prefetch, "advised") > advised);
	fake_vm_free(&v);
}

static void outcome(struct fake_vm *v, uint32_t what, uint32_t n)
{
	uint64_t units[64] = {0};

	for (; n; n -= n < 64 ? n : 64)
		policy_on_outcome(v->prefetch, what, units, n < 64 ? n : 64);
}

static void test_waste_shrinks_the_window_and_use_restores_it(void **state)
{
	struct ebb_range out[16];
	struct fake_vm v;
	uint64_t u = 100;

	fake_vm_init(&v, UNITS);
	start(&v);
	assert_int_equal(fake_stat(v.prefetch, "cap"), 64);
	outcome(&v, EBB_OUTCOME_UNUSED, 256);
	assert_int_equal(fake_stat(v.prefetch, "cap"), 4);
	outcome(&v, EBB_OUTCOME_UNUSED, 2560);
	assert_int_equal(fake_stat(v.prefetch, "cap"), 2);
	for (int k = 0; k < 20; k++, u++)
		if (fault(&v, u, 0, EBB_FAULT_LOADED, out))
			assert_true(out[0].count <= 2);
	outcome(&v, EBB_OUTCOME_USED, 64 * 5);
	assert_int_equal(fake_stat(v.prefetch, "cap"), 64);
	/* Outcomes of the other role are not its business. */
	outcome(&v, EBB_OUTCOME_REFAULT, 1000);
	assert_int_equal(fake_stat(v.prefetch, "cap"), 64);
	fake_vm_free(&v);
}

static void test_resize_brings_new_blocks(void **state)
{
	struct ebb_range out[16];
	struct fake_vm v;

	fake_vm_init(&v, 1000);
	start(&v);
	fake_vm_grow(&v, 3000);
	for (uint64_t u = 1000; u < 3000; u++)
		fake_vm_set(&v, u, FAKE_EVICTED);
	v.block[1] = (struct ebb_block){.first_unit = 1000, .units = 2000, .unit_bytes = 4096};
	v.blocks = 2;
	policy_on_resize(v.prefetch, 3000);
	fault(&v, 2000, 0, EBB_FAULT_LOADED, out);
	fault(&v, 2001, 0, EBB_FAULT_LOADED, out);
	assert_int_equal(fault(&v, 2002, 0, EBB_FAULT_LOADED, out), 1);
	/* Unplugged again: nothing there is worth a fetch. */
	v.block[1].gone = 1;
	policy_on_resize(v.prefetch, 3000);
	for (uint64_t u = 2500; u < 2600; u++)
		assert_int_equal(fault(&v, u, 0, EBB_FAULT_LOADED, out), 0);
	fake_vm_free(&v);
}

/* ---- threads ---- */

struct runner {
	struct fake_vm *v;
	uint64_t from, bad;
	uint32_t thread;
};

static void *run(void *arg)
{
	struct runner *x = arg;
	struct ebb_range out[16];

	for (uint64_t k = 0; k < 20000; k++) {
		uint32_t n = fault(x->v, x->from + k % 20000, x->thread, EBB_FAULT_LOADED, out);

		for (uint32_t r = 0; r < n; r++)
			x->bad += out[r].count > 64 || out[r].first + out[r].count > UNITS;
	}
	return NULL;
}

static void test_concurrent_faults(void **state)
{
	struct runner x[3];
	pthread_t threads[3];
	struct fake_vm v;

	fake_vm_init(&v, UNITS);
	start(&v);
	for (uint32_t t = 0; t < 3; t++) {
		/* Two on the same addresses, one apart. */
		x[t] = (struct runner){&v, t == 2 ? 50000 : 0, 0, t};
		assert_int_equal(pthread_create(&threads[t], NULL, run, &x[t]), 0);
	}
	for (int k = 0; k < 500; k++) {
		outcome(&v, k % 2 ? EBB_OUTCOME_USED : EBB_OUTCOME_UNUSED, 64);
		policy_on_resize(v.prefetch, UNITS);
		fake_stat(v.prefetch, "faults");
	}
	for (int t = 0; t < 3; t++) {
		pthread_join(threads[t], NULL);
		assert_int_equal(x[t].bad, 0);
	}
	assert_int_equal(fake_stat(v.prefetch, "faults"), 3 * 20000);
	assert_true(fake_stat(v.prefetch, "advised") > 10000);
	fake_vm_free(&v);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_options),
		cmocka_unit_test(test_forward_run_doubles_its_window),
		cmocka_unit_test(test_backward_run),
		cmocka_unit_test(test_hits_ask_for_more_in_time),
		cmocka_unit_test(test_late_units_are_asked_for_again),
		cmocka_unit_test(test_only_what_is_evicted_is_asked_for),
		cmocka_unit_test(test_never_over_the_end_of_a_block),
		cmocka_unit_test(test_huge_units_are_bounded_in_bytes),
		cmocka_unit_test(test_silent_on_random_faults),
		cmocka_unit_test(test_interleaved_runs),
		cmocka_unit_test(test_the_thread_may_be_unknown_or_wrong),
		cmocka_unit_test(test_strides_are_an_option),
		cmocka_unit_test(test_waste_shrinks_the_window_and_use_restores_it),
		cmocka_unit_test(test_resize_brings_new_blocks),
		cmocka_unit_test(test_concurrent_faults),
	};
	int failed;

	sequential = fake_load(".", "sequential");
	failed = cmocka_run_group_tests(tests, NULL, NULL);
	policy_unload(sequential);
	return failed;
}
