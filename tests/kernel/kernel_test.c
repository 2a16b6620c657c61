/* SPDX-License-Identifier: BSD-3-Clause */
/* kernel_test.c: what the programs that pin down kernel behaviour share. */
#include "kernel/kernel_test.h"

#include <fcntl.h>
#include <inttypes.h>
#include <linux/io_uring.h>
#include <linux/memfd.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <sys/file.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/error.h"
#include "sys/memfd.h"
#include "sys/pagemap.h"
#include "sys/uffd.h"

#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif

#define SAVED_MAX 4

/* What is to be put back at the end; a test program is one process with one such state. */
static struct {
	pid_t owner; /* forked children put nothing back */
	int n;
	struct {
		char path[128], text[32];
	} files[SAVED_MAX];
} saved;

#define POOL_DIR "/sys/kernel/mm/hugepages/hugepages-2048kB/"

static bool read_file(const char *path, uint64_t *value)
{
	FILE *f = fopen(path, "re");
	bool good;

	if (!f)
		return false;
	good = fscanf(f, "%" SCNu64, value) == 1;
	fclose(f);
	return good;
}

static bool write_text(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC);
	ssize_t n = (ssize_t)strlen(text);
	bool good = fd >= 0 && write(fd, text, (size_t)n) == n;

	if (fd >= 0)
		close(fd);
	return good;
}

/* Only calls that a signal handler may make. */
static void restore(void)
{
	if (getpid() != saved.owner)
		return;
	while (saved.n) {
		saved.n--;
		if (!write_text(saved.files[saved.n].path, saved.files[saved.n].text))
			(void)!write(STDERR_FILENO, "a setting was not put back\n", 27);
	}
}

static void on_signal(int number)
{
	restore();
	signal(number, SIG_DFL);
	raise(number);
}

static void restore_at_end(void)
{
	static const int signals[] = {SIGINT, SIGTERM, SIGHUP, SIGALRM, SIGABRT, SIGSEGV, SIGBUS};

	saved.owner = getpid();
	atexit(restore);
	for (size_t i = 0; i < sizeof(signals) / sizeof(*signals); i++)
		signal(signals[i], on_signal);
}

/* What a file holds: its line, or of "always [never]" the word in brackets. */
static bool read_setting(const char *path, char *out, size_t size)
{
	char text[160] = "", *from = text, *to;
	FILE *f = fopen(path, "re");

	if (!f)
		return false;
	(void)!fgets(text, sizeof(text), f);
	fclose(f);
	if ((to = strchr(text, '['))) {
		from = to + 1;
		from[strcspn(from, "]")] = 0;
	}
	from[strcspn(from, "\n")] = 0;
	return snprintf(out, size, "%s", from) < (int)size;
}

bool kt_set(const char *path, const char *text)
{
	int i = 0;

	while (i < saved.n && strcmp(saved.files[i].path, path) != 0)
		i++;
	CHECK(i < SAVED_MAX && strlen(path) < sizeof(saved.files[i].path));
	if (i == saved.n) {
		if (!read_setting(path, saved.files[i].text, sizeof(saved.files[i].text)))
			return false;
		snprintf(saved.files[i].path, sizeof(saved.files[i].path), "%s", path);
		if (!saved.n)
			restore_at_end();
		saved.n++;
	}
	return write_text(path, text);
}

void kt_failed(const char *file, int line, const char *what)
{
	fprintf(stderr, "%s:%d: not so: %s (errno %d)\n", file, line, what, errno);
	fflush(NULL);
	/* Not exit(): other threads may be blocked in faults that nobody will serve. */
	restore();
	_exit(1);
}

void kt_check_eq(const char *file, int line, const char *what, int64_t a, int64_t b)
{
	char text[256];

	if (a == b)
		return;
	snprintf(text, sizeof(text), "%s: %" PRId64 " and %" PRId64, what, a, b);
	kt_failed(file, line, text);
}

void kt_skip(const char *format, ...)
{
	va_list ap;

	printf("skipped: ");
	va_start(ap, format);
	vprintf(format, ap);
	va_end(ap);
	printf("; runs as root on a kernel that has it (scripts/check, the lab's 6.12)\n");
	fflush(NULL);
	restore();
	_exit(77);
}

