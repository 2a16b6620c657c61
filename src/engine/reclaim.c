/* SPDX-License-Identifier: BSD-3-Clause */
/* reclaim.c: when and how much to take from each VM, and the threads that do it. */
#include <errno.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <time.h>
#include <unistd.h>

#include "engine/internal.h"
#include "sys/uffd.h"

/*
 * Theory of operation
 *
 * Evictors sleep until somebody kicks a VM: a fault that brought it above its target, a lowered
 * limit, a reclaim job, a policy's tick. The target is the limit less a headroom, so that faults
 * find room without waiting; above the limit faults still go on up to a bound, and are parked
 * there. When nothing at all can be evicted (suspended, every backend full, all of it busy), they
 * go on beyond the bound, counted and reported: a VM that hangs for good would be worse. One
 * evictor works on a VM at a time, and more of them only while it is above its limit.
 *
 * The policy names the victims. When it names none although memory must go (a null policy, a bad
 * one, everything hot), a plain sweep over the RAM does, so that a limit holds under any policy.
 */

#define ROUND_UNITS  256 /* asked of a policy at once */
#define ROUND_RANGES 64
#define ROUNDS	     32 /* on one VM before the others get their turn */
#define DRY_ROUNDS   8
#define REST_BYTES   (EVICT_BATCH * UINT64_C(4096)) /* see can_wait() */

/*
 * A guest that is at its limit and busy has to be slowed down to what eviction can do. Better a
 * little with each fault, by an evictor that gets its CPU before the guest does, than by parking:
 * then all of its faults wait for milliseconds. In short turns, so that neither waits long.
 */
#define EVICT_NICE     (-5)
#define EVICT_SLICE_NS (NS_PER_MS / 5)

struct evictor {
	struct engine_thread t;
	struct evict_context *context;
	int epoll_fd;
};

static uint64_t headroom(uint64_t limit)
{
	uint64_t h = limit / 64;

	if (h < UINT64_C(1) << 20)
		h = UINT64_C(1) << 20;
	if (h > UINT64_C(32) << 20)
		h = UINT64_C(32) << 20;
	return h;
}

uint64_t reclaim_target(const struct vm *vm)
{
	uint64_t limit = atomic_load_explicit(&vm->limit_bytes, memory_order_relaxed);
	uint64_t h = headroom(limit);

	if (!limit)
		return UINT64_MAX;
	return limit > 2 * h ? limit - h : limit / 2;
}

/*
 * A quarter of the headroom above the target: waking an evictor costs a fault as much as all its
 * accounting, and a batch is evicted for little more than a single unit.
 */
uint64_t reclaim_begin(const struct vm *vm)
{
	uint64_t limit = atomic_load_explicit(&vm->limit_bytes, memory_order_relaxed);
	uint64_t target = reclaim_target(vm);

	return limit ? target + (limit - target) / 4 : UINT64_MAX;
}

uint64_t reclaim_bound(uint64_t limit)
{
	/* At least one huge page has to fit between target and bound. */
	return limit + headroom(limit) / 4 + UNIT_MAX_BYTES;
}

bool reclaim_helpless(const struct vm *vm)
{
	return atomic_load(&vm->suspended) || atomic_load(&vm->reclaim_dry) >= DRY_ROUNDS;
}

void reclaim_unpark(struct vm *vm)
{
	uint64_t limit = atomic_load(&vm->limit_bytes);

	if (!atomic_load(&vm->parked))
		return;
	if (limit && !reclaim_helpless(vm) && !atomic_load(&vm->restoring) && !run_wait_ended(vm) &&
	    ((uint64_t)atomic_load(&vm->resident) > limit || run_wait_some(vm)))
		return;
	if (!atomic_exchange(&vm->parked, false))
		return;
	/* Whoever waits in these ranges faults again; nothing else has to be remembered. */
	for (unsigned int a = 0; a < VM_ATTACH_MAX; a++) {
		struct attachment *att = atomic_load(&vm->attachments[a]);

		if (!att || atomic_load(&att->dead))
			continue;
		for (unsigned int i = 0; i < atomic_load(&att->n_mappings); i++) {
			struct mapping *m = atomic_load(&att->mappings[i]);

			if (m)
				uffd_wake(att->uffd, m->host_addr,
					  m->units << m->block->unit_shift);
		}
	}
}

