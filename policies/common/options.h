/* SPDX-License-Identifier: BSD-3-Clause */
/* options.h: values of options, for all policies; and counters that fault threads share. */
#ifndef COMMON_OPTIONS_H
#define COMMON_OPTIONS_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

/* Each: 0, or -EINVAL with a sentence in err and nothing written. */

/* A number with an optional K, M or G, from min to max. */
int option_number(const char *value, uint64_t min, uint64_t max, uint64_t *out, char *err,
		  uint64_t err_len);
/* The same for a field that fault threads read. */
int option_shared(const char *value, uint32_t min, uint32_t max, _Atomic uint32_t *out, char *err,
		  uint64_t err_len);
/* on or off. */
int option_switch(const char *value, bool *out, char *err, uint64_t err_len);

/*
 * For what on_fault shares with other fault threads and the serial hooks. Relaxed, because each
 * value is advice by itself.
 */
#define get(field)	  atomic_load_explicit(&(field), memory_order_relaxed)
#define set(field, value) atomic_store_explicit(&(field), (value), memory_order_relaxed)
#define add(field, value) atomic_fetch_add_explicit(&(field), (value), memory_order_relaxed)

static inline bool bit_test(const uint64_t *bitmap, uint64_t bit)
{
	return bitmap[bit / 64] >> (bit % 64) & 1;
}

static inline void bit_set(uint64_t *bitmap, uint64_t bit)
{
	bitmap[bit / 64] |= UINT64_C(1) << (bit % 64);
}

#endif
