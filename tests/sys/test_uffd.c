/* SPDX-License-Identifier: BSD-3-Clause */
/* test_uffd.c: what the userfaultfd wrappers return. */
#include "sys/uffd.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include <unistd.h>

#include "kernel/kernel_test.h"

struct field {
	int fd, uffd;
	char *map;
	uint64_t at;
};

#define FIELD_PAGES 16

static int set_up(void **state)
{
	static struct field f;

	f.fd = kt_memfd(FIELD_PAGES * KT_PAGE, false);
	f.map = kt_map(f.fd, FIELD_PAGES * KT_PAGE);
	f.at = (uint64_t)(uintptr_t)f.map;
	f.uffd = kt_uffd(UFFD_FEATURE_PAGEFAULT_FLAG_WP);
	*state = &f;
	return uffd_register(f.uffd, f.at, FIELD_PAGES * KT_PAGE,
			     UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_WP |
				     UFFDIO_REGISTER_MODE_MINOR);
}

static int tear_down(void **state)
{
	struct field *f = *state;

	close(f->uffd);
	munmap(f->map, FIELD_PAGES * KT_PAGE);
	close(f->fd);
	return 0;
}

static void test_copy_returns_bytes(void **state)
{
	struct field *f = *state;
	const char *src = kt_fill('c', 4 * KT_PAGE);

	assert_int_equal(uffd_copy(f->uffd, f->at, src, KT_PAGE, 0), KT_PAGE);
	assert_int_equal(f->map[0], 'c');
	assert_int_equal(uffd_copy(f->uffd, f->at, src, KT_PAGE, 0), -EEXIST);
	/* The second page is there: it stops behind the first. */
	assert_int_equal(uffd_copy(f->uffd, f->at + 2 * KT_PAGE, src, KT_PAGE, 0), KT_PAGE);
	assert_int_equal(uffd_copy(f->uffd, f->at + KT_PAGE, src, 2 * KT_PAGE, 0), KT_PAGE);
	assert_int_equal(uffd_copy(f->uffd, f->at + 4 * KT_PAGE, src, 4 * KT_PAGE, 0), 4 * KT_PAGE);
	assert_int_equal(uffd_copy(f->uffd, f->at + 1, src, KT_PAGE, 0), -EINVAL);
}

static void test_zero_returns_bytes(void **state)
{
	struct field *f = *state;

	assert_int_equal(uffd_zero(f->uffd, f->at, 3 * KT_PAGE), 3 * KT_PAGE);
	assert_int_equal(uffd_zero(f->uffd, f->at, KT_PAGE), -EEXIST);
	assert_int_equal(f->map[KT_PAGE], 0);
}

static void test_continue_returns_bytes(void **state)
{
	struct field *f = *state;
	const char *src = kt_fill('k', 2 * KT_PAGE);

	assert_int_equal(pwrite(f->fd, src, 2 * KT_PAGE, 0), 2 * KT_PAGE);
	assert_int_equal(uffd_continue(f->uffd, f->at, 2 * KT_PAGE, 0), 2 * KT_PAGE);
	assert_int_equal(f->map[KT_PAGE], 'k');
	assert_int_equal(uffd_continue(f->uffd, f->at, KT_PAGE, 0), -EEXIST);
	assert_int_equal(uffd_continue(f->uffd, f->at + 8 * KT_PAGE, KT_PAGE, 0), -EFAULT);
}

static void test_read_when_there_is_nothing(void **state)
{
	struct field *f = *state;
	struct uffd_msg msg;

	assert_int_equal(uffd_read(f->uffd, &msg, 1), 0);
}

static void test_is(void **state)
{
	struct field *f = *state;

	assert_true(uffd_is(f->uffd));
	assert_false(uffd_is(f->fd));
	assert_false(uffd_is(-1));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_is, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_read_when_there_is_nothing, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_zero_returns_bytes, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_copy_returns_bytes, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_continue_returns_bytes, set_up, tear_down),
	};
	int fd = uffd_new();

	if (fd < 0) {
		printf("skipped: no userfaultfd for kernel faults; runs in scripts/check as "
		       "root\n");
		return 77;
	}
	close(fd);
	return cmocka_run_group_tests_name("uffd", tests, NULL, NULL);
}
