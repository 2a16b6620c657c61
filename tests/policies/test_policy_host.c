/* SPDX-License-Identifier: BSD-3-Clause */
/* test_policy_host.c: what the wrapper does with good, bad, slow and hostile policies. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <cmocka.h>

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"

#include "fake_vm.h"

#define UNITS 1000

static struct policy_instance *attach(struct policy *p, struct fake_vm *v, uint32_t role)
{
	struct policy_instance *i = NULL;
	struct error e = {0};

	if (policy_attach(p, &v->host, &v->vm, role, NULL, 0, &i, &e))
		fail_msg("%s", e.desc);
	return i;
}

static void set_option(struct policy_instance *i, const char *name, const char *value)
{
	const struct ebb_policy_option opt = {name, value};
	struct error e = {0};

	if (policy_config(i, &opt, &e))
		fail_msg("%s", e.desc);
}

static void must_not_load(const char *name, int code, const char *says)
{
	char dir[4096];
	struct plugin_path path = {.dirs = {dir}, .n_dirs = 1};
	struct policy *p = NULL;
	struct error e = {0};

	snprintf(dir, sizeof(dir), "%s/tests", getenv("EBB_BUILD"));
	assert_int_equal(policy_load(&path, name, NULL, &p, &e), -code);
	assert_null(p);
	if (!strstr(e.desc, says))
		fail_msg("%s: '%s' does not say '%s'", name, e.desc, says);
}

/* ---- loading ---- */

static void test_load_tells_about_the_policy(void **state)
{
	struct policy *p = fake_load("tests", "probe");

	assert_string_equal(policy_name(p), "probe");
	assert_non_null(strstr(policy_file(p), "tests/policies/probe.so"));
	assert_string_equal(policy_description(p), "For tests: keeps a record");
	assert_int_equal(policy_roles(p), EBB_POLICY_RECLAIM | EBB_POLICY_PREFETCH);
	assert_string_equal(policy_option_help(p)[0], "level: where the victims begin");
	policy_unload(p);
	policy_unload(NULL);
}

static void test_load_by_file(void **state)
{
	struct plugin_path path = {.n_dirs = 0};
	struct policy *p = NULL;
	struct error e = {0};
	char file[4096];

	snprintf(file, sizeof(file), "%s/tests/policies/probe.so", getenv("EBB_BUILD"));
	assert_int_equal(policy_load(&path, "my-own-name", file, &p, &e), 0);
	assert_string_equal(policy_name(p), "my-own-name");
	policy_unload(p);
}

static void test_load_refuses_bad_plugins(void **state)
{
	must_not_load("bad-abi", EINVAL, "bad-abi");
	must_not_load("bad-size", EINVAL, "bad-size");
	must_not_load("bad-null", EINVAL, "no descriptor");
	must_not_load("bad-role", EINVAL, "no role");
	must_not_load("bad-roles", EINVAL, "0x100");
	must_not_load("bad-pick", EINVAL, "pick_victims");
	must_not_load("bad-fault", EINVAL, "on_fault");
	must_not_load("bad-detach", EINVAL, "detach");
	must_not_load("bad-restore", EINVAL, "restore");
	must_not_load("bad-load", EPERM, "the moon is in the wrong quarter");
	must_not_load("there-is-none", ENOENT, "there-is-none");
	must_not_load("../probe", EINVAL, "name");
	must_not_load("", EINVAL, "name");
}

static void test_older_plugin_lacks_its_tail_only(void **state)
{
	struct policy *p = fake_load("tests", "short");
	struct fake_vm v;
	struct policy_instance *i;
	struct ebb_range out[4];

	fake_vm_init(&v, UNITS);
	i = attach(p, &v, EBB_POLICY_RECLAIM);
	/* It has a tick, but its size says that it does not know of any. */
	assert_int_equal(policy_tick(i, 1), 0);
	assert_int_equal(policy_pick_victims(i, 4, true, out, 4), 0);
	assert_false(policy_wants_windows(i));
	assert_true(policy_wants_faults(i));
	policy_detach(i);
	fake_vm_free(&v);
	policy_unload(p);
}

