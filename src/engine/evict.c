/* SPDX-License-Identifier: BSD-3-Clause */
/* evict.c: takes units of guest RAM back: protect, check, read, store, punch. */
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>

#include "base/fault_point.h"
#include "engine/internal.h"
#include "engine/thp.h"
#include "sys/memfd.h"
#include "sys/pagemap.h"

/*
 * Theory of operation
 *
 * A batch is up to 64 units of one block (of 2 MiB: one unit), and goes through these steps
 * together:
 *
 *   1 claim    RESIDENT -> PROTECTED by compare-and-swap; what is not RESIDENT is left out
 *   2 protect  write-protect in all mappings, one ioctl a run. A write now faults, and the fault
 *              path takes the unit away (PROTECTED -> UNPROTECTING). Only units that this batch has
 *              claimed are ever protected, so no protection is left on somebody else's unit
 *   3 guard    the folio probe: more references than the cache and the mappings account for mean
 *              that a device or a kernel path may still write to the page by DMA: give it up.
 *              (A pin that begins after step 2 faults on the protection.) Without the probe, the
 *              batch waits here for the quarantine time instead
 *   4 own      PROTECTED -> STORING: from here on the evictor decides, faults set PE_WANTED
 *   5 read     pread, a run at a time. One repeated pattern needs no store; a copy that the
 *              backend still holds is compared with, which needs none either
 *   6 store    the rest goes to the first tier that has room, the whole batch at once. While an
 *              asynchronous tier works on it, steps 1 to 6 of the next batch are done
 *   7 commit   STORING -> PUNCHING with tier and handle, if no fault came meanwhile; else cancel
 *   8 punch    the pages go, a run at a time
 *   9 done     PUNCHING -> EVICTED; wake who asked meanwhile, they fault again and load
 *
 * Nothing is dropped before its store was acknowledged, and the entry names the copy before the
 * page goes: a crash at any instruction leaves the page or the acknowledged copy, or both.
 */

struct item {
	uint64_t unit;	/* in the block */
	uint64_t entry; /* before the claim */
	uint64_t to;	/* entry to commit: tier and handle, or the fill pattern */
	enum { CLAIMED, OWNED, STORED, DONE, GIVEN_UP } step;
	uint8_t outcome; /* enum ebb_outcome, for the policy */
	bool fresh;	 /* `to` holds a handle that this batch made */
	bool unused;	 /* was prefetched, and nobody has touched it since */
};

struct batch {
	struct block *block;
	unsigned int n;
	char *buffers; /* UNIT_MAX_BYTES */
	struct item items[EVICT_BATCH_MAX];
	struct ebb_io ios[EVICT_BATCH_MAX];
	/* What is to be stored: todo of io_list, in the first of the tiers that takes it. */
	struct ebb_io *io_list[EVICT_BATCH_MAX];
	unsigned int todo, tiers[ENGINE_BACKENDS_MAX], n_tiers, next_tier;
	unsigned int tier;    /* that they were sent to; 0: none */
	unsigned int pending; /* sent, and not complete */
};

struct evict_context {
	struct engine *eng;
	uint64_t claim; /* PE_CLAIM of this evictor */
	struct loader loader;
	struct batch batches[EVICT_DEPTH];
	struct batch *at; /* the one that is worked on */
	uint64_t index[FOLIO_PROBE_MAX];
	uint8_t verdict[FOLIO_PROBE_MAX];
};

/* The most that one evictor has in flight: all its batches' stores, and a load. */
#define EVICT_QUEUE (EVICT_DEPTH * EVICT_BATCH_MAX + 1)

/* An I/O of one of our batches has completed. */
static void completed(void *ctx, struct ebb_io *io)
{
	struct evict_context *c = ctx;

	for (unsigned int i = 0; i < EVICT_DEPTH; i++)
		if (io >= c->batches[i].ios && io < c->batches[i].ios + EVICT_BATCH_MAX)
			c->batches[i].pending--;
}

