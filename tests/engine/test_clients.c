/* SPDX-License-Identifier: BSD-3-Clause */
/* test_clients.c: clients that die, unmap and truncate under the daemon. */
#include "engine/rig.h"

#include <fcntl.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/fd.h"

#define MIB ((size_t)1 << 20)

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

int main(int argc, char **argv)
{
	static const struct rig_case cases[] = {
		{"exits", exits},
		{"unmaps", unmaps},
		{"truncates", truncates},
	};

	return rig_main(argc, argv, cases, sizeof(cases) / sizeof(cases[0]));
}
