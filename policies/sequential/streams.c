/* SPDX-License-Identifier: BSD-3-Clause */
/* streams.c: finding runs in a stream of faults, from several threads at once. */
#include "streams.h"

#include <stddef.h>

#define WINDOW_MIN 4
/* Faults of a run that come in slightly wrong order, or skip a unit, still belong to it. */
#define SLACK 3
#define LATE  16 /* units that are asked for again when they come too late */

#define get(field)	  atomic_load_explicit(&(field), memory_order_relaxed)
#define set(field, value) atomic_store_explicit(&(field), (value), memory_order_relaxed)

static bool try_lock(struct stream *st)
{
	return !atomic_exchange_explicit(&st->lock, true, memory_order_acquire);
}

static void unlock(struct stream *st)
{
	atomic_store_explicit(&st->lock, false, memory_order_release);
}

/* How many steps `unit` lies ahead of `from`; 0: not ahead, or not on the run's stride. */
static uint64_t steps_ahead(uint64_t from, uint64_t unit, int64_t step)
{
	uint64_t stride = step < 0 ? (uint64_t)-step : (uint64_t)step;
	uint64_t away = step < 0 ? from - unit : unit - from;

	if (step < 0 ? unit >= from : unit <= from)
		return 0;
	return away % stride ? 0 : away / stride;
}

/* The fault continues this run: anywhere up to the edge and a little beyond. */
static bool continues(const struct stream *st, uint64_t unit)
{
	int64_t step = get(st->step);
	uint64_t pos = get(st->pos), edge = get(st->edge), ahead;

	if (!step)
		return false;
	ahead = steps_ahead(pos, unit, step);
	if (!ahead)
		return false;
	return ahead <= (edge == pos ? 0 : steps_ahead(pos, edge, step)) + SLACK;
}

/* The fault makes a run of this one that was alone. Gives the step, or 0. */
static int64_t begins(const struct stream *st, uint64_t unit, uint64_t reach)
{
	uint64_t pos = get(st->pos);
	uint64_t away = unit > pos ? unit - pos : pos - unit;

	if (!get(st->used) || get(st->step) || !away || away > (reach > 2 ? reach : 2))
		return 0;
	/* Without strides, the next but one is the next with one left out. */
	if (reach < 2)
		away = 1;
	return unit > pos ? (int64_t)away : -(int64_t)away;
}

/* `count` units from the one after `from` on. */
static bool ask(struct stream_advice *out, uint64_t from, int64_t step, uint64_t count)
{
	uint64_t stride = step < 0 ? (uint64_t)-step : (uint64_t)step;

	if (step < 0 && count > from / stride)
		count = from / stride;
	out->first = from + (uint64_t)step;
	out->count = (uint32_t)count;
	out->step = step;
	return count > 0;
}

/* Moves the run on to unit, and asks for more when that is due. Holds the lock. */
static bool advance(struct stream *st, const struct stream_settings *settings, uint64_t unit,
		    bool hit, struct stream_advice *out)
{
	int64_t step = get(st->step);
	uint64_t edge = get(st->edge), pos = get(st->pos);
	uint64_t left = edge == pos ? 0 : steps_ahead(unit, edge, step);

	set(st->pos, unit);
	if (!left)
		set(st->edge, unit);
	if (st->hits < UINT16_MAX)
		st->hits++;
	if (st->hits < settings->trigger || settings->window_max == 0)
		return false;
	/*
	 * A fault that is no hit within what was asked for: that comes too late, and more would
	 * come later still. What is next may yet be brought with the fault itself.
	 */
	if (left && !hit)
		return ask(out, unit, step, left < LATE ? left : LATE);
	/* While more than half of what was asked for lies ahead it is on its way. */
	if (left * 2 > st->window)
		return false;
	st->window = st->window < WINDOW_MIN / 2 ? WINDOW_MIN : st->window * 2;
	if (st->window > settings->window_max)
		st->window = settings->window_max;
	edge = left ? edge : unit;
	if (!ask(out, edge, step, st->window)) {
		set(st->edge, edge);
		return false;
	}
	set(st->edge, edge + (uint64_t)(step * (int64_t)out->count));
	return true;
}

static struct stream *find(struct streams *s, uint64_t unit, uint64_t reach, uint32_t group,
			   int64_t *new_step)
{
	/* The thread's own group first: it is the likely one. */
	*new_step = 0;
	for (uint32_t k = 0; k < STREAMS; k++) {
		struct stream *st = &s->slot[(group * STREAMS_PER_GROUP + k) % STREAMS];

		if (continues(st, unit) || (get(st->pos) == unit && get(st->used)))
			return st;
	}
	for (uint32_t k = 0; k < STREAMS; k++) {
		struct stream *st = &s->slot[(group * STREAMS_PER_GROUP + k) % STREAMS];

		*new_step = begins(st, unit, reach);
		if (*new_step)
			return st;
	}
	return NULL;
}

/* Remembers the fault in the group's longest unused slot. */
static void remember(struct streams *s, uint64_t unit, uint32_t group, uint32_t now)
{
	struct stream *oldest = &s->slot[group * STREAMS_PER_GROUP];

	for (uint32_t k = 1; k < STREAMS_PER_GROUP; k++) {
		struct stream *st = &s->slot[group * STREAMS_PER_GROUP + k];

		if (now - get(st->used) > now - get(oldest->used))
			oldest = st;
	}
	if (!try_lock(oldest)) {
		atomic_fetch_add_explicit(&s->contended, 1, memory_order_relaxed);
		return;
	}
	set(oldest->step, 0);
	set(oldest->pos, unit);
	set(oldest->edge, unit);
	set(oldest->used, now);
	oldest->hits = 1;
	oldest->window = 0;
	unlock(oldest);
}

bool streams_fault(struct streams *s, const struct stream_settings *settings, uint64_t unit,
		   uint32_t thread, bool hit, struct stream_advice *out)
{
	uint32_t now = atomic_fetch_add_explicit(&s->clock, 1, memory_order_relaxed) + 1;
	uint32_t group = thread * UINT32_C(0x9e3779b9) >> 16 & (STREAM_GROUPS - 1);
	struct stream *st;
	int64_t step = 0;
	bool due = false;

	st = find(s, unit, settings->reach, group, &step);
	if (!st) {
		/* A hit without its run tells nothing about what comes next. */
		if (!hit)
			remember(s, unit, group, now);
		return false;
	}
	if (!try_lock(st)) {
		atomic_fetch_add_explicit(&s->contended, 1, memory_order_relaxed);
		return false;
	}
	/* Another thread may have moved it on meanwhile, or two faulted on the same unit. */
	if (step && begins(st, unit, settings->reach) == step)
		set(st->step, step);
	if (continues(st, unit) || (step && get(st->step) == step)) {
		due = advance(st, settings, unit, hit, out);
		if (due && st->hits == settings->trigger)
			atomic_fetch_add_explicit(&s->runs, 1, memory_order_relaxed);
		set(st->used, now);
	}
	unlock(st);
	return due;
}
