/* SPDX-License-Identifier: BSD-3-Clause */
/* count_allocs.h: what count_allocs.so and the test that preloads it share. */
#ifndef TESTS_ENGINE_COUNT_ALLOCS_H
#define TESTS_ENGINE_COUNT_ALLOCS_H

#include <stdint.h>

#define ALLOC_COUNTS_ENV "EBB_TEST_ALLOC_COUNTS" /* a file of at least this size */

struct alloc_counts {
	_Atomic uint64_t all, fault_threads;
};

#endif
