/* SPDX-License-Identifier: BSD-3-Clause */
/* fault.c: the threads that serve page faults. */
#include <errno.h>
#include <poll.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "base/fault_point.h"
#include "engine/internal.h"
#include "engine/thp.h"
#include "sys/procinfo.h"
#include "sys/uffd.h"

/*
 * Theory of operation
 *
 * Every worker watches every userfaultfd (EPOLLEXCLUSIVE: one wakes up), reads many messages at
 * once and resolves them one by one. A fault says only "this unit is wanted, for reading or
 * writing"; the unit's entry says what to do. What is in RAM (fill patterns, synchronous backends)
 * is resolved at once; other loads are submitted and finished when the backend's channel says so,
 * in the same loop; while one is under way that should not take long, the worker looks for it
 * instead of sleeping. The worker never waits for anything else: a unit that somebody works on gets
 * PE_WANTED, a VM over its bound gets its faults parked (dropped; they are delivered again by one
 * wake of the whole range when there is room), a kernel that says EAGAIN gets the fault back by
 * waking it. A fault that finds all slots for asynchronous loads taken stands in a queue, from
 * which each load that is done takes one, of another VM than its own if there is any: so a VM with
 * many faults in flight does not keep the others from theirs. What a policy wants ahead is brought
 * here only where it follows the fault at once, in one short run, after the fault (prefetch.c).
 *
 * On this path: no allocation, no lock but a block's pin_lock, no log. All memory is mapped and
 * populated when the worker is made.
 */

#define MESSAGES      64
#define FOLLOW_FAULTS 64  /* after so many we look where their thread runs */
#define LOADS	      32  /* asynchronous loads of 4 KiB in flight, per worker */
#define HUGE_LOADS    4	  /* of 2 MiB */
#define PREFETCH_ASKS 64  /* ranges that one fault may ask for */
#define WAITING	      256 /* faults without a slot, per worker */
#define EVENTS	      16  /* taken at once */

/* A load is looked for if loads take no longer than that, on average. */
#define POLL_NS (NS_PER_MS / 4)

/*
 * Guests' threads stand still while they wait for a worker, which needs a CPU for some microseconds
 * only: it goes before what has one for milliseconds. Also, a guest's thread that it has just woken
 * on its own CPU does not take that from it before it sleeps again; else the next fault, coming at
 * once, finds this worker awake and wakes another one for nothing, on another CPU.
 * Not a real-time class: a guest that faults without end would take the CPUs from the others.
 */
#define FAULT_NICE     (-20)
#define FAULT_SLICE_NS (NS_PER_MS / 10) /* the shortest that there is */

/*
 * MINOR faults: about what one takes of a worker's CPU, and each unit that it maps besides; what
 * part of one CPU they may take for a VM, and after how long at that rate the reach doubles.
 */
#define MINOR_FAULT_NS	15000u
#define MINOR_UNIT_NS	200u
#define MINOR_PERMILLE	12u
#define MINOR_BURST_NS	(NS_PER_S / 4)
#define MINOR_DOUBLINGS 6
#define MINOR_AHEAD_NS	((MINOR_DOUBLINGS + 1) * MINOR_BURST_NS)
#define MINOR_REACH_MIN UINT64_C(16)
#define MINOR_REACH_MAX (MINOR_REACH_MIN << (MINOR_DOUBLINGS - 1)) /* 2 MiB */

struct load {
	struct ebb_io io; /* first: io.user points back */
	struct block *block;
	uint64_t unit, entry, start_ns, submit_ns;
	void *buf;
	bool busy, write;
};

/* A fault without a slot. Its unit is EVICTED still, and may be brought by somebody else. */
struct waiting {
	struct block *block;
	uint64_t unit, start_ns;
	bool write;
	uint32_t thread;
};

struct fault_worker {
	struct engine_thread t;
	struct loader loader;
	int epoll_fd;
	struct uffd_msg msgs[MESSAGES];
	struct load loads[LOADS + HUGE_LOADS];
	unsigned int in_flight;
	uint64_t load_ns; /* how long loads have taken lately */
	bool channel_watched[PE_TIERS];
	bool asked; /* somebody waits for this worker to pass */
	/* Only while loads are in flight, so the blocks stay: see engine_thread_pass(). */
	struct waiting waiting[WAITING];
	unsigned int n_waiting;
	cpu_set_t given;     /* the CPUs that we may use */
	int cpu;	     /* the one that we keep to, -1: any; see follow() */
	uint32_t thread;     /* whose faults we serve */
	unsigned int served; /* of them, since we last looked where it runs */
	bool mixed;	     /* there were others' since */
};

struct wanted {
	struct mapping *mapping;
	uint64_t unit, addr; /* the page of 4 KiB that was touched */
	bool write, wp, minor;
	uint32_t thread;
	uint64_t start_ns;
};

