/* SPDX-License-Identifier: BSD-3-Clause */
/* test_bits.c: the compressed store's set of numbers and its table of sizes. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <cmocka.h>

#include "bits.h"
#include "class.h"

/* Fills and empties a set of n numbers at random, beside a plain array. */
static void against_array(uint64_t n)
{
	struct bits b;
	uint8_t *in = calloc(n, 1);
	void *memory = calloc(1, bits_bytes(n));
	unsigned int seed = 1;

	assert_int_equal(bits_init(&b, n, memory), 0);
	for (unsigned int i = 0; i < 4000; i++) {
		uint64_t x = (uint64_t)rand_r(&seed) % n, lowest = 0;

		if (i % 3 == 0) {
			bits_remove(&b, x);
			in[x] = 0;
		} else {
			bits_add(&b, x);
			in[x] = 1;
		}
		while (lowest < n && in[lowest])
			lowest++;
		assert_int_equal(bits_lowest_absent(&b), lowest < n ? (int64_t)lowest : -1);
	}
	for (uint64_t x = 0; x < n; x++) {
		bits_add(&b, x);
		in[x] = 1;
	}
	assert_int_equal(bits_lowest_absent(&b), -1);
	bits_remove(&b, n - 1);
	assert_int_equal(bits_lowest_absent(&b), n - 1);
	free(memory);
	free(in);
}

static void bits_match_an_array(void **state)
{
	const uint64_t sizes[] = {1, 2, 63, 64, 65, 4095, 4096, 4097, 10000};

	for (unsigned int i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++)
		against_array(sizes[i]);
}

static void bits_of_many(void **state)
{
	const uint64_t n = (UINT64_C(1) << 29) + 1;
	void *memory = calloc(1, bits_bytes(n));
	struct bits b;

	assert_int_equal(bits_init(&b, n, memory), 0);
	for (uint64_t i = 0; i < 300000; i++)
		bits_add(&b, i);
	assert_int_equal(bits_lowest_absent(&b), 300000);
	bits_remove(&b, 262143);
	assert_int_equal(bits_lowest_absent(&b), 262143);
	free(memory);
}

static void every_size_has_a_close_class(void **state)
{
	static struct class_table t;
	double sum = 0;

	class_table_init(&t);
	assert_in_range(t.n, 1, CLASSES_MAX);
	assert_int_equal(t.shape[t.n - 1].slot_bytes, PIECE_BYTES);
	for (uint32_t bytes = 1; bytes <= PIECE_BYTES; bytes++) {
		const struct class_shape *s = &t.shape[class_of(&t, bytes)];

		assert_true(s->slot_bytes >= bytes);
		if (class_of(&t, bytes))
			assert_true(s[-1].slot_bytes < bytes);
		if (bytes > 300)
			assert_true(s->slot_bytes - bytes <= bytes / 28);
		if (bytes >= 512 && bytes <= 4096)
			sum += (double)(s->slot_bytes - bytes) / bytes;
	}
	/* Where pages usually end up, what a slot wastes is below 2 % on average. */
	assert_true(sum / (4096 - 512 + 1) < 0.02);
	for (uint32_t plain = PAGE_BYTES; plain <= PIECE_BYTES; plain *= 2)
		assert_int_equal(t.shape[class_of(&t, plain)].slot_bytes, plain);
}

static void slabs_hold_their_slots(void **state)
{
	static struct class_table t;

	class_table_init(&t);
	for (uint32_t i = 0; i < t.n; i++) {
		const struct class_shape *s = &t.shape[i];
		uint32_t bytes = s->slot_bytes * s->slots;

		assert_in_range(s->slots, 1, SLOTS_MAX);
		assert_true(bytes <= s->pages * PAGE_BYTES);
		assert_true(bytes > (s->pages - 1u) * PAGE_BYTES);
		assert_true(s->pages * PAGE_BYTES <= (s->large ? LARGE_STRIDE : SMALL_STRIDE));
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(bits_match_an_array),
		cmocka_unit_test(bits_of_many),
		cmocka_unit_test(every_size_has_a_close_class),
		cmocka_unit_test(slabs_hold_their_slots),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
