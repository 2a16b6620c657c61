/* SPDX-License-Identifier: BSD-3-Clause */
/* prefetch.c: the thread that brings units back before they are asked for. */
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <unistd.h>

#include "engine/internal.h"
#include "engine/thp.h"
#include "sys/pagemap.h"

/*
 * Theory of operation
 *
 * Fault workers put the ranges that a policy asked for into their VM's ring and go on; this thread
 * takes them from there. What a policy wants brought back in bulk waits in a queue of its own
 * behind that, and is taken a slice at a time. It takes at most half of the VM's headroom, so that
 * no demand fault ever waits for its sake. A unit that it brought in is taken out of the VMM's page
 * table again (the page stays): then the first use maps it in the kernel, without us, and the
 * present bit tells later whether there was one. It also makes huge pages of units that came back
 * in small ones. How many ranges wait is bounded; what does not fit is dropped.
 */

#define RANGE_MAX_UNITS 512u
#define ZAP_BATCH	64u
#define BULK_SLICE	64u /* units of the bulk queue before the rings are looked at again */

struct prefetcher {
	struct engine_thread t;
	struct loader loader;
};

bool ring_push(struct prefetch_ring *r, const struct ebb_range *range)
{
	uint64_t head = atomic_load(&r->head);

	do {
		if (head - atomic_load(&r->tail) >= PREFETCH_RING)
			return false;
	} while (!atomic_compare_exchange_weak(&r->head, &head, head + 1));
	r->slots[head % PREFETCH_RING] = *range;
	atomic_store_explicit(&r->ready[head % PREFETCH_RING], true, memory_order_release);
	return true;
}

void prefetch_push(struct vm *vm, const struct ebb_range *ranges, uint32_t n)
{
	for (uint32_t i = 0; i < n; i++)
		ring_push(&vm->prefetch_ring, &ranges[i]);
	engine_prefetch_kick(vm->eng);
}

bool bulk_push(struct vm *vm, const struct ebb_range *range)
{
	struct bulk_queue *q = &vm->bulk;
	bool taken = false;

	pthread_mutex_lock(&q->lock);
	if (!q->slots) {
		uint64_t size = atomic_load(&vm->units) / 8;

		q->size = size < BULK_MIN ? BULK_MIN : size > BULK_MAX ? BULK_MAX : size;
		q->slots = calloc(q->size, sizeof(*q->slots));
	}
	if (q->slots && q->head - q->tail < q->size) {
		q->slots[q->head++ % q->size] = *range;
		taken = true;
	}
	pthread_mutex_unlock(&q->lock);
	if (taken)
		engine_prefetch_kick(vm->eng);
	return taken;
}

/* The next slice; false when there is none. */
static bool bulk_pop(struct bulk_queue *q, struct ebb_range *out)
{
	struct ebb_range *next;
	bool there;

	pthread_mutex_lock(&q->lock);
	there = q->head != q->tail;
	if (there) {
		next = &q->slots[q->tail % q->size];
		*out = *next;
		if (out->count > BULK_SLICE)
			out->count = BULK_SLICE;
		next->first += out->count;
		next->count -= out->count;
		if (!next->count)
			q->tail++;
		q->drained = q->head == q->tail;
	}
	pthread_mutex_unlock(&q->lock);
	return there;
}

static void bulk_drop(struct bulk_queue *q)
{
	pthread_mutex_lock(&q->lock);
	q->tail = q->head;
	pthread_mutex_unlock(&q->lock);
}

void collapse_push(struct vm *vm, uint64_t vm_unit)
{
	struct ebb_range one = {vm_unit, 1};

	ring_push(&vm->collapse_ring, &one);
	engine_prefetch_kick(vm->eng);
}

bool ring_pop(struct prefetch_ring *r, struct ebb_range *out)
{
	uint64_t tail = atomic_load(&r->tail);

	if (tail == atomic_load(&r->head) ||
	    !atomic_load_explicit(&r->ready[tail % PREFETCH_RING], memory_order_acquire))
		return false;
	*out = r->slots[tail % PREFETCH_RING];
	atomic_store(&r->ready[tail % PREFETCH_RING], false);
	atomic_store(&r->tail, tail + 1);
	return true;
}

static void unmap(struct block *b, const uint64_t *units, unsigned int n)
{
	struct mapping *m = atomic_load(&b->mappings[0]);
	struct iovec v[ZAP_BATCH];

	if (!m || !vm_has_tracker(b->vm) || b->kind == BLOCK_HUGETLB)
		return;
	for (unsigned int i = 0; i < n; i++)
		v[i] = (struct iovec){(void *)(uintptr_t)mapping_addr(m, units[i]),
				      block_unit_bytes(b)};
	pageout_zap(m->att->pidfd, v, n);
}

/* A VM at its limit sits at its target: half of the headroom above it is the prefetcher's. */
static bool room(struct vm *vm)
{
	uint64_t limit = atomic_load(&vm->limit_bytes), target = reclaim_target(vm);
	uint64_t resident = (uint64_t)atomic_load(&vm->resident);

	if (!limit)
		return true;
	/* As a fault does: an evictor that is woken for a few units costs more than they do. */
	if (resident > reclaim_begin(vm))
		engine_kick(vm);
	return resident < target + (limit - target) / 2;
}

/* Units of one block that were brought in and are still mapped: one call unmaps them all. */
struct brought {
	struct block *block;
	uint64_t unit[ZAP_BATCH];
	unsigned int n;
};