static void resolved(struct fault_worker *w, struct block *b, uint64_t unit, uint64_t start_ns,
		     bool write, uint32_t flags, uint32_t thread)
{
	struct vm *vm = b->vm;
	struct policy_instance *p = atomic_load(&vm->prefetch.instance);
	struct vm_trace *trace = atomic_load_explicit(&vm->trace, memory_order_acquire);
	uint64_t now = clock_ns();

	hist_record(&vm->fault_latency, now - start_ns);
	if (trace)
		vm_trace_fault(trace, b->first_unit + unit,
			       (flags & ~FAULT_REFAULT) | (write ? EBB_FAULT_WRITE : 0), thread,
			       now);
	if ((flags & FAULT_REFAULT) ||
	    atomic_load_explicit(&vm->reclaim_wants_faults, memory_order_relaxed)) {
		uint64_t at = atomic_fetch_add(&vm->fault_ring.head, 1) % FAULT_RING;
		struct fault_slot *slot = &vm->fault_ring.slots[at];
		uint64_t what = flags | (write ? EBB_FAULT_WRITE : 0);

		atomic_store_explicit(&slot->unit, b->first_unit + unit, memory_order_relaxed);
		atomic_store_explicit(&slot->time_ns, now, memory_order_relaxed);
		atomic_store_explicit(&slot->flags_thread, what << 32 | thread,
				      memory_order_relaxed);
	}
	if (p && (flags & EBB_FAULT_LOADED)) {
		struct ebb_fault f = {.unit = b->first_unit + unit,
				      .flags = (flags & ~FAULT_REFAULT) |
					       (write ? EBB_FAULT_WRITE : 0),
				      .thread = thread,
				      .time_ns = now};
		struct ebb_range asks[PREFETCH_ASKS];
		uint32_t n = policy_prefetch_fault(p, &f, asks, PREFETCH_ASKS);

		prefetch_asked(&w->loader, b, unit, asks, n);
	}
}

/* After something became resident: has the VM to be told to shrink? */
static void check_limit(struct vm *vm)
{
	uint64_t limit = atomic_load_explicit(&vm->limit_bytes, memory_order_relaxed);
	uint64_t resident = (uint64_t)atomic_load_explicit(&vm->resident, memory_order_relaxed);

	if (!limit || resident <= reclaim_begin(vm))
		return;
	if (resident > limit)
		vm_count(vm, COUNTER_limit_excess);
	engine_kick(vm);
}

/* True when the VM is so far over its limit that this fault has to wait. */
static bool park(struct vm *vm, uint64_t unit_bytes)
{
	uint64_t limit = atomic_load_explicit(&vm->limit_bytes, memory_order_relaxed);
	int64_t resident = atomic_load_explicit(&vm->resident, memory_order_relaxed);

	if (!limit || (uint64_t)resident + unit_bytes <= reclaim_bound(limit) ||
	    atomic_load(&vm->restoring) || reclaim_helpless(vm))
		return false;
	vm_count(vm, COUNTER_faults_parked);
	atomic_store(&vm->parked, true);
	engine_kick(vm);
	return true;
}

/* What to do with a fault whose content could not be put into place now. */
static void not_placed(struct fault_worker *w, struct block *b, uint64_t unit, int r)
{
	struct vm *vm = b->vm;

	switch (r) {
	case -EAGAIN:
		vm_count(vm, COUNTER_fault_retries);
		unit_wake(b, unit);
		break;
	case -ENOMEM:
		/* No page to put it into: it waits until eviction has made room somewhere. Here, if
		 * there is something to evict; else the keeper tries again from time to time. */
		vm_count(vm, COUNTER_faults_parked);
		atomic_store(&vm->parked, true);
		if ((uint64_t)atomic_load(&vm->resident) > reclaim_target(vm))
			engine_kick(vm);
		break;
	case -ESRCH:
		break;
	default:
		/* The range went away under us (unmapped, truncated): the kernel's own answer. */
		vm_count(vm, COUNTER_resolve_errors);
		unit_wake(b, unit);
	}
}

static void place(struct fault_worker *w, struct block *b, uint64_t unit, uint64_t entry,
		  const void *data, bool write, uint64_t start_ns, uint32_t thread)
{
	struct vm *vm = b->vm;
	bool none = page_entry_state(entry) == PE_NONE;
	bool fill = none || page_entry_tier(entry) == PE_TIER_FILL;
	uint32_t flags = fill ? EBB_FAULT_ZERO : EBB_FAULT_LOADED;
	int r = loader_place(&w->loader, b, unit, entry, data, write, false);

	if (r < 0) {
		not_placed(w, b, unit, r);
		return;
	}
	if (fill)
		vm_count(vm, COUNTER_zero_faults);
	else
		vm_count(vm, COUNTER_faults);
	if (!fill)
		vm_add(vm, COUNTER_load_wait_ns, clock_ns() - start_ns);
	if (entry & PE_RECENT) {
		vm_count(vm, COUNTER_refaults);
		flags |= FAULT_REFAULT;
	}
	check_limit(vm);
	resolved(w, b, unit, start_ns, write, flags, thread);
}

/* The backend has the content but could not give it now: as it was; the keeper tries again. */
static void put_back(struct block *b, uint64_t unit, uint64_t entry)
{
	vm_count(b->vm, COUNTER_fault_retries);
	page_table_leave(&b->table, unit, entry & ~PE_WANTED);
	atomic_store(&b->vm->parked, true);
}

/* A free slot for an asynchronous load of this size, or NULL. */
static struct load *load_slot(struct fault_worker *w, bool huge)
{
	unsigned int first = huge ? LOADS : 0, n = huge ? HUGE_LOADS : LOADS;

