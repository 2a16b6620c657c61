/* SPDX-License-Identifier: BSD-3-Clause */
/* sequence.c: a trace as what is replayed: one touch after the other. */
#include "sim/sequence.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "ebb/policy.h"
#include "sim/random.h"
#include "trace/trace.h"

#define STEPS_MAX (UINT64_C(1) << 29)

/* What is needed while reading. */
struct reading {
	struct sequence *s;
	struct trace trace;
	uint64_t *told; /* touched by ACCESS or FAULT since the last WINDOW */
	uint64_t *ever;
	uint64_t wait_us, random;
};

static int add(struct reading *r, uint64_t unit, uint32_t thread, bool write)
{
	struct sequence *s = r->s;
	uint64_t bit = UINT64_C(1) << (unit % 64);

	if (s->n == s->allocated) {
		uint64_t n = s->allocated ? 2 * s->allocated : 65536;
		struct step *more = n <= STEPS_MAX ? realloc(s->step, n * sizeof(*more)) : NULL;

		if (!more)
			return -ENOMEM;
		s->step = more;
		s->allocated = n;
	}
	s->step[s->n++] = (struct step){.unit = (uint32_t)unit,
					.wait_us = r->wait_us < UINT32_MAX ? (uint32_t)r->wait_us
									   : UINT32_MAX,
					.thread = (uint16_t)thread,
					.write = write};
	r->wait_us = 0;
	r->told[unit / 64] |= bit;
	s->distinct += !(r->ever[unit / 64] & bit);
	r->ever[unit / 64] |= bit;
	return 0;
}

static int add_window(struct reading *r)
{
	struct sequence *s = r->s;
	uint64_t begin = s->n, first, count;

	while (trace_window_run(&r->trace, &first, &count))
		for (uint64_t u = first; u < first + count; u++)
			if (!(r->told[u / 64] >> (u % 64) & 1) && add(r, u, 0, false))
				return -ENOMEM;
	for (uint64_t k = s->n; k > begin + 1; k--) {
		uint64_t other = begin + random_below(&r->random, k - begin);
		uint32_t unit = s->step[k - 1].unit;

		s->step[k - 1].unit = s->step[other].unit;
		s->step[other].unit = unit;
	}
	memset(r->told, 0, (s->units + 63) / 64 * 8);
	s->windows++;
	return 0;
}

static int read_records(struct reading *r)
{
	struct trace_record rec;
	int err = 0;

	while (!err && trace_next(&r->trace, &rec)) {
		switch (rec.kind) {
		case TRACE_ACCESS:
		case TRACE_FAULT:
			err = add(r, rec.unit, rec.thread, rec.flags & EBB_FAULT_WRITE);
			break;
		case TRACE_TIME:
			r->wait_us += rec.value;
			break;
		case TRACE_WINDOW:
			err = add_window(r);
			break;
		case TRACE_LOST:
			r->s->lost += rec.value;
			break;
		case TRACE_THREAD:
		case TRACE_END:
			break;
		}
	}
	return err;
}

int sequence_read(struct sequence *s, const char *path, struct error *e)
{
	struct reading r = {.s = s, .random = 1};
	uint64_t words;
	int err;

	memset(s, 0, sizeof(*s));
	err = trace_open(&r.trace, path, e);
	if (err)
		return err;
	s->units = r.trace.units;
	s->unit_bytes = r.trace.unit_bytes;
	words = (s->units + 63) / 64;
	r.told = calloc(words, 8);
	r.ever = calloc(words, 8);
	err = r.told && r.ever ? read_records(&r) : -ENOMEM;
	if (err)
		error_set(e, -err, ERROR_GENERIC, "%s: not enough memory for all its accesses",
			  path);
	else if (!s->n)
		err = error_set(e, EINVAL, ERROR_ARGUMENT, "%s: nothing is touched", path);
	free(r.told);
	free(r.ever);
	trace_close(&r.trace);
	if (err)
		sequence_free(s);
	return err;
}

void sequence_free(struct sequence *s)
{
	free(s->step);
	s->step = NULL;
}
