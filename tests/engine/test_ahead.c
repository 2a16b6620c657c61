/* SPDX-License-Identifier: BSD-3-Clause */
/* test_ahead.c: what is brought back in runs is what went, whatever lies in a run's way. */
#include "engine/rig.h"

#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdatomic.h>
#include <unistd.h>

#define MIB ((size_t)1 << 20)

static void sequential(struct rig *r)
{
	daemon_ask(&r->d, "{\"execute\":\"policy-set\",\"arguments\":{\"vm\":\"vm\",\"role\":"
			  "\"prefetch\",\"policy\":\"sequential\"}}");
	CHECK(strstr(r->d.answer, "\"return\""));
}

/* What the test makes of a unit: tagged, of zeroes, or of one pattern. */
static int content(size_t unit)
{
	return unit % 7 == 3 ? 0 : unit % 11 == 5 ? 0x5a : -1;
}

static void mix(struct rig *r)
{
	for (size_t i = 0; i < r->units; i++)
		if (content(i) >= 0)
			memset(rig_unit(r, i), content(i), r->unit_bytes);
}

static bool is_mixed(struct rig *r, size_t unit)
{
	const char *p = rig_unit(r, unit);

	if (content(unit) < 0)
		return rig_is(r, unit, 1);
	for (size_t i = 0; i < r->unit_bytes; i++)
		if (p[i] != (char)content(unit))
			return false;
	return true;
}

static void finish_mixed(struct rig *r)
{
	CHECK_EQ(native_detach(r->vmm), 0);
	for (size_t i = 0; i < r->units; i++)
		CHECK(is_mixed(r, i));
	native_close(r->vmm, true);
	daemon_stop(&r->d);
}

/* How much comes ahead is not looked at: a policy that a sanitizer makes slow is put aside. */
static void scan(struct rig *r, const char *inject, bool down)
{
	rig_start(r, "", inject);
	rig_attach(r, 4 * MIB, NATIVE_SHMEM);
	mix(r);
	sequential(r);
	for (int round = 0; round < 3; round++) {
		rig_evict_all(r);
		for (size_t i = 0; i < r->units; i++)
			CHECK(is_mixed(r, down ? r->units - 1 - i : i));
	}
	CHECK(rig_number(r, "prefetched") > 0);
	CHECK_EQ(rig_number(r, "pages-lost"), 0);
	finish_mixed(r);
}

static void up(struct rig *r)
{
	scan(r, NULL, false);
}

static void down(struct rig *r)
{
	scan(r, NULL, true);
}

/* A tier that completes later, in another order, and not always at the first try. */
static void slow(struct rig *r)
{
	scan(r,
	     "delay-us = 200\nreorder = 1\nagain = 1/4\nload-error = 1/8\nload-errno = ETIMEDOUT",
	     false);
}

static sigjmp_buf bus;

static void on_bus(int sig)
{
	siglongjmp(bus, sig);
}

/* What a run has lost is lost alone. */
static void lost(struct rig *r)
{
	struct sigaction sa = {.sa_handler = on_bus};
	volatile size_t n = 0;

	rig_start(r, "", "load-error = 1/16");
	daemon_ask(&r->d, "{\"execute\":\"query-host\"}");
	if (!strstr(r->d.answer, "\"poison\":true"))
		SKIP("UFFDIO_POISON");
	rig_attach(r, 4 * MIB, NATIVE_SHMEM);
	sequential(r);
	rig_evict_all(r);
	sigaction(SIGBUS, &sa, NULL);
	for (volatile size_t i = 0; i < r->units; i++) {
		if (sigsetjmp(bus, 1))
			n++;
		else
			CHECK(rig_is(r, i, 1));
	}
	CHECK(rig_number(r, "prefetched") > 0);
	CHECK(n > 0 && n < r->units / 2);
	CHECK_EQ(rig_number(r, "pages-lost"), n);
	native_close(r->vmm, true);
	daemon_stop(&r->d);
}

/* Pages of zeroes have come into a run's holes, as when another process reads them. */
static void in_the_way(struct rig *r)
{
	static const char zeroes[KT_PAGE];

	rig_start(r, "", NULL);
	rig_attach(r, MIB, NATIVE_SHMEM);
	mix(r);
	sequential(r);
	rig_evict_all(r);
	for (size_t i = 0; i < r->units; i++)
		if (content(i) == 0)
			CHECK_EQ(pwrite(r->ram.memfd, zeroes, KT_PAGE, (off_t)(i * KT_PAGE)),
				 KT_PAGE);
	for (size_t i = 0; i < r->units; i++)
		CHECK(is_mixed(r, i));
	CHECK(rig_number(r, "prefetched") > 0);
	finish_mixed(r);
}

/* A machine that is slow now and then puts the policy aside: it begins anew, with another round. */
#define ROUNDS_MAX 40

/* As fast as a guest can, one byte of each unit; then all of them. */
static void run_through(struct rig *r)
{
	for (size_t i = 0; i < r->units; i++)
		*(volatile char *)rig_unit(r, i);
	for (size_t i = 0; i < r->units; i++)
		CHECK(is_mixed(r, i));
}

