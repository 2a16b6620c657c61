/* SPDX-License-Identifier: BSD-3-Clause */
/* test_json.c: the library's JSON: what it takes, what it refuses, what it writes. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <cmocka.h>

#include "client/json.h"

static struct json_span parsed(const char *text)
{
	struct json_span v;

	assert_int_equal(json_parse(text, strlen(text), &v), 0);
	return v;
}

static void parse_takes_json(void **state)
{
	static const char *const good[] = {
		"{}",	   " [ ] ",	      "0",
		"-1.5e+3", "\"a\\u00e9\\n\"", "{\"a\":[1,{\"b\":null}],\"c\":true}",
	};

	for (size_t i = 0; i < sizeof(good) / sizeof(*good); i++)
		parsed(good[i]);
}

static void parse_refuses_the_rest(void **state)
{
	static const char *const bad[] = {
		"",	    "{",
		"}",	    "{\"a\"}",
		"{\"a\":}", "{\"a\":1,}",
		"{a:1}",    "[1,]",
		"[1 2]",    "01",
		"1.",	    "-",
		"1e",	    "\"a",
		"\"\\x\"",  "\"\\u12g4\"",
		"nul",	    "{} {}",
		"\"a\nb\"", "\"\\",
		"\"\\u00",  "[[[[[[[[[[[[[[[[[[]]]]]]]]]]]]]]]]]]",
	};

	for (size_t i = 0; i < sizeof(bad) / sizeof(*bad); i++) {
		struct json_span v;

		if (!json_parse(bad[i], strlen(bad[i]), &v))
			fail_msg("took %s", bad[i]);
	}
}

/* Every shorter beginning of a valid text is refused, without reading past its end. */
static void parse_refuses_beginnings(void **state)
{
	const char *text = "{\"execute\":\"zap\",\"arguments\":{\"ranges\":[[1,2]]},\"id\":3}";
	struct json_span v;

	for (size_t n = 0; n < strlen(text); n++) {
		char *cut = test_malloc(n ? n : 1);

		memcpy(cut, text, n);
		assert_int_equal(json_parse(cut, n, &v), -EINVAL);
		test_free(cut);
	}
}

static void member_finds_by_whole_name(void **state)
{
	struct json_span v, o = parsed(" { \"ab\" : 1 , \"a\" : { \"x\" : 2 }, \"abc\":[3] } ");
	uint64_t n;

	assert_true(json_member(o, "a", &v));
	assert_true(json_member(v, "x", &v));
	assert_int_equal(json_u64(v, &n), 0);
	assert_int_equal(n, 2);
	assert_false(json_member(o, "x", &v));
	assert_false(json_member(parsed("[\"a\",1]"), "a", &v));
	assert_false(json_member(parsed("{}"), "a", &v));
}

static void next_walks_arrays(void **state)
{
	struct json_span a = parsed(" [ [ 10 , 11 ] , [12,13] ] "), pair = {0};
	uint64_t n, want = 10;

	while (json_next(a, &pair)) {
		struct json_span v = {0};

		while (json_next(pair, &v)) {
			assert_int_equal(json_u64(v, &n), 0);
			assert_int_equal(n, want++);
		}
	}
	assert_int_equal(want, 14);
	pair.p = NULL;
	assert_false(json_next(parsed("[ ]"), &pair));
	assert_false(json_next(parsed("{\"a\":1}"), &pair));
	assert_false(json_next(parsed("17"), &pair));
}

static void numbers(void **state)
{
	uint64_t n;

	assert_int_equal(json_u64(parsed("18446744073709551615"), &n), 0);
	assert_true(n == UINT64_MAX);
	assert_int_equal(json_u64(parsed("18446744073709551616"), &n), -ERANGE);
	assert_int_equal(json_u64(parsed("-1"), &n), -EINVAL);
	assert_int_equal(json_u64(parsed("1.0"), &n), -EINVAL);
	assert_int_equal(json_u64(parsed("\"1\""), &n), -EINVAL);
}

static void strings_are_decoded_and_cut(void **state)
{
	char buf[8];

	assert_int_equal(json_string(parsed("\"a\\\"\\\\\\u0041\\n\""), buf, sizeof(buf)), 0);
	assert_string_equal(buf, "a\"\\A\n");
	assert_int_equal(json_string(parsed("\"0123456789\""), buf, sizeof(buf)), 0);
	assert_string_equal(buf, "0123456");
	assert_int_equal(json_string(parsed("12"), buf, sizeof(buf)), -EINVAL);
}

static void text_is_escaped_and_bounded(void **state)
{
	char buf[32], small[8];
	struct json_text t = {.buf = buf, .cap = sizeof(buf)};
	struct json_text s = {.buf = small, .cap = sizeof(small)};

	json_add_string(&t, "a\"b\\c\n");
	assert_false(t.over);
	assert_string_equal(buf, "\"a\\\"b\\\\c\\u000a\"");
	json_add_string(&s, "0123456789");
	assert_true(s.over);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(parse_takes_json),
		cmocka_unit_test(parse_refuses_the_rest),
		cmocka_unit_test(parse_refuses_beginnings),
		cmocka_unit_test(member_finds_by_whole_name),
		cmocka_unit_test(next_walks_arrays),
		cmocka_unit_test(numbers),
		cmocka_unit_test(strings_are_decoded_and_cut),
		cmocka_unit_test(text_is_escaped_and_bounded),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
