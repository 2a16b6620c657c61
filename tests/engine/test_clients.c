/* SPDX-License-Identifier: BSD-3-Clause */
/* test_clients.c: clients that die, unmap and truncate under the daemon. */
#include "engine/rig.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/ioctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/fd.h"

#define MIB	((size_t)1 << 20)
#define REGIONS 4

static uint64_t daemon_rss(const struct rig *r)
{
	char path[64];
	uint64_t size, rss = 0;
	FILE *f;

	snprintf(path, sizeof(path), "/proc/%d/statm", (int)r->d.pid);
	f = fopen(path, "re");
	CHECK(f);
	CHECK(fscanf(f, "%lu %lu", &size, &rss) == 2);
	fclose(f);
	return rss * KT_PAGE;
}

static bool vm_known(struct rig *r)
{
	daemon_ask(&r->d, "{\"execute\":\"query-vms\"}");
	return strstr(r->d.answer, "\"name\"");
}

/* In a child: a VM whose pages are evicted, with faults under way when it is killed. */
static void vm_that_dies(struct rig *r, volatile int *ready)
{
	struct kt_access a[16];

	rig_attach(r, 8 * MIB, NATIVE_SHMEM);
	*ready = 1;
	while (*ready != 2)
		usleep(1000);
	for (size_t i = 0; i < 16; i++)
		kt_access_start(&a[i], rig_unit(r, 100 * i));
	*ready = 3;
	pause();
	_exit(1);
}

