/* SPDX-License-Identifier: BSD-3-Clause */
/* bench_fault.c: what a page fault costs with Ebb, bare userfaultfd and the kernel's swap. */
#include <err.h>
#include <errno.h>
#include <getopt.h>
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "bare.h"
#include "base/size.h"
#include "ebb.h"
#include "kernel.h"
#include "place.h"
#include "table.h"

/*
 * Theory of operation
 *
 * Two parts, each in rounds in which the sides follow each other closely and in changing order, so
 * that what else the machine does falls on all of them; ratios are taken per round, and what is
 * printed is the median of the rounds and their range.
 *
 * quiet: one thread touches pages that are not there, one after the other, with nothing else going
 * on. Sides: a bare handler in another process (bare.c); lz4 decompression of the same pages
 * alone; Ebb, after vm-reclaim and without prefetching. Where the handler runs matters more than
 * what it does: so each side is measured with the handler bound to the toucher's CPU, to another,
 * and wherever the scheduler puts it (place.h).
 *
 * load: threads read and write evenly spread pages of memory of which half may be resident, so
 * that each fault is paid for by an eviction. Sides: Ebb with a limit, everything else as it is
 * by default; the kernel with a memory cgroup and swap to zram (lz4). The daemon runs only while
 * there is no swap (swap.c says why).
 *
 * The guest's pages are checked with every access and at the end; a wrong page is the only thing
 * that makes the benchmark fail.
 *
 * All of it runs in a child in a process group of its own: a Ctrl-C reaches the parent alone, which
 * tells the child, which ends in order; a daemon that got the signal too would leave the guest's
 * threads waiting for it.
 */

#define LOADS_MAX 2

struct options {
	uint64_t bytes;
	unsigned int rounds, load_rounds, faults, write_percent;
	double seconds;
	enum native_kind kind;
	bool kernel, load;
	const char *json;
};

struct bench {
	struct options o;
	struct guest_content *content;
	struct table table;
	uint32_t *ns;
	uint64_t touched, wrong, kernel_failed;
	char why[200]; /* there is no kernel side */
};

static void use(FILE *out)
{
	fprintf(out,
		"usage: bench_fault [OPTION]...\n"
		"What a page fault costs: bare userfaultfd, Ebb, the kernel's swap to zram.\n\n"
		"  --size BYTES        guest RAM (256M)\n"
		"  --kind KIND         shmem, thp or hugetlb (shmem)\n"
		"  --rounds N          of the quiet part (15; at most 200)\n"
		"  --faults N          a quiet round (1000; huge pages 16)\n"
		"  --load-rounds N     of the load part (3; 0: none)\n"
		"  --seconds S         of one load (3)\n"
		"  --write PERCENT     of the load's accesses (50)\n"
		"  --no-kernel         leave swap, zram and cgroups alone\n"
		"  --json FILE         figures with all rounds\n\n"
		"EBB_BUILD names the build folder (default: where this program lies in it).\n");
}

static void figure(struct bench *b, const char *key, const char *what, const char *unit,
		   unsigned int round, double value)
{
	if (!isnan(value))
		table_add(&b->table, key, what, unit, round, value);
}

/* ---- quiet ---- */

struct quiet_names {
	const char *bare50, *bare99, *ebb50, *ebb99, *faults, *ratio;
};

static const struct quiet_names quiet_names[PLACES] = {
	{"same CPU: bare round trip p50", "same CPU: bare round trip p99", "same CPU: Ebb p50",
	 "same CPU: Ebb p99", "same CPU: Ebb faults",
	 "  same CPU: Ebb / (bare + lz4), p50 (goal: <= 1.5)"},
	{"other CPU: bare round trip p50", "other CPU: bare round trip p99", "other CPU: Ebb p50",
	 "other CPU: Ebb p99", "other CPU: Ebb faults",
	 "  other CPU: Ebb / (bare + lz4), p50 (goal: <= 1.5)"},
	{"any CPU: bare round trip p50", "any CPU: bare round trip p99", "any CPU: Ebb p50",
	 "any CPU: Ebb p99", "any CPU: Ebb faults",
	 "  any CPU: Ebb / (bare + lz4), p50 (goal: <= 1.5)"},
};

static double p_us(struct bench *b, uint32_t n, double q)
{
	return table_quantile(b->ns, n, q) / 1e3;
}

