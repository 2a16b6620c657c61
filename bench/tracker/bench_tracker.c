/* SPDX-License-Identifier: BSD-3-Clause */
/* bench_tracker.c: what it costs the daemon to know what a VM uses. */
#include <err.h>
#include <getopt.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/size.h"
#include "ebb.h"

/*
 * Theory of operation
 *
 * One daemon, one VM, which is this process, all of its RAM resident and no limit: what CPU time
 * the daemon takes is what its tracker, the policy and its threads' own rounds take. It is read
 * from the process's CPU clock, so that what else runs on the machine does not matter to it, but
 * for colder caches.
 *
 * idle: nobody touches the RAM. busy: a thread reads every page of a quarter of it, round and
 * round, as fast as it can. Each for `rounds` times `seconds`, one after the other: the first
 * round has the first look at everything, the later ones show how far the policy backs off from
 * what is steadily hot.
 *
 * Policies take nothing unasked here (eviction is no tracking), but look as they do when they
 * would: proactive clock with an idle age that nothing reaches, age and temperature by their
 * interval.
 */

#define ROUNDS_MAX 64

struct bench {
	struct ebb e;
	struct guest_content *content;
	_Atomic bool stop;
	_Atomic uint64_t passes;
};

static const struct {
	const char *title, *policy, *options;
} policies[] = {
	{"null", "null", ""},
	{"clock", "clock", ""},
	{"clock, proactive", "clock", "\"proactive\":\"on\",\"idle-age\":\"86400\""},
	{"temperature", "temperature", ""},
	{"age, not proactive", "age", "\"proactive\":\"off\""},
};
#define POLICIES (sizeof(policies) / sizeof(policies[0]))

static void give(struct bench *b, size_t policy)
{
	daemon_ask(
		&b->e.daemon,
		"{\"execute\":\"policy-set\",\"arguments\":{\"vm\":\"bench\",\"role\":\"reclaim\","
		"\"policy\":\"%s\",\"options\":{%s}}}",
		policies[policy].policy, policies[policy].options);
	if (!strstr(b->e.daemon.answer, "\"return\""))
		errx(1, "policy-set: %.300s", b->e.daemon.answer);
}

static void *read_quarter(void *arg)
{
	struct bench *b = arg;
	volatile const uint8_t *at = b->e.ram.at;

	while (!atomic_load(&b->stop)) {
		for (uint64_t p = 0; p < b->e.ram.pages / 4; p++)
			(void)at[p * GUEST_PAGE];
		atomic_fetch_add(&b->passes, 1);
	}
	return NULL;
}

/* The daemon's share of one CPU in each round, in per cent. */
static void measure(struct bench *b, size_t policy, unsigned int rounds, double seconds)
{
	uint64_t cleared = ebb_number(&b->e, "units-cleared");

	give(b, policy);
	printf("  %-20s", policies[policy].title);
	for (unsigned int r = 0; r < rounds && !guest_stop; r++) {
		uint64_t cpu = ebb_cpu_ns(&b->e), begin = clock_ns();

		usleep((useconds_t)(seconds * 1e6));
		printf(" %6.2f",
		       100.0 * (double)(ebb_cpu_ns(&b->e) - cpu) / (double)(clock_ns() - begin));
	}
	printf("   %llu thousand pages looked at again\n",
	       (unsigned long long)(ebb_number(&b->e, "units-cleared") - cleared) / 1000);
}

static int usage(void)
{
	fprintf(stderr, "usage: bench_tracker [--size BYTES] [--rounds N] [--seconds S]\n");
	return 2;
}

int main(int argc, char **argv)
{
	static const struct option options[] = {{"size", required_argument, NULL, 's'},
						{"rounds", required_argument, NULL, 'r'},
						{"seconds", required_argument, NULL, 't'},
						{NULL, 0, NULL, 0}};
	static struct bench b;
	uint64_t bytes = UINT64_C(2) << 30, wrong;
	unsigned int rounds = 5;
	double seconds = 6;
	pthread_t thread;
	int o;

	while ((o = getopt_long(argc, argv, "", options, NULL)) != -1) {
		if (o == 's' && size_parse(optarg, &bytes) == 0 && bytes >= 16 << 20)
			continue;
		if (o == 'r' && (rounds = (unsigned int)atoi(optarg)) && rounds <= ROUNDS_MAX)
			continue;
		if (o == 't' && (seconds = atof(optarg)) > 0)
			continue;
		return usage();
	}
	if (optind != argc)
		return usage();
	setvbuf(stdout, NULL, _IOLBF, 0);
	if (guest_content_new(&b.content) || ebb_start(&b.e, b.content, NATIVE_SHMEM, bytes))
		errx(1, "no memory");
	printf("idle: per cent of one CPU, in %u rounds of %.1f s\n", rounds, seconds);
	for (size_t k = 0; k < POLICIES; k++)
		measure(&b, k, rounds, seconds);
	if (pthread_create(&thread, NULL, read_quarter, &b))
		errx(1, "no thread");
	printf("busy: the same\n");
	for (size_t k = 0; k < POLICIES; k++)
		measure(&b, k, rounds, seconds);
	atomic_store(&b.stop, true);
	pthread_join(thread, NULL);
	printf("%llu passes over the hot quarter\n", (unsigned long long)atomic_load(&b.passes));
	wrong = ebb_stop(&b.e, b.content);
	guest_content_free(b.content);
	if (wrong)
		errx(1, "%llu pages are wrong", (unsigned long long)wrong);
	return 0;
}
