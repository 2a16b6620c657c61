/* SPDX-License-Identifier: BSD-3-Clause */
/* prefetch.c: the thread that brings units back before they are asked for. */
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <sys/eventfd.h>

#include "engine/internal.h"
#include "engine/thp.h"
#include "sys/pagemap.h"

/*
 * Theory of operation
 *
 * Fault workers put the ranges that a policy asked for into their VM's ring and go on; this thread
 * takes them from there. It takes at most half of the VM's headroom, so that no demand fault ever
 * waits for its sake. A unit that it brought in is taken out of the VMM's page table again (the
 * page stays): then the first use maps it in the kernel, without us, and the present bit tells
 * later whether there was one. It also makes huge pages of units that came back in small ones. How
 * many ranges wait is bounded; what does not fit is dropped.
 */

#define RANGE_MAX_UNITS 512u
#define ZAP_BATCH	64u

struct prefetcher {
	struct engine_thread t;
	struct loader loader;
};

static void ring_push(struct prefetch_ring *r, const struct ebb_range *range)
{
	uint64_t head = atomic_load(&r->head);

	do {
		if (head - atomic_load(&r->tail) >= PREFETCH_RING)
			return;
	} while (!atomic_compare_exchange_weak(&r->head, &head, head + 1));
	r->slots[head % PREFETCH_RING] = *range;
	atomic_store_explicit(&r->ready[head % PREFETCH_RING], true, memory_order_release);
}

void prefetch_push(struct vm *vm, const struct ebb_range *ranges, uint32_t n)
{
	for (uint32_t i = 0; i < n; i++)
		ring_push(&vm->prefetch_ring, &ranges[i]);
	engine_prefetch_kick(vm->eng);
}

void collapse_push(struct vm *vm, uint64_t vm_unit)
{
	struct ebb_range one = {vm_unit, 1};

	ring_push(&vm->collapse_ring, &one);
	engine_prefetch_kick(vm->eng);
}

static bool pop(struct prefetch_ring *r, struct ebb_range *out)
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

	if (!m || !b->vm->has_tracker || b->kind == BLOCK_HUGETLB)
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
	if (resident >= target)
		engine_kick(vm);
	return resident < target + (limit - target) / 2;
}

static void fetch(struct prefetcher *p, struct vm *vm, struct ebb_range range)
{
	uint64_t brought[ZAP_BATCH], unit;
	unsigned int n = 0;
	struct block *b = NULL;

	if (range.count > RANGE_MAX_UNITS)
		range.count = RANGE_MAX_UNITS;
	for (uint64_t i = 0; i < range.count; i++) {
		struct block *at = vm_block_of(vm, range.first + i, &unit);

		if (!at || atomic_load(&vm->dead) || !room(vm))
			break;
		if (at != b || n == ZAP_BATCH) {
			if (n)
				unmap(b, brought, n);
			n = 0;
		}
		b = at;
		if (loader_bring_back(&p->loader, b, unit, true) == 0) {
			vm_count(vm, COUNTER_prefetched);
			brought[n++] = unit;
		}
	}
	if (n)
		unmap(b, brought, n);
}

static void collapse(struct vm *vm, uint64_t vm_unit)
{
	uint64_t unit;
	struct block *b = vm_block_of(vm, vm_unit, &unit);

	if (b && b->kind == BLOCK_THP && !atomic_load(&b->gone))
		thp_collapse(b, unit);
}

static void *prefetcher_main(void *arg)
{
	struct prefetcher *p = arg;
	struct engine *eng = p->t.eng;
	struct vm **vms = calloc(ENGINE_VMS_MAX, sizeof(*vms));

	while (vms && !atomic_load(&eng->stop)) {
		struct pollfd pfd = {.fd = p->t.wake_fd, .events = POLLIN};
		struct ebb_range range;
		unsigned int n;

		loader_flush_frees(&p->loader);
		loader_refresh(&p->loader, 1);
		engine_thread_pass(&p->t);
		poll(&pfd, 1, 1000);
		n = engine_vms_get(eng, vms, ENGINE_VMS_MAX);
		for (unsigned int i = 0; i < n; i++) {
			while (!atomic_load(&vms[i]->dead) && pop(&vms[i]->prefetch_ring, &range))
				fetch(p, vms[i], range);
			while (!atomic_load(&vms[i]->dead) && pop(&vms[i]->collapse_ring, &range))
				collapse(vms[i], range.first);
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
	p->t.eng = eng;
	p->t.wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	r = p->t.wake_fd < 0 ? -errno : loader_open(eng, &p->loader, 1);
	if (!r)
		r = engine_thread_start(eng, &p->t, "ebb-prefetch", prefetcher_main, p);
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
	engine_thread_join(&p->t);
	loader_close(&p->loader);
	if (p->t.wake_fd >= 0)
		close(p->t.wake_fd);
	free(p);
}
