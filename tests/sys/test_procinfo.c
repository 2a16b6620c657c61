/* SPDX-License-Identifier: BSD-3-Clause */
/* test_procinfo.c: figures of processes, cgroups and the host, after changing them. */
#include "sys/procinfo.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include <sched.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "kernel/kernel_test.h"
#include "sys/uffd.h"

#define PAGES 64
#define BYTES (PAGES * KT_PAGE)

/* The sanitizers turn mlock() into nothing. */
static int lock(const void *at, size_t bytes)
{
	return (int)syscall(SYS_mlock, at, bytes);
}

static void test_pins(void **state)
{
	int fd = kt_memfd(BYTES, false), ring;
	uint64_t pinned, locked, now_pinned, now_locked;
	char *map = kt_map(fd, BYTES);

	assert_int_equal(procinfo_pins(getpid(), &pinned, &locked), 0);
	ring = kt_pin(map, 16 * KT_PAGE);
	assert_int_equal(lock(map + 32 * KT_PAGE, 8 * KT_PAGE), 0);
	assert_int_equal(procinfo_pins(getpid(), &now_pinned, &now_locked), 0);
	assert_int_equal(now_pinned - pinned, 16 * KT_PAGE);
	assert_int_equal(now_locked - locked, 8 * KT_PAGE);
	kt_unpin(ring);
	munmap(map, BYTES);
	assert_int_equal(procinfo_pins(getpid(), &now_pinned, &now_locked), 0);
	assert_int_equal(now_pinned, pinned);
	assert_int_equal(now_locked, locked);
	close(fd);
}

static void test_thread_cpu(void **state)
{
	cpu_set_t all, one;

	assert_int_equal(sched_getaffinity(0, sizeof(all), &all), 0);
	/* With a name that looks like what follows it in the file. */
	prctl(PR_SET_NAME, "a) b 1 2 3");
	for (unsigned int cpu = 0; cpu < CPU_SETSIZE; cpu++) {
		if (!CPU_ISSET(cpu, &all))
			continue;
		CPU_ZERO(&one);
		CPU_SET(cpu, &one);
		assert_int_equal(sched_setaffinity(0, sizeof(one), &one), 0);
		assert_int_equal(procinfo_thread_cpu(getpid(), gettid()), cpu);
	}
	assert_int_equal(sched_setaffinity(0, sizeof(all), &all), 0);
	assert_true(procinfo_thread_cpu(getpid(), 0) < 0);
}

static void test_pins_of_the_dead(void **state)
{
	uint64_t pinned, locked;
	pid_t pid = fork();

	if (!pid)
		_exit(0);
	assert_true(pid > 0);
	assert_int_equal(waitid(P_PID, (id_t)pid, NULL, WEXITED | WNOWAIT), 0);
	assert_int_equal(procinfo_pins(pid, &pinned, &locked), -ESRCH);
	waitpid(pid, NULL, 0);
	assert_int_equal(procinfo_pins(pid, &pinned, &locked), -ENOENT);
	/* A kernel thread. */
	assert_int_equal(procinfo_pins(2, &pinned, &locked), -ESRCH);
}

static int range(const char *map, uint64_t bytes, struct procinfo_range *r)
{
	return procinfo_range(getpid(), (uintptr_t)map, (uintptr_t)map + bytes, r);
}

