/* SPDX-License-Identifier: BSD-3-Clause */
/* test_uffd_second.c: one range has one userfaultfd. */
#include "kernel/kernel_test.h"

#include "sys/uffd.h"

/* Relied on by attaching: a VMM that serves its RAM itself (postcopy, background snapshot) is
 * refused by EBUSY, and cannot take over RAM that is attached. */

int main(void)
{
	int fd = kt_memfd(4 * KT_PAGE, false), first = kt_uffd(0), second = kt_uffd(0);
	uint64_t at = (uintptr_t)kt_map(fd, 4 * KT_PAGE);

	CHECK_EQ(uffd_register(first, at, 2 * KT_PAGE, UFFDIO_REGISTER_MODE_MISSING), 0);
	CHECK_EQ(uffd_register(second, at, 4 * KT_PAGE, UFFDIO_REGISTER_MODE_MISSING), -EBUSY);
	CHECK_EQ(uffd_register(second, at + 2 * KT_PAGE, 2 * KT_PAGE, UFFDIO_REGISTER_MODE_MISSING),
		 0);
	CHECK_EQ(uffd_unregister(first, at, 2 * KT_PAGE), 0);
	CHECK_EQ(uffd_register(second, at, 2 * KT_PAGE, UFFDIO_REGISTER_MODE_MISSING), 0);
	return 0;
}