/* Units to take now, and whether they must be found. */
static uint64_t wanted_bytes(const struct vm *vm, bool *urgent)
{
	uint64_t resident = (uint64_t)atomic_load(&vm->resident), target = reclaim_target(vm);
	uint64_t limit = atomic_load(&vm->limit_bytes), want = 0;
	int64_t job = atomic_load(&vm->reclaim_left);

	*urgent = job > 0 || atomic_load(&vm->parked) || atomic_load(&vm->prefetch_waits);
	if (resident > target) {
		want = resident - target;
		/* Half of the headroom is gone: no more time to wait for something colder. */
		if (resident > limit - (limit - target) / 2)
			*urgent = true;
	}
	if (job > 0 && (uint64_t)job > want)
		want = (uint64_t)job;
	return want;
}

/* Units in [first, end) of a block that are resident, from `first` on; into out. */
static unsigned int sweep_block(struct block *b, uint64_t *unit, uint64_t *out, unsigned int max)
{
	unsigned int n = 0;
	uint64_t entry;

	while (*unit < b->units && n < max) {
		if (*unit % PAGE_TABLE_RUN == 0 && page_table_uniform(&b->table, *unit, &entry) &&
		    page_entry_state(entry) != PE_RESIDENT) {
			*unit += PAGE_TABLE_RUN;
			if (*unit > b->units)
				*unit = b->units; /* the next block begins right there */
			continue;
		}
		if (page_entry_state(page_table_get(&b->table, *unit)) == PE_RESIDENT)
			out[n++] = b->first_unit + *unit;
		++*unit;
	}
	return n;
}

/* The sweep that goes on where it stopped; under policy_lock. */
static unsigned int sweep(struct vm *vm, uint64_t *out, unsigned int max)
{
	unsigned int n = 0;
	uint64_t units = atomic_load(&vm->units), unit;

	/* Twice: from the hand to the end, then from the start. */
	for (int lap = 0; lap < 2 && n < max; lap++) {
		while (vm->sweep_hand < units && n < max) {
			struct block *b = vm_block_of(vm, vm->sweep_hand, &unit);

			if (!b) {
				vm->sweep_hand++;
				continue;
			}
			n += sweep_block(b, &unit, out + n, max - n);
			vm->sweep_hand = b->first_unit + unit;
		}
		if (vm->sweep_hand >= units)
			vm->sweep_hand = 0;
	}
	return n;
}

static void drain_fault_ring(struct vm *vm, struct policy_instance *p)
{
	struct fault_ring *r = &vm->fault_ring;
	uint64_t head = atomic_load_explicit(&r->head, memory_order_acquire);

	/* What was overwritten meanwhile is lost: these are hints. */
	if (head - r->tail > FAULT_RING)
		r->tail = head - FAULT_RING;
	for (; r->tail < head; r->tail++) {
		struct fault_slot *slot = &r->slots[r->tail % FAULT_RING];
		uint64_t what = atomic_load(&slot->flags_thread);
		struct ebb_fault f = {.unit = atomic_load(&slot->unit),
				      .flags = (uint32_t)(what >> 32),
				      .thread = (uint32_t)what,
				      .time_ns = atomic_load(&slot->time_ns)};

		if (f.flags & FAULT_REFAULT)
			policy_on_outcome(p, EBB_OUTCOME_REFAULT, &f.unit, 1);
		f.flags &= ~FAULT_REFAULT;
		if (atomic_load(&vm->reclaim_wants_faults))
			policy_reclaim_fault(p, &f);
	}
}

/* Victims for about `units`, from the policy or by the sweep; under policy_lock. */
static unsigned int pick(struct vm *vm, uint64_t units, bool urgent, uint64_t *out)
{
	struct policy_instance *p = atomic_load(&vm->reclaim.instance);
	struct ebb_range ranges[ROUND_RANGES];
	unsigned int n = 0;
	uint32_t k = 0;

	if (p) {
		drain_fault_ring(vm, p);
		k = policy_pick_victims(p, units, false, ranges, ROUND_RANGES);
		if (!k && urgent)
			k = policy_pick_victims(p, units, true, ranges, ROUND_RANGES);
	}
	for (uint32_t i = 0; i < k; i++)
		for (uint64_t u = 0; u < ranges[i].count && n < ROUND_UNITS; u++)
			out[n++] = ranges[i].first + u;
	/* It names none, or for some time only what cannot be taken. */
	if (urgent && (!n || atomic_load(&vm->reclaim_idle) >= DRY_ROUNDS / 2))
		n = sweep(vm, out, (unsigned int)units);
	return n;
}

