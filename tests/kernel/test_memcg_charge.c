/* SPDX-License-Identifier: BSD-3-Clause */
/* test_memcg_charge.c: who pays for a page of guest RAM: the VMM for COPY, the writer for pwrite().
 */
#include "kernel/kernel_test.h"

#include <inttypes.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>
#include "sys/uffd.h"

/* Relied on by the engine: it fills by COPY, so that guest RAM is charged to the VMM's memory
 * cgroup and not to the daemon's. */

#define BYTES (8 << 20)
#define SLACK (2 << 20)

struct group {
	char path[128];
	int version;
};

static bool put(const struct group *g, const char *name, const char *text)
{
	char path[192];
	FILE *f;
	bool good;

	snprintf(path, sizeof(path), "%s/%s", g->path, name);
	f = fopen(path, "we");
	if (!f)
		return false;
	good = fputs(text, f) >= 0;
	return !fclose(f) && good;
}

static uint64_t usage(const struct group *g)
{
	char path[192];
	uint64_t n = 0;
	FILE *f;

	snprintf(path, sizeof(path), "%s/%s", g->path,
		 g->version == 1 ? "memory.usage_in_bytes" : "memory.current");
	f = fopen(path, "re");
	CHECK(f && fscanf(f, "%" SCNu64, &n) == 1);
	fclose(f);
	return n;
}

/* Whichever version has the memory controller. */
static bool make(struct group *g, const char *name)
{
	const struct group root = {"/sys/fs/cgroup", 2};
	const char *dir = root.path;

	g->version = 2;
	if (!access("/sys/fs/cgroup/memory/memory.usage_in_bytes", R_OK)) {
		dir = "/sys/fs/cgroup/memory";
		g->version = 1;
	} else if (!put(&root, "cgroup.subtree_control", "+memory")) {
		return false;
	}
	if (snprintf(g->path, sizeof(g->path), "%s/ebb-%s-%d", dir, name, getpid()) >=
	    (int)sizeof(g->path))
		return false;
	return !mkdir(g->path, 0755);
}

static void drop(const struct group *g)
{
	for (int i = 0; i < 400 && rmdir(g->path) && errno == EBUSY; i++)
		usleep(5000);
}

struct said {
	int uffd;
	char *map;
};

/* The VMM, in its group: maps the file, makes a userfaultfd, waits. */
static void vmm(const struct group *g, int fd, int tell)
{
	struct said said;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	CHECK(put(g, "cgroup.procs", "0"));
	said.uffd = kt_uffd(0);
	said.map = kt_map(fd, 2 * BYTES);
	CHECK_EQ(uffd_register(said.uffd, (uintptr_t)said.map, 2 * BYTES,
			       UFFDIO_REGISTER_MODE_MISSING),
		 0);
	CHECK_EQ(write(tell, &said, sizeof(said)), sizeof(said));
	for (;;)
		pause();
}

/* The daemon, in its: fills the one half by COPY and the other by pwrite(). */
static void filler(const struct group *g, int fd, pid_t pid, const struct said *said, int hear,
		   int tell)
{
	int pidfd = (int)syscall(SYS_pidfd_open, pid, 0), uffd;
	const char *content;
	char c;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	CHECK(put(g, "cgroup.procs", "0"));
	content = kt_fill('m', BYTES);
	uffd = (int)syscall(SYS_pidfd_getfd, pidfd, said->uffd, 0);
	CHECK(uffd >= 0);
	CHECK_EQ(write(tell, "r", 1), 1);
	CHECK_EQ(read(hear, &c, 1), 1);
	CHECK_EQ(uffd_copy(uffd, (uintptr_t)said->map, content, BYTES, 0), BYTES);
	CHECK_EQ(write(tell, "c", 1), 1);
	CHECK_EQ(read(hear, &c, 1), 1);
	CHECK_EQ(pwrite(fd, content, BYTES, BYTES), BYTES);
	CHECK_EQ(write(tell, "w", 1), 1);
	for (;;)
		pause();
}

struct charge {
	int64_t vmm, daemon;
};

static struct charge charges(const struct group *v, const struct group *d)
{
	return (struct charge){(int64_t)usage(v), (int64_t)usage(d)};
}

int main(void)
{
	int fd = kt_memfd(2 * BYTES, false), from[2], to[2];
	struct charge start = {0}, copied = {0}, written = {0};
	struct group v, d;
	struct said said;
	pid_t pids[2] = {0};
	bool good;
	char c;

	if (!make(&v, "vmm"))
		SKIP("a memory controller that can be used");
	good = make(&d, "daemon") && !pipe(from) && !pipe(to);
	if (good) {
		pids[0] = fork();
		if (!pids[0])
			vmm(&v, fd, from[1]);
		good = read(from[0], &said, sizeof(said)) == sizeof(said);
	}
	if (good) {
		pids[1] = fork();
		if (!pids[1])
			filler(&d, fd, pids[0], &said, to[0], from[1]);
		good = read(from[0], &c, 1) == 1;
		start = charges(&v, &d);
		good = good && write(to[1], "g", 1) == 1 && read(from[0], &c, 1) == 1;
		copied = charges(&v, &d);
		good = good && write(to[1], "g", 1) == 1 && read(from[0], &c, 1) == 1;
		written = charges(&v, &d);
	}
	for (int i = 0; i < 2; i++) {
		if (pids[i] > 0) {
			kill(pids[i], SIGKILL);
			waitpid(pids[i], NULL, 0);
		}
	}
	/* What the groups paid for goes first, else they linger. */
	close(fd);
	drop(&v);
	drop(&d);
	CHECK(good);
	CHECK(copied.vmm - start.vmm > BYTES - SLACK);
	CHECK(copied.daemon - start.daemon < SLACK);
	CHECK(written.vmm - copied.vmm < SLACK);
	CHECK(written.daemon - copied.daemon > BYTES - SLACK);
	return 0;
}
