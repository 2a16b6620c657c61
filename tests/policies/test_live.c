/* SPDX-License-Identifier: BSD-3-Clause */
/* test_live.c: every policy in the real daemon: a VM under a limit, and every byte is right. */
#include <stdio.h>
#include <string.h>

#include <pthread.h>
#include <stdatomic.h>
#include <unistd.h>

#include "engine/rig.h"
#include "trace/trace.h"

#define MIB	((size_t)1 << 20)
#define RAM	(24 * MIB)
#define LIMIT	(12 * MIB)
#define TOUCHES 30000

static void give(struct rig *r, const char *role, const char *policy, const char *options)
{
	daemon_ask(&r->d,
		   "{\"execute\":\"policy-set\",\"arguments\":{\"vm\":\"vm\",\"role\":\"%s\","
		   "\"policy\":\"%s\",\"options\":{%s}}}",
		   role, policy, options);
	if (!strstr(r->d.answer, "\"return\""))
		printf("%s\n", r->d.answer);
	CHECK(strstr(r->d.answer, "\"return\""));
}

/* A value out of query-policy-stats. */
static uint64_t stat_of(struct rig *r, const char *role, const char *name)
{
	char pattern[64], *at, *value;

	daemon_ask(&r->d,
		   "{\"execute\":\"query-policy-stats\",\"arguments\":{\"vm\":\"vm\","
		   "\"role\":\"%s\"}}",
		   role);
	snprintf(pattern, sizeof(pattern), "\"name\":\"%s\"", name);
	at = strstr(r->d.answer, pattern);
	if (!at)
		printf("%s: %s\n", name, r->d.answer);
	CHECK(at);
	/* The members of one stat stand together, in whatever order. */
	while (at > r->d.answer && *at != '{')
		at--;
	value = strstr(at, "\"value\":");
	CHECK(value);
	return strtoull(value + 8, NULL, 10);
}

static uint64_t next_random(uint64_t *x)
{
	*x = *x * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
	return *x >> 33;
}

/* Nine of ten touches go to a quarter of the units; one in four writes a new generation. */
static void load(struct rig *r, uint32_t *generation)
{
	uint64_t rng = 1;

	for (unsigned int k = 0; k < TOUCHES; k++) {
		size_t unit =
			next_random(&rng) % (next_random(&rng) % 10 ? r->units / 4 : r->units);

		CHECK(rig_is(r, unit, generation[unit]));
		if (next_random(&rng) % 4 == 0)
			rig_tag(r, unit, ++generation[unit]);
	}
	for (size_t u = 0; u < r->units; u++) {
		CHECK(rig_is(r, u, generation[u]));
		rig_tag(r, u, 1);
	}
}

static void reclaimer(struct rig *r, const char *policy)
{
	static uint32_t generation[RAM / KT_PAGE];

	rig_start(r, "", NULL);
	rig_attach(r, RAM, NATIVE_SHMEM);
	for (size_t u = 0; u < r->units; u++)
		generation[u] = 1;
	give(r, "reclaim", policy, "");
	rig_limit(r, LIMIT);
	load(r, generation);
	/* It was the policy that named them, and it still does. */
	CHECK(rig_number(r, "evictions") > RAM / KT_PAGE / 2);
	CHECK(stat_of(r, "reclaim", "picked") > RAM / KT_PAGE / 2);
	CHECK(rig_number(r, "pages-lost") == 0);
	rig_end(r);
}

static void clock_policy(struct rig *r)
{
	reclaimer(r, "clock");
}

static void temperature(struct rig *r)
{
	reclaimer(r, "temperature");
}

static void age(struct rig *r)
{
	reclaimer(r, "age");
}

static void pressure(struct rig *r)
{
	reclaimer(r, "pressure");
}

