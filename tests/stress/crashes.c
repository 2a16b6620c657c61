/* SPDX-License-Identifier: BSD-3-Clause */
/* crashes.c: the daemon crashes in a plugin while it is hard at work, twice, and the third does
 * without that plugin: not one wrong byte. */
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "attach/native.h"
#include "base/clock.h"
#include "kernel/kernel_test.h"
#include "stress/daemon.h"
#include "stress/tagged.h"

/*
 * Theory of operation
 *
 * The test process is the VMM of a VM under half of the memory that it uses, whose tagged pages
 * two threads read and write all the time. For each case of the table a plugin is made to crash in
 * the middle of that: a policy's hook as soon as a file is there, or the compressed store at a
 * fault point's N-th pass. The settings that were kept give the same plugin to the next daemon,
 * which crashes, too; the third has put it aside, says so, and serves on: faults, and for a policy
 * also evictions. A crash that is in no plugin puts none aside.
 *
 * A wrong tag ends the test at once, a page that is lost too.
 */

#define WORKERS 2
#define VM	"crashes"
#define HANG_S	280

static struct area area;
static _Atomic bool stop;
static _Atomic uint64_t checks;

static void *worker_main(void *arg)
{
	uint64_t seed = (uintptr_t)arg;

	while (!atomic_load(&stop)) {
		uint64_t r = rng(&seed);
		size_t page = (r >> 8) % area.pages;

		if (!area_take(&area, page))
			continue;
		area_access(&area, page, false, r >> 63, &seed);
		atomic_fetch_add(&checks, 1);
		area_give(&area, page);
	}
	return NULL;
}

struct scene {
	struct daemon d;
	struct native *vmm;
	uint64_t bytes;
	char when[128]; /* while this is there the policy crashes */
};

static const struct crash_case {
	const char *what;
	/* A policy... */
	const char *role, *hook, *by;
	/* ... or a fault point, with its pass and signal. */
	const char *point;
	int signal;
	bool aside; /* something is, after two */
} cases[] = {
	{"abort() while victims are named", "reclaim", "pick_victims", "abort", NULL, SIGABRT,
	 true},
	{"a segmentation fault beside a fault", "prefetch", "on_fault", "segv", NULL, SIGSEGV,
	 true},
	{"a trap where an eviction's outcome is told", "reclaim", "on_outcome", "trap", NULL,
	 SIGILL, true},
	{"abort() outside of all plugins", NULL, NULL, NULL, "evict_committed:9:6", SIGABRT, false},
	{"a segmentation fault in the store", NULL, NULL, NULL, "object_written:700:11", SIGSEGV,
	 true},
};

static void ask(struct scene *s, const char *line)
{
	daemon_ask(&s->d, "%s", line);
	if (!strstr(s->d.answer, "\"return\""))
		errx(1, "%s: %.300s", line, s->d.answer);
}

/* Waits for a death by that signal. */
static void expect_death(struct scene *s, const struct crash_case *c)
{
	int status = daemon_reap(&s->d);

	s->d.fd = -1;
	if (!WIFSIGNALED(status) || WTERMSIG(status) != c->signal)
		errx(1, "%s: wait status 0x%x", c->what, (unsigned int)status);
}

/* Starts the next one and hands the VM back; false when it died in the middle of that. */
static bool start_next(struct scene *s, const struct crash_case *c)
{
	int status;

	daemon_begin(&s->d);
	for (;;) {
		if (!native_resume(s->vmm, s->d.attach, VM, &area.ram, 1,
				   NATIVE_SERVE_ZAP | NATIVE_KEEP))
			return true;
		if (waitpid(s->d.pid, &status, WNOHANG) == s->d.pid)
			break;
		usleep(10000);
	}
	if (!WIFSIGNALED(status) || WTERMSIG(status) != c->signal)
		errx(1, "%s, while it takes over: wait status 0x%x", c->what, (unsigned int)status);
	return false;
}

/* False when the daemon has died of it already, and is reaped. */
static bool arm(struct scene *s, const struct crash_case *c)
{
	int fd;

	if (c->point) {
		/* For the next daemon: this one is no crash. */
		setenv("EBB_FAULT_POINT", c->point, 1);
		daemon_end(&s->d);
		s->d.fd = -1;
		return start_next(s, c);
	}
	daemon_ask(&s->d,
		   "{\"execute\":\"policy-set\",\"arguments\":{\"vm\":\"" VM
		   "\",\"role\":\"%s\",\"policy\":\"crash\",\"options\":{\"by\":\"%s\","
		   "\"when\":\"%s\",\"in\":\"%s\"}}}",
		   c->role, c->by, s->when, c->hook);
	if (!strstr(s->d.answer, "\"return\""))
		errx(1, "policy-set: %.300s", s->d.answer);
	/* It is kept for the daemons to come: now. */
	fd = creat(s->when, 0600);
	if (fd < 0)
		err(1, "%s", s->when);
	close(fd);
	return true;
}