int evict_context_new(struct engine *eng, unsigned int index, struct evict_context **out)
{
	struct evict_context *c = calloc(1, sizeof(*c));
	int r;

	if (!c)
		return -ENOMEM;
	c->eng = eng;
	c->claim = (uint64_t)index << PE_CLAIM_SHIFT;
	r = loader_open(eng, &c->loader, EVICT_QUEUE, (EVICT_DEPTH - 1) * UNIT_MAX_BYTES);
	if (r) {
		free(c);
		return r;
	}
	c->loader.completed = completed;
	c->loader.completed_ctx = c;
	c->batches[0].buffers = c->loader.buffers;
	for (unsigned int i = 1; i < EVICT_DEPTH; i++)
		c->batches[i].buffers = (char *)loader_more(&c->loader) + (i - 1) * UNIT_MAX_BYTES;
	/* When it is needed most, memory is scarce. */
	for (unsigned int i = 0; i < EVICT_DEPTH; i++)
		loader_populate(c->batches[i].buffers, EVICT_BATCH * UINT64_C(4096));
	*out = c;
	return 0;
}

void evict_context_free(struct evict_context *c)
{
	if (!c)
		return;
	loader_close(&c->loader);
	free(c);
}

void evict_context_refresh(struct evict_context *c)
{
	loader_make_large(&c->loader);
	loader_flush_frees(&c->loader);
	loader_refresh(&c->loader, EVICT_QUEUE);
}

struct loader *evict_context_loader(struct evict_context *c)
{
	return &c->loader;
}

static void give_up(struct block *b, struct item *it, enum ebb_outcome outcome)
{
	struct vm *vm = b->vm;

	it->step = GIVEN_UP;
	it->outcome = (uint8_t)outcome;
	if (outcome == EBB_OUTCOME_CANCELLED)
		vm_count(vm, COUNTER_evictions_cancelled);
	else if (outcome == EBB_OUTCOME_BUSY)
		vm_count(vm, COUNTER_evictions_busy);
	else
		vm_count(vm, COUNTER_evictions_failed);
}

/* Leaves STORING or PUNCHING backwards: the page stays, a handle made by this batch goes. */
static void back_out(struct evict_context *c, struct block *b, struct item *it,
		     enum ebb_outcome outcome)
{
	uint64_t e = page_table_get(&b->table, it->unit);

	while (!page_table_cas(&b->table, it->unit, &e,
			       page_entry_in(it->entry, PE_UNPROTECTING) | (e & PE_WANTED)))
		;
	give_up(b, it, outcome);
	unit_cancel(b, it->unit, it->entry);
	if (it->fresh)
		loader_free_handle(&c->loader, b, page_entry_tier(it->to),
				   page_entry_handle(it->to));
	it->fresh = false;
}

/* An item's entry while it is CLAIMED, and by this evictor. */
static uint64_t claimed(const struct evict_context *c, uint64_t entry)
{
	return (page_entry_in(entry, PE_PROTECTED) & ~PE_CLAIM) | c->claim;
}

/*
 * What was prefetched has not been seen in use, so it looks like the coldest of all: a policy would
 * name it before the guest gets there. The first time it is kept.
 */
static bool spare(struct block *b, uint64_t unit, uint64_t e)
{
	return (e & PE_PREFETCHED) && !(e & PE_SPARED) && page_entry_state(e) == PE_RESIDENT &&
	       page_table_cas(&b->table, unit, &e, e | PE_SPARED);
}

/* 1: claims what can be claimed; returns how many. */
static unsigned int claim(struct evict_context *c, struct block *b, const uint64_t *units,
			  unsigned int n)
{
	unsigned int done = 0;

	for (unsigned int i = 0; i < n; i++) {
		uint64_t e = page_table_get(&b->table, units[i]);

		if (page_entry_state(e) != PE_RESIDENT || spare(b, units[i], e) ||
		    !page_table_cas(&b->table, units[i], &e, claimed(c, e)))
			continue;
		c->at->items[done++] =
			(struct item){.unit = units[i], .entry = e & ~PE_SPARED, .step = CLAIMED};
	}
	return done;
}

