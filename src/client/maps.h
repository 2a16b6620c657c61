/* SPDX-License-Identifier: BSD-3-Clause */
/* maps.h: the process's mappings, and the files behind them. */
#ifndef CLIENT_MAPS_H
#define CLIENT_MAPS_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

/* One mapping of a file, as /proc/self/maps tells it. Several VMAs may have been merged. */
struct mapping {
	uint64_t addr, size, offset; /* bytes */
	uint64_t vma_size;	     /* of the first VMA: it names the link in map_files */
	dev_t dev;
	ino_t ino;
	char name[48]; /* of the file, without its folder */
};

/*
 * Calls each(ctx, mapping) for every shared, readable and writable mapping of a file; VMAs that
 * continue each other in address and file offset come as one. Allocates nothing. 0 or -errno.
 */
int maps_scan(void (*each)(void *ctx, const struct mapping *m), void *ctx);

/* What a file can be to us. */
struct memfile {
	dev_t dev;
	ino_t ino;
	uint32_t page_size; /* 4096, or the huge page size on hugetlbfs */
	bool named;	    /* has a name in some folder, so its content outlives the process */
};

/*
 * 0 when fd is a memfd or a file on tmpfs or hugetlbfs, open for reading and writing, and may be
 * punched; else -EMEDIUMTYPE.
 */
int memfile_check(int fd, struct memfile *out);
/*
 * A new descriptor (CLOEXEC, the caller's) of the file behind a mapping, found among the process's
 * own descriptors or, with the privilege, in /proc/self/map_files. -ENOENT when there is none.
 */
int memfile_open(const struct mapping *m);
/* The name of fd's file as the kernel shows it, without its folder; "ram" when it cannot be told.
 */
void memfile_name(int fd, char *buf, size_t bytes);

#endif