	for (unsigned int i = first; i < first + n; i++)
		if (!w->loads[i].busy)
			return &w->loads[i];
	return NULL;
}

static void load(struct fault_worker *w, struct block *b, uint64_t unit, uint64_t entry,
		 const struct wanted *f);

static struct waiting take_waiting(struct fault_worker *w, unsigned int i)
{
	struct waiting f = w->waiting[i];

	memmove(&w->waiting[i], &w->waiting[i + 1], (--w->n_waiting - i) * sizeof(f));
	return f;
}

/* Whose turn it is after a load of this block: an index, or WAITING when none fits its slot. */
static unsigned int next_waiting(const struct fault_worker *w, const struct block *done)
{
	bool huge = block_unit_bytes(done) > 4096;
	unsigned int first = WAITING;

	for (unsigned int i = 0; i < w->n_waiting; i++) {
		const struct block *b = w->waiting[i].block;

		if ((block_unit_bytes(b) > 4096) != huge)
			continue;
		if (b->vm != done->vm)
			return i;
		if (first == WAITING)
			first = i;
	}
	return first;
}

/*
 * A load of this block is done, and its slot free: whoever waits longest for one of that size gets
 * it, those of other VMs first. When nothing is in flight any more, nobody is left waiting: as no
 * load will be done then, each is tried once more, or wakes and faults again.
 */
static void serve_waiting(struct fault_worker *w, const struct block *done)
{
	for (unsigned int tries = w->n_waiting; tries; tries--) {
		unsigned int next = next_waiting(w, done);
		struct waiting f;
		uint64_t e;

		if (w->in_flight &&
		    (next == WAITING || w->asked || !load_slot(w, block_unit_bytes(done) > 4096)))
			return;
		f = take_waiting(w, next == WAITING ? 0 : next);
		e = page_table_get(&f.block->table, f.unit);
		if (w->asked || page_entry_state(e) != PE_EVICTED) {
			unit_wake(f.block, f.unit);
		} else if (!park(f.block->vm, block_unit_bytes(f.block))) {
			struct wanted again = {
				.write = f.write, .thread = f.thread, .start_ns = f.start_ns};

			if (page_table_cas(&f.block->table, f.unit, &e,
					   page_entry_in(e, PE_LOADING)))
				load(w, f.block, f.unit, e, &again);
			else
				unit_wake(f.block, f.unit);
		}
	}
}

static void load_done(struct fault_worker *w, struct load *l)
{
	struct block *b = l->block;
	uint64_t took = clock_ns() - l->submit_ns;

	l->busy = false;
	w->in_flight--;
	/* One that was very late does not count for more than one that is too late to wait for. */
	took = took < 4 * POLL_NS ? took : 4 * POLL_NS;
	w->load_ns = (w->load_ns * 7 + took) / 8;
	if (l->io.result == -EIO || l->io.result == -EINVAL) {
		loader_lost(&w->loader, b, l->unit, l->entry);
	} else if (l->io.result) {
		page_table_leave(&b->table, l->unit, l->entry & ~PE_WANTED);
		not_placed(w, b, l->unit, -EAGAIN);
	} else {
		place(w, b, l->unit, l->entry, l->buf, l->write, l->start_ns, 0);
	}
	serve_waiting(w, b);
}

/* True when something was there. */
static bool poll_tier(struct fault_worker *w, unsigned int tier)
{
	struct backend_channel *c = loader_channel(&w->loader, tier);
	struct ebb_io *done[16];
	bool any = false;
	int n;

	while (c && (n = backend_poll(c, done, 16)) > 0) {
		any = true;
		for (int i = 0; i < n; i++)
			load_done(w, (struct load *)(uintptr_t)done[i]->user);
	}
	return any;
}

static bool poll_tiers(struct fault_worker *w)
{
	bool any = false;

	for (unsigned int t = 1; t < PE_TIERS; t++)
		any |= poll_tier(w, t);
	return any;
}

/*
 * In a full queue, a VM that is not in it gets the newest place of one that crowds it; what has no
 * place is woken by the keeper, from time to time.
 */
static void stand_in_line(struct fault_worker *w, struct block *b, uint64_t unit,
			  const struct wanted *f)
{
	unsigned int at = w->n_waiting;
	struct vm *without = NULL;

	if (at < WAITING) {
		w->n_waiting++;
	} else {
		at = 0;
		for (unsigned int i = 1; i < WAITING; i++)
			if (w->waiting[i].block->vm == w->waiting[i - 1].block->vm)
				at = i;
		for (unsigned int i = 0; i < WAITING; i++)
			if (w->waiting[i].block->vm == b->vm)
				at = 0;
		without = at ? w->waiting[at].block->vm : b->vm;
	}
	if (without)
		atomic_store(&without->parked, true);
	if (without == b->vm)
		return;
	w->waiting[at] = (struct waiting){.block = b,
					  .unit = unit,
					  .start_ns = f->start_ns,
					  .write = f->write,
					  .thread = f->thread};
}

