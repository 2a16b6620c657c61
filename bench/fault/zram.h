/* SPDX-License-Identifier: BSD-3-Clause */
/* zram.h: a zram device as swap, for a while. */
#ifndef BENCH_FAULT_ZRAM_H
#define BENCH_FAULT_ZRAM_H

#include <stdbool.h>
#include <stdint.h>

struct zram {
	int id; /* -1: none */
	bool made, loaded, swapping;
	char codec[32]; /* that it had */
};

/* Reads or writes a small file of /sys or /proc. 0 or -errno. */
int file_get(const char *path, char *buf, unsigned int size);
int file_put(const char *path, const char *text);

/* A device that nobody uses, of that size, with lz4, swapped to last. 0, or -1 with why. */
int zram_on(struct zram *z, uint64_t bytes, char *why, unsigned int size);
/* As it was before. Any half of zram_on() may have been done. 0, or -1 with why. */
int zram_off(struct zram *z, char *why, unsigned int size);

#endif
