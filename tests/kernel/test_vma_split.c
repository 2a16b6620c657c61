/* SPDX-License-Identifier: BSD-3-Clause */
/* test_vma_split.c: registering parts with other modes splits the mapping. */
#include "kernel/kernel_test.h"

#include <unistd.h>
#include "sys/procinfo.h"
#include "sys/uffd.h"

/* Relied on by the engine: it caps how many pieces of a mapping have modes of their own, well under
 * vm.max_map_count. */

#define WINDOWS 32

int main(void)
{
	int fd = kt_memfd(WINDOWS * KT_HUGE, false), uffd = kt_uffd(0);
	char *map = kt_map(fd, WINDOWS * KT_HUGE);
	uint64_t before, after;

	CHECK_EQ(uffd_register(uffd, (uintptr_t)map, WINDOWS * KT_HUGE,
			       UFFDIO_REGISTER_MODE_MISSING),
		 0);
	CHECK_EQ(procinfo_map_count(getpid(), &before), 0);
	for (size_t i = 0; i < WINDOWS; i += 2)
		CHECK_EQ(uffd_register(uffd, (uintptr_t)map + i * KT_HUGE, KT_HUGE,
				       UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_MINOR),
			 0);
	CHECK_EQ(procinfo_map_count(getpid(), &after), 0);
	CHECK_EQ(after - before, WINDOWS - 1);
	/* Alike again, they merge. */
	CHECK_EQ(uffd_register(uffd, (uintptr_t)map, WINDOWS * KT_HUGE,
			       UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_MINOR),
		 0);
	CHECK_EQ(procinfo_map_count(getpid(), &after), 0);
	CHECK_EQ(after, before);
	return 0;
}
