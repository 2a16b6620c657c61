/* SPDX-License-Identifier: BSD-3-Clause */
/* generate.c: traces of known kinds. */
#include "sim/generate.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "sim/random.h"
#include "trace/trace.h"

const char *const generate_kinds[] = {
	"uniform: every unit as likely as any other",
	"zipf: the unit of rank k with probability 1/k^alpha, ranks scattered over the memory",
	"hotspot: hot-part percent of the accesses go to hot percent of the units, scattered",
	"sequential: one unit after the other, round and round",
	"strided: every stride-th unit, then the ones next to them",
	"phase: hotspot whose hot set is another one in each of the phases",
	NULL,
};

struct generator {
	const struct generate_options *o;
	uint64_t random, at, offset;
	uint64_t *place; /* a permutation of the units */
	double *sum;	 /* of zipf: probability of rank 0 to k */
};

static uint64_t rank_zipf(struct generator *g)
{
	double x = random_unit(&g->random);
	uint64_t low = 0, high = g->o->units - 1;

	while (low < high) {
		uint64_t middle = (low + high) / 2;

		if (g->sum[middle] < x)
			low = middle + 1;
		else
			high = middle;
	}
	return low;
}

static uint64_t rank_hotspot(struct generator *g, uint64_t hot)
{
	bool in = random_below(&g->random, 100) < g->o->hot_part;

	if (in || hot == g->o->units)
		return random_below(&g->random, hot);
	return hot + random_below(&g->random, g->o->units - hot);
}

static uint64_t next_uniform(struct generator *g, uint64_t k)
{
	return random_below(&g->random, g->o->units);
}

static uint64_t next_zipf(struct generator *g, uint64_t k)
{
	return g->place[rank_zipf(g)];
}

static uint64_t hot_units(const struct generator *g)
{
	uint64_t hot = g->o->units * g->o->hot / 100;

	return hot ? hot : 1;
}

static uint64_t next_hotspot(struct generator *g, uint64_t k)
{
	return g->place[rank_hotspot(g, hot_units(g))];
}

static uint64_t next_sequential(struct generator *g, uint64_t k)
{
	return k % g->o->units;
}

static uint64_t next_strided(struct generator *g, uint64_t k)
{
	uint64_t unit = g->at;

	g->at += g->o->stride;
	if (g->at >= g->o->units) {
		g->offset = (g->offset + 1) % g->o->stride;
		g->at = g->offset;
	}
	return unit;
}

static uint64_t next_phase(struct generator *g, uint64_t k)
{
	uint64_t phase = k * g->o->phases / g->o->accesses, hot = hot_units(g);

	return g->place[(rank_hotspot(g, hot) + phase * hot) % g->o->units];
}

static const struct {
	const char *name;
	uint64_t (*next)(struct generator *g, uint64_t k);
} kinds[] = {
	{"uniform", next_uniform},	 {"zipf", next_zipf},	    {"hotspot", next_hotspot},
	{"sequential", next_sequential}, {"strided", next_strided}, {"phase", next_phase},
};

static int prepare(struct generator *g, const struct generate_options *o)
{
	double total = 0;

	*g = (struct generator){.o = o, .random = o->seed};
	g->place = malloc(o->units * sizeof(*g->place));
	g->sum = malloc(o->units * sizeof(*g->sum));
	if (!g->place || !g->sum)
		return -ENOMEM;
	for (uint64_t u = 0; u < o->units; u++) {
		total += pow((double)(u + 1), -o->alpha);
		g->sum[u] = total;
		g->place[u] = u;
	}
	for (uint64_t u = 0; u < o->units; u++)
		g->sum[u] /= total;
	for (uint64_t u = o->units; u > 1; u--) {
		uint64_t other = random_below(&g->random, u), was = g->place[u - 1];

		g->place[u - 1] = g->place[other];
		g->place[other] = was;
	}
	return 0;
}

static int write_trace(struct generator *g, size_t kind, int fd)
{
	const struct generate_options *o = g->o;
	struct trace_writer *w = malloc(sizeof(*w));
	int r = w ? trace_begin(w, fd, o->units, 4096, 0) : -ENOMEM;

	if (!r) {
		for (uint64_t u = 0; o->fill && u < o->units; u++)
			trace_access(w, u, 1, true);
		for (uint64_t k = 0; k < o->accesses; k++) {
			uint32_t thread = 1 + (uint32_t)random_below(&g->random, o->threads);

			trace_access(w, kinds[kind].next(g, k), thread,
				     random_below(&g->random, 4) == 0);
		}
		r = trace_finish(w);
	}
	free(w);
	return r;
}

int generate(const char *kind, const char *path, const struct generate_options *o, struct error *e)
{
	struct generator g;
	size_t k = 0;
	int fd, r;

	while (k < sizeof(kinds) / sizeof(kinds[0]) && strcmp(kinds[k].name, kind) != 0)
		k++;
	if (k == sizeof(kinds) / sizeof(kinds[0]))
		return error_set(e, EINVAL, ERROR_ARGUMENT, "no kind of trace is called '%s'",
				 kind);
	fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
	if (fd < 0)
		return error_set(e, errno, ERROR_GENERIC, "%s: %s", path, error_text(errno));
	r = prepare(&g, o);
	if (!r)
		r = write_trace(&g, k, fd);
	if (close(fd) && !r)
		r = -errno;
	free(g.place);
	free(g.sum);
	return r ? error_set(e, -r, ERROR_GENERIC, "%s: %s", path, error_text(r)) : 0;
}
