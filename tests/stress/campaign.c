/* SPDX-License-Identifier: BSD-3-Clause */
/* campaign.c: daemons are killed, again and again, at every fault point and at any time. */
#include <dirent.h>
#include <err.h>
#include <errno.h>
#include <getopt.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "attach/native.h"
#include "base/clock.h"
#include "base/fault_point.h"
#include "kernel/kernel_test.h"
#include "stress/daemon.h"
#include "stress/tagged.h"

/*
 * Theory of operation
 *
 * Several lanes run side by side, each a process with a daemon of its own; a kill takes mostly
 * waiting, so together they are as many times faster. They share how many kills there have been,
 * and which points were armed and hit.
 *
 * A lane is the VMM of three VMs, one of each kind of memory, whose pages are tagged. A thread each
 * checks and rewrites them at random, through death and takeover. The main thread is the operator
 * and the VMs' other threads: limits, reclaim, prefetch, discards, RAM plugged and unplugged; what
 * the death of the daemon cut off it does again with the next. It never touches RAM that is
 * attached, nor waits for who does: it is the one who starts the next daemon.
 *
 * A life of the daemon: it is started with one fault point armed, all VMs resume, deeds follow on
 * each other until it dies; one that did not come to its point is killed at a random instant. All
 * VMs see each kill. Points are taken in turn, so each is armed as often as the others; at the end
 * each must have been reached.
 *
 * Nothing may be wrong (a tag ends the test), nobody may wait for ever (each worker must have gone
 * on after each takeover), and nothing may be left behind: with everything brought back,
 * descriptors, kept memory and stored objects are compared with what they were before the lane's
 * first kill, and after the end of all huge pages.
 */

#define GUESTS_MAX  3
#define SHMEM_THP   "/sys/kernel/mm/transparent_hugepage/shmem_enabled"
#define LANES_MAX   8
#define HANG_S	    120
#define LIFE_NS	    (NS_PER_S * 2 / 5) /* of deeds, then the daemon is killed */
#define PLUG_FIRST  (1u << 30)
#define EXTRA_LIVES (4 * FAULT_POINTS) /* for points that were not reached */

/* What a dead daemon did not do is done again. */
enum pending { NOTHING, DISCARD, PLUG, UNPLUG };

struct guest {
	const char *name;
	enum native_kind kind;
	struct native *vmm;
	struct area main, plug;
	enum pending pending;
	size_t first, n; /* of a discard */
	bool plugged;	 /* the daemon was told of it, heard or not */
	bool forget;	 /* unplugging throws away */
	pthread_t thread;
	uint64_t seed;
	_Atomic uint64_t checks;
};

/* In memory that all lanes share. */
struct tally {
	_Atomic unsigned int kills, begun, extra, at_points, in_takeover;
	_Atomic unsigned int hits[FAULT_POINTS], armed[FAULT_POINTS];
};

struct campaign {
	struct daemon d;
	struct guest g[GUESTS_MAX];
	int n_guests;
	uint64_t seed, ram_bytes;
	unsigned int target; /* kills of all lanes */
	bool all_points;     /* each must be hit */
	struct tally *t;
};

static const char *const point_names[FAULT_POINTS] = {
#define POINT_NAME(name, where) [FAULT_POINT_##name] = #name,
#undef FAULT_POINT
#define FAULT_POINT POINT_NAME
#include "base/fault_points.def"
};

static _Atomic bool stop;

/* ---- the guests ---- */

static void *worker_main(void *arg)
{
	struct guest *g = arg;

	while (!atomic_load(&stop)) {
		uint64_t r = rng(&g->seed);
		struct area *a = r & 1 ? &g->main : &g->plug;
		size_t page;

		if (!atomic_load(&a->in_use))
			a = &g->main;
		page = (r >> 8) % a->pages;
		/* Half of the accesses go to a tenth of the pages. */
		if (r & 2)
			page /= 10;
		if (!area_take(a, page))
			continue;
		if (atomic_load(&a->in_use)) {
			area_access(a, page, r & 4, r & 8, &g->seed);
			atomic_fetch_add(&g->checks, 1);
		}
		area_give(a, page);
		/* The daemon needs the processors, too. */
		if (r >> 60 == 0)
			usleep(200);
	}
	return NULL;
}

