/* SPDX-License-Identifier: BSD-3-Clause */
/* test_mappings.c: finding who maps a file. */
#include "sys/mappings.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include <sched.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "kernel/kernel_test.h"

static struct {
	int fd;
	char *map;
	dev_t dev;
	ino_t ino;
} ram;

static int foreign(const pid_t *known, unsigned int n, struct foreign_mapping *out,
		   unsigned int max)
{
	return mappings_foreign(ram.dev, ram.ino, known, n, out, max);
}

/* Forks a child that does this and then waits to be killed. */
static pid_t fork_child(void (*act)(void))
{
	int ends[2];
	pid_t pid;
	char c;

	assert_int_equal(pipe(ends), 0);
	pid = fork();
	assert_true(pid >= 0);
	if (!pid) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		prctl(PR_SET_NAME, "a child");
		act();
		CHECK(write(ends[1], "", 1) == 1);
		for (;;)
			pause();
	}
	close(ends[1]);
	assert_int_equal(read(ends[0], &c, 1), 1);
	close(ends[0]);
	return pid;
}

static void end_child(pid_t pid)
{
	kill(pid, SIGKILL);
	waitpid(pid, NULL, 0);
}

static void keep_mapping(void)
{
}

static void unmap(void)
{
	munmap(ram.map, KT_PAGE);
}

static void map_privately(void)
{
	unmap();
	CHECK(mmap(NULL, KT_PAGE, PROT_READ, MAP_PRIVATE, ram.fd, 0) != MAP_FAILED);
}

/* A file whose name looks like the entry of ours. */
static void map_forgery(void)
{
	char name[128];
	int fd;

	unmap();
	snprintf(name, sizeof(name), "x 00000000 00:01 %llu ", (unsigned long long)ram.ino);
	fd = memfd_create(name, 0);
	CHECK(fd >= 0 && !ftruncate(fd, KT_PAGE));
	CHECK(mmap(NULL, KT_PAGE, PROT_READ, MAP_SHARED, fd, 0) != MAP_FAILED);
}

static void map_much(void)
{
	char *room = mmap(NULL, 8000 * KT_PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	CHECK(room != MAP_FAILED);
	/* Every other page: as many lines in maps, many buffers long. */
	for (size_t i = 0; i < 8000; i += 2)
		CHECK(!mprotect(room + i * KT_PAGE, KT_PAGE, PROT_READ));
}

static void test_known_is_not_foreign(void **state)
{
	struct foreign_mapping out[2] = {{0}};
	pid_t self = getpid();

	assert_int_equal(foreign(&self, 1, out, 2), 0);
	assert_int_equal(foreign(NULL, 0, out, 2), 1);
	assert_int_equal(out[0].pid, self);
	assert_string_equal(out[0].comm, "sys_mappings");
}

static void check_child(void (*act)(void), bool found)
{
	struct foreign_mapping out[2] = {{0}};
	pid_t known[2] = {getpid(), fork_child(act)};

	assert_int_equal(foreign(known, 1, out, 2), found);
	if (found) {
		assert_int_equal(out[0].pid, known[1]);
		assert_string_equal(out[0].comm, "a child");
	}
	assert_int_equal(foreign(known, 2, out, 2), 0);
	end_child(known[1]);
	assert_int_equal(foreign(known, 1, out, 2), 0);
}

static void test_forked_child(void **state)
{
	check_child(keep_mapping, true);
}

static void test_private_mapping(void **state)
{
	check_child(map_privately, true);
}

static void test_open_is_not_mapped(void **state)
{
	check_child(unmap, false);
}

static void test_name_is_no_mapping(void **state)
{
	check_child(map_forgery, false);
}

static void test_long_maps(void **state)
{
	check_child(map_much, true);
}

static void test_more_than_fit(void **state)
{
	struct foreign_mapping out[2] = {{0}};
	pid_t self = getpid(), children[3];

	for (int i = 0; i < 3; i++)
		children[i] = fork_child(keep_mapping);
	assert_int_equal(foreign(&self, 1, out, 1), 3);
	assert_int_not_equal(out[0].pid, 0);
	assert_int_equal(out[1].pid, 0);
	for (int i = 0; i < 3; i++)
		end_child(children[i]);
}

static int wait_for_kill(void *arg)
{
	for (;;)
		pause();
	return 0;
}

/* What runs in the address space of a known process faults into its userfaultfd. */
static void test_shared_address_space(void **state)
{
	static char stack[65536] __attribute__((aligned(16)));
	struct foreign_mapping out[2];
	pid_t self = getpid(), pid;

	pid = clone(wait_for_kill, stack + sizeof(stack), CLONE_VM | SIGCHLD, NULL);
	assert_true(pid > 0);
	assert_int_equal(foreign(&self, 1, out, 2), 0);
	assert_int_equal(foreign(&pid, 1, out, 2), 0);
	end_child(pid);
}

static int set_up(void **state)
{
	struct stat st;

	ram.fd = kt_memfd(KT_PAGE, false);
	ram.map = mmap(NULL, KT_PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, ram.fd, 0);
	if (ram.map == MAP_FAILED || fstat(ram.fd, &st))
		return -1;
	ram.dev = st.st_dev;
	ram.ino = st.st_ino;
	return 0;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_known_is_not_foreign),
		cmocka_unit_test(test_forked_child),
		cmocka_unit_test(test_private_mapping),
		cmocka_unit_test(test_open_is_not_mapped),
		cmocka_unit_test(test_name_is_no_mapping),
		cmocka_unit_test(test_long_maps),
		cmocka_unit_test(test_more_than_fit),
		cmocka_unit_test(test_shared_address_space),
	};

	return cmocka_run_group_tests_name("mappings", tests, set_up, NULL);
}
