/* SPDX-License-Identifier: BSD-3-Clause */
/* test_crashes.c: a crash in a plugin is known to the daemons after it. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <cmocka.h>

#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "plugin/crashes.h"

#include "fake_vm.h"

#define UNITS 1000

static char folder[] = "/tmp/ebb-crashes.XXXXXX";

static struct crashes *open_record(void)
{
	struct crashes *c = NULL;
	struct error e;

	if (crashes_open(folder, &c, &e))
		fail_msg("%s", e.desc);
	return c;
}

static void forget(void)
{
	crashes_close(open_record(), true);
}

/* Every hook once. */
static void drive(uint32_t role)
{
	struct policy *p = fake_load("tests", "crash");
	const struct ebb_policy_option opt = {"in", "nothing"};
	const struct ebb_fault fault = {.unit = 1};
	const struct ebb_access_window window = {0};
	struct ebb_policy_stat stats[4];
	struct policy_instance *i;
	struct ebb_range out[4];
	uint64_t unit = 1;
	struct fake_vm v;
	struct error e;
	char buf[64];

	fake_vm_init(&v, UNITS);
	if (policy_attach(p, &v.host, &v.vm, role, &opt, 1, &i, &e))
		_exit(3);
	if (role == EBB_POLICY_PREFETCH)
		policy_prefetch_fault(i, &fault, out, 4);
	else
		policy_reclaim_fault(i, &fault);
	policy_on_access(i, &window);
	policy_pick_victims(i, 1, true, out, 4);
	policy_on_outcome(i, EBB_OUTCOME_BUSY, &unit, 1);
	policy_on_limit(i, 0, 1);
	policy_tick(i, 1);
	policy_stats(i, stats, 4);
	policy_save(i, buf, sizeof(buf));
	policy_restore(i, buf, 0, 0);
	policy_on_resize(i, UNITS + 64);
	policy_detach(i);
	policy_unload(p);
}

/* A daemon that crashes in that hook; NULL: outside of all; "kill": it is killed. */
static void daemon_dies(const char *hook, uint32_t role)
{
	int status;
	pid_t pid = fork();

	assert_true(pid >= 0);
	if (pid == 0) {
		const struct rlimit none = {0, 0};

		setrlimit(RLIMIT_CORE, &none);
		signal(SIGILL, SIG_DFL); /* cmocka's would go on with the next test */
		open_record();
		if (!hook)
			__builtin_trap();
		if (strcmp(hook, "kill") == 0)
			raise(SIGKILL);
		setenv("EBB_CRASH_IN", hook, 1);
		drive(role);
		_exit(0);
	}
	waitpid(pid, &status, 0);
	if (!WIFSIGNALED(status))
		fail_msg("%s was not called", hook);
}

static void every_hook(void **state)
{
	static const struct {
		const char *hook;
		uint32_t role;
	} hooks[] = {
		{"load", EBB_POLICY_RECLAIM},	    {"attach", EBB_POLICY_RECLAIM},
		{"config", EBB_POLICY_RECLAIM},	    {"wants", EBB_POLICY_RECLAIM},
		{"on_fault", EBB_POLICY_RECLAIM},   {"on_fault", EBB_POLICY_PREFETCH},
		{"on_access", EBB_POLICY_RECLAIM},  {"pick_victims", EBB_POLICY_RECLAIM},
		{"on_outcome", EBB_POLICY_RECLAIM}, {"on_limit", EBB_POLICY_RECLAIM},
		{"tick", EBB_POLICY_RECLAIM},	    {"stats", EBB_POLICY_RECLAIM},
		{"save", EBB_POLICY_RECLAIM},	    {"restore", EBB_POLICY_RECLAIM},
		{"on_resize", EBB_POLICY_RECLAIM},  {"detach", EBB_POLICY_RECLAIM},
		{"unload", EBB_POLICY_RECLAIM},
	};

	for (size_t i = 0; i < sizeof(hooks) / sizeof(hooks[0]); i++) {
		char text[200], want[64];
		struct crashes *c;

		daemon_dies(hooks[i].hook, hooks[i].role);
		daemon_dies(hooks[i].hook, hooks[i].role);
		c = open_record();
		if (crashes_in_row(c, CRASH_POLICY, "crash") != 2)
			fail_msg("%s: %u crashes", hooks[i].hook,
				 crashes_in_row(c, CRASH_POLICY, "crash"));
		crashes_text(c, CRASH_POLICY, "crash", text, sizeof(text));
		snprintf(want, sizeof(want), "in %s()", hooks[i].hook);
		if (!strstr(text, want))
			fail_msg("'%s' does not say '%s'", text, want);
		assert_int_equal(crashes_in_row(c, CRASH_BACKEND, "crash"), 0);
		assert_int_equal(crashes_in_row(c, CRASH_POLICY, "clock"), 0);
		crashes_close(c, true);
	}
}

