/* SPDX-License-Identifier: BSD-3-Clause */
/* slow_file.c: a file whose reads wait until they are told to go on. */
#include "engine/slow_file.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fuse.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define FILE_NODE  2
#define FILE_BYTES (1u << 20)
#define READ_MAX   65536u
#define WAIT_MAX   64

/*
 * The file system's server is a process of its own, and one that ends by itself: a thread that
 * waits for it cannot be killed, so a test that fails with reads under way would never end
 * otherwise.
 */
#define LIFE_S 90

struct server {
	int fuse;
	struct {
		uint64_t unique;
		uint32_t bytes;
	} waiting[WAIT_MAX];
	struct shared *shared;
};

struct shared {
	_Atomic unsigned int n; /* reads that wait */
	_Atomic bool go_on;
};

struct slow_file {
	int fd;
	pid_t pid;
	struct shared *shared;
};

static void answer(const struct server *f, uint64_t unique, int error, const void *data,
		   size_t bytes)
{
	struct fuse_out_header h = {
		.len = (uint32_t)(sizeof(h) + bytes), .error = -error, .unique = unique};
	struct iovec v[2] = {{&h, sizeof(h)}, {(void *)(uintptr_t)data, bytes}};

	/* Whoever asked may be gone. */
	if (writev(f->fuse, v, 2) < 0)
		return;
}

static struct fuse_attr attributes(uint64_t node)
{
	struct fuse_attr a = {.ino = node, .nlink = 1, .blksize = 4096};

	a.mode = node == FILE_NODE ? S_IFREG | 0600 : S_IFDIR | 0700;
	a.size = node == FILE_NODE ? FILE_BYTES : 0;
	return a;
}

static void wait_for_leave(struct server *f, uint64_t unique, uint32_t bytes)
{
	unsigned int n = atomic_load(&f->shared->n);

	if (n == WAIT_MAX) {
		answer(f, unique, EIO, NULL, 0);
		return;
	}
	f->waiting[n].unique = unique;
	f->waiting[n].bytes = bytes;
	atomic_store(&f->shared->n, n + 1);
}

static void go_on(struct server *f)
{
	static char data[READ_MAX];
	unsigned int n = atomic_load(&f->shared->n);

	memset(data, 'D', sizeof(data));
	for (unsigned int i = 0; i < n; i++)
		answer(f, f->waiting[i].unique, 0, data,
		       f->waiting[i].bytes < READ_MAX ? f->waiting[i].bytes : READ_MAX);
	atomic_store(&f->shared->n, 0);
	atomic_store(&f->shared->go_on, false);
}

static void serve(struct server *f, const struct fuse_in_header *h, const void *arg)
{
	const struct fuse_read_in *in = arg;
	struct fuse_init_out init = {.major = FUSE_KERNEL_VERSION,
				     .minor = 31,
				     .max_readahead = 4096,
				     .max_background = WAIT_MAX,
				     .congestion_threshold = WAIT_MAX,
				     .max_write = 4096};
	struct fuse_entry_out entry = {.nodeid = FILE_NODE, .attr = attributes(FILE_NODE)};
	struct fuse_attr_out attr = {.attr = attributes(h->nodeid)};
	struct fuse_open_out open = {.open_flags = FOPEN_DIRECT_IO};

	switch (h->opcode) {
	case FUSE_INIT:
		answer(f, h->unique, 0, &init, sizeof(init));
		break;
	case FUSE_LOOKUP:
		answer(f, h->unique, 0, &entry, sizeof(entry));
		break;
	case FUSE_GETATTR:
		answer(f, h->unique, 0, &attr, sizeof(attr));
		break;
	case FUSE_OPEN:
		answer(f, h->unique, 0, &open, sizeof(open));
		break;
	case FUSE_READ:
		wait_for_leave(f, h->unique, in->size);
		break;
	case FUSE_RELEASE:
		answer(f, h->unique, 0, NULL, 0);
		break;
	case FUSE_FORGET:
	case FUSE_BATCH_FORGET:
	case FUSE_INTERRUPT:
		break; /* not to be answered */
	default:
		answer(f, h->unique, ENOSYS, NULL, 0);
	}
}

static void server(struct server *f, pid_t parent)
{
	static char buf[READ_MAX + 4096];
	const struct fuse_in_header *h = (const struct fuse_in_header *)(const void *)buf;

	for (time_t end = time(NULL) + LIFE_S; time(NULL) < end && getppid() == parent;) {
		struct pollfd p = {.fd = f->fuse, .events = POLLIN};
		ssize_t n;

		if (atomic_load(&f->shared->go_on))
			go_on(f);
		if (poll(&p, 1, 10) != 1)
			continue;
		n = read(f->fuse, buf, sizeof(buf));
		if (n < 0 && (errno == EINTR || errno == ENOENT))
			continue;
		if (n < (ssize_t)sizeof(*h))
			break; /* unmounted */
		serve(f, h, h + 1);
	}
	_exit(0);
}

struct slow_file *slow_file_new(void)
{
	struct slow_file *f = calloc(1, sizeof(*f));
	struct server s = {.fuse = -1};
	pid_t self = getpid();
	char options[96];

	/* A module on distributions' kernels. */
	if (access("/dev/fuse", R_OK) && system("modprobe -q fuse"))
		return NULL;
	s.fuse = open("/dev/fuse", O_RDWR | O_CLOEXEC);

	if (!f || s.fuse < 0 || unshare(CLONE_NEWNS) ||
	    mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL))
		return NULL;
	snprintf(options, sizeof(options), "fd=%d,rootmode=40000,user_id=0,group_id=0", s.fuse);
	if (mount("ebb-slow", "/mnt", "fuse", MS_NOSUID | MS_NODEV, options))
		return NULL;
	f->shared = mmap(NULL, sizeof(*f->shared), PROT_READ | PROT_WRITE,
			 MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	s.shared = f->shared;
	f->pid = fork();
	if (f->pid == 0)
		server(&s, self);
	close(s.fuse);
	f->fd = open("/mnt/file", O_RDONLY | O_DIRECT | O_CLOEXEC);
	return f;
}

int slow_file_fd(const struct slow_file *f)
{
	return f->fd;
}

unsigned int slow_file_waiting(const struct slow_file *f)
{
	return atomic_load(&f->shared->n);
}

void slow_file_go_on(struct slow_file *f)
{
	atomic_store(&f->shared->go_on, true);
}

void slow_file_free(struct slow_file *f)
{
	close(f->fd);
	umount2("/mnt", MNT_DETACH);
	kill(f->pid, SIGKILL);
	waitpid(f->pid, NULL, 0);
	munmap(f->shared, sizeof(*f->shared));
	free(f);
}