/* Length of the run of consecutive units from item i on, all at the given step. */
static unsigned int run_length(const struct evict_context *c, unsigned int i, unsigned int n,
			       int step)
{
	unsigned int len = 1;

	while (i + len < n && (int)c->at->items[i + len].step == step &&
	       c->at->items[i + len].unit == c->at->items[i].unit + len)
		len++;
	return len;
}

/* Takes a claimed unit back to its owner's hands, if a fault has not done so already. */
static void unclaim(struct evict_context *c, struct block *b, struct item *it,
		    enum ebb_outcome outcome)
{
	uint64_t e = claimed(c, it->entry);

	if (page_table_cas(&b->table, it->unit, &e, page_entry_in(it->entry, PE_UNPROTECTING))) {
		give_up(b, it, outcome);
		unit_cancel(b, it->unit, it->entry);
	} else {
		/* Counted by the fault that took it. */
		it->step = GIVEN_UP;
		it->outcome = EBB_OUTCOME_CANCELLED;
	}
}

/* 2 */
static void protect(struct evict_context *c, struct block *b, unsigned int n)
{
	for (unsigned int i = 0; i < n;) {
		unsigned int len = run_length(c, i, n, CLAIMED);

		if (unit_protect_run(b, c->at->items[i].unit, len))
			for (unsigned int k = i; k < i + len; k++)
				unclaim(c, b, &c->at->items[k], EBB_OUTCOME_FAILED);
		i += len;
	}
}

/* 3: what the probe says of every page of every unit; false when it could not be asked. */
static bool guard_by_probe(struct evict_context *c, struct block *b, unsigned int n)
{
	unsigned int probes = 0;

	/* A folio answers for all its pages; a unit of transparent huge pages may be many folios.
	 */
	unsigned int pages = b->kind == BLOCK_THP ? UNIT_MAX_BYTES / 4096 : 1;

	for (unsigned int i = 0; i < n; i++)
		for (unsigned int k = 0; k < pages; k++)
			c->index[probes++] = block_file_offset(b, c->at->items[i].unit) / 4096 + k;
	if (folio_probe_check(atomic_load(&c->eng->probe), b->memfd, c->index, probes, c->verdict))
		return false;
	for (unsigned int i = 0; i < probes; i++) {
		struct item *it = &c->at->items[i / pages];

		if (it->step == CLAIMED &&
		    (c->verdict[i] == FOLIO_BUSY || c->verdict[i] == FOLIO_UNKNOWN))
			unclaim(c, b, it, EBB_OUTCOME_BUSY);
	}
	return true;
}

static void guard_by_quarantine(struct evict_context *c, const struct vm *vm)
{
	uint64_t end = clock_ns() + c->eng->config.quarantine_ms * NS_PER_MS;

	while (clock_ns() < end && !atomic_load(&vm->dead) && !atomic_load(&c->eng->stop))
		poll(NULL, 0,
		     (int)(c->eng->config.quarantine_ms < 10 ? c->eng->config.quarantine_ms : 10));
}

/* 4 */
static void own(struct evict_context *c, struct block *b, unsigned int n)
{
	for (unsigned int i = 0; i < n; i++) {
		struct item *it = &c->at->items[i];
		uint64_t e = claimed(c, it->entry);

		if (it->step != CLAIMED)
			continue;
		if (page_table_cas(&b->table, it->unit, &e, page_entry_in(it->entry, PE_STORING))) {
			it->step = OWNED;
		} else {
			it->step = GIVEN_UP;
			it->outcome = EBB_OUTCOME_CANCELLED;
		}
	}
}

/* True when all of buf is one 32-bit word repeated. */
static bool is_pattern(const void *buf, uint64_t bytes, uint32_t *pattern)
{
	const uint32_t *p = buf;

	*pattern = p[0];
	return p[1] == p[0] && p[bytes / 8] == p[0] &&
	       memcmp(buf, (const char *)buf + 4, bytes - 4) == 0;
}