void kt_saw(const char *format, ...)
{
	va_list ap;

	printf("this kernel: ");
	va_start(ap, format);
	vprintf(format, ap);
	va_end(ap);
	printf("\n");
	fflush(stdout);
}

/* ---- memory ---- */

int kt_memfd(size_t bytes, bool huge)
{
	int fd = memfd_create("kernel-test", MFD_CLOEXEC | (huge ? MFD_HUGETLB | MFD_HUGE_2MB
								 : MFD_ALLOW_SEALING));

	CHECK(fd >= 0);
	CHECK(!ftruncate(fd, (off_t)bytes));
	return fd;
}

char *kt_map(int fd, size_t bytes)
{
	size_t room = bytes + KT_HUGE;
	char *at = mmap(NULL, room, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), *map;

	CHECK(at != MAP_FAILED);
	at = (char *)(((uintptr_t)at + KT_HUGE - 1) & ~(uintptr_t)(KT_HUGE - 1));
	map = mmap(at, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 0);
	CHECK(map != MAP_FAILED);
	return map;
}

int kt_punch(int fd, size_t offset, size_t bytes)
{
	return memfd_punch(fd, offset, bytes);
}

bool kt_cached(int fd, size_t offset)
{
	return lseek(fd, (off_t)offset, SEEK_DATA) == (off_t)offset;
}

bool kt_present(pid_t pid, const void *page)
{
	uint64_t at = (uint64_t)(uintptr_t)page & ~(uint64_t)(KT_PAGE - 1), bit = 0;
	int fd = pagemap_open(pid ? pid : getpid());

	CHECK(fd >= 0);
	CHECK_EQ(pagemap_present(fd, at, at + KT_PAGE, KT_PAGE, &bit), 0);
	close(fd);
	return bit & 1;
}

size_t kt_pmd_mapped(const void *start)
{
	FILE *f = fopen("/proc/self/smaps", "re");
	size_t kb = 0, found = 0, n = 0;
	bool inside = false;
	char *line = NULL;

	CHECK(f);
	while (getline(&line, &n, f) > 0) {
		uint64_t from, to;

		if (sscanf(line, "%" SCNx64 "-%" SCNx64 " ", &from, &to) == 2)
			inside = from <= (uintptr_t)start && (uintptr_t)start < to;
		else if (inside && sscanf(line, "ShmemPmdMapped: %zu", &kb) == 1)
			found = kb << 10;
	}
	free(line);
	fclose(f);
	return found;
}

void kt_settle(void)
{
	const size_t bytes = 64 * KT_PAGE;
	cpu_set_t all, one;

	CHECK(!sched_getaffinity(0, sizeof(all), &all));
	for (int cpu = 0; cpu < CPU_SETSIZE; cpu++) {
		int fd;
		char *map;

		if (!CPU_ISSET(cpu, &all))
			continue;
		CPU_ZERO(&one);
		CPU_SET(cpu, &one);
		CHECK(!sched_setaffinity(0, sizeof(one), &one));
		fd = kt_memfd(bytes, false);
		map = kt_map(fd, bytes);
		madvise(map, bytes, MADV_NOHUGEPAGE);
		memset(map, 1, bytes);
		munmap(map, bytes);
		close(fd);
	}
	CHECK(!sched_setaffinity(0, sizeof(all), &all));
}

void kt_make_thp(char *map, char fill)
{
	memset(map, fill, KT_HUGE);
	if (madvise(map, KT_HUGE, MADV_COLLAPSE))
		SKIP("MADV_COLLAPSE makes no huge page of shmem here (%s)", error_text(errno));
	memset(map, fill, KT_HUGE);
}

uint64_t kt_free_huge_pages(void)
{
	uint64_t n = 0, reserved = 0;

	read_file(POOL_DIR "free_hugepages", &n);
	read_file(POOL_DIR "resv_hugepages", &reserved);
	return n - reserved;
}