/* ---- attaching and options ---- */

static void test_attach_errors(void **state)
{
	struct policy *p = fake_load("tests", "bad-attach"), *clock = fake_load(".", "clock");
	struct policy_instance *i = NULL;
	struct error e = {0};
	struct fake_vm v;

	fake_vm_init(&v, UNITS);
	assert_int_equal(policy_attach(p, &v.host, &v.vm, EBB_POLICY_RECLAIM, NULL, 0, &i, &e),
			 -EMFILE);
	assert_non_null(strstr(e.desc, "no more than zero VMs"));
	assert_int_equal(policy_attach(clock, &v.host, &v.vm, EBB_POLICY_PREFETCH, NULL, 0, &i, &e),
			 -EINVAL);
	assert_non_null(strstr(e.desc, "prefetch"));
	assert_int_equal(policy_attach(p, &v.host, &v.vm, 3, NULL, 0, &i, &e), -EINVAL);
	assert_null(i);
	fake_vm_free(&v);
	policy_unload(p);
	policy_unload(clock);
}

static void test_options_all_or_nothing(void **state)
{
	struct policy *p = fake_load("tests", "probe");
	const struct ebb_policy_option good[] = {{"level", "7"}, {"windows", "1"}};
	const struct ebb_policy_option unknown[] = {{"level", "7"}, {"colour", "red"}};
	const struct ebb_policy_option wrong[] = {{"level", "7"}, {"level", "high"}};
	struct policy_instance *watch, *i = NULL;
	struct error e = {0};
	struct fake_vm v;

	fake_vm_init(&v, UNITS);
	watch = attach(p, &v, EBB_POLICY_RECLAIM);
	assert_int_equal(policy_attach(p, &v.host, &v.vm, EBB_POLICY_RECLAIM, unknown, 2, &i, &e),
			 -ENOENT);
	assert_non_null(strstr(e.desc, "colour"));
	assert_non_null(strstr(e.desc, "level, windows, resize-fails"));
	assert_int_equal(policy_attach(p, &v.host, &v.vm, EBB_POLICY_RECLAIM, wrong, 2, &i, &e),
			 -EINVAL);
	assert_non_null(strstr(e.desc, "'level' cannot be 'high'"));
	assert_null(i);
	assert_int_equal(fake_stat(watch, "live"), 1);

	assert_int_equal(policy_attach(p, &v.host, &v.vm, EBB_POLICY_RECLAIM, good, 2, &i, &e), 0);
	assert_int_equal(fake_stat(i, "level"), 7);
	assert_int_equal(fake_stat(i, "live"), 2);
	assert_ptr_equal(policy_of(i), p);
	policy_detach(i);
	assert_int_equal(fake_stat(watch, "live"), 1);
	policy_detach(watch);
	policy_detach(NULL);
	fake_vm_free(&v);
	policy_unload(p);
}

static void test_policy_without_options(void **state)
{
	struct policy *p = fake_load(".", "null");
	const struct ebb_policy_option opt = {"level", "7"}, nameless = {NULL, "7"};
	struct policy_instance *i;
	struct error e = {0};
	struct fake_vm v;

	fake_vm_init(&v, UNITS);
	i = attach(p, &v, EBB_POLICY_RECLAIM);
	assert_int_equal(policy_config(i, &opt, &e), -ENOENT);
	assert_non_null(strstr(e.desc, "it has: none"));
	assert_int_equal(policy_config(i, &nameless, &e), -EINVAL);
	policy_detach(i);
	fake_vm_free(&v);
	policy_unload(p);
}

static void test_wants_follow_options(void **state)
{
	struct policy *p = fake_load("tests", "probe");
	uint64_t bitmap[(UNITS + 63) / 64] = {0};
	const struct ebb_access_window w = {
		.size = sizeof(w), .count = UNITS, .watched = bitmap, .accessed = bitmap};
	struct policy_instance *i;
	struct fake_vm v;

	fake_vm_init(&v, UNITS);
	i = attach(p, &v, EBB_POLICY_RECLAIM);
	assert_true(policy_wants_faults(i));
	assert_false(policy_wants_windows(i));
	policy_on_access(i, &w);
	assert_int_equal(fake_stat(i, "windows"), 0);
	set_option(i, "windows", "1");
	assert_true(policy_wants_windows(i));
	policy_on_access(i, &w);
	assert_int_equal(fake_stat(i, "windows"), 1);
	policy_detach(i);
	fake_vm_free(&v);
	policy_unload(p);
}