/* True when the copy that the backend still has is what the page holds. */
static bool copy_is_good(struct evict_context *c, struct block *b, const struct item *it,
			 const void *content)
{
	void *copy = (char *)c->loader.buffers + UNIT_MAX_BYTES;
	uint64_t bytes = block_unit_bytes(b);
	unsigned int tier = page_entry_tier(it->entry);
	struct backend_channel *ch = loader_channel(&c->loader, tier);
	struct backend_space *space = atomic_load(&b->vm->spaces[tier]);
	int told = ch && space ? backend_matches(ch, space, page_entry_handle(it->entry),
						 unit_owner(b, it->unit), content, (uint32_t)bytes)
			       : -ENOTSUP;

	if (told != -ENOTSUP)
		return told == 1;
	return loader_read(&c->loader, b, it->unit, it->entry, copy, EBB_IO_BACKGROUND) == 0 &&
	       memcmp(copy, content, bytes) == 0;
}

/* 5: reads one run and sorts its units; those to be stored stay OWNED. */
static void read_run(struct evict_context *c, struct block *b, unsigned int i, unsigned int len)
{
	uint64_t bytes = block_unit_bytes(b);
	char *buf = c->at->buffers + i * bytes;
	int r = memfd_read(b->memfd, buf, len * bytes, block_file_offset(b, c->at->items[i].unit));

	for (unsigned int k = i; k < i + len; k++, buf += bytes) {
		struct item *it = &c->at->items[k];
		uint32_t pattern;

		if (r) {
			back_out(c, b, it, EBB_OUTCOME_FAILED);
		} else if (is_pattern(buf, bytes, &pattern)) {
			it->to = page_entry_with_fill(0, pattern, unit_owner(b, it->unit));
			it->outcome = EBB_OUTCOME_ZERO;
			it->step = STORED;
		} else if ((it->entry & PE_COPY) &&
			   !atomic_load(&c->eng->slots[page_entry_tier(it->entry)].draining) &&
			   copy_is_good(c, b, it, buf)) {
			it->to = it->entry & (PE_TIER_MASK | PE_HANDLE_MASK);
			it->outcome = EBB_OUTCOME_CLEAN;
			it->step = STORED;
		}
	}
}

/* Takes what has completed on a channel; waits up to ms for the first. */
static void take_completions(struct evict_context *c, struct backend_channel *ch, int ms)
{
	struct pollfd pfd = {.fd = backend_event_fd(ch), .events = POLLIN};
	struct ebb_io *done[64];
	int n = backend_poll(ch, done, 64);

	if (!n) {
		poll(&pfd, pfd.fd >= 0, pfd.fd >= 0 ? ms : 1);
		n = backend_poll(ch, done, 64);
	}
	for (int i = 0; i < n; i++)
		completed(c, done[i]);
}

/* Sends the listed items to one tier. False when the VM has no way to it. */
static bool send(struct evict_context *c, unsigned int tier)
{
	struct batch *at = c->at;
	struct block *b = at->block;
	struct backend_channel *ch = loader_channel(&c->loader, tier);
	struct backend_space *space = atomic_load(&b->vm->spaces[tier]);
	unsigned int sent = 0;
	bool sync;

	if (!ch || !space)
		return false;
	sync = backend_caps(backend_of(space)) & EBB_BACKEND_SYNC;
	for (unsigned int k = 0; k < at->todo; k++) {
		struct ebb_io *io = at->io_list[k];
		bool plain = at->items[io->user].entry & PE_PLAIN;

		backend_io_prepare(io, EBB_IO_STORE,
				   EBB_IO_BACKGROUND | (plain ? EBB_IO_NOCOMPRESS : 0), space, 0,
				   io->buf, (uint32_t)block_unit_bytes(b), io->user);
		io->owner = unit_owner(b, at->items[io->user].unit);
	}
	at->tier = tier;
	while (sent < at->todo) {
		int got = backend_submit(ch, at->io_list + sent, at->todo - sent);

		sent += got > 0 ? (unsigned int)got : 0;
		if (!sync && got > 0)
			at->pending += (unsigned int)got;
		/* A channel that is full is emptied first. */
		if (sent < at->todo && !sync)
			take_completions(c, ch, 1);
		else if (got <= 0)
			poll(NULL, 0, 1);
	}
	return true;
}