/* A VM that ends with faults in flight takes everything of it along. */
static void exits(struct rig *r)
{
	volatile int *ready =
		mmap(NULL, KT_PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	unsigned int fds = 0;
	uint64_t rss = 0;

	rig_start(r, "", "delay-us = 20000");
	r->ram.bytes = 8 * MIB;
	for (int round = 0; round < 4; round++) {
		pid_t pid;

		*ready = 0;
		pid = fork();
		CHECK(pid >= 0);
		if (pid == 0)
			vm_that_dies(r, ready);
		while (*ready != 1)
			usleep(1000);
		rig_evict_all(r);
		*ready = 2;
		while (*ready != 3)
			usleep(1000);
		usleep(10000);
		CHECK_EQ(kill(pid, SIGKILL), 0);
		CHECK_EQ(waitpid(pid, NULL, 0), pid);
		for (int i = 0; i < 3000 && vm_known(r); i++)
			usleep(10000);
		CHECK(!vm_known(r));
		/* The first round warms the daemon's own memory up. */
		if (round == 0) {
			usleep(300000);
			fds = daemon_fds(&r->d);
			rss = daemon_rss(r);
		}
	}
	for (int i = 0; i < 3000 && daemon_fds(&r->d) > fds; i++)
		usleep(10000);
	CHECK_EQ(daemon_fds(&r->d), fds);
	/* Three VMs of 8 MiB each were stored meanwhile. */
	for (int i = 0; i < 300 && daemon_rss(r) > rss + RSS_SLACK_MIB * MIB; i++)
		usleep(10000);
	CHECK(daemon_rss(r) <= rss + RSS_SLACK_MIB * MIB);
	fd_close(&r->events);
	daemon_stop(&r->d);
}

/* The VMM unmaps RAM without a word: the daemon and the rest of the VM live on. */
static void unmaps(struct rig *r)
{
	size_t half;

	rig_start(r, "", "delay-us = 2000");
	rig_attach(r, 4 * MIB, NATIVE_SHMEM);
	half = r->units / 2;
	rig_reclaim(r, MIB);
	CHECK_EQ(munmap(rig_unit(r, half), r->ram.bytes / 2), 0);
	rig_reclaim(r, 0);
	for (size_t i = 0; i < half; i++)
		CHECK(rig_is(r, i, 1));
	/* Mapped anew, by somebody who knows nothing of the daemon: no fault of it is served. */
	CHECK(mmap(rig_unit(r, half), r->ram.bytes / 2, PROT_READ | PROT_WRITE,
		   MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) != MAP_FAILED);
	for (size_t i = half; i < r->units; i++)
		CHECK(rig_is(r, i, 0));
	rig_reclaim(r, 0);
	for (size_t i = 0; i < half; i++)
		CHECK(rig_is(r, i, 1));
	CHECK_EQ(rig_number(r, "pages-lost"), 0);
	native_close(r->vmm, true);
	daemon_stop(&r->d);
}

/* The client truncates its own RAM: its loss, and nobody else's. */
static void truncates(struct rig *r)
{
	int memfd = memfd_create("unsealed", MFD_CLOEXEC), status;
	struct rig other;
	pid_t pid;

	rig_start(r, "", "");
	CHECK(memfd >= 0);
	CHECK_EQ(ftruncate(memfd, (off_t)(2 * MIB)), 0);
	pid = fork();
	CHECK(pid >= 0);
	if (pid == 0) {
		CHECK_EQ(native_ram_map(&r->ram, "ram", 2 * MIB, NATIVE_SHMEM, memfd), 0);
		close(memfd);
		rig_attach_ram(r);
		rig_evict_all(r);
		CHECK(rig_is(r, 3, 1));
		CHECK_EQ(ftruncate(r->ram.memfd, (off_t)KT_PAGE), 0);
		rig_reclaim(r, 0);
		CHECK(rig_is(r, 0, 1));
		CHECK_EQ(ftruncate(r->ram.memfd, (off_t)(2 * MIB)), 0);
		rig_reclaim(r, 0);
		rig_number(r, "evictions"); /* it answers */
		_exit(0);
	}
	close(memfd);
	CHECK_EQ(waitpid(pid, &status, 0), pid);
	CHECK_EQ(status, 0);
	other = *r;
	CHECK_EQ(native_ram_make(&other.ram, "ram", MIB, NATIVE_SHMEM), 0);
	for (int i = 0; i < 3000 && vm_known(r); i++)
		usleep(10000);
	rig_attach_ram(&other);
	rig_evict_all(&other);
	rig_check_all(&other);
	rig_end(&other);
}

/* ---- a VM that is detached by its name while it is attaching ---- */

struct detacher {
	struct daemon d;
	_Atomic bool go, stopped, end;
};

static void *detach_all_the_time(void *arg)
{
	struct detacher *x = arg;

	while (!atomic_load(&x->end)) {
		atomic_store(&x->stopped, !atomic_load(&x->go));
		if (atomic_load(&x->stopped))
			usleep(100);
		else
			daemon_ask(&x->d,
				   "{\"execute\":\"vm-detach\",\"arguments\":{\"vm\":\"vm\"}}");
	}
	return NULL;
}

/*
 * After the attach was answered the VM is there and whole, or the detach came after it and nothing
 * is registered any more; never half of it.
 */
static void detached_early(struct rig *r)
{
	static struct native_ram ram[REGIONS];
	static struct detacher x;
	unsigned int there = 0, gone = 0;
	pthread_t thread;

	rig_start(r, "", "");
	daemon_connect(&r->d, &x.d);
	CHECK(!pthread_create(&thread, NULL, detach_all_the_time, &x));
	for (int round = 0; round < 8; round++) {
		for (size_t i = 0; i < REGIONS; i++) {
			char id[16];

			snprintf(id, sizeof(id), "ram%zu", i);
			CHECK_EQ(native_ram_make(&ram[i], id, 64 * KT_PAGE, NATIVE_SHMEM), 0);
			memset(ram[i].addr, 0x55, ram[i].bytes);
		}
		CHECK_EQ(native_open(r->d.attach, &r->vmm), 0);
		atomic_store(&x.stopped, false);
		atomic_store(&x.go, true);
		CHECK_EQ(native_attach(r->vmm, "vm", ram, REGIONS, 0), 0);
		atomic_store(&x.go, false);
		while (!atomic_load(&x.stopped))
			usleep(100);
		if (vm_known(r)) {
			there++;
			r->ram.bytes = ram[0].bytes;
			CHECK_EQ(rig_number(r, "resident-bytes"), REGIONS * ram[0].bytes);
			rig_reclaim(r, 0);
			CHECK_EQ(native_detach(r->vmm), 0);
		} else {
			int uffd = kt_uffd(0);

			gone++;
			for (size_t i = 0; i < REGIONS; i++) {
				struct uffdio_register reg = {
					.range = {(uintptr_t)ram[i].addr, ram[i].bytes},
					.mode = UFFDIO_REGISTER_MODE_MISSING};

				CHECK(!ioctl(uffd, UFFDIO_REGISTER, &reg));
				CHECK(!ioctl(uffd, UFFDIO_UNREGISTER, &reg.range));
			}
			close(uffd);
		}
		native_close(r->vmm, true);
		for (size_t i = 0; i < REGIONS; i++) {
			for (size_t k = 0; k < ram[i].bytes; k++)
				CHECK_EQ(((char *)ram[i].addr)[k], 0x55);
			native_ram_free(&ram[i]);
		}
		for (int i = 0; i < 3000 && vm_known(r); i++)
			usleep(10000);
	}
	kt_saw("%u times attached, %u times detached again", there, gone);
	atomic_store(&x.end, true);
	CHECK(!pthread_join(thread, NULL));
	close(x.d.fd);
	fd_close(&r->events);
	daemon_stop(&r->d);
}

/* A file is of one VM only, also when it comes later. */
static void taken(struct rig *r)
{
	struct rig other;
	struct native_ram same;

	rig_start(r, "", "");
	other = *r;
	rig_attach(r, MIB / 2, NATIVE_SHMEM);
	CHECK_EQ(native_ram_make(&other.ram, "ram", MIB / 2, NATIVE_SHMEM), 0);
	CHECK_EQ(native_open(r->d.attach, &other.vmm), 0);
	CHECK_EQ(native_attach(other.vmm, "other", &other.ram, 1, 0), 0);
	CHECK_EQ(native_ram_map(&same, "same", MIB / 2, NATIVE_SHMEM, r->ram.memfd), 0);
	CHECK_EQ(native_region_add(other.vmm, &same), -EPROTO);
	CHECK(strstr(native_error(other.vmm), "belongs to VM vm"));
	/* Unplugged, it may be another's; plugged again, it may not. */
	CHECK_EQ(native_region_remove(other.vmm, "ram", false), 0);
	strcpy(other.ram.id, "more");
	CHECK_EQ(native_region_add(r->vmm, &other.ram), 0);
	CHECK_EQ(native_region_add(other.vmm, &other.ram), -EPROTO);
	native_close(other.vmm, true);
	CHECK_EQ(native_region_remove(r->vmm, "more", false), 0);
	rig_evict_all(r);
	rig_check_all(r);
	rig_end(r);
}

/* What a policy wants dropped from page tables is asked of the client, which does it for less. */
static void asked(struct rig *r)
{
	size_t ram = getenv("EBB_LAB_GUEST") ? 16 * MIB : 64 * MIB, pages = ram / KT_PAGE;

	rig_start(r, "", NULL);
	rig_attach(r, ram, NATIVE_SHMEM);
	daemon_ask(&r->d, "{\"execute\":\"policy-set\",\"arguments\":"
			  "{\"vm\":\"vm\",\"role\":\"reclaim\",\"policy\":\"clock\"}}");
	CHECK(strncmp(r->d.answer, "{\"return\"", 9) == 0);
	rig_limit(r, ram / 2);
	/* The clock looks who was in use: units touched now and then, while others have to go. */
	for (int round = 0; round < 1000 && !native_zaps(r->vmm); round++)
		for (size_t i = 0; i < pages; i += 16)
			CHECK(rig_is(r, (i + (size_t)round) % pages, 1));
	CHECK(native_zaps(r->vmm));
	rig_check_all(r);
	rig_end(r);
}

/* CPUs that the daemon's fault workers may use: the fewest of any of them, and one such. */
static int worker_cpus(const struct rig *r, unsigned int *one)
{
	char path[64], name[32];
	int least = CPU_SETSIZE;
	struct dirent *task;
	DIR *dir;

	snprintf(path, sizeof(path), "/proc/%d/task", (int)r->d.pid);
	dir = opendir(path);
	CHECK(dir);
	while ((task = readdir(dir))) {
		cpu_set_t set;
		FILE *f;

		snprintf(path, sizeof(path), "/proc/%d/task/%.16s/comm", (int)r->d.pid,
			 task->d_name);
		f = fopen(path, "re");
		name[0] = 0;
		if (f && !fgets(name, sizeof(name), f))
			name[0] = 0;
		if (f)
			fclose(f);
		if (strcmp(name, "ebb-fault\n") ||
		    sched_getaffinity(atoi(task->d_name), sizeof(set), &set) ||
		    CPU_COUNT(&set) >= least)
			continue;
		least = CPU_COUNT(&set);
		for (*one = 0; !CPU_ISSET(*one, &set);)
			++*one;
	}
	closedir(dir);
	return least;
}

/* A worker goes where the only thread is that faults, and is free again when it is idle. */
static void followed(struct rig *r)
{
	unsigned int last = 0, at;
	cpu_set_t all, one;

	CHECK(!sched_getaffinity(0, sizeof(all), &all));
	if (CPU_COUNT(&all) < 2) {
		printf("skipped: one CPU; runs where there are more\n");
		exit(77);
	}
	for (unsigned int i = 0; i < CPU_SETSIZE; i++)
		last = CPU_ISSET(i, &all) ? i : last;
	rig_start(r, "", NULL);
	rig_attach(r, 16 * MIB, NATIVE_SHMEM);
	rig_evict_all(r);
	CHECK_EQ(worker_cpus(r, &at), CPU_COUNT(&all));
	CPU_ZERO(&one);
	CPU_SET(last, &one);
	CHECK(!sched_setaffinity(0, sizeof(one), &one));
	rig_check_all(r); /* 4096 faults */
	CHECK_EQ(worker_cpus(r, &at), 1);
	CHECK_EQ(at, last);
	CHECK(!sched_setaffinity(0, sizeof(all), &all));
	for (int i = 0; i < 3000 && worker_cpus(r, &at) == 1; i++)
		usleep(10000);
	CHECK_EQ(worker_cpus(r, &at), CPU_COUNT(&all));
	rig_end(r);
}

int main(int argc, char **argv)
{
	static const struct rig_case cases[] = {
		{"exits", exits},	  {"unmaps", unmaps},
		{"truncates", truncates}, {"detached_early", detached_early},
		{"taken", taken},	  {"asked", asked},
		{"followed", followed},
	};

	return rig_main(argc, argv, cases, sizeof(cases) / sizeof(cases[0]));
}