/* ---- advice ---- */

static void test_victims_are_clipped(void **state)
{
	struct policy *p = fake_load("tests", "probe");
	struct policy_instance *i;
	struct ebb_range out[4];
	struct fake_vm v;

	fake_vm_init(&v, UNITS);
	i = attach(p, &v, EBB_POLICY_RECLAIM);
	/* "All of it" for 10 wanted is cut to about 10. */
	assert_int_equal(policy_pick_victims(i, 10, false, out, 4), 1);
	assert_int_equal(out[0].first, 0);
	assert_int_equal(out[0].count, 20);
	set_option(i, "level", "995");
	assert_int_equal(policy_pick_victims(i, 10, false, out, 4), 1);
	assert_int_equal(out[0].count, 5);
	assert_int_equal(fake_stat(i, "ranges-clipped"), 2);
	set_option(i, "level", "1000");
	assert_int_equal(policy_pick_victims(i, 10, false, out, 4), 0);
	assert_int_equal(fake_stat(i, "ranges-dropped"), 1);
	/* The VM has grown: the same advice is sound now. */
	fake_vm_grow(&v, 2 * UNITS);
	policy_on_resize(i, 2 * UNITS);
	assert_int_equal(fake_stat(i, "resizes"), 1);
	assert_int_equal(policy_pick_victims(i, 10, false, out, 4), 1);
	assert_int_equal(policy_pick_victims(i, 0, true, out, 4), 0);
	assert_int_equal(policy_pick_victims(i, 10, true, out, 0), 0);
	assert_int_equal(policy_tick(i, 1), 2 * UNITS);
	policy_detach(i);
	fake_vm_free(&v);
	policy_unload(p);
}

static void test_prefetch_is_clipped(void **state)
{
	struct policy *p = fake_load("tests", "probe");
	struct ebb_fault f = {.unit = UNITS - 3, .flags = EBB_FAULT_LOADED};
	struct ebb_range out[8];
	struct policy_instance *i;
	struct fake_vm v;

	fake_vm_init(&v, UNITS);
	i = attach(p, &v, EBB_POLICY_PREFETCH);
	assert_int_equal(policy_prefetch_fault(i, &f, out, 8), 2);
	assert_int_equal(out[0].first, UNITS - 2);
	assert_int_equal(out[1].first, UNITS - 1);
	assert_int_equal(policy_prefetch_fault(i, &f, out, 0), 0);
	assert_int_equal(fake_stat(i, "ranges-dropped"), 6);
	assert_int_equal(fake_stat(i, "faults"), 1);
	policy_detach(i);
	fake_vm_free(&v);
	policy_unload(p);
}