uint32_t vm_unit_bytes(struct vm *vm)
{
	uint64_t bytes = UNIT_MAX_BYTES;

	for (unsigned int i = 0; i < atomic_load(&vm->n_blocks); i++) {
		struct block *b = atomic_load(&vm->blocks[i]);

		if (b && block_unit_bytes(b) < bytes)
			bytes = block_unit_bytes(b);
	}
	return (uint32_t)bytes;
}

static uint64_t thread_cpu_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
	return (uint64_t)t.tv_sec * NS_PER_S + (uint64_t)t.tv_nsec;
}

static void note_limit(struct vm *vm)
{
	uint64_t limit = atomic_load(&vm->limit_bytes), now = clock_ns();
	uint64_t resident = (uint64_t)atomic_load(&vm->resident);
	uint64_t last = atomic_load(&vm->last_limit_event_ns);

	/* A limit that was just lowered far below is no excess: it is work. */
	if (!limit || resident <= limit || now - last < 10 * NS_PER_S ||
	    now - atomic_load(&vm->limit_set_ns) < 10 * NS_PER_S)
		return;
	atomic_store(&vm->last_limit_event_ns, now);
	engine_emit(vm->eng, EVENT_VM_LIMIT_EXCEEDED, vm->name, "", resident - limit,
		    "%llu bytes above the limit", (unsigned long long)(resident - limit));
}

/*
 * Counts towards reclaim_helpless(), beyond which faults are not parked. Only a round that had to
 * find something does: any other may find nothing cold enough. And not one whose units the guest
 * wrote to meanwhile, as it does where evictors get too little of the CPU: to slow the guest down
 * is what parking is for. A guest that takes back as much as all of its memory, and that again and
 * again, is not slowed down by it.
 */
static void note_dry(struct vm *vm, bool urgent, uint64_t freed, uint64_t taken_back)
{
	uint64_t resident = (uint64_t)atomic_load(&vm->resident) / vm_unit_bytes(vm);

	if (freed) {
		atomic_store(&vm->reclaim_idle, 0);
		atomic_store(&vm->reclaim_dry, 0);
		atomic_store(&vm->reclaim_lost, 0);
	} else if (urgent) {
		atomic_fetch_add(&vm->reclaim_idle, 1);
		if (taken_back &&
		    atomic_fetch_add(&vm->reclaim_lost, taken_back) + taken_back < resident)
			return;
		atomic_store(&vm->reclaim_lost, 0);
		atomic_fetch_add(&vm->reclaim_dry, 1);
	}
}

bool reclaim_round(struct evict_context *c, struct vm *vm)
{
	uint64_t victims[ROUND_UNITS], unit_bytes = vm_unit_bytes(vm), want, units, freed = 0;
	uint64_t cpu = thread_cpu_ns(), taken_back;
	int64_t proactive = atomic_load(&vm->proactive_left);
	unsigned int n;
	bool urgent;

	if (atomic_load(&vm->dead) || atomic_load(&vm->restoring) || atomic_load(&vm->suspended)) {
		reclaim_unpark(vm);
		return false;
	}
	want = wanted_bytes(vm, &urgent);
	units = (want + unit_bytes - 1) / unit_bytes;
	if (!units && proactive > 0)
		units = (uint64_t)proactive;
	if (!units) {
		reclaim_unpark(vm);
		return false;
	}
	if (units > ROUND_UNITS)
		units = ROUND_UNITS;
	pthread_mutex_lock(&vm->policy_lock);
	n = pick(vm, units, urgent, victims);
	pthread_mutex_unlock(&vm->policy_lock);
	taken_back = atomic_load(&vm->counter[COUNTER_evictions_cancelled]);
	if (n)
		freed = evict_units(c, vm, victims, n);
	taken_back = atomic_load(&vm->counter[COUNTER_evictions_cancelled]) - taken_back;
	if (!want && proactive > 0)
		atomic_fetch_sub(&vm->proactive_left, n ? (int64_t)n : proactive);
	if (freed) {
		if (atomic_load(&vm->reclaim_left) > 0)
			atomic_fetch_sub(&vm->reclaim_left, (int64_t)freed);
		if (atomic_load(&vm->chained))
			demoter_kick(vm->eng);
	}
	note_dry(vm, urgent, freed, taken_back);
	note_limit(vm);
	reclaim_unpark(vm);
	if (atomic_load(&vm->prefetch_waits) &&
	    (uint64_t)atomic_load(&vm->resident) <= reclaim_begin(vm) &&
	    atomic_exchange(&vm->prefetch_waits, false))
		engine_prefetch_kick(vm->eng);
	vm_add(vm, COUNTER_evict_cpu_ns, thread_cpu_ns() - cpu);
	/* Nothing cold enough and nothing that must go: the next kick or tick asks again. */
	return freed || (urgent && atomic_load(&vm->reclaim_dry) < DRY_ROUNDS);
}

