/* SPDX-License-Identifier: BSD-3-Clause */
/* kernel_test.h: what the programs that pin down kernel behaviour share. */
#ifndef KERNEL_KERNEL_TEST_H
#define KERNEL_KERNEL_TEST_H

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/types.h>

/*
 * Each program states what the kernel does, as the code relies on it, with CHECK(); it asserts
 * behaviour, never timing. What a kernel lacks is SKIP()ped with the name of it; where kernels are
 * known to differ, the set of known behaviours is asserted and kt_saw() prints which it was.
 * System-wide state (the huge page pool, transparent huge pages) is put back at exit, also by
 * SIGINT, SIGTERM and a failed CHECK().
 */

#define KT_PAGE ((size_t)4096)
#define KT_HUGE ((size_t)2 << 20)

#define CHECK(condition)                                           \
	do {                                                       \
		if (!(condition))                                  \
			kt_failed(__FILE__, __LINE__, #condition); \
	} while (0)

/* Asserts a == b and prints both when not. */
#define CHECK_EQ(a, b) kt_check_eq(__FILE__, __LINE__, #a " == " #b, (int64_t)(a), (int64_t)(b))

/* Ends the program as skipped: nothing of it can be tried here. */
#define SKIP(...) kt_skip(__VA_ARGS__)

void kt_failed(const char *file, int line, const char *what) __attribute__((noreturn));
void kt_check_eq(const char *file, int line, const char *what, int64_t a, int64_t b);
void kt_skip(const char *format, ...) __attribute__((noreturn, format(printf, 1, 2)));
/* Prints which of the known behaviours this kernel has. */
void kt_saw(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* ---- memory ---- */

/* A memfd of so many bytes; huge: of 2 MiB pages (never fails for want of them). */
int kt_memfd(size_t bytes, bool huge);
/* Maps all of it, shared, 2 MiB-aligned. */
char *kt_map(int fd, size_t bytes);
/* Punches a hole; 0 or -errno. */
int kt_punch(int fd, size_t offset, size_t bytes);
/* Is the page in the page cache of the (tmpfs) file? */
bool kt_cached(int fd, size_t offset);
/* Is the page of the process in its page table? pid 0: this one. */
bool kt_present(pid_t pid, const void *page);
/* Bytes of shmem that a mapping of this process has mapped as huge pages. */
size_t kt_pmd_mapped(const void *start);
/*
 * New pages sit in per-CPU batches of the LRU for a while, where reclaim does not see them and
 * which hold a reference. Pushes them out by filling every CPU's batch with pages of its own.
 */
void kt_settle(void);
/* Makes [map, map + 2 MiB) one huge page, full of `fill`; skips when the kernel cannot. */
void kt_make_thp(char *map, char fill);

/*
 * Makes sure that so many 2 MiB pages are free, growing the pool; put back at exit. Skips when
 * they cannot be had. Tests that call it hold the resource lock "hugetlb".
 */
void kt_need_huge_pages(unsigned int pages);
/* Sets the pool to just as many more than are in use; 0 makes it dry. Put back at exit. */
void kt_set_free_huge_pages(unsigned int pages);
uint64_t kt_free_huge_pages(void);

/*
 * Writes a setting of /sys or /proc that is put back at exit (of "always [never]" files the chosen
 * word). False when there is no such file or it takes no such value.
 */
bool kt_set(const char *path, const char *text);

/* ---- userfaultfd ---- */

/* A non-blocking userfaultfd with these features; skips when it cannot be made. */
int kt_uffd(uint64_t features);
/* One page (4 KiB or 2 MiB) full of one byte, to copy from. */
const char *kt_fill(char byte, size_t bytes);
/* The next message within two seconds; false when none comes (within 100 ms, if not expected). */
struct uffd_msg;
bool kt_message(int uffd, struct uffd_msg *msg);
bool kt_no_message(int uffd);

/* ---- other threads ---- */

/* Reads or writes one byte in a thread of its own, which may block in a fault. */
struct kt_access {
	pthread_t thread;
	volatile char *at;
	char value; /* written, or what was read */
	bool write;
	_Atomic bool done;
};
void kt_access_start(struct kt_access *a, char *at); /* reads */
void kt_access_start_write(struct kt_access *a, char *at, char value);
/* Has it returned, given 100 ms (blocked) or up to two seconds (done)? */
bool kt_blocked(const struct kt_access *a);
bool kt_done(const struct kt_access *a);
/* Waits for its end (checks that it comes) and returns the byte. */
char kt_access_end(struct kt_access *a);

/* ---- pins ---- */

/* Pins memory as a registered buffer of a new io_uring, as DMA does; gives the ring. */
int kt_pin(void *at, size_t bytes);
/* The same; -errno when the memory cannot be pinned. */
int kt_try_pin(void *at, size_t bytes);
/* Unpins it and closes the ring (which by itself would unpin later, from a worker). */
void kt_unpin(int ring);

#endif
