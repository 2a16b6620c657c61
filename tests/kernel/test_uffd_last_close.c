/* SPDX-License-Identifier: BSD-3-Clause */
/* test_uffd_last_close.c: what a fault becomes when the last userfaultfd is closed. */
#include "kernel/kernel_test.h"

#include <fcntl.h>
#include <unistd.h>
#include "sys/uffd.h"

/* Relied on by the attach protocol (the client keeps a duplicate for its whole life) and by the
 * takeover (whoever holds a duplicate can resolve what the dead daemon left). */

static void last_close(bool huge)
{
	const size_t page = huge ? KT_HUGE : KT_PAGE;
	int fd = kt_memfd(2 * page, huge), uffd = kt_uffd(0), dup;
	char *map = kt_map(fd, 2 * page);
	const char *content = kt_fill('x', page);
	struct kt_access a, b;

	memset(map, 'x', 2 * page);
	CHECK_EQ(uffd_register(uffd, (uintptr_t)map, 2 * page, UFFDIO_REGISTER_MODE_MISSING), 0);
	CHECK_EQ(kt_punch(fd, 0, 2 * page), 0);
	dup = fcntl(uffd, F_DUPFD_CLOEXEC, 0);
	kt_access_start(&a, map);
	kt_access_start(&b, map + page);
	close(uffd);
	/* One is left: they wait, and that one can serve them. */
	CHECK(kt_blocked(&a) && kt_blocked(&b));
	CHECK_EQ(uffd_copy(dup, (uintptr_t)map, content, page, 0), page);
	CHECK_EQ(kt_access_end(&a), 'x');
	CHECK(kt_blocked(&b));
	close(dup);
	/* None is left: they go on over zeroes. */
	CHECK_EQ(kt_access_end(&b), 0);
	munmap(map, 2 * page);
	close(fd);
}

int main(void)
{
	last_close(false);
	kt_need_huge_pages(2);
	last_close(true);
	return 0;
}
