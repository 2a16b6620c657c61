/* SPDX-License-Identifier: BSD-3-Clause */
/* regions.c: what a client says of its RAM while it runs: plug, unplug, discard, pin. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/fault_point.h"
#include "engine/internal.h"
#include "sys/memfd.h"
#include "sys/uffd.h"

/* A unit that is worked on is asked for again after so long. */
#define RETRY_US    200
#define PATIENCE_NS (5 * NS_PER_S)
/* A part of a unit is dropped only when the client will still wait for so long. */
#define PART_MARGIN_NS (500 * NS_PER_MS)

static struct block *block_by_id(struct vm *vm, const char *id)
{
	for (unsigned int i = 0; i < atomic_load(&vm->n_blocks); i++) {
		struct block *b = atomic_load(&vm->blocks[i]);

		if (b && !atomic_load(&b->gone) && strcmp(b->id, id) == 0)
			return b;
	}
	return NULL;
}

static int find_range(struct attachment *a, const char *id, uint64_t offset, uint64_t bytes,
		      struct block **out, struct error *e)
{
	struct block *b = block_by_id(a->vm, id);

	if (a->secondary)
		return error_set(e, EPERM, ERROR_PERMISSION,
				 "only the VM's primary may say this of its RAM");
	if (atomic_load(&a->vm->dead) || atomic_load(&a->dead))
		return error_set(e, ESRCH, ERROR_NOT_FOUND, "the VM was detached");
	if (!b)
		return error_set(e, ENOENT, ERROR_NOT_FOUND, "no region %s", id);
	if (!bytes || offset + bytes < offset || offset + bytes > b->bytes)
		return error_set(e, ERANGE, ERROR_ARGUMENT,
				 "region %s: the range does not lie within it", id);
	*out = b;
	return 0;
}

int engine_region_add(struct attachment *a, const struct attach_region *region, struct error *e)
{
	ENGINE_INSIDE(a->vm->eng);
	struct vm *vm = a->vm;
	int r;

	if (atomic_load(&vm->dead) || atomic_load(&a->dead) || atomic_load(&vm->restoring) ||
	    atomic_load(&vm->orphaned))
		return error_set(e, ESRCH, ERROR_NOT_FOUND, "the VM was detached");
	r = attachment_add_region(a, region, e);
	if (r)
		return r;
	vm_resize_recent(vm);
	policies_resize(vm);
	keeper_check_foreign(vm);
	if (vm->shelf && !a->secondary)
		keep_on_shelf(vm, a); /* before the client hears of it, as in an attach */
	return 0;
}

/* Drops what the backend holds for a resident unit. */
static void forget_copy(struct loader *ld, struct block *b, uint64_t entry)
{
	int64_t bytes = (int64_t)block_unit_bytes(b);

	if (!(entry & PE_COPY))
		return;
	atomic_fetch_sub(&b->vm->copies, bytes);
	atomic_fetch_sub(&b->vm->tier_units[page_entry_tier(entry)], bytes);
	loader_free_handle(ld, b, page_entry_tier(entry), page_entry_handle(entry));
}

/* Whether the page cache has anything of a unit that is ours. */
static bool has_page(struct block *b, uint64_t unit)
{
	struct mapping *m = atomic_load(&b->mappings[0]);
	int64_t r;

	if (b->kind != BLOCK_HUGETLB)
		return unit_in_cache(b, unit);
	/* hugetlbfs does not tell; mapping a page that is there changes nothing. */
	r = m ? uffd_continue(m->att->uffd, mapping_addr(m, unit), block_unit_bytes(b), 0) : 1;
	return r != -EFAULT;
}

/*
 * The client has dropped the page of a resident unit itself: then there is none, and the books are
 * to say so. If there is one it was written later, and stays. Owned as LOADING, so that a touch
 * waits for the answer; and without its copy, so that nobody brings that back if we die here.
 * False when the entry changed meanwhile.
 */
static bool note_hole(struct loader *ld, struct block *b, uint64_t unit, uint64_t e)
{
	uint64_t now = page_entry_bare(PE_NONE);
	bool there;

	if (!page_table_cas(&b->table, unit, &e, page_entry_bare(PE_LOADING)))
		return false;
	forget_copy(ld, b, e);
	there = has_page(b, unit);
	if (there) {
		now = page_entry_bare(unit_settled(b, unit));
	} else {
		atomic_fetch_sub(&b->vm->resident, (int64_t)block_unit_bytes(b));
		vm_count(b->vm, COUNTER_discards);
	}
	if (page_table_leave(&b->table, unit, now))
		unit_wake(b, unit);
	return true;
}