/* Waits for what was sent. Those that failed stay in the list, for the next tier. */
static void settle(struct evict_context *c)
{
	struct batch *at = c->at;
	struct vm *vm = at->block->vm;
	struct backend_space *space = atomic_load(&vm->spaces[at->tier]);
	bool in_ram = space && (backend_caps(backend_of(space)) & EBB_BACKEND_IN_RAM);
	unsigned int left = 0;

	while (at->pending)
		take_completions(c, loader_channel(&c->loader, at->tier), 100);
	for (unsigned int k = 0; k < at->todo; k++) {
		struct ebb_io *io = at->io_list[k];
		struct item *it = &at->items[io->user];

		if (io->result) {
			if (io->result == -ENOSPC)
				backends_note_full(c->eng, at->tier, vm->name);
			else
				atomic_fetch_add(&c->eng->slots[at->tier].failures, 1);
			at->io_list[left++] = io;
			continue;
		}
		it->to = page_entry_with_copy(0, at->tier, io->handle);
		/* What keeps all as it is says nothing about how it would compress. */
		if (in_ram ? io->stored_bytes >= io->len : it->entry & PE_PLAIN)
			it->to |= PE_PLAIN;
		it->fresh = true;
		it->outcome = EBB_OUTCOME_EVICTED;
		it->step = STORED;
	}
	at->todo = left;
	at->tier = 0;
}

/* Sends what is left to the next tier that may have room; false when there is none. */
static bool send_on(struct evict_context *c)
{
	struct batch *at = c->at;
	uint64_t now = clock_ns();

	while (at->todo && at->next_tier < at->n_tiers) {
		unsigned int tier = at->tiers[at->next_tier++];
		struct backend_slot *slot = &c->eng->slots[tier];

		if (!atomic_load(&slot->draining) && now >= atomic_load(&slot->full_until_ns) &&
		    send(c, tier))
			return true;
	}
	return false;
}

/* 6: sends what has to be stored to the first tier. */
static void store(struct evict_context *c, struct block *b, unsigned int n)
{
	struct batch *at = c->at;
	struct vm *vm = b->vm;
	uint64_t bytes = block_unit_bytes(b);

	at->todo = at->next_tier = at->tier = at->n_tiers = 0;
	for (unsigned int i = 0; i < n; i++) {
		if (at->items[i].step != OWNED)
			continue;
		at->ios[i].buf = at->buffers + i * bytes;
		at->ios[i].user = i;
		at->io_list[at->todo++] = &at->ios[i];
	}
	if (!at->todo)
		return;
	at->n_tiers = vm_chain(vm, at->tiers);
	send_on(c);
}

/* 6, to its end: what one tier did not take goes to the next, and what none took stays. */
static void stored(struct evict_context *c, struct block *b)
{
	struct batch *at = c->at;

	if (at->tier)
		settle(c);
	while (send_on(c))
		settle(c);
	for (unsigned int k = 0; k < at->todo; k++)
		back_out(c, b, &at->items[at->io_list[k]->user], EBB_OUTCOME_FAILED);
}

/* 7 */
static void commit(struct evict_context *c, struct block *b, unsigned int n)
{
	for (unsigned int i = 0; i < n; i++) {
		struct item *it = &c->at->items[i];
		uint64_t e = page_entry_in(it->entry, PE_STORING);

		if (it->step != STORED)
			continue;
		/* Fails only when a fault has set PE_WANTED: whoever waits is about to write. */
		it->to |= PE_RECENT;
		if (page_table_cas(&b->table, it->unit, &e, page_entry_in(it->to, PE_PUNCHING)))
			continue;
		back_out(c, b, it, EBB_OUTCOME_CANCELLED);
	}
}