static void test_range_flags(void **state)
{
	struct procinfo_range r;
	int fd = kt_memfd(4 * KT_HUGE, false), uffd;
	char *map = kt_map(fd, 4 * KT_HUGE);

	assert_int_equal(range(map, 4 * KT_HUGE, &r), 0);
	assert_int_equal(r.mappings, 1);
	assert_int_equal(r.mapped_bytes, 4 * KT_HUGE);
	assert_int_equal(r.min_page_bytes, KT_PAGE);
	assert_int_equal(r.max_page_bytes, KT_PAGE);
	assert_false(r.thp_advised || r.thp_refused || r.locked || r.dont_fork || r.uffd);
	/* A part of the mapping is a range too. */
	assert_int_equal(range(map + KT_PAGE, KT_PAGE, &r), 0);
	assert_int_equal(r.mapped_bytes, KT_PAGE);

	assert_int_equal(madvise(map, KT_HUGE, MADV_HUGEPAGE), 0);
	assert_int_equal(madvise(map + 2 * KT_HUGE, 2 * KT_HUGE, MADV_NOHUGEPAGE), 0);
	assert_int_equal(madvise(map, 4 * KT_HUGE, MADV_DONTFORK), 0);
	assert_int_equal(lock(map + 3 * KT_HUGE, KT_PAGE), 0);
	assert_int_equal(range(map, 4 * KT_HUGE, &r), 0);
	assert_int_equal(r.mappings, 5);
	assert_true(r.thp_advised && !r.thp_refused && r.locked && r.dont_fork && !r.uffd);
	assert_int_equal(range(map + 2 * KT_HUGE, KT_HUGE, &r), 0);
	assert_true(!r.thp_advised && r.thp_refused && !r.locked && !r.thp_eligible);

	uffd = kt_uffd(0);
	assert_int_equal(uffd_register(uffd, (uintptr_t)map + KT_HUGE, KT_HUGE,
				       UFFDIO_REGISTER_MODE_MISSING),
			 0);
	assert_int_equal(range(map + KT_HUGE, KT_HUGE, &r), 0);
	assert_true(r.uffd);
	assert_int_equal(range(map + 2 * KT_HUGE, KT_HUGE, &r), 0);
	assert_false(r.uffd);
	close(uffd);

	/* A gap. */
	munmap(map + KT_HUGE, KT_HUGE);
	assert_int_equal(range(map, 4 * KT_HUGE, &r), 0);
	assert_int_equal(r.mapped_bytes, 3 * KT_HUGE);
	assert_int_equal(range(map + KT_HUGE, KT_HUGE, &r), -EFAULT);
	munmap(map, 4 * KT_HUGE);
	close(fd);
}

static void test_range_of_hugetlb(void **state)
{
	struct procinfo_range r;
	int fd = kt_memfd(KT_HUGE, true);
	char *map = mmap(NULL, KT_HUGE, PROT_READ, MAP_SHARED | MAP_NORESERVE, fd, 0);

	assert_ptr_not_equal(map, MAP_FAILED);
	assert_int_equal(range(map, KT_HUGE, &r), 0);
	assert_int_equal(r.min_page_bytes, KT_HUGE);
	assert_int_equal(r.max_page_bytes, KT_HUGE);
	munmap(map, KT_HUGE);
	close(fd);
}

static void test_map_counts(void **state)
{
	uint64_t limit = 0, before, after;
	char *room = mmap(NULL, 9 * KT_PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	assert_int_equal(procinfo_max_map_count(&limit), 0);
	assert_true(limit > 100);
	assert_int_equal(procinfo_map_count(getpid(), &before), 0);
	for (size_t i = 1; i < 9; i += 2)
		assert_int_equal(mprotect(room + i * KT_PAGE, KT_PAGE, PROT_READ), 0);
	assert_int_equal(procinfo_map_count(getpid(), &after), 0);
	assert_int_equal(after - before, 8);
	munmap(room, 9 * KT_PAGE);
	assert_int_equal(procinfo_map_count(-1, &after), -ENOENT);
}

static void test_host(void **state)
{
	struct procinfo_host host;

	assert_int_equal(procinfo_host(&host), 0);
	assert_true(host.total_bytes >> 20 > 64);
	assert_true(host.total_bytes <=
		    (uint64_t)sysconf(_SC_PHYS_PAGES) * (uint64_t)sysconf(_SC_PAGESIZE) + 4096);
	assert_in_range(host.available_bytes, 1, host.total_bytes);
}

/* Lays text over a file of /proc for this process and its children only. */
static void overlay(const char *text, const char *target)
{
	char path[] = "/tmp/procinfo-XXXXXX";
	int fd = mkstemp(path);
	ssize_t n = (ssize_t)strlen(text);

	CHECK(fd >= 0 && write(fd, text, (size_t)n) == n);
	CHECK(!unshare(CLONE_NEWNS));
	CHECK(!mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL));
	CHECK(!mount(path, target, NULL, MS_BIND, NULL));
	CHECK(!unlink(path));
	close(fd);
}

