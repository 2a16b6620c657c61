/* SPDX-License-Identifier: BSD-3-Clause */
/* guest.c: a process with a memory file, driven by lines on stdin: what the library is tried on. */
#include <errno.h>
#include <fcntl.h>
#include <linux/memfd.h>
#include <linux/userfaultfd.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

/* Commands name a mapping by its number, in the order of map, from 0; each answers one line. */

#define MAPS_MAX 64

struct map {
	int fd;
	unsigned char *addr;
	size_t bytes;
};

static struct map maps[MAPS_MAX];
static int n_maps;

/*
 * What the library's threads ask of the allocator. A VMM's may keep its heap in the RAM that is
 * managed, and then they must not come into it.
 */
static _Atomic unsigned int allocs;

#ifndef __SANITIZE_ADDRESS__ /* has its own */
void *__libc_calloc(size_t n, size_t bytes);
void *__libc_malloc(size_t bytes);

static void count_alloc(void)
{
	char name[16];

	if (!prctl(PR_GET_NAME, name) && !strncmp(name, "ebb-attach", 10))
		atomic_fetch_add(&allocs, 1);
}

void *calloc(size_t n, size_t bytes)
{
	count_alloc();
	return __libc_calloc(n, bytes);
}

void *malloc(size_t bytes)
{
	count_alloc();
	return __libc_malloc(bytes);
}
#endif

/* allocs */
static int do_allocs(char **a)
{
	(void)a;
	printf("%u\n", atomic_load(&allocs));
	return 0;
}

static int result(int r)
{
	printf("%s\n", r ? strerror(errno) : "ok");
	return 0;
}

/* map memfd|huge|private|sealed|PATH BYTES */
static int do_map(char **a)
{
	struct map *m = &maps[n_maps];
	int flags = MAP_SHARED;

	m->bytes = strtoull(a[1], NULL, 0);
	if (!strcmp(a[0], "huge"))
		m->fd = memfd_create("guest-ram", MFD_CLOEXEC | MFD_HUGETLB | MFD_HUGE_2MB);
	else if (!strcmp(a[0], "memfd") || !strcmp(a[0], "private"))
		m->fd = memfd_create("guest-ram", MFD_CLOEXEC);
	else if (!strcmp(a[0], "sealed"))
		m->fd = memfd_create("guest-ram", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	else
		m->fd = open(a[0], O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	if (m->fd < 0 || ftruncate(m->fd, (off_t)m->bytes))
		return result(-1);
	if (!strcmp(a[0], "private"))
		flags = MAP_PRIVATE;
	m->addr = mmap(NULL, m->bytes, PROT_READ | PROT_WRITE, flags, m->fd, 0);
	if (m->addr == MAP_FAILED)
		return result(-1);
	if (!strcmp(a[0], "sealed") && fcntl(m->fd, F_ADD_SEALS, F_SEAL_FUTURE_WRITE))
		return result(-1);
	printf("%d %p\n", n_maps++, (void *)m->addr);
	return 0;
}

/* again MAP OFFSET BYTES: maps a part of a file that is mapped already */
static int do_again(char **a)
{
	struct map *of = &maps[atoi(a[0])], *m = &maps[n_maps];
	off_t offset = strtoll(a[1], NULL, 0);

	*m = (struct map){.fd = of->fd, .bytes = strtoull(a[2], NULL, 0)};
	m->addr = mmap(NULL, m->bytes, PROT_READ | PROT_WRITE, MAP_SHARED, m->fd, offset);
	if (m->addr == MAP_FAILED)
		return result(-1);
	printf("%d %p\n", n_maps++, (void *)m->addr);
	return 0;
}

static int do_write(char **a)
{
	maps[atoi(a[0])].addr[strtoull(a[1], NULL, 0)] = (unsigned char)atoi(a[2]);
	return result(0);
}

static int do_read(char **a)
{
	printf("%d\n", ((volatile unsigned char *)maps[atoi(a[0])].addr)[strtoull(a[1], NULL, 0)]);
	return 0;
}

/* fill and check: a byte in every page */
static int do_fill(char **a)
{
	struct map *m = &maps[atoi(a[0])];

	for (size_t at = 0; at < m->bytes; at += 4096)
		m->addr[at] = (unsigned char)atoi(a[1]);
	return result(0);
}

static int do_check(char **a)
{
	struct map *m = &maps[atoi(a[0])];

	for (size_t at = 0; at < m->bytes; at += 4096) {
		if (m->addr[at] == (unsigned char)atoi(a[1]))
			continue;
		printf("%d at %zu\n", m->addr[at], at);
		return 0;
	}
	return result(0);
}

/* The three ways to tell the kernel that a range is not needed. */
static int do_punch(char **a)
{
	return result(fallocate(maps[atoi(a[0])].fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
				strtoll(a[1], NULL, 0), strtoll(a[2], NULL, 0)));
}

static int advise(char **a, int advice)
{
	return result(madvise(maps[atoi(a[0])].addr + strtoull(a[1], NULL, 0),
			      strtoull(a[2], NULL, 0), advice));
}

static int do_remove(char **a)
{
	return advise(a, MADV_REMOVE);
}

static int do_dontneed(char **a)
{
	return advise(a, MADV_DONTNEED);
}

static int do_dontfork(char **a)
{
	return advise(a, MADV_DONTFORK);
}

static int do_unmap(char **a)
{
	return result(munmap(maps[atoi(a[0])].addr, maps[atoi(a[0])].bytes));
}

/* What a child sees: its byte, or the signal that ended it. */
static int do_fork_read(char **a)
{
	volatile unsigned char *p = maps[atoi(a[0])].addr + strtoull(a[1], NULL, 0);
	pid_t pid = fork();
	int status;

	if (!pid)
		_exit(*p);
	waitpid(pid, &status, 0);
	if (WIFSIGNALED(status))
		printf("signal %d\n", WTERMSIG(status));
	else
		printf("%d\n", WEXITSTATUS(status));
	return 0;
}

/* Gives the file away and lets whoever has it now look: prints the byte that a peer reads. */
static int do_send(char **a)
{
	union {
		char space[CMSG_SPACE(sizeof(int))];
		struct cmsghdr align;
	} control = {0};
	char byte_to_send = 0;
	struct iovec iov = {&byte_to_send, 1};
	struct msghdr msg = {.msg_iov = &iov,
			     .msg_iovlen = 1,
			     .msg_control = control.space,
			     .msg_controllen = sizeof(control.space)};
	struct cmsghdr *c = CMSG_FIRSTHDR(&msg);
	unsigned char byte = 0;
	int pair[2];

	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair))
		return result(-1);
	c->cmsg_level = SOL_SOCKET;
	c->cmsg_type = SCM_RIGHTS;
	c->cmsg_len = CMSG_LEN(sizeof(int));
	memcpy(CMSG_DATA(c), &maps[atoi(a[0])].fd, sizeof(int));
	if (sendmsg(pair[0], &msg, 0) != 1)
		return result(-1);
	if (pread(maps[atoi(a[0])].fd, &byte, 1, strtoll(a[1], NULL, 0)) != 1)
		return result(-1);
	printf("%d\n", byte);
	close(pair[0]);
	close(pair[1]);
	return 0;
}