/*
 * Makes one unit read as zero from now on; waits while somebody else works on it.
 *
 * Order: claim (CLEARING), drop the page, free the copy, NONE. Without a deadline, a write by the
 * VM before the end of this call may be dropped: the call that asked for the discard has not
 * returned, so the VM itself cannot know on which side of it the write was. With one, the client
 * may have gone on already, so a resident page is left alone (the client dropped the old one, and
 * this is a later one), and the copy of an evicted unit is dropped only if the time has not come
 * after the claim: from the claim on nobody can write to it, so what it holds is from before.
 */
static int clear_unit(struct loader *ld, struct block *b, uint64_t unit, uint64_t deadline_ns)
{
	struct vm *vm = b->vm;
	int64_t bytes = (int64_t)block_unit_bytes(b);
	uint64_t e;
	int r;

	for (;;) {
		enum page_state s;

		e = page_table_get(&b->table, unit);
		s = page_entry_state(e);
		if (page_state_owned(s)) {
			usleep(RETRY_US);
			continue;
		}
		if (s == PE_PROTECTED) {
			/* Take it from its evictor first, as a fault would. */
			if (page_table_cas(&b->table, unit, &e, page_entry_in(e, PE_UNPROTECTING)))
				unit_cancel(b, unit, e);
			continue;
		}
		if (deadline_ns && (s == PE_PINNED || s == PE_NONE))
			return 0;
		if (deadline_ns && s == PE_RESIDENT) {
			if (note_hole(ld, b, unit, e))
				return 0;
			continue;
		}
		if (page_table_cas(&b->table, unit, &e, page_entry_in(e, PE_CLEARING)))
			break;
	}
	if (deadline_ns && clock_ns() >= deadline_ns) {
		if (page_table_leave(&b->table, unit, e & ~PE_WANTED))
			unit_wake(b, unit);
		return -ETIMEDOUT;
	}
	FAULT_POINT(clear_owned);
	r = memfd_punch(b->memfd, block_file_offset(b, unit), (uint64_t)bytes);
	FAULT_POINT(clear_punched);
	if (r) {
		bool was_there =
			page_entry_state(e) == PE_RESIDENT || page_entry_state(e) == PE_PINNED;

		/* Nothing dropped; what the backend held is not wanted any more. */
		if (page_table_leave(&b->table, unit,
				     was_there ? e & ~PE_WANTED : page_entry_bare(PE_NONE)))
			unit_wake(b, unit);
		if (was_there)
			return r;
	}
	switch (page_entry_state(e)) {
	case PE_RESIDENT:
	case PE_PINNED:
		atomic_fetch_sub(&vm->resident, bytes);
		forget_copy(ld, b, e);
		break;
	case PE_EVICTED:
		atomic_fetch_sub(&vm->evicted, bytes);
		atomic_fetch_sub(&vm->tier_units[page_entry_tier(e)], bytes);
		if (page_entry_tier(e) == PE_TIER_FILL)
			atomic_fetch_sub(&vm->zero, bytes);
		loader_free_handle(ld, b, page_entry_tier(e), page_entry_handle(e));
		break;
	case PE_LOST:
		atomic_fetch_sub(&vm->lost, bytes);
		break;
	default:
		break;
	}
	FAULT_POINT(clear_freed);
	if (page_entry_state(e) != PE_NONE)
		vm_count(vm, COUNTER_discards);
	if (!r && page_table_leave(&b->table, unit, page_entry_bare(PE_NONE)))
		unit_wake(b, unit);
	return 0;
}

/*
 * Brings a unit back for a request of the client's. 0: what has become of it, its entry tells. What
 * a backend could not do now is tried again for some seconds: the content is there, and the client
 * has nothing better to do than to ask again.
 */
static int bring_back(struct loader *ld, struct block *b, uint64_t unit, uint64_t *since_ns)
{
	int r = loader_bring_back(ld, b, unit, false);

	if (r >= 0 || r == -EIO)
		return 0;
	if (r == -ESRCH || r == -ENOMEM || loader_is_over(r))
		return r;
	if (r != -EBUSY && r != -EAGAIN) {
		if (!*since_ns)
			*since_ns = clock_ns();
		if (clock_ns() - *since_ns > PATIENCE_NS)
			return r;
	}
	usleep(RETRY_US);
	return 0;
}

/*
 * A part of a unit is given up. Of a resident one the VM has dropped it itself; of an evicted one
 * nobody has, so it is brought back and the part dropped for it.
 */
