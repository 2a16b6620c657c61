/* SPDX-License-Identifier: BSD-3-Clause */
/* pattern.h: which page a thread touches next. */
#ifndef BENCH_COMPARE_PATTERN_H
#define BENCH_COMPARE_PATTERN_H

#include <stdbool.h>
#include <stdint.h>

enum pattern_kind {
	PATTERN_UNIFORM,
	PATTERN_ZIPF,	 /* theta 0.99, popular pages spread over the memory */
	PATTERN_HOTSPOT, /* nine of ten accesses go to one page in ten */
	PATTERN_SEQUENTIAL,
	PATTERN_STRIDED,  /* every 16th page, then those beside them */
	PATTERN_PHASE,	  /* uniform over two fifths, others every half second (or as named) */
	PATTERN_PMBENCH,  /* bell-shaped over the pages, any word of them */
	PATTERN_GUPS,	  /* updates of single words, spread evenly */
	PATTERN_KEYVALUE, /* zipf, and as much work with each page as a server has with a request */
	PATTERNS,
};

/* What threads share; made once for a number of pages. */
struct pattern {
	enum pattern_kind kind;
	uint64_t pages, phase_ns;
	double zeta, eta; /* of the zipf distribution */
};

struct pattern_walk {
	const struct pattern *pattern;
	uint64_t random, at, lap, base;
};

/* name: a kind, or phase:SECONDS; -EINVAL when it is neither. */
int pattern_init(struct pattern *p, const char *name, uint64_t pages);
/* Thread number `index` of n; with another seed it draws others. */
void pattern_start(struct pattern_walk *w, const struct pattern *p, unsigned int index,
		   unsigned int n, uint64_t seed);
/* The next page; now_ns counts for the phases only. */
uint64_t pattern_next(struct pattern_walk *w, uint64_t now_ns);
uint64_t pattern_random(struct pattern_walk *w);

#endif
