/* SPDX-License-Identifier: BSD-3-Clause */
/* memfd.h: memory files: guest RAM and the daemon's own surviving memory. */
#ifndef SYS_MEMFD_H
#define SYS_MEMFD_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

/* A memfd of `bytes` (sparse), CLOEXEC, sealed against shrinking and growing. fd or -errno. */
int memfd_make(const char *name, uint64_t bytes);

/*
 * A hugetlb memfd of one 2 MiB page, which is reserved in the pool and not taken out of it: nobody
 * else gets it while the file is that long, whoever has it open. fd or -errno (-ENOMEM: the pool
 * has none to spare).
 */
int memfd_reserve_huge(void);
/* Gives the page back, also when others have the file open; fd stays the caller's. */
void memfd_unreserve_huge(int fd);

/* What kind of memory a file is made of. */
struct memfd_info {
	dev_t dev;
	ino_t ino;
	uint64_t size;
	uint32_t page_bytes; /* 4096 on tmpfs, the huge page size on hugetlbfs */
	bool writable;	     /* opened for writing and not sealed against it */
	bool shrinkable;     /* not sealed against shrinking */
	bool named;	     /* has a path by which others may open it */
};
/* -EMEDIUMTYPE when it is not a file of tmpfs or hugetlbfs. */
int memfd_info(int fd, struct memfd_info *out);

/* Frees [offset, offset + bytes) of the file. */
int memfd_punch(int fd, uint64_t offset, uint64_t bytes);
/* Makes pages for what has none, of zeroes; what is there is left alone. */
int memfd_allocate(int fd, uint64_t offset, uint64_t bytes);
/* Reads all of it; holes read as zeroes. -ENODATA when the file ends before. */
int memfd_read(int fd, void *buf, uint64_t bytes, uint64_t offset);
/* Writes all of it (not on hugetlbfs: -EINVAL). */
int memfd_write(int fd, const void *buf, uint64_t bytes, uint64_t offset);
/*
 * The next run of data at or behind offset, before end: *start and *stop. False when there is
 * none. tmpfs only (hugetlbfs says that everything is data).
 */
bool memfd_next_data(int fd, uint64_t offset, uint64_t end, uint64_t *start, uint64_t *stop);
/* Bytes allocated to the file. */
uint64_t memfd_allocated(int fd);

#endif