static int clear_part(struct loader *ld, struct block *b, uint64_t unit, uint64_t offset,
		      uint64_t bytes, uint64_t deadline_ns)
{
	bool was_evicted = false;
	uint64_t since_ns = 0;

	for (;;) {
		uint64_t e = page_table_get(&b->table, unit);
		int r;

		switch (page_entry_state(e)) {
		case PE_NONE:
		case PE_LOST:
			return 0;
		case PE_EVICTED:
			was_evicted = true;
			r = bring_back(ld, b, unit, &since_ns);
			if (r)
				return r;
			continue;
		case PE_PROTECTED:
			if (page_table_cas(&b->table, unit, &e, page_entry_in(e, PE_UNPROTECTING)))
				unit_cancel(b, unit, e);
			continue;
		case PE_RESIDENT:
		case PE_PINNED:
			if (deadline_ns && !was_evicted)
				return 0;
			/* The guest can write to it from here on: only well before the time. */
			if (deadline_ns && clock_ns() + PART_MARGIN_NS > deadline_ns)
				return -ETIMEDOUT;
			/* Owned while it is punched, so that no eviction reads half of it. */
			if (!page_table_cas(&b->table, unit, &e, page_entry_in(e, PE_UNPROTECTING)))
				continue;
			forget_copy(ld, b, e);
			r = memfd_punch(b->memfd, block_file_offset(b, unit) + offset, bytes);
			if (page_table_leave(&b->table, unit,
					     page_entry_bare(unit_settled(b, unit))))
				unit_wake(b, unit);
			return r;
		default:
			usleep(RETRY_US);
		}
	}
}

/* A loader for one call; NULL when there is no memory. */
static struct loader *borrow_loader(struct engine *eng)
{
	struct loader *ld = malloc(sizeof(*ld));

	if (ld && loader_open_brief(eng, ld)) {
		free(ld);
		return NULL;
	}
	return ld;
}

static void return_loader(struct loader *ld)
{
	loader_close(ld);
	free(ld);
}

/* The units at the edges of a range that lie in it only in part. */
static int clear_parts(struct loader *ld, struct block *b, uint64_t offset, uint64_t bytes,
		       uint64_t deadline_ns)
{
	uint64_t size = block_unit_bytes(b), first = offset / size,
		 last = (offset + bytes - 1) / size;
	uint64_t head = offset % size, tail = (offset + bytes) % size;
	int r = 0;

	if (first == last)
		return head || tail ? clear_part(ld, b, first, head, bytes, deadline_ns) : 0;
	if (head)
		r = clear_part(ld, b, first, head, size - head, deadline_ns);
	if (tail && !r)
		r = clear_part(ld, b, last, 0, tail, deadline_ns);
	return r;
}

/*
 * The loader that a VM's discards share: a balloon discards 4 KiB at a time, and making one for
 * each would take longer than all the rest. Under op_lock.
 */
static struct loader *discard_loader(struct vm *vm)
{
	if (!vm->op_loader)
		vm->op_loader = borrow_loader(vm->eng);
	if (vm->op_loader)
		loader_refresh(vm->op_loader, 1);
	return vm->op_loader;
}

static int discard_range(struct loader *ld, struct block *b, uint64_t offset, uint64_t bytes,
			 uint64_t deadline_ns)
{
	uint64_t unit_bytes = block_unit_bytes(b);
	uint64_t first = (offset + unit_bytes - 1) / unit_bytes,
		 end = (offset + bytes) / unit_bytes;
	int result = clear_parts(ld, b, offset, bytes, deadline_ns);

	for (uint64_t u = first; u < end; u++) {
		uint64_t entry;
		int r;

		if (u % PAGE_TABLE_RUN == 0 && end - u >= PAGE_TABLE_RUN &&
		    page_table_uniform(&b->table, u, &entry) &&
		    page_entry_state(entry) == PE_NONE) {
			u += PAGE_TABLE_RUN - 1;
			continue;
		}
		r = clear_unit(ld, b, u, deadline_ns);
		if (r)
			result = r;
	}
	return result;
}

