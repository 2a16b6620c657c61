/* SPDX-License-Identifier: BSD-3-Clause */
/* bench_attached.c: what it costs a program to be attached while nothing is evicted. */
#include <err.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/size.h"
#include "compare/pattern.h"
#include "ebb.h"

/*
 * Theory of operation
 *
 * One process, one piece of memory, all of it resident and no limit. Stretch by stretch it is
 * attached and not attached in turn, and one thread reads and writes in it. The pages are the same
 * ones in both, for where they lie decides by far more than 1 % how fast a program is. What counts
 * is CPU time, the thread's by its own clock and the daemon's by its process's, so that waiting for
 * a CPU does not. Attaching and detaching are not in it.
 *
 * A stretch gives the CPU time of an access; the ratio is that of an attached one to the mean of
 * the two beside it, so that what changes slowly cancels. The control takes every second unattached
 * stretch for the attached one: what it shows is the measurement's own error. Each figure is the
 * median of the ratios, with the interval that 95 % of the medians of resamples lie in (bootstrap:
 * Efron and Tibshirani, An Introduction to the Bootstrap, section 13.3).
 */

#define VM	  "bench" /* as ebb.c names it */
#define MOST	  4096u
#define RESAMPLES 1000u
#define WARM_PART 4 /* a stretch is warmed up for that part of its length */
#define BATCH	  256
#define GOAL	  1.01

struct stretch {
	double program_ns, daemon_ns; /* for an access */
	uint64_t wrong;
};

struct bench {
	struct ebb e;
	struct guest_content *content;
	struct pattern pattern;
	struct pattern_walk walk;
	const char *policy, *workload;
	unsigned int write_percent, stretches;
	double seconds;
	uint64_t cleared, minor, evictions; /* in all attached stretches */
};

static void attach(struct bench *b)
{
	if (native_attach(b->e.client, VM, &b->e.mem, 1, NATIVE_SERVE_ZAP))
		errx(1, "cannot attach: %s", native_error(b->e.client));
	daemon_ask(&b->e.daemon,
		   "{\"execute\":\"policy-set\",\"arguments\":{\"vm\":\"" VM
		   "\",\"role\":\"reclaim\",\"policy\":\"%s\"}}",
		   b->policy);
	if (!strstr(b->e.daemon.answer, "\"return\""))
		errx(1, "policy-set: %.300s", b->e.daemon.answer);
}

static void detach(struct bench *b)
{
	b->cleared += ebb_number(&b->e, "units-cleared");
	b->minor += ebb_number(&b->e, "minor-faults");
	b->evictions += ebb_number(&b->e, "evictions");
	if (native_detach(b->e.client))
		errx(1, "cannot detach: %s", native_error(b->e.client));
}

static uint64_t access_some(struct bench *b, uint64_t *wrong)
{
	for (int i = 0; i < BATCH; i++) {
		uint64_t page = pattern_next(&b->walk, 0), r = pattern_random(&b->walk), was;
		volatile uint64_t *p = (volatile uint64_t *)(b->e.ram.at + page * GUEST_PAGE);

		was = *p;
		if ((r & 127) * 100 < b->write_percent * UINT64_C(128))
			*p = was + (UINT64_C(1) << 32);
		*wrong += (uint32_t)was != (uint32_t)page;
	}
	return BATCH;
}

static uint64_t work(struct bench *b, double seconds, uint64_t *wrong)
{
	uint64_t end = clock_ns() + (uint64_t)(seconds * 1e9), n = 0;

	while (clock_ns() < end)
		n += access_some(b, wrong);
	return n;
}

/* Attaching and detaching drop page-table entries, and each costs a fault when it is missed. */
static void touch_all(const struct bench *b)
{
	for (uint64_t page = 0; page < b->e.ram.pages; page++) {
		volatile uint64_t *p = (volatile uint64_t *)(b->e.ram.at + page * GUEST_PAGE);

		*p = *p;
	}
}

static struct stretch stretch(struct bench *b)
{
	struct stretch s = {0};
	uint64_t cpu, daemon, n;

	touch_all(b);
	work(b, b->seconds / WARM_PART, &s.wrong);
	daemon = ebb_cpu_ns(&b->e);
	cpu = clock_thread_cpu_ns();
	n = work(b, b->seconds, &s.wrong);
	s.program_ns = (double)(clock_thread_cpu_ns() - cpu) / (double)n;
	s.daemon_ns = (double)(ebb_cpu_ns(&b->e) - daemon) / (double)n;
	return s;
}

/* ---- figures ---- */

struct interval {
	double median, low, high;
};

