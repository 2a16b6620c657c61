/* SPDX-License-Identifier: BSD-3-Clause */
/* test_mlock_sparse.c: locking future memory fills sparse files, unless on fault only. */
#include "kernel/kernel_test.h"

#include <unistd.h>
#include "sys/memfd.h"

/* Relied on by the daemon: it locks its memory with MCL_ONFAULT and maps sparse memfds. */

#define BYTES (16 << 20)

static uint64_t mapped_under(int flags)
{
	int fd = kt_memfd(BYTES, false);
	char *map;
	uint64_t allocated;

	CHECK(!mlockall(flags));
	map = mmap(NULL, BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	CHECK(map != MAP_FAILED);
	allocated = memfd_allocated(fd);
	CHECK(!munlockall());
	munmap(map, BYTES);
	close(fd);
	return allocated;
}

int main(void)
{
	CHECK_EQ(mapped_under(MCL_FUTURE), BYTES);
	CHECK_EQ(mapped_under(MCL_FUTURE | MCL_ONFAULT), 0);
	return 0;
}