static void quiet_figures(struct bench *b, enum place p, const char *side, const char *what50,
			  const char *what99, int round, uint32_t n)
{
	char key[48];

	if (round < 0)
		return;
	snprintf(key, sizeof(key), "quiet.%s.%s.p50_us", place_name(p), side);
	figure(b, key, what50, "us", (unsigned int)round, p_us(b, n, 0.5));
	snprintf(key, sizeof(key), "quiet.%s.%s.p99_us", place_name(p), side);
	figure(b, key, what99, "us", (unsigned int)round, p_us(b, n, 0.99));
}

static void quiet_bare(struct bench *b, struct bare *bare, enum place p, int round)
{
	uint32_t n = b->o.faults;
	int r;

	place_handler(p, bare_handler(bare), NULL);
	r = bare_round(bare, n, b->ns);
	if (r < 0)
		errx(1, "bare userfaultfd: %s", strerror(-r));
	b->wrong += (uint64_t)r;
	quiet_figures(b, p, "bare", quiet_names[p].bare50, quiet_names[p].bare99, round, n);
}

static void quiet_lz4(struct bench *b, int round)
{
	uint32_t unit = b->o.kind == NATIVE_SHMEM ? GUEST_PAGE : 2u << 20;
	int r = bare_lz4(b->content, b->o.faults, unit, b->ns);

	if (r)
		errx(1, "lz4: %s", strerror(-r));
	if (round >= 0)
		figure(b, "quiet.lz4.p50_us", "lz4 decompression p50", "us", (unsigned int)round,
		       p_us(b, b->o.faults, 0.5));
}

static void quiet_ebb(struct bench *b, struct ebb *e, enum place p, int round)
{
	uint32_t n = 0, all = b->o.faults;
	char key[48];

	ebb_reclaim(e);
	place_handler(p, e->daemon.pid, "ebb-fault");
	/* Each round other pages: how those of the last were loaded is of no use. */
	b->wrong += guest_touch(&e->ram, b->touched, all, b->ns);
	b->touched += all;
	/* A page that could not be taken was no fault. */
	for (uint32_t i = 0; i < all; i++)
		if (b->ns[i] > GUEST_FAULT_NS)
			b->ns[n++] = b->ns[i];
	quiet_figures(b, p, "ebb", quiet_names[p].ebb50, quiet_names[p].ebb99, round, n);
	snprintf(key, sizeof(key), "quiet.%s.ebb.faults", place_name(p));
	if (round >= 0)
		figure(b, key, quiet_names[p].faults, "", (unsigned int)round, n);
}

static void quiet_ratio(struct bench *b, enum place p)
{
	char key[48], ebb[48], bare[48];

	snprintf(key, sizeof(key), "quiet.%s.ratio", place_name(p));
	snprintf(ebb, sizeof(ebb), "quiet.%s.ebb.p50_us", place_name(p));
	snprintf(bare, sizeof(bare), "quiet.%s.bare.p50_us", place_name(p));
	table_ratio(&b->table, key, quiet_names[p].ratio, ebb, bare, "quiet.lz4.p50_us");
}

static void quiet(struct bench *b)
{
	struct bare *bare;
	static struct ebb e;
	int r = bare_new(b->o.kind, b->o.faults, &bare);

	if (!r)
		r = ebb_start(&e, b->content, b->o.kind, b->o.bytes);
	if (r)
		errx(1, "no memory of that kind: %s", strerror(-r));
	ebb_prefetch_policy(&e, "null");
	/* One more, before the first, warms everything up. */
	for (int i = -1; i < (int)b->o.rounds && !guest_stop; i++) {
		quiet_lz4(b, i);
		for (enum place p = place_first(); p < PLACES && !guest_stop; p++) {
			place_guest(p);
			if (i % 2)
				quiet_ebb(b, &e, p, i);
			quiet_bare(b, bare, p, i);
			if (i % 2 == 0)
				quiet_ebb(b, &e, p, i);
		}
	}
	place_guest(PLACE_ANY);
	b->wrong += ebb_stop(&e, b->content);
	bare_free(bare);
	for (enum place p = 0; p < PLACES; p++)
		quiet_ratio(b, p);
}

/* ---- load ---- */