static void unmap_brought(struct brought *got)
{
	if (got->n)
		unmap(got->block, got->unit, got->n);
	got->n = 0;
}

/*
 * Where accesses to what is cached but not mapped come to us (MINOR), the first use of a unit that
 * was unmapped costs a fault as dear as the one that was to be avoided. What is restored in bulk
 * stays mapped there: it counts as used when somebody looks. What is read ahead of faults is
 * unmapped all the same, since its policy would learn of no mistake.
 */
static bool stays_mapped(const struct block *b, bool bulk)
{
	return bulk && atomic_load(&b->minor);
}

/* False when there is no room for more. */
static bool fetch(struct prefetcher *p, struct vm *vm, struct ebb_range range, bool bulk,
		  struct brought *got)
{
	uint64_t unit;

	if (range.count > RANGE_MAX_UNITS)
		range.count = RANGE_MAX_UNITS;
	for (uint64_t i = 0; i < range.count; i++) {
		struct block *at = vm_block_of(vm, range.first + i, &unit);

		if (!at || atomic_load(&vm->dead))
			return true;
		if (!room(vm))
			return false;
		if (at != got->block || got->n == ZAP_BATCH)
			unmap_brought(got);
		got->block = at;
		if (loader_bring_back(&p->loader, at, unit, true) == 0) {
			vm_count(vm, COUNTER_prefetched);
			if (!stays_mapped(at, bulk))
				got->unit[got->n++] = unit;
		}
	}
	return true;
}

static void collapse(struct vm *vm, uint64_t vm_unit)
{
	uint64_t unit;
	struct block *b = vm_block_of(vm, vm_unit, &unit);

	if (b && b->kind == BLOCK_THP && !atomic_load(&b->gone))
		thp_collapse(b, unit);
}

static bool goes_on(struct vm *vm)
{
	return !atomic_load(&vm->dead) && !atomic_load(&vm->eng->pause.background);
}

/*
 * A slice of the bulk queue; true when there may be more. A policy that asked for more than the
 * queue holds is asked again as soon as it is empty, by a tick.
 */
static bool fetch_bulk(struct prefetcher *p, struct vm *vm)
{
	struct brought got = {.n = 0};
	struct ebb_range range;
	uint64_t units = 0;

	while (units < BULK_SLICE && bulk_pop(&vm->bulk, &range)) {
		units += range.count;
		if (!fetch(p, vm, range, true, &got)) {
			bulk_drop(&vm->bulk);
			unmap_brought(&got);
			return false;
		}
	}
	unmap_brought(&got);
	if (vm->bulk.drained) {
		vm->bulk.drained = false;
		policies_tick_prefetch(vm);
	}
	return units > 0;
}

/* True when there is bulk work left. */
static bool work_on(struct prefetcher *p, struct vm *vm)
{
	struct brought got = {.n = 0};
	struct ebb_range range;

	while (goes_on(vm) && ring_pop(&vm->prefetch_ring, &range))
		fetch(p, vm, range, false, &got);
	unmap_brought(&got);
	while (goes_on(vm) && ring_pop(&vm->collapse_ring, &range))
		collapse(vm, range.first);
	return goes_on(vm) && fetch_bulk(p, vm);
}

/*
 * What comes after it was asked for by a fault is of no use: next to the fault workers, this thread
 * goes before those that would only fill their time slices. It works for some microseconds a unit,
 * and only as far as there is room.
 */
static void go_early(void)
{
	/* Without the right to, everything works as well, later. */
	if (setpriority(PRIO_PROCESS, (id_t)gettid(), -19))
		return;
}

static void *prefetcher_main(void *arg)
{
	struct prefetcher *p = arg;
	struct engine *eng = p->t.eng;
	struct vm **vms = calloc(ENGINE_VMS_MAX, sizeof(*vms));
	bool more = false;

	go_early();
	while (vms && !atomic_load(&eng->stop)) {
		struct pollfd pfd = {.fd = p->t.wake_fd, .events = POLLIN};
		unsigned int n;

		loader_flush_frees(&p->loader);
		loader_refresh(&p->loader, 1);
		if (engine_thread_pass(&p->t))
			continue;
		poll(&pfd, 1, more ? 0 : 1000);
		more = false;
		n = engine_vms_get(eng, vms, ENGINE_VMS_MAX);
		for (unsigned int i = 0; i < n; i++) {
			more |= work_on(p, vms[i]);
			vm_put(vms[i]);
		}
	}
	free(vms);
	return NULL;
}

void engine_prefetch_kick(struct engine *eng)
{
	if (eng->prefetcher)
		engine_thread_wake(&eng->prefetcher->t);
}

int prefetcher_new(struct engine *eng, struct prefetcher **out)
{
	struct prefetcher *p = calloc(1, sizeof(*p));
	int r;

	if (!p)
		return -ENOMEM;
	r = engine_thread_init(eng, &p->t);
	if (!r)
		r = loader_open(eng, &p->loader, 1, 0);
	if (!r)
		r = engine_thread_start(&p->t, "ebb-prefetch", prefetcher_main, p);
	if (r) {
		prefetcher_free(p);
		return r;
	}
	*out = p;
	return 0;
}

void prefetcher_free(struct prefetcher *p)
{
	if (!p)
		return;
	engine_thread_end(&p->t);
	loader_close(&p->loader);
	free(p);
}
