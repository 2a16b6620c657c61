/* SPDX-License-Identifier: BSD-3-Clause */
/* pagemap.c: which pages a process has in its page table, and dropping them from there. */
#include "sys/pagemap.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

/*
 * Theory of operation. Two ways lead to the same bitmap: PAGEMAP_SCAN (Linux 6.7) hands back runs
 * of present pages, the plain pagemap file one 64-bit entry per 4 KiB. Which one the kernel has is
 * found out by trying, at every call: a refused ioctl costs less than remembering. No state.
 */

#define SMALL_PAGE_BYTES 4096
#define PAGEMAP_PRESENT	 ((uint64_t)1 << 63)
#define SCAN_REGIONS	 512
#define READ_ENTRIES	 2048

/* The headers of Debian 12 know nothing of it. */
struct scan_region {
	uint64_t start, end, categories;
};
struct scan_arg {
	uint64_t size, flags, start, end, walk_end, vec, vec_len, max_pages;
	uint64_t category_inverted, category_mask, category_anyof_mask, return_mask;
};
#define SCAN_IOCTL   _IOWR('f', 16, struct scan_arg)
#define SCAN_PRESENT ((uint64_t)1 << 3)

int pagemap_open(pid_t pid)
{
	char path[64];
	int fd;

	snprintf(path, sizeof(path), "/proc/%d/pagemap", pid);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	return fd < 0 ? -errno : fd;
}

/* Sets the bits [from, to). */
static void set_bits(uint64_t *bitmap, uint64_t from, uint64_t to)
{
	while (from < to) {
		uint64_t low = from % 64, n = 64 - low;

		if (n > to - from)
			n = to - from;
		bitmap[from / 64] |= (n == 64 ? ~UINT64_C(0) : ((UINT64_C(1) << n) - 1)) << low;
		from += n;
	}
}

/* -ENOTTY when the kernel has no PAGEMAP_SCAN. */
static int present_by_scan(int fd, uint64_t start, uint64_t end, uint64_t page_size,
			   uint64_t *bitmap)
{
	struct scan_region regions[SCAN_REGIONS];
	struct scan_arg arg = {
		.size = sizeof(arg),
		.start = start,
		.end = end,
		.vec = (uint64_t)(uintptr_t)regions,
		.vec_len = SCAN_REGIONS,
		.category_mask = SCAN_PRESENT,
		.return_mask = SCAN_PRESENT,
	};

	while (arg.start < end) {
		int n = ioctl(fd, SCAN_IOCTL, &arg);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return -errno;
		for (int i = 0; i < n; i++)
			set_bits(bitmap, (regions[i].start - start) / page_size,
				 (regions[i].end - start + page_size - 1) / page_size);
		/* It stops early when the array is full; a walk that stands still never ends. */
		if (arg.walk_end <= arg.start)
			return -EIO;
		arg.start = arg.walk_end;
	}
	return 0;
}

static int present_by_read(int fd, uint64_t start, uint64_t end, uint64_t page_size,
			   uint64_t *bitmap)
{
	uint64_t entries[READ_ENTRIES], at = start;

	while (at < end) {
		uint64_t want = (end - at) / SMALL_PAGE_BYTES;
		ssize_t r;

		if (want > READ_ENTRIES)
			want = READ_ENTRIES;
		r = pread(fd, entries, want * sizeof(*entries),
			  (off_t)(at / SMALL_PAGE_BYTES * sizeof(*entries)));
		if (r < 0 && errno == EINTR)
			continue;
		if (r < 0)
			return -errno;
		if (r == 0)
			return -ESRCH;
		for (uint64_t i = 0; i < (uint64_t)r / sizeof(*entries); i++) {
			uint64_t bit = (at - start) / page_size;

			if (entries[i] & PAGEMAP_PRESENT)
				bitmap[bit / 64] |= UINT64_C(1) << (bit % 64);
			at += SMALL_PAGE_BYTES;
		}
	}
	return 0;
}

bool pagemap_can_scan(int fd)
{
	struct scan_arg arg = {.size = sizeof(arg), .return_mask = SCAN_PRESENT};

	/* An empty range: nothing to walk, nothing to report. */
	return ioctl(fd, SCAN_IOCTL, &arg) == 0;
}

static bool is_empty(const uint64_t *bitmap, uint64_t words)
{
	for (uint64_t i = 0; i < words; i++)
		if (bitmap[i])
			return false;
	return true;
}

int pagemap_present(int fd, uint64_t start, uint64_t end, uint64_t page_size, uint64_t *bitmap)
{
	uint64_t words;
	int r;

	if (page_size < SMALL_PAGE_BYTES || (page_size & (page_size - 1)) ||
	    (start | end) & (page_size - 1) || end < start)
		return -EINVAL;
	words = ((end - start) / page_size + 63) / 64;
	memset(bitmap, 0, words * sizeof(*bitmap));
	r = present_by_scan(fd, start, end, page_size, bitmap);
	if (r == -ENOTTY || r == -EINVAL)
		return present_by_read(fd, start, end, page_size, bitmap);
	if (start == end)
		return r;
	/* A scan of a dead address space finds nothing (on some kernels: fails); reading tells. */
	if (!r && is_empty(bitmap, words))
		r = present_by_read(fd, start, start + SMALL_PAGE_BYTES, page_size, bitmap);
	return r;
}

/* Drops `bytes` from the front of v[0..n); returns how many whole entries went. */
static unsigned int consume(struct iovec *v, unsigned int n, size_t bytes)
{
	unsigned int i = 0;

	while (i < n && bytes >= v[i].iov_len)
		bytes -= v[i++].iov_len;
	if (i < n) {
		v[i].iov_base = (char *)v[i].iov_base + bytes;
		v[i].iov_len -= bytes;
	}
	return i;
}

static int zap_batch(int pidfd, struct iovec *v, unsigned int n)
{
	while (n) {
		ssize_t r = syscall(SYS_process_madvise, pidfd, v, (size_t)n, MADV_PAGEOUT, 0U);
		unsigned int done;

		if (r < 0 && (errno == EINTR || errno == EAGAIN))
			continue;
		if (r < 0)
			return -errno;
		/* Less than all: the call takes 2 GiB at most, and stops where it fails. */
		done = consume(v, n, (size_t)r);
		if (!r && !done)
			return -EIO;
		v += done;
		n -= done;
	}
	return 0;
}

int pageout_zap(int pidfd, const struct iovec *v, unsigned int n)
{
	struct iovec batch[IOV_MAX];

	while (n) {
		unsigned int k = n < IOV_MAX ? n : IOV_MAX;
		int r;

		memcpy(batch, v, k * sizeof(*v));
		r = zap_batch(pidfd, batch, k);
		if (r)
			return r;
		v += k;
		n -= k;
	}
	return 0;
}
