/* SPDX-License-Identifier: BSD-3-Clause */
/* features.c: what this kernel can do, found out by doing it. */
#include "sys/features.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/error.h"
#include "base/fd.h"
#include "sys/memfd.h"
#include "sys/pagemap.h"
#include "sys/procinfo.h"
#include "sys/uffd.h"

/*
 * Theory of operation. Each try_...() makes a small file, a mapping and a userfaultfd of its own,
 * does the one thing in question and undoes everything; nothing is concluded from version numbers,
 * and feature bits only from UFFDIO_API's own answer. What fails leaves a sentence in why[]. Only
 * dropping another process's page-table entries needs another process: a child that maps a file,
 * says where, and waits to be killed. There may be other threads, so it makes system calls only.
 * Keeps nothing.
 */

#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif

#define PAGE_BYTES ((uint64_t)4096)
#define HUGE_BYTES ((uint64_t)2 << 20)
#define TRY_PAGES  256

static const char *const names[] = {
	[SYS_UFFD] = "uffd",
	[SYS_UFFD_POISON] = "uffd-poison",
	[SYS_UFFD_MOVE] = "uffd-move",
	[SYS_WP_SHMEM] = "wp-shmem",
	[SYS_WP_HUGETLB] = "wp-hugetlb",
	[SYS_MINOR_SHMEM] = "minor-shmem",
	[SYS_CONTINUE_WP] = "continue-wp",
	[SYS_PAGEMAP_SCAN] = "pagemap-scan",
	[SYS_ZAP_SCAN] = "zap-scan",
	[SYS_COLLAPSE_SAFE] = "collapse-safe",
};
_Static_assert(sizeof(names) / sizeof(*names) == SYS_FEATURES, "every feature has a name");

const char *sys_feature_name(enum sys_feature f)
{
	return f < SYS_FEATURES ? names[f] : "?";
}

static void missing(struct sys_features *s, enum sys_feature f, const char *format, ...)
	__attribute__((format(printf, 3, 4)));

static void missing(struct sys_features *s, enum sys_feature f, const char *format, ...)
{
	va_list ap;

	va_start(ap, format);
	vsnprintf(s->why[f], sizeof(s->why[f]), format, ap);
	va_end(ap);
}

/* ---- one mapping with a userfaultfd ---- */

struct field {
	int fd, uffd;
	char *room; /* what is to be unmapped; the mapping is somewhere inside */
	size_t room_bytes;
	char *map;
	uint64_t at, bytes; /* the mapping, as the ioctls want it */
};

static void field_end(struct field *f)
{
	fd_close(&f->uffd);
	if (f->room != MAP_FAILED)
		munmap(f->room, f->room_bytes);
	fd_close(&f->fd);
}