static bool has_died(struct campaign *c)
{
	siginfo_t info = {0};

	return waitid(P_PID, (id_t)c->d.pid, &info, WEXITED | WNOHANG | WNOWAIT) == 0 &&
	       info.si_pid == c->d.pid;
}

/* Every guest's thread goes on, unless the daemon dies. */
static void expect_progress(struct campaign *c, const char *when)
{
	for (int i = 0; i < c->n_guests; i++) {
		uint64_t from = atomic_load(&c->g[i].checks), end = clock_ns() + HANG_S * NS_PER_S;

		/* One access may have been under way; two were not. */
		while (atomic_load(&c->g[i].checks) < from + 2 && !has_died(c)) {
			if (clock_ns() > end)
				errx(1, "VM %s is stuck %s (kill %u)", c->g[i].name, when,
				     atomic_load(&c->t->kills));
			usleep(500);
		}
	}
}

static bool resume(struct campaign *c, struct guest *g)
{
	struct native_ram ram[2] = {g->main.ram, g->plug.ram};

	return native_resume(g->vmm, c->d.attach, g->name, ram, g->plugged ? 2 : 1,
			     NATIVE_SERVE_ZAP | NATIVE_KEEP) == 0;
}

/* ---- deeds; each returns false when the daemon died of it ---- */

static bool command(struct campaign *c, const struct guest *g, const char *name, const char *more)
{
	return daemon_try(&c->d, "{\"execute\":\"%s\",\"arguments\":{\"vm\":\"%s\"%s}}", name,
			  g->name, more);
}

static bool set_limit(struct campaign *c, const struct guest *g, uint64_t bytes)
{
	char more[64];

	snprintf(more, sizeof(more), ",\"limit\":%llu", (unsigned long long)bytes);
	return command(c, g, "vm-set", more);
}

static bool do_reclaim(struct campaign *c, struct guest *g)
{
	char more[64];

	snprintf(more, sizeof(more), ",\"bytes\":%llu",
		 (unsigned long long)(c->ram_bytes / (2 + rng(&c->seed) % 14)));
	return command(c, g, "vm-reclaim", more);
}

static bool do_limit(struct campaign *c, struct guest *g)
{
	return set_limit(c, g, c->ram_bytes / 8 * (rng(&c->seed) % 8));
}

/* Everything comes back and goes again: the store is emptied, and has something to compact. */
static bool do_prefetch(struct campaign *c, struct guest *g)
{
	return set_limit(c, g, 0) && command(c, g, "vm-prefetch", "");
}

static bool finish_discard(struct guest *g)
{
	if (native_discard(g->vmm, g->main.ram.id, g->first * PAGE, g->n * PAGE))
		return false;
	g->pending = NOTHING;
	/* From here on the workers expect zeroes. */
	memset(g->main.generation + g->first, 0, g->n * sizeof(*g->main.generation));
	area_give_range(&g->main, g->first, g->n);
	return true;
}

/* Like area_take_range(); a worker may hold a page for as long as no daemon is there. */
static bool take_range(struct campaign *c, struct area *a, size_t first, size_t n)
{
	for (size_t i = first; i < first + n; i++)
		while (!area_take(a, i)) {
			if (has_died(c)) {
				area_give_range(a, first, i - first);
				return false;
			}
			usleep(50);
		}
	return true;
}

static bool do_discard(struct campaign *c, struct guest *g)
{
	size_t step = g->kind == NATIVE_SHMEM ? 1 : 512;

	g->n = step * (1 + rng(&c->seed) % 3);
	g->first = rng(&c->seed) % (g->main.pages - g->n) / step * step;
	if (!take_range(c, &g->main, g->first, g->n))
		return false;
	g->pending = DISCARD;
	return finish_discard(g);
}

