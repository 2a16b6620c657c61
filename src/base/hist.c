/* SPDX-License-Identifier: BSD-3-Clause */
/* hist.c: a histogram of latencies with bounded relative error (after HdrHistogram). */
#include "base/hist.h"

static unsigned int bucket_of(uint64_t v)
{
	unsigned int exp;

	if (v >> HIST_MAX_BITS)
		v = (UINT64_C(1) << HIST_MAX_BITS) - 1;
	if (v < (1u << HIST_SUB_BITS))
		return (unsigned int)v;
	exp = 63 - (unsigned int)__builtin_clzll(v);
	return ((exp - HIST_SUB_BITS + 1) << HIST_SUB_BITS) +
	       (unsigned int)((v >> (exp - HIST_SUB_BITS)) & ((1u << HIST_SUB_BITS) - 1));
}

/* The largest value that falls into bucket b. */
static uint64_t bucket_top(unsigned int b)
{
	unsigned int exp, sub;

	if (b < (1u << HIST_SUB_BITS))
		return b;
	exp = (b >> HIST_SUB_BITS) + HIST_SUB_BITS - 1;
	sub = b & ((1u << HIST_SUB_BITS) - 1);
	return ((((UINT64_C(1) << HIST_SUB_BITS) + sub + 1) << (exp - HIST_SUB_BITS))) - 1;
}

void hist_record(struct hist *h, uint64_t value)
{
	uint64_t max = __atomic_load_n(&h->max, __ATOMIC_RELAXED);

	__atomic_fetch_add(&h->bucket[bucket_of(value)], 1, __ATOMIC_RELAXED);
	__atomic_fetch_add(&h->count, 1, __ATOMIC_RELAXED);
	__atomic_fetch_add(&h->sum, value, __ATOMIC_RELAXED);
	while (value > max && !__atomic_compare_exchange_n(&h->max, &max, value, 1,
							   __ATOMIC_RELAXED, __ATOMIC_RELAXED))
		;
}

void hist_merge(struct hist *h, const struct hist *from)
{
	uint64_t max = __atomic_load_n(&from->max, __ATOMIC_RELAXED);

	for (unsigned int i = 0; i < HIST_BUCKETS; i++)
		h->bucket[i] += __atomic_load_n(&from->bucket[i], __ATOMIC_RELAXED);
	h->count += __atomic_load_n(&from->count, __ATOMIC_RELAXED);
	h->sum += __atomic_load_n(&from->sum, __ATOMIC_RELAXED);
	if (max > h->max)
		h->max = max;
}

uint64_t hist_quantile(const struct hist *h, double q)
{
	uint64_t total = 0, seen = 0, rank;

	for (unsigned int i = 0; i < HIST_BUCKETS; i++)
		total += h->bucket[i];
	if (!total)
		return 0;
	rank = (uint64_t)(q * (double)total);
	if (rank >= total)
		rank = total - 1;
	for (unsigned int i = 0; i < HIST_BUCKETS; i++) {
		seen += h->bucket[i];
		if (seen > rank)
			return bucket_top(i) < h->max ? bucket_top(i) : h->max;
	}
	return h->max;
}

uint64_t hist_count_le(const struct hist *h, uint64_t value)
{
	unsigned int last = bucket_of(value);
	uint64_t n = 0;

	for (unsigned int i = 0; i <= last; i++)
		n += h->bucket[i];
	return n;
}
