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
 * What a policy asked for and lies next to the faulting unit, the fault worker brings at once, up
 * to a run: for some microseconds a unit, where waking anybody costs many, and who follows a fault
 * so closely would overtake it. The rest goes into the VM's ring, and this thread takes it from
 * there. What a policy wants brought back in bulk waits in a queue of its own behind that, and is
 * taken a slice at a time. It takes at most half of the VM's headroom, so that no demand fault ever
 * waits for its sake; where that is taken, an evictor is woken and what was asked for ahead waits a
 * moment. A unit that it read ahead is taken out of the VMM's page table again (the page stays):
 * then the first use maps it in the kernel, without us, and the present bit tells later whether
 * there was one. It also makes huge pages of units that came back in small ones. How many ranges
 * wait is bounded; what does not fit is dropped.
 */

#define RANGE_MAX_UNITS 512u
#define ZAP_BATCH	64u
#define BULK_SLICE	64u /* units of the bulk queue before the rings are looked at again */
#define IDLE_MS		1000
#define SHARE		4  /* see room() */
#define SHARE_BESIDE	8  /* what follows a fault at once is as good as asked for */
#define TRUST_UNITS	64 /* outcomes between two verdicts */
#define TRUST_LOOK	8
#define ROOM_NS		(10 * NS_PER_MS) /* what has waited for room so long comes too late */

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

/* Ranges of one process that were brought in and are still mapped: one call unmaps them all. */
struct brought {
	struct block *block;
	struct iovec at[ZAP_BATCH];
	unsigned int n;
};

static void unmap_brought(struct brought *got)
{
	struct mapping *m = got->n ? atomic_load(&got->block->mappings[0]) : NULL;

	if (m)
		pageout_zap(m->att->pidfd, got->at, got->n);
	got->n = 0;
}

/*
 * What is restored in bulk stays mapped: it is wanted as a whole, and its first use costs nothing
 * then; else a fault, of the kernel's, or one of ours where MINOR ones come to us, and unmapping it
 * costs as much as loading it. It counts as used when somebody looks. What is read ahead of faults
 * is unmapped, since its policy would learn of no mistake.
 */
static bool stays_mapped(const struct block *b, bool bulk)
{
	return bulk || !vm_has_tracker(b->vm) || b->kind == BLOCK_HUGETLB;
}

/*
 * Unmapping what was brought, and its first use then, cost about as much as bringing it. Where
 * nearly all that was looked at has been used, one run in TRUST_LOOK still is, and the others stay
 * mapped and nobody looks.
 */
static bool trusts(struct vm *vm)
{
	struct trust *t = &vm->trust;
	uint64_t hits = atomic_load(&vm->counter[COUNTER_prefetch_hits]);
	uint64_t wasted = atomic_load(&vm->counter[COUNTER_prefetch_wasted]);
	uint64_t used = hits - atomic_load(&t->hits), unused = wasted - atomic_load(&t->wasted);

	if (used + unused >= TRUST_UNITS) {
		atomic_store(&t->given, unused * 16 < used);
		atomic_store(&t->hits, hits);
		atomic_store(&t->wasted, wasted);
	}
	return atomic_load(&t->given) && atomic_fetch_add(&t->runs, 1) % TRUST_LOOK;
}

static void to_unmap(struct brought *got, struct block *b, uint64_t unit, uint64_t units)
{
	struct mapping *m = atomic_load(&b->mappings[0]);

	if (b != got->block || got->n == ZAP_BATCH)
		unmap_brought(got);
	got->block = b;
	if (m)
		got->at[got->n++] = (struct iovec){(void *)(uintptr_t)mapping_addr(m, unit),
						   units << b->unit_shift};
}

/* Bytes that may come in until the resident memory is `share` eighths of the headroom above target.
 */
