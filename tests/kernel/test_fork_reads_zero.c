/* SPDX-License-Identifier: BSD-3-Clause */
/* test_fork_reads_zero.c: a forked child reads zeroes over evicted pages, and so does then the
 * parent. */
#include "kernel/kernel_test.h"

#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>
#include "sys/uffd.h"

/* Relied on by attaching: RAM gets MADV_DONTFORK, and eviction waits while somebody else maps it
 * (mappings.c). */

int main(void)
{
	int fd = kt_memfd(4 * KT_PAGE, false), uffd = kt_uffd(0), status;
	char *map = kt_map(fd, 4 * KT_PAGE);
	struct kt_access a;
	pid_t pid;

	memset(map, 'p', 4 * KT_PAGE);
	CHECK_EQ(uffd_register(uffd, (uintptr_t)map, 4 * KT_PAGE,
			       UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_WP),
		 0);
	CHECK_EQ(kt_punch(fd, 0, KT_PAGE), 0);
	pid = fork();
	CHECK(pid >= 0);
	if (!pid)
		_exit(*(volatile char *)map);
	CHECK_EQ(waitpid(pid, &status, 0), pid);
	CHECK_EQ(status, 0);
	kt_access_start(&a, map);
	CHECK_EQ(kt_access_end(&a), 0);
	CHECK_EQ(uffd_copy(uffd, (uintptr_t)map, kt_fill('p', KT_PAGE), KT_PAGE, 0), -EEXIST);
	/* With DONTFORK the child has no such mapping, and faults. */
	CHECK(!madvise(map, 4 * KT_PAGE, MADV_DONTFORK));
	CHECK_EQ(kt_punch(fd, KT_PAGE, KT_PAGE), 0);
	pid = fork();
	CHECK(pid >= 0);
	if (!pid) {
		signal(SIGSEGV, SIG_DFL);
		_exit(*(volatile char *)(map + KT_PAGE));
	}
	CHECK_EQ(waitpid(pid, &status, 0), pid);
	CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGSEGV);
	CHECK(!kt_cached(fd, KT_PAGE));
	return 0;
}
