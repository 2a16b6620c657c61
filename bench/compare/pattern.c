/* SPDX-License-Identifier: BSD-3-Clause */
/* pattern.c: which page a thread touches next. */
#include "pattern.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#define THETA	0.99
#define STRIDE	16u
#define PHASE_S 0.5
/* A prime: n numbers below it go to n different places below n. */
#define SCATTER UINT64_C(2654435761)

static const char *const names[PATTERNS] = {
	[PATTERN_UNIFORM] = "uniform",	 [PATTERN_ZIPF] = "zipf",
	[PATTERN_HOTSPOT] = "hotspot",	 [PATTERN_SEQUENTIAL] = "sequential",
	[PATTERN_STRIDED] = "strided",	 [PATTERN_PHASE] = "phase",
	[PATTERN_PMBENCH] = "pmbench",	 [PATTERN_GUPS] = "gups",
	[PATTERN_KEYVALUE] = "keyvalue",
};

/* The length of the phases may follow: phase:SECONDS. */
static int kind_named(const char *name, double *phase_s)
{
	size_t len = strcspn(name, ":");

	if (name[len] && (sscanf(name + len, ":%lf", phase_s) != 1 || *phase_s <= 0))
		return -1;
	for (int i = 0; i < PATTERNS; i++)
		if (strlen(names[i]) == len && strncmp(names[i], name, len) == 0)
			return i;
	return -1;
}

/* Source: J. Gray et al., Quickly generating billion-record synthetic databases, SIGMOD 1994. */
int pattern_init(struct pattern *p, const char *name, uint64_t pages)
{
	double phase_s = PHASE_S;
	int kind = kind_named(name, &phase_s);

	if (kind < 0)
		return -EINVAL;
	*p = (struct pattern){.kind = (enum pattern_kind)kind,
			      .pages = pages,
			      .phase_ns = (uint64_t)(phase_s * 1e9)};
	if (kind != PATTERN_ZIPF && kind != PATTERN_KEYVALUE)
		return 0;
	for (uint64_t i = 1; i <= pages; i++)
		p->zeta += 1.0 / pow((double)i, THETA);
	p->eta = (1.0 - pow(2.0 / (double)pages, 1.0 - THETA)) /
		 (1.0 - (1.0 + pow(0.5, THETA)) / p->zeta);
	return 0;
}

void pattern_start(struct pattern_walk *w, const struct pattern *p, unsigned int index,
		   unsigned int n, uint64_t seed)
{
	*w = (struct pattern_walk){.pattern = p,
				   .random =
					   UINT64_C(88172645463325252) + (seed * n + index) * 7919,
				   .at = p->pages / n * index};
}

uint64_t pattern_random(struct pattern_walk *w)
{
	w->random ^= w->random << 13;
	w->random ^= w->random >> 7;
	w->random ^= w->random << 17;
	return w->random;
}

static double unit_random(struct pattern_walk *w)
{
	return (double)(pattern_random(w) >> 11) / 9007199254740992.0;
}

static uint64_t zipf_rank(struct pattern_walk *w)
{
	const struct pattern *p = w->pattern;
	double u = unit_random(w), uz = u * p->zeta;
	uint64_t rank;

	if (uz < 1.0)
		return 0;
	if (uz < 1.0 + pow(0.5, THETA))
		return 1;
	rank = (uint64_t)((double)p->pages * pow(p->eta * u - p->eta + 1.0, 1.0 / (1.0 - THETA)));
	return rank < p->pages ? rank : p->pages - 1;
}

static uint64_t bell(struct pattern_walk *w)
{
	double sum = 0;

	for (int i = 0; i < 4; i++)
		sum += unit_random(w);
	return (uint64_t)(sum / 4.0 * (double)w->pattern->pages);
}

static uint64_t strided(struct pattern_walk *w)
{
	uint64_t page = w->at, pages = w->pattern->pages;

	w->at += STRIDE;
	if (w->at >= pages)
		w->at = ++w->lap % STRIDE;
	return page;
}

static uint64_t phase(struct pattern_walk *w, uint64_t now_ns)
{
	uint64_t pages = w->pattern->pages, most = pages * 2 / 5;

	w->base = now_ns / w->pattern->phase_ns % 5 * (pages / 5);
	return (w->base + (pattern_random(w) >> 20) % most) % pages;
}

uint64_t pattern_next(struct pattern_walk *w, uint64_t now_ns)
{
	uint64_t pages = w->pattern->pages, r;

	switch (w->pattern->kind) {
	case PATTERN_ZIPF:
	case PATTERN_KEYVALUE:
		return zipf_rank(w) * SCATTER % pages;
	case PATTERN_HOTSPOT:
		r = pattern_random(w);
		return (r >> 20) % ((r & 1023) < 922 ? pages / 10 + 1 : pages);
	case PATTERN_SEQUENTIAL:
		r = w->at;
		w->at = r + 1 < pages ? r + 1 : 0;
		return r;
	case PATTERN_STRIDED:
		return strided(w);
	case PATTERN_PHASE:
		return phase(w, now_ns);
	case PATTERN_PMBENCH:
		return bell(w);
	default:
		return (pattern_random(w) >> 20) % pages;
	}
}
