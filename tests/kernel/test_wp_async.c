/* SPDX-License-Identifier: BSD-3-Clause */
/* test_wp_async.c: asynchronous write protection lets writes through without a word. */
#include "kernel/kernel_test.h"

#include "sys/uffd.h"

/* Relied on by the choice of tracker: UFFD_FEATURE_WP_ASYNC is of the whole userfaultfd and so
 * cannot go with the eviction protocol, which must see every write. */

#define FEATURE_WP_ASYNC ((uint64_t)1 << 15)

int main(void)
{
	int fd = kt_memfd(KT_PAGE, false);
	int uffd = kt_uffd(UFFD_FEATURE_PAGEFAULT_FLAG_WP | FEATURE_WP_ASYNC |
			   UFFD_FEATURE_WP_UNPOPULATED | UFFD_FEATURE_WP_HUGETLBFS_SHMEM);
	char *map = kt_map(fd, KT_PAGE);
	struct kt_access a;

	map[0] = 1;
	CHECK_EQ(uffd_register(uffd, (uintptr_t)map, KT_PAGE,
			       UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_WP),
		 0);
	CHECK_EQ(uffd_protect(uffd, (uintptr_t)map, KT_PAGE), 0);
	kt_access_start_write(&a, map, 2);
	kt_access_end(&a);
	CHECK_EQ(map[0], 2);
	CHECK(kt_no_message(uffd));
	return 0;
}