/* uffd MAP: registers it with a userfaultfd of the process's own, and lets it go again */
static int do_uffd(char **a)
{
	struct uffdio_api api = {.api = UFFD_API};
	struct uffdio_register reg = {
		.range = {(uintptr_t)maps[atoi(a[0])].addr, maps[atoi(a[0])].bytes},
		.mode = UFFDIO_REGISTER_MODE_MISSING};
	int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);

	if (fd < 0 || ioctl(fd, UFFDIO_API, &api) || ioctl(fd, UFFDIO_REGISTER, &reg))
		return result(-1);
	printf("registered\n");
	fflush(stdout);
	getchar();
	return result(ioctl(fd, UFFDIO_UNREGISTER, &reg.range));
}

static int do_closeall(char **a)
{
	int how = atoi(a[0]);

	if (how == 0)
		for (int fd = 3; fd < 256; fd++)
			close(fd);
	else if (how == 1)
		close_range(3, ~0U, 0);
	return result(0);
}

static int do_exec(char **a)
{
	char name[] = "true";
	char *const argv[] = {name, NULL};

	printf("exec\n");
	fflush(stdout);
	return result(execv("/bin/true", argv));
}

/* timepunch MAP N BYTES: punches N pieces one by one; nanoseconds for each */
static int do_timepunch(char **a)
{
	long n = atol(a[1]), bytes = atol(a[2]);
	struct timespec t0, t1;

	clock_gettime(CLOCK_MONOTONIC, &t0);
	for (long i = 0; i < n; i++)
		if (fallocate(maps[atoi(a[0])].fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
			      i * bytes, bytes))
			return result(-1);
	clock_gettime(CLOCK_MONOTONIC, &t1);
	printf("%ld\n", ((t1.tv_sec - t0.tv_sec) * 1000000000L + t1.tv_nsec - t0.tv_nsec) / n);
	return 0;
}

static const struct {
	const char *name;
	int args;
	int (*run)(char **a);
} commands[] = {
	{"allocs", 0, do_allocs},	{"fill", 2, do_fill},
	{"check", 2, do_check},		{"map", 2, do_map},
	{"again", 3, do_again},		{"write", 3, do_write},
	{"read", 2, do_read},		{"punch", 3, do_punch},
	{"remove", 3, do_remove},	{"dontneed", 3, do_dontneed},
	{"dontfork", 3, do_dontfork},	{"unmap", 1, do_unmap},
	{"fork-read", 2, do_fork_read}, {"send", 2, do_send},
	{"uffd", 1, do_uffd},		{"closeall", 1, do_closeall},
	{"exec", 0, do_exec},		{"timepunch", 3, do_timepunch},
};

int main(void)
{
	char line[512];

	while (fgets(line, sizeof(line), stdin)) {
		char *a[8] = {0}, *save = NULL;
		int n = 0;

		for (char *t = strtok_r(line, " \n", &save); t && n < 8;
		     t = strtok_r(NULL, " \n", &save))
			a[n++] = t;
		if (!n)
			continue;
		for (size_t i = 0; i < sizeof(commands) / sizeof(*commands); i++)
			if (!strcmp(commands[i].name, a[0]) && commands[i].args == n - 1)
				commands[i].run(a + 1);
		fflush(stdout);
	}
	return 0;
}