/* The unit is ours, in LOADING, with `entry` from before: brings its content. */
static void load(struct fault_worker *w, struct block *b, uint64_t unit, uint64_t entry,
		 const struct wanted *f)
{
	unsigned int tier = page_entry_tier(entry);
	struct backend_space *space = atomic_load(&b->vm->spaces[tier]);
	struct backend_channel *c = loader_channel(&w->loader, tier);
	uint32_t bytes = (uint32_t)block_unit_bytes(b);
	struct load *l;
	struct ebb_io *io;

	if (tier == PE_TIER_FILL || !space || !c ||
	    (backend_caps(backend_of(space)) & EBB_BACKEND_SYNC)) {
		int r = loader_read(&w->loader, b, unit, entry, w->loader.buffers, EBB_IO_DEMAND);

		if (r == -EIO || r == -EINVAL)
			loader_lost(&w->loader, b, unit, entry);
		else if (r)
			put_back(b, unit, entry);
		else
			place(w, b, unit, entry, w->loader.buffers, f->write, f->start_ns,
			      f->thread);
		return;
	}
	l = load_slot(w, bytes > 4096);
	if (l) {
		*l = (struct load){.block = b,
				   .unit = unit,
				   .entry = entry,
				   .start_ns = f->start_ns,
				   .submit_ns = clock_ns(),
				   .buf = l->buf,
				   .busy = true,
				   .write = f->write};
		io = &l->io;
		backend_io_prepare(io, EBB_IO_LOAD, EBB_IO_DEMAND, space, page_entry_handle(entry),
				   l->buf, bytes, (uint64_t)(uintptr_t)l);
		io->owner = unit_owner(b, unit);
		w->in_flight++;
		if (backend_submit(c, &io, 1) == 1)
			return;
		w->in_flight--;
		l->busy = false;
	}
	/* Nothing free: as it was, until a load is done; when none is in flight it tries again. */
	if (page_table_leave(&b->table, unit, entry & ~PE_WANTED) || !w->in_flight)
		not_placed(w, b, unit, -EAGAIN);
	else
		stand_in_line(w, b, unit, f);
}

/*
 * The same for a unit of many small pages or one huge one, in a range registered MISSING: the VMM
 * may have punched any of its pages, and those read as zero.
 */
static void on_present_thp(struct block *b, uint64_t e, const struct wanted *f)
{
	int uffd = f->mapping->att->uffd;

	/* A protection that outlived its eviction, as in on_present(): each access would fault. */
	if (f->minor && thp_is_split(b, f->unit) &&
	    page_table_cas(&b->table, f->unit, &e, page_entry_in(e, PE_UNPROTECTING))) {
		vm_count(b->vm, COUNTER_stale_faults);
		unit_cancel(b, f->unit, e);
		return;
	}
	if (!f->minor && page_table_cas(&b->table, f->unit, &e, page_entry_in(e, PE_LOADING))) {
		if (uffd_zero(uffd, f->addr, 4096) == 4096)
			vm_count(b->vm, COUNTER_discards);
		if (page_table_leave(&b->table, f->unit,
				     page_entry_in(e, unit_settled(b, f->unit))))
			unit_wake(b, f->unit);
	}
	vm_count(b->vm, COUNTER_stale_faults);
	uffd_wake(uffd, f->addr, 4096);
}

/* How many units of 4 KiB a MINOR fault may map from now on, itself among them. */
static uint64_t minor_reach(struct vm *vm, uint64_t now)
{
	uint64_t paid = atomic_load_explicit(&vm->minor_paid_ns, memory_order_relaxed);
	uint64_t ahead = paid > now ? (paid - now) / MINOR_BURST_NS : 0;

	if (!ahead)
		return 1;
	return MINOR_REACH_MIN << (ahead < MINOR_DOUBLINGS ? ahead - 1 : MINOR_DOUBLINGS - 1);
}

static void minor_pay(struct vm *vm, uint64_t now, uint64_t units)
{
	uint64_t cost = MINOR_FAULT_NS + (units - 1) * MINOR_UNIT_NS;
	uint64_t paid = atomic_load_explicit(&vm->minor_paid_ns, memory_order_relaxed);

	if (paid < now)
		paid = now;
	paid += cost * 1000 / MINOR_PERMILLE;
	if (paid > now + MINOR_AHEAD_NS)
		paid = now + MINOR_AHEAD_NS;
	/* Workers that meet here pay for one of them only: it is advice. */
	atomic_store_explicit(&vm->minor_paid_ns, paid, memory_order_relaxed);
	vm_add(vm, COUNTER_minor_cpu_ns, cost);
}

/* Is it in the page cache only, and free? Then it is ours, in LOADING; *entry: as it was. */
static bool own_resident(struct block *b, uint64_t unit, uint64_t *entry)
{
	*entry = page_table_get(&b->table, unit);
	/* What was read ahead is left alone: its first use is to be seen. */
	return page_entry_state(*entry) == PE_RESIDENT && !(*entry & PE_PREFETCHED) &&
	       page_table_cas(&b->table, unit, entry, page_entry_in(*entry, PE_LOADING));
}

/*
 * Maps the units [unit, unit + n), which are not mapped, as far as they are free; returns how many.
 * Each is owned meanwhile, as in on_present().
 */
