/* SPDX-License-Identifier: BSD-3-Clause */
/* test_hist.c: the histogram against sorted arrays. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <cmocka.h>

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "base/hist.h"

#define VALUES 20000

static int by_value(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return x < y ? -1 : x > y;
}

static uint64_t next(uint64_t *rng)
{
	*rng ^= *rng << 13;
	*rng ^= *rng >> 7;
	*rng ^= *rng << 17;
	return *rng;
}

/* The true value, or up to 1/32 more. */
static void check_quantiles(const struct hist *h, uint64_t *values, size_t n)
{
	static const double qs[] = {0, 0.001, 0.01, 0.25, 0.5, 0.9, 0.99, 0.999, 0.9999, 1};

	qsort(values, n, sizeof(*values), by_value);
	for (size_t k = 0; k < sizeof(qs) / sizeof(qs[0]); k++) {
		size_t rank = (size_t)(qs[k] * (double)n);
		uint64_t truth = values[rank < n ? rank : n - 1], got = hist_quantile(h, qs[k]);

		if (got < truth || got > truth + truth / 32)
			fail_msg("quantile %g: %llu for %llu", qs[k], (unsigned long long)got,
				 (unsigned long long)truth);
	}
	assert_int_equal(hist_quantile(h, 1), values[n - 1]);
}

static void test_empty(void **state)
{
	struct hist h = {0};

	assert_int_equal(hist_quantile(&h, 0.5), 0);
	assert_int_equal(hist_quantile(&h, 1), 0);
	assert_int_equal(hist_count_le(&h, UINT64_MAX), 0);
}

static void test_small_values_are_exact(void **state)
{
	for (uint64_t v = 0; v < 64; v++) {
		struct hist h = {0};

		hist_record(&h, v);
		hist_record(&h, 1000);
		assert_int_equal(hist_quantile(&h, 0), v);
	}
}

/* Around every power of two, where buckets change their width. */
static void test_one_value_at_a_time(void **state)
{
	for (unsigned int bit = 1; bit < HIST_MAX_BITS; bit++) {
		for (int off = -2; off <= 2; off++) {
			uint64_t v = (UINT64_C(1) << bit) + (uint64_t)(int64_t)off;
			struct hist h = {0};

			hist_record(&h, v);
			/* At most max, so one value alone is exact. */
			assert_int_equal(hist_quantile(&h, 0.5), v);
			assert_int_equal(hist_count_le(&h, v), 1);
			assert_int_equal(hist_count_le(&h, v / 2), v ? 0 : 1);
			hist_record(&h, UINT64_C(1) << 39);
			assert_true(hist_quantile(&h, 0) >= v);
			assert_true(hist_quantile(&h, 0) <= v + v / 32);
		}
	}
}

static void test_quantiles_of_distributions(void **state)
{
	uint64_t *values = calloc(VALUES, sizeof(*values)), rng = 88172645463325252;

	assert_non_null(values);
	/* Even; over all magnitudes; a narrow bulk with a long tail. */
	for (int kind = 0; kind < 3; kind++) {
		struct hist h = {0};
		uint64_t sum = 0;

		for (size_t k = 0; k < VALUES; k++) {
			uint64_t r = next(&rng);

			values[k] = kind == 0	? r % 1000000
				    : kind == 1 ? r >> (24 + next(&rng) % 40)
						: (k % 100 ? 9000 + r % 2000 : r % 500000000);
			sum += values[k];
			hist_record(&h, values[k]);
		}
		assert_int_equal(h.count, VALUES);
		assert_int_equal(h.sum, sum);
		check_quantiles(&h, values, VALUES);
	}
	free(values);
}

static void test_huge_values_count_as_the_largest(void **state)
{
	struct hist h = {0};

	hist_record(&h, UINT64_MAX);
	hist_record(&h, UINT64_C(1) << HIST_MAX_BITS);
	assert_int_equal(h.count, 2);
	assert_int_equal(h.max, UINT64_MAX);
	assert_int_equal(hist_quantile(&h, 0), (UINT64_C(1) << HIST_MAX_BITS) - 1);
	assert_int_equal(h.bucket[HIST_BUCKETS - 1], 2);
	assert_int_equal(hist_count_le(&h, UINT64_MAX), 2);
}

static void test_count_le(void **state)
{
	struct hist h = {0};

	for (uint64_t v = 1; v <= 1000; v++)
		hist_record(&h, v);
	assert_int_equal(hist_count_le(&h, 0), 0);
	assert_int_equal(hist_count_le(&h, 31), 31);
	assert_int_equal(hist_count_le(&h, 1000), 1000);
	assert_int_equal(hist_count_le(&h, 5000), 1000);
	assert_true(hist_count_le(&h, 500) >= 500 && hist_count_le(&h, 500) <= 516);
}

static void test_merge_is_the_same_as_recording_both(void **state)
{
	struct hist a = {0}, b = {0}, both = {0};
	uint64_t rng = 42;

	for (int k = 0; k < 5000; k++) {
		uint64_t v = next(&rng) >> (30 + k % 30);

		hist_record(k % 3 ? &a : &b, v);
		hist_record(&both, v);
	}
	hist_merge(&a, &b);
	assert_memory_equal(&a, &both, sizeof(a));
	/* Nothing added changes nothing. */
	hist_merge(&a, &(struct hist){0});
	assert_memory_equal(&a, &both, sizeof(a));
}

static void *record_thread(void *arg)
{
	struct hist *h = arg;

	for (uint64_t v = 1; v <= VALUES; v++)
		hist_record(h, v);
	return NULL;
}

static void test_threads_lose_nothing(void **state)
{
	static struct hist h;
	pthread_t threads[4];

	for (int t = 0; t < 4; t++)
		assert_int_equal(pthread_create(&threads[t], NULL, record_thread, &h), 0);
	for (int t = 0; t < 4; t++)
		pthread_join(threads[t], NULL);
	assert_int_equal(h.count, 4 * VALUES);
	assert_int_equal(h.sum, UINT64_C(4) * VALUES * (VALUES + 1) / 2);
	assert_int_equal(h.max, VALUES);
	assert_int_equal(hist_count_le(&h, VALUES), 4 * VALUES);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_empty),
		cmocka_unit_test(test_small_values_are_exact),
		cmocka_unit_test(test_one_value_at_a_time),
		cmocka_unit_test(test_quantiles_of_distributions),
		cmocka_unit_test(test_huge_values_count_as_the_largest),
		cmocka_unit_test(test_count_le),
		cmocka_unit_test(test_merge_is_the_same_as_recording_both),
		cmocka_unit_test(test_threads_lose_nothing),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
