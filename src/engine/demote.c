/* SPDX-License-Identifier: BSD-3-Clause */
/* demote.c: the thread that moves what is coldest in a tier to a tier below it. */
#include <errno.h>
#include <poll.h>
#include <stdlib.h>

#include "engine/internal.h"

/*
 * Theory of operation
 *
 * A tier of a VM that holds more than its high mark gives up what is coldest until it is at its low
 * mark, to the next tiers of the VM that take it. Without marks, the same happens in a tier whose
 * backend says how much room it has when all VMs together have nearly filled it, each giving up in
 * proportion to what it has there: so what is evicted goes to the first tier, and what is cold
 * makes room for it. Marks are compared with the size of the content as stored
 * (ebb_usage.stored_bytes), because what a backend holds beside that goes only later, when it
 * tidies up.
 *
 * Cold is what was evicted long ago and was not wanted since. Each unit has a byte that says in
 * which epoch of its VM it was evicted (demote_note); an epoch ends when a 64th of what the tier
 * holds was evicted anew. The bytes are this daemon's: after a takeover all that is there counts as
 * equally old. Ages are bounded every so often, so that the byte's turning round makes nothing old
 * look young.
 *
 * To move some, the table is gone through twice: how much there is of each age, which gives the
 * youngest age that has to go; then these are moved, a batch at a time (move.c). Between batches
 * the thread passes, and holds nothing but a reference to the VM. It wakes up when an evictor has
 * stored something, when a tier was full, and once a second.
 *
 * What no tier below takes stays where it is, and is tried again after a while. Nothing is moved
 * while eviction is suspended.
 */

#define LOOK_MS	      1000
#define LOOK_MIN_NS   (20 * NS_PER_MS)
#define RETRY_NS      (NS_PER_S / 2)
#define SHARE_MIN     (UINT64_C(1) << 20)
#define EPOCHS_HELD   64u /* in what a tier holds */
#define EPOCHS_A_LOOK 16u
#define AGE_MAX	      128u /* older is as old as that; with EPOCHS_HELD more, below 256 */

struct plan {
	struct vm *vm; /* a reference; NULL: nothing to do */
	unsigned int from, to[ENGINE_BACKENDS_MAX], n_to;
	uint8_t age;	  /* of what is to go, or older */
	uint64_t next;	  /* VM-wide number of the unit to look at */
	int64_t left;	  /* bytes of guest RAM still to move */
	uint8_t shortage; /* batches in a row of which nothing could be moved */
};

struct demoter {
	struct engine_thread t;
	struct mover *mover;
	struct plan plan;
	_Atomic bool kicked;
	bool shrinking[PE_TIERS]; /* is above its high mark, and not yet at the low one */
	uint64_t look_ns;
};

uint64_t demote_high(uint64_t capacity_bytes)
{
	return capacity_bytes - capacity_bytes / 8;
}

uint64_t demote_low(uint64_t high_bytes)
{
	return high_bytes - high_bytes / 8;
}

void demoter_kick(struct engine *eng)
{
	struct demoter *d = eng->demoter;

	if (d && !atomic_exchange(&d->kicked, true))
		engine_thread_wake(&d->t);
}

/* ---- ages ---- */

void demote_note(struct block *b, uint64_t unit)
{
	_Atomic uint8_t *ages = atomic_load_explicit(&b->ages, memory_order_acquire);

	if (ages)
		atomic_store_explicit(&ages[unit],
				      atomic_load_explicit(&b->vm->epoch, memory_order_relaxed),
				      memory_order_relaxed);
}

static uint8_t age_of(const struct block *b, uint64_t unit)
{
	_Atomic uint8_t *ages = atomic_load(&b->ages);
	uint8_t now = atomic_load_explicit(&b->vm->epoch, memory_order_relaxed);

	return ages ? (uint8_t)(now - atomic_load_explicit(&ages[unit], memory_order_relaxed))
		    : UINT8_MAX;
}