static int compare_doubles(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

static double median(double *v, unsigned int n)
{
	qsort(v, n, sizeof(*v), compare_doubles);
	return n % 2 ? v[n / 2] : (v[n / 2 - 1] + v[n / 2]) / 2;
}

static struct interval interval(double *ratios, unsigned int n)
{
	static double draw[MOST], medians[RESAMPLES];
	struct pattern all = {.kind = PATTERN_UNIFORM, .pages = n};
	struct pattern_walk walk;
	struct interval r;

	pattern_start(&walk, &all, 0, 1, 1);
	for (unsigned int i = 0; i < RESAMPLES; i++) {
		for (unsigned int j = 0; j < n; j++)
			draw[j] = ratios[pattern_next(&walk, 0)];
		medians[i] = median(draw, n);
	}
	qsort(medians, RESAMPLES, sizeof(*medians), compare_doubles);
	r.low = medians[RESAMPLES * 25 / 1000];
	r.high = medians[RESAMPLES * 975 / 1000 - 1];
	r.median = median(ratios, n);
	return r;
}

/* Of stretches first, first + step... to the mean of those `beside` before and after each. */
static struct interval ratio(const struct stretch *s, unsigned int n, unsigned int first,
			     unsigned int step, unsigned int beside, bool daemon)
{
	static double ratios[MOST];
	unsigned int found = 0;

	for (unsigned int i = first; i + beside < n; i += step) {
		double own = s[i].program_ns + (daemon ? s[i].daemon_ns : 0);

		ratios[found++] = own * 2 / (s[i - beside].program_ns + s[i + beside].program_ns);
	}
	return interval(ratios, found);
}

static void print_ratio(const char *what, struct interval r, bool judged)
{
	printf("  %-34s %.4f (%.4f to %.4f)%s\n", what, r.median, r.low, r.high,
	       !judged		? ""
	       : r.high <= GOAL ? "   within 1 %"
	       : r.low > GOAL	? "   more than 1 %"
				: "   not decided");
}

static void report(const struct bench *b, const struct stretch *s)
{
	unsigned int n = b->stretches;
	double load[1] = {0};

	getloadavg(load, 1);
	printf("%s, %u %% writes, policy %s, %u stretches of %.2f s, %.1f ns an access, load average "
	       "%.1f\n",
	       b->workload, b->write_percent, b->policy, n, b->seconds, s[n - 1].program_ns,
	       load[0]);
	printf("CPU an access, attached to unattached, median (95 %% interval):\n");
	print_ratio("the program's", ratio(s, n, 1, 2, 1, false), false);
	print_ratio("the daemon's with it (goal 1.01)", ratio(s, n, 1, 2, 1, true), true);
	print_ratio("control", ratio(s, n, 2, 4, 2, false), false);
	printf("while attached: %llu pages looked at again, %llu MINOR faults\n",
	       (unsigned long long)b->cleared, (unsigned long long)b->minor);
}

static int usage(void)
{
	fprintf(stderr,
		"usage: bench_attached [--size BYTES] [--workload NAME] [--writes PERCENT]\n"
		"           [--policy NAME] [--stretches N] [--seconds S] [--thp]\n"
		"N, at least 7 and odd, of S seconds each; unattached at first and at last\n");
	return 2;
}

static int parse(int argc, char **argv, struct bench *b, uint64_t *bytes, enum native_kind *kind)
{
	static const struct option options[] = {{"size", required_argument, NULL, 's'},
						{"workload", required_argument, NULL, 'w'},
						{"writes", required_argument, NULL, 'p'},
						{"policy", required_argument, NULL, 'r'},
						{"stretches", required_argument, NULL, 'n'},
						{"seconds", required_argument, NULL, 't'},
						{"thp", no_argument, NULL, 'h'},
						{NULL, 0, NULL, 0}};
	int o;

	while ((o = getopt_long(argc, argv, "", options, NULL)) != -1) {
		if (o == 's' && size_parse(optarg, bytes) == 0 && *bytes >= 4 << 20)
			continue;
		if (o == 'w' && (b->workload = optarg))
			continue;
		if (o == 'p' && (b->write_percent = (unsigned int)atoi(optarg)) <= 100)
			continue;
		if (o == 'r' && (b->policy = optarg))
			continue;
		if (o == 'n' && (b->stretches = (unsigned int)atoi(optarg) | 1) >= 7 &&
		    b->stretches <= MOST)
			continue;
		if (o == 't' && (b->seconds = atof(optarg)) > 0)
			continue;
		if (o == 'h') {
			*kind = NATIVE_THP;
			continue;
		}
		return -1;
	}
	*bytes &= ~((UINT64_C(2) << 20) - 1);
	return optind == argc && !pattern_init(&b->pattern, b->workload, *bytes / GUEST_PAGE) ? 0
											      : -1;
}

int main(int argc, char **argv)
{
	static struct bench b = {.policy = "clock",
				 .workload = "uniform",
				 .write_percent = 50,
				 .stretches = 101,
				 .seconds = 0.5};
	static struct stretch s[MOST];
	enum native_kind kind = NATIVE_SHMEM;
	uint64_t bytes = UINT64_C(128) << 20, wrong = 0;

	if (parse(argc, argv, &b, &bytes, &kind))
		return usage();
	pattern_start(&b.walk, &b.pattern, 0, 1, 1);
	if (guest_content_new(&b.content) || ebb_start(&b.e, b.content, kind, bytes))
		errx(1, "no memory");
	detach(&b);
	for (unsigned int i = 0; i < b.stretches && !guest_stop; i++) {
		if (i % 2)
			attach(&b);
		s[i] = stretch(&b);
		wrong += s[i].wrong;
		if (i % 2)
			detach(&b);
	}
	if (b.evictions)
		errx(1, "something was evicted");
	report(&b, s);
	/* It is attached when it ends. */
	attach(&b);
	wrong += ebb_stop(&b.e, b.content);
	guest_content_free(b.content);
	if (wrong)
		errx(1, "%llu pages are wrong", (unsigned long long)wrong);
	return 0;
}
