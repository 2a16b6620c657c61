/* SPDX-License-Identifier: BSD-3-Clause */
/* load.c: the workload of bench/compare: an ordinary program that works in its own memory. */
#include <err.h>
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/hist.h"
#include "base/size.h"
#include "fault/guest.h"
#include "pattern.h"

/*
 * Theory of operation
 *
 *   load SIZE KIND CONTENT     KIND: small, thp, hugetlb; CONTENT: see guest.h
 *
 * It takes SIZE of anonymous memory, knows nothing of where it runs, and does what its standard
 * input says, a line each, with one line of JSON in answer:
 *
 *   fill                        writes the content to every page
 *   run PATTERN THREADS WRITE_PERCENT WARM_S RUN_S
 *   check                       compares every page with what it must hold
 *
 * As in the fault benchmark, a page's first word is its number and a count of writes, so that each
 * access checks its page. Each is timed, but those of gups, which are timed by 16; an access above
 * GUEST_FAULT_NS counts as a fault. gups writes to the last words only, which are not compared.
 */

#define THREADS_MAX 64
#define LAST_WORDS  8u
#define WORDS	    (GUEST_PAGE / 8)
#define SERVE_TIMES 8u

enum phase { WARM, RUN, END };

struct run {
	const struct guest_ram *ram;
	struct pattern pattern;
	unsigned int write_percent;
	_Atomic int phase;
	_Atomic unsigned int counted; /* threads that have counted something */
};

struct worker {
	struct run *run;
	pthread_t thread;
	struct pattern_walk walk;
	uint64_t accesses, wrong;
	uint64_t hash; /* of keyvalue, so that its work is not left out */
	struct hist all, faults;
};

/* What a server does for a request beside touching its memory, some 10 us in all. */
static uint64_t serve(const volatile uint64_t *page, uint64_t hash)
{
	for (unsigned int i = 0; i < SERVE_TIMES * WORDS; i++) {
		hash = (hash ^ page[i % WORDS]) * UINT64_C(0x9e3779b97f4a7c15);
		hash ^= hash >> 29;
	}
	return hash;
}

static void access_one(struct worker *t, uint64_t *now, bool counts)
{
	struct run *run = t->run;
	uint64_t page = pattern_next(&t->walk, *now), r = pattern_random(&t->walk), was, start;
	volatile uint64_t *p = (volatile uint64_t *)(run->ram->at + page * GUEST_PAGE);
	bool write = (r & 127) * 100 < run->write_percent * UINT64_C(128);

	start = clock_ns();
	was = *p;
	if (write)
		*p = was + (UINT64_C(1) << 32);
	if (run->pattern.kind == PATTERN_PMBENCH)
		(void)p[1 + (r >> 20) % (WORDS - 1)];
	*now = clock_ns();
	if (run->pattern.kind == PATTERN_KEYVALUE)
		t->hash = serve(p, t->hash);
	t->wrong += (uint32_t)was != (uint32_t)page;
	if (!counts)
		return;
	t->accesses++;
	hist_record(&t->all, *now - start);
	if (*now - start > GUEST_FAULT_NS)
		hist_record(&t->faults, *now - start);
}

static void update_some(struct worker *t, uint64_t *now, bool counts)
{
	for (int i = 0; i < 16; i++) {
		uint64_t page = pattern_next(&t->walk, *now), r = pattern_random(&t->walk);
		volatile uint64_t *p = (volatile uint64_t *)(t->run->ram->at + page * GUEST_PAGE);

		p[WORDS - LAST_WORDS + r % LAST_WORDS] ^= r;
	}
	if (counts)
		t->accesses += 16;
}

static void *worker_main(void *arg)
{
	struct worker *t = arg;
	bool updates = t->run->pattern.kind == PATTERN_GUPS;
	uint64_t now = clock_ns();
	bool counted = false;
	int phase;

	while ((phase = atomic_load_explicit(&t->run->phase, memory_order_relaxed)) != END) {
		if (updates)
			update_some(t, &now, phase == RUN);
		for (int i = 0; !updates && i < 16; i++)
			access_one(t, &now, phase == RUN);
		if (phase == RUN && !counted) {
			counted = true;
			atomic_fetch_add(&t->run->counted, 1);
		}
	}
	return NULL;
}

static void sleep_s(double s)
{
	struct timespec t = {.tv_sec = (time_t)s, .tv_nsec = (long)((s - (double)(time_t)s) * 1e9)};

	while (nanosleep(&t, &t) && errno == EINTR)
		;
}

/* ---- figures ---- */

static double seconds(struct timeval t)
{
	return (double)t.tv_sec + (double)t.tv_usec / 1e6;
}

static void print_hist(const char *name, const struct hist *h)
{
	printf(", \"%s\": {\"count\": %llu, \"p50_us\": %.3f, \"p99_us\": %.3f, \"p999_us\": %.3f, "
	       "\"max_us\": %.3f, \"mean_us\": %.3f, \"cdf\": [",
	       name, (unsigned long long)h->count, (double)hist_quantile(h, 0.5) / 1e3,
	       (double)hist_quantile(h, 0.99) / 1e3, (double)hist_quantile(h, 0.999) / 1e3,
	       (double)h->max / 1e3, h->count ? (double)h->sum / 1e3 / (double)h->count : 0);
	/* Ever finer towards the tail. */
	for (double q = 0, left = 1; left > 1e-5; left *= q < 0.9 ? 0.95 : 0.8, q = 1 - left)
		printf("%s[%.6f, %.3f]", q > 0 ? ", " : "", q, (double)hist_quantile(h, q) / 1e3);
	printf("]}");
}

