/* SPDX-License-Identifier: BSD-3-Clause */
/* watch.c: which part of a VM's RAM is hot, cold and evicted, over its addresses and time. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "engine/internal.h"
#include "engine/trace.h"

/*
 * Theory of operation
 *
 * A job that records as trace.c does, so that it and the VM's policy do not spoil each other's
 * view, and keeps counts in place of the record: for each window and each stretch of RAM (column)
 * the bytes that are hot, cold and evicted, and for each unit the last window in which it was
 * accessed. From the latter comes the working-set curve.
 *
 * A unit is hot when it was accessed in the window: its page-table entry was there at the window's
 * end, or when somebody else (the policy) made its accesses forgotten, or a fault brought it in.
 * The one access that is missed is that of a page which was evicted in the same window, in need and
 * without a look at it.
 *
 * The layout (which byte of RAM a unit is) is that of the beginning: RAM plugged later is not seen,
 * RAM unplugged meanwhile is no longer counted. Memory: the recording's, two bytes and a bit a
 * unit, and the cells; all bounded by the request and the VM's size.
 */

struct place {
	uint64_t first_unit, units, from; /* from: its first byte, of all RAM */
	unsigned int unit_shift;
};

struct watch {
	struct vm *vm;
	struct vm_trace *t;
	const struct watch_request *req;
	struct watch_result *out;
	struct place *places; /* as many as out->blocks */
	uint64_t *seen;	      /* the window that has ended; swapped with the recording's */
	uint16_t *last;	  /* by unit: number of the window of the last access, from 1; 0: none */
	uint64_t *end_ns; /* by window; [0]: when the first one began */
};

enum temperature { UNTOUCHED, HOT, COLD, EVICTED };

/* Counts the bytes [from, from + bytes) of RAM in the columns that they lie in. */
static void count(struct watch *w, struct watch_cell *row, uint64_t from, uint64_t bytes,
		  enum temperature what)
{
	const struct watch_result *o = w->out;

	while (bytes && o->columns && what != UNTOUCHED) {
		uint64_t column = from * o->columns / o->ram_bytes;
		/* The first byte of the next column. */
		uint64_t end = ((column + 1) * o->ram_bytes + o->columns - 1) / o->columns;
		uint64_t part = end - from < bytes ? end - from : bytes;
		struct watch_cell *c = &row[column];

		*(what == HOT ? &c->hot : what == COLD ? &c->cold : &c->evicted) += part;
		from += part;
		bytes -= part;
	}
}

static enum temperature temperature(struct block *b, uint64_t unit, bool accessed)
{
	enum page_state s = page_entry_state(page_table_get(&b->table, unit));

	if (s == PE_EVICTED || s == PE_LOST)
		return EVICTED;
	if (s == PE_NONE)
		return UNTOUCHED;
	return accessed ? HOT : COLD;
}

static void count_block(struct watch *w, struct block *b, const struct place *p,
			struct watch_cell *row, uint16_t window)
{
	enum temperature run = UNTOUCHED;
	uint64_t from = 0;

	for (uint64_t u = 0; u < p->units; u++) {
		uint64_t unit = p->first_unit + u;
		bool accessed = w->seen[unit / 64] >> (unit % 64) & 1;
		enum temperature now = temperature(b, u, accessed);

		if (accessed)
			w->last[unit] = window;
		if (now == run)
			continue;
		count(w, row, p->from + (from << p->unit_shift), (u - from) << p->unit_shift, run);
		run = now;
		from = u;
	}
	count(w, row, p->from + (from << p->unit_shift), (p->units - from) << p->unit_shift, run);
}

static void take_faults(struct watch *w)
{
	struct ebb_fault f;
	uint64_t lost;

	pthread_mutex_lock(&w->vm->policy_lock);
	while (vm_trace_next_fault(w->t, &f, &lost))
		if (f.unit < w->t->units)
			w->t->window[f.unit / 64] |= UINT64_C(1) << (f.unit % 64);
	pthread_mutex_unlock(&w->vm->policy_lock);
}

static void count_all(struct watch *w, unsigned int window)
{
	struct vm *vm = w->vm;
	struct watch_result *o = w->out;
	struct watch_cell *row = o->cells + (size_t)(window - 1) * o->columns;

	pthread_rwlock_rdlock(&vm->structure);
	for (unsigned int i = 0; i < o->n_blocks; i++) {
		const struct place *p = &w->places[i];

		for (unsigned int k = 0; k < atomic_load(&vm->n_blocks); k++) {
			struct block *b = atomic_load(&vm->blocks[k]);

			if (b && !atomic_load(&b->gone) && b->first_unit == p->first_unit)
				count_block(w, b, p, row, (uint16_t)window);
		}
	}
	pthread_rwlock_unlock(&vm->structure);
}

/* Ends a window; window 0 is what was accessed before the watch began, and counts for nothing. */
static void end_window(struct watch *w, unsigned int window)
{
	struct vm *vm = w->vm;
	uint64_t *ended;

	take_faults(w);
	vm_trace_gather(vm);
	pthread_mutex_lock(&vm->policy_lock);
	ended = w->t->window;
	w->t->window = w->seen;
	pthread_mutex_unlock(&vm->policy_lock);
	w->seen = ended;
	w->end_ns[window] = clock_ns();
	if (window)
		count_all(w, window);
	memset(w->seen, 0, (w->t->units + 63) / 64 * 8);
}

