/* SPDX-License-Identifier: BSD-3-Clause */
/* hist.h: a histogram of latencies with bounded relative error (after HdrHistogram). */
#ifndef BASE_HIST_H
#define BASE_HIST_H

#include <stdint.h>

/*
 * Log-linear buckets: values below 2^HIST_SUB_BITS are exact, each power of two above it is cut
 * into 2^HIST_SUB_BITS equal parts, so a value is told to within 1/32 (3.2 %). Values from 0 to
 * 2^HIST_MAX_BITS - 1 ns (18 minutes); larger ones count as that. Recording is one relaxed atomic
 * add: any thread, no lock, no allocation. Source: the bucket layout of HdrHistogram (G. Tene).
 */
#define HIST_SUB_BITS 5
#define HIST_MAX_BITS 40
#define HIST_BUCKETS  ((HIST_MAX_BITS - HIST_SUB_BITS + 1) << HIST_SUB_BITS)

struct hist {
	uint64_t bucket[HIST_BUCKETS];
	uint64_t count, sum, max;
};

void hist_record(struct hist *h, uint64_t value);
/* Adds all of from into h; from may be recorded to meanwhile. */
void hist_merge(struct hist *h, const struct hist *from);
/* The value at quantile q, 0 to 1 (upper edge of its bucket, at most max); 0 when empty. */
uint64_t hist_quantile(const struct hist *h, double q);
/* How many recorded values were at most `value` (to within the bucket that holds it). */
uint64_t hist_count_le(const struct hist *h, uint64_t value);

#endif
