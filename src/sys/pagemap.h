/* SPDX-License-Identifier: BSD-3-Clause */
/* pagemap.h: which pages a process has in its page table, and dropping them from there. */
#ifndef SYS_PAGEMAP_H
#define SYS_PAGEMAP_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>
#include <sys/uio.h>

/*
 * Opens /proc/PID/pagemap; the descriptor (the caller's) stays with that address space also over
 * the pid's reuse. Needs ptrace rights over the process. fd or -errno.
 */
int pagemap_open(pid_t pid);

/*
 * Sets bit i of bitmap (bit i % 64 of word i / 64) when any part of the page at
 * start + i * page_size is present in the page table, clears it when not; write-protection markers
 * and swap entries are not present. [start, end): bytes in that process, multiples of page_size;
 * page_size: a power of two, at least 4096; bitmap: (end - start) / page_size bits, rounded up to
 * whole words. Uses PAGEMAP_SCAN where the kernel has it (about 3 ms a GiB), else reads the
 * entries. Any thread, allocates nothing. 0, -ESRCH when the process is gone, -errno.
 */
int pagemap_present(int fd, uint64_t start, uint64_t end, uint64_t page_size, uint64_t *bitmap);

/* Whether pagemap_present() can use PAGEMAP_SCAN. */
bool pagemap_can_scan(int fd);

/*
 * process_madvise(MADV_PAGEOUT) on the ranges of another process: where no swap can take the pages
 * (see sys_features.zap_scan), shmem pages lose their page-table entries and stay cached. Pages
 * that are mapped twice, locked, or too new for the LRU stay mapped. Any number of ranges, each
 * page-aligned in the process of pidfd. Returns 0 or the first error as -errno (then later ranges
 * were not advised): -ESRCH gone, -EPERM (CAP_SYS_NICE and ptrace rights), -ENOMEM unmapped,
 * -EINVAL not advisable (hugetlb, locked).
 */
int pageout_zap(int pidfd, const struct iovec *v, unsigned int n);

#endif
