/* SPDX-License-Identifier: BSD-3-Clause */
/* test_thp_cycle.c: a huge page of shmem evicted and brought back as one. */
#include "kernel/kernel_test.h"

#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>
#include "sys/pagemap.h"
#include "sys/procinfo.h"
#include "sys/uffd.h"

/* Relied on by the engine for 2 MiB-aligned shmem: register MISSING|MINOR, zap, read, punch; and
 * back: fill the file with a huge page, drop MINOR by registering anew, and the guest's own fault
 * maps it by one entry. */

#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif

/* Fills the file through a mapping of its own, as one huge page, and unmaps it again. */
static void fill(int fd, char byte)
{
	char *map = kt_map(fd, KT_HUGE);

	memset(map, byte, KT_HUGE);
	CHECK(!madvise(map, KT_HUGE, MADV_COLLAPSE));
	munmap(map, KT_HUGE);
}

int main(void)
{
	int fd = kt_memfd(KT_HUGE, false), uffd = kt_uffd(0), self;
	char *map = kt_map(fd, KT_HUGE), *copy = malloc(KT_HUGE);
	struct iovec all = {map, KT_HUGE};
	uint64_t at = (uintptr_t)map, swap = 0;
	struct kt_access a;
	struct uffd_msg msg;

	if (procinfo_swap(&swap) || swap)
		SKIP("a host without swap");
	kt_make_thp(map, 'T');
	self = (int)syscall(SYS_pidfd_open, getpid(), 0);
	CHECK(self >= 0 && copy);
	CHECK_EQ(uffd_register(uffd, at, KT_HUGE, UFFDIO_REGISTER_MODE_MISSING), 0);
	CHECK_EQ(kt_pmd_mapped(map), KT_HUGE);
	for (int round = 0; round < 3; round++) {
		/* Out. Adding MINOR does not disturb the mapping. */
		CHECK_EQ(uffd_register(uffd, at, KT_HUGE,
				       UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_MINOR),
			 0);
		kt_settle();
		CHECK_EQ(pageout_zap(self, &all, 1), 0);
		for (size_t i = 0; i < KT_HUGE; i += KT_PAGE)
			CHECK(!kt_present(0, map + i));
		CHECK_EQ(pread(fd, copy, KT_HUGE, 0), KT_HUGE);
		CHECK_EQ(copy[KT_HUGE - 1], 'T');
		CHECK_EQ(kt_punch(fd, 0, KT_HUGE), 0);
		/* And back. */
		kt_access_start(&a, map + 9 * KT_PAGE);
		CHECK(kt_message(uffd, &msg));
		CHECK_EQ(msg.arg.pagefault.flags, 0);
		fill(fd, 'T');
		CHECK(kt_blocked(&a));
		CHECK_EQ(uffd_unregister(uffd, at, KT_HUGE), 0);
		CHECK_EQ(uffd_register(uffd, at, KT_HUGE, UFFDIO_REGISTER_MODE_MISSING), 0);
		CHECK_EQ(uffd_wake(uffd, at, KT_HUGE), 0);
		CHECK_EQ(kt_access_end(&a), 'T');
		CHECK_EQ(kt_pmd_mapped(map), KT_HUGE);
	}
	return 0;
}