/* 8 */
static void punch(struct evict_context *c, struct block *b, unsigned int n)
{
	uint64_t bytes = block_unit_bytes(b);

	for (unsigned int i = 0; i < n;) {
		unsigned int len = run_length(c, i, n, STORED);
		bool bad;

		if (c->at->items[i].step != STORED) {
			i++;
			continue;
		}
		bad = memfd_punch(b->memfd, block_file_offset(b, c->at->items[i].unit),
				  len * bytes);
		for (unsigned int k = i; k < i + len; k++) {
			/* Where folios may be larger than a unit, a pinned one survives a punch of
			 * its part, zeroed: then its content comes from the copy, by a minor
			 * fault, so the unit is as good as evicted. */
			if (bad)
				back_out(c, b, &c->at->items[k], EBB_OUTCOME_FAILED);
		}
		i += len;
	}
}

/* Refaults are told by a mark that goes when so many others were evicted since: see vm.h. */
static void remember_recent(struct vm *vm, struct block *b, uint64_t unit)
{
	struct recent_ring *r = &vm->recent;
	uint64_t old, old_unit, e;
	struct block *ob;

	pthread_mutex_lock(&r->lock);
	old = r->units[r->next];
	r->units[r->next] = b->first_unit + unit + 1;
	r->next = (r->next + 1) % r->size;
	pthread_mutex_unlock(&r->lock);
	ob = old ? vm_block_of(vm, old - 1, &old_unit) : NULL;
	if (!ob || (ob == b && old_unit == unit))
		return;
	e = page_table_get(&ob->table, old_unit);
	if (page_entry_state(e) == PE_EVICTED && (e & PE_RECENT))
		page_table_cas(&ob->table, old_unit, &e, e & ~PE_RECENT);
}

/* 9: returns the bytes freed. */
static uint64_t finish(struct evict_context *c, struct block *b, unsigned int n)
{
	struct vm *vm = b->vm;
	int64_t bytes = (int64_t)block_unit_bytes(b);
	uint64_t freed = 0;

	for (unsigned int i = 0; i < n; i++) {
		struct item *it = &c->at->items[i];
		unsigned int tier = page_entry_tier(it->to);

		if (it->step != STORED)
			continue;
		it->step = DONE;
		if (it->entry & PE_COPY) {
			atomic_fetch_sub(&vm->copies, bytes);
			if (it->outcome != EBB_OUTCOME_CLEAN) {
				unsigned int old = page_entry_tier(it->entry);

				atomic_fetch_sub(&vm->tier_units[old], bytes);
				loader_free_handle(&c->loader, b, old,
						   page_entry_handle(it->entry));
			}
		}
		if (it->outcome != EBB_OUTCOME_CLEAN)
			atomic_fetch_add(&vm->tier_units[tier], bytes);
		if (tier == PE_TIER_FILL)
			atomic_fetch_add(&vm->zero, bytes);
		atomic_fetch_sub(&vm->resident, bytes);
		atomic_fetch_add(&vm->evicted, bytes);
		vm_count(vm, COUNTER_evictions);
		if (it->entry & PE_PREFETCHED)
			vm_count(vm, it->unused ? COUNTER_prefetch_wasted : COUNTER_prefetch_hits);
		if (it->outcome == EBB_OUTCOME_EVICTED)
			vm_count(vm, COUNTER_evictions_stored);
		else if (it->outcome == EBB_OUTCOME_CLEAN)
			vm_count(vm, COUNTER_evictions_clean);
		else
			vm_count(vm, COUNTER_evictions_zero);
		freed += (uint64_t)bytes;
		atomic_fetch_add(&vm->evicted_ever, (uint64_t)bytes);
		if (page_table_leave(&b->table, it->unit, page_entry_in(it->to, PE_EVICTED))) {
			FAULT_POINT(evict_done);
			unit_wake(b, it->unit);
		}
		demote_note(b, it->unit);
		remember_recent(vm, b, it->unit);
	}
	return freed;
}

