/* SPDX-License-Identifier: BSD-3-Clause */
/* test_zap_scan.c: remote zap and present scan: the exact set of pages touched in a window. */
#include "kernel/kernel_test.h"

#include <signal.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>
#include "sys/memfd.h"
#include "sys/pagemap.h"
#include "sys/procinfo.h"
#include "sys/uffd.h"

/* Relied on by the tracker of shmem: MADV_PAGEOUT by another process drops the entries and keeps
 * the data, touching maps again without an event, and WP registration keeps fault-around out of it.
 */

#define PAGES 4096
#define BYTES (PAGES * KT_PAGE)

/* Which pages the guest touches in a round: scattered, each with untouched neighbours. */
static bool touched(uint64_t page, unsigned int round)
{
	return (page * 2654435761u + round) % 7 == 0;
}

/* The guest: maps the file, then touches its pages of a round at each word. */
static void guest(int fd, int hear, int tell)
{
	char *map = kt_map(fd, BYTES), round;
	int uffd = kt_uffd(UFFD_FEATURE_PAGEFAULT_FLAG_WP);

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	madvise(map, BYTES, MADV_NOHUGEPAGE);
	CHECK_EQ(uffd_register(uffd, (uintptr_t)map, BYTES, UFFDIO_REGISTER_MODE_WP), 0);
	for (size_t i = 0; i < PAGES; i++)
		map[i * KT_PAGE] = (char)i;
	kt_settle();
	CHECK_EQ(uffd_register(uffd, (uintptr_t)map, BYTES,
			       UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_WP),
		 0);
	CHECK_EQ(write(tell, &map, sizeof(map)), sizeof(map));
	while (read(hear, &round, 1) == 1) {
		for (size_t i = 0; i < PAGES; i++)
			if (touched(i, (unsigned int)round))
				CHECK_EQ(*(volatile char *)(map + i * KT_PAGE), (char)i);
		CHECK(kt_no_message(uffd));
		CHECK_EQ(write(tell, &round, 1), 1);
	}
	_exit(0);
}

static uint64_t before[PAGES / 64], after[PAGES / 64];

static bool bit(const uint64_t *bitmap, uint64_t i)
{
	return bitmap[i / 64] >> (i % 64) & 1;
}

int main(void)
{
	int fd = kt_memfd(BYTES, false), to[2], from[2], pidfd, pagemap, status;
	uint64_t swap = 0, kept = 0, at;
	struct iovec all = {NULL, BYTES};
	pid_t pid;

	if (procinfo_swap(&swap) || swap)
		SKIP("a host without swap");
	CHECK(!pipe(to) && !pipe(from));
	pid = fork();
	CHECK(pid >= 0);
	if (!pid) {
		close(to[1]);
		guest(fd, to[0], from[1]);
	}
	CHECK_EQ(read(from[0], &all.iov_base, sizeof(all.iov_base)), sizeof(all.iov_base));
	at = (uintptr_t)all.iov_base;
	pidfd = (int)syscall(SYS_pidfd_open, pid, 0);
	pagemap = pagemap_open(pid);
	CHECK(pidfd >= 0 && pagemap >= 0);
	for (char round = 0; round < 3; round++) {
		char c;

		CHECK_EQ(pageout_zap(pidfd, &all, 1), 0);
		CHECK_EQ(pagemap_present(pagemap, at, at + BYTES, KT_PAGE, before), 0);
		CHECK_EQ(write(to[1], &round, 1), 1);
		CHECK_EQ(read(from[0], &c, 1), 1);
		CHECK_EQ(pagemap_present(pagemap, at, at + BYTES, KT_PAGE, after), 0);
		for (uint64_t i = 0; i < PAGES; i++) {
			kept += bit(before, i);
			CHECK(bit(after, i) == (bit(before, i) || touched(i, (unsigned int)round)));
		}
	}
	/* Nearly all went: the rest was in some batch just then. */
	CHECK(kept < 3 * PAGES / 100);
	CHECK_EQ(memfd_allocated(fd), BYTES);
	close(to[1]);
	CHECK_EQ(waitpid(pid, &status, 0), pid);
	CHECK_EQ(status, 0);
	return 0;
}