static void test_malicious_policy_is_contained(void **state)
{
	struct policy *p = fake_load("tests", "malicious");
	uint64_t bitmap[(UNITS + 63) / 64] = {0}, unit = 5;
	const struct ebb_access_window w = {
		.size = sizeof(w), .count = UNITS, .watched = bitmap, .accessed = bitmap};
	const struct ebb_fault f = {.unit = 1, .flags = EBB_FAULT_LOADED};
	struct ebb_policy_stat stats[8];
	struct policy_instance *i;
	struct ebb_range out[16];
	struct fake_vm v;
	char buf[16];

	fake_vm_init(&v, UNITS);
	i = attach(p, &v, EBB_POLICY_PREFETCH);
	for (int round = 0; round < 30; round++) {
		uint32_t n = policy_prefetch_fault(i, &f, out, 16);
		uint32_t m = policy_pick_victims(i, 100, round % 2, out, 16);

		assert_true(n <= 16 && m <= 16);
		for (uint32_t k = 0; k < m; k++)
			assert_true(out[k].count && out[k].first < UNITS &&
				    out[k].count <= UNITS - out[k].first);
		policy_reclaim_fault(i, &f);
		policy_on_access(i, &w);
		policy_on_outcome(i, EBB_OUTCOME_EVICTED, &unit, 1);
		assert_int_equal(policy_tick(i, 1), UNITS);
	}
	/* What is forbidden on the fault path was refused every time. */
	assert_int_equal(fake_stat(i, "not-refused"), 0);
	assert_true(policy_stats(i, stats, 8) > 8);
	for (int k = 0; k < 4; k++)
		assert_true(stats[k].name && stats[k].help);
	assert_int_equal(policy_save(i, buf, sizeof(buf)), -EOVERFLOW);
	assert_true(policy_restore(i, buf, sizeof(buf), 1) < 0);
	assert_true(fake_stat(i, "not-refused") == 0 && v.logged > 0);
	assert_non_null(strstr(v.last_log, "policy malicious: "));
	policy_detach(i);
	fake_vm_free(&v);
	policy_unload(p);
}

static void test_state_goes_around(void **state)
{
	struct policy *p = fake_load("tests", "probe");
	struct policy_instance *i;
	struct fake_vm v;
	char buf[64];

	fake_vm_init(&v, UNITS);
	i = attach(p, &v, EBB_POLICY_RECLAIM);
	set_option(i, "level", "77");
	assert_int_equal(policy_state_version(i), 3);
	assert_int_equal(policy_save(i, buf, sizeof(buf)), 8);
	assert_int_equal(policy_save(i, buf, 4), -ENOSPC);
	set_option(i, "level", "0");
	assert_int_equal(policy_restore(i, buf, 8, 2), -EPROTO);
	assert_int_equal(policy_restore(i, buf, 7, 3), -EINVAL);
	assert_int_equal(policy_restore(i, buf, 8, 3), 0);
	assert_int_equal(fake_stat(i, "level"), 77);
	assert_true(policy_state_bytes(i) > 1000);
	policy_detach(i);
	fake_vm_free(&v);
	policy_unload(p);
}

/* ---- time ---- */

static void test_hooks_are_timed(void **state)
{
	struct policy *p = fake_load("tests", "slow");
	struct policy_instance *i;
	struct ebb_range out[1];
	struct fake_vm v;
	uint64_t before;

	fake_vm_init(&v, UNITS);
	i = attach(p, &v, EBB_POLICY_RECLAIM);
	set_option(i, "pick-us", "3000");
	before = policy_hook_time(i)->count;
	policy_pick_victims(i, 1, false, out, 1);
	assert_int_equal(policy_hook_time(i)->count, before + 1);
	assert_true(policy_hook_time(i)->max >= 3000000);
	policy_detach(i);
	fake_vm_free(&v);
	policy_unload(p);
}

static void test_slow_serial_hook_is_put_aside(void **state)
{
	struct policy *p = fake_load("tests", "slow");
	const struct ebb_policy_option opt = {"pick-us", "0"};
	const struct ebb_fault f = {.unit = 1};
	struct policy_instance *i;
	struct error e = {0};
	struct ebb_range out[1];
	struct fake_vm v;

	fake_vm_init(&v, UNITS);
	i = attach(p, &v, EBB_POLICY_RECLAIM);
	set_option(i, "pick-us", "55000");
	for (int k = 0; k < 7; k++) {
		assert_int_equal(policy_pick_victims(i, 1, false, out, 1), 1);
		/* Quick calls of other hooks do not make up for it. */
		for (int t = 0; t < 64; t++)
			assert_int_equal(policy_tick(i, 1), 1);
		assert_null(policy_failed(i));
	}
	policy_pick_victims(i, 1, false, out, 1);
	assert_non_null(policy_failed(i));
	assert_non_null(strstr(policy_failed(i), "slow"));
	assert_non_null(strstr(policy_failed(i), "pick_victims"));
	/* From now on it is the null policy. */
	assert_int_equal(policy_pick_victims(i, 1, true, out, 1), 0);
	assert_int_equal(policy_tick(i, 1), 0);
	assert_int_equal(policy_prefetch_fault(i, &f, out, 1), 0);
	assert_false(policy_wants_faults(i));
	assert_int_equal(policy_config(i, &opt, &e), -EIO);
	policy_on_resize(i, UNITS);
	policy_detach(i);
	fake_vm_free(&v);
	policy_unload(p);
}

