/* SPDX-License-Identifier: BSD-3-Clause */
/* test_region_check.c: ranges at the edges of what is allowed. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <cmocka.h>

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "attach/region_check.h"

#define MIB (UINT64_C(1) << 20)
#define TOP (UINT64_C(1) << 63)

static struct attach_region region(const char *id, uint64_t addr, uint64_t size, uint64_t offset)
{
	struct attach_region r = {.host_addr = addr,
				  .size = size,
				  .page_size = 4096,
				  .memfd_offset = offset,
				  .guest_addr = UINT64_MAX};

	snprintf(r.id, sizeof(r.id), "%s", id);
	return r;
}

static struct memfd_info file(ino_t ino, uint64_t size)
{
	return (struct memfd_info){.dev = 1, .ino = ino, .size = size, .page_bytes = 4096};
}

static void test_one(void **state)
{
	struct attach_region r = region("r", 4096, 4096, 0);
	struct error e;

	assert_int_equal(region_check_one(&r, &e), 0);
	r.size = 0;
	assert_int_equal(region_check_one(&r, &e), -EINVAL);
	assert_string_equal(e.cls, ERROR_ARGUMENT);
	assert_string_equal(e.desc, "region r: size is 0");
	r = region("r", 4096, 4097, 0);
	assert_int_equal(region_check_one(&r, &e), -EINVAL);
	r = region("r", 4097, 4096, 0);
	assert_int_equal(region_check_one(&r, &e), -EINVAL);
	r = region("r", 4096, 4096, 1);
	assert_int_equal(region_check_one(&r, &e), -EINVAL);
}

static void test_page_sizes(void **state)
{
	struct attach_region r = region("r", 2 * MIB, 2 * MIB, 2 * MIB);
	struct error e;

	r.page_size = 2 * MIB;
	assert_int_equal(region_check_one(&r, &e), 0);
	r.host_addr = MIB;
	assert_int_equal(region_check_one(&r, &e), -EINVAL);
	r = region("r", 0, 1 << 30, 0);
	r.page_size = 1 << 30;
	assert_int_equal(region_check_one(&r, &e), -EOPNOTSUPP);
	assert_string_equal(e.cls, ERROR_UNSUPPORTED);
	for (uint32_t bad = 0; bad < 3; bad++) {
		r.page_size = (const uint32_t[]){0, 1, 8192}[bad];
		assert_int_equal(region_check_one(&r, &e), -EINVAL);
	}
}

/* Up to 2^63 and not a page further. */
static void test_wrap_around(void **state)
{
	struct attach_region r = region("r", TOP - 4096, 4096, TOP - 4096);
	struct error e;

	r.guest_addr = TOP - 4096;
	assert_int_equal(region_check_one(&r, &e), 0);
	r.size = 8192;
	assert_int_equal(region_check_one(&r, &e), -EINVAL);
	r.host_addr -= 4096;
	assert_int_equal(region_check_one(&r, &e), -EINVAL);
	assert_non_null(strstr(e.desc, "memfd_offset"));
	r.memfd_offset -= 4096;
	assert_int_equal(region_check_one(&r, &e), -EINVAL);
	assert_non_null(strstr(e.desc, "guest_addr"));
	r.guest_addr -= 4096;
	assert_int_equal(region_check_one(&r, &e), 0);
}

/* Every position of a range of two pages against one of three. */
static void test_overlap(void **state)
{
	struct error e;

	for (uint64_t at = 0; at < 12; at++) {
		struct attach_region r[2] = {region("a", 5 * 4096, 3 * 4096, 0),
					     region("b", at * 4096, 2 * 4096, 3 * 4096)};
		bool overlaps = at >= 4 && at <= 7;

		assert_int_equal(region_check_overlap(r, 2, &e), overlaps ? -EINVAL : 0);
	}
}

static void test_overlap_in_file(void **state)
{
	struct error e;

	for (uint64_t at = 0; at < 12; at++) {
		struct attach_region r[2] = {region("a", MIB, 3 * 4096, 5 * 4096),
					     region("b", 2 * MIB, 2 * 4096, at * 4096)};
		struct memfd_info same[2] = {file(7, MIB), file(7, MIB)};
		struct memfd_info other[2] = {file(7, MIB), file(8, MIB)};
		bool overlaps = at >= 4 && at <= 7;

		assert_int_equal(region_check_files(r, same, 2, &e), overlaps ? -EINVAL : 0);
		assert_int_equal(region_check_files(r, other, 2, &e), 0);
		other[1] = file(7, MIB);
		other[1].dev = 2; /* an inode number of another file system */
		assert_int_equal(region_check_files(r, other, 2, &e), 0);
	}
}

static void test_ids(void **state)
{
	struct attach_region r[3] = {region("a", 0, 4096, 0), region("b", 4096, 4096, 4096),
				     region("a", 8192, 4096, 8192)};
	struct error e;

	assert_int_equal(region_check_overlap(r, 2, &e), 0);
	assert_int_equal(region_check_overlap(r, 3, &e), -EEXIST);
	assert_string_equal(e.desc, "two regions have the id a");
}

static void test_file_size_and_pages(void **state)
{
	struct attach_region r = region("r", 0, MIB, MIB);
	struct memfd_info m = file(1, 2 * MIB);
	struct error e;

	assert_int_equal(region_check_files(&r, &m, 1, &e), 0);
	m.size--;
	assert_int_equal(region_check_files(&r, &m, 1, &e), -EINVAL);
	m.size = 2 * MIB;
	m.page_bytes = 2 * MIB;
	assert_int_equal(region_check_files(&r, &m, 1, &e), -EINVAL);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_one),
		cmocka_unit_test(test_page_sizes),
		cmocka_unit_test(test_wrap_around),
		cmocka_unit_test(test_overlap),
		cmocka_unit_test(test_overlap_in_file),
		cmocka_unit_test(test_ids),
		cmocka_unit_test(test_file_size_and_pages),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
