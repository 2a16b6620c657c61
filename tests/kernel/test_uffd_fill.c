/* SPDX-License-Identifier: BSD-3-Clause */
/* test_uffd_fill.c: what COPY, CONTINUE and ZEROPAGE answer where something or nothing is. */
#include "kernel/kernel_test.h"

#include <unistd.h>
#include "sys/uffd.h"

/* Relied on by the engine: EEXIST and EFAULT tell it apart from the page table what the cache has,
 * and hugetlb has to be zero-filled by COPY. */

static int64_t copy(int uffd, char *at, size_t bytes)
{
	return uffd_copy(uffd, (uintptr_t)at, kt_fill('f', bytes), bytes, 0);
}

static void fill(bool huge)
{
	const size_t page = huge ? KT_HUGE : KT_PAGE;
	int fd = kt_memfd(4 * page, huge), uffd = kt_uffd(0);
	char *map = kt_map(fd, 4 * page);
	int64_t r;

	CHECK_EQ(uffd_register(uffd, (uintptr_t)map, 4 * page,
			       UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_MINOR),
		 0);
	CHECK_EQ(uffd_continue(uffd, (uintptr_t)map, page, 0), -EFAULT);
	CHECK_EQ(copy(uffd, map, page), page);
	CHECK_EQ(*(volatile char *)map, 'f');
	CHECK_EQ(copy(uffd, map, page), -EEXIST);
	CHECK_EQ(uffd_continue(uffd, (uintptr_t)map, page, 0), -EEXIST);
	/* Cached, not mapped. */
	CHECK(!madvise(map, page, MADV_DONTNEED));
	CHECK_EQ(copy(uffd, map, page), -EEXIST);
	CHECK_EQ(uffd_continue(uffd, (uintptr_t)map, page, 0), page);
	CHECK_EQ(*(volatile char *)map, 'f');
	r = uffd_zero(uffd, (uintptr_t)map + page, page);
	CHECK_EQ(r, huge ? -EINVAL : (int64_t)page);
	close(uffd);
	munmap(map, 4 * page);
	close(fd);
}

int main(void)
{
	fill(false);
	kt_need_huge_pages(4);
	fill(true);
	return 0;
}
