/* SPDX-License-Identifier: BSD-3-Clause */
/* bench_policy.c: policies side by side: scans, random loads, and a limit that is raised. */
#include <err.h>
#include <getopt.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/size.h"
#include "ebb.h"

/*
 * Theory of operation
 *
 * One daemon, one VM, which is this process. Rounds in which every policy has its turn, so that
 * what else the machine does hits all of them alike; the median of the rounds is printed with the
 * smallest and the largest.
 *
 * scan: all of memory is evicted and read once, in steps of 1 and of 7 pages. Which part of the
 * pages made a demand fault, and how long it took.
 * random: pages are read and written evenly, with half of memory as the limit. Accesses a second,
 * in proportion to those without a prefetcher in the same round.
 * raise: half of memory as the limit, a skewed load (Zipf 0.99), then no limit. The time from the
 * raise until the load spends less than 5 % of its time in faults, for `window` after `window`.
 */

#define ROUNDS_MAX 64
#define WINDOW_NS  (20 * NS_PER_MS)
#define GIVE_UP_NS (60 * NS_PER_S)

struct bench {
	uint64_t bytes;
	unsigned int rounds;
	double seconds;
	struct ebb e;
	struct guest_content *content;
	uint64_t *zipf; /* a sequence of pages */
	uint64_t n_zipf;
};

struct series {
	double value[ROUNDS_MAX];
	unsigned int n;
};

static int by_value(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return x < y ? -1 : x > y;
}

static void print_series(const char *name, struct series *s, const char *unit)
{
	qsort(s->value, s->n, sizeof(s->value[0]), by_value);
	printf("  %-12s %9.3f %s (%.3f to %.3f)\n", name, s->value[s->n / 2], unit, s->value[0],
	       s->value[s->n - 1]);
}

static void push(struct series *s, double value)
{
	if (s->n < ROUNDS_MAX)
		s->value[s->n++] = value;
}

/* ---- scans ---- */

static const char *const prefetchers[] = {"null", "sequential", "trend", "elastic", "correlation"};
#define PREFETCHERS (sizeof(prefetchers) / sizeof(prefetchers[0]))

static void scan_once(struct bench *b, uint64_t step, double *part, double *ns)
{
	volatile const uint8_t *at = b->e.ram.at;
	uint64_t faults, begin;

	ebb_reclaim(&b->e);
	faults = ebb_number(&b->e, "faults");
	begin = clock_ns();
	for (uint64_t from = 0; from < step; from++)
		for (uint64_t p = from; p < b->e.ram.pages; p += step)
			(void)at[p * GUEST_PAGE];
	*ns = (double)(clock_ns() - begin) / (double)b->e.ram.pages;
	*part = (double)(ebb_number(&b->e, "faults") - faults) / (double)b->e.ram.pages;
}

static void scans(struct bench *b)
{
	static const uint64_t steps[] = {1, 7};

	ebb_limit(&b->e, 0);
	for (int s = 0; s < 2; s++) {
		static struct series part[PREFETCHERS], ns[PREFETCHERS];

		memset(part, 0, sizeof(part));
		memset(ns, 0, sizeof(ns));
		for (unsigned int r = 0; r < b->rounds && !guest_stop; r++)
			for (size_t k = 0; k < PREFETCHERS; k++) {
				double p, t;

				ebb_prefetch_policy(&b->e, prefetchers[k]);
				scan_once(b, steps[s], &p, &t);
				/* elastic and correlation learn from the first pass. */
				scan_once(b, steps[s], &p, &t);
				push(&part[k], p);
				push(&ns[k], t);
			}
		printf("scan, step %llu: demand faults a page\n", (unsigned long long)steps[s]);
		for (size_t k = 0; k < PREFETCHERS; k++)
			print_series(prefetchers[k], &part[k], "");
		printf("scan, step %llu: time a page\n", (unsigned long long)steps[s]);
		for (size_t k = 0; k < PREFETCHERS; k++)
			print_series(prefetchers[k], &ns[k], "ns");
	}
}

/* ---- random ---- */

static void random_loads(struct bench *b)
{
	const struct guest_load load = {
		.threads = 1, .warm_s = b->seconds / 2, .run_s = b->seconds, .write_percent = 50};
	static struct series ratio[PREFETCHERS];

	ebb_limit(&b->e, b->bytes / 2);
	for (unsigned int r = 0; r < b->rounds && !guest_stop; r++) {
		double speed[PREFETCHERS];

		for (size_t i = 0; i < PREFETCHERS; i++) {
			size_t k = (i + r) % PREFETCHERS; /* in changing order */
			struct guest_figures f;

			ebb_prefetch_policy(&b->e, prefetchers[k]);
			if (guest_run(&b->e.ram, &load, &f) || f.wrong)
				errx(1, "the load failed");
			speed[k] = f.accesses_s;
		}
		for (size_t k = 0; k < PREFETCHERS; k++)
			push(&ratio[k], speed[k] / speed[0]);
	}
	printf("random, half of memory: speed, of that without a prefetcher\n");
	for (size_t k = 0; k < PREFETCHERS; k++)
		print_series(prefetchers[k], &ratio[k], "");
}

/* ---- a limit that is raised ---- */

