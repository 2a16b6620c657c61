/* SPDX-License-Identifier: BSD-3-Clause */
/* test_hugetlb_file.c: hugetlb files: read, not written, and all data to lseek(). */
#include "kernel/kernel_test.h"

#include <unistd.h>
#include "sys/uffd.h"

/* Relied on by the engine: it reads hugetlb RAM with pread() and fills it by COPY, and asks
 * pagemap, not SEEK_DATA, what is there. */

int main(void)
{
	int fd, uffd = kt_uffd(UFFD_FEATURE_PAGEFAULT_FLAG_WP | UFFD_FEATURE_WP_HUGETLBFS_SHMEM);
	char *map, buf[8] = "";
	struct uffd_msg msg;
	struct kt_access a;

	kt_need_huge_pages(2);
	fd = kt_memfd(2 * KT_HUGE, true);
	map = kt_map(fd, 2 * KT_HUGE);
	memset(map, 'f', KT_HUGE);
	CHECK_EQ(pread(fd, buf, 8, KT_HUGE - 8), 8);
	CHECK_EQ(buf[7], 'f');
	/* A hole reads as zeroes and stays one. */
	CHECK_EQ(pread(fd, buf, 8, KT_HUGE), 8);
	CHECK_EQ(buf[7], 0);
	CHECK_EQ(pwrite(fd, buf, 8, 0), -1);
	CHECK_EQ(errno, EINVAL);
	CHECK_EQ(lseek(fd, KT_HUGE, SEEK_DATA), KT_HUGE);
	/* Write protection and eviction of a whole page. */
	CHECK_EQ(uffd_register(uffd, (uintptr_t)map, 2 * KT_HUGE,
			       UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_WP),
		 0);
	CHECK_EQ(uffd_protect(uffd, (uintptr_t)map, KT_HUGE), 0);
	kt_access_start_write(&a, map + 5, 'w');
	CHECK(kt_message(uffd, &msg));
	CHECK(msg.arg.pagefault.flags & UFFD_PAGEFAULT_FLAG_WP);
	CHECK_EQ(kt_punch(fd, 0, KT_HUGE), 0);
	CHECK_EQ(uffd_wake(uffd, (uintptr_t)map, KT_HUGE), 0);
	CHECK(kt_message(uffd, &msg));
	CHECK(!(msg.arg.pagefault.flags & UFFD_PAGEFAULT_FLAG_WP));
	CHECK_EQ(uffd_copy(uffd, (uintptr_t)map, kt_fill('f', KT_HUGE), KT_HUGE, 0), KT_HUGE);
	kt_access_end(&a);
	CHECK_EQ(map[5], 'w');
	CHECK_EQ(map[6], 'f');
	close(uffd);
	munmap(map, 2 * KT_HUGE);
	close(fd);
	return 0;
}
