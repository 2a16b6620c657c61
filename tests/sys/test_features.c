/* SPDX-License-Identifier: BSD-3-Clause */
/* test_features.c: the probing of features, against what the kernel says in other ways. */
#include "sys/features.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include <fcntl.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/wait.h>
#include <unistd.h>

#include "kernel/kernel_test.h"
#include "sys/uffd.h"

#define FEATURE_MOVE ((uint64_t)1 << 16)

static void check_reasons(const struct sys_features *s)
{
	const struct {
		enum sys_feature f;
		bool has;
	} all[] = {
		{SYS_UFFD, s->uffd},
		{SYS_UFFD_POISON, s->uffd_poison},
		{SYS_UFFD_MOVE, s->uffd_move},
		{SYS_WP_SHMEM, s->wp_shmem},
		{SYS_WP_HUGETLB, s->wp_hugetlb},
		{SYS_MINOR_SHMEM, s->minor_shmem},
		{SYS_CONTINUE_WP, s->continue_wp},
		{SYS_PAGEMAP_SCAN, s->pagemap_scan},
		{SYS_ZAP_SCAN, s->zap_scan},
		{SYS_COLLAPSE_SAFE, s->collapse_safe},
	};

	CHECK_EQ(sizeof(all) / sizeof(*all), SYS_FEATURES);
	for (int i = 0; i < SYS_FEATURES; i++) {
		printf("%-14s %s\n", sys_feature_name(all[i].f),
		       all[i].has ? "yes" : s->why[all[i].f]);
		CHECK_EQ(all[i].has, s->why[all[i].f][0] == 0);
	}
}

static unsigned int open_fds(void)
{
	unsigned int n = 0;

	for (int fd = 0; fd < 256; fd++)
		n += fcntl(fd, F_GETFD) >= 0;
	return n;
}

/* The kernel advertises in its feature bits what the probe finds by doing. */
static void test_against_feature_bits(void **state)
{
	unsigned int fds = open_fds();
	struct sys_features s;

	assert_int_equal(sys_features_probe(&s), 0);
	check_reasons(&s);
	assert_true(s.uffd);
	assert_int_equal(s.uffd_poison, !!(s.uffd_features & UFFD_FEATURE_POISON));
	assert_int_equal(s.uffd_move, !!(s.uffd_features & FEATURE_MOVE));
	assert_int_equal(s.wp_shmem, !!(s.uffd_features & UFFD_FEATURE_WP_HUGETLBFS_SHMEM));
	assert_int_equal(s.minor_shmem, !!(s.uffd_features & UFFD_FEATURE_MINOR_SHMEM));
	/* PAGEMAP_SCAN and the asynchronous write protection came together. */
	assert_int_equal(s.pagemap_scan, !!(s.uffd_features & (1 << 15)));
	assert_int_equal(open_fds(), fds);
	/* No child is left. */
	assert_int_equal(waitpid(-1, NULL, WNOHANG), -1);
	assert_int_equal(errno, ECHILD);
}

static void in_child(void (*act)(void))
{
	int status;
	pid_t pid = fork();

	assert_true(pid >= 0);
	if (!pid) {
		act();
		fflush(NULL);
		_exit(0);
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_int_equal(status, 0);
}

/* With swap (here only by the word of a file that lies over /proc/swaps) nothing may be zapped. */
static void pretend_swap(void)
{
	char path[] = "/tmp/swaps-XXXXXX";
	static const char text[] =
		"Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n"
		"/dev/zram0                              partition\t1048572\t\t0\t\t100\n";
	struct sys_features s;
	int fd = mkstemp(path);

	CHECK(fd >= 0 && write(fd, text, sizeof(text) - 1) == sizeof(text) - 1);
	CHECK(!unshare(CLONE_NEWNS));
	CHECK(!mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL));
	CHECK(!mount(path, "/proc/swaps", NULL, MS_BIND, NULL));
	CHECK(!unlink(path));
	CHECK_EQ(sys_features_probe(&s), 0);
	check_reasons(&s);
	CHECK(!s.zap_scan);
	CHECK(strstr(s.why[SYS_ZAP_SCAN], "swap"));
	CHECK(s.uffd);
}

static void test_swap(void **state)
{
	in_child(pretend_swap);
}

static void be_nobody(void)
{
	struct sys_features s;

	CHECK(!setresgid(65534, 65534, 65534) && !setresuid(65534, 65534, 65534));
	CHECK_EQ(sys_features_probe(&s), 0);
	check_reasons(&s);
	/* Unless the administrator allows it (vm.unprivileged_userfaultfd). */
	CHECK(!s.uffd || s.wp_shmem);
}

static void test_without_privileges(void **state)
{
	in_child(be_nobody);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_against_feature_bits),
		cmocka_unit_test(test_swap),
		cmocka_unit_test(test_without_privileges),
	};

	if (geteuid()) {
		printf("skipped: needs root; runs in scripts/check as root\n");
		return 77;
	}
	return cmocka_run_group_tests_name("features", tests, NULL, NULL);
}
