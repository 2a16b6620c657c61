/* SPDX-License-Identifier: BSD-3-Clause */
/* test_frame.c: where JSON objects of a stream end. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "control/frame.h"

/* Feeds text; writes one letter for each result that is not FRAME_MORE. */
static void feed(struct frame *f, const char *text, size_t n, char *results)
{
	size_t r = 0;

	for (size_t i = 0; i < n; i++) {
		switch (frame_byte(f, text[i])) {
		case FRAME_MORE:
			break;
		case FRAME_OBJECT:
			results[r++] = 'o';
			frame_reset(f);
			break;
		case FRAME_GARBAGE:
			results[r++] = 'g';
			break;
		case FRAME_TOO_BIG:
			results[r++] = 'b';
			frame_reset(f);
			break;
		}
	}
	results[r] = '\0';
}

static void expect(const char *text, const char *want)
{
	struct frame f = {0};
	char results[64];

	feed(&f, text, strlen(text), results);
	assert_string_equal(results, want);
	frame_free(&f);
}

static void test_objects(void **state)
{
	(void)state;
	expect("", "");
	expect("{}", "o");
	expect("{}{}", "oo");
	expect(" {\"a\":1}\r\n{\"b\":[{}]}\n\n", "oo");
	expect("{\"a\":{\"b\":", "");
}

static void test_strings_hide_brackets(void **state)
{
	(void)state;
	expect("{\"}\":\"{[\"}", "o");
	expect("{\"\\\"}\":1}", "o");
	expect("{\"\\\\\":1}{}", "oo");
}

static void test_garbage_costs_its_line(void **state)
{
	(void)state;
	expect("hello {}\n{}", "go");
	expect("[1]\n", "g");
	expect("}\n{}", "go");
	expect("1 2 3 4", "g");
}

static void test_reset_byte(void **state)
{
	(void)state;
	expect("{\"a\": [[\xff{}", "o");
	expect("{\"never closed \xff{}", "o");
}

static void test_content(void **state)
{
	struct frame f = {0};
	const char *text = " {\"execute\":\"x\"}";

	(void)state;
	for (size_t i = 0; i + 1 < strlen(text); i++)
		assert_int_equal(frame_byte(&f, text[i]), FRAME_MORE);
	assert_int_equal(frame_byte(&f, '}'), FRAME_OBJECT);
	assert_int_equal(f.len, strlen(text) - 1);
	assert_memory_equal(f.buf, text + 1, f.len);
	frame_free(&f);
}

static void test_limits(void **state)
{
	struct frame f = {0};
	enum frame_result r = FRAME_MORE;
	size_t n = 0;

	(void)state;
	frame_byte(&f, '{');
	frame_byte(&f, '"');
	for (n = 2; r == FRAME_MORE && n < 10 * FRAME_BYTES_MAX; n++)
		r = frame_byte(&f, 'x');
	assert_int_equal(r, FRAME_TOO_BIG);
	assert_int_equal(n, FRAME_BYTES_MAX + 1);
	frame_reset(&f);
	r = FRAME_MORE;
	for (n = 0; r == FRAME_MORE && n < 1000; n++)
		r = frame_byte(&f, '{');
	assert_int_equal(r, FRAME_TOO_BIG);
	assert_int_equal(n, FRAME_DEPTH_MAX + 1);
	frame_free(&f);
}

/* Any bytes: no result but the four, and after a reset byte an object is found again. */
static void test_any_bytes(void **state)
{
	struct frame f = {0};
	char bytes[4096], results[4097];
	unsigned int seed = 20240229;

	(void)state;
	for (int round = 0; round < 200; round++) {
		for (size_t i = 0; i < sizeof(bytes); i++) {
			static const char likely[] = "{}[]\"\\:,1 \n";
			unsigned int v = (unsigned int)rand_r(&seed);

			bytes[i] = v & 1 ? likely[(v >> 8) % (sizeof(likely) - 1)] : (char)(v >> 8);
		}
		feed(&f, bytes, sizeof(bytes), results);
		assert_true(f.len <= FRAME_BYTES_MAX);
		feed(&f, "\xff{}", 3, results);
		assert_string_equal(results, "o");
	}
	frame_free(&f);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_objects),
		cmocka_unit_test(test_strings_hide_brackets),
		cmocka_unit_test(test_garbage_costs_its_line),
		cmocka_unit_test(test_reset_byte),
		cmocka_unit_test(test_content),
		cmocka_unit_test(test_limits),
		cmocka_unit_test(test_any_bytes),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
