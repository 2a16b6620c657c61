/* SPDX-License-Identifier: BSD-3-Clause */
/* heap.c: preloaded into a program, makes its large anonymous memory attached shared memory. */
#undef _FILE_OFFSET_BITS /* the headers would give the name mmap64 to a function called mmap */
#include <dlfcn.h>
#include <errno.h>
#include <linux/memfd.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

/*
 * Theory of operation
 *
 * For benchmarks, not for use: it lets an ordinary program (Redis, memcached, a loop) run at full
 * speed in memory that Ebb manages. It is preloaded before libebb-attach.so:
 *
 *   EBB_HEAP_BYTES=4294967296 EBB_HEAP_MIN=1048576 EBB_HEAP_KIND=small|thp|hugetlb
 *
 * The first anonymous mapping of EBB_HEAP_MIN or more makes the arena: one memfd, mapped shared
 * and whole, which libebb-attach.so sees and attaches. That mapping and all later ones are parts
 * of it. What a program expects of anonymous memory holds for them: it is zero at first, and after
 * munmap(), MADV_DONTNEED and a mapping over it, for which the pages are removed from the file
 * (MADV_REMOVE; that the library is told of). MADV_FREE is refused, as by an old kernel. What does
 * not hold: a child that is forked has none of it (Ebb's rule), so a program that forks to save its
 * memory must be told not to. libc's own malloc() calls mmap() by itself and is not seen: preload
 * an allocator that is a library of its own (jemalloc).
 *
 * Free space is a bit per page, under one lock. A mapping that does not fit is left to the kernel.
 */

#define PAGE	  UINT64_C(4096)
#define HUGE	  (UINT64_C(2) << 20)
#define WORD_BITS 64
#define EXPORT	  __attribute__((visibility("default")))

static struct {
	pthread_mutex_t lock;
	bool tried;
	uint8_t *at;
	uint64_t bytes, min, grain, next;
	uint64_t *used; /* a bit a grain */
	void *(*mmap)(void *, size_t, int, int, int, off_t);
	int (*munmap)(void *, size_t);
	int (*madvise)(void *, size_t, int);
	void *(*mremap)(void *, size_t, size_t, int, ...);
} heap = {.lock = PTHREAD_MUTEX_INITIALIZER};

/* What is called under the lock may allocate, which must not come back here. */
static __thread bool inside;

static uint64_t number(const char *name, uint64_t otherwise)
{
	const char *text = getenv(name);

	return text ? strtoull(text, NULL, 0) : otherwise;
}

/* The next library's functions: those of libebb-attach.so, where it is preloaded too. */
static void find_real(void)
{
	if (heap.mmap)
		return;
	heap.munmap = dlsym(RTLD_NEXT, "munmap");
	heap.madvise = dlsym(RTLD_NEXT, "madvise");
	heap.mremap = dlsym(RTLD_NEXT, "mremap");
	heap.mmap = dlsym(RTLD_NEXT, "mmap");
}

