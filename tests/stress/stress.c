/* SPDX-License-Identifier: BSD-3-Clause */
/* stress.c: tagged pages under eviction: not one wrong byte, whatever the operator does. */
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <linux/falloc.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "attach/native.h"
#include "base/clock.h"
#include "kernel/kernel_test.h"
#include "stress/daemon.h"
#include "stress/tagged.h"

/*
 * Theory of operation
 *
 * The test process is the VMM. Its worker threads check and rewrite tagged pages (tagged.h) at
 * random. Meanwhile the main thread plays the
 * operator and the VMM's other threads: limits up and down, forced reclaim, policies swapped,
 * prefetch of everything, discards, RAM plugged and unplugged, pins. Another thread may run a
 * command over and over that does something to what the backend lives on. A wrong tag ends the test
 * at once, with what was found; at the end all RAM is detached and checked once more.
 */

#define WORKERS	   2
#define BLOCKS_MAX 4
#define LIMIT_MIN  (UINT64_C(4) << 20)

struct worker {
	pthread_t thread;
	uint64_t seed, checks, writes;
	double hot; /* share of the accesses that go to a tenth of the pages */
};

static struct area areas[BLOCKS_MAX];
static _Atomic bool stop;
static struct worker workers[WORKERS];

static void *worker_main(void *arg)
{
	struct worker *w = arg;

	while (!atomic_load(&stop)) {
		struct area *a = &areas[rng(&w->seed) % BLOCKS_MAX];
		uint64_t r = rng(&w->seed);
		size_t page;

		if (!atomic_load(&a->in_use))
			continue;
		page = (r >> 8) % a->pages;
		if ((double)(r & 255) < w->hot * 256)
			page /= 10;
		if (!area_take(a, page))
			continue;
		if (atomic_load(&a->in_use)) {
			area_access(a, page, r & 512, r >> 63, &w->seed);
			w->checks++;
			w->writes += r >> 63;
		}
		area_give(a, page);
	}
	return NULL;
}

/* A shell command, run again and again. */
struct disturber {
	pthread_t thread;
	const char *command; /* NULL: none */
	_Atomic unsigned int rounds;
};

static void *disturber_main(void *arg)
{
	struct disturber *x = arg;

	while (!atomic_load(&stop)) {
		if (system(x->command))
			errx(1, "'%s' failed", x->command);
		atomic_fetch_add(&x->rounds, 1);
	}
	return NULL;
}

struct player {
	struct daemon *d;
	struct native *vmm;
	uint64_t seed, ram_bytes, evictions, demotions;
	enum native_kind kind;
	bool plugged, second_tier;
	unsigned int did[9], kills, upgrades;
	bool kill, upgrade, tiers;
	const struct disturber *disturber;
};

static void expect_return(struct player *o, const char *what)
{
	if (!strstr(o->d->answer, "\"return\""))
		errx(1, "%s: %.300s", what, o->d->answer);
}

static void do_limit(struct player *o)
{
	uint64_t limit = o->ram_bytes / 8 * (1 + rng(&o->seed) % 8);

	/* The daemon takes none below. */
	if (limit < LIMIT_MIN)
		limit = LIMIT_MIN;
	if (rng(&o->seed) % 8 == 0)
		limit = 0;
	daemon_ask(o->d,
		   "{\"execute\":\"vm-set\",\"arguments\":{\"vm\":\"stress\",\"limit\":%llu}}",
		   (unsigned long long)limit);
	expect_return(o, "vm-set");
}

static void do_reclaim(struct player *o)
{
	daemon_ask(o->d,
		   "{\"execute\":\"vm-reclaim\",\"arguments\":{\"vm\":\"stress\",\"bytes\":%llu}}",
		   (unsigned long long)(o->ram_bytes / (1 + rng(&o->seed) % 16)));
	expect_return(o, "vm-reclaim");
}

