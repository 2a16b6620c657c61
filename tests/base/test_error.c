/* SPDX-License-Identifier: BSD-3-Clause */
/* test_error.c: errors with a class and a sentence. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <cmocka.h>

#include <errno.h>
#include <string.h>

#include "base/error.h"

static void test_set_fills_and_negates(void **state)
{
	struct error e = {0};

	assert_int_equal(error_set(&e, ENOENT, ERROR_NOT_FOUND, "no VM %s, %d known", "a", 3),
			 -ENOENT);
	assert_string_equal(e.cls, "NotFound");
	assert_string_equal(e.desc, "no VM a, 3 known");
}

static void test_long_sentences_are_cut(void **state)
{
	char text[1000];
	struct {
		struct error e;
		char guard[16];
	} s;

	memset(text, 'x', sizeof(text) - 1);
	text[sizeof(text) - 1] = '\0';
	memset(s.guard, 'g', sizeof(s.guard));
	error_set(&s.e, EINVAL, ERROR_ARGUMENT, "%s", text);
	assert_int_equal(strlen(s.e.desc), sizeof(s.e.desc) - 1);
	for (size_t i = 0; i < sizeof(s.guard); i++)
		assert_int_equal(s.guard[i], 'g');
}

static void test_text_of_codes(void **state)
{
	assert_string_equal(error_text(ENOENT), "No such file or directory");
	assert_ptr_equal(error_text(-ENOENT), error_text(ENOENT));
	assert_string_equal(error_text(123456), "unknown error");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_set_fills_and_negates),
		cmocka_unit_test(test_long_sentences_are_cut),
		cmocka_unit_test(test_text_of_codes),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