static int report(struct worker *t, unsigned int n, double s, const struct rusage *before)
{
	static struct hist all, faults;
	uint64_t accesses = 0, wrong = 0;
	struct rusage now;

	memset(&all, 0, sizeof(all));
	memset(&faults, 0, sizeof(faults));
	for (unsigned int i = 0; i < n; i++) {
		hist_merge(&all, &t[i].all);
		hist_merge(&faults, &t[i].faults);
		accesses += t[i].accesses;
		wrong += t[i].wrong;
	}
	getrusage(RUSAGE_SELF, &now);
	printf("{\"seconds\": %.4f, \"accesses\": %llu, \"accesses_s\": %.1f, \"faults_s\": %.1f, "
	       "\"wrong\": %llu, \"user_s\": %.4f, \"sys_s\": %.4f, \"major\": %ld, \"minor\": %ld",
	       s, (unsigned long long)accesses, (double)accesses / s, (double)faults.count / s,
	       (unsigned long long)wrong, seconds(now.ru_utime) - seconds(before->ru_utime),
	       seconds(now.ru_stime) - seconds(before->ru_stime), now.ru_majflt - before->ru_majflt,
	       now.ru_minflt - before->ru_minflt);
	print_hist("access", &all);
	print_hist("fault", &faults);
	printf("}\n");
	return wrong != 0;
}

/* ---- commands ---- */

static int run(const struct guest_ram *ram, const char *line)
{
	static struct run run;
	unsigned int threads, write_percent;
	double warm_s, run_s, s;
	struct rusage before;
	struct worker *t;
	uint64_t start;
	static uint64_t runs;
	char name[32];
	int r;

	if (sscanf(line, "run %31s %u %u %lf %lf", name, &threads, &write_percent, &warm_s,
		   &run_s) != 5 ||
	    pattern_init(&run.pattern, name, ram->pages) || !threads || threads > THREADS_MAX)
		errx(2, "not understood: %s", line);
	t = calloc(threads, sizeof(*t));
	if (!t)
		err(1, "memory");
	run.ram = ram;
	run.write_percent = write_percent;
	runs++; /* each draws anew: those before have brought in what they touched */
	atomic_store(&run.phase, WARM);
	atomic_store(&run.counted, 0);
	for (unsigned int i = 0; i < threads; i++) {
		t[i].run = &run;
		pattern_start(&t[i].walk, &run.pattern, i, threads, runs);
		if (pthread_create(&t[i].thread, NULL, worker_main, &t[i]))
			err(1, "thread");
	}
	sleep_s(warm_s);
	getrusage(RUSAGE_SELF, &before);
	start = clock_ns();
	atomic_store(&run.phase, RUN);
	/* On a busy machine a thread may not have come to anything by then. */
	do
		sleep_s(run_s);
	while (atomic_load(&run.counted) < threads);
	atomic_store(&run.phase, END);
	s = (double)(clock_ns() - start) / 1e9;
	for (unsigned int i = 0; i < threads; i++)
		pthread_join(t[i].thread, NULL);
	r = report(t, threads, s, &before);
	free(t);
	return r;
}

static void fill(const struct guest_content *c, const struct guest_ram *ram)
{
	uint64_t start = clock_ns();

	guest_fill(c, ram);
	printf("{\"seconds\": %.4f}\n", (double)(clock_ns() - start) / 1e9);
}

/* Like guest_wrong_pages(), without the words that gups writes. */
static uint64_t check(const struct guest_content *c, const struct guest_ram *ram)
{
	uint64_t want[WORDS], wrong = 0;

	for (uint64_t n = 0; n < ram->pages; n++) {
		const uint64_t *p = (const uint64_t *)(ram->at + n * GUEST_PAGE);

		guest_page(c, n, want);
		wrong += (uint32_t)p[0] != (uint32_t)n ||
			 memcmp(p + 1, want + 1, (WORDS - LAST_WORDS - 1) * 8) != 0;
	}
	printf("{\"wrong\": %llu}\n", (unsigned long long)wrong);
	return wrong;
}

static void *take_memory(uint64_t bytes, const char *kind)
{
	bool huge = strcmp(kind, "hugetlb") == 0, thp = strcmp(kind, "thp") == 0;
	uint64_t align = UINT64_C(2) << 20;
	uint8_t *p =
		mmap(NULL, bytes + (huge ? 0 : align), PROT_READ | PROT_WRITE,
		     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | (huge ? MAP_HUGETLB : 0), -1, 0);

	if (p == MAP_FAILED)
		err(1, "no memory");
	p = (uint8_t *)(((uintptr_t)p + align - 1) & ~(align - 1));
	if (!huge)
		madvise(p, bytes, thp ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
	return p;
}

int main(int argc, char **argv)
{
	struct guest_content *content;
	struct guest_ram ram = {.unit_bytes = GUEST_PAGE};
	char line[256];
	uint64_t bytes;
	int r = 0;

	if (argc != 4 || size_parse(argv[1], &bytes))
		errx(2, "usage: compare_load SIZE small|thp|hugetlb CONTENT");
	if (guest_content_named(argv[3], &content))
		errx(2, "no content %s", argv[3]);
	bytes &= ~((UINT64_C(2) << 20) - 1);
	ram.at = take_memory(bytes, argv[2]);
	ram.pages = bytes / GUEST_PAGE;
	setvbuf(stdout, NULL, _IOLBF, 0);
	printf("{\"bytes\": %llu}\n", (unsigned long long)bytes);
	while (fgets(line, sizeof(line), stdin)) {
		if (strncmp(line, "fill", 4) == 0)
			fill(content, &ram);
		else if (strncmp(line, "run ", 4) == 0)
			r |= run(&ram, line);
		else if (strncmp(line, "check", 5) == 0)
			r |= check(content, &ram) != 0;
		else
			errx(2, "not understood: %s", line);
	}
	guest_content_free(content);
	return r;
}