bool reclaim_wants_more(const struct vm *vm)
{
	uint64_t limit = atomic_load(&vm->limit_bytes);

	return (limit && (uint64_t)atomic_load(&vm->resident) > limit) || run_wait_some(vm);
}

/* May one more evictor work on this VM? */
static bool enter(struct vm *vm)
{
	if (!atomic_fetch_add(&vm->evictors, 1) || reclaim_wants_more(vm))
		return true;
	atomic_fetch_sub(&vm->evictors, 1);
	return false;
}

/*
 * Is what is left better left until there is more of it? Faults go on while a round works, so each
 * would find fewer units above the target than the one before, and a handful costs as many system
 * calls, wake-ups and flushes of TLBs as a batch. Less than REST_BYTES wakes no evictor either.
 */
static bool can_wait(const struct vm *vm)
{
	uint64_t resident = (uint64_t)atomic_load(&vm->resident);

	return resident <= reclaim_begin(vm) && resident < reclaim_target(vm) + REST_BYTES &&
	       atomic_load(&vm->reclaim_left) <= 0 && atomic_load(&vm->proactive_left) <= 0 &&
	       !atomic_load(&vm->parked);
}

static void work_on(struct evictor *e, struct vm *vm)
{
	bool more = true;

	if (!atomic_exchange(&vm->kicked, false))
		return;
	if (!enter(vm)) {
		engine_kick(vm); /* for who is at work on it, to look again */
		return;
	}
	for (int i = 0; i < ROUNDS && more && !atomic_load(&e->t.eng->stop) &&
			!atomic_load(&e->t.eng->pause.background);
	     i++)
		more = reclaim_round(e->context, vm) && !can_wait(vm);
	atomic_fetch_sub(&vm->evictors, 1);
	/* Whoever kicked meanwhile has woken nobody. */
	if (atomic_exchange(&vm->kicked, false) || more)
		engine_kick(vm);
}

static void *evictor_main(void *arg)
{
	struct evictor *e = arg;
	struct engine *eng = e->t.eng;
	struct vm **vms = calloc(ENGINE_VMS_MAX, sizeof(*vms));

	engine_thread_schedule(EVICT_NICE, EVICT_SLICE_NS);
	while (vms && !atomic_load(&eng->stop)) {
		struct epoll_event ev;
		unsigned int n;
		uint64_t token;

		evict_context_refresh(e->context);
		if (engine_thread_pass(&e->t))
			continue;
		epoll_wait(e->epoll_fd, &ev, 1, 1000);
		if (read(eng->evict_fd, &token, sizeof(token)) < 0 && errno != EAGAIN)
			break;
		n = engine_vms_get(eng, vms, ENGINE_VMS_MAX);
		for (unsigned int i = 0; i < n; i++) {
			work_on(e, vms[i]);
			vm_put(vms[i]);
		}
	}
	free(vms);
	return NULL;
}

/* One kick wakes one of those that sleep. */
static int watch_kicks(struct evictor *e, struct engine *eng)
{
	struct epoll_event kicks = {.events = EPOLLIN | EPOLLEXCLUSIVE};
	struct epoll_event wake = {.events = EPOLLIN};

	e->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
	if (e->epoll_fd < 0 || epoll_ctl(e->epoll_fd, EPOLL_CTL_ADD, eng->evict_fd, &kicks) ||
	    epoll_ctl(e->epoll_fd, EPOLL_CTL_ADD, e->t.wake_fd, &wake))
		return -errno;
	return 0;
}

int evictor_new(struct engine *eng, unsigned int index, struct evictor **out)
{
	struct evictor *e = calloc(1, sizeof(*e));
	int r;

	if (!e)
		return -ENOMEM;
	e->epoll_fd = -1;
	r = engine_thread_init(eng, &e->t);
	if (!r)
		r = watch_kicks(e, eng);
	if (!r)
		r = evict_context_new(eng, index, &e->context);
	if (!r)
		r = engine_thread_start(&e->t, "ebb-evict", evictor_main, e);
	if (r) {
		evictor_free(e);
		return r;
	}
	*out = e;
	return 0;
}

void evictor_free(struct evictor *e)
{
	if (!e)
		return;
	engine_thread_end(&e->t);
	evict_context_free(e->context);
	if (e->epoll_fd >= 0)
		close(e->epoll_fd);
	free(e);
}