static void do_prefetch(struct player *o)
{
	daemon_ask(o->d, "{\"execute\":\"vm-prefetch\",\"arguments\":{\"vm\":\"stress\"}}");
	expect_return(o, "vm-prefetch");
}

static void do_policy(struct player *o)
{
	static const char *const policies[] = {"clock", "null", "example", "clock"};

	daemon_ask(o->d,
		   "{\"execute\":\"policy-set\",\"arguments\":{\"vm\":\"stress\",\"role\":"
		   "\"reclaim\",\"policy\":\"%s\"}}",
		   policies[rng(&o->seed) % 4]);
	expect_return(o, "policy-set");
}

static void do_discard(struct player *o)
{
	struct area *a = &areas[0];
	/* Of transparent huge pages now a part, now the whole. */
	size_t step = o->kind == NATIVE_THP && rng(&o->seed) % 2 ? 512 : a->ram.page_bytes / PAGE;
	size_t n = step * (1 + rng(&o->seed) % 4);
	size_t first = rng(&o->seed) % (a->pages - n) / step * step;

	area_take_range(a, first, n);
	if (rng(&o->seed) % 2) {
		do_reclaim(o);
		daemon_ask(o->d, "{\"execute\":\"vm-set\",\"arguments\":{\"vm\":\"stress\","
				 "\"limit\":0}}");
		expect_return(o, "vm-set");
	}
	if (native_discard(o->vmm, a->ram.id, first * PAGE, n * PAGE))
		errx(1, "discard: %s", native_error(o->vmm));
	memset(a->generation + first, 0, n * sizeof(*a->generation));
	for (size_t i = first; i < first + n; i += 1 + rng(&o->seed) % 3)
		page_check((char *)a->ram.addr + i * PAGE, a->first_page + i, 0, "discarded");
	/* A huge page is made of it behind our back. */
	if (o->kind == NATIVE_THP)
		usleep(100000);
	/* Out of the page tables, not out of the file: found there again. */
	if (madvise((char *)a->ram.addr + first * PAGE, n * PAGE, MADV_DONTNEED))
		err(1, "madvise");
	area_check(a, first, n, "dropped");
	area_give_range(a, first, n);
}

/* What a balloon does without telling anybody: the VMM punches its own file. */
static void do_punch(struct player *o)
{
	struct area *a = &areas[1];
	size_t step = a->ram.page_bytes / PAGE, n = step * (1 + rng(&o->seed) % 4);
	size_t first = rng(&o->seed) % (a->pages - n) / step * step;

	area_take_range(a, first, n);
	/* Of what is evicted nobody hears by this, so it has to be there: pinned. */
	if (native_pin(o->vmm, a->ram.id, first * PAGE, n * PAGE))
		errx(1, "pin: %s", native_error(o->vmm));
	if (fallocate(a->ram.memfd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
		      (off_t)(first * PAGE), (off_t)(n * PAGE)))
		err(1, "fallocate");
	memset(a->generation + first, 0, n * sizeof(*a->generation));
	area_check(a, first, n, "punched");
	if (native_unpin(o->vmm, a->ram.id, first * PAGE, n * PAGE))
		errx(1, "unpin: %s", native_error(o->vmm));
	area_give_range(a, first, n);
}

static void do_plug(struct player *o)
{
	struct area *a = &areas[2];

	if (!o->plugged) {
		area_make(a, "plugged", o->ram_bytes / 4, o->kind, 1u << 30);
		if (native_region_add(o->vmm, &a->ram))
			errx(1, "region-add: %s", native_error(o->vmm));
		area_fill(a, &o->seed);
	} else {
		atomic_store(&a->in_use, false);
		area_take_range(a, 0, a->pages);
		if (native_region_remove(o->vmm, "plugged", false))
			errx(1, "region-remove: %s", native_error(o->vmm));
		area_check(a, 0, a->pages, "unplugged");
		area_free(a);
	}
	o->plugged = !o->plugged;
}