static const char *const load_names[LOADS_MAX][2][5] = {
	{{"1 thread, Ebb: fault p50", "1 thread, Ebb: fault p99", "1 thread, Ebb: fault p99.9",
	  "1 thread, Ebb: accesses", "1 thread, Ebb: faults"},
	 {"1 thread, kernel: fault p50", "1 thread, kernel: fault p99",
	  "1 thread, kernel: fault p99.9", "1 thread, kernel: accesses",
	  "1 thread, kernel: faults"}},
	{{"2 threads, Ebb: fault p50", "2 threads, Ebb: fault p99", "2 threads, Ebb: fault p99.9",
	  "2 threads, Ebb: accesses", "2 threads, Ebb: faults"},
	 {"2 threads, kernel: fault p50", "2 threads, kernel: fault p99",
	  "2 threads, kernel: fault p99.9", "2 threads, kernel: accesses",
	  "2 threads, kernel: faults"}},
};

static void load_figures(struct bench *b, unsigned int round, unsigned int load, bool kernel,
			 const struct guest_figures *f)
{
	static const char *const keys[] = {"p50_us", "p99_us", "p999_us", "accesses_s", "faults_s"};
	const double v[] = {f->p50_us, f->p99_us, f->p999_us, f->accesses_s, f->faults_s};

	b->wrong += f->wrong;
	for (int i = 0; i < 5; i++) {
		char key[48];

		snprintf(key, sizeof(key), "load%u.%s.%s", load + 1, kernel ? "kernel" : "ebb",
			 keys[i]);
		figure(b, key, load_names[load][kernel][i], i < 3 ? "us" : "/s", round, v[i]);
	}
}

/* What the daemon did meanwhile, to tell what the figures come from. */
static void daemon_figures(struct bench *b, struct ebb *e, unsigned int round, unsigned int load,
			   struct ebb_counters *before)
{
	static const char *const names[LOADS_MAX][2] = {
		{"1 thread, Ebb: faults parked", "1 thread, Ebb: evicting a page, CPU"},
		{"2 threads, Ebb: faults parked", "2 threads, Ebb: evicting a page, CPU"}};
	struct ebb_counters now;
	char key[48];

	ebb_counters(e, &now);
	if (now.faults > before->faults) {
		snprintf(key, sizeof(key), "load%u.ebb.parked_percent", load + 1);
		figure(b, key, names[load][0], "%", round,
		       100.0 * (double)(now.parked - before->parked) /
			       (double)(now.faults - before->faults));
	}
	if (now.evictions > before->evictions) {
		snprintf(key, sizeof(key), "load%u.ebb.evict_cpu_us", load + 1);
		figure(b, key, names[load][1], "us", round,
		       (double)(now.evict_cpu_ns - before->evict_cpu_ns) / 1e3 /
			       (double)(now.evictions - before->evictions));
	}
	*before = now;
}

static void load_ebb(struct bench *b, unsigned int round, const struct guest_load *loads)
{
	static struct ebb e;
	struct ebb_overhead o;
	struct ebb_counters counters;
	struct guest_figures f;
	int r = ebb_start(&e, b->content, b->o.kind, b->o.bytes);

	if (r)
		errx(1, "no memory of that kind: %s", strerror(-r));
	ebb_limit(&e, b->o.bytes / 2);
	ebb_counters(&e, &counters);
	for (unsigned int i = 0; i < LOADS_MAX && !guest_stop; i++) {
		r = guest_run(&e.ram, &loads[i], &f);
		if (r)
			errx(1, "load: %s", strerror(-r));
		load_figures(b, round, i, false, &f);
		daemon_figures(b, &e, round, i, &counters);
	}
	ebb_overhead(&e, &o);
	figure(b, "overhead.table", "page table / RAM (goal: at most 0.2)", "%", round,
	       o.table_percent);
	figure(b, "overhead.store", "store overhead / stored (goal: at most 8)", "%", round,
	       o.store_percent);
	figure(b, "overhead.policy", "policy and tracker / RAM (goal: at most 0.1)", "%", round,
	       o.policy_percent);
	b->wrong += ebb_stop(&e, b->content);
}

