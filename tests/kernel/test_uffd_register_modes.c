/* SPDX-License-Identifier: BSD-3-Clause */
/* test_uffd_register_modes.c: registering again adds modes and never takes one away. */
#include "kernel/kernel_test.h"

#include <unistd.h>
#include "sys/uffd.h"

/* Relied on by the engine: modes are added to a live range, and to drop one it has to unregister
 * first (only over ranges without holes, see test_uffd_unregister_hole). */

#define MISSING UFFDIO_REGISTER_MODE_MISSING
#define MINOR	UFFDIO_REGISTER_MODE_MINOR
#define WP	UFFDIO_REGISTER_MODE_WP

/* Does a page that is cached and not mapped raise a minor fault? */
static bool raises_minor(int uffd, int fd, char *at, off_t offset)
{
	struct kt_access a;
	struct uffd_msg msg;
	bool raised = false;

	CHECK_EQ(pwrite(fd, "m", 1, offset), 1);
	kt_access_start(&a, at);
	while (!raised && !a.done)
		raised = uffd_read(uffd, &msg, 1) == 1;
	if (raised) {
		CHECK(msg.arg.pagefault.flags & UFFD_PAGEFAULT_FLAG_MINOR);
		CHECK_EQ(uffd_continue(uffd, (uintptr_t)at, KT_PAGE, 0), KT_PAGE);
	}
	CHECK_EQ(kt_access_end(&a), 'm');
	return raised;
}

static void all_modes(bool huge)
{
	for (uint64_t modes = 1; modes <= 7; modes++) {
		int fd = kt_memfd(KT_HUGE, huge), uffd = kt_uffd(0);
		char *map = mmap(NULL, KT_HUGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE,
				 fd, 0);

		CHECK(map != MAP_FAILED);
		CHECK_EQ(uffd_register(uffd, (uintptr_t)map, KT_HUGE, modes), 0);
		close(uffd);
		munmap(map, KT_HUGE);
		close(fd);
	}
}

int main(void)
{
	int fd = kt_memfd(8 * KT_PAGE, false), uffd = kt_uffd(0);
	char *map = kt_map(fd, 8 * KT_PAGE);
	uint64_t at = (uintptr_t)map;

	CHECK_EQ(uffd_register(uffd, at, 8 * KT_PAGE, MISSING), 0);
	CHECK(!raises_minor(uffd, fd, map, 0));
	CHECK_EQ(uffd_register(uffd, at, 8 * KT_PAGE, MISSING | MINOR), 0);
	CHECK(raises_minor(uffd, fd, map + KT_PAGE, KT_PAGE));
	/* Fewer modes: success, and nothing changes. */
	CHECK_EQ(uffd_register(uffd, at, 8 * KT_PAGE, MISSING), 0);
	CHECK(raises_minor(uffd, fd, map + 2 * KT_PAGE, 2 * KT_PAGE));
	CHECK_EQ(uffd_unregister(uffd, at, 8 * KT_PAGE), 0);
	CHECK_EQ(uffd_register(uffd, at, 8 * KT_PAGE, MISSING), 0);
	CHECK(!raises_minor(uffd, fd, map + 3 * KT_PAGE, 3 * KT_PAGE));
	all_modes(false);
	all_modes(true);
	return 0;
}
