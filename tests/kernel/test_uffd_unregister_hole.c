/* SPDX-License-Identifier: BSD-3-Clause */
/* test_uffd_unregister_hole.c: unregistering over a hole lets its waiters read zeroes. */
#include "kernel/kernel_test.h"

#include "sys/uffd.h"

/* Relied on by the engine: it unregisters only ranges without holes, also to change their modes. */

int main(void)
{
	int fd = kt_memfd(2 * KT_PAGE, false), uffd = kt_uffd(0);
	char *map = kt_map(fd, 2 * KT_PAGE);
	struct kt_access a;

	memset(map, 'u', 2 * KT_PAGE);
	CHECK_EQ(uffd_register(uffd, (uintptr_t)map, 2 * KT_PAGE, UFFDIO_REGISTER_MODE_MISSING), 0);
	CHECK_EQ(kt_punch(fd, 0, KT_PAGE), 0);
	kt_access_start(&a, map);
	CHECK(kt_blocked(&a));
	CHECK_EQ(uffd_unregister(uffd, (uintptr_t)map, 2 * KT_PAGE), 0);
	CHECK_EQ(kt_access_end(&a), 0);
	/* And the zero page is everybody's now. */
	CHECK(kt_cached(fd, 0));
	return 0;
}
