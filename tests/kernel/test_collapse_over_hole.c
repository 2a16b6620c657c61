/* SPDX-License-Identifier: BSD-3-Clause */
/* test_collapse_over_hole.c: collapsing into a huge page over evicted holes. */
#include "kernel/kernel_test.h"

#include "base/error.h"
#include "sys/features.h"
#include "sys/uffd.h"

/* Relied on by features.c (collapse_safe): where a collapse fills holes with zeroes behind a
 * MISSING registration, no huge pages of shmem are allowed under eviction. */

#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif

int main(void)
{
	int fd = kt_memfd(2 * KT_HUGE, false), uffd = kt_uffd(0), r;
	char *map = kt_map(fd, 2 * KT_HUGE), *whole = map + KT_HUGE;
	struct sys_features features;
	struct uffd_msg msg;
	struct kt_access a;

	CHECK_EQ(sys_features_probe(&features), 0);
	memset(map, 'c', 2 * KT_HUGE);
	CHECK_EQ(uffd_register(uffd, (uintptr_t)map, 2 * KT_HUGE, UFFDIO_REGISTER_MODE_MISSING), 0);
	for (size_t i = 0; i < 512; i += 2)
		CHECK_EQ(kt_punch(fd, i * KT_PAGE, KT_PAGE), 0);
	r = madvise(map, KT_HUGE, MADV_COLLAPSE) ? errno : 0;
	kt_access_start(&a, map);
	if (r) {
		kt_saw("a collapse over holes fails (%s) and leaves them alone", error_text(r));
		CHECK(r == EBUSY || r == EINVAL || r == EAGAIN);
		CHECK(!kt_cached(fd, 0));
		CHECK(kt_message(uffd, &msg));
		CHECK_EQ(uffd_copy(uffd, (uintptr_t)map, kt_fill('c', KT_PAGE), KT_PAGE, 0),
			 KT_PAGE);
		CHECK_EQ(kt_access_end(&a), 'c');
	} else {
		kt_saw("a collapse over holes fills them with zeroes, without an event");
		CHECK_EQ(kt_access_end(&a), 0);
		CHECK(kt_no_message(uffd));
	}
	CHECK_EQ(features.collapse_safe, r != 0);
	/* All there: a MISSING registration does not stand in the way, WP does. */
	if (madvise(whole, KT_HUGE, MADV_COLLAPSE))
		SKIP("MADV_COLLAPSE makes no huge page of shmem here (%s)", error_text(errno));
	CHECK_EQ(kt_pmd_mapped(map), KT_HUGE + (r ? 0 : KT_HUGE));
	CHECK_EQ(uffd_register(uffd, (uintptr_t)map, 2 * KT_HUGE,
			       UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_WP),
		 0);
	CHECK_EQ(kt_punch(fd, KT_HUGE, KT_HUGE), 0);
	for (size_t i = 0; i < KT_HUGE; i += KT_PAGE)
		CHECK_EQ(uffd_copy(uffd, (uintptr_t)whole + i, kt_fill('c', KT_PAGE), KT_PAGE, 0),
			 KT_PAGE);
	CHECK_EQ(madvise(whole, KT_HUGE, MADV_COLLAPSE), -1);
	CHECK_EQ(errno, EINVAL);
	return 0;
}
