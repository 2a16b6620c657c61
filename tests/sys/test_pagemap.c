/* SPDX-License-Identifier: BSD-3-Clause */
/* test_pagemap.c: present bits and remote zapping, on a child whose pages are known. */
#include "sys/pagemap.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "kernel/kernel_test.h"
#include "sys/procinfo.h"

#define PAGES 3000
#define WORDS ((PAGES + 63) / 64)

static bool bit(const uint64_t *bitmap, uint64_t i)
{
	return bitmap[i / 64] >> (i % 64) & 1;
}

static int present(const char *map, uint64_t bytes, uint64_t page_size, uint64_t *bitmap)
{
	int fd = pagemap_open(getpid()), r;

	assert_true(fd >= 0);
	r = pagemap_present(fd, (uintptr_t)map, (uintptr_t)map + bytes, page_size, bitmap);
	close(fd);
	return r;
}

/* Maps a file of so many pages without huge pages; registers nothing. */
static char *map_small(int *fd, uint64_t pages)
{
	char *map;

	*fd = kt_memfd(pages * KT_PAGE, false);
	map = kt_map(*fd, pages * KT_PAGE);
	madvise(map, pages * KT_PAGE, MADV_NOHUGEPAGE);
	return map;
}

/* Runs of all lengths, more of them than fit one answer of the kernel's. */
static bool wanted(uint64_t i)
{
	return i % 3 == 0 || (i > 1000 && i < 1200) || i == PAGES - 1;
}

static void check_exact(void)
{
	uint64_t bitmap[WORDS + 1];
	int fd;
	char *map = map_small(&fd, PAGES);

	for (uint64_t i = 0; i < PAGES; i++)
		if (wanted(i))
			map[i * KT_PAGE] = 1;
	memset(bitmap, 0xff, sizeof(bitmap));
	CHECK_EQ(present(map, PAGES * KT_PAGE, KT_PAGE, bitmap), 0);
	for (uint64_t i = 0; i < PAGES; i++)
		CHECK_EQ(bit(bitmap, i), wanted(i));
	CHECK_EQ(bitmap[WORDS], UINT64_MAX);
	/* In units: any part counts. */
	CHECK_EQ(present(map, PAGES / 512 * KT_HUGE, KT_HUGE, bitmap), 0);
	CHECK_EQ(bitmap[0], (1 << PAGES / 512) - 1);
	CHECK(!madvise(map + KT_HUGE, KT_HUGE, MADV_DONTNEED));
	map[KT_HUGE + 77 * KT_PAGE] = 1;
	CHECK(!madvise(map + 2 * KT_HUGE, KT_HUGE, MADV_DONTNEED));
	CHECK_EQ(present(map, PAGES / 512 * KT_HUGE, KT_HUGE, bitmap), 0);
	CHECK_EQ(bitmap[0], ((1 << PAGES / 512) - 1) & ~4);
	munmap(map, PAGES * KT_PAGE);
	close(fd);
}

static void test_exact(void **state)
{
	check_exact();
}

/* Has the kernel answer ioctls of pagemap's kind as one that knows none: from here on. */
static void refuse_scan(void)
{
	struct sock_filter code[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_ioctl, 0, 3),
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, args[1])),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, _IOC(3U, 'f', 16, 96), 0, 1),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | ENOTTY),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog prog = {sizeof(code) / sizeof(*code), code};

	CHECK(!prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
	CHECK(!prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &prog));
}