static uint64_t room(struct vm *vm, unsigned int share)
{
	uint64_t limit = atomic_load(&vm->limit_bytes), target = reclaim_target(vm);
	uint64_t resident = (uint64_t)atomic_load(&vm->resident), most;

	if (!limit)
		return UINT64_MAX;
	/* As a fault does: an evictor that is woken for a few units costs more than they do. */
	if (resident > reclaim_begin(vm))
		engine_kick(vm);
	most = target + (limit - target) / 8 * share;
	return resident < most ? most - resident : 0;
}

/* Brings back what there is room for, and takes it off the range, as it does what is no more. */
static void fetch(struct loader *ld, struct vm *vm, struct ebb_range *range, bool bulk,
		  struct brought *got)
{
	uint64_t unit, most, n;

	while (range->count) {
		struct block *at = vm_block_of(vm, range->first, &unit);
		unsigned int brought;
		bool trusted;

		if (!at || atomic_load(&vm->dead)) {
			range->count = 0;
			return;
		}
		most = room(vm, SHARE);
		if (!most)
			return;
		/* One at least: a huge unit may be more than all of it. */
		most = most >> at->unit_shift ? most >> at->unit_shift : 1;
		if (most > range->count)
			most = range->count;
		if (most > at->units - unit)
			most = at->units - unit;
		trusted = !bulk && most > 1 && at->kind == BLOCK_SHMEM && trusts(vm);
		n = loader_bring_back_run(ld, at, unit, most,
					  RUN_WAIT | (trusted ? RUN_TRUSTED : 0), &brought);
		vm_add(vm, COUNTER_prefetched, brought);
		if (trusted)
			vm_add(vm, COUNTER_prefetch_trusted, brought);
		else if (brought && !stays_mapped(at, bulk))
			to_unmap(got, at, unit, n);
		range->first += n;
		range->count -= n;
	}
}

/*
 * Brings what lies next to a fault's unit now, without waiting for a slow tier; off the range.
 * False when there was less room than a run takes: the fault after these waits for it.
 */
static bool fetch_beside(struct loader *ld, struct block *b, uint64_t unit, struct ebb_range *range)
{
	uint64_t fault = b->first_unit + unit, n = room(b->vm, SHARE_BESIDE) >> b->unit_shift;
	bool below = range->first + range->count == fault, above = range->first == fault + 1;
	uint64_t most = below ? unit : b->units - unit - 1, done;
	unsigned int brought, how = 0;
	bool enough;

	if (!block_is_small(b) || !(below || above))
		return true;
	if (most > LOADER_RUN)
		most = LOADER_RUN;
	if (most > range->count)
		most = range->count;
	enough = n >= most;
	if (!enough) {
		run_wait_short(b->vm, below ? fault - n - 1 : fault + n + 1);
		if (!n)
			return false;
		most = n;
	}
	if (trusts(b->vm))
		how = RUN_TRUSTED;
	else if (!stays_mapped(b, false))
		how = above ? RUN_UNMAP_ABOVE : RUN_UNMAP_BELOW;
	done = loader_bring_back_run(ld, b, below ? unit - most : unit + 1, most, how, &brought);
	vm_add(b->vm, COUNTER_prefetched, brought);
	if (how == RUN_TRUSTED)
		vm_add(b->vm, COUNTER_prefetch_trusted, brought);
	else if (how && brought)
		vm_add(b->vm, COUNTER_prefetch_trusted, 1);
	if (above)
		range->first += done;
	if (above || done == most)
		range->count -= done;
	return enough;
}

void prefetch_asked(struct loader *ld, struct block *b, uint64_t unit, struct ebb_range *asks,
		    uint32_t n)
{
	struct vm *vm = b->vm;
	bool left = false;

	if (n && !fetch_beside(ld, b, unit, &asks[0]))
		return;
	for (uint32_t i = 0; i < n; i++)
		if (asks[i].count)
			left |= ring_push(&vm->prefetch_ring, &asks[i]);
	/* While it waits for room it looks again by itself. */
	if (left && !atomic_load(&vm->prefetch_waits))
		engine_prefetch_kick(vm->eng);
}

