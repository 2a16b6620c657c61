/* SPDX-License-Identifier: BSD-3-Clause */
/* test_uffd_redelivery.c: a fault that was read is not delivered again until it is woken. */
#include "kernel/kernel_test.h"

#include "sys/uffd.h"

/* Relied on by the takeover: it wakes every registered range, because the dead daemon may have read
 * faults that nobody else will ever see. */

int main(void)
{
	int fd = kt_memfd(KT_PAGE, false), uffd = kt_uffd(0);
	char *map = kt_map(fd, KT_PAGE);
	struct uffd_msg msg;
	struct kt_access a;
	uint64_t at = (uintptr_t)map;

	CHECK_EQ(uffd_register(uffd, at, KT_PAGE, UFFDIO_REGISTER_MODE_MISSING), 0);
	kt_access_start(&a, map);
	CHECK(kt_message(uffd, &msg));
	CHECK_EQ(msg.event, UFFD_EVENT_PAGEFAULT);
	CHECK(kt_no_message(uffd));
	CHECK(kt_blocked(&a));
	CHECK_EQ(uffd_wake(uffd, at, KT_PAGE), 0);
	CHECK(kt_message(uffd, &msg));
	CHECK_EQ(msg.arg.pagefault.address & ~(KT_PAGE - 1), at);
	CHECK_EQ(uffd_copy(uffd, at, kt_fill('r', KT_PAGE), KT_PAGE, 0), KT_PAGE);
	CHECK_EQ(kt_access_end(&a), 'r');
	return 0;
}