static void test_swap(void **state)
{
	int status;
	pid_t pid = fork();

	if (!pid) {
		uint64_t bytes = 1;

		overlay("Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n"
			"/dev/sda2                               partition\t1000\t\t0\t\t-2\n"
			"/swap\\040file                           file\t\t24\t\t0\t\t-3\n",
			"/proc/swaps");
		CHECK_EQ(procinfo_swap(&bytes), 0);
		CHECK_EQ(bytes, 1024 << 10);
		CHECK(!umount("/proc/swaps"));
		overlay("Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n", "/proc/swaps");
		CHECK_EQ(procinfo_swap(&bytes), 0);
		CHECK_EQ(bytes, 0);
		_exit(0);
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_int_equal(status, 0);
}

static void test_pool(void **state)
{
	struct procinfo_pool before, after;
	int fd;
	char *map;

	assert_int_equal(procinfo_pool(12345 << 10, &before), -ENOENT);
	kt_need_huge_pages(3);
	assert_int_equal(procinfo_pool(KT_HUGE, &before), 0);
	assert_true(before.total_pages >= 3);
	fd = kt_memfd(3 * KT_HUGE, true);
	map = kt_map(fd, 3 * KT_HUGE);
	map[0] = 1;
	assert_int_equal(procinfo_pool(KT_HUGE, &after), 0);
	assert_int_equal(after.total_pages, before.total_pages);
	assert_int_equal(before.free_pages - after.free_pages, 1);
	assert_int_equal(after.reserved_pages - before.reserved_pages, 2);
	munmap(map, 3 * KT_HUGE);
	close(fd);
}

/* ---- the memory cgroup ---- */

static const char *const v1_root = "/sys/fs/cgroup/memory";
static const char *const v2_root = "/sys/fs/cgroup";

static bool put(const char *dir, const char *name, const char *text)
{
	char path[256];
	FILE *f;
	bool good;

	snprintf(path, sizeof(path), "%s/%s", dir, name);
	f = fopen(path, "we");
	if (!f)
		return false;
	good = fputs(text, f) >= 0;
	return !fclose(f) && good;
}

/* A child in a new cgroup two levels down, the outer of which has the limit. */
static void check_cgroup(const char *root, int version)
{
	char outer[128], inner[160], pid_text[16];
	struct procinfo_memcg m = {0};
	int ends[2];
	pid_t pid;
	bool good;
	char c;

	snprintf(outer, sizeof(outer), "%s/ebb-test-%d", root, getpid());
	snprintf(inner, sizeof(inner), "%s/inner", outer);
	assert_int_equal(pipe(ends), 0);
	pid = fork();
	if (!pid) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		(void)!read(ends[0], &c, 1);
		_exit(0);
	}
	snprintf(pid_text, sizeof(pid_text), "%d", pid);
	good = !mkdir(outer, 0755);
	if (version == 2)
		put(outer, "cgroup.subtree_control", "+memory");
	good = good && !mkdir(inner, 0755) &&
	       put(outer, version == 1 ? "memory.limit_in_bytes" : "memory.max", "67108864") &&
	       put(inner, "cgroup.procs", pid_text) && !procinfo_memcg(pid, &m);
	close(ends[1]);
	close(ends[0]);
	kill(pid, SIGKILL);
	waitpid(pid, NULL, 0);
	/* A cgroup is busy for a moment after its last process. */
	for (int i = 0; i < 200 && rmdir(inner) && errno == EBUSY; i++)
		usleep(5000);
	for (int i = 0; i < 200 && rmdir(outer) && errno == EBUSY; i++)
		usleep(5000);
	assert_true(good);
	assert_int_equal(m.version, version);
	assert_int_equal(m.limit_bytes, 64 << 20);
	assert_in_range(m.usage_bytes, 0, 64 << 20);
}

static void test_memcg(void **state)
{
	struct procinfo_memcg m;

	assert_int_equal(procinfo_memcg(getpid(), &m), 0);
	assert_in_range(m.version, 0, 2);
	assert_true(m.limit_bytes > 0);
	assert_int_equal(procinfo_memcg(-1, &m), -ENOENT);
	if (!access("/sys/fs/cgroup/memory/memory.limit_in_bytes", W_OK))
		check_cgroup(v1_root, 1);
	else if (put(v2_root, "cgroup.subtree_control", "+memory"))
		check_cgroup(v2_root, 2);
	else
		print_message("no memory controller here: that part runs in the lab\n");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_host),	    cmocka_unit_test(test_map_counts),
		cmocka_unit_test(test_pins),	    cmocka_unit_test(test_pins_of_the_dead),
		cmocka_unit_test(test_range_flags), cmocka_unit_test(test_range_of_hugetlb),
		cmocka_unit_test(test_swap),	    cmocka_unit_test(test_memcg),
		cmocka_unit_test(test_pool),	    cmocka_unit_test(test_thread_cpu),
	};

	if (geteuid()) {
		printf("skipped: needs root; runs in scripts/check as root\n");
		return 77;
	}
	return cmocka_run_group_tests_name("procinfo", tests, NULL, NULL);
}
