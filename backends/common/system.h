/* SPDX-License-Identifier: BSD-3-Clause */
/* system.h: time, processes and sentences of errors, for all backends. */
#ifndef COMMON_SYSTEM_H
#define COMMON_SYSTEM_H

#include <stdbool.h>
#include <stdint.h>
#include <time.h>

/* CLOCK_MONOTONIC in nanoseconds. */
static inline uint64_t now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * UINT64_C(1000000000) + (uint64_t)t.tv_nsec;
}

/* Puts a sentence into err and gives r back. */
int fail(char *err, uint64_t err_len, int r, const char *fmt, ...)
	__attribute__((format(printf, 4, 5)));
/*
 * Whether the process with that pid that began at `start` (the low half of field 22 of
 * /proc/PID/stat) is no more: nobody can come back for what it kept. False when that is not known;
 * pid 0 never is.
 */
bool process_gone(uint32_t pid, uint32_t start);

#endif
