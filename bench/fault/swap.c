/* SPDX-License-Identifier: BSD-3-Clause */
/* swap.c: the kernel's own way: a memory cgroup with swap to zram. */
#include "swap.h"

#include <errno.h>
#include <fcntl.h>
#include <mntent.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "zram.h"

/*
 * Theory of operation
 *
 * What is changed on the machine is changed by one process, the keeper: it sets up, tells its
 * parent through a pipe, and waits for the end of another pipe, which comes when the parent closes
 * it or dies of whatever. Then it ends what is left in the cgroup and takes everything down. It
 * ignores the signals of a terminal. While swap is on nothing else of this benchmark may run: a
 * daemon that takes pages out of page tables trusts that they go nowhere.
 */

#define LOCK_FILE "/tmp/ebb-swap.lock"

struct answer {
	int failed;
	char cgroup[256], why[200];
};

struct keeper {
	struct answer a;
	struct zram zram;
	int lock;
	char delegated[256]; /* a v2 file to which "-memory" goes at the end */
};

/* Where the memory controller is mounted, v1 or v2. */
static int find_controller(char *dir, unsigned int size, int *version)
{
	FILE *f = setmntent("/proc/self/mounts", "r");
	struct mntent *m;
	char path[300], have[256];

	*version = 0;
	while (f && *version != 1 && (m = getmntent(f))) {
		if (strcmp(m->mnt_type, "cgroup") == 0 && hasmntopt(m, "memory")) {
			*version = 1;
			snprintf(dir, size, "%s", m->mnt_dir);
		} else if (strcmp(m->mnt_type, "cgroup2") == 0) {
			snprintf(path, sizeof(path), "%s/cgroup.controllers", m->mnt_dir);
			if (file_get(path, have, sizeof(have)) == 0 && strstr(have, "memory")) {
				*version = 2;
				snprintf(dir, size, "%s", m->mnt_dir);
			}
		}
	}
	if (f)
		endmntent(f);
	return *version ? 0 : -1;
}

static int make_cgroup(struct keeper *k, uint64_t limit)
{
	char dir[160], path[400], text[256];
	int version;

	if (find_controller(dir, sizeof(dir), &version)) {
		snprintf(k->a.why, sizeof(k->a.why), "no memory cgroups");
		return -1;
	}
	if (version == 2) {
		snprintf(path, sizeof(path), "%s/cgroup.subtree_control", dir);
		if (file_get(path, text, sizeof(text)) == 0 && !strstr(text, "memory") &&
		    file_put(path, "+memory") == 0)
			snprintf(k->delegated, sizeof(k->delegated), "%.250s", path);
	}
	snprintf(k->a.cgroup, sizeof(k->a.cgroup), "%s/ebb-bench.%d", dir, (int)getpid());
	if (mkdir(k->a.cgroup, 0755)) {
		snprintf(k->a.why, sizeof(k->a.why), "cannot make a cgroup: %s", strerror(errno));
		k->a.cgroup[0] = 0;
		return -1;
	}
	snprintf(path, sizeof(path), "%s/%s", k->a.cgroup,
		 version == 1 ? "memory.limit_in_bytes" : "memory.max");
	snprintf(text, sizeof(text), "%llu", (unsigned long long)limit);
	if (file_put(path, text)) {
		snprintf(k->a.why, sizeof(k->a.why), "cannot limit a cgroup's memory");
		return -1;
	}
	return 0;
}

/* Ends every process in the cgroup: only ours ever entered it. */
static void empty_cgroup(const char *cgroup)
{
	char path[300], line[32];

	snprintf(path, sizeof(path), "%s/cgroup.procs", cgroup);
	for (int i = 0; i < 500; i++) {
		FILE *f = fopen(path, "re");
		int left = 0;

		for (; f && fgets(line, sizeof(line), f); left++)
			kill((pid_t)atoi(line), SIGKILL);
		if (f)
			fclose(f);
		if (!left)
			return;
		usleep(10000);
	}
}