static void load_kernel(struct bench *b, unsigned int round, const struct guest_load *loads)
{
	struct guest_figures f[LOADS_MAX];
	struct swap_setup s;
	uint64_t wrong;
	int r = -1;

	/* The kernel ends it now and then, as out of memory in the cgroup. */
	for (int tries = 0; r && tries < 3 && !guest_stop; tries++) {
		if (!b->o.kernel || b->why[0])
			return;
		if (swap_on(&s, b->o.bytes / 2, b->o.bytes)) {
			snprintf(b->why, sizeof(b->why), "%s", s.why);
			return;
		}
		r = kernel_run(&s, b->content, b->o.bytes, loads, LOADS_MAX, f, &wrong);
		if (swap_off(&s))
			errx(1, "%s", s.why);
		b->kernel_failed += r && !guest_stop;
	}
	if (r)
		return;
	b->wrong += wrong;
	for (unsigned int i = 0; i < LOADS_MAX; i++)
		load_figures(b, round, i, true, &f[i]);
}

static void load(struct bench *b)
{
	struct guest_load loads[LOADS_MAX];

	for (unsigned int i = 0; i < LOADS_MAX; i++)
		loads[i] = (struct guest_load){.threads = i + 1,
					       .warm_s = b->o.seconds / 4,
					       .run_s = b->o.seconds,
					       .write_percent = b->o.write_percent};
	for (unsigned int r = 0; r < b->o.load_rounds && !guest_stop; r++) {
		if (r % 2)
			load_kernel(b, r, loads);
		if (!guest_stop)
			load_ebb(b, r, loads);
		if (r % 2 == 0 && !guest_stop)
			load_kernel(b, r, loads);
	}
	table_ratio(&b->table, "load1.ratio_p99",
		    "  1 thread: Ebb / kernel, p99 (goal: at most 0.2)", "load1.ebb.p99_us",
		    "load1.kernel.p99_us", NULL);
	table_ratio(&b->table, "load1.ratio_accesses", "  1 thread: Ebb / kernel, accesses",
		    "load1.ebb.accesses_s", "load1.kernel.accesses_s", NULL);
	table_ratio(&b->table, "load2.ratio_p99",
		    "  2 threads: Ebb / kernel, p99 (goal: at most 0.2)", "load2.ebb.p99_us",
		    "load2.kernel.p99_us", NULL);
	table_ratio(&b->table, "load2.ratio_accesses", "  2 threads: Ebb / kernel, accesses",
		    "load2.ebb.accesses_s", "load2.kernel.accesses_s", NULL);
}

/* ---- the whole ---- */

static bool sane(const struct table *t, const char *key)
{
	double v = table_median(t, key);

	return !isnan(v) && v > 0;
}

static int report(struct bench *b, const double *load_before)
{
	double after[3] = {0};
	int r = 0;

	getloadavg(after, 3);
	table_print(&b->table, stdout);
	printf("load average: %.1f before, %.1f after (above the number of CPUs, latencies are "
	       "those of waiting for a CPU)\n",
	       load_before[0], after[0]);
	if (b->why[0])
		printf("no kernel side: %s\n", b->why);
	if (b->kernel_failed)
		printf("kernel side: ended %llu times, as out of memory, and begun again\n",
		       (unsigned long long)b->kernel_failed);
	printf("pages with wrong content: %llu\n", (unsigned long long)b->wrong);
	if (b->o.json) {
		FILE *f = fopen(b->o.json, "we");

		if (!f)
			err(1, "%s", b->o.json);
		table_json(&b->table, f);
		if (fclose(f))
			err(1, "%s", b->o.json);
	}
	if (b->wrong)
		r = 1;
	if (!sane(&b->table, "quiet.any.ebb.p50_us") || !sane(&b->table, "quiet.any.bare.p50_us") ||
	    (b->o.load_rounds && !sane(&b->table, "load1.ebb.p99_us"))) {
		fprintf(stderr, "there are no figures\n");
		r = 1;
	}
	return r;
}

static int run(const struct options *o)
{
	static struct bench b;
	double before[3] = {0};

	b.o = *o;
	b.ns = calloc(o->faults, sizeof(*b.ns));
	if (!b.ns || guest_content_new(&b.content))
		errx(1, "out of memory");
	getloadavg(before, 3);
	quiet(&b);
	if (o->load_rounds && !guest_stop)
		load(&b);
	free(b.ns);
	guest_content_free(b.content);
	if (guest_stop)
		return 130;
	return report(&b, before);
}

static void on_signal(int sig)
{
	guest_stop = 1;
}

static pid_t child;

static void pass_on(int sig)
{
	if (child > 0)
		kill(child, SIGTERM);
}