static uint64_t map_run(struct block *b, struct mapping *m, uint64_t unit, uint64_t n)
{
	uint64_t entry[MINOR_REACH_MAX], mapped = 0, owned;

	for (uint64_t at = unit, end = unit + n; at < end; at += owned ? owned : 1) {
		int64_t r;

		for (owned = 0; at + owned < end; owned++)
			if (!own_resident(b, at + owned, &entry[owned]))
				break;
		if (!owned)
			continue;
		/* It stops where the VMM has dropped the page, or it was mapped just now. */
		r = uffd_continue(m->att->uffd, mapping_addr(m, at), owned << b->unit_shift, 0);
		mapped += r > 0 ? (uint64_t)r >> b->unit_shift : 0;
		for (uint64_t i = 0; i < owned; i++)
			if (page_table_leave(&b->table, at + i,
					     page_entry_in(entry[i], unit_settled(b, at + i))))
				unit_wake(b, at + i);
	}
	return mapped;
}

/*
 * What a tracker has made forgotten comes back through us where MINOR faults do, a unit at a time,
 * which for a busy VM would be more than a tracker may cost. So where more come than their budget
 * allows, each maps its neighbours too, the more of them the further they are over it. These count
 * as used then: accesses are seen the less sharply the dearer they are.
 */
static void map_around(struct block *b, const struct wanted *f)
{
	struct mapping *m = f->mapping;
	uint64_t reach = block_is_small(b) ? minor_reach(b->vm, f->start_ns) : 1;
	uint64_t first = f->unit & ~(reach - 1), end = first + reach, mapped = 1, n;
	uint64_t present[MINOR_REACH_MAX / 64];

	if (first < m->first_unit)
		first = m->first_unit;
	if (end > m->first_unit + m->units)
		end = m->first_unit + m->units;
	if (reach > 1 && tracker_present(b, first, end - first, present) == 0) {
		for (uint64_t u = 0; u < end - first; u += n ? n : 1) {
			for (n = 0; u + n < end - first; n++)
				if (present[(u + n) / 64] >> ((u + n) % 64) & 1)
					break;
			if (n)
				mapped += map_run(b, m, first + u, n);
		}
	}
	minor_pay(b->vm, f->start_ns, mapped);
}

/*
 * A fault on a unit whose page should be there. MISSING: another thread's fault was resolved
 * meanwhile, or this mapping has yet to find the page in the cache, or the VMM punched it away.
 */
static void on_present(struct fault_worker *w, struct block *b, uint64_t e, const struct wanted *f)
{
	struct vm *vm = b->vm;
	struct mapping *m = f->mapping;
	uint64_t addr = mapping_addr(m, f->unit), bytes = block_unit_bytes(b);

	if (b->kind == BLOCK_THP) {
		on_present_thp(b, e, f);
		return;
	}
	if (f->wp) {
		/* A protection that outlived its eviction. Through UNPROTECTING, so that lifting
		 * it can never slip under the next one. */
		if (page_table_cas(&b->table, f->unit, &e, page_entry_in(e, PE_UNPROTECTING))) {
			vm_count(vm, COUNTER_stale_faults);
			unit_cancel(b, f->unit, e);
		} else {
			uffd_wake(m->att->uffd, addr, bytes);
		}
		return;
	}
	if (b->kind != BLOCK_HUGETLB && !f->minor && unit_in_cache(b, f->unit)) {
		vm_count(vm, COUNTER_stale_faults);
		uffd_wake(m->att->uffd, addr, bytes);
		return;
	}
	/* Owned from here on: a CONTINUE maps the page writable, and that must never happen under
	 * an eviction that has just protected it. */
	if (!page_table_cas(&b->table, f->unit, &e, page_entry_in(e, PE_LOADING))) {
		uffd_wake(m->att->uffd, addr, bytes);
		return;
	}
	if (f->minor || b->kind == BLOCK_HUGETLB) {
		int64_t r = uffd_continue(m->att->uffd, addr, bytes, 0);

		if (r > 0 || r == -EEXIST) {
			vm_count(vm, f->minor ? COUNTER_minor_faults : COUNTER_stale_faults);
			page_table_leave(&b->table, f->unit,
					 page_entry_in(e, unit_settled(b, f->unit)));
			unit_wake(b, f->unit);
			if (f->minor)
				map_around(b, f);
			return;
		}
	}
	/* A hole. The VMM dropped it (balloon, free page reporting): it reads as zero now. */
	if (e & PE_COPY) {
		atomic_fetch_sub(&vm->copies, (int64_t)bytes);
		atomic_fetch_sub(&vm->tier_units[page_entry_tier(e)], (int64_t)bytes);
		loader_free_handle(&w->loader, b, page_entry_tier(e), page_entry_handle(e));
	}
	vm_count(vm, COUNTER_discards);
	atomic_fetch_sub(&vm->resident, (int64_t)bytes);
	place(w, b, f->unit, page_entry_bare(PE_NONE), NULL, f->write, f->start_ns, f->thread);
}

/* Leaves what own_untouched() has come to: what is in place becomes RESIDENT. */
static void leave_touched(struct block *b, uint64_t first, uint64_t owned, uint64_t placed)
{
	for (uint64_t i = 0; i < owned; i++) {
		uint64_t to = page_entry_bare(i < placed ? unit_settled(b, first + i) : PE_NONE);

		if (page_table_leave(&b->table, first + i, to))
			unit_wake(b, first + i);
	}
}