static void do_pin(struct player *o)
{
	struct area *a = &areas[0];
	size_t step = a->ram.page_bytes / PAGE, n = step * 2;
	size_t first = rng(&o->seed) % (a->pages - n) / step * step;

	if (native_pin(o->vmm, a->ram.id, first * PAGE, n * PAGE))
		errx(1, "pin: %s", native_error(o->vmm));
	usleep(20000);
	if (native_unpin(o->vmm, a->ram.id, first * PAGE, n * PAGE))
		errx(1, "unpin: %s", native_error(o->vmm));
}

/* A second backend, asynchronous, comes and goes; it is drained under a VM that runs. */
static void do_backend(struct player *o)
{
	if (!o->second_tier) {
		daemon_ask(o->d, "{\"execute\":\"backend-add\",\"arguments\":{\"name\":\"second\","
				 "\"driver\":\"example\"}}");
		expect_return(o, "backend-add");
		daemon_ask(o->d, "{\"execute\":\"vm-set\",\"arguments\":{\"vm\":\"stress\","
				 "\"tiers\":[\"second\",\"compressed\"]}}");
		expect_return(o, "vm-set tiers");
	} else {
		daemon_ask(o->d, "{\"execute\":\"backend-remove\",\"arguments\":{\"name\":"
				 "\"second\"}}");
		expect_return(o, "backend-remove");
	}
	o->second_tier = !o->second_tier;
}

/* Marks come and go: much moves down, or little, or nothing. */
static void do_marks(struct player *o)
{
	uint64_t high = o->ram_bytes / 4 >> rng(&o->seed) % 8;

	if (rng(&o->seed) % 8 == 0)
		high = 0;
	daemon_ask(o->d,
		   "{\"execute\":\"vm-set\",\"arguments\":{\"vm\":\"stress\","
		   "\"tier-high\":[%llu]}}",
		   (unsigned long long)high);
	expect_return(o, "vm-set tier-high");
}

/*
 * The daemon dies at any instant, in the middle of whatever it is doing for the VM, and another
 * takes over. Nobody is in a call to it: those would only tell that it is gone.
 */
static void do_kill(struct player *o)
{
	struct native_ram ram[BLOCKS_MAX];
	unsigned int n = 0;

	ram[n++] = areas[0].ram;
	ram[n++] = areas[1].ram;
	if (o->plugged)
		ram[n++] = areas[2].ram;
	/* Counters begin anew with the next daemon. */
	o->evictions += daemon_vm_number(o->d, "stress", "evictions");
	o->demotions += daemon_vm_number(o->d, "stress", "demotions");
	daemon_replace(o->d);
	o->kills++;
	if (native_resume(o->vmm, o->d->attach, "stress", ram, n, NATIVE_SERVE_ZAP | NATIVE_KEEP))
		errx(1, "the next daemon does not take over: %s", native_error(o->vmm));
	/* A second mapping it knows of by itself, so this changes nothing. */
	if (areas[0].twin.addr && rng(&o->seed) % 2 && native_region_add(o->vmm, &areas[0].twin))
		errx(1, "the second mapping again: %s", native_error(o->vmm));
}