static void collapse(struct vm *vm, uint64_t vm_unit)
{
	uint64_t unit;
	struct block *b = vm_block_of(vm, vm_unit, &unit);

	if (!b || atomic_load(&b->gone))
		return;
	if (b->kind == BLOCK_THP)
		thp_collapse(b, unit);
	else if (b->kind == BLOCK_MIXED)
		thp_merge(b, unit);
}

static bool goes_on(struct vm *vm)
{
	return !atomic_load(&vm->dead) && !atomic_load(&vm->eng->pause.background);
}

/* What faults asked for; true when some of it waits for room. */
static bool fetch_ahead(struct prefetcher *p, struct vm *vm)
{
	struct brought got = {.n = 0};
	struct ebb_range *range = &vm->ahead;
	bool waits = false;

	while (!waits && goes_on(vm) && (range->count || ring_pop(&vm->prefetch_ring, range))) {
		if (range->count > RANGE_MAX_UNITS)
			range->count = RANGE_MAX_UNITS;
		fetch(&p->loader, vm, range, false, &got);
		if (!range->count) {
			vm->ahead_waits_ns = 0;
			continue;
		}
		if (!vm->ahead_waits_ns)
			vm->ahead_waits_ns = clock_ns();
		waits = clock_ns() - vm->ahead_waits_ns < ROOM_NS;
		if (!waits)
			range->count = 0;
	}
	unmap_brought(&got);
	atomic_store(&vm->prefetch_waits, waits);
	if (waits)
		engine_kick(vm);
	return waits;
}

/*
 * A slice of the bulk queue; true when there may be more. A policy that asked for more than the
 * queue holds is asked again as soon as it is empty, by a tick.
 */
static bool fetch_bulk(struct prefetcher *p, struct vm *vm)
{
	struct brought got = {.n = 0};
	struct ebb_range range = {.count = 0};
	uint64_t units = 0;

	while (!range.count && units < BULK_SLICE && bulk_pop(&vm->bulk, &range)) {
		units += range.count;
		fetch(&p->loader, vm, &range, true, &got);
	}
	unmap_brought(&got);
	if (range.count) {
		bulk_drop(&vm->bulk);
		return false;
	}
	if (vm->bulk.drained) {
		vm->bulk.drained = false;
		policies_tick_prefetch(vm);
	}
	return units > 0;
}

/* How long it may sleep after this, in ms. */
static int work_on(struct prefetcher *p, struct vm *vm)
{
	bool waits = fetch_ahead(p, vm);
	struct ebb_range range;

	while (goes_on(vm) && ring_pop(&vm->collapse_ring, &range))
		collapse(vm, range.first);
	if (goes_on(vm) && fetch_bulk(p, vm))
		return 0;
	return waits ? 1 : IDLE_MS;
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
	int nap_ms = IDLE_MS;

	go_early();
	while (vms && !atomic_load(&eng->stop)) {
		struct pollfd pfd = {.fd = p->t.wake_fd, .events = POLLIN};
		unsigned int n;

		loader_flush_frees(&p->loader);
		loader_refresh(&p->loader, LOADER_RUN);
		if (engine_thread_pass(&p->t))
			continue;
		poll(&pfd, 1, nap_ms);
		nap_ms = IDLE_MS;
		n = engine_vms_get(eng, vms, ENGINE_VMS_MAX);
		for (unsigned int i = 0; i < n; i++) {
			int ms = work_on(p, vms[i]);

			if (ms < nap_ms)
				nap_ms = ms;
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
		r = loader_open(eng, &p->loader, LOADER_RUN, 0);
	if (!r) {
		loader_populate(p->loader.buffers, LOADER_RUN * UINT64_C(4096));
		r = engine_thread_start(&p->t, "ebb-prefetch", prefetcher_main, p);
	}
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