void kt_set_free_huge_pages(unsigned int pages)
{
	static int lock = -1;
	uint64_t total;
	char text[32];

	if (lock < 0) {
		/* One at a time on this machine, whichever build it is from; held to the end. */
		lock = open(POOL_DIR "nr_hugepages", O_RDONLY | O_CLOEXEC);
		if (lock < 0)
			SKIP("no huge pages of 2 MiB in this kernel");
		CHECK(!flock(lock, LOCK_EX));
	}
	CHECK(read_file(POOL_DIR "nr_hugepages", &total));
	snprintf(text, sizeof(text), "%" PRIu64, total - kt_free_huge_pages() + pages);
	if (!kt_set(POOL_DIR "nr_hugepages", text) || kt_free_huge_pages() != pages)
		SKIP("cannot have %u free huge pages of 2 MiB", pages);
}

void kt_need_huge_pages(unsigned int pages)
{
	if (kt_free_huge_pages() < pages)
		kt_set_free_huge_pages(pages);
}

/* ---- userfaultfd ---- */

int kt_uffd(uint64_t features)
{
	int fd = uffd_new(), r;

	if (fd < 0)
		SKIP("no userfaultfd that serves kernel faults (%s)", error_text(fd));
	r = uffd_api(fd, features, NULL);
	if (r)
		SKIP("userfaultfd features %#" PRIx64 " (%s)", features, error_text(r));
	return fd;
}

const char *kt_fill(char byte, size_t bytes)
{
	char *page = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	CHECK(page != MAP_FAILED);
	memset(page, byte, bytes);
	return page;
}

static bool wait_message(int uffd, struct uffd_msg *msg, int ms)
{
	struct pollfd p = {.fd = uffd, .events = POLLIN};

	return poll(&p, 1, ms) == 1 && uffd_read(uffd, msg, 1) == 1;
}

bool kt_message(int uffd, struct uffd_msg *msg)
{
	return wait_message(uffd, msg, 2000);
}

bool kt_no_message(int uffd)
{
	struct uffd_msg msg;

	return !wait_message(uffd, &msg, 100);
}

/* ---- other threads ---- */

static void *access_thread(void *arg)
{
	struct kt_access *a = arg;

	if (a->write)
		*a->at = a->value;
	else
		a->value = *a->at;
	a->done = true;
	return NULL;
}

static void access_go(struct kt_access *a)
{
	a->done = false;
	CHECK(!pthread_create(&a->thread, NULL, access_thread, a));
}

void kt_access_start(struct kt_access *a, char *at)
{
	*a = (struct kt_access){.at = at};
	access_go(a);
}

void kt_access_start_write(struct kt_access *a, char *at, char value)
{
	*a = (struct kt_access){.at = at, .value = value, .write = true};
	access_go(a);
}

static bool done_within(const struct kt_access *a, uint64_t ms)
{
	uint64_t end = clock_ns() + ms * NS_PER_MS;

	while (!a->done && clock_ns() < end)
		usleep(1000);
	return a->done;
}

bool kt_blocked(const struct kt_access *a)
{
	return !done_within(a, 100);
}

bool kt_done(const struct kt_access *a)
{
	return done_within(a, 2000);
}

char kt_access_end(struct kt_access *a)
{
	CHECK(kt_done(a));
	CHECK(!pthread_join(a->thread, NULL));
	return a->value;
}

/* ---- pins ---- */

int kt_try_pin(void *at, size_t bytes)
{
	struct io_uring_params params = {0};
	struct iovec v = {at, bytes};
	int ring = (int)syscall(SYS_io_uring_setup, 4, &params);

	if (ring < 0)
		SKIP("io_uring (%s)", error_text(errno));
	if (syscall(SYS_io_uring_register, ring, IORING_REGISTER_BUFFERS, &v, 1)) {
		int r = -errno;

		close(ring);
		return r;
	}
	return ring;
}

int kt_pin(void *at, size_t bytes)
{
	int ring = kt_try_pin(at, bytes);

	CHECK(ring >= 0);
	return ring;
}

void kt_unpin(int ring)
{
	CHECK(!syscall(SYS_io_uring_register, ring, IORING_UNREGISTER_BUFFERS, NULL, 0));
	close(ring);
}
