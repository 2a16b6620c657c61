/* SPDX-License-Identifier: BSD-3-Clause */
/* test_oom.c: the kernel's OOM killer ends the daemon in the middle of its work. */
#include <err.h>
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "attach/native.h"
#include "stress/daemon.h"
#include "stress/tagged.h"

/*
 * This process is the VMM. The daemon is alone in a memory cgroup that has no room for what it is
 * told to store, so the kernel kills it there, at an allocation in the middle of an eviction, while
 * a thread of the VM goes on. The next one, outside, takes over, and no page is wrong.
 */

#define ROUNDS	    3
#define RAM_BYTES   ((size_t)32 << 20)
#define LIMIT_BYTES "6291456"
#define HANG_S	    300

static struct {
	char path[128];
	bool v1;
	pid_t owner;
} group;

static struct area ram;
static _Atomic bool stop;
static _Atomic uint64_t checks;

static bool put(const char *name, const char *text)
{
	char path[192];
	bool good;
	FILE *f;

	snprintf(path, sizeof(path), "%s/%s", group.path, name);
	f = fopen(path, "we");
	if (!f)
		return false;
	good = fputs(text, f) >= 0;
	return !fclose(f) && good;
}

/* A daemon that is in there still, after a failure, would hold it. */
static void empty_group(void)
{
	char path[192];
	int pid;
	FILE *f;

	snprintf(path, sizeof(path), "%s/cgroup.procs", group.path);
	f = fopen(path, "re");
	while (f && fscanf(f, "%d", &pid) == 1)
		kill(pid, SIGKILL);
	if (f)
		fclose(f);
}

static void drop_group(void)
{
	if (getpid() != group.owner)
		return;
	empty_group();
	for (int i = 0; i < 400 && rmdir(group.path) && errno == EBUSY; i++)
		usleep(5000);
}

static void end_by_signal(int sig)
{
	drop_group();
	signal(sig, SIG_DFL);
	raise(sig);
}

static bool make_group(void)
{
	static const int signals[] = {SIGINT, SIGTERM, SIGHUP, SIGALRM, SIGSEGV, SIGBUS};

	group.v1 = !access("/sys/fs/cgroup/memory/memory.usage_in_bytes", R_OK);
	if (!group.v1) {
		strcpy(group.path, "/sys/fs/cgroup");
		if (!put("cgroup.subtree_control", "+memory"))
			return false;
	}
	snprintf(group.path, sizeof(group.path), "/sys/fs/cgroup%s/ebb-oom-%d",
		 group.v1 ? "/memory" : "", (int)getpid());
	if (mkdir(group.path, 0755))
		return false;
	group.owner = getpid();
	atexit(drop_group);
	for (size_t i = 0; i < sizeof(signals) / sizeof(*signals); i++)
		signal(signals[i], end_by_signal);
	return put(group.v1 ? "memory.limit_in_bytes" : "memory.max", LIMIT_BYTES);
}

/* How often the kernel has killed somebody in the group. */
static unsigned int kills_in_group(void)
{
	char path[192], line[128];
	unsigned int n = 0;
	FILE *f;

	snprintf(path, sizeof(path), "%s/%s", group.path,
		 group.v1 ? "memory.oom_control" : "memory.events");
	f = fopen(path, "re");
	while (f && fgets(line, sizeof(line), f))
		if (sscanf(line, "oom_kill %u", &n) == 1)
			break;
	if (f)
		fclose(f);
	return n;
}

static void *worker_main(void *arg)
{
	uint64_t *seed = arg;

	while (!atomic_load(&stop)) {
		uint64_t r = rng(seed);
		size_t page = (r >> 8) % ram.pages;

		area_access(&ram, page, false, r & 8, seed);
		atomic_fetch_add(&checks, 1);
		if (r >> 60 == 0)
			usleep(200);
	}
	return NULL;
}

static void round_of(struct daemon *d, struct native *vmm, unsigned int number)
{
	unsigned int before = kills_in_group();
	uint64_t from;
	char pid[16];
	int status;

	snprintf(pid, sizeof(pid), "%d", (int)d->pid);
	if (!put("cgroup.procs", pid))
		err(1, "the daemon cannot be moved to %s", group.path);
	/* Until it dies; more often than once only where the machine is slow. */
	while (daemon_try(
		d, "{\"execute\":\"vm-reclaim\",\"arguments\":{\"vm\":\"oom\",\"bytes\":%zu}}",
		RAM_BYTES))
		usleep(10000);
	status = daemon_reap(d);
	if (!WIFSIGNALED(status) || WTERMSIG(status) != SIGKILL || kills_in_group() == before)
		errx(1, "the daemon ended with status 0x%x, by nobody's doing", status);
	daemon_next(d);
	if (native_resume(vmm, d->attach, "oom", &ram.ram, 1, NATIVE_KEEP))
		errx(1, "it is not taken over: %s", native_error(vmm));
	from = atomic_load(&checks);
	while (atomic_load(&checks) < from + 100)
		usleep(1000);
	if (daemon_vm_number(d, "oom", "pages-lost"))
		errx(1, "pages are lost");
	printf("killed by the kernel for the %u. time, taken over: %llu KiB are evicted\n", number,
	       (unsigned long long)daemon_vm_number(d, "oom", "evicted-bytes") / 1024);
}

int main(void)
{
	static struct daemon d;
	uint64_t seed = 1, worker_seed = 2;
	struct native *vmm = NULL;
	pthread_t worker;

	setvbuf(stdout, NULL, _IOLBF, 0);
	if (!make_group()) {
		puts("skipped: no memory cgroup can be made here; runs in the gate of CI, as root");
		return 77;
	}
	alarm(HANG_S);
	area_make(&ram, "ram", RAM_BYTES, NATIVE_SHMEM, 0);
	area_fill(&ram, &seed);
	daemon_start(&d, NULL);
	if (native_open(d.attach, &vmm) || native_attach(vmm, "oom", &ram.ram, 1, NATIVE_KEEP))
		errx(1, "attach: %s", vmm ? native_error(vmm) : "");
	pthread_create(&worker, NULL, worker_main, &worker_seed);
	for (unsigned int i = 1; i <= ROUNDS; i++)
		round_of(&d, vmm, i);
	atomic_store(&stop, true);
	pthread_join(worker, NULL);
	area_check(&ram, 0, ram.pages, "at the end");
	if (native_detach(vmm))
		errx(1, "detach: %s", native_error(vmm));
	area_check(&ram, 0, ram.pages, "after the detach");
	native_close(vmm, true);
	daemon_stop(&d);
	area_free(&ram);
	return 0;
}
