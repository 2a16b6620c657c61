/* SPDX-License-Identifier: BSD-3-Clause */
/* folio_probe_trial.c: whether a loaded folio probe tells pinned from idle on this kernel. */
#include "sys/folio_probe_trial.h"

#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <unistd.h>

#include "base/fd.h"
#include "sys/memfd.h"

/*
 * Theory of operation. The probe's arithmetic rests on how a kernel counts; the trial checks it
 * against cases whose answer is known. A page that was just added may still sit in a per-CPU batch
 * of the LRU, which holds a reference, so many pages are made and those asked for are picked among
 * the ones that read as idle; the batches hold at most 31 pages a CPU. The pin is vmsplice()'s: the
 * page sits in a pipe until the pipe is closed. Everything is undone before it returns.
 */

#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif

#define PAGE_BYTES   4096
#define TRIAL_PAGES  256
#define HUGE_BYTES   (UINT64_C(2) << 20)
#define HUGE_PAGES   (HUGE_BYTES / PAGE_BYTES)
#define TRIES	     3
#define FAR_OFF_PAGE (UINT64_C(1) << 40)

static void touch(char *map, uint64_t pages)
{
	for (uint64_t i = 0; i < pages; i++)
		((volatile char *)map)[i * PAGE_BYTES] = 1;
}

static int verdict_at(struct folio_probe *p, int fd, uint64_t index)
{
	uint8_t verdict;
	int r = folio_probe_check(p, fd, &index, 1, &verdict);

	return r ? r : verdict;
}

/* The first idle page of [from, to), -ENOENT when there is none, -errno. */
static int64_t find_idle(struct folio_probe *p, int fd, uint64_t from, uint64_t to)
{
	for (uint64_t i = from; i < to; i++) {
		int v = verdict_at(p, fd, i);

		if (v < 0)
			return v;
		if (v == FOLIO_IDLE)
			return (int64_t)i;
	}
	return -ENOENT;
}

/* The verdict of a page while a pipe holds it. */
static int verdict_pinned(struct folio_probe *p, int fd, char *map, uint64_t index)
{
	struct iovec v = {map + index * PAGE_BYTES, PAGE_BYTES};
	int ends[2], r;

	if (pipe2(ends, O_CLOEXEC))
		return -errno;
	r = vmsplice(ends[1], &v, 1, 0) == PAGE_BYTES ? verdict_at(p, fd, index) : -errno;
	close(ends[0]);
	close(ends[1]);
	return r;
}

/* a is mapped whole, b is a second mapping of the first half. */
static int try_small(struct folio_probe *p, int fd, char *a, struct error *e)
{
	int64_t twice = find_idle(p, fd, 0, TRIAL_PAGES / 2);
	int64_t once = find_idle(p, fd, TRIAL_PAGES / 2, TRIAL_PAGES);
	int pinned;

	if (twice < 0 || once < 0)
		return error_set(e, ENOTSUP, ERROR_UNSUPPORTED,
				 "the folio probe does not understand this kernel: no idle page "
				 "that is mapped %s reads as idle",
				 once < 0 ? "once" : "twice");
	pinned = verdict_pinned(p, fd, a, (uint64_t)once);
	if (pinned < 0)
		return error_set(e, ENOTSUP, ERROR_UNSUPPORTED,
				 "the folio probe cannot be tried: vmsplice: %s",
				 error_text(pinned));
	if (pinned != FOLIO_BUSY || verdict_pinned(p, fd, a, (uint64_t)twice) != FOLIO_BUSY)
		return error_set(e, ENOTSUP, ERROR_UNSUPPORTED,
				 "the folio probe does not understand this kernel: a pinned page "
				 "does not read as busy");
	if (memfd_punch(fd, (uint64_t)once * PAGE_BYTES, PAGE_BYTES) ||
	    verdict_at(p, fd, (uint64_t)once) != FOLIO_HOLE ||
	    verdict_at(p, fd, FAR_OFF_PAGE) != FOLIO_HOLE)
		return error_set(e, ENOTSUP, ERROR_UNSUPPORTED,
				 "the folio probe does not understand this kernel: a hole does not "
				 "read as one");
	return 0;
}

int folio_probe_trial(struct folio_probe *p, struct error *e)
{
	int r = 0;

	for (int i = 0; i < TRIES; i++) {
		const size_t bytes = (size_t)TRIAL_PAGES * PAGE_BYTES;
		FD_OWNED fd = memfd_make("folio-probe-trial", bytes);
		char *a, *b;

		if (fd < 0)
			return error_set(e, ENOTSUP, ERROR_UNSUPPORTED,
					 "the folio probe cannot be tried: %s", error_text(fd));
		a = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
		b = mmap(NULL, bytes / 2, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
		if (a == MAP_FAILED || b == MAP_FAILED) {
			r = error_set(e, ENOTSUP, ERROR_UNSUPPORTED,
				      "the folio probe cannot be tried: %s", error_text(errno));
		} else {
			madvise(a, bytes, MADV_NOHUGEPAGE);
			touch(a, TRIAL_PAGES);
			touch(b, TRIAL_PAGES / 2);
			r = try_small(p, fd, a, e);
		}
		if (a != MAP_FAILED)
			munmap(a, bytes);
		if (b != MAP_FAILED)
			munmap(b, bytes / 2);
		if (!r)
			break;
	}
	return r;
}

/* Maps the file's first huge page where a huge page fits, in twice the room (given back in room).
 */
static char *map_aligned(int fd, char **room)
{
	uintptr_t at;
	char *map;

	*room = mmap(NULL, 2 * HUGE_BYTES, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (*room == MAP_FAILED)
		return NULL;
	at = ((uintptr_t)*room + HUGE_BYTES - 1) & ~(uintptr_t)(HUGE_BYTES - 1);
	map = mmap((char *)at, HUGE_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 0);
	return map == MAP_FAILED ? NULL : map;
}

/* Mapped by one PMD, then by some PTEs too, then held by a pipe. */
static bool try_large(struct folio_probe *p, int fd, char *map)
{
	bool good;
	char *b;

	if (verdict_at(p, fd, 0) != FOLIO_IDLE || verdict_at(p, fd, HUGE_PAGES - 1) != FOLIO_IDLE)
		return false;
	b = mmap(NULL, HUGE_BYTES / 2, PROT_READ | PROT_WRITE, MAP_SHARED, fd, HUGE_BYTES / 2);
	if (b == MAP_FAILED)
		return false;
	touch(b, HUGE_PAGES / 4);
	good = verdict_at(p, fd, 7) == FOLIO_IDLE && verdict_pinned(p, fd, map, 9) == FOLIO_BUSY;
	munmap(b, HUGE_BYTES / 2);
	return good;
}

bool folio_probe_trial_large(struct folio_probe *p)
{
	bool good = true;

	for (int i = 0; i < TRIES; i++) {
		FD_OWNED fd = memfd_make("folio-probe-trial", HUGE_BYTES);
		char *room = MAP_FAILED, *map = fd < 0 ? NULL : map_aligned(fd, &room);

		if (map)
			touch(map, HUGE_PAGES);
		if (map && !madvise(map, HUGE_BYTES, MADV_COLLAPSE))
			good = try_large(p, fd, map);
		if (room != MAP_FAILED)
			munmap(room, 2 * HUGE_BYTES);
		if (good)
			break;
	}
	return good;
}