static bool finish_plug(struct guest *g)
{
	if (native_region_add(g->vmm, &g->plug.ram)) {
		/* Taken over or attached with the rest: there it is. */
		if (!strstr(native_error(g->vmm), "already"))
			return false;
	}
	g->pending = NOTHING;
	atomic_store(&g->plug.in_use, true);
	return true;
}

static bool finish_unplug(struct guest *g)
{
	/* The daemon may have died after it was done: then it is in nobody's hands any more. */
	if (native_region_remove(g->vmm, g->plug.ram.id, g->forget) &&
	    !strstr(native_error(g->vmm), "no region"))
		return false;
	g->pending = NOTHING;
	g->plugged = false;
	if (!g->forget)
		area_check(&g->plug, 0, g->plug.pages, "unplugged");
	area_give_range(&g->plug, 0, g->plug.pages);
	native_ram_free(&g->plug.ram);
	memset(g->plug.generation, 0, g->plug.pages * sizeof(*g->plug.generation));
	return true;
}

static bool do_plug(struct campaign *c, struct guest *g)
{
	if (!g->plugged) {
		if (native_ram_make(&g->plug.ram, "plug", g->plug.pages * PAGE, g->kind))
			errx(1, "no memory to plug");
		g->plugged = true;
		g->pending = PLUG;
		return finish_plug(g);
	}
	if (rng(&c->seed) % 2 && !do_reclaim(c, g))
		return false;
	/* A small limit would make bringing it back slow. */
	if (!set_limit(c, g, 0))
		return false;
	atomic_store(&g->plug.in_use, false);
	if (!take_range(c, &g->plug, 0, g->plug.pages)) {
		atomic_store(&g->plug.in_use, true);
		return false;
	}
	g->forget = rng(&c->seed) % 2;
	g->pending = UNPLUG;
	return finish_unplug(g);
}

static bool finish(struct campaign *c, struct guest *g)
{
	switch (g->pending) {
	case DISCARD:
		return finish_discard(g);
	case PLUG:
		return finish_plug(g);
	case UNPLUG:
		return finish_unplug(g);
	default:
		return true;
	}
}

/* ---- lives ---- */

/* Something failed: because the daemon died, or the test has. */
static void expect_death(struct campaign *c, const struct guest *g, const char *what)
{
	uint64_t end = clock_ns() + 10 * NS_PER_S;

	while (!has_died(c)) {
		if (clock_ns() > end)
			errx(1, "VM %s: %s failed: %s", g->name, what, native_error(g->vmm));
		usleep(500);
	}
}

/* All that the VMs and their operator do in one life. False: the daemon died. */
static bool live(struct campaign *c, uint64_t ns, bool *resumed)
{
	static bool (*const deed[])(struct campaign *, struct guest *) = {
		do_reclaim, do_reclaim, do_limit, do_prefetch, do_discard, do_discard, do_plug};
	uint64_t end;

	*resumed = false;
	for (int i = 0; i < c->n_guests; i++)
		if (!resume(c, &c->g[i])) {
			expect_death(c, &c->g[i], "resuming");
			return false;
		}
	*resumed = true;
	expect_progress(c, "after a takeover");
	for (int i = 0; i < c->n_guests; i++)
		if (!finish(c, &c->g[i])) {
			expect_death(c, &c->g[i], "doing again what was cut off");
			return false;
		}
	end = clock_ns() + ns;
	while (clock_ns() < end && !has_died(c)) {
		struct guest *g = &c->g[rng(&c->seed) % (uint64_t)c->n_guests];

		if (!deed[rng(&c->seed) % (sizeof(deed) / sizeof(deed[0]))](c, g)) {
			expect_death(c, g, "a deed");
			return false;
		}
		usleep((useconds_t)(rng(&c->seed) % 2000));
	}
	return !has_died(c);
}

/* The point that was armed least often; of those never reached, if that is asked for. */
static int next_point(const struct campaign *c, bool missing)
{
	int best = -1;

	for (int p = 0; p < FAULT_POINTS; p++)
		if (!(missing && atomic_load(&c->t->hits[p])) &&
		    (best < 0 || atomic_load(&c->t->armed[p]) < atomic_load(&c->t->armed[best])))
			best = p;
	return best;
}