/* Owns units that nobody has touched, up to the first that is another; how many. */
static uint64_t own_untouched(struct block *b, uint64_t first, uint64_t n)
{
	for (uint64_t i = 0; i < n; i++) {
		uint64_t none = page_entry_bare(PE_NONE);

		if (!page_table_cas(&b->table, first + i, &none, page_entry_bare(PE_LOADING)))
			return i;
	}
	return n;
}

/*
 * The first touch of an extent that may be huge: where there is room, all of it is made at once,
 * and one huge page later, as the kernel would do. False: the unit alone is to be made.
 */
static bool touch_extent(struct fault_worker *w, struct block *b, const struct wanted *f)
{
	struct vm *vm = b->vm;
	uint64_t first = f->unit - f->unit % EXTENT_UNITS, owned, placed = 0;
	int64_t r;

	if (b->kind != BLOCK_MIXED || thp_is_split(b, f->unit) || atomic_load(&b->n_mappings) > 1 ||
	    (uint64_t)atomic_load(&vm->resident) + EXTENT_BYTES > reclaim_target(vm))
		return false;
	for (uint64_t i = 0; i < EXTENT_UNITS; i++)
		if (page_table_get(&b->table, first + i) != page_entry_bare(PE_NONE))
			return false;
	owned = own_untouched(b, first, EXTENT_UNITS);
	FAULT_POINT(touch_owned);
	if (owned == EXTENT_UNITS) {
		/* A page that we never saw is in the way: it stays, and each is looked at alone. */
		r = uffd_copy(f->mapping->att->uffd, mapping_addr(f->mapping, first),
			      vm->eng->zeroes, EXTENT_BYTES, 0);
		placed = r > 0 ? (uint64_t)r >> b->unit_shift : 0;
	}
	atomic_fetch_add(&vm->resident, (int64_t)(placed << b->unit_shift));
	leave_touched(b, first, owned, placed);
	if (placed == EXTENT_UNITS)
		collapse_push(vm, b->first_unit + first);
	if (f->unit - first >= placed)
		return false;
	vm_count(vm, COUNTER_zero_faults);
	check_limit(vm);
	resolved(w, b, f->unit, f->start_ns, f->write, EBB_FAULT_ZERO, f->thread);
	return true;
}

static void on_none(struct fault_worker *w, struct block *b, uint64_t e, const struct wanted *f)
{
	struct vm *vm = b->vm;

	if (f->minor) {
		/* A page that we never saw (made by another process): it is what it is. */
		if (page_table_cas(&b->table, f->unit, &e,
				   page_entry_bare(unit_settled(b, f->unit))))
			atomic_fetch_add(&vm->resident, (int64_t)block_unit_bytes(b));
		on_present(w, b, page_table_get(&b->table, f->unit), f);
		return;
	}
	if (park(vm, block_unit_bytes(b)) || touch_extent(w, b, f))
		return;
	if (page_table_cas(&b->table, f->unit, &e, page_entry_in(e, PE_LOADING))) {
		FAULT_POINT(touch_owned);
		place(w, b, f->unit, page_entry_bare(PE_NONE), NULL, f->write, f->start_ns,
		      f->thread);
	} else {
		unit_wake(b, f->unit);
	}
}

/* Takes an eviction that has not read the content yet away from its evictor. */
static void on_protected(struct block *b, uint64_t e, const struct wanted *f)
{
	if (!page_table_cas(&b->table, f->unit, &e, page_entry_in(e, PE_UNPROTECTING))) {
		uffd_wake(f->mapping->att->uffd, mapping_addr(f->mapping, f->unit),
			  block_unit_bytes(b));
		return;
	}
	vm_count(b->vm, COUNTER_wp_faults);
	vm_count(b->vm, COUNTER_evictions_cancelled);
	unit_cancel(b, f->unit, e);
	unit_wake(b, f->unit);
}

static void resolve(struct fault_worker *w, const struct wanted *f)
{
	struct block *b = f->mapping->block;
	struct vm *vm = b->vm;
	uint64_t e = page_table_get(&b->table, f->unit);

again:
	switch (page_entry_state(e)) {
	case PE_NONE:
		on_none(w, b, e, f);
		break;
	case PE_RESIDENT:
	case PE_PINNED:
		on_present(w, b, e, f);
		break;
	case PE_PROTECTED:
		on_protected(b, e, f);
		break;
	case PE_STORING:
		if (f->wp && !(e & PE_WANTED))
			vm_count(vm, COUNTER_wp_faults);
		/* fall through */
	case PE_UNPROTECTING:
	case PE_PUNCHING:
	case PE_LOADING:
	case PE_CLEARING:
		/* Whoever works on it wakes us. */
		if (!(e & PE_WANTED) && !page_table_cas(&b->table, f->unit, &e, e | PE_WANTED))
			goto again;
		break;
	case PE_EVICTED:
		if (park(vm, block_unit_bytes(b)) || run_wait_hold(vm, b->first_unit + f->unit))
			break;
		if (!page_table_cas(&b->table, f->unit, &e, page_entry_in(e, PE_LOADING)))
			goto again;
		FAULT_POINT(load_owned);
		load(w, b, f->unit, e, f);
		break;
	case PE_LOST:
		unit_poison(b, f->unit);
		if (vm->eng->features.uffd_poison)
			unit_wake(b, f->unit);
		break;
	case PE_STATES:
		break;
	}
}