/* Faults and evictions go on. */
static bool goes_on(struct scene *s, uint64_t faults, uint64_t evictions)
{
	/* What was put aside names no victims: some are asked for. */
	ask(s, "{\"execute\":\"vm-reclaim\",\"arguments\":{\"vm\":\"" VM "\",\"bytes\":1048576}}");
	return daemon_vm_number(&s->d, VM, "faults") > faults + 200 &&
	       daemon_vm_number(&s->d, VM, "evictions") > evictions + 200;
}

/* The third daemon: serves, and knows what it does without. */
static void expect_service(struct scene *s, const struct crash_case *c)
{
	uint64_t faults, evictions, end = clock_ns() + 120 * NS_PER_S;
	bool no_store = c->point && c->aside;

	daemon_reach(&s->d);
	faults = daemon_vm_number(&s->d, VM, "faults");
	evictions = daemon_vm_number(&s->d, VM, "evictions");
	/* Without a store to evict to, all comes back in the end. */
	while (no_store ? daemon_vm_number(&s->d, VM, "evicted-bytes")
			: !goes_on(s, faults, evictions)) {
		if (clock_ns() > end)
			errx(1, "%s: no service: %.2000s", c->what, s->d.answer);
		usleep(10000);
	}
	if (daemon_vm_number(&s->d, VM, "pages-lost"))
		errx(1, "%s: pages were lost", c->what);
	if (c->hook && !strstr(s->d.answer, "daemons in a row crashed in it"))
		errx(1, "%s: the policy is not said to be put aside: %.3000s", c->what,
		     s->d.answer);
	if (!c->hook) {
		ask(s, "{\"execute\":\"query-backends\"}");
		if (!strstr(s->d.answer, "\"aside\"") == c->aside)
			errx(1, "%s: %.2000s", c->what, s->d.answer);
	}
}

static void run_case(struct scene *s, const struct crash_case *c)
{
	unsigned int crashes = 0;
	uint64_t seen = atomic_load(&checks);

	if (arm(s, c))
		expect_death(s, c);
	crashes++;
	/* The second may die while it takes over. */
	if (start_next(s, c))
		expect_death(s, c);
	crashes++;
	if (!c->aside)
		unsetenv("EBB_FAULT_POINT");
	if (!start_next(s, c))
		errx(1, "%s: the third daemon crashes as well", c->what);
	expect_service(s, c);
	unsetenv("EBB_FAULT_POINT");
	unlink(s->when);
	if (c->hook)
		daemon_ask(&s->d,
			   "{\"execute\":\"policy-set\",\"arguments\":{\"vm\":\"" VM
			   "\",\"role\":\"%s\",\"policy\":\"%s\"}}",
			   c->role, strcmp(c->role, "reclaim") == 0 ? "clock" : "null");
	printf("%s: %u daemons, and one that lives; %llu accesses meanwhile\n", c->what, crashes,
	       (unsigned long long)(atomic_load(&checks) - seen));
}

static void begin(struct scene *s, size_t mib)
{
	static char dirs[2][512];
	const char *args[] = {"--plugin-dir", dirs[0], "--plugin-dir", dirs[1], NULL};
	uint64_t seed = 1;

	snprintf(dirs[0], sizeof(dirs[0]), "%s/tests", getenv("EBB_BUILD"));
	snprintf(dirs[1], sizeof(dirs[1]), "%s", getenv("EBB_BUILD"));
	s->bytes = mib << 20;
	daemon_start(&s->d, args);
	snprintf(s->when, sizeof(s->when), "%s/crash-now", s->d.dir);
	area_make(&area, "ram", s->bytes, NATIVE_SHMEM, 1);
	area_fill(&area, &seed);
	if (native_open(s->d.attach, &s->vmm) ||
	    native_attach(s->vmm, VM, &area.ram, 1, NATIVE_SERVE_ZAP | NATIVE_KEEP))
		errx(1, "attach: %s", s->vmm ? native_error(s->vmm) : "");
	daemon_ask(&s->d,
		   "{\"execute\":\"vm-set\",\"arguments\":{\"vm\":\"" VM "\",\"limit\":%llu}}",
		   (unsigned long long)(s->bytes / 2));
}

int main(int argc, char **argv)
{
	static struct scene s;
	pthread_t worker[WORKERS];
	size_t mib = 24;
	int opt;

	while ((opt = getopt(argc, argv, "m:")) != -1) {
		if (opt != 'm')
			errx(2, "usage: crashes [-m MiB]");
		mib = strtoul(optarg, NULL, 10);
	}
	setvbuf(stdout, NULL, _IOLBF, 0);
	alarm(HANG_S);
	begin(&s, mib);
	for (uintptr_t i = 0; i < WORKERS; i++)
		pthread_create(&worker[i], NULL, worker_main, (void *)(i + 77));
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++)
		run_case(&s, &cases[i]);
	atomic_store(&stop, true);
	for (int i = 0; i < WORKERS; i++)
		pthread_join(worker[i], NULL);
	area_check(&area, 0, area.pages, "at the end");
	if (native_detach(s.vmm))
		errx(1, "detach: %s", native_error(s.vmm));
	area_check(&area, 0, area.pages, "after the detach");
	native_close(s.vmm, true);
	daemon_stop(&s.d);
	return 0;
}
