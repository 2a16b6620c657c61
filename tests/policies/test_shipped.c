/* SPDX-License-Identifier: BSD-3-Clause */
/* test_shipped.c: what every shipped policy (and the one that is random) has to keep. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <cmocka.h>

#include <ctype.h>
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "fake_vm.h"

#define UNITS 5000

static const struct {
	const char *sub, *name;
	bool delivers; /* something is named when urgent */
} policies[] = {
	{".", "clock", true},	     {".", "sequential", false}, {".", "null", false},
	{".", "example", true},	     {"tests", "random", true},	 {".", "temperature", true},
	{".", "trend", false},	     {".", "elastic", false},	 {".", "replay", false},
	{".", "correlation", false}, {".", "age", true},	 {".", "pressure", true},
};
#define POLICIES (sizeof(policies) / sizeof(policies[0]))

static void check_stats(struct policy_instance *i)
{
	struct ebb_policy_stat stats[64];
	uint32_t n = policy_stats(i, stats, 64);

	assert_true(n <= 64);
	for (uint32_t k = 0; k < n; k++) {
		assert_true(stats[k].name && stats[k].help && stats[k].help[0]);
		for (const char *c = stats[k].name; *c; c++)
			assert_true(islower((unsigned char)*c) || isdigit((unsigned char)*c) ||
				    *c == '-');
		for (uint32_t other = 0; other < k; other++)
			assert_string_not_equal(stats[k].name, stats[other].name);
	}
	/* With little room, no more than that is written. */
	stats[1].name = "untouched";
	policy_stats(i, stats, 1);
	assert_string_equal(stats[1].name, "untouched");
}

static void test_descriptors(void **state)
{
	for (size_t k = 0; k < POLICIES; k++) {
		struct policy *p = fake_load(policies[k].sub, policies[k].name);
		const char *const *help = policy_option_help(p);

		assert_true(policy_description(p)[0]);
		for (; help && *help; help++)
			assert_non_null(strstr(*help, ": "));
		policy_unload(p);
	}
}

/* Every role of every policy, under a limit, with faults and growth: nothing breaks. */
static void exercise(size_t k, struct policy *p, uint32_t role)
{
	uint64_t rng = 1234567 + k;
	struct error e = {0};
	struct fake_vm v;

	fake_vm_init(&v, UNITS);
	v.limit = UNITS / 2;
	v.headroom = 100;
	if (policy_attach(p, &v.host, &v.vm, role, NULL, 0,
			  role == EBB_POLICY_RECLAIM ? &v.reclaim : &v.prefetch, &e))
		fail_msg("%s", e.desc);
	if (role == EBB_POLICY_PREFETCH) {
		v.limit = 0;
		for (uint64_t u = 0; u < UNITS; u++)
			fake_vm_set(&v, u, FAKE_EVICTED);
	}
	for (int t = 0; t < 20000; t++) {
		/* Where nobody evicts, the test's own last resort keeps to the limit. */
		if (v.limit && v.resident >= v.limit)
			for (uint64_t u = 0; u < v.units; u++)
				if (v.state[u] == FAKE_RESIDENT)
					fake_vm_set(&v, u, FAKE_EVICTED);
		fake_vm_touch(&v, t % 3 ? fake_random(&rng) % v.units : (uint64_t)t % v.units);
		if (t == 10000) {
			fake_vm_grow(&v, 2 * UNITS);
			v.block[0].units = 2 * UNITS;
			policy_on_resize(v.reclaim ? v.reclaim : v.prefetch, 2 * UNITS);
		}
	}
	if (policies[k].delivers && role == EBB_POLICY_RECLAIM) {
		assert_true(v.evictions > 100);
		if (strcmp(policies[k].name, "random"))
			assert_int_equal(v.urgent_empty, 0);
	}
	check_stats(v.reclaim ? v.reclaim : v.prefetch);
	assert_null(policy_failed(v.reclaim ? v.reclaim : v.prefetch));
	fake_vm_free(&v);
}

static void test_all_roles_under_load(void **state)
{
	for (size_t k = 0; k < POLICIES; k++) {
		struct policy *p = fake_load(policies[k].sub, policies[k].name);

		for (uint32_t role = 1; role <= 2; role <<= 1)
			if (policy_roles(p) & role)
				exercise(k, p, role);
		policy_unload(p);
	}
}

/* Two VMs with the same policy do not know of each other. */
static void test_instances_are_apart(void **state)
{
	struct policy *p = fake_load(".", "example");
	struct fake_vm a, b;
	struct error e = {0};

	fake_vm_init(&a, UNITS);
	fake_vm_init(&b, UNITS);
	assert_int_equal(
		policy_attach(p, &a.host, &a.vm, EBB_POLICY_RECLAIM, NULL, 0, &a.reclaim, &e), 0);
	assert_int_equal(
		policy_attach(p, &b.host, &b.vm, EBB_POLICY_RECLAIM, NULL, 0, &b.reclaim, &e), 0);
	fake_vm_touch(&a, 1);
	fake_vm_touch(&b, 2);
	fake_vm_touch(&b, 3);
	assert_int_equal(fake_vm_reclaim(&a, 10, false), 1);
	assert_int_equal(a.state[1], FAKE_EVICTED);
	/* First in, first out. */
	assert_int_equal(fake_vm_reclaim(&b, 1, false), 1);
	assert_int_equal(b.state[2], FAKE_EVICTED);
	assert_int_equal(b.state[3], FAKE_RESIDENT);
	fake_vm_free(&a);
	fake_vm_free(&b);
	policy_unload(p);
}

/* None of the shipped policies is left out of this test. */
static void test_the_list_is_complete(void **state)
{
	char dir[4096];
	struct dirent *entry;
	DIR *d;

	snprintf(dir, sizeof(dir), "%s/policies", getenv("EBB_BUILD"));
	d = opendir(dir);
	assert_non_null(d);
	while ((entry = readdir(d))) {
		char *dot = strrchr(entry->d_name, '.');
		bool listed = false;

		if (!dot || strcmp(dot, ".so"))
			continue;
		*dot = '\0';
		for (size_t k = 0; k < POLICIES; k++)
			listed |= strcmp(policies[k].name, entry->d_name) == 0;
		if (!listed)
			fail_msg("%s.so is not tested here", entry->d_name);
	}
	closedir(d);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_descriptors),
		cmocka_unit_test(test_instances_are_apart),
		cmocka_unit_test(test_all_roles_under_load),
		cmocka_unit_test(test_the_list_is_complete),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