static void on_message(struct fault_worker *w, struct attachment *att, const struct uffd_msg *msg,
		       uint64_t start_ns)
{
	struct wanted f = {.start_ns = start_ns};
	uint64_t addr, flags;

	/* No other event was asked for. */
	if (msg->event != UFFD_EVENT_PAGEFAULT)
		return;
	addr = msg->arg.pagefault.address;
	flags = msg->arg.pagefault.flags;
	f.mapping = attachment_find(att, addr, &f.unit);
	if (!f.mapping) {
		/* A range that is being taken out: the kernel's own answer. */
		uffd_wake(att->uffd, addr & ~UINT64_C(4095), 4096);
		return;
	}
	f.addr = addr & ~UINT64_C(4095);
	f.write = flags & UFFD_PAGEFAULT_FLAG_WRITE;
	f.wp = flags & UFFD_PAGEFAULT_FLAG_WP;
	f.minor = flags & UFFD_PAGEFAULT_FLAG_MINOR;
	f.thread = msg->arg.pagefault.feat.ptid;
	resolve(w, &f);
}

/* From now on on this CPU; -1: on any that we were given. */
static void keep_to(struct fault_worker *w, int cpu)
{
	cpu_set_t one;

	if (cpu < 0 || cpu >= CPU_SETSIZE || !CPU_ISSET((unsigned int)cpu, &w->given))
		cpu = -1;
	if (cpu == w->cpu)
		return;
	CPU_ZERO(&one);
	if (cpu >= 0)
		CPU_SET((unsigned int)cpu, &one);
	if (sched_setaffinity(0, sizeof(one), cpu >= 0 ? &one : &w->given) == 0)
		w->cpu = cpu;
}

/*
 * A thread that faults stands still until we are through, so its CPU is as good as ours, and near:
 * there, a fault costs two context switches. The scheduler does not see that. It wakes us on
 * another CPU if that one is idle, which then has to be woken, and when we are through the first
 * one has to be: several times as much, and most where CPUs are virtual. So as long as all faults
 * are one thread's, we go where it is. When others fault too, or none does, the scheduler chooses.
 */
static void follow(struct fault_worker *w, struct attachment *att, const struct uffd_msg *msgs,
		   int n)
{
	int cpu;

	for (int i = 0; i < n; i++) {
		uint32_t thread = msgs[i].arg.pagefault.feat.ptid;

		w->mixed |= thread != w->thread;
		w->thread = thread;
	}
	w->served += (unsigned int)n;
	if (w->served < FOLLOW_FAULTS)
		return;
	cpu = w->mixed || !w->thread ? -1 : procinfo_thread_cpu(att->pid, (pid_t)w->thread);
	w->served = 0;
	w->mixed = false;
	keep_to(w, cpu);
}

static void serve(struct fault_worker *w, struct attachment *att)
{
	uint64_t start_ns;
	int n;

	if (atomic_load(&att->dead))
		return;
	n = uffd_read(att->uffd, w->msgs, MESSAGES);
	if (n <= 0)
		return;
	start_ns = clock_ns();
	for (int i = 0; i < n; i++)
		on_message(w, att, &w->msgs[i], start_ns);
	follow(w, att, w->msgs, n);
}

/* Asynchronous backends: their channels' descriptors join the epoll set. */
static void watch_channels(struct fault_worker *w)
{
	for (unsigned int t = 1; t < PE_TIERS; t++) {
		struct backend_channel *c = loader_channel(&w->loader, t);
		struct epoll_event ev = {.events = EPOLLIN, .data.u64 = t};

		if (c && !w->channel_watched[t] && backend_event_fd(c) >= 0)
			w->channel_watched[t] = epoll_ctl(w->epoll_fd, EPOLL_CTL_ADD,
							  backend_event_fd(c), &ev) == 0;
		if (!c)
			w->channel_watched[t] = false; /* closed descriptors leave by themselves */
	}
}

/*
 * Somebody waits for this worker to pass, which it may when its loads are done: it waits for these
 * only. Whatever else is ready would be so again at once, and a worker that looks at it for as long
 * as a load takes, ahead of all others, keeps the CPU from who brings the load.
 */
static void await_loads(struct fault_worker *w)
{
	struct pollfd pfd[PE_TIERS];
	unsigned int n = 0;

	for (unsigned int t = 1; t < PE_TIERS; t++) {
		struct backend_channel *c = loader_channel(&w->loader, t);

		if (c && backend_event_fd(c) >= 0)
			pfd[n++] = (struct pollfd){.fd = backend_event_fd(c), .events = POLLIN};
	}
	poll(pfd, n, 1);
}

/*
 * Waits for events, as epoll_wait() does; -1 also when loads are done. To sleep and to be woken
 * twice for a fault costs about as much as a fast disk takes, and more where CPUs are virtual. So
 * what should come soon is looked for first, for twice as long as loads take on average; whoever
 * else has something to do on this CPU goes before that.
 */
