/* SPDX-License-Identifier: BSD-3-Clause */
/* trace.c: recording what a VM touches, for ebb-sim. */
#include "engine/trace.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "engine/internal.h"
#include "trace/trace.h"

/*
 * Theory of operation
 *
 * A job records for some seconds: it takes the faults from a ring that fault threads write to, and
 * at the end of each window what was accessed in it, and writes both to the file (trace/trace.h),
 * or counts them (watch.c). The fault path pays a few stores; all else happens in the job's thread.
 *
 * Windows work as the tracker's do (present bits, then a zap), beside whatever the VM's policy does
 * with them. So that neither sees less for the other's sake, what the recording makes forgotten is
 * kept for the policy (touched), and what the policy makes forgotten for the recording (window).
 * Both under policy_lock, which is taken for a chunk at a time.
 *
 * Bounded: the file by its writer, the ring by its size, the memory by two bits a unit; all of that
 * goes with the recording. One recording of a VM at a time.
 */

#define CHUNK 4096u

void vm_trace_fault(struct vm_trace *t, uint64_t unit, uint32_t flags, uint32_t thread,
		    uint64_t now_ns)
{
	uint64_t at = atomic_fetch_add_explicit(&t->head, 1, memory_order_relaxed);
	struct vm_trace_slot *s = &t->slot[at % TRACE_RING];

	atomic_store_explicit(&s->unit, unit, memory_order_relaxed);
	atomic_store_explicit(&s->time_ns, now_ns, memory_order_relaxed);
	atomic_store_explicit(&s->flags_thread, (uint64_t)flags << 32 | thread,
			      memory_order_relaxed);
	atomic_store_explicit(&s->turn, at + 1, memory_order_release);
}

void vm_trace_forget(struct block *b, uint64_t unit, uint64_t count, bool by_recording)
{
	struct vm_trace *t = atomic_load(&b->vm->trace);
	uint64_t present[CHUNK / 64];

	for (uint64_t done = 0; t && done < count; done += CHUNK) {
		uint64_t n = count - done < CHUNK ? count - done : CHUNK;
		uint64_t first = b->first_unit + unit + done;

		if (tracker_present(b, unit + done, n, present))
			return;
		for (uint64_t k = 0; k < n && first + k < t->units; k++) {
			uint64_t bit = UINT64_C(1) << ((first + k) % 64);
			uint64_t *touched = &t->touched[(first + k) / 64];

			if (present[k / 64] >> (k % 64) & 1) {
				t->window[(first + k) / 64] |= bit;
				*touched |= bit;
			}
			if (!by_recording)
				*touched &= ~bit;
		}
	}
}

void vm_trace_add_touched(struct vm *vm, uint64_t first, uint64_t count, uint64_t *bitmap)
{
	struct vm_trace *t = atomic_load(&vm->trace);

	for (uint64_t k = 0; t && k < count && first + k < t->units; k++)
		if (t->touched[(first + k) / 64] >> ((first + k) % 64) & 1)
			bitmap[k / 64] |= UINT64_C(1) << (k % 64);
}

static void trace_free(struct vm_trace *t)
{
	if (!t)
		return;
	free(t->touched);
	free(t->window);
	free(t);
}

static struct vm_trace *trace_new(uint64_t units)
{
	struct vm_trace *t = calloc(1, sizeof(*t));

	if (!t)
		return NULL;
	t->units = units;
	t->touched = calloc((units + 63) / 64, 8);
	t->window = calloc((units + 63) / 64, 8);
	if (t->touched && t->window)
		return t;
	trace_free(t);
	return NULL;
}

int vm_trace_begin(struct vm *vm, struct vm_trace **out, struct error *e)
{
	struct vm_trace *t = trace_new(atomic_load(&vm->units)), *none = NULL;

	if (!t)
		return error_set(e, ENOMEM, ERROR_GENERIC, "no memory for the recording");
	if (!atomic_compare_exchange_strong(&vm->trace, &none, t)) {
		trace_free(t);
		return error_set(e, EBUSY, ERROR_BUSY, "VM %s is being recorded already", vm->name);
	}
	*out = t;
	return 0;
}

void vm_trace_end(struct vm *vm, struct vm_trace *t)
{
	pthread_mutex_lock(&vm->policy_lock);
	atomic_store(&vm->trace, NULL);
	pthread_mutex_unlock(&vm->policy_lock);
	/* Fault threads may still be writing to the ring. */
	engine_barrier(vm->eng);
	trace_free(t);
}