/* Until the counter shows it; the guest reads all of its memory in each round. */
static void scan_until(struct rig *r, const char *counter, bool evict)
{
	for (int round = 0; round < ROUNDS_MAX && !rig_number(r, counter); round++) {
		sequential(r);
		if (evict)
			rig_evict_all(r);
		run_through(r);
	}
	CHECK(rig_number(r, counter) > 0);
}

/* Where all is used, most of it stays mapped and unlooked at; some is looked at still. */
static void trusted(struct rig *r)
{
	uint64_t hits = 0, trusts = 0;

	rig_start(r, "", NULL);
	rig_attach(r, 8 * MIB, NATIVE_SHMEM);
	mix(r);
	for (int round = 0; round < ROUNDS_MAX && (!hits || trusts < 3 * hits); round++) {
		sequential(r);
		rig_evict_all(r);
		run_through(r);
		hits = rig_number(r, "prefetch-hits");
		trusts = rig_number(r, "prefetch-trusted");
	}
	kt_saw("%llu seen to be used, %llu trusted", (unsigned long long)hits,
	       (unsigned long long)trusts);
	CHECK(hits && trusts >= 3 * hits);
	finish_mixed(r);
}

/* Reads ahead of what nobody reads: that is seen, and not trusted. */
static void mistrusted(struct rig *r)
{
	uint64_t wasted = 0;

	rig_start(r, "", NULL);
	rig_attach(r, 8 * MIB, NATIVE_SHMEM);
	mix(r);
	for (int round = 0; round < ROUNDS_MAX && wasted < 128; round++) {
		sequential(r);
		rig_evict_all(r);
		/* Runs of four, and then elsewhere. */
		for (size_t i = 0; i < r->units; i++)
			if (i % 64 < 4)
				CHECK(is_mixed(r, i));
		rig_evict_all(r);
		wasted = rig_number(r, "prefetch-wasted");
	}
	CHECK(wasted >= 128);
	kt_saw("%llu not used", (unsigned long long)wasted);
	/* One unit of each run is never looked at, and the policy's runs get short. */
	CHECK(rig_number(r, "prefetch-trusted") < 2 * wasted);
	finish_mixed(r);
}

/* A run that finds no room waits for it, and not for ever. */
static void waits(struct rig *r)
{
	rig_start(r, "", NULL);
	rig_attach(r, 32 * MIB, NATIVE_SHMEM);
	mix(r);
	rig_limit(r, 16 * MIB);
	scan_until(r, "run-waits", false);
	finish_mixed(r);
}

static _Atomic bool enough;

static void *wander(void *arg)
{
	struct rig *r = arg;
	uint64_t at = (uint64_t)(uintptr_t)&at;

	while (!atomic_load(&enough)) {
		at = at * UINT64_C(6364136223846793005) + 1442695040888963407u;
		CHECK(is_mixed(r, (at >> 33) % r->units));
	}
	return NULL;
}

/* Nor where others take all the room as fast as it is made. */
static void crowded(struct rig *r)
{
	pthread_t others[3];

	rig_start(r, "", NULL);
	rig_attach(r, 32 * MIB, NATIVE_SHMEM);
	mix(r);
	rig_limit(r, 12 * MIB);
	for (int i = 0; i < 3; i++)
		CHECK_EQ(pthread_create(&others[i], NULL, wander, r), 0);
	for (int round = 0; round < 2; round++) {
		sequential(r);
		for (size_t i = 0; i < r->units; i++)
			CHECK(is_mixed(r, i));
	}
	atomic_store(&enough, true);
	for (int i = 0; i < 3; i++)
		pthread_join(others[i], NULL);
	finish_mixed(r);
}

/*
 * A VM at its limit has no room to spare, and its evictor takes nothing unless it must: room is
 * made for what is asked for ahead.
 */
static void at_the_limit(struct rig *r)
{
	uint64_t faults, ahead;

	rig_start(r, "", NULL);
	rig_attach(r, 32 * MIB, NATIVE_SHMEM);
	mix(r);
	sequential(r);
	rig_limit(r, 16 * MIB);
	for (int round = 0; round < 3; round++)
		for (size_t i = 0; i < r->units; i++)
			CHECK(is_mixed(r, i));
	faults = rig_number(r, "faults");
	ahead = rig_number(r, "prefetched");
	kt_saw("%llu faults, %llu units ahead of them", (unsigned long long)faults,
	       (unsigned long long)ahead);
	CHECK(ahead > 0);
	finish_mixed(r);
}

int main(int argc, char **argv)
{
	static const struct rig_case cases[] = {
		{"up", up},
		{"down", down},
		{"slow", slow},
		{"lost", lost},
		{"in_the_way", in_the_way},
		{"at_the_limit", at_the_limit},
		{"trusted", trusted},
		{"mistrusted", mistrusted},
		{"waits", waits},
		{"crowded", crowded},
	};

	return rig_main(argc, argv, cases, sizeof(cases) / sizeof(cases[0]));
}