/* With the lock held. */
static void make_arena(void)
{
	const char *kind = getenv("EBB_HEAP_KIND");
	bool huge = kind && strcmp(kind, "hugetlb") == 0, thp = kind && strcmp(kind, "thp") == 0;
	uint64_t align = huge || thp ? HUGE : PAGE;
	uint8_t *space;
	int fd;

	heap.tried = true;
	heap.grain = huge ? HUGE : PAGE;
	heap.min = number("EBB_HEAP_MIN", UINT64_C(1) << 20);
	heap.bytes = number("EBB_HEAP_BYTES", UINT64_C(1) << 30) & ~(HUGE - 1);
	heap.used = heap.mmap(NULL, heap.bytes / heap.grain / 8 + PAGE, PROT_READ | PROT_WRITE,
			      MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	fd = memfd_create("heap", MFD_CLOEXEC | MFD_ALLOW_SEALING |
					  (huge ? MFD_HUGETLB | MFD_HUGE_2MB : 0));
	if (heap.used == MAP_FAILED || fd < 0 || ftruncate(fd, (off_t)heap.bytes))
		return;
	space = heap.mmap(NULL, heap.bytes + align, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (space == MAP_FAILED)
		return;
	space = (uint8_t *)(((uintptr_t)space + align - 1) & ~(align - 1));
	space = heap.mmap(space, heap.bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 0);
	if (space == MAP_FAILED)
		return;
	heap.madvise(space, heap.bytes, thp ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
	heap.at = space;
	close(fd);
}

static bool is_ours(const void *addr, size_t len)
{
	const uint8_t *p = addr;

	return heap.at && p >= heap.at && len <= heap.bytes &&
	       (uint64_t)(p - heap.at) <= heap.bytes - len;
}

static bool is_used(uint64_t grain)
{
	return heap.used[grain / WORD_BITS] >> (grain % WORD_BITS) & 1;
}

static void mark(uint64_t first, uint64_t n, bool used)
{
	for (uint64_t i = first; i < first + n; i++)
		if (used)
			heap.used[i / WORD_BITS] |= UINT64_C(1) << (i % WORD_BITS);
		else
			heap.used[i / WORD_BITS] &= ~(UINT64_C(1) << (i % WORD_BITS));
}

/* The first free run of n grains in [from, to); `to` when there is none. */
static uint64_t free_run(uint64_t from, uint64_t to, uint64_t n)
{
	uint64_t run = 0;

	for (uint64_t i = from; i < to; i++) {
		run = is_used(i) ? 0 : run + 1;
		if (run == n)
			return i + 1 - n;
	}
	return to;
}

/* With the lock held; NULL: no room. */
static void *take(size_t len)
{
	uint64_t n = (len + heap.grain - 1) / heap.grain, all = heap.bytes / heap.grain, at;

	at = free_run(heap.next, all, n);
	if (at == all)
		at = free_run(0, all, n);
	if (at == all)
		return NULL;
	mark(at, n, true);
	heap.next = at + n;
	return heap.at + at * heap.grain;
}

/* Makes [addr, addr + len) zero, whole grains by giving them up; their number and the first. */
static uint64_t empty(void *addr, size_t len, uint64_t *first)
{
	uint64_t from = (uint64_t)((uint8_t *)addr - heap.at);
	uint64_t to = from + ((len + PAGE - 1) & ~(PAGE - 1)), lo, hi;

	*first = (from + heap.grain - 1) / heap.grain;
	lo = *first * heap.grain;
	hi = to / heap.grain * heap.grain;
	if (lo >= hi) {
		memset(heap.at + from, 0, to - from);
		return 0;
	}
	memset(heap.at + from, 0, lo - from);
	memset(heap.at + hi, 0, to - hi);
	if (heap.madvise(heap.at + lo, hi - lo, MADV_REMOVE))
		memset(heap.at + lo, 0, hi - lo);
	return (hi - lo) / heap.grain;
}

EXPORT void *mmap(void *addr, size_t len, int prot, int flags, int fd, off_t off)
{
	void *p = NULL;

	find_real();
	if (inside || fd >= 0 || !(flags & MAP_ANONYMOUS) || (flags & (MAP_SHARED | MAP_STACK)))
		return heap.mmap(addr, len, prot, flags, fd, off);
	if ((flags & MAP_FIXED) && is_ours(addr, len)) {
		uint64_t first;

		empty(addr, len, &first);
		return addr;
	}
	if (flags & (MAP_FIXED | MAP_FIXED_NOREPLACE))
		return heap.mmap(addr, len, prot, flags, fd, off);
	inside = true;
	pthread_mutex_lock(&heap.lock);
	if (!heap.tried && len >= number("EBB_HEAP_MIN", UINT64_C(1) << 20))
		make_arena();
	if (heap.at && len >= heap.min)
		p = take(len);
	pthread_mutex_unlock(&heap.lock);
	inside = false;
	return p ? p : heap.mmap(addr, len, prot, flags, fd, off);
}
EXPORT void *mmap64(void *addr, size_t len, int prot, int flags, int fd, off_t off)
	__attribute__((alias("mmap")));

EXPORT int munmap(void *addr, size_t len)
{
	uint64_t first, n;

	find_real();
	if (!is_ours(addr, len))
		return heap.munmap(addr, len);
	n = empty(addr, len, &first);
	pthread_mutex_lock(&heap.lock);
	mark(first, n, false);
	pthread_mutex_unlock(&heap.lock);
	return 0;
}

EXPORT int madvise(void *addr, size_t len, int advice)
{
	uint64_t first;

	find_real();
	if (!is_ours(addr, len))
		return heap.madvise(addr, len, advice);
	if (advice == MADV_DONTNEED) {
		empty(addr, len, &first);
		return 0;
	}
	if (advice == MADV_FREE) {
		errno = EINVAL;
		return -1;
	}
	return heap.madvise(addr, len, advice);
}

EXPORT void *mremap(void *addr, size_t from, size_t to, int flags, ...)
{
	find_real();
	/* Callers copy then. With a fixed target: not used by those this is made for. */
	if (is_ours(addr, from) || (flags & MREMAP_FIXED)) {
		errno = ENOMEM;
		return MAP_FAILED;
	}
	return heap.mremap(addr, from, to, flags);
}