bool vm_trace_next_fault(struct vm_trace *t, struct ebb_fault *out, uint64_t *lost)
{
	uint64_t head = atomic_load_explicit(&t->head, memory_order_acquire);

	*lost = 0;
	if (head - t->tail > TRACE_RING) {
		*lost = head - t->tail - TRACE_RING;
		t->tail += *lost;
	}
	for (; t->tail < head; t->tail++) {
		struct vm_trace_slot *s = &t->slot[t->tail % TRACE_RING];
		uint64_t what, unit, turn = atomic_load_explicit(&s->turn, memory_order_acquire);

		if (turn < t->tail + 1)
			return false; /* it is being written */
		unit = atomic_load_explicit(&s->unit, memory_order_relaxed);
		what = atomic_load_explicit(&s->flags_thread, memory_order_relaxed);
		if (turn != t->tail + 1) {
			(*lost)++; /* written over meanwhile */
			continue;
		}
		*out = (struct ebb_fault){
			.unit = unit,
			.flags = (uint32_t)(what >> 32),
			.thread = (uint32_t)what,
			.time_ns = atomic_load_explicit(&s->time_ns, memory_order_relaxed)};
		t->tail++;
		return true;
	}
	return false;
}

void vm_trace_gather(struct vm *vm)
{
	pthread_rwlock_rdlock(&vm->structure);
	for (unsigned int i = 0; i < atomic_load(&vm->n_blocks); i++) {
		struct block *b = atomic_load(&vm->blocks[i]);

		for (uint64_t u = 0; b && !atomic_load(&b->gone) && u < b->units; u += CHUNK) {
			pthread_mutex_lock(&vm->policy_lock);
			tracker_forget_chunk(b, u, b->units - u < CHUNK ? b->units - u : CHUNK);
			pthread_mutex_unlock(&vm->policy_lock);
		}
	}
	pthread_rwlock_unlock(&vm->structure);
}

/* ---- the job that writes a file ---- */

struct recording {
	struct vm *vm;
	struct vm_trace *t;
	struct trace_writer *w;
	struct trace_result *out;
	uint64_t last_ns; /* of the last record */
};

static void pass_time(struct recording *r, uint64_t now_ns)
{
	uint64_t us;

	/* Faults of several threads come slightly out of order. */
	if (now_ns <= r->last_ns)
		return;
	us = (now_ns - r->last_ns) / NS_PER_US;
	trace_time(r->w, us);
	r->last_ns += us * NS_PER_US;
}

static void drain(struct recording *r)
{
	struct ebb_fault f;
	uint64_t lost;

	for (;;) {
		bool more = vm_trace_next_fault(r->t, &f, &lost);

		if (lost)
			trace_lost(r->w, lost);
		r->out->lost += lost;
		if (!more)
			return;
		pass_time(r, f.time_ns);
		trace_fault(r->w, f.unit, f.thread, f.flags);
		r->out->faults++;
	}
}

/* Ends a window: what was accessed since the last one is written, and made forgotten. */
static void window(struct recording *r)
{
	struct vm *vm = r->vm;

	if (!vm_has_tracker(vm))
		return;
	vm_trace_gather(vm);
	pthread_mutex_lock(&vm->policy_lock);
	pass_time(r, clock_ns());
	trace_window(r->w, r->t->window);
	memset(r->t->window, 0, (r->t->units + 63) / 64 * 8);
	pthread_mutex_unlock(&vm->policy_lock);
	r->out->windows++;
}

static int record(struct recording *r, const struct trace_request *req, struct progress *p)
{
	uint64_t start = clock_ns(), end = start + req->seconds * NS_PER_S;
	uint64_t window_ns = req->window_ms * NS_PER_MS, next_window = start;

	r->last_ns = start;
	atomic_store(&p->total, req->seconds);
	while (clock_ns() < end && !atomic_load(&p->cancel) && !atomic_load(&r->vm->dead) &&
	       !r->w->full && !r->w->failed) {
		drain(r);
		if (clock_ns() >= next_window) {
			/* The first one, at the start, is all that was accessed before. */
			window(r);
			next_window = clock_ns() + window_ns;
		}
		atomic_store(&p->done, (clock_ns() - start) / NS_PER_S);
		usleep(TRACE_DRAIN_MS * 1000);
	}
	drain(r);
	if (!atomic_load(&r->vm->dead))
		window(r);
	r->out->full = r->w->full;
	return trace_finish(r->w);
}

int engine_vm_trace(struct engine *eng, const char *name, const struct trace_request *req,
		    struct progress *p, struct trace_result *out, struct error *e)
{
	struct recording r = {.vm = engine_vm_get(eng, name), .out = out};
	int err;

	memset(out, 0, sizeof(*out));
	if (!r.vm)
		return error_set(e, ENOENT, ERROR_NOT_FOUND, "no VM %s", name);
	err = vm_trace_begin(r.vm, &r.t, e);
	if (err) {
		vm_put(r.vm);
		return err;
	}
	r.w = malloc(sizeof(*r.w));
	err = r.w ? trace_begin(r.w, req->fd, r.t->units, vm_unit_bytes(r.vm), req->max_bytes)
		  : -ENOMEM;
	if (err) {
		error_set(e, -err, ERROR_GENERIC, "the recording could not begin: %s",
			  error_text(err));
	} else {
		err = record(&r, req, p);
		out->bytes = r.w->bytes;
		if (err)
			error_set(e, -err, ERROR_GENERIC, "the recording could not be written: %s",
				  error_text(err));
	}
	vm_trace_end(r.vm, r.t);
	free(r.w);
	vm_put(r.vm);
	return err;
}