/* Were prefetched units of this batch used? Their page-table entries tell, before they go. */
static void look_at_prefetched(struct evict_context *c, struct block *b, unsigned int n)
{
	struct mapping *m = atomic_load(&b->mappings[0]);
	struct item *items = c->at->items;
	unsigned int len;

	for (unsigned int i = 0; m && vm_has_tracker(b->vm) && i < n; i += len) {
		uint64_t bits[EVICT_BATCH_MAX / 64], addr = mapping_addr(m, items[i].unit);

		len = 1;
		if (!(items[i].entry & PE_PREFETCHED))
			continue;
		while (i + len < n && (items[i + len].entry & PE_PREFETCHED) &&
		       items[i + len].unit == items[i].unit + len)
			len++;
		if (pagemap_present(m->att->pagemap_fd, addr,
				    addr + ((uint64_t)len << b->unit_shift), block_unit_bytes(b),
				    bits))
			continue;
		for (unsigned int k = 0; k < len; k++)
			items[i + k].unused = !(bits[k / 64] >> k % 64 & 1);
	}
}

/* To a prefetcher that asked for it: what has gone, in whatever way. Under policy_lock. */
static void tell_evictions(struct evict_context *c, struct block *b, unsigned int n)
{
	struct policy_instance *p = atomic_load(&b->vm->prefetch.instance);
	uint64_t units[EVICT_BATCH_MAX];

	if (!p || !policy_wants_evictions(p))
		return;
	for (uint32_t o = EBB_OUTCOME_EVICTED; o <= EBB_OUTCOME_CLEAN; o++) {
		uint32_t k = 0;

		for (unsigned int i = 0; i < n; i++)
			if (c->at->items[i].step == DONE && c->at->items[i].outcome == o)
				units[k++] = b->first_unit + c->at->items[i].unit;
		policy_on_outcome(p, o, units, k);
	}
}

static void tell_policy(struct evict_context *c, struct block *b, unsigned int n)
{
	struct vm *vm = b->vm;
	uint64_t units[EVICT_BATCH_MAX];

	pthread_mutex_lock(&vm->policy_lock);
	if (atomic_load(&vm->reclaim.instance)) {
		for (uint32_t o = EBB_OUTCOME_EVICTED; o <= EBB_OUTCOME_FAILED; o++) {
			uint32_t k = 0;

			for (unsigned int i = 0; i < n; i++)
				if (c->at->items[i].outcome == o)
					units[k++] = b->first_unit + c->at->items[i].unit;
			if (k)
				policy_on_outcome(atomic_load(&vm->reclaim.instance), o, units, k);
		}
	}
	tell_evictions(c, b, n);
	for (int unused = 0; unused < 2 && atomic_load(&vm->prefetch.instance); unused++) {
		uint32_t k = 0;

		for (unsigned int i = 0; i < n; i++)
			if ((c->at->items[i].entry & PE_PREFETCHED) &&
			    c->at->items[i].step == DONE && c->at->items[i].unused == unused)
				units[k++] = b->first_unit + c->at->items[i].unit;
		if (k)
			policy_on_outcome(atomic_load(&vm->prefetch.instance),
					  unused ? EBB_OUTCOME_UNUSED : EBB_OUTCOME_USED, units, k);
	}
	pthread_mutex_unlock(&vm->policy_lock);
}

/* Steps 1 to 6 of one batch of one block; units are numbers in the block. False: nothing to do. */
static bool begin(struct evict_context *c, struct block *b, const uint64_t *units, unsigned int n)
{
	n = claim(c, b, units, n);
	c->at->block = b;
	c->at->n = n;
	if (!n)
		return false;
	/* After the claim: a detach sets the flag first and then waits for the claims. */
	if (atomic_load(&b->vm->restoring) || atomic_load(&b->gone) ||
	    atomic_load(&b->vm->suspended) || atomic_load(&b->vm->joining)) {
		for (unsigned int i = 0; i < n; i++)
			unclaim(c, b, &c->at->items[i], EBB_OUTCOME_BUSY);
		return false;
	}
	look_at_prefetched(c, b, n);
	FAULT_POINT(evict_claimed);
	protect(c, b, n);
	FAULT_POINT(evict_protected);
	if (!atomic_load(&c->eng->probe))
		guard_by_quarantine(c, b->vm);
	else if (!guard_by_probe(c, b, n))
		for (unsigned int i = 0; i < n; i++)
			if (c->at->items[i].step == CLAIMED)
				unclaim(c, b, &c->at->items[i], EBB_OUTCOME_BUSY);
	own(c, b, n);
	FAULT_POINT(evict_owned);
	for (unsigned int i = 0; i < n;) {
		unsigned int len = 1;

		if (c->at->items[i].step == OWNED) {
			len = run_length(c, i, n, OWNED);
			read_run(c, b, i, len);
		}
		i += len;
	}
	FAULT_POINT(evict_read);
	store(c, b, n);
	return true;
}

