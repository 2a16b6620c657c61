/* SPDX-License-Identifier: BSD-3-Clause */
/* test_thp_split.c: a part of a huge page of shmem is protected, and all of it made whole again. */
#include "kernel/kernel_test.h"

#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>
#include "sys/procinfo.h"
#include "sys/uffd.h"

/*
 * Relied on by the engine for extents that are split: registering a mapped huge page for more does
 * not disturb it; protecting a part of it takes its mapping away, so that nobody writes to that
 * part unseen, and the rest comes back by MINOR faults; a punch of the part frees it, and its next
 * access is MISSING; and when all is there, registered anew and collapsed, one entry maps it.
 */

#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif

#define FEATURES                                                            \
	(UFFD_FEATURE_PAGEFAULT_FLAG_WP | UFFD_FEATURE_WP_HUGETLBFS_SHMEM | \
	 UFFD_FEATURE_MINOR_SHMEM)
#define MISSING UFFDIO_REGISTER_MODE_MISSING
#define SPLIT	(MISSING | UFFDIO_REGISTER_MODE_MINOR | UFFDIO_REGISTER_MODE_WP)
#define FIRST	(3 * KT_PAGE) /* of the part */
#define PART	(2 * KT_PAGE)

int main(void)
{
	int fd = kt_memfd(KT_HUGE, false), uffd = kt_uffd(FEATURES), self;
	char *map = kt_map(fd, KT_HUGE);
	uint64_t at = (uintptr_t)map, swap = 0;
	struct iovec all = {map, KT_HUGE};
	struct kt_access writer, reader;
	struct uffd_msg msg;

	if (procinfo_swap(&swap) || swap)
		SKIP("a host without swap");
	kt_make_thp(map, 'T');
	self = (int)syscall(SYS_pidfd_open, getpid(), 0);
	CHECK(self >= 0);
	CHECK_EQ(uffd_register(uffd, at, KT_HUGE, MISSING), 0);
	for (int round = 0; round < 3; round++) {
		CHECK_EQ(kt_pmd_mapped(map), KT_HUGE);
		CHECK_EQ(uffd_register(uffd, at, KT_HUGE, SPLIT), 0);
		CHECK_EQ(kt_pmd_mapped(map), KT_HUGE);
		CHECK_EQ(uffd_protect(uffd, at + FIRST, PART), 0);
		CHECK_EQ(kt_pmd_mapped(map), 0);
		/* A write to the part is told, before it happens. */
		kt_access_start_write(&writer, map + FIRST, 'W');
		CHECK(kt_message(uffd, &msg));
		CHECK(msg.arg.pagefault.flags &
		      (UFFD_PAGEFAULT_FLAG_WP | UFFD_PAGEFAULT_FLAG_MINOR));
		CHECK(kt_blocked(&writer));
		/* The rest is in the cache. */
		kt_access_start(&reader, map + FIRST + PART);
		CHECK(kt_message(uffd, &msg));
		CHECK(msg.arg.pagefault.flags & UFFD_PAGEFAULT_FLAG_MINOR);
		CHECK_EQ(uffd_continue(uffd, at + FIRST + PART, KT_PAGE, 0), KT_PAGE);
		CHECK_EQ(kt_access_end(&reader), 'T');
		/* The part goes, and its neighbours stay. */
		CHECK_EQ(kt_punch(fd, FIRST, PART), 0);
		CHECK(!kt_cached(fd, FIRST) && !kt_cached(fd, FIRST + PART - KT_PAGE));
		CHECK(kt_cached(fd, FIRST - KT_PAGE) && kt_cached(fd, FIRST + PART));
		CHECK_EQ(uffd_wake(uffd, at, KT_HUGE), 0);
		CHECK(kt_message(uffd, &msg));
		CHECK_EQ(msg.arg.pagefault.flags & ~(uint64_t)UFFD_PAGEFAULT_FLAG_WRITE, 0);
		CHECK_EQ(uffd_copy(uffd, at + FIRST, kt_fill('T', KT_PAGE), KT_PAGE, 0), KT_PAGE);
		kt_access_end(&writer);
		CHECK_EQ(map[FIRST], 'W');
		CHECK_EQ(uffd_copy(uffd, at + FIRST + KT_PAGE, kt_fill('T', KT_PAGE), KT_PAGE, 0),
			 KT_PAGE);
		/* Whole again. */
		CHECK_EQ(uffd_unregister(uffd, at, KT_HUGE), 0);
		CHECK_EQ(uffd_register(uffd, at, KT_HUGE, MISSING), 0);
		kt_settle();
		CHECK_EQ(syscall(SYS_process_madvise, self, &all, 1, MADV_COLLAPSE, 0), KT_HUGE);
		CHECK_EQ(kt_pmd_mapped(map), KT_HUGE);
		for (size_t i = 0; i < KT_HUGE; i += KT_PAGE)
			CHECK_EQ(map[i], i == FIRST ? 'W' : 'T');
		map[FIRST] = 'T';
	}
	return 0;
}