static void operate(struct player *o, double seconds)
{
	static void (*const deeds[])(struct player *) = {do_limit,  do_reclaim, do_prefetch,
							 do_policy, do_discard, do_punch,
							 do_plug,   do_pin,	do_backend};
	uint64_t end = clock_ns() + (uint64_t)(seconds * 1e9);

	/* However few deeds there is time for, two deaths are among them if there are to be any,
	 * and all harm is done once. */
	while (clock_ns() < end || (o->kill && o->kills < 2) ||
	       (o->disturber->command && !atomic_load(&o->disturber->rounds))) {
		unsigned int k = (unsigned int)(rng(&o->seed) % 9);

		/* What this backend holds does not outlive the daemon. */
		if (k == 8 && (o->kill || o->upgrade || o->tiers))
			continue;
		/* Unplugging a block under a small limit takes its time. */
		if (k == 6 && rng(&o->seed) % 4)
			continue;
		deeds[k](o);
		o->did[k]++;
		if (o->tiers && rng(&o->seed) % 2)
			do_marks(o);
		if (o->kill && rng(&o->seed) % 3 == 0)
			do_kill(o);
		if (o->upgrade && rng(&o->seed) % 3 == 0) {
			uint64_t paused_us;

			/* While donors are out of reach it may be put off. */
			if (!o->disturber->command)
				daemon_upgrade(o->d);
			else if (!daemon_try_upgrade(o->d, &paused_us))
				continue;
			o->upgrades++;
		}
		usleep((useconds_t)(rng(&o->seed) % 20000));
	}
}

static void check_all(const char *when)
{
	for (int k = 0; k < BLOCKS_MAX; k++)
		if (areas[k].generation)
			area_check(&areas[k], 0, areas[k].pages, when);
}

/*
 * Stores the VM in a backend of this driver with these options (name=value,...; a value may have
 * commas): as its first tier, or below the compressed one.
 */
static void use_backend(struct daemon *d, const char *driver, char *options, bool below)
{
	char json[512] = "";
	size_t n = 0;

	for (char *o = strtok(options, ","); o; o = strtok(NULL, ",")) {
		char *value = strchr(o, '=');

		if (!value && n) /* more of the value before */
			n += (size_t)snprintf(json + n - 1, sizeof(json) - n + 1, ",%s\"", o) - 1;
		else if (!value)
			errx(2, "an option is name=value, not %s", o);
		else
			n += (size_t)snprintf(json + n, sizeof(json) - n, "%s\"%.*s\":\"%s\"",
					      n ? "," : "", (int)(value - o), o, value + 1);
		if (n >= sizeof(json))
			errx(2, "too many options");
	}
	daemon_ask(
		d,
		"{\"execute\":\"backend-add\",\"arguments\":{\"name\":\"slow\",\"driver\":\"%s\","
		"\"options\":{%s}}}",
		driver, json);
	if (!strstr(d->answer, "\"return\""))
		errx(1, "backend-add: %.300s", d->answer);
	daemon_ask(d, "{\"execute\":\"vm-set\",\"arguments\":{\"vm\":\"stress\",\"tiers\":[%s]}}",
		   below ? "\"compressed\",\"slow\"" : "\"slow\",\"compressed\"");
	if (!strstr(d->answer, "\"return\""))
		errx(1, "vm-set: %.300s", d->answer);
}

/* However few deeds there will be time for: some is evicted, and some of that has moved down. */
static void begin_tiers(struct player *o)
{
	uint64_t end = clock_ns() + 120 * NS_PER_S;

	daemon_ask(o->d,
		   "{\"execute\":\"vm-set\",\"arguments\":{\"vm\":\"stress\",\"limit\":%llu,"
		   "\"tier-high\":[%llu]}}",
		   (unsigned long long)(o->ram_bytes / 2), (unsigned long long)(o->ram_bytes / 32));
	expect_return(o, "vm-set tier-high");
	while (!daemon_vm_number(o->d, "stress", "demotions")) {
		if (clock_ns() > end)
			errx(1, "nothing moves down: %.3000s", o->d->answer);
		do_reclaim(o);
		usleep(20000);
	}
}

/* However few deeds there will be time for: some is evicted. */
static void begin_evictions(struct player *o)
{
	uint64_t end = clock_ns() + 120 * NS_PER_S;

	while (!daemon_vm_number(o->d, "stress", "evictions")) {
		if (clock_ns() > end)
			errx(1, "nothing is evicted: %.3000s", o->d->answer);
		do_reclaim(o);
		usleep(20000);
	}
}