/* Arms a point for the next life; gives how long that may be. */
static uint64_t arm(struct campaign *c, int point, char *text, size_t bytes)
{
	unsigned int hits = atomic_load(&c->t->hits[point]);
	unsigned int armed = atomic_fetch_add(&c->t->armed[point], 1);
	/* At first the first pass, later any of the first that are reached. */
	unsigned int most = hits ? 1u << (hits < 6 ? hits : 6) : 1;

	/* It may not come that often. */
	if (armed % 3 == 2)
		most = 1;
	snprintf(text, bytes, "%s:%llu", point_names[point],
		 (unsigned long long)(1 + rng(&c->seed) % most));
	setenv("EBB_FAULT_POINT", text, 1);
	/* What does not come for so long may need more time, on a busy machine say. */
	return hits || armed < 4 ? LIFE_NS : LIFE_NS * (armed < 16 ? armed / 4 + 1 : 5);
}

/* One life and its end. point < 0: at a random instant. */
static void life_and_death(struct campaign *c, int point)
{
	uint64_t ns = rng(&c->seed) % (LIFE_NS / 4);
	char text[96];
	bool resumed;
	int status;

	if (point >= 0)
		ns = arm(c, point, text, sizeof(text));
	else
		unsetenv("EBB_FAULT_POINT");
	daemon_next(&c->d);
	if (live(c, ns, &resumed)) {
		usleep((useconds_t)(rng(&c->seed) % 5000));
		kill(c->d.pid, SIGKILL);
		point = -1;
	}
	status = daemon_reap(&c->d);
	if (!WIFSIGNALED(status) || WTERMSIG(status) != SIGKILL)
		errx(1, "the daemon ended with status 0x%x (kill %u, point %s)", status,
		     atomic_load(&c->t->kills), point >= 0 ? text : "none");
	if (!resumed)
		atomic_fetch_add(&c->t->in_takeover, 1);
	if (point >= 0) {
		atomic_fetch_add(&c->t->hits[point], 1);
		atomic_fetch_add(&c->t->at_points, 1);
	}
	if (atomic_fetch_add(&c->t->kills, 1) % 50 == 49)
		printf("%u kills\n", atomic_load(&c->t->kills));
}

/* A third at random instants, the rest at points in turn, and then at those not reached. */
static void kill_on(struct campaign *c)
{
	unsigned int n;

	while ((n = atomic_fetch_add(&c->t->begun, 1)) < c->target)
		life_and_death(c, n % 3 ? next_point(c, false) : -1);
	while (c->all_points && next_point(c, true) >= 0 &&
	       atomic_fetch_add(&c->t->extra, 1) < EXTRA_LIVES)
		life_and_death(c, next_point(c, true));
}

/* ---- what may be left behind ---- */

struct footprint {
	unsigned int daemon_fds, own_fds, kept;
	uint64_t kept_bytes, orphan_bytes;
};

static unsigned int own_fds(void)
{
	DIR *dir = opendir("/proc/self/fd");
	unsigned int n = 0;

	while (dir && readdir(dir))
		n++;
	closedir(dir);
	return n;
}

static uint64_t sum_of(const char *text, const char *key)
{
	uint64_t sum = 0;

	for (const char *p = text; (p = strstr(p, key)); p += strlen(key))
		sum += strtoull(p + strlen(key), NULL, 10);
	return sum;
}

/* Stored in the backend without any VM's counting it; nobody changes anything. */
static uint64_t orphan_bytes(struct campaign *c)
{
	uint64_t named = 0, stored;

	for (int i = 0; i < c->n_guests; i++) {
		daemon_ask(&c->d, "{\"execute\":\"query-vm\",\"arguments\":{\"vm\":\"%s\"}}",
			   c->g[i].name);
		named += sum_of(c->d.answer, "\"units-bytes\":");
	}
	daemon_ask(&c->d, "{\"execute\":\"query-backends\"}");
	stored = sum_of(c->d.answer, "\"logical-bytes\":");
	return stored > named ? stored - named : named - stored;
}

