/* SPDX-License-Identifier: BSD-3-Clause */
/* test_uffd_wp.c: write protection: what faults, what is kept, what is overwritten. */
#include "kernel/kernel_test.h"

#include <unistd.h>
#include "sys/uffd.h"

/* Relied on by the eviction protocol: protect, store, punch, and the write that comes in between.
 */

#define WP_FAULT (UFFD_PAGEFAULT_FLAG_WRITE | UFFD_PAGEFAULT_FLAG_WP)

static int uffd;

static uint64_t fault_flags(char *at)
{
	struct uffd_msg msg;

	CHECK(kt_message(uffd, &msg));
	CHECK_EQ(msg.event, UFFD_EVENT_PAGEFAULT);
	CHECK_EQ(msg.arg.pagefault.address & ~(KT_PAGE - 1), (uintptr_t)at);
	return msg.arg.pagefault.flags;
}

/* A write to a protected page faults, a read does not, and lifting it lets the write through. */
static void protected_page(char *at)
{
	struct kt_access a;

	*at = 'p';
	CHECK_EQ(uffd_protect(uffd, (uintptr_t)at, KT_PAGE), 0);
	CHECK_EQ(*(volatile char *)at, 'p');
	kt_access_start_write(&a, at, 'q');
	CHECK_EQ(fault_flags(at), WP_FAULT);
	CHECK_EQ(uffd_unprotect(uffd, (uintptr_t)at, KT_PAGE), 0);
	kt_access_end(&a);
	CHECK_EQ(*(volatile char *)at, 'q');
}

/* The writer of a page that is evicted under it: its fault turns into a missing one. */
static void punched_under_the_writer(int fd, char *at, size_t offset)
{
	const char *content = kt_fill('s', KT_PAGE);
	struct kt_access a;

	at[1] = 's';
	CHECK_EQ(uffd_protect(uffd, (uintptr_t)at, KT_PAGE), 0);
	kt_access_start_write(&a, at, 'w');
	CHECK_EQ(fault_flags(at), WP_FAULT);
	/* While the page is there still, nothing can be copied, and a wake only repeats it. */
	CHECK_EQ(uffd_copy(uffd, (uintptr_t)at, content, KT_PAGE, 0), -EEXIST);
	CHECK_EQ(uffd_wake(uffd, (uintptr_t)at, KT_PAGE), 0);
	CHECK_EQ(fault_flags(at), WP_FAULT);
	CHECK_EQ(kt_punch(fd, offset, KT_PAGE), 0);
	CHECK_EQ(uffd_wake(uffd, (uintptr_t)at, KT_PAGE), 0);
	CHECK_EQ(fault_flags(at), UFFD_PAGEFAULT_FLAG_WRITE);
	CHECK_EQ(uffd_copy(uffd, (uintptr_t)at, content, KT_PAGE, 0), KT_PAGE);
	kt_access_end(&a);
	/* The write landed on top of the restored content. */
	CHECK_EQ(at[0], 'w');
	CHECK_EQ(at[1], 's');
}

/* A marker stays where nothing is mapped: cached, or not even that. */
static void markers(int fd, char *at, size_t offset)
{
	struct kt_access a;

	CHECK_EQ(pwrite(fd, "c", 1, (off_t)offset), 1);
	CHECK_EQ(uffd_protect(uffd, (uintptr_t)at, 2 * KT_PAGE), 0);
	kt_access_start_write(&a, at, 'd');
	CHECK(fault_flags(at) & UFFD_PAGEFAULT_FLAG_WP);
	CHECK_EQ(uffd_unprotect(uffd, (uintptr_t)at, KT_PAGE), 0);
	kt_access_end(&a);
	/* Over a hole the fault is a missing one, and COPY replaces the marker. */
	at += KT_PAGE;
	kt_access_start_write(&a, at, 'h');
	CHECK(!(fault_flags(at) & UFFD_PAGEFAULT_FLAG_WP));
	CHECK_EQ(uffd_copy(uffd, (uintptr_t)at, kt_fill('g', KT_PAGE), KT_PAGE, 0), KT_PAGE);
	kt_access_end(&a);
	CHECK_EQ(at[0], 'h');
	CHECK_EQ(at[1], 'g');
}

/* COPY can leave the page protected. */
static void copied_protected(char *at)
{
	struct kt_access a;

	CHECK_EQ(
		uffd_copy(uffd, (uintptr_t)at, kt_fill('k', KT_PAGE), KT_PAGE, UFFDIO_COPY_MODE_WP),
		KT_PAGE);
	CHECK_EQ(*(volatile char *)at, 'k');
	kt_access_start_write(&a, at, 'l');
	CHECK_EQ(fault_flags(at), WP_FAULT);
	CHECK_EQ(uffd_unprotect(uffd, (uintptr_t)at, KT_PAGE), 0);
	kt_access_end(&a);
}

/* Dropping the page-table entry does not drop the protection. */
static void zapped(char *at)
{
	struct kt_access a;

	*at = 'z';
	CHECK_EQ(uffd_protect(uffd, (uintptr_t)at, KT_PAGE), 0);
	CHECK(!madvise(at, KT_PAGE, MADV_DONTNEED));
	CHECK_EQ(*(volatile char *)at, 'z');
	kt_access_start_write(&a, at, 'y');
	CHECK_EQ(fault_flags(at), WP_FAULT);
	CHECK_EQ(uffd_unprotect(uffd, (uintptr_t)at, KT_PAGE), 0);
	kt_access_end(&a);
}

int main(void)
{
	int fd = kt_memfd(16 * KT_PAGE, false);
	char *map = kt_map(fd, 16 * KT_PAGE);

	uffd = kt_uffd(UFFD_FEATURE_PAGEFAULT_FLAG_WP);
	for (size_t i = 0; i < 2; i++)
		map[i * KT_PAGE] = 1;
	map[6 * KT_PAGE] = 1;
	CHECK_EQ(uffd_register(uffd, (uintptr_t)map, 16 * KT_PAGE,
			       UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_WP),
		 0);
	protected_page(map);
	punched_under_the_writer(fd, map + KT_PAGE, KT_PAGE);
	markers(fd, map + 2 * KT_PAGE, 2 * KT_PAGE);
	copied_protected(map + 5 * KT_PAGE);
	zapped(map + 6 * KT_PAGE);
	return 0;
}