/* Every block gets its bytes; what is evicted already is as old as can be told. */
static void make_ages(struct vm *vm)
{
	for (unsigned int i = 0; i < atomic_load(&vm->n_blocks); i++) {
		struct block *b = atomic_load(&vm->blocks[i]);

		/* Without memory for it all of it counts as old. */
		if (b && !atomic_load(&b->ages))
			atomic_store(&b->ages, calloc(b->units, 1));
	}
}

static void bound_ages(struct block *b)
{
	_Atomic uint8_t *ages = atomic_load(&b->ages);
	uint8_t oldest = (uint8_t)(atomic_load(&b->vm->epoch) - AGE_MAX);

	/* One that is evicted at this moment may come out too old: it goes down early. */
	for (uint64_t u = 0; ages && u < b->units; u++)
		if (age_of(b, u) > AGE_MAX)
			atomic_store_explicit(&ages[u], oldest, memory_order_relaxed);
}

static void pass_epochs(struct vm *vm, unsigned int tier)
{
	uint64_t now = atomic_load(&vm->evicted_ever), length, n;

	length = (uint64_t)atomic_load(&vm->tier_units[tier]) / EPOCHS_HELD;
	if (length < UINT64_C(1) << 16)
		length = UINT64_C(1) << 16;
	n = (now - vm->demotion.evicted_ever) / length;
	if (!n)
		return;
	vm->demotion.evicted_ever = now;
	n = n < EPOCHS_A_LOOK ? n : EPOCHS_A_LOOK;
	atomic_fetch_add(&vm->epoch, (uint8_t)n);
	vm->demotion.epochs += (unsigned int)n;
	if (vm->demotion.epochs < EPOCHS_HELD)
		return;
	vm->demotion.epochs = 0;
	for (unsigned int i = 0; i < atomic_load(&vm->n_blocks); i++) {
		struct block *b = atomic_load(&vm->blocks[i]);

		if (b)
			bound_ages(b);
	}
}

/* ---- what has to go ---- */

/* Content of a tier that can go down (evicted), or can be forgotten (a copy of what is resident).
 */
static bool is_in(uint64_t e, unsigned int tier)
{
	enum page_state s = page_entry_state(e);

	return page_entry_tier(e) == tier &&
	       (s == PE_EVICTED || ((s == PE_RESIDENT || s == PE_PINNED) && (e & PE_COPY)));
}

/* The next unit of the block from *unit on that is in the tier and at least so old. */
static bool find(const struct block *b, unsigned int tier, uint8_t age, uint64_t *unit, uint64_t *e)
{
	for (; *unit < b->units; ++*unit) {
		if (*unit % PAGE_TABLE_RUN == 0 && page_table_uniform(&b->table, *unit, e)) {
			*unit += PAGE_TABLE_RUN - 1; /* nothing of it was ever evicted */
			continue;
		}
		*e = page_table_get(&b->table, *unit);
		if (is_in(*e, tier) && age_of(b, *unit) >= age)
			return true;
	}
	*unit = b->units; /* the next block begins right there */
	return false;
}

/* The youngest age that has to go so that `bytes` of guest RAM do. */
static uint8_t youngest(struct vm *vm, unsigned int tier, uint64_t bytes)
{
	uint64_t of_age[256] = {0}, sum = 0, e;
	unsigned int age = 256;

	for (unsigned int i = 0; i < atomic_load(&vm->n_blocks); i++) {
		struct block *b = atomic_load(&vm->blocks[i]);

		for (uint64_t u = 0; b && !atomic_load(&b->gone) && find(b, tier, 0, &u, &e); u++)
			of_age[age_of(b, u)] += block_unit_bytes(b);
	}
	while (age && sum < bytes)
		sum += of_age[--age];
	return (uint8_t)age;
}

bool demote_allowed(const struct vm *vm)
{
	return !atomic_load(&vm->dead) && !atomic_load(&vm->attaching) &&
	       !atomic_load(&vm->restoring) && !atomic_load(&vm->suspended) &&
	       !atomic_load(&vm->joining);
}