/* How many in a row the next daemon sees; it is then killed. */
static unsigned int seen(void)
{
	struct crashes *c = open_record();
	unsigned int n = crashes_in_row(c, CRASH_POLICY, "crash");

	crashes_close(c, false);
	return n;
}

static void once_is_not_enough(void **state)
{
	forget();
	daemon_dies("tick", EBB_POLICY_RECLAIM);
	assert_int_equal(seen(), 0);
	daemon_dies("tick", EBB_POLICY_RECLAIM);
	assert_int_equal(seen(), 2);
	/* It stays aside, whatever kills daemons then, and whichever hook it is the next time. */
	daemon_dies("kill", 0);
	daemon_dies(NULL, 0);
	assert_int_equal(seen(), 2);
}

static void what_ends_a_row(void **state)
{
	const uint64_t long_ago = 0;
	char path[64];
	int fd;

	forget();
	daemon_dies("tick", EBB_POLICY_RECLAIM);
	daemon_dies(NULL, 0); /* a crash elsewhere */
	daemon_dies("tick", EBB_POLICY_RECLAIM);
	assert_int_equal(seen(), 0);
	daemon_dies("kill", 0); /* says nothing */
	daemon_dies("tick", EBB_POLICY_RECLAIM);
	assert_int_equal(seen(), 2);

	forget();
	daemon_dies("tick", EBB_POLICY_RECLAIM);
	daemon_dies("tick", EBB_POLICY_RECLAIM);
	/* As if that last one had started when the host did, and that were long enough ago. */
	snprintf(path, sizeof(path), "%s/crashes", folder);
	fd = open(path, O_RDWR);
	assert_int_equal(pwrite(fd, &long_ago, 8, 8), 8);
	assert_int_equal(pwrite(fd, &(uint64_t){CRASHES_APART_S}, 8, 16), 8);
	close(fd);
	assert_int_equal(seen(), 0);
	daemon_dies("tick", EBB_POLICY_RECLAIM);
	assert_int_equal(seen(), 2);

	daemon_dies("tick", EBB_POLICY_RECLAIM);
	forget(); /* a daemon that ends as it should */
	assert_int_equal(seen(), 0);
}

static void forgiven(void **state)
{
	struct crashes *c;

	forget();
	daemon_dies("tick", EBB_POLICY_RECLAIM);
	daemon_dies("tick", EBB_POLICY_RECLAIM);
	c = open_record();
	assert_int_equal(crashes_in_row(c, CRASH_POLICY, "crash"), 2);
	crashes_forgive(c, CRASH_POLICY, "clock");
	assert_int_equal(crashes_in_row(c, CRASH_POLICY, "crash"), 2);
	crashes_forgive(c, CRASH_POLICY, "crash");
	assert_int_equal(crashes_in_row(c, CRASH_POLICY, "crash"), 0);
	crashes_close(c, false);
	daemon_dies("tick", EBB_POLICY_RECLAIM);
	assert_int_equal(seen(), 0);
	daemon_dies("tick", EBB_POLICY_RECLAIM);
	assert_int_equal(seen(), 2);
}

static void nonsense_is_no_crash(void **state)
{
	char path[64], junk[4096];
	int fd;

	memset(junk, 0xff, sizeof(junk));
	snprintf(path, sizeof(path), "%s/crashes", folder);
	fd = open(path, O_RDWR);
	assert_int_equal(pwrite(fd, junk, sizeof(junk), 0), sizeof(junk));
	close(fd);
	assert_int_equal(seen(), 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(every_hook),		cmocka_unit_test(once_is_not_enough),
		cmocka_unit_test(what_ends_a_row),	cmocka_unit_test(forgiven),
		cmocka_unit_test(nonsense_is_no_crash),
	};
	char command[128];
	int r;

	if (!mkdtemp(folder))
		return 1;
	r = cmocka_run_group_tests(tests, NULL, NULL);
	snprintf(command, sizeof(command), "%s/crashes", folder);
	unlink(command);
	rmdir(folder);
	return r;
}