static int set_up(struct keeper *k, uint64_t limit, uint64_t bytes)
{
	k->lock = open(LOCK_FILE, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	for (int i = 0; k->lock >= 0 && flock(k->lock, LOCK_EX | LOCK_NB); i++) {
		if (i == 600) {
			snprintf(k->a.why, sizeof(k->a.why), "%s is held by another", LOCK_FILE);
			return -1;
		}
		usleep(100000);
	}
	return make_cgroup(k, limit) || zram_on(&k->zram, bytes, k->a.why, sizeof(k->a.why));
}

static int take_down(struct keeper *k)
{
	int r = 0;

	if (k->a.cgroup[0])
		empty_cgroup(k->a.cgroup);
	r = zram_off(&k->zram, k->a.why, sizeof(k->a.why));
	for (int i = 0; k->a.cgroup[0] && rmdir(k->a.cgroup); i++) {
		if (i == 100) {
			snprintf(k->a.why, sizeof(k->a.why), "cannot remove a cgroup: %s",
				 strerror(errno));
			r = -1;
			break;
		}
		usleep(20000);
	}
	if (k->delegated[0])
		file_put(k->delegated, "-memory");
	if (k->lock >= 0)
		close(k->lock);
	return r;
}

static void keep(int alive, int tell, uint64_t limit, uint64_t bytes)
{
	struct keeper k = {.zram.id = -1, .lock = -1};
	char c;
	int r;

	signal(SIGINT, SIG_IGN);
	signal(SIGTERM, SIG_IGN);
	signal(SIGHUP, SIG_IGN);
	signal(SIGPIPE, SIG_IGN);
	k.a.failed = set_up(&k, limit, bytes);
	if (write(tell, &k.a, sizeof(k.a)) == sizeof(k.a) && !k.a.failed)
		while (read(alive, &c, 1) < 0 && errno == EINTR)
			;
	r = take_down(&k);
	if (r)
		fprintf(stderr, "the machine is not as it was: %s\n", k.a.why);
	_exit(r != 0);
}

int swap_on(struct swap_setup *s, uint64_t limit, uint64_t bytes)
{
	struct answer a = {.failed = 1, .why = "the keeper of swap ended"};
	int alive[2], tell[2];
	ssize_t n;

	memset(s, 0, sizeof(*s));
	s->alive = -1;
	if (pipe2(alive, O_CLOEXEC) || pipe2(tell, O_CLOEXEC)) {
		snprintf(s->why, sizeof(s->why), "%s", strerror(errno));
		return -1;
	}
	fflush(NULL);
	s->keeper = fork();
	if (s->keeper == 0) {
		close(alive[1]);
		close(tell[0]);
		keep(alive[0], tell[1], limit, bytes);
	}
	close(alive[0]);
	close(tell[1]);
	s->alive = alive[1];
	n = read(tell[0], &a, sizeof(a));
	close(tell[0]);
	memcpy(s->cgroup, a.cgroup, sizeof(s->cgroup));
	memcpy(s->why, a.why, sizeof(s->why));
	if (n == sizeof(a) && !a.failed)
		return 0;
	if (s->keeper > 0)
		swap_off(s);
	memcpy(s->why, a.why, sizeof(s->why));
	return -1;
}

int swap_off(struct swap_setup *s)
{
	int status = 0;

	close(s->alive);
	s->alive = -1;
	if (waitpid(s->keeper, &status, 0) == s->keeper && status == 0)
		return 0;
	snprintf(s->why, sizeof(s->why), "swap could not be taken down");
	return -1;
}

int swap_enter(const struct swap_setup *s)
{
	char path[300];

	/* The child's duplicate would keep the keeper waiting after its parent's death. */
	close(s->alive);
	snprintf(path, sizeof(path), "%s/cgroup.procs", s->cgroup);
	return file_put(path, "0");
}