/* All of a VM's memory is brought back, and what it took elsewhere is given back. */
static void bring_back(struct campaign *c, struct guest *g)
{
	uint64_t end = clock_ns() + HANG_S * NS_PER_S;

	daemon_ask(&c->d, "{\"execute\":\"vm-set\",\"arguments\":{\"vm\":\"%s\",\"limit\":0}}",
		   g->name);
	do {
		daemon_ask(&c->d, "{\"execute\":\"vm-prefetch\",\"arguments\":{\"vm\":\"%s\"}}",
			   g->name);
		if (clock_ns() > end)
			errx(1, "VM %s does not come back: %.300s", g->name, c->d.answer);
	} while (daemon_vm_number(&c->d, g->name, "evicted-bytes"));
}

/* A daemon without fault points, and all VMs at rest: what there is. */
static struct footprint measure(struct campaign *c)
{
	uint64_t end = clock_ns() + HANG_S * NS_PER_S;
	struct footprint f = {0};

	for (int i = 0; i < c->n_guests; i++)
		bring_back(c, &c->g[i]);
	/* Handles are given back as the threads pass, memory by the keeper's rounds. */
	while ((f.orphan_bytes = orphan_bytes(c)) && clock_ns() < end)
		usleep(100000);
	for (int i = 0; i < c->n_guests; i++)
		while (native_kept(c->g[i].vmm) > 4 && clock_ns() < end)
			usleep(10000);
	usleep(500000);
	f.daemon_fds = daemon_fds(&c->d);
	f.own_fds = own_fds();
	for (int i = 0; i < c->n_guests; i++) {
		static const char *const names[] = {"vm", "table:0", "space:compressed:store",
						    "space:below:store"};

		f.kept += native_kept(c->g[i].vmm);
		for (size_t k = 0; k < sizeof(names) / sizeof(names[0]); k++) {
			int fd = native_kept_fd(c->g[i].vmm, names[k]);
			struct stat st;

			if (fd < 0 || fstat(fd, &st))
				errx(1, "VM %s does not hold its %s", c->g[i].name, names[k]);
			f.kept_bytes += (uint64_t)st.st_blocks * 512;
		}
	}
	return f;
}

static void print_footprint(const char *when, const struct footprint *f)
{
	printf("%s: daemon's descriptors %u, ours %u, pieces kept %u of %llu KiB, orphans %llu KiB\n",
	       when, f->daemon_fds, f->own_fds, f->kept, (unsigned long long)f->kept_bytes / 1024,
	       (unsigned long long)f->orphan_bytes / 1024);
}

/* ---- the whole ---- */

static void begin(struct campaign *c, struct footprint *empty)
{
	static const struct {
		const char *name;
		enum native_kind kind;
	} kinds[GUESTS_MAX] = {
		{"shmem", NATIVE_SHMEM}, {"thp", NATIVE_THP}, {"huge", NATIVE_HUGETLB}};

	daemon_start(&c->d, NULL);
	/* What is cold in the compressed tier moves on to this one. */
	daemon_ask(&c->d, "{\"execute\":\"backend-add\",\"arguments\":{\"name\":\"below\","
			  "\"driver\":\"compressed\",\"options\":{\"codec\":\"plain\"}}}");
	empty->daemon_fds = daemon_fds(&c->d);
	for (int i = 0; i < c->n_guests; i++) {
		struct guest *g = &c->g[i];

		g->name = kinds[i].name;
		g->kind = kinds[i].kind;
		g->seed = c->seed + 77 + (uint64_t)i;
		area_make(&g->main, "ram", c->ram_bytes, g->kind, 1);
		/* Its tables are kept; its memory is made anew each time it is plugged in. */
		area_make(&g->plug, "plug", c->ram_bytes / 4, g->kind, PLUG_FIRST);
		native_ram_free(&g->plug.ram);
		area_fill(&g->main, &c->seed);
		if (native_open(c->d.attach, &g->vmm) ||
		    native_attach(g->vmm, g->name, &g->main.ram, 1, NATIVE_SERVE_ZAP | NATIVE_KEEP))
			errx(1, "attach %s: %s", g->name, g->vmm ? native_error(g->vmm) : "");
		if (!command(c, g, "vm-set",
			     ",\"tiers\":[\"compressed\",\"below\"],\"tier-high\":[65536]") ||
		    !strstr(c->d.answer, "\"return\""))
			errx(1, "vm-set %s: %.300s", g->name, c->d.answer);
		pthread_create(&g->thread, NULL, worker_main, g);
	}
	/* Each has evicted once, so that all there will be is there. */
	for (int i = 0; i < c->n_guests; i++)
		if (!command(c, &c->g[i], "vm-reclaim", ",\"bytes\":67108864"))
			errx(1, "the daemon died by itself");
}

