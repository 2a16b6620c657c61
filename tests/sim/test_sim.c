/* SPDX-License-Identifier: BSD-3-Clause */
/* test_sim.c: the simulator's references are what they say, and its replay keeps the rules. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "sim/generate.h"
#include "sim/random.h"
#include "sim/reference.h"
#include "sim/replay.h"

#define UNITS  6
#define LENGTH 14
#define LIMIT  3

/* The fewest misses that are possible from step k on with this set resident, by trying all. */
static uint64_t try_all(const struct sequence *s, uint64_t k, uint32_t resident, uint32_t touched)
{
	uint64_t best = UINT64_MAX;
	uint32_t bit;

	if (k == s->n)
		return 0;
	bit = 1u << s->step[k].unit;
	if (resident & bit)
		return try_all(s, k + 1, resident, touched);
	if (__builtin_popcount(resident) < LIMIT) {
		best = try_all(s, k + 1, resident | bit, touched | bit);
	} else {
		for (uint32_t u = 0; u < UNITS; u++) {
			uint64_t n;

			if (!(resident >> u & 1))
				continue;
			n = try_all(s, k + 1, (resident & ~(1u << u)) | bit, touched | bit);
			best = n < best ? n : best;
		}
	}
	return best + !!(touched & bit);
}

static uint64_t slow_lru(const struct sequence *s)
{
	uint64_t last[UNITS] = {0}, misses = 0;
	bool resident[UNITS] = {false};
	unsigned int n = 0;

	for (uint64_t k = 0; k < s->n; k++) {
		uint32_t u = s->step[k].unit, oldest = UNITS;

		if (!resident[u]) {
			misses += last[u] != 0;
			for (uint32_t v = 0; v < UNITS && n == LIMIT; v++)
				if (resident[v] && (oldest == UNITS || last[v] < last[oldest]))
					oldest = v;
			if (oldest < UNITS)
				resident[oldest] = false;
			else
				n++;
			resident[u] = true;
		}
		last[u] = k + 1;
	}
	return misses;
}

static void test_references(void **state)
{
	struct step step[LENGTH];
	struct sequence s = {.units = UNITS, .n = LENGTH, .unit_bytes = 4096, .step = step};
	uint64_t random = 42;

	for (int t = 0; t < 200; t++) {
		struct reference ref;

		for (int k = 0; k < LENGTH; k++)
			step[k] = (struct step){.unit = (uint32_t)random_below(&random, UNITS)};
		assert_int_equal(reference_run(&s, LIMIT, &ref), 0);
		assert_int_equal(ref.opt, try_all(&s, 0, 0, 0));
		assert_int_equal(ref.lru, slow_lru(&s));
		assert_true(ref.opt <= ref.lru);
	}
}

/* ---- replay ---- */

static const struct replay_costs costs = {.access_ns = 1000,
					  .fault_ns = 15000,
					  .zero_ns = 3000,
					  .minor_ns = 2500,
					  .prefetch_ns = 5000,
					  .window_ns = 2 * NS_PER_S,
					  .seed = 1};
static char trace_file[] = "/tmp/ebb-sim.XXXXXX";

static void make(struct sequence *s, const char *kind)
{
	const struct generate_options o = {.units = 2000,
					   .accesses = 100000,
					   .seed = 1,
					   .alpha = 0.99,
					   .stride = 7,
					   .phases = 4,
					   .hot = 10,
					   .hot_part = 90,
					   .threads = 1,
					   .fill = 1};
	struct error e;

	assert_int_equal(generate(kind, trace_file, &o, &e), 0);
	assert_int_equal(sequence_read(s, trace_file, &e), 0);
	assert_int_equal(s->n, 102000);
	assert_int_equal(s->distinct, 2000);
}

static struct policy *load(const char *name)
{
	char dir[4096];
	const struct plugin_path path = {.dirs = {dir}, .n_dirs = 1};
	struct policy *p;
	struct error e;

	snprintf(dir, sizeof(dir), "%s", getenv("EBB_BUILD"));
	if (policy_load(&path, name, NULL, &p, &e))
		fail_msg("%s", e.desc);
	return p;
}

static void replay(const struct sequence *s, uint64_t limit, struct policy *reclaim,
		   struct policy *prefetch, struct replay_result *out)
{
	const struct replay_setup setup = {.sequence = s,
					   .costs = costs,
					   .limit_units = limit,
					   .reclaim = reclaim,
					   .prefetch = prefetch};
	struct error e;

	if (replay_run(&setup, out, &e))
		fail_msg("%s", e.desc);
	assert_string_equal(out->failed, "");
	assert_int_equal(out->accesses, s->n);
	assert_int_equal(out->first, s->distinct);
	assert_int_equal(out->prefetched, out->used + out->unused);
}

static void test_no_policy_beats_the_optimum(void **state)
{
	struct policy *clock = load("clock"), *null = load("null"), *example = load("example");
	struct policy *policies[] = {clock, null, example};
	const char *const *kind = generate_kinds;

	for (; *kind; kind++) {
		char name[32];
		struct sequence s;
		struct reference ref;
		struct replay_result r;

		snprintf(name, sizeof(name), "%.*s", (int)strcspn(*kind, ":"), *kind);
		make(&s, name);
		assert_int_equal(reference_run(&s, 1000, &ref), 0);
		for (int k = 0; k < 3; k++) {
			replay(&s, 1000, policies[k], NULL, &r);
			assert_true(r.misses >= ref.opt);
			assert_true(r.evictions <= r.misses + r.first);
		}
		/* With room for everything nothing is evicted, and so nothing is missed. */
		replay(&s, 0, clock, NULL, &r);
		assert_int_equal(r.misses, 0);
		assert_int_equal(r.evictions, 0);
		sequence_free(&s);
	}
	policy_unload(clock);
	policy_unload(null);
	policy_unload(example);
}

static void test_a_prefetcher_saves_misses_of_a_scan(void **state)
{
	struct policy *clock = load("clock"), *sequential = load("sequential");
	struct sequence s;
	struct replay_result without, with;

	make(&s, "sequential");
	replay(&s, 1000, clock, NULL, &without);
	replay(&s, 1000, clock, sequential, &with);
	assert_true(without.prefetched == 0 && without.misses > 99000);
	assert_true(with.misses < without.misses / 4 * 3);
	assert_true(with.used > with.prefetched / 2);
	sequence_free(&s);
	policy_unload(clock);
	policy_unload(sequential);
}

static int remove_file(void **state)
{
	return unlink(trace_file);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_references),
		cmocka_unit_test(test_no_policy_beats_the_optimum),
		cmocka_unit_test(test_a_prefetcher_saves_misses_of_a_scan),
	};
	int fd = mkstemp(trace_file);

	close(fd);
	return cmocka_run_group_tests(tests, NULL, remove_file);
}