/* Half of the RAM goes; unless swap is switched on: then nobody can look at what is accessed. */
static void until_half_is_gone(struct rig *r)
{
	for (int k = 0; k < 600 && rig_number(r, "evictions") < r->units / 2; k++) {
		daemon_ask(&r->d, "{\"execute\":\"query-vm\",\"arguments\":{\"vm\":\"vm\"}}");
		if (strstr(r->d.answer, "\"tracker\":\"none\""))
			SKIP("swap is on, so there is no tracker; runs in the lab");
		usleep(100000);
	}
	CHECK(rig_number(r, "evictions") >= r->units / 2);
}

/* No limit, and nobody uses the RAM: it goes all the same. */
static void age_unasked(struct rig *r)
{
	rig_start(r, "", NULL);
	rig_attach(r, 4 * MIB, NATIVE_SHMEM);
	give(r, "reclaim", "age", "\"interval\":\"1\",\"min-age\":\"1\",\"target\":\"1000\"");
	until_half_is_gone(r);
	rig_end(r);
}

/* The same by access windows: a hand goes round in them, here over a VM of several chunks. */
static void clock_unasked(struct rig *r)
{
	rig_start(r, "access-window-ms = 250", NULL);
	rig_attach(r, RAM, NATIVE_SHMEM);
	give(r, "reclaim", "clock", "\"proactive\":\"on\",\"idle-age\":\"1\"");
	until_half_is_gone(r);
	CHECK(stat_of(r, "reclaim", "idle-picks") >= r->units / 2);
	CHECK(rig_number(r, "scans") > 0);
	rig_end(r);
}

static void pressure_unasked(struct rig *r)
{
	rig_start(r, "", NULL);
	rig_attach(r, 4 * MIB, NATIVE_SHMEM);
	give(r, "reclaim", "pressure",
	     "\"interval\":\"1\",\"min-age\":\"1\",\"step\":\"200000\",\"target\":\"1000000\"");
	until_half_is_gone(r);
	CHECK(stat_of(r, "reclaim", "taken") >= r->units / 2);
	rig_end(r);
}

/* Evicts all, reads it back in steps, and gives the demand loads that took. */
static uint64_t read_all(struct rig *r, const char *policy, const char *options, size_t step,
			 int rounds)
{
	uint64_t faults;

	give(r, "prefetch", policy, options);
	faults = rig_number(r, "faults");
	for (int k = 0; k < rounds; k++) {
		rig_evict_all(r);
		for (size_t from = 0; from < step; from++)
			for (size_t u = from; u < r->units; u += step)
				CHECK(rig_is(r, u, 1));
	}
	return rig_number(r, "faults") - faults;
}

/* How much fewer faults it takes in real life depends on who is faster: the unit tests say. */
static void reads_ahead(struct rig *r, const char *policy, const char *options, size_t step,
			int rounds)
{
	uint64_t without, with;

	rig_start(r, "", NULL);
	rig_attach(r, 8 * MIB, NATIVE_SHMEM);
	without = read_all(r, "null", "", step, rounds);
	with = read_all(r, policy, options, step, rounds);
	printf("%s: %llu faults, %llu without\n", policy, (unsigned long long)with,
	       (unsigned long long)without);
	CHECK(without >= r->units * (unsigned int)rounds);
	CHECK(with < without);
	CHECK(rig_number(r, "prefetched") > 0);
	CHECK(stat_of(r, "prefetch", "advised") > 0);
	rig_end(r);
}

static void scan(struct rig *r)
{
	reads_ahead(r, "trend", "", 1, 1);
}

static void strided(struct rig *r)
{
	reads_ahead(r, "trend", "", 7, 1);
}

static void elastic(struct rig *r)
{
	/* Small extents: under a sanitizer the largest take too long for the fault path. */
	reads_ahead(r, "elastic", "\"max-order\":\"4\"", 1, 2);
}