static void test_exact_without_scan(void **state)
{
	int status;
	pid_t pid = fork();

	assert_true(pid >= 0);
	if (!pid) {
		int fd;

		refuse_scan();
		fd = pagemap_open(getpid());
		CHECK(!pagemap_can_scan(fd));
		check_exact();
		_exit(0);
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_int_equal(status, 0);
}

static void test_large_range(void **state)
{
	const uint64_t pages = UINT64_C(1) << 20;
	uint64_t *bitmap = calloc(pages / 64, sizeof(*bitmap)), set = 0;
	int fd;
	char *map = map_small(&fd, pages);

	assert_non_null(bitmap);
	map[0] = map[(pages / 2 + 1) * KT_PAGE] = map[(pages - 1) * KT_PAGE] = 1;
	assert_int_equal(present(map, pages * KT_PAGE, KT_PAGE, bitmap), 0);
	for (uint64_t i = 0; i < pages / 64; i++)
		set += (uint64_t)__builtin_popcountll(bitmap[i]);
	assert_int_equal(set, 3);
	assert_true(bit(bitmap, 0) && bit(bitmap, pages / 2 + 1) && bit(bitmap, pages - 1));
	free(bitmap);
	munmap(map, pages * KT_PAGE);
	close(fd);
}

static void test_wrong_ranges(void **state)
{
	uint64_t word;
	int fd = pagemap_open(getpid());

	assert_int_equal(pagemap_present(fd, 1, 4097, 4096, &word), -EINVAL);
	assert_int_equal(pagemap_present(fd, 4096, 8192, 8192, &word), -EINVAL);
	assert_int_equal(pagemap_present(fd, 4096, 8192, 2048, &word), -EINVAL);
	assert_int_equal(pagemap_present(fd, 4096, 8192, 12288, &word), -EINVAL);
	assert_int_equal(pagemap_present(fd, 8192, 4096, 4096, &word), -EINVAL);
	assert_int_equal(pagemap_present(fd, 4096, 4096, 4096, &word), 0);
	close(fd);
	assert_int_equal(pagemap_open(-1), -ENOENT);
}

/* A child with a file mapped that nobody else has. */
struct child {
	pid_t pid;
	int pidfd;
	char *map;
};

static void start_child(struct child *c)
{
	int ends[2];

	assert_int_equal(pipe(ends), 0);
	c->pid = fork();
	assert_true(c->pid >= 0);
	if (!c->pid) {
		int fd;
		char *map = map_small(&fd, PAGES);

		prctl(PR_SET_PDEATHSIG, SIGKILL);
		memset(map, 1, PAGES * KT_PAGE);
		kt_settle();
		CHECK(write(ends[1], &map, sizeof(map)) == sizeof(map));
		for (;;)
			pause();
	}
	close(ends[1]);
	assert_int_equal(read(ends[0], &c->map, sizeof(c->map)), sizeof(c->map));
	close(ends[0]);
	c->pidfd = (int)syscall(SYS_pidfd_open, c->pid, 0);
	assert_true(c->pidfd >= 0);
}

static void end_child(struct child *c)
{
	kill(c->pid, SIGKILL);
	waitpid(c->pid, NULL, 0);
	close(c->pidfd);
}

static void test_zap_just_these(void **state)
{
	struct iovec ranges[PAGES / 2];
	uint64_t bitmap[WORDS], swap = 1, kept = 0;
	struct child c;
	int fd;

	assert_int_equal(procinfo_swap(&swap), 0);
	if (swap) {
		print_message("swap is on, which would take the pages: runs in the lab\n");
		return;
	}
	start_child(&c);
	/* More ranges than one call takes. */
	for (unsigned int i = 0; i < PAGES / 2; i++)
		ranges[i] = (struct iovec){c.map + 2 * i * KT_PAGE, KT_PAGE};
	assert_int_equal(pageout_zap(c.pidfd, ranges, PAGES / 2), 0);
	fd = pagemap_open(c.pid);
	assert_int_equal(pagemap_present(fd, (uintptr_t)c.map, (uintptr_t)c.map + PAGES * KT_PAGE,
					 KT_PAGE, bitmap),
			 0);
	close(fd);
	for (uint64_t i = 0; i < PAGES; i++) {
		if (i % 2)
			assert_true(bit(bitmap, i));
		else
			kept += bit(bitmap, i);
	}
	/* All, but for what something else looked at just then. */
	assert_in_range(kept, 0, PAGES / 100);
	assert_int_equal(pageout_zap(c.pidfd, ranges, 0), 0);
	end_child(&c);
}

static void test_errors(void **state)
{
	struct iovec unmapped = {(void *)KT_PAGE, KT_PAGE}, range;
	uint64_t word;
	struct child c;
	int fd;

	start_child(&c);
	assert_int_equal(pageout_zap(c.pidfd, &unmapped, 1), -ENOMEM);
	assert_int_equal(pageout_zap(-1, &unmapped, 1), -EBADF);
	fd = pagemap_open(c.pid);
	range = (struct iovec){c.map, KT_PAGE};
	kill(c.pid, SIGKILL);
	waitpid(c.pid, NULL, 0);
	assert_int_equal(pageout_zap(c.pidfd, &range, 1), -ESRCH);
	/* The descriptor outlives the address space and says so. */
	assert_int_equal(
		pagemap_present(fd, (uintptr_t)c.map, (uintptr_t)c.map + KT_PAGE, KT_PAGE, &word),
		-ESRCH);
	assert_int_equal(pagemap_open(c.pid), -ENOENT);
	close(fd);
	close(c.pidfd);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_wrong_ranges),
		cmocka_unit_test(test_exact),
		cmocka_unit_test(test_exact_without_scan),
		cmocka_unit_test(test_large_range),
		cmocka_unit_test(test_errors),
		cmocka_unit_test(test_zap_just_these),
	};

	return cmocka_run_group_tests_name("pagemap", tests, NULL, NULL);
}
