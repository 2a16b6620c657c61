/* SPDX-License-Identifier: BSD-3-Clause */
/* test_size.c: sizes in text, both ways. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <cmocka.h>

#include <errno.h>
#include <string.h>

#include "base/size.h"

static void test_parse(void **state)
{
	static const struct {
		const char *text;
		uint64_t bytes;
	} good[] = {
		{"0", 0},
		{"1", 1},
		{"4096", 4096},
		{"18446744073709551615", UINT64_MAX},
		{"1K", 1024},
		{"1k", 1024},
		{"512M", UINT64_C(512) << 20},
		{"3G", UINT64_C(3) << 30},
		{"2T", UINT64_C(2) << 40},
		{"2TiB", UINT64_C(2) << 40},
		{"64MB", UINT64_C(64) << 20},
		{"16777215T", UINT64_C(16777215) << 40},
		{"007", 7},
	};

	for (size_t k = 0; k < sizeof(good) / sizeof(good[0]); k++) {
		uint64_t bytes = 1;

		if (size_parse(good[k].text, &bytes) || bytes != good[k].bytes)
			fail_msg("%s: %llu", good[k].text, (unsigned long long)bytes);
	}
}

static void test_parse_refuses(void **state)
{
	static const struct {
		const char *text;
		int code;
	} bad[] = {
		{"", EINVAL},
		{" 1", EINVAL},
		{"1 ", EINVAL},
		{"-1", EINVAL},
		{"+1", EINVAL},
		{"K", EINVAL},
		{"1.5G", EINVAL},
		{"1KK", EINVAL},
		{"1Q", EINVAL},
		{"0x10", EINVAL},
		{"1Ki", EINVAL},
		{"1iB", EINVAL},
		{"1MBs", EINVAL},
		{"1\n", EINVAL},
		{"18446744073709551616", ERANGE},
		{"16777216T", ERANGE},
		{"99999999999999999999999999T", ERANGE},
	};

	for (size_t k = 0; k < sizeof(bad) / sizeof(bad[0]); k++) {
		uint64_t bytes = 77;
		int r = size_parse(bad[k].text, &bytes);

		if (r != -bad[k].code || bytes != 77)
			fail_msg("'%s': %d, %llu", bad[k].text, r, (unsigned long long)bytes);
	}
}

static void test_format(void **state)
{
	char buf[16];

	assert_string_equal(size_format(0, buf), "0 B");
	assert_string_equal(size_format(1023, buf), "1023 B");
	assert_string_equal(size_format(1024, buf), "1.0 KiB");
	assert_string_equal(size_format(1536, buf), "1.5 KiB");
	assert_string_equal(size_format(UINT64_C(3) << 29, buf), "1.5 GiB");
	assert_string_equal(size_format(UINT64_C(5) << 40, buf), "5.0 TiB");
	/* The largest there is fits. */
	assert_string_equal(size_format(UINT64_MAX, buf), "16777216.0 TiB");
	assert_true(size_format(1, buf) == buf);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_parse),
		cmocka_unit_test(test_parse_refuses),
		cmocka_unit_test(test_format),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
