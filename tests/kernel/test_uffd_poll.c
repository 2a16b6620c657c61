/* SPDX-License-Identifier: BSD-3-Clause */
/* test_uffd_poll.c: polling and reading a userfaultfd. */
#include "kernel/kernel_test.h"

#include <fcntl.h>
#include <poll.h>
#include "sys/uffd.h"

/* Relied on by the fault threads (epoll, many messages in one read) and by handing descriptors
 * over: they must be non-blocking. */

#define FAULTS 32

int main(void)
{
	int fd = kt_memfd(FAULTS * KT_PAGE, false), uffd = kt_uffd(0), flags, n = 0;
	char *map = kt_map(fd, FAULTS * KT_PAGE);
	struct pollfd p = {.fd = uffd, .events = POLLIN};
	struct uffd_msg msgs[2 * FAULTS];
	struct kt_access a[FAULTS];
	int reads = 0;

	CHECK_EQ(
		uffd_register(uffd, (uintptr_t)map, FAULTS * KT_PAGE, UFFDIO_REGISTER_MODE_MISSING),
		0);
	CHECK_EQ(poll(&p, 1, 0), 0);
	CHECK_EQ(uffd_read(uffd, msgs, 1), 0);
	for (int i = 0; i < FAULTS; i++)
		kt_access_start(&a[i], map + (size_t)i * KT_PAGE);
	CHECK(kt_blocked(&a[FAULTS - 1]));
	CHECK_EQ(poll(&p, 1, 0), 1);
	CHECK_EQ(p.revents, POLLIN);
	/* One read takes all that wait (a thread may be late). */
	while (n < FAULTS) {
		CHECK_EQ(poll(&p, 1, 2000), 1);
		n += uffd_read(uffd, msgs + n, 2 * FAULTS - n);
		reads++;
	}
	CHECK_EQ(n, FAULTS);
	CHECK(reads < FAULTS);
	for (int i = 0; i < FAULTS; i++)
		CHECK_EQ(uffd_copy(uffd, (uintptr_t)map + (size_t)i * KT_PAGE,
				   kt_fill('b', KT_PAGE), KT_PAGE, 0),
			 KT_PAGE);
	for (int i = 0; i < FAULTS; i++)
		kt_access_end(&a[i]);
	/* A blocking one cannot be polled. */
	flags = fcntl(uffd, F_GETFL);
	CHECK(!fcntl(uffd, F_SETFL, flags & ~O_NONBLOCK));
	CHECK_EQ(poll(&p, 1, 0), 1);
	CHECK(p.revents & POLLERR);
	return 0;
}