static void run(enum native_kind kind, size_t bytes, double seconds, uint64_t seed,
		const char *driver, char *backend, bool with_kills, bool with_upgrades,
		bool with_tiers, struct disturber *x)
{
	struct daemon d;
	struct native_ram ram[2];
	struct player o = {.d = &d,
			   .seed = seed,
			   .ram_bytes = bytes,
			   .kind = kind,
			   .kill = with_kills,
			   .upgrade = with_upgrades,
			   .tiers = with_tiers,
			   .disturber = x};
	unsigned int fds;
	uint64_t checks = 0, writes = 0;

	daemon_start(&d, NULL);
	fds = daemon_fds(&d);
	area_make(&areas[0], "ram0", bytes / 2, kind, 1);
	area_make(&areas[1], "ram1", bytes / 2, kind, 1u << 24);
	ram[0] = areas[0].ram;
	ram[1] = areas[1].ram;
	if (native_open(d.attach, &o.vmm) ||
	    native_attach(o.vmm, "stress", ram, 2,
			  NATIVE_SERVE_ZAP | (with_kills ? NATIVE_KEEP : 0)))
		errx(1, "attach: %s", native_error(o.vmm));
	/* Transparent huge pages that are mapped twice are not evicted: nothing to test then. */
	if (kind != NATIVE_THP &&
	    (native_ram_map(&areas[0].twin, "twin", bytes / 2, kind, areas[0].ram.memfd) ||
	     native_region_add(o.vmm, &areas[0].twin)))
		errx(1, "a second mapping: %s", native_error(o.vmm));
	if (backend)
		use_backend(&d, driver, backend, with_tiers);
	area_fill(&areas[0], &o.seed);
	area_fill(&areas[1], &o.seed);
	if (with_tiers)
		begin_tiers(&o);
	else if (backend)
		begin_evictions(&o);
	for (int i = 0; i < WORKERS; i++) {
		workers[i] = (struct worker){.seed = seed + 77 + (uint64_t)i, .hot = i ? 0.9 : 0.0};
		pthread_create(&workers[i].thread, NULL, worker_main, &workers[i]);
	}
	if (x->command) {
		/* However few deeds there will be time for: something comes and goes. */
		daemon_ask(
			&d,
			"{\"execute\":\"vm-set\",\"arguments\":{\"vm\":\"stress\",\"limit\":%llu}}",
			(unsigned long long)(bytes / 2));
		expect_return(&o, "vm-set");
		pthread_create(&x->thread, NULL, disturber_main, x);
	}
	operate(&o, seconds);
	atomic_store(&stop, true);
	if (x->command) {
		/* It leaves all as it was. */
		pthread_join(x->thread, NULL);
		printf("disturbed %u times\n", x->rounds);
	}
	for (int i = 0; i < WORKERS; i++) {
		pthread_join(workers[i].thread, NULL);
		checks += workers[i].checks;
		writes += workers[i].writes;
	}
	check_all("at the end");
	if (o.second_tier)
		do_backend(&o);
	printf("checks %llu writes %llu evictions %llu faults %llu cancelled %llu busy %llu "
	       "discards %llu parked %llu excess %llu lost %llu\n",
	       (unsigned long long)checks, (unsigned long long)writes,
	       (unsigned long long)daemon_vm_number(&d, "stress", "evictions"),
	       (unsigned long long)daemon_vm_number(&d, "stress", "faults"),
	       (unsigned long long)daemon_vm_number(&d, "stress", "evictions-cancelled"),
	       (unsigned long long)daemon_vm_number(&d, "stress", "evictions-busy"),
	       (unsigned long long)daemon_vm_number(&d, "stress", "discards"),
	       (unsigned long long)daemon_vm_number(&d, "stress", "faults-parked"),
	       (unsigned long long)daemon_vm_number(&d, "stress", "limit-excess"),
	       (unsigned long long)daemon_vm_number(&d, "stress", "pages-lost"));
	if (with_tiers)
		printf("demotions %llu\n",
		       (unsigned long long)(o.demotions +
					    daemon_vm_number(&d, "stress", "demotions")));
	printf("limits %u reclaims %u prefetches %u policies %u discards %u punches %u plugs %u "
	       "pins %u backends %u kills %u upgrades %u\n",
	       o.did[0], o.did[1], o.did[2], o.did[3], o.did[4], o.did[5], o.did[6], o.did[7],
	       o.did[8], o.kills, o.upgrades);
	if (backend)
		printf("%s\n", daemon_ask(&d, "{\"execute\":\"query-backends\"}"));
	/* An injected error of a load loses the page, as it should. */
	if ((!backend || strcmp(driver, "inject") != 0) &&
	    daemon_vm_number(&d, "stress", "pages-lost"))
		errx(1, "pages were lost");
	if (!o.evictions && !daemon_vm_number(&d, "stress", "evictions"))
		errx(1, "nothing was evicted: this tested nothing");
	if (native_detach(o.vmm))
		errx(1, "detach: %s", native_error(o.vmm));
	check_all("after the detach");
	native_close(o.vmm, true);
	/* A backend that was added has channels of its own. */
	fds += backend ? 16 : 0;
	if (backend && strcmp(driver, "inject") != 0)
		fds += 64; /* and connections for each */
	for (int i = 0; i < 100 && daemon_fds(&d) > fds; i++)
		usleep(50000);
	if (daemon_fds(&d) > fds)
		errx(1, "the daemon had %u descriptors before and has %u now", fds, daemon_fds(&d));
	daemon_stop(&d);
}