/* What all VMs have in a tier says that this one's share has to shrink by so much. */
static uint64_t excess_of_all(struct demoter *d, unsigned int tier, const struct ebb_usage *own)
{
	struct backend *be = atomic_load(&d->t.eng->slots[tier].backend);
	uint64_t high = demote_high(own->capacity_bytes), low = demote_low(high);
	uint64_t share, least;
	struct ebb_usage all;

	if (!be || !own->capacity_bytes) {
		d->shrinking[tier] = false;
		return 0;
	}
	backend_usage(be, NULL, &all);
	if (all.stored_bytes > high)
		d->shrinking[tier] = true;
	else if (all.stored_bytes <= low)
		d->shrinking[tier] = false;
	if (!d->shrinking[tier])
		return 0;
	share = (uint64_t)((double)(all.stored_bytes - low) * (double)own->stored_bytes /
			   (double)all.stored_bytes);
	/* Not ever smaller shares of ever less. */
	least = own->stored_bytes < SHARE_MIN ? own->stored_bytes : SHARE_MIN;
	return share > least ? share : least;
}

/* How much of guest RAM has to leave a tier of the VM. */
static uint64_t excess(struct demoter *d, struct vm *vm, unsigned int tier)
{
	struct backend_space *space = atomic_load(&vm->spaces[tier]);
	uint64_t high = atomic_load(&vm->tier_high[tier]), low = atomic_load(&vm->tier_low[tier]);
	struct ebb_usage u;
	uint64_t bytes;

	if (!space || atomic_load(&d->t.eng->slots[tier].draining))
		return 0;
	backend_usage(backend_of(space), space, &u);
	bytes = excess_of_all(d, tier, &u);
	if (high && u.stored_bytes > high && u.stored_bytes - low > bytes)
		bytes = u.stored_bytes - low;
	if (!bytes || !u.stored_bytes)
		return 0;
	return (uint64_t)((double)bytes * (double)u.logical_bytes / (double)u.stored_bytes) + 1;
}

/* Begins with what has to be done for a VM, if anything. Lower tiers first, to make room. */
static void look_at(struct demoter *d, struct vm *vm)
{
	unsigned int tiers[ENGINE_BACKENDS_MAX], n;
	struct plan *p = &d->plan;

	if (!atomic_load(&vm->chained) || !demote_allowed(vm))
		return;
	n = vm_chain(vm, tiers);
	if (n < 2)
		return;
	make_ages(vm);
	pass_epochs(vm, tiers[0]);
	if (clock_ns() < vm->demotion.not_before_ns)
		return;
	for (unsigned int i = n - 1; i-- > 0;) {
		uint64_t bytes = excess(d, vm, tiers[i]);

		if (!bytes)
			continue;
		*p = (struct plan){.vm = vm, .from = tiers[i], .left = (int64_t)bytes};
		for (unsigned int k = i + 1; k < n; k++)
			p->to[p->n_to++] = tiers[k];
		p->age = youngest(vm, p->from, bytes);
		vm_ref(vm);
		return;
	}
}

static void look_around(struct demoter *d, struct vm **vms)
{
	unsigned int n = engine_vms_get(d->t.eng, vms, ENGINE_VMS_MAX);

	atomic_store(&d->kicked, false);
	for (unsigned int i = 0; i < n; i++) {
		if (!d->plan.vm)
			look_at(d, vms[i]);
		vm_put(vms[i]);
	}
	d->look_ns = clock_ns() + LOOK_MIN_NS;
}

/* ---- doing it ---- */

/* A copy of what is resident is not worth its place here. */
static void forget_copy(struct demoter *d, struct block *b, uint64_t unit, uint64_t e)
{
	struct vm *vm = b->vm;
	int64_t bytes = (int64_t)block_unit_bytes(b);

	if (!page_table_cas(&b->table, unit, &e, page_entry_bare(page_entry_state(e))))
		return;
	atomic_fetch_sub(&vm->copies, bytes);
	atomic_fetch_sub(&vm->tier_units[page_entry_tier(e)], bytes);
	loader_free_handle(mover_loader(d->mover), b, page_entry_tier(e), page_entry_handle(e));
	d->plan.left -= bytes;
}