static void test_seldom_slow_hook_is_forgiven(void **state)
{
	struct policy *p = fake_load("tests", "slow");
	const struct ebb_fault f = {.unit = 1};
	struct policy_instance *i;
	struct fake_vm v;

	fake_vm_init(&v, UNITS);
	i = attach(p, &v, EBB_POLICY_RECLAIM);
	for (int k = 0; k < 4; k++) {
		set_option(i, "fault-us", "60000");
		policy_reclaim_fault(i, &f);
		policy_reclaim_fault(i, &f);
		set_option(i, "fault-us", "0");
		for (int t = 0; t < 64; t++)
			policy_reclaim_fault(i, &f);
	}
	assert_null(policy_failed(i));
	policy_detach(i);
	fake_vm_free(&v);
	policy_unload(p);
}

/* Asleep or at work, it is the hook's own doing. */
static void test_slow_fault_hook_is_put_aside(void **state)
{
	static const char *const ways[] = {"fault-us", "fault-busy-us"};
	struct policy *p = fake_load("tests", "slow");
	const struct ebb_fault f = {.unit = 1};
	struct ebb_range out[1];

	for (int way = 0; way < 2; way++) {
		struct policy_instance *i;
		struct fake_vm v;

		fake_vm_init(&v, UNITS);
		i = attach(p, &v, EBB_POLICY_PREFETCH);
		set_option(i, ways[way], "500");
		for (int k = 0; k < 8; k++) {
			assert_null(policy_failed(i));
			policy_prefetch_fault(i, &f, out, 1);
		}
		assert_non_null(policy_failed(i));
		assert_non_null(strstr(policy_failed(i), "on_fault"));
		policy_detach(i);
		fake_vm_free(&v);
	}
	policy_unload(p);
}

/* On a busy host the scheduler may take the CPU away at any point: not the hook's doing. */
static void test_a_preempted_fault_hook_is_not(void **state)
{
	struct policy *p = fake_load("tests", "slow");
	const struct ebb_fault f = {.unit = 1};
	struct policy_instance *i;
	struct ebb_range out[1];
	cpu_set_t all, one;
	struct fake_vm v;
	pid_t rival;

	/* A rival on the same CPU, that takes it whenever it is left. */
	assert_int_equal(sched_getaffinity(0, sizeof(all), &all), 0);
	CPU_ZERO(&one);
	for (int cpu = 0; cpu < CPU_SETSIZE && !CPU_COUNT(&one); cpu++)
		if (CPU_ISSET(cpu, &all))
			CPU_SET(cpu, &one);
	assert_int_equal(sched_setaffinity(0, sizeof(one), &one), 0);
	rival = fork();
	assert_true(rival >= 0);
	if (!rival) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		for (;;)
			clock_ns();
	}
	fake_vm_init(&v, UNITS);
	i = attach(p, &v, EBB_POLICY_PREFETCH);
	set_option(i, "yield", "1");
	for (int k = 0; k < 100; k++)
		policy_prefetch_fault(i, &f, out, 1);
	kill(rival, SIGKILL);
	waitpid(rival, NULL, 0);
	assert_int_equal(sched_setaffinity(0, sizeof(all), &all), 0);
	assert_null(policy_failed(i));
	policy_detach(i);
	fake_vm_free(&v);
	policy_unload(p);
}

static void slow_resident(void *ctx, uint64_t first, uint64_t count, uint64_t *bitmap)
{
	const struct timespec t = {.tv_nsec = 55000000};

	nanosleep(&t, NULL);
}