static void correlation(struct rig *r)
{
	uint64_t rng = 7;

	rig_start(r, "", NULL);
	rig_attach(r, 8 * MIB, NATIVE_SHMEM);
	give(r, "prefetch", "correlation", "");
	/* The same 300 units, scattered, in the same order, again and again. */
	for (int round = 0; round < 6; round++) {
		rig_evict_all(r);
		rng = 7;
		for (int k = 0; k < 300; k++)
			CHECK(rig_is(r, next_random(&rng) % r->units, 1));
	}
	CHECK(stat_of(r, "prefetch", "believed") > 0);
	CHECK(rig_number(r, "prefetched") > 0);
	rig_end(r);
}

/* Units that are in this process's page table. */
static size_t mapped(const struct rig *r)
{
	FILE *f = fopen("/proc/self/pagemap", "r");
	uint64_t entry;
	size_t n = 0;

	CHECK(f);
	CHECK(!fseeko(f, (off_t)((uintptr_t)r->ram.addr / KT_PAGE * sizeof(entry)), SEEK_SET));
	for (size_t u = 0; u < r->units; u++) {
		CHECK(fread(&entry, sizeof(entry), 1, f) == 1);
		n += entry >> 63;
	}
	fclose(f);
	return n;
}

/* A raised limit brings memory back without anybody asking for it, ready to be used. */
static void replay(struct rig *r)
{
	uint64_t fetched, minor;

	rig_start(r, "", NULL);
	rig_attach(r, RAM, NATIVE_SHMEM);
	give(r, "prefetch", "replay", "");
	give(r, "reclaim", "clock", "");
	rig_limit(r, LIMIT);
	rig_until(r, "evictions", (RAM - LIMIT) / KT_PAGE);
	rig_limit(r, RAM + 4 * MIB);
	rig_until(r, "prefetched", (RAM - LIMIT) / KT_PAGE / 10 * 9);
	CHECK(rig_number(r, "faults") == 0);
	CHECK(stat_of(r, "prefetch", "restores") == 1);
	rig_check_all(r);
	/* What was restored is mapped, so that nothing of it comes to us where a first use would.
	 */
	give(r, "reclaim", "null", "");
	rig_limit(r, LIMIT);
	rig_evict_all(r);
	fetched = rig_number(r, "prefetched");
	rig_limit(r, RAM + 4 * MIB);
	rig_until(r, "prefetched", fetched + (RAM - LIMIT) / KT_PAGE / 10 * 9);
	CHECK(mapped(r) >= (RAM - LIMIT) / KT_PAGE / 10 * 9);
	minor = rig_number(r, "minor-faults");
	rig_check_all(r);
	CHECK(rig_number(r, "minor-faults") - minor < r->units / 8);
	rig_end(r);
}

struct tracing {
	struct rig *r;
	char file[128];
	_Atomic bool over;
};

/* On a connection of its own: the command answers when the recording is over. */
static void *record(void *arg)
{
	struct tracing *t = arg;
	char command[512];
	const char *build = getenv("EBB_BUILD");

	snprintf(command, sizeof(command),
		 "%s/ebbctl --socket %s --json trace vm file=%s seconds=3 window-ms=200", build,
		 t->r->d.control, t->file);
	CHECK(system(command) == 0);
	atomic_store(&t->over, true);
	return NULL;
}

/*
 * What is recorded of a live VM is what happened: faults, and what was touched without any, though
 * the policy looks at the same bits; and ebb-sim takes it.
 */