/* The block of the plan's next unit, and that within; NULL: all is looked through. */
static struct block *next_block(struct plan *p, uint64_t *unit)
{
	struct block *best = NULL;

	for (unsigned int i = 0; i < atomic_load(&p->vm->n_blocks); i++) {
		struct block *b = atomic_load(&p->vm->blocks[i]);

		if (b && !atomic_load(&b->gone) && b->first_unit + b->units > p->next &&
		    (!best || b->first_unit < best->first_unit))
			best = b;
	}
	if (best)
		*unit = p->next > best->first_unit ? p->next - best->first_unit : 0;
	return best;
}

/* One batch. False: the plan is done, or cannot be carried out. */
static bool go_on(struct demoter *d)
{
	struct plan *p = &d->plan;
	uint64_t unit, units[MOVE_BATCH], e;
	struct block *b = p->left > 0 && demote_allowed(p->vm) ? next_block(p, &unit) : NULL;
	unsigned int n = 0, moved;

	if (!b)
		return false;
	while (n < mover_batch(b) && (int64_t)(n * block_unit_bytes(b)) < p->left &&
	       find(b, p->from, p->age, &unit, &e)) {
		if (page_entry_state(e) == PE_EVICTED)
			units[n++] = unit;
		else
			forget_copy(d, b, unit, e);
		unit++;
	}
	p->next = b->first_unit + unit;
	if (!n)
		return true;
	moved = mover_move(d->mover, b, units, n, p->from, p->to, p->n_to);
	vm_add(p->vm, COUNTER_demotions, moved);
	p->left -= (int64_t)(moved * block_unit_bytes(b));
	p->shortage = moved ? 0 : (uint8_t)(p->shortage + 1);
	/* Some may have been wanted just then; not all of several batches. */
	return p->shortage < 4;
}

static void end_plan(struct demoter *d)
{
	struct plan *p = &d->plan;

	/* Nobody below has room, or nothing is left that could go. */
	if (p->left > 0)
		p->vm->demotion.not_before_ns = clock_ns() + RETRY_NS;
	vm_put(p->vm);
	p->vm = NULL;
}

static void *demoter_main(void *arg)
{
	struct demoter *d = arg;
	struct engine *eng = d->t.eng;
	struct vm **vms = calloc(ENGINE_VMS_MAX, sizeof(*vms));

	while (vms && !atomic_load(&eng->stop)) {
		struct pollfd pfd = {.fd = d->t.wake_fd, .events = POLLIN};
		uint64_t now;

		mover_refresh(d->mover);
		if (engine_thread_pass(&d->t))
			continue;
		if (d->plan.vm) {
			if (!go_on(d))
				end_plan(d);
			continue;
		}
		now = clock_ns();
		if (now < d->look_ns) {
			poll(&pfd, 1, (int)((d->look_ns - now) / NS_PER_MS) + 1);
			continue;
		}
		if (!atomic_load(&d->kicked))
			poll(&pfd, 1, LOOK_MS);
		look_around(d, vms);
	}
	if (d->plan.vm)
		end_plan(d);
	free(vms);
	return NULL;
}

int demoter_new(struct engine *eng, struct demoter **out)
{
	struct demoter *d = calloc(1, sizeof(*d));
	int r;

	if (!d)
		return -ENOMEM;
	r = engine_thread_init(eng, &d->t);
	if (!r)
		r = mover_new(eng, &d->mover);
	if (!r)
		r = engine_thread_start(&d->t, "ebb-demote", demoter_main, d);
	if (r) {
		demoter_free(d);
		return r;
	}
	*out = d;
	return 0;
}

void demoter_free(struct demoter *d)
{
	if (!d)
		return;
	engine_thread_end(&d->t);
	mover_free(d->mover);
	free(d);
}