int main(int argc, char **argv)
{
	enum native_kind kind = NATIVE_SHMEM;
	bool in_lab = getenv("EBB_LAB_GUEST"); /* which is slow */
	double seconds = in_lab ? 4 : 10;
	bool with_kills = false, with_upgrades = false, with_tiers = false;
	size_t mib = in_lab ? 32 : 128;
	uint64_t seed = 1;
	const char *driver = "inject";
	char *backend = NULL;
	struct disturber disturber = {0};
	int opt;

	while ((opt = getopt(argc, argv, "k:s:m:r:b:D:x:KTU")) != -1) {
		if (opt == 'k' && strcmp(optarg, "thp") == 0)
			kind = NATIVE_THP;
		else if (opt == 'k' && strcmp(optarg, "hugetlb") == 0)
			kind = NATIVE_HUGETLB;
		else if (opt == 's')
			seconds = strtod(optarg, NULL);
		else if (opt == 'm')
			mib = strtoul(optarg, NULL, 10);
		else if (opt == 'r')
			seed = strtoull(optarg, NULL, 10);
		else if (opt == 'b')
			backend = optarg;
		else if (opt == 'D')
			driver = optarg;
		else if (opt == 'x')
			disturber.command = optarg;
		else if (opt == 'K')
			with_kills = true;
		else if (opt == 'T')
			with_tiers = true;
		else if (opt == 'U')
			with_upgrades = true;
		else if (opt != 'k')
			errx(2,
			     "usage: stress [-k shmem|thp|hugetlb] [-s seconds] [-m MiB] [-r seed] "
			     "[-b option=value,... of a backend] [-D its driver] [-K kills] "
			     "[-U upgrades] [-T: that backend is below the compressed one] "
			     "[-x shell command to run over and over]");
	}
	setvbuf(stdout, NULL, _IOLBF, 0);
	if (seed == 0)
		seed = clock_ns();
	printf("seed %llu\n", (unsigned long long)seed);
	/* With what is plugged in, and some for the headroom. */
	if (kind == NATIVE_HUGETLB)
		kt_set_free_huge_pages((unsigned int)(mib / 2 + mib / 8 + 16));
	if (with_tiers && !backend)
		errx(2, "-T needs -b");
	run(kind, mib << 20, seconds, seed, driver, backend, with_kills, with_upgrades, with_tiers,
	    &disturber);
	return 0;
}
