/* SPDX-License-Identifier: BSD-3-Clause */
/* test_uffd_poison.c: UFFDIO_POISON: a memory error for one page alone. */
#include "kernel/kernel_test.h"

#include <setjmp.h>
#include <signal.h>
#include "sys/uffd.h"

/* Relied on by the engine: content that cannot be brought back becomes an error of its page, never
 * zeroes. */

static sigjmp_buf back;
static volatile int code;

static void on_bus_error(int number, siginfo_t *info, void *context)
{
	code = info->si_code;
	siglongjmp(back, 1);
}

static bool readable(volatile char *at)
{
	if (sigsetjmp(back, 1))
		return false;
	(void)*at;
	return true;
}

int main(void)
{
	int fd = kt_memfd(4 * KT_PAGE, false), uffd = kt_uffd(0);
	char *map = kt_map(fd, 4 * KT_PAGE);
	struct sigaction action = {.sa_sigaction = on_bus_error, .sa_flags = SA_SIGINFO};
	int r;

	memset(map, 'a', 4 * KT_PAGE);
	CHECK_EQ(uffd_register(uffd, (uintptr_t)map, 4 * KT_PAGE, UFFDIO_REGISTER_MODE_MISSING), 0);
	CHECK_EQ(kt_punch(fd, KT_PAGE, KT_PAGE), 0);
	r = uffd_poison(uffd, (uintptr_t)map + KT_PAGE, KT_PAGE);
	if (r == -EINVAL)
		SKIP("UFFDIO_POISON (Linux 6.6)");
	CHECK_EQ(r, 0);
	CHECK(!sigaction(SIGBUS, &action, NULL));
	CHECK(!readable(map + KT_PAGE));
	/* A machine check, as KVM passes on to the guest, where the kernel knows those. */
	CHECK(code == BUS_MCEERR_AR || code == BUS_ADRERR);
	kt_saw("a poisoned page raises SIGBUS with code %s",
	       code == BUS_MCEERR_AR ? "BUS_MCEERR_AR" : "BUS_ADRERR (no CONFIG_MEMORY_FAILURE)");
	/* Again: it stays. */
	CHECK(!readable(map + KT_PAGE));
	CHECK(readable(map) && readable(map + 2 * KT_PAGE));
	CHECK_EQ(map[2 * KT_PAGE], 'a');
	/* Where a page is, there is nothing to poison. */
	CHECK_EQ(uffd_poison(uffd, (uintptr_t)map, KT_PAGE), -EEXIST);
	return 0;
}