/* The working-set curve, from when each unit was last accessed. */
static void sum_up(struct watch *w)
{
	struct watch_result *o = w->out;
	unsigned int n = o->windows;

	for (unsigned int i = 0; i < o->n_blocks; i++) {
		const struct place *p = &w->places[i];

		for (uint64_t u = p->first_unit; u < p->first_unit + p->units; u++)
			if (w->last[u])
				o->accessed[n - w->last[u]] += UINT64_C(1) << p->unit_shift;
	}
	for (unsigned int k = 0; k < n; k++) {
		o->accessed[k] += k ? o->accessed[k - 1] : 0;
		o->since_ms[k] = (w->end_ns[n] - w->end_ns[n - k - 1]) / NS_PER_MS;
	}
}

static int watch(struct watch *w, struct progress *p, struct error *e)
{
	uint64_t window_ns = w->req->window_ms * NS_PER_MS;

	atomic_store(&p->total, w->req->windows);
	for (unsigned int window = 0; window <= w->req->windows; window++) {
		while (window && clock_ns() - w->end_ns[window - 1] < window_ns) {
			if (atomic_load(&p->cancel))
				return error_set(e, ECANCELED, ERROR_CANCELLED, "cancelled");
			if (atomic_load(&w->vm->dead))
				return error_set(e, ENOENT, ERROR_NOT_FOUND, "VM %s has gone",
						 w->vm->name);
			take_faults(w);
			usleep(TRACE_DRAIN_MS * 1000);
		}
		end_window(w, window);
		atomic_store(&p->done, window);
	}
	sum_up(w);
	return 0;
}

static bool look_at_layout(struct watch *w)
{
	struct vm *vm = w->vm;
	struct watch_result *o = w->out;
	unsigned int n;

	pthread_rwlock_rdlock(&vm->structure);
	n = atomic_load(&vm->n_blocks);
	o->blocks = calloc(n + 1, sizeof(*o->blocks));
	w->places = calloc(n + 1, sizeof(*w->places));
	for (unsigned int i = 0; o->blocks && w->places && i < n; i++) {
		struct block *b = atomic_load(&vm->blocks[i]);

		if (!b || atomic_load(&b->gone) || b->first_unit + b->units > w->t->units)
			continue;
		w->places[o->n_blocks] = (struct place){.first_unit = b->first_unit,
							.units = b->units,
							.from = o->ram_bytes,
							.unit_shift = b->unit_shift};
		snprintf(o->blocks[o->n_blocks].name, sizeof(o->blocks[0].name), "%s", b->id);
		o->blocks[o->n_blocks++].bytes = b->units << b->unit_shift;
		o->ram_bytes += b->units << b->unit_shift;
	}
	pthread_rwlock_unlock(&vm->structure);
	return o->blocks && w->places;
}

static bool make_room(struct watch *w)
{
	struct watch_result *o = w->out;

	o->windows = w->req->windows;
	o->columns = w->req->columns;
	o->cells = calloc((size_t)o->windows * o->columns + 1, sizeof(*o->cells));
	o->since_ms = calloc(o->windows, sizeof(*o->since_ms));
	o->accessed = calloc(o->windows, sizeof(*o->accessed));
	w->end_ns = calloc(o->windows + 1, sizeof(*w->end_ns));
	w->last = calloc(w->t->units + 1, sizeof(*w->last));
	w->seen = calloc((w->t->units + 63) / 64, 8);
	return look_at_layout(w) && w->seen && o->cells && o->since_ms && o->accessed &&
	       w->end_ns && w->last;
}

static int check(struct vm *vm, const struct watch_request *req, struct error *e)
{
	if (!watch_request_fits(req))
		return error_set(e, EINVAL, ERROR_ARGUMENT, "%u windows of %u columns cannot be",
				 req->windows, req->columns);
	if (!vm_has_tracker(vm))
		return error_set(e, ENOTSUP, ERROR_UNSUPPORTED,
				 "what VM %s accesses cannot be seen on this host", vm->name);
	return 0;
}

int engine_vm_watch(struct engine *eng, const char *name, const struct watch_request *req,
		    struct progress *p, struct watch_result *out, struct error *e)
{
	struct watch w = {.req = req, .out = out};
	int err;

	memset(out, 0, sizeof(*out));
	probes_wait(eng);
	w.vm = engine_vm_get(eng, name);
	if (!w.vm)
		return error_set(e, ENOENT, ERROR_NOT_FOUND, "no VM %s", name);
	err = check(w.vm, req, e);
	if (!err)
		err = vm_trace_begin(w.vm, &w.t, e);
	if (!err) {
		if (!make_room(&w))
			err = error_set(e, ENOMEM, ERROR_GENERIC, "no memory");
		else if (!out->ram_bytes)
			err = error_set(e, ENOENT, ERROR_NOT_FOUND, "VM %s has no RAM", name);
		else
			err = watch(&w, p, e);
		vm_trace_end(w.vm, w.t);
	}
	free(w.places);
	free(w.end_ns);
	free(w.last);
	free(w.seen);
	vm_put(w.vm);
	return err;
}

void engine_watch_free(struct watch_result *out)
{
	free(out->blocks);
	free(out->cells);
	free(out->since_ms);
	free(out->accessed);
	memset(out, 0, sizeof(*out));
}
