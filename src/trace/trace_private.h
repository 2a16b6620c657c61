/* SPDX-License-Identifier: BSD-3-Clause */
/* trace_private.h: what writing and reading a trace have in common. */
#ifndef TRACE_TRACE_PRIVATE_H
#define TRACE_TRACE_PRIVATE_H

#include <assert.h>
#include <stdint.h>

#define TRACE_MAGIC	"EBBTRACE"
#define TRACE_SUM_START UINT64_C(0xcbf29ce484222325)

struct trace_header {
	char magic[8];
	uint32_t version, header_bytes;
	uint64_t units;
	uint32_t unit_bytes, flags;
	uint8_t zeroes[32];
};
static_assert(sizeof(struct trace_header) == 64, "as documented in trace.h");

/* FNV-1a, 64 bits (Fowler, Noll, Vo). */
static inline uint64_t trace_sum(uint64_t sum, const uint8_t *data, uint64_t bytes)
{
	for (uint64_t i = 0; i < bytes; i++)
		sum = (sum ^ data[i]) * UINT64_C(0x100000001b3);
	return sum;
}

#endif