/* The rest of it; returns the bytes freed. */
static uint64_t end(struct evict_context *c)
{
	struct block *b = c->at->block;
	unsigned int n = c->at->n;
	uint64_t freed;

	stored(c, b);
	FAULT_POINT(evict_stored);
	commit(c, b, n);
	FAULT_POINT(evict_committed);
	punch(c, b, n);
	FAULT_POINT(evict_punched);
	freed = finish(c, b, n);
	if (freed && b->kind == BLOCK_HUGETLB)
		huge_reserve_fill(b->vm);
	reclaim_unpark(b->vm);
	tell_policy(c, b, n);
	return freed;
}

/*
 * One more batch. While its stores are on their way the one before it is ended, so that a slow
 * tier has always some; where they are complete already, it is ended itself at once.
 */
static uint64_t evict_batch(struct evict_context *c, struct block *b, const uint64_t *units,
			    unsigned int n, unsigned int *turn, bool *open)
{
	struct batch *before = *open ? &c->batches[(*turn + EVICT_DEPTH - 1) % EVICT_DEPTH] : NULL;
	struct batch *this = &c->batches[*turn];
	uint64_t freed = 0;
	bool begun;

	c->at = this;
	begun = begin(c, b, units, n);
	if (before) {
		c->at = before;
		freed += end(c);
	}
	*open = begun && this->pending;
	if (*open) {
		*turn = (*turn + 1) % EVICT_DEPTH;
	} else if (begun) {
		c->at = this;
		freed += end(c);
	}
	return freed;
}

uint64_t evict_units(struct evict_context *c, struct vm *vm, const uint64_t *units, unsigned int n)
{
	uint64_t batch[EVICT_BATCH_MAX], unit, freed = 0;
	struct block *b = NULL, *next;
	unsigned int turn = 0, k = 0, most;
	bool open = false; /* a batch's stores are on their way */

	/* Before the probe is asked for: see probes.c. */
	if (atomic_load(&vm->suspended))
		return 0;
	/* A quarantine is paid once a batch. */
	most = atomic_load(&c->eng->probe) ? EVICT_BATCH : EVICT_BATCH_MAX;
	for (unsigned int i = 0; i <= n; i++) {
		next = i < n ? vm_block_of(vm, units[i], &unit) : NULL;
		if (k && (next != b || k == most || !block_is_small(b) ||
			  (k == EVICT_BATCH / 2 && run_wait_some(vm)))) {
			freed += evict_batch(c, b, batch, k, &turn, &open);
			k = 0;
		}
		b = next;
		if (!b || atomic_load(&b->gone))
			continue;
		if (b->kind != BLOCK_MIXED || thp_is_split(b, unit)) {
			batch[k++] = unit;
			continue;
		}
		if (k)
			freed += evict_batch(c, b, batch, k, &turn, &open);
		/* What was seen of its use holds for all of it, see thp.c. */
		for (uint64_t at = unit - unit % EXTENT_UNITS, end = at + EXTENT_UNITS; at < end;
		     at += k) {
			for (k = 0; k < most && at + k < end; k++)
				batch[k] = at + k;
			freed += evict_batch(c, b, batch, k, &turn, &open);
		}
		k = 0;
	}
	if (open) {
		c->at = &c->batches[(turn + EVICT_DEPTH - 1) % EVICT_DEPTH];
		freed += end(c);
	}
	return freed;
}
