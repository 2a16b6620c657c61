/* SPDX-License-Identifier: BSD-3-Clause */
/* test_thp_partial_punch.c: a small hole in a huge page of which another page is pinned. */
#include "kernel/kernel_test.h"

#include <unistd.h>
#include "sys/uffd.h"

/* Relied on by the engine: where large folios are possible it punches whole folios, registers MINOR
 * too, and verifies the hole afterwards. */

#define MISSING_WP (UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_WP)

int main(void)
{
	int fd = kt_memfd(KT_HUGE, false), uffd = kt_uffd(UFFD_FEATURE_PAGEFAULT_FLAG_WP), ring;
	char *map = kt_map(fd, KT_HUGE), *at = map + 7 * KT_PAGE;
	const char *content = kt_fill('t', KT_PAGE);
	struct uffd_msg msg;
	struct kt_access a;

	kt_make_thp(map, 't');
	CHECK_EQ(kt_pmd_mapped(map), KT_HUGE);
	ring = kt_pin(map + 100 * KT_PAGE, KT_PAGE);
	CHECK_EQ(uffd_register(uffd, (uintptr_t)map, KT_HUGE, MISSING_WP), 0);
	CHECK_EQ(uffd_protect(uffd, (uintptr_t)at, KT_PAGE), 0);
	/* The punch succeeds, but the page is still there, only zeroed. */
	CHECK_EQ(kt_punch(fd, 7 * KT_PAGE, KT_PAGE), 0);
	CHECK(kt_cached(fd, 7 * KT_PAGE));
	kt_access_start(&a, at);
	CHECK_EQ(kt_access_end(&a), 0);
	CHECK(kt_no_message(uffd));
	/* With MINOR there is an event, and COPY cannot serve it: write, then CONTINUE. */
	at += KT_PAGE;
	CHECK_EQ(uffd_register(uffd, (uintptr_t)map, KT_HUGE,
			       MISSING_WP | UFFDIO_REGISTER_MODE_MINOR),
		 0);
	CHECK_EQ(kt_punch(fd, 8 * KT_PAGE, KT_PAGE), 0);
	kt_access_start(&a, at);
	CHECK(kt_message(uffd, &msg));
	CHECK(msg.arg.pagefault.flags & UFFD_PAGEFAULT_FLAG_MINOR);
	CHECK_EQ(uffd_copy(uffd, (uintptr_t)at, content, KT_PAGE, 0), -EEXIST);
	CHECK_EQ(pwrite(fd, content, KT_PAGE, 8 * KT_PAGE), KT_PAGE);
	CHECK_EQ(uffd_continue(uffd, (uintptr_t)at, KT_PAGE, 0), KT_PAGE);
	CHECK_EQ(kt_access_end(&a), 't');
	/* The huge page as a whole can be punched, pinned or not. */
	CHECK_EQ(kt_punch(fd, 0, KT_HUGE), 0);
	CHECK(!kt_cached(fd, 0) && !kt_cached(fd, 100 * KT_PAGE));
	kt_unpin(ring);
	return 0;
}