/* The parent's part: see above. */
static int watch(const struct options *o)
{
	struct sigaction stop = {.sa_handler = pass_on}, ignore = {.sa_handler = on_signal};
	int status;

	child = fork();
	if (child < 0)
		err(1, "fork");
	if (child == 0) {
		prctl(PR_SET_PDEATHSIG, SIGTERM);
		setpgid(0, 0);
		sigaction(SIGTERM, &ignore, NULL);
		exit(run(o));
	}
	sigaction(SIGINT, &stop, NULL);
	sigaction(SIGTERM, &stop, NULL);
	sigaction(SIGHUP, &stop, NULL);
	while (waitpid(child, &status, 0) < 0 && errno == EINTR)
		;
	return WIFEXITED(status) ? WEXITSTATUS(status) : 1;
}

static unsigned int number(const char *text, unsigned int max)
{
	char *end;
	unsigned long n = strtoul(text, &end, 10);

	if (*end || n > max)
		errx(2, "%s is no number up to %u", text, max);
	return (unsigned int)n;
}

static enum native_kind kind_of(const char *name)
{
	if (strcmp(name, "shmem") == 0)
		return NATIVE_SHMEM;
	if (strcmp(name, "thp") == 0)
		return NATIVE_THP;
	if (strcmp(name, "hugetlb") == 0)
		return NATIVE_HUGETLB;
	errx(2, "%s is no kind of memory", name);
}

static void parse(struct options *o, int argc, char **argv)
{
	static const struct option known[] = {
		{"size", 1, NULL, 's'},
		{"kind", 1, NULL, 'k'},
		{"rounds", 1, NULL, 'r'},
		{"faults", 1, NULL, 'f'},
		{"load-rounds", 1, NULL, 'l'},
		{"seconds", 1, NULL, 't'},
		{"write", 1, NULL, 'w'},
		{"no-kernel", 0, NULL, 'n'},
		{"json", 1, NULL, 'j'},
		{"help", 0, NULL, 'h'},
		{NULL, 0, NULL, 0},
	};
	int c;

	while ((c = getopt_long(argc, argv, "h", known, NULL)) >= 0) {
		if (c == 's' && (size_parse(optarg, &o->bytes) || o->bytes < 16u << 20))
			errx(2, "%s is no size from 16M", optarg);
		else if (c == 'k')
			o->kind = kind_of(optarg);
		else if (c == 'r')
			o->rounds = number(optarg, TABLE_ROUNDS);
		else if (c == 'f')
			o->faults = number(optarg, 1u << 20);
		else if (c == 'l')
			o->load_rounds = number(optarg, TABLE_ROUNDS);
		else if (c == 't')
			o->seconds = strtod(optarg, NULL);
		else if (c == 'w')
			o->write_percent = number(optarg, 100);
		else if (c == 'n')
			o->kernel = false;
		else if (c == 'j')
			o->json = optarg;
		else if (c == 'h' || c == '?') {
			use(c == 'h' ? stdout : stderr);
			exit(c == 'h' ? 0 : 2);
		}
	}
	o->bytes &= ~((UINT64_C(4) << 20) - 1);
	if (!o->faults)
		o->faults = o->kind == NATIVE_SHMEM ? 1000 : 16;
	if (!o->rounds || o->faults > o->bytes / (o->kind == NATIVE_SHMEM ? GUEST_PAGE : 2u << 20))
		errx(2, "no rounds, or more faults than memory");
}

/* build/bench/fault/bench_fault: the build is two folders up. */
static void find_build(void)
{
	char path[512];
	ssize_t n = readlink("/proc/self/exe", path, sizeof(path) - 1);

	for (int i = 0; n > 0 && i < 3; i++) {
		path[n] = 0;
		n = strrchr(path, '/') - path;
	}
	if (n <= 0)
		return;
	path[n] = 0;
	setenv("EBB_BUILD", path, 0);
}

int main(int argc, char **argv)
{
	struct options o = {.bytes = 256u << 20,
			    .rounds = 15,
			    .load_rounds = 3,
			    .write_percent = 50,
			    .seconds = 3,
			    .kernel = true};

	parse(&o, argc, argv);
	find_build();
	/* Huge pages are nothing that the kernel swaps. */
	if (o.kind != NATIVE_SHMEM)
		o.kernel = false;
	return watch(&o);
}
