/* SPDX-License-Identifier: BSD-3-Clause */
/* test_hole_read.c: reading a hole: through a mapping it fills it, by pread() it does not. */
#include "kernel/kernel_test.h"

#include <unistd.h>
#include "sys/uffd.h"

/* Relied on by the engine: it keeps guest RAM unmapped and reads it with pread(). */

int main(void)
{
	int fd = kt_memfd(4 * KT_PAGE, false), uffd = kt_uffd(0);
	char *guest = kt_map(fd, 4 * KT_PAGE), *daemon = kt_map(fd, 4 * KT_PAGE), c = 1;

	memset(guest, 'g', 4 * KT_PAGE);
	CHECK_EQ(uffd_register(uffd, (uintptr_t)guest, 4 * KT_PAGE, UFFDIO_REGISTER_MODE_MISSING),
		 0);
	CHECK_EQ(kt_punch(fd, 0, KT_PAGE), 0);
	CHECK_EQ(pread(fd, &c, 1, 0), 1);
	CHECK_EQ(c, 0);
	CHECK(!kt_cached(fd, 0));
	c = *(volatile char *)daemon;
	CHECK_EQ(c, 0);
	CHECK(kt_cached(fd, 0));
	/* And the stored content cannot be put there any more. */
	CHECK_EQ(uffd_copy(uffd, (uintptr_t)guest, kt_fill('g', KT_PAGE), KT_PAGE, 0), -EEXIST);
	return 0;
}
