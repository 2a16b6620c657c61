/* SPDX-License-Identifier: BSD-3-Clause */
/* generate.h: traces of known kinds. */
#ifndef SIM_GENERATE_H
#define SIM_GENERATE_H

#include <stdint.h>

#include "base/error.h"

struct generate_options {
	uint64_t units, accesses, seed;
	double alpha;	   /* of zipf */
	uint64_t stride;   /* of strided, units */
	uint64_t phases;   /* of phase */
	uint32_t hot;	   /* of hotspot and phase: percent of the units */
	uint32_t hot_part; /* percent of the accesses that go to these */
	uint32_t threads;  /* that take turns at random */
	uint32_t fill;	   /* 1: every unit is written once before */
};

extern const char *const generate_kinds[]; /* "name: help" lines, NULL-terminated */

/* Writes a trace of that kind. 0 or -errno with e filled. */
int generate(const char *kind, const char *path, const struct generate_options *o, struct error *e);

#endif