static void test_the_hosts_own_time_is_not_charged(void **state)
{
	struct policy *p = fake_load("tests", "slow");
	struct policy_instance *i;
	struct ebb_range out[1];
	struct fake_vm v;

	fake_vm_init(&v, UNITS);
	v.host.resident = slow_resident;
	i = attach(p, &v, EBB_POLICY_RECLAIM);
	set_option(i, "in-service", "1");
	for (int k = 0; k < 9; k++)
		policy_pick_victims(i, 1, false, out, 1);
	assert_null(policy_failed(i));
	policy_detach(i);
	fake_vm_free(&v);
	policy_unload(p);
}

static void test_failed_resize_is_put_aside(void **state)
{
	struct policy *p = fake_load("tests", "probe");
	struct policy_instance *i;
	struct ebb_range out[1];
	struct fake_vm v;

	fake_vm_init(&v, UNITS);
	i = attach(p, &v, EBB_POLICY_RECLAIM);
	set_option(i, "resize-fails", "1");
	policy_on_resize(i, UNITS + 1);
	assert_non_null(strstr(policy_failed(i), "on_resize"));
	assert_int_equal(policy_pick_victims(i, 1, true, out, 1), 0);
	policy_detach(i);
	fake_vm_free(&v);
	policy_unload(p);
}

/* ---- threads ---- */

struct faulter {
	struct policy_instance *i;
	uint64_t ranges;
};

static void *fault_thread(void *arg)
{
	struct faulter *x = arg;
	struct ebb_range out[4];

	for (uint64_t k = 0; k < 20000; k++) {
		struct ebb_fault f = {.unit = k % (UNITS - 8)};

		x->ranges += policy_prefetch_fault(x->i, &f, out, 4);
	}
	return NULL;
}

static void test_faults_beside_serial_hooks(void **state)
{
	struct policy *p = fake_load("tests", "probe");
	struct faulter x[2] = {{0}};
	pthread_t threads[2];
	struct fake_vm v;

	fake_vm_init(&v, UNITS);
	x[0].i = x[1].i = attach(p, &v, EBB_POLICY_PREFETCH);
	for (int t = 0; t < 2; t++)
		assert_int_equal(pthread_create(&threads[t], NULL, fault_thread, &x[t]), 0);
	for (int k = 0; k < 2000; k++) {
		policy_on_outcome(x[0].i, EBB_OUTCOME_USED, (uint64_t[]){1}, 1);
		policy_tick(x[0].i, 1);
		policy_on_resize(x[0].i, UNITS);
	}
	for (int t = 0; t < 2; t++)
		pthread_join(threads[t], NULL);
	assert_int_equal(x[0].ranges + x[1].ranges, 2 * 20000 * 4);
	assert_int_equal(fake_stat(x[0].i, "faults"), 2 * 20000);
	assert_int_equal(fake_stat(x[0].i, "outcomes"), 2000);
	policy_detach(x[0].i);
	fake_vm_free(&v);
	policy_unload(p);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_load_tells_about_the_policy),
		cmocka_unit_test(test_load_by_file),
		cmocka_unit_test(test_load_refuses_bad_plugins),
		cmocka_unit_test(test_older_plugin_lacks_its_tail_only),
		cmocka_unit_test(test_attach_errors),
		cmocka_unit_test(test_options_all_or_nothing),
		cmocka_unit_test(test_policy_without_options),
		cmocka_unit_test(test_wants_follow_options),
		cmocka_unit_test(test_victims_are_clipped),
		cmocka_unit_test(test_prefetch_is_clipped),
		cmocka_unit_test(test_malicious_policy_is_contained),
		cmocka_unit_test(test_state_goes_around),
		cmocka_unit_test(test_hooks_are_timed),
		cmocka_unit_test(test_slow_serial_hook_is_put_aside),
		cmocka_unit_test(test_seldom_slow_hook_is_forgiven),
		cmocka_unit_test(test_slow_fault_hook_is_put_aside),
		cmocka_unit_test(test_a_preempted_fault_hook_is_not),
		cmocka_unit_test(test_the_hosts_own_time_is_not_charged),
		cmocka_unit_test(test_failed_resize_is_put_aside),
		cmocka_unit_test(test_faults_beside_serial_hooks),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