/* fd: consumed; a negative one is the error to give back. */
static int field_map(struct field *f, int fd, uint64_t bytes)
{
	void *map;

	*f = (struct field){
		.fd = fd, .uffd = -1, .bytes = bytes, .room = MAP_FAILED, .map = MAP_FAILED};
	if (fd < 0)
		return fd;
	map = mmap(NULL, bytes + HUGE_BYTES, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (map == MAP_FAILED)
		return -errno;
	f->room = map;
	f->room_bytes = bytes + HUGE_BYTES;
	f->at = ((uint64_t)(uintptr_t)f->room + HUGE_BYTES - 1) & ~(HUGE_BYTES - 1);
	/* NORESERVE: nothing is taken from a pool of huge pages by just looking. */
	map = mmap((void *)(uintptr_t)f->at, bytes, PROT_READ | PROT_WRITE,
		   MAP_SHARED | MAP_FIXED | MAP_NORESERVE, fd, 0);
	if (map == MAP_FAILED)
		return -errno;
	f->map = map;
	return 0;
}

static int field_register(struct field *f, uint64_t features, uint64_t modes)
{
	int r;

	f->uffd = uffd_new();
	if (f->uffd < 0)
		return f->uffd;
	r = uffd_api(f->uffd, features, NULL);
	return r ? r : uffd_register(f->uffd, f->at, f->bytes, modes);
}

/* ---- userfaultfd ---- */

static void try_poison(struct sys_features *s)
{
	struct field f;
	int r = field_map(&f, memfd_make("try-poison", HUGE_BYTES), HUGE_BYTES);

	if (!r)
		r = field_register(&f, 0, UFFDIO_REGISTER_MODE_MISSING);
	if (!r)
		r = uffd_poison(f.uffd, f.at, PAGE_BYTES);
	field_end(&f);
	s->uffd_poison = !r;
	if (r)
		missing(s, SYS_UFFD_POISON, "UFFDIO_POISON (Linux 6.6): %s", error_text(r));
}

/* The headers of Debian 12 know nothing of it. */
struct move_arg {
	uint64_t dst, src, len, mode;
	int64_t moved;
};
#define MOVE_IOCTL _IOWR(UFFDIO, 0x05, struct move_arg)

static int move_page(char *pages)
{
	struct uffdio_register reg = {.range = {(uint64_t)(uintptr_t)pages, PAGE_BYTES},
				      .mode = UFFDIO_REGISTER_MODE_MISSING};
	struct move_arg move = {
		.dst = reg.range.start, .src = reg.range.start + PAGE_BYTES, .len = PAGE_BYTES};
	FD_OWNED uffd = uffd_new();
	int r;

	if (uffd < 0)
		return uffd;
	pages[PAGE_BYTES] = 1;
	/* A page that a forked child shares is not moved; nobody forks meanwhile. */
	r = uffd_api(uffd, 0, NULL);
	if (!r)
		r = uffd_register(uffd, reg.range.start, PAGE_BYTES, reg.mode);
	if (!r && ioctl(uffd, MOVE_IOCTL, &move))
		r = -errno;
	return r;
}

static void try_move(struct sys_features *s)
{
	char *pages = mmap(NULL, 2 * PAGE_BYTES, PROT_READ | PROT_WRITE,
			   MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	int r = pages == MAP_FAILED ? -errno : move_page(pages);

	if (pages != MAP_FAILED)
		munmap(pages, 2 * PAGE_BYTES);
	s->uffd_move = !r;
	if (r)
		missing(s, SYS_UFFD_MOVE, "UFFDIO_MOVE (Linux 6.8): %s", error_text(r));
}

/* Protects a hole and a page. */
static int protect(struct field *f)
{
	int r = field_register(f, UFFD_FEATURE_PAGEFAULT_FLAG_WP,
			       UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_WP);

	return r ? r : uffd_protect(f->uffd, f->at, f->bytes);
}

static void try_wp_shmem(struct sys_features *s)
{
	struct field f;
	int r = field_map(&f, memfd_make("try-wp", HUGE_BYTES), HUGE_BYTES);

	if (!r) {
		*(volatile char *)f.map = 1;
		r = protect(&f);
	}
	field_end(&f);
	s->wp_shmem = !r;
	if (r)
		missing(s, SYS_WP_SHMEM, "write protection of shmem (Linux 5.19): %s",
			error_text(r));
}

static int huge_memfd(uint64_t bytes)
{
	int fd = memfd_create("try-hugetlb", MFD_CLOEXEC | MFD_HUGETLB | (21U << 26)), r;

	if (fd >= 0 && !ftruncate(fd, (off_t)bytes))
		return fd;
	r = -errno;
	fd_close(&fd);
	return r;
}

static void try_wp_hugetlb(struct sys_features *s)
{
	struct field f;
	int r = field_map(&f, huge_memfd(HUGE_BYTES), HUGE_BYTES);

	if (!r)
		r = protect(&f);
	field_end(&f);
	s->wp_hugetlb = !r;
	if (r)
		missing(s, SYS_WP_HUGETLB, "write protection of 2 MiB hugetlb: %s", error_text(r));
}

/* Maps a cached page by UFFDIO_CONTINUE with this mode. */
static int continue_page(uint64_t modes, uint64_t mode)
{
	struct field f;
	int r = field_map(&f, memfd_make("try-continue", HUGE_BYTES), HUGE_BYTES);
	const char c = 1;

	if (!r)
		r = memfd_write(f.fd, &c, 1, 0);
	if (!r)
		r = field_register(&f, UFFD_FEATURE_PAGEFAULT_FLAG_WP, modes);
	if (!r) {
		int64_t done = uffd_continue(f.uffd, f.at, PAGE_BYTES, mode);

		r = done < 0 ? (int)done : done == (int64_t)PAGE_BYTES ? 0 : -EIO;
	}
	field_end(&f);
	return r;
}

static void try_continue(struct sys_features *s)
{
	int r = continue_page(UFFDIO_REGISTER_MODE_MINOR, 0);

	s->minor_shmem = !r;
	if (r)
		missing(s, SYS_MINOR_SHMEM, "minor faults of shmem: %s", error_text(r));
	r = continue_page(UFFDIO_REGISTER_MODE_MINOR | UFFDIO_REGISTER_MODE_WP,
			  UFFDIO_CONTINUE_MODE_WP);
	s->continue_wp = !r;
	if (r)
		missing(s, SYS_CONTINUE_WP, "UFFDIO_CONTINUE_MODE_WP (Linux 6.4): %s",
			error_text(r));
}

/* ---- huge pages of shmem ---- */

/* -EAGAIN when the hole was left alone, 0 when it was filled, -errno when it could not be tried. */
static int collapse_over_hole(void)
{
	const uint64_t hole = 7 * PAGE_BYTES;
	uint64_t start, stop;
	struct field f;
	int r = field_map(&f, memfd_make("try-collapse", HUGE_BYTES), HUGE_BYTES);

	if (!r) {
		memset(f.map, 1, HUGE_BYTES);
		r = memfd_punch(f.fd, hole, PAGE_BYTES);
	}
	if (!r)
		r = field_register(&f, 0, UFFDIO_REGISTER_MODE_MISSING);
	if (!r) {
		madvise(f.map, HUGE_BYTES, MADV_COLLAPSE);
		r = memfd_next_data(f.fd, hole, hole + PAGE_BYTES, &start, &stop) ? 0 : -EAGAIN;
	}
	field_end(&f);
	return r;
}

static void try_collapse(struct sys_features *s)
{
	int r = collapse_over_hole();

	s->collapse_safe = r == -EAGAIN;
	if (!r)
		missing(s, SYS_COLLAPSE_SAFE,
			"collapsing into a huge page fills evicted holes with zeroes (before Linux "
			"6.12)");
	else if (r != -EAGAIN)
		missing(s, SYS_COLLAPSE_SAFE, "collapse over a hole: %s", error_text(r));
}

/* The chosen word of "always within_size advise [never] deny force". */
static void read_choice(const char *path, char *out, size_t size)
{
	char text[128] = "", *open, *close;
	FILE *f = fopen(path, "re");

	out[0] = 0;
	if (!f)
		return;
	if (fgets(text, sizeof(text), f) && (open = strchr(text, '[')) &&
	    (close = strchr(open, ']'))) {
		*close = 0;
		snprintf(out, size, "%s", open + 1);
	}
	fclose(f);
}

static void count_policy(struct sys_features *s, const char *policy)
{
	if (!strcmp(policy, "always") || !strcmp(policy, "within_size") || !strcmp(policy, "force"))
		s->shmem_thp = true;
	if (!strcmp(policy, "advise"))
		s->shmem_thp_advised = true;
}

/* One policy for all sizes, and since Linux 6.11 one for each, which may be to inherit it. */
static void read_thp(struct sys_features *s)
{
	static const char dir[] = "/sys/kernel/mm/transparent_hugepage";
	char path[128], policy[16];

	snprintf(path, sizeof(path), "%s/shmem_enabled", dir);
	read_choice(path, s->shmem_thp_policy, sizeof(s->shmem_thp_policy));
	count_policy(s, s->shmem_thp_policy);
	for (unsigned int kb = 8; kb <= 2048; kb *= 2) {
		snprintf(path, sizeof(path), "%s/hugepages-%ukB/shmem_enabled", dir, kb);
		read_choice(path, policy, sizeof(policy));
		count_policy(s, policy);
	}
}

static void read_pools(struct sys_features *s)
{
	struct procinfo_pool pool;

	if (!procinfo_pool(HUGE_BYTES, &pool)) {
		s->hugetlb_2m_total = pool.total_pages;
		s->hugetlb_2m_free = pool.free_pages - pool.reserved_pages;
	}
	if (!procinfo_pool(UINT64_C(1) << 30, &pool)) {
		s->hugetlb_1g_total = pool.total_pages;
		s->hugetlb_1g_free = pool.free_pages - pool.reserved_pages;
	}
}

/* ---- another process's page table ---- */

/* What the child says: where the file is mapped, or why it is not. */
struct report {
	uint64_t at;
	int error;
};

static void subject(int fd, int tell, pid_t parent) __attribute__((noreturn));

/* The child: maps the file, touches it, reports, and waits to be killed. */
static void subject(int fd, int tell, pid_t parent)
{
	struct report report = {0};
	struct field f;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (getppid() != parent)
		_exit(1);
	report.error = field_map(&f, fd, TRY_PAGES * PAGE_BYTES);
	/* Registered as guest RAM is: write protection turns fault-around off. */
	if (!report.error)
		report.error =
			field_register(&f, UFFD_FEATURE_PAGEFAULT_FLAG_WP, UFFDIO_REGISTER_MODE_WP);
	for (uint64_t i = 0; i < TRY_PAGES && !report.error; i++)
		((volatile char *)f.map)[i * PAGE_BYTES] = 7;
	report.at = f.at;
	if (write(tell, &report, sizeof(report)) == sizeof(report))
		for (;;)
			pause();
	_exit(1);
}

static uint64_t count_bits(const uint64_t *bitmap, unsigned int words)
{
	uint64_t n = 0;

	for (unsigned int i = 0; i < words; i++)
		n += (uint64_t)__builtin_popcountll(bitmap[i]);
	return n;
}

static int count_present(pid_t pid, uint64_t at, uint64_t *out)
{
	uint64_t bitmap[TRY_PAGES / 64];
	FD_OWNED fd = pagemap_open(pid);
	int r;

	if (fd < 0)
		return fd;
	r = pagemap_present(fd, at, at + TRY_PAGES * PAGE_BYTES, PAGE_BYTES, bitmap);
	if (!r)
		*out = count_bits(bitmap, TRY_PAGES / 64);
	return r;
}

/*
 * Most of the pages must go from the page table and all must stay in the file. (The few that were
 * touched last may not be on the LRU yet, and stay mapped.)
 */
static int zap_subject(pid_t pid, int fd, uint64_t at)
{
	struct iovec range = {(void *)(uintptr_t)at, TRY_PAGES * PAGE_BYTES};
	FD_OWNED pidfd = (int)syscall(SYS_pidfd_open, pid, 0);
	uint64_t before = 0, after = 0;
	int r;

	if (pidfd < 0)
		return -errno;
	r = count_present(pid, at, &before);
	if (!r)
		r = pageout_zap(pidfd, &range, 1);
	if (!r)
		r = count_present(pid, at, &after);
	if (r)
		return r;
	if (memfd_allocated(fd) < TRY_PAGES * PAGE_BYTES)
		return -ENODATA;
	return before == TRY_PAGES && after < TRY_PAGES / 2 ? 0 : -EOPNOTSUPP;
}

static int try_zap(void)
{
	FD_OWNED fd = memfd_make("try-zap", TRY_PAGES * PAGE_BYTES);
	pid_t pid, parent = getpid();
	struct report report;
	int ends[2], r;

	if (fd < 0)
		return fd;
	if (pipe2(ends, O_CLOEXEC))
		return -errno;
	pid = fork();
	if (!pid)
		subject(fd, ends[1], parent);
	close(ends[1]);
	r = pid < 0 ? -errno : 0;
	if (!r)
		r = read(ends[0], &report, sizeof(report)) == sizeof(report) ? report.error
									     : -ECHILD;
	if (!r)
		r = zap_subject(pid, fd, report.at);
	close(ends[0]);
	if (pid > 0) {
		kill(pid, SIGKILL);
		while (waitpid(pid, NULL, 0) < 0 && errno == EINTR)
			;
	}
	return r;
}

static void try_zap_scan(struct sys_features *s)
{
	uint64_t swap = 0;
	int r = procinfo_swap(&swap);

	/* With swap the try itself would swap its pages out. */
	if (!r && swap) {
		missing(s, SYS_ZAP_SCAN,
			"the host has swap, which a remote pageout would use instead");
		return;
	}
	if (!r)
		r = try_zap();
	s->zap_scan = !r;
	if (r)
		missing(s, SYS_ZAP_SCAN,
			"process_madvise(MADV_PAGEOUT) of another process does not drop its "
			"page-table entries: %s",
			error_text(r));
}

static void try_pagemap_scan(struct sys_features *s)
{
	FD_OWNED fd = pagemap_open(getpid());
	int r = fd < 0 ? fd : pagemap_can_scan(fd) ? 0 : -ENOTTY;

	s->pagemap_scan = !r;
	if (r)
		missing(s, SYS_PAGEMAP_SCAN, "PAGEMAP_SCAN (Linux 6.7): %s", error_text(r));
}

int sys_features_probe_fast(struct sys_features *out)
{
	struct sys_features s = {0};
	int r = uffd_probe(&s.uffd_features);

	s.uffd = !r;
	if (r)
		missing(&s, SYS_UFFD, "userfaultfd for kernel faults: %s", error_text(r));
	try_poison(&s);
	try_move(&s);
	try_wp_shmem(&s);
	try_wp_hugetlb(&s);
	try_continue(&s);
	try_pagemap_scan(&s);
	read_thp(&s);
	read_pools(&s);
	*out = s;
	return 0;
}

void sys_features_probe_slow(struct sys_features *s)
{
	try_zap_scan(s);
	try_collapse(s);
}

int sys_features_probe(struct sys_features *out)
{
	int r = sys_features_probe_fast(out);

	if (!r)
		sys_features_probe_slow(out);
	return r;
}