/* With a living daemon: no page is wrong, nothing is left of what it made. */
static void end(struct campaign *c, const struct footprint *empty)
{
	for (int i = 0; i < c->n_guests; i++) {
		struct guest *g = &c->g[i];

		if (daemon_vm_number(&c->d, g->name, "pages-lost"))
			errx(1, "VM %s lost pages", g->name);
		area_check(&g->main, 0, g->main.pages, "at the end");
		if (native_detach(g->vmm))
			errx(1, "detach: %s", native_error(g->vmm));
		area_check(&g->main, 0, g->main.pages, "after the detach");
		native_close(g->vmm, true);
		area_free(&g->main);
		if (g->plugged)
			native_ram_free(&g->plug.ram);
	}
	for (int i = 0; i < 1000 && daemon_fds(&c->d) > empty->daemon_fds; i++)
		usleep(10000);
	if (daemon_fds(&c->d) > empty->daemon_fds)
		errx(1, "without a VM the daemon had %u descriptors before and has %u now",
		     empty->daemon_fds, daemon_fds(&c->d));
	daemon_stop(&c->d);
}

static void unplug_all(struct campaign *c)
{
	for (int i = 0; i < c->n_guests; i++) {
		if (!finish(c, &c->g[i]))
			errx(1, "VM %s: %s", c->g[i].name, native_error(c->g[i].vmm));
		if (c->g[i].plugged && !do_plug(c, &c->g[i]))
			errx(1, "VM %s: cannot unplug: %s", c->g[i].name,
			     native_error(c->g[i].vmm));
	}
}

static int report(const struct campaign *c)
{
	const struct tally *t = c->t;
	unsigned int kills = atomic_load(&t->kills), at_points = atomic_load(&t->at_points);
	int bad = 0;

	printf("kills %u: at %u fault points %u, in a takeover %u, at random %u\n", kills,
	       FAULT_POINTS, at_points, atomic_load(&t->in_takeover), kills - at_points);
	for (int p = 0; p < FAULT_POINTS; p++) {
		unsigned int hits = atomic_load(&t->hits[p]);

		printf("  %-20s armed %u hit %u\n", point_names[p], atomic_load(&t->armed[p]),
		       hits);
		if (!hits && c->all_points) {
			printf("  NEVER REACHED: %s\n", point_names[p]);
			bad = 1;
		}
	}
	if (kills < c->target)
		bad = 1;
	return bad;
}

static void compare(const struct footprint *before, const struct footprint *after)
{
	/* Slabs are not as full as they were when all was stored at once, and as they are given
	 * back by halves: what grows by each kill grows by far more than this. */
	uint64_t slack = UINT64_C(2) << 20;

	print_footprint("before", before);
	print_footprint("after", after);
	if (after->orphan_bytes || before->orphan_bytes)
		errx(1, "the backend holds content that nobody names");
	if (after->daemon_fds > before->daemon_fds || after->own_fds > before->own_fds ||
	    after->kept > before->kept)
		errx(1, "descriptors were left behind");
	if (after->kept_bytes > before->kept_bytes + slack)
		errx(1, "kept memory was left behind");
}