static void make_zipf(struct bench *b)
{
	uint64_t pages = b->e.ram.pages, rng = 1;
	double *sum = malloc(pages * sizeof(*sum)), total = 0;

	b->n_zipf = 1 << 20;
	b->zipf = malloc(b->n_zipf * sizeof(*b->zipf));
	if (!sum || !b->zipf)
		errx(1, "out of memory");
	for (uint64_t k = 0; k < pages; k++)
		sum[k] = total += pow((double)(k + 1), -0.99);
	for (uint64_t i = 0; i < b->n_zipf; i++) {
		uint64_t low = 0, high = pages - 1;
		double x;

		rng = rng * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
		x = (double)(rng >> 11) / (double)(UINT64_C(1) << 53) * total;
		while (low < high) {
			uint64_t middle = (low + high) / 2;

			if (sum[middle] < x)
				low = middle + 1;
			else
				high = middle;
		}
		/* Scattered: neighbours in rank are none in memory. */
		b->zipf[i] = low * UINT64_C(2654435761) % pages;
	}
	free(sum);
}

/*
 * What an access that took long was: a fault's handler makes the thread wait, others that want its
 * CPU only take it away. The latter would be lost with any policy, and is not counted.
 */
static bool was_fault(const struct rusage *before)
{
	struct rusage now;

	getrusage(RUSAGE_THREAD, &now);
	return now.ru_nvcsw > before->ru_nvcsw ||
	       (now.ru_minflt > before->ru_minflt && now.ru_nivcsw == before->ru_nivcsw);
}

/* Runs the load for one window, some 2 us of work a page; the part of its time that faults took. */
static double window(struct bench *b, uint64_t *at)
{
	volatile const uint8_t *ram = b->e.ram.at;
	uint64_t begin = clock_ns(), now = begin, lost = 0;
	struct rusage usage;

	getrusage(RUSAGE_THREAD, &usage);
	while (now - begin < WINDOW_NS) {
		volatile const uint8_t *page = ram + b->zipf[++*at % b->n_zipf] * GUEST_PAGE;
		uint64_t before = clock_ns(), took;

		(void)page[0];
		took = clock_ns() - before;
		if (took > GUEST_FAULT_NS) {
			lost += was_fault(&usage) ? took : 0;
			getrusage(RUSAGE_THREAD, &usage);
		}
		for (int k = 0; k < 4; k++)
			for (int line = 0; line < 64; line++)
				(void)page[64 * line];
		now = clock_ns();
	}
	return (double)lost / (double)(now - begin);
}

/* Seconds from the raise until three windows in a row are as good as undisturbed. */
static double raise_once(struct bench *b, const char *policy)
{
	uint64_t at = 0, begin, good_since = 0;
	int good = 0;

	ebb_prefetch_policy(&b->e, policy);
	ebb_limit(&b->e, b->bytes / 4);
	for (begin = clock_ns(); (double)(clock_ns() - begin) < b->seconds * 1e9;)
		window(b, &at);
	begin = clock_ns();
	ebb_limit(&b->e, 0);
	while (good < 3 && clock_ns() - begin < GIVE_UP_NS && !guest_stop) {
		if (!good)
			good_since = clock_ns();
		good = window(b, &at) < 0.05 ? good + 1 : 0;
	}
	return (double)(good_since - begin) / 1e9;
}

static void raises(struct bench *b)
{
	struct series demand = {.n = 0}, replay = {.n = 0}, ratio = {.n = 0};

	make_zipf(b);
	for (unsigned int r = 0; r < b->rounds && !guest_stop; r++) {
		double t[2];

		for (int k = 0; k < 2; k++)
			t[(k + r) % 2] = raise_once(b, (k + r) % 2 ? "replay" : "null");
		push(&demand, t[0]);
		push(&replay, t[1]);
		push(&ratio, t[0] / t[1]);
	}
	printf("raise, from a quarter of memory: until 95 %% of full speed\n");
	print_series("demand", &demand, "s");
	print_series("replay", &replay, "s");
	print_series("ratio", &ratio, "");
	free(b->zipf);
}

static int usage(void)
{
	fprintf(stderr, "usage: bench_policy [--size BYTES] [--rounds N] [--seconds S]\n"
			"                    [--only scan|random|raise]\n");
	return 2;
}

int main(int argc, char **argv)
{
	static const struct option options[] = {{"size", required_argument, NULL, 's'},
						{"rounds", required_argument, NULL, 'r'},
						{"seconds", required_argument, NULL, 't'},
						{"only", required_argument, NULL, 'o'},
						{NULL, 0, NULL, 0}};
	static struct bench b = {.bytes = UINT64_C(256) << 20, .rounds = 5, .seconds = 2};
	const char *only = NULL;
	uint64_t wrong;
	int o;

	while ((o = getopt_long(argc, argv, "", options, NULL)) != -1) {
		if (o == 's' && size_parse(optarg, &b.bytes) == 0 && b.bytes >= 16 << 20)
			continue;
		if (o == 'r' && (b.rounds = (unsigned int)atoi(optarg)) && b.rounds <= ROUNDS_MAX)
			continue;
		if (o == 't' && (b.seconds = atof(optarg)) > 0)
			continue;
		if (o == 'o' && (strcmp(optarg, "scan") == 0 || strcmp(optarg, "random") == 0 ||
				 strcmp(optarg, "raise") == 0)) {
			only = optarg;
			continue;
		}
		return usage();
	}
	if (optind != argc)
		return usage();
	setvbuf(stdout, NULL, _IOLBF, 0);
	if (guest_content_new(&b.content) || ebb_start(&b.e, b.content, NATIVE_SHMEM, b.bytes))
		errx(1, "no memory");
	if (!only || *only == 's')
		scans(&b);
	if (!only || strcmp(only, "random") == 0)
		random_loads(&b);
	if (!only || strcmp(only, "raise") == 0)
		raises(&b);
	/* The load has written to its counters only: guest_wrong_pages() knows them. */
	wrong = ebb_stop(&b.e, b.content);
	guest_content_free(b.content);
	if (wrong)
		errx(1, "%llu pages are wrong", (unsigned long long)wrong);
	return 0;
}