static void trace_vm(struct rig *r)
{
	static struct trace t;
	struct trace_record rec;
	struct tracing tracing = {.r = r};
	uint64_t faults = 0, windows = 0, busy_windows = 0, first, count;
	pthread_t thread;
	struct error e;
	char command[512];

	rig_start(r, "", NULL);
	snprintf(tracing.file, sizeof(tracing.file), "%s/vm.trace", r->d.dir);
	rig_attach(r, RAM, NATIVE_SHMEM);
	give(r, "reclaim", "clock", "");
	rig_limit(r, LIMIT);
	rig_until(r, "evictions", (RAM - LIMIT) / KT_PAGE);
	CHECK(!pthread_create(&thread, NULL, record, &tracing));
	while (!atomic_load(&tracing.over)) {
		/* 300 pages all the time; others one after the other. */
		for (size_t u = 0; u < 300; u++)
			CHECK(rig_is(r, u, 1));
		CHECK(rig_is(r, 300 + faults++ * 7 % (r->units - 300), 1));
	}
	CHECK(!pthread_join(thread, NULL));
	/* The same file is not written over. */
	snprintf(command, sizeof(command),
		 "%s/ebbctl --socket %s trace vm file=%s seconds=1 2>/dev/null",
		 getenv("EBB_BUILD"), r->d.control, tracing.file);
	CHECK(system(command) != 0);
	if (trace_open(&t, tracing.file, &e))
		printf("%s\n", e.desc);
	CHECK(t.data);
	CHECK_EQ(t.units, r->units);
	faults = 0;
	while (trace_next(&t, &rec)) {
		uint64_t hot = 0;

		faults += rec.kind == TRACE_FAULT;
		if (rec.kind != TRACE_WINDOW)
			continue;
		while (trace_window_run(&t, &first, &count))
			for (uint64_t u = first; u < first + count; u++)
				hot += u < 300;
		windows++;
		busy_windows += hot > 290;
	}
	trace_close(&t);
	printf("%llu faults, %llu windows, %llu of them with the hot pages\n",
	       (unsigned long long)faults, (unsigned long long)windows,
	       (unsigned long long)busy_windows);
	CHECK(faults > 0);
	/* Somebody has switched swap on: then nobody can look at what is accessed. */
	if (!windows)
		CHECK(strstr(daemon_ask(&r->d, "{\"execute\":\"query-vm\",\"arguments\":"
					       "{\"vm\":\"vm\"}}"),
			     "\"tracker\":\"none\""));
	/* The first is all that was accessed before; who is slow need not get round in each one. */
	CHECK(!windows || busy_windows >= 2);
	snprintf(command, sizeof(command), "%s/ebb-sim replay file=%s limit=50%% prefetch=trend",
		 getenv("EBB_BUILD"), tracing.file);
	CHECK(system(command) == 0);
	unlink(tracing.file);
	rig_end(r);
}

/* A policy whose hooks overrun their budget is put aside, and said so; the limit is kept. */
static void put_aside(struct rig *r)
{
	static uint32_t generation[RAM / KT_PAGE];

	rig_start(r, "", NULL);
	rig_attach(r, RAM, NATIVE_SHMEM);
	for (size_t u = 0; u < r->units; u++)
		generation[u] = 1;
	daemon_ask(&r->d,
		   "{\"execute\":\"policy-load\",\"arguments\":{\"name\":\"slow\","
		   "\"file\":\"%s/tests/policies/slow.so\"}}",
		   getenv("EBB_BUILD"));
	CHECK(strstr(r->d.answer, "\"return\""));
	give(r, "reclaim", "slow", "\"pick-us\":\"60000\"");
	rig_limit(r, LIMIT);
	rig_event(r, "POLICY_FAILED");
	load(r, generation);
	CHECK(rig_number(r, "evictions") > RAM / KT_PAGE / 2);
	rig_end(r);
}

int main(int argc, char **argv)
{
	static const struct rig_case cases[] = {
		{"clock", clock_policy},
		{"temperature", temperature},
		{"age", age},
		{"age_unasked", age_unasked},
		{"clock_unasked", clock_unasked},
		{"pressure", pressure},
		{"pressure_unasked", pressure_unasked},
		{"put_aside", put_aside},
		{"trace", trace_vm},
		{"scan", scan},
		{"strided", strided},
		{"elastic", elastic},
		{"replay", replay},
		{"correlation", correlation},
	};

	return rig_main(argc, argv, cases, sizeof(cases) / sizeof(cases[0]));
}