int engine_discard(struct attachment *a, const char *id, uint64_t offset, uint64_t bytes,
		   uint64_t deadline_ns, struct error *e)
{
	ENGINE_INSIDE(a->vm->eng);
	struct vm *vm = a->vm;
	struct loader *ld;
	struct block *b;
	int r;

	pthread_rwlock_rdlock(&vm->structure);
	pthread_mutex_lock(&vm->op_lock);
	/* First: a VM that is dead gets no loader any more. */
	r = find_range(a, id, offset, bytes, &b, e);
	ld = r ? NULL : discard_loader(vm);
	if (!r && !ld)
		r = error_set(e, ENOMEM, ERROR_GENERIC, "out of memory");
	if (!r) {
		r = discard_range(ld, b, offset, bytes, deadline_ns);
		loader_flush_frees(ld);
		if (r)
			error_set(e, -r, ERROR_GENERIC, "region %s: %s", id,
				  r == -ETIMEDOUT ? "too late, some of it is kept"
						  : "its memfd cannot be punched");
	}
	pthread_mutex_unlock(&vm->op_lock);
	pthread_rwlock_unlock(&vm->structure);
	return r;
}

/* Brings a unit back and makes it PINNED; waits while somebody works on it. */
static int pin_unit(struct loader *ld, struct block *b, uint64_t unit)
{
	uint64_t since_ns = 0;

	for (;;) {
		uint64_t e = page_table_get(&b->table, unit);
		int r;

		switch (page_entry_state(e)) {
		case PE_PINNED:
		case PE_NONE: /* its first touch will make it PINNED */
		case PE_LOST:
			return 0;
		case PE_RESIDENT:
			page_table_cas(&b->table, unit, &e, page_entry_in(e, PE_PINNED));
			continue;
		case PE_PROTECTED:
			if (page_table_cas(&b->table, unit, &e, page_entry_in(e, PE_UNPROTECTING)))
				unit_cancel(b, unit, e);
			continue;
		case PE_EVICTED:
			r = bring_back(ld, b, unit, &since_ns);
			if (r)
				return r;
			continue;
		default:
			usleep(RETRY_US);
		}
	}
}

static int add_pin(struct block *b, uint64_t first, uint64_t count)
{
	unsigned int n;
	int r = 0;

	pthread_mutex_lock(&b->pin_lock);
	n = atomic_load(&b->n_pins);
	for (unsigned int i = 0; i < n; i++)
		if (b->pins[i].first == first && b->pins[i].count == count) {
			b->pins[i].nest++;
			goto out;
		}
	if (n == BLOCK_PINS_MAX) {
		r = -ENOSPC;
	} else {
		b->pins[n] = (struct pin){first, count, 1};
		atomic_store_explicit(&b->n_pins, n + 1, memory_order_release);
	}
out:
	pthread_mutex_unlock(&b->pin_lock);
	return r;
}

static int drop_pin(struct block *b, uint64_t first, uint64_t count)
{
	unsigned int n;
	int r = -ENOENT;

	pthread_mutex_lock(&b->pin_lock);
	n = atomic_load(&b->n_pins);
	for (unsigned int i = 0; i < n && r; i++) {
		if (b->pins[i].first != first || b->pins[i].count != count)
			continue;
		r = 0;
		if (--b->pins[i].nest == 0) {
			b->pins[i] = b->pins[n - 1];
			atomic_store(&b->n_pins, n - 1);
		}
	}
	pthread_mutex_unlock(&b->pin_lock);
	return r;
}

uint64_t block_pinned_bytes(struct block *b)
{
	struct pin pins[BLOCK_PINS_MAX];
	uint64_t units = 0;
	unsigned int n;

	/* Faults take this lock too, so it is not held for the comparisons. */
	pthread_mutex_lock(&b->pin_lock);
	n = atomic_load(&b->n_pins);
	memcpy(pins, b->pins, n * sizeof(pins[0]));
	pthread_mutex_unlock(&b->pin_lock);
	for (unsigned int i = 0; i < n; i++) {
		uint64_t at = pins[i].first, end = at + pins[i].count, next;

		/* What several pins cover is counted with the first of them. */
		for (; at < end; at = next) {
			bool counted = false;

			next = end;
			for (unsigned int k = 0; k < i; k++) {
				uint64_t from = pins[k].first, to = from + pins[k].count;

				if (at >= from && at < to) {
					counted = true;
					next = to;
					break;
				}
				if (from > at && from < next)
					next = from;
			}
			units += counted ? 0 : next - at;
		}
	}
	return units << b->unit_shift;
}

/* PINNED units that no pin covers any more become RESIDENT. */
static void unpin_units(struct block *b, uint64_t first, uint64_t count)
{
	for (uint64_t u = first; u < first + count; u++) {
		uint64_t e = page_table_get(&b->table, u);

		/* Whoever owns it may have asked for the pins before this one was dropped. */
		if (page_state_owned(page_entry_state(e))) {
			usleep(RETRY_US);
			u--;
			continue;
		}
		if (page_entry_state(e) != PE_PINNED || unit_settled(b, u) == PE_PINNED)
			continue;
		if (!page_table_cas(&b->table, u, &e, page_entry_in(e, PE_RESIDENT)))
			u--; /* somebody lifts a stale protection: once more */
	}
}