/* One lane, from the first daemon to the last. */
static void run_lane(struct campaign *c)
{
	struct footprint empty, before, after;

	begin(c, &empty);
	expect_progress(c, "at the start");
	before = measure(c);
	atomic_fetch_add(&c->t->kills, 1);
	atomic_fetch_add(&c->t->begun, 1);
	kill(c->d.pid, SIGKILL);
	daemon_reap(&c->d);
	kill_on(c);
	unsetenv("EBB_FAULT_POINT");
	daemon_next(&c->d);
	for (int i = 0; i < c->n_guests; i++)
		if (!resume(c, &c->g[i]))
			errx(1, "the last daemon does not take over: %s",
			     native_error(c->g[i].vmm));
	expect_progress(c, "after the last kill");
	unplug_all(c);
	atomic_store(&stop, true);
	for (int i = 0; i < c->n_guests; i++)
		pthread_join(c->g[i].thread, NULL);
	after = measure(c);
	compare(&before, &after);
	end(c, &empty);
}

static pid_t start_lane(struct campaign *c, unsigned int number)
{
	pid_t pid = fork();

	if (pid < 0)
		err(1, "fork");
	if (pid)
		return pid;
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	c->seed += number * UINT64_C(1000003);
	run_lane(c);
	exit(0);
}

/* Waits for all; when one has failed the others are ended, with their daemons. */
static int join_lanes(pid_t *lane, unsigned int n)
{
	int bad = 0;

	for (unsigned int left = n; left; left--) {
		int status;
		pid_t pid = wait(&status);

		for (unsigned int i = 0; i < n; i++) {
			if (lane[i] == pid)
				lane[i] = 0;
			else if (status && lane[i])
				kill(lane[i], SIGKILL);
		}
		if (status && !bad)
			printf("a lane ended with wait status 0x%x\n", (unsigned int)status);
		bad |= status != 0;
	}
	return bad;
}

int main(int argc, char **argv)
{
	static struct campaign c = {.seed = 1, .n_guests = GUESTS_MAX, .target = 300};
	unsigned int lanes = 3;
	pid_t lane[LANES_MAX];
	size_t mib = 8;
	int opt, bad;

	while ((opt = getopt(argc, argv, "n:j:m:r:v:")) != -1) {
		if (opt == 'n')
			c.target = (unsigned int)strtoul(optarg, NULL, 10);
		else if (opt == 'j')
			lanes = (unsigned int)strtoul(optarg, NULL, 10);
		else if (opt == 'm')
			mib = strtoul(optarg, NULL, 10);
		else if (opt == 'v')
			c.n_guests = (int)strtol(optarg, NULL, 10);
		else if (opt == 'r')
			c.seed = strtoull(optarg, NULL, 10);
		else
			errx(2, "usage: campaign [-n kills] [-j lanes side by side] [-m MiB of "
				"each VM] [-r seed, 0: any] [-v VMs: 1 shmem, 2 with transparent "
				"huge pages, 3 and hugetlb]");
	}
	setvbuf(stdout, NULL, _IOLBF, 0);
	if (!c.seed)
		c.seed = clock_ns();
	printf("seed %llu\n", (unsigned long long)c.seed);
	if (c.n_guests < 1 || c.n_guests > GUESTS_MAX || lanes < 1 || lanes > LANES_MAX)
		errx(2, "there are 1 to %d VMs and 1 to %d lanes", GUESTS_MAX, LANES_MAX);
	c.ram_bytes = mib << 20;
	/* A short run by hand does not come to all points. */
	c.all_points = c.target >= 3 * FAULT_POINTS;
	c.t = mmap(NULL, sizeof(*c.t), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (c.t == MAP_FAILED)
		err(1, "mmap");
	/* Else the VM with huge pages is one with small ones, and their points are never reached.
	 */
	if (c.n_guests >= 2 && !kt_set(SHMEM_THP, "advise"))
		errx(1, SHMEM_THP " cannot be set");
	if (c.n_guests == GUESTS_MAX)
		kt_set_free_huge_pages(lanes * (unsigned int)(mib * 5 / 8 + 8));
	for (unsigned int i = 0; i < lanes; i++)
		lane[i] = start_lane(&c, i);
	bad = join_lanes(lane, lanes);
	return report(&c) || bad;
}