static int await_events(struct fault_worker *w, struct epoll_event *ev)
{
	uint64_t now = clock_ns(), end = now;

	if (!w->in_flight)
		return epoll_wait(w->epoll_fd, ev, EVENTS, 1000);
	if (w->load_ns <= POLL_NS && !w->t.eng->config.no_polling)
		end += 2 * w->load_ns;
	for (; now < end; now = clock_ns()) {
		int n = epoll_wait(w->epoll_fd, ev, EVENTS, 0);

		if (n)
			return n;
		if (poll_tiers(w))
			return -1;
		sched_yield();
	}
	return epoll_wait(w->epoll_fd, ev, EVENTS, 1);
}

static void *fault_main(void *arg)
{
	struct fault_worker *w = arg;
	struct epoll_event ev[EVENTS];

	engine_thread_schedule(FAULT_NICE, FAULT_SLICE_NS);
	w->cpu = -1;
	if (sched_getaffinity(0, sizeof(w->given), &w->given))
		CPU_ZERO(&w->given);
	while (!atomic_load(&w->t.eng->stop)) {
		/* Small identifiers are tiers, 0 the wake-up, everything else an attachment. */
		int n = 0;
		bool pass;

		/* Loads that follow on each other would put it off for ever: let them run out. */
		if (w->asked && w->in_flight)
			await_loads(w);
		else
			n = await_events(w, ev);
		pass = n == 0;
		for (int i = 0; i < n; i++) {
			if (ev[i].data.u64 == 0)
				pass = w->asked = true;
			else if (ev[i].data.u64 < PE_TIERS)
				poll_tier(w, (unsigned int)ev[i].data.u64);
			else
				serve(w, (struct attachment *)ev[i].data.ptr);
		}
		if (w->in_flight)
			poll_tiers(w);
		if (n == 0 && !w->in_flight)
			keep_to(w, -1);
		if (pass) {
			loader_flush_frees(&w->loader);
			if (!w->in_flight) {
				loader_make_large(&w->loader);
				loader_refresh(&w->loader, LOADS + HUGE_LOADS);
				watch_channels(w);
				/* Held: backends may have come. */
				if (engine_thread_pass(&w->t))
					engine_thread_wake(&w->t);
				w->asked = false;
			}
		}
	}
	return NULL;
}

int fault_watch(struct engine *eng, struct attachment *att)
{
	for (unsigned int i = 0; i < eng->n_fault_workers; i++) {
		struct epoll_event ev = {.events = EPOLLIN | EPOLLEXCLUSIVE, .data.ptr = att};

		if (epoll_ctl(eng->fault_workers[i]->epoll_fd, EPOLL_CTL_ADD, att->uffd, &ev))
			return -errno;
	}
	return 0;
}

void fault_unwatch(struct engine *eng, struct attachment *att)
{
	for (unsigned int i = 0; i < eng->n_fault_workers; i++)
		epoll_ctl(eng->fault_workers[i]->epoll_fd, EPOLL_CTL_DEL, att->uffd, NULL);
}

void fault_expect_huge(struct engine *eng)
{
	if (atomic_exchange(&eng->has_huge, true))
		return;
	for (unsigned int i = 0; i < eng->n_fault_workers; i++)
		engine_thread_wake(&eng->fault_workers[i]->t);
}

int fault_worker_new(struct engine *eng, unsigned int index, struct fault_worker **out)
{
	struct fault_worker *w = calloc(1, sizeof(*w));
	struct epoll_event ev = {.events = EPOLLIN, .data.u64 = 0};
	char *buf;
	int r;

	(void)index;
	if (!w)
		return -ENOMEM;
	w->epoll_fd = -1;
	r = engine_thread_init(eng, &w->t);
	if (r)
		goto fail;
	w->t.serves_faults = true;
	w->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
	if (w->epoll_fd < 0 || epoll_ctl(w->epoll_fd, EPOLL_CTL_ADD, w->t.wake_fd, &ev)) {
		r = -errno;
		goto fail;
	}
	r = loader_open(eng, &w->loader, LOADS + HUGE_LOADS,
			HUGE_LOADS * UNIT_MAX_BYTES + LOADS * UINT64_C(4096));
	if (r)
		goto fail;
	loader_populate(w->loader.buffers, LOADER_RUN * UINT64_C(4096));
	buf = loader_more(&w->loader);
	/* The 2 MiB buffers first: they are the ones that need the alignment. */
	for (unsigned int i = LOADS; i < LOADS + HUGE_LOADS; i++, buf += UNIT_MAX_BYTES)
		w->loads[i].buf = buf;
	loader_populate(buf, LOADS * UINT64_C(4096));
	for (unsigned int i = 0; i < LOADS; i++, buf += 4096)
		w->loads[i].buf = buf;
	watch_channels(w);
	r = engine_thread_start(&w->t, "ebb-fault", fault_main, w);
	if (r)
		goto fail;
	*out = w;
	return 0;
fail:
	fault_worker_free(w);
	return r;
}

void fault_worker_free(struct fault_worker *w)
{
	if (!w)
		return;
	engine_thread_end(&w->t);
	loader_close(&w->loader);
	if (w->epoll_fd >= 0)
		close(w->epoll_fd);
	free(w);
}