int engine_pin(struct attachment *a, const char *id, uint64_t offset, uint64_t bytes,
	       struct error *e)
{
	ENGINE_INSIDE(a->vm->eng);
	struct vm *vm = a->vm;
	uint64_t first, end;
	struct loader *ld;
	struct block *b;
	int r;

	ld = borrow_loader(vm->eng);
	if (!ld)
		return error_set(e, ENOMEM, ERROR_GENERIC, "out of memory");
	pthread_rwlock_rdlock(&vm->structure);
	r = find_range(a, id, offset, bytes, &b, e);
	if (r)
		goto out;
	first = offset >> b->unit_shift;
	end = (offset + bytes + block_unit_bytes(b) - 1) >> b->unit_shift;
	/* Listed first: what becomes resident from now on becomes PINNED at once. */
	r = add_pin(b, first, end - first);
	if (r) {
		error_set(e, -r, ERROR_LIMIT, "no more than %d pinned ranges in a region",
			  BLOCK_PINS_MAX);
		goto out;
	}
	for (uint64_t u = first; u < end && !r; u++)
		r = pin_unit(ld, b, u);
	if (r) {
		error_set(e, -r, ERROR_GENERIC, "region %s: cannot bring the range back: %s", id,
			  error_text(r));
		drop_pin(b, first, end - first);
		unpin_units(b, first, end - first);
	}
	loader_flush_frees(ld);
out:
	pthread_rwlock_unlock(&vm->structure);
	return_loader(ld);
	return r;
}

int engine_unpin(struct attachment *a, const char *id, uint64_t offset, uint64_t bytes,
		 struct error *e)
{
	ENGINE_INSIDE(a->vm->eng);
	struct vm *vm = a->vm;
	uint64_t first, end;
	struct block *b;
	int r;

	pthread_rwlock_rdlock(&vm->structure);
	r = find_range(a, id, offset, bytes, &b, e);
	if (!r) {
		first = offset >> b->unit_shift;
		end = (offset + bytes + block_unit_bytes(b) - 1) >> b->unit_shift;
		r = drop_pin(b, first, end - first);
		if (r)
			error_set(e, -r, ERROR_NOT_FOUND, "region %s: that range is not pinned",
				  id);
		else
			unpin_units(b, first, end - first);
	}
	pthread_rwlock_unlock(&vm->structure);
	return r;
}

int engine_region_remove(struct attachment *a, const char *id, bool discard, struct progress *p,
			 struct error *e)
{
	ENGINE_INSIDE(a->vm->eng);
	struct vm *vm = a->vm;
	struct loader *ld = borrow_loader(vm->eng);
	struct mapping *m;
	struct block *b;
	int r;

	if (!ld)
		return error_set(e, ENOMEM, ERROR_GENERIC, "out of memory");
	if (attachment_drop_mapping(a, id)) {
		if (a->secondary && atomic_load(&vm->orphaned) && !attachment_maps(a))
			attachment_leave(a);
		return_loader(ld);
		return 0;
	}
	pthread_rwlock_rdlock(&vm->structure);
	r = find_range(a, id, 0, 1, &b, e);
	if (!r) {
		/* No eviction begins after this, and none is under way after the barrier. */
		atomic_store(&b->gone, true);
		engine_barrier(vm->eng);
		r = restore_block(ld, b, discard, p);
		if (r) {
			error_set(e, -r, r == -ECANCELED ? ERROR_CANCELLED : ERROR_NO_SPACE,
				  "region %s: cannot bring it back: %s", id, error_text(r));
		}
		loader_flush_frees(ld);
		if (!r && !discard)
			r = longops_let_go_lost(b, e);
		if (r)
			atomic_store(&b->gone, false);
	}
	/* Nothing is missing in it any more (or nobody wants it): let go. */
	for (unsigned int i = 0; !r && i < atomic_load(&b->n_mappings); i++) {
		m = atomic_load(&b->mappings[i]);
		if (m)
			uffd_unregister(m->att->uffd, m->host_addr, m->units << b->unit_shift);
	}
	pthread_rwlock_unlock(&vm->structure);
	if (r) {
		return_loader(ld);
		return r;
	}
	policies_resize(vm);
	block_retire(ld, b);
	return_loader(ld);
	return 0;
}
