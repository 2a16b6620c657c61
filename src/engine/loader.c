/* SPDX-License-Identifier: BSD-3-Clause */
/* loader.c: bringing content back from its backend, in any thread. */
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "base/fault_point.h"
#include "base/log.h"
#include "engine/internal.h"
#include "engine/thp.h"
#include "sys/pagemap.h"

#ifndef MADV_POPULATE_WRITE /* Linux 5.14; a C library may be older */
#define MADV_POPULATE_WRITE 23
#endif

/*
 * Theory of operation
 *
 * A loader is one thread's way to the backends: a channel to each, two buffers of the largest
 * unit, and a list of handles to give back. Fault workers, evictors, the prefetcher and jobs have
 * one each. loader_place() is where content meets the guest, whoever brought it.
 *
 * Order on the way back: content in place, then the entry says so, then the handle is freed (or
 * kept with PE_COPY). A crash between any two of them leaves a copy too many, never one too few.
 */

static int open_with(struct engine *eng, struct loader *ld, uint32_t queue_depth,
		     uint64_t more_bytes)
{
	memset(ld, 0, sizeof(*ld));
	ld->eng = eng;
	ld->buffers_bytes = 2 * UNIT_MAX_BYTES + more_bytes;
	ld->buffers = mmap(NULL, ld->buffers_bytes, PROT_READ | PROT_WRITE,
			   MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (ld->buffers == MAP_FAILED) {
		ld->buffers = NULL;
		return -errno;
	}
	madvise(ld->buffers, ld->buffers_bytes, MADV_DONTDUMP); /* guest content */
	loader_refresh(ld, queue_depth);
	return 0;
}

void loader_populate(void *at, uint64_t bytes)
{
	/* EINVAL: a kernel before 5.14, where the first touch does it. */
	if (madvise(at, bytes, MADV_POPULATE_WRITE))
		return;
}

int loader_open(struct engine *eng, struct loader *ld, uint32_t queue_depth, uint64_t more_bytes)
{
	int r = open_with(eng, ld, queue_depth, more_bytes);

	if (r)
		return r;
	loader_populate(ld->buffers, 4096);
	loader_populate((char *)ld->buffers + UNIT_MAX_BYTES, 4096);
	return 0;
}

void loader_make_large(struct loader *ld)
{
	if (ld->large || !atomic_load(&ld->eng->has_huge))
		return;
	loader_populate(ld->buffers, ld->buffers_bytes);
	ld->large = true;
}

int loader_open_brief(struct engine *eng, struct loader *ld)
{
	return open_with(eng, ld, 1, 0);
}

static void close_channel(struct loader *ld, unsigned int tier)
{
	struct backend_channel *c = atomic_exchange(&ld->channels[tier], NULL);

	if (!c)
		return;
	backend_channel_close(c);
	backends_unuse(ld->eng, tier);
}

void loader_close(struct loader *ld)
{
	if (!ld->buffers)
		return;
	loader_flush_frees(ld);
	for (unsigned int t = 1; t < PE_TIERS; t++)
		close_channel(ld, t);
	munmap(ld->buffers, ld->buffers_bytes);
	ld->buffers = NULL;
}

void loader_refresh(struct loader *ld, uint32_t queue_depth)
{
	for (unsigned int t = 1; t < PE_TIERS; t++) {
		struct backend_channel *c = atomic_load(&ld->channels[t]);
		struct backend *b;

		if (c && !atomic_load(&ld->eng->slots[t].backend)) {
			loader_flush_frees(ld);
			close_channel(ld, t);
		} else if (!c && (b = backends_use(ld->eng, t))) {
			if (backend_channel_open(b, ld->buffers, ld->buffers_bytes, queue_depth,
						 &c) == 0)
				atomic_store(&ld->channels[t], c);
			else
				backends_unuse(ld->eng, t);
		}
	}
}

struct backend_channel *loader_channel(struct loader *ld, unsigned int tier)
{
	return tier < PE_TIERS ? atomic_load(&ld->channels[tier]) : NULL;
}

void loader_fill_pattern(void *buf, uint64_t bytes, uint32_t pattern)
{
	uint32_t *p = buf;

	for (uint64_t i = 0; i < bytes / sizeof(*p); i++)
		p[i] = pattern;
}

/* A unit that is read. */
struct coming {
	uint64_t entry; /* of before, that names the copy */
	int result;	/* -EINPROGRESS: not complete */
	struct ebb_io io;
};

/* Takes what has completed on a channel; others of this thread may be in flight there. */
static void take_completed(struct loader *ld, struct backend_channel *ch, struct coming *c,
			   unsigned int n)
{
	struct pollfd pfd = {.fd = backend_event_fd(ch), .events = POLLIN};
	struct ebb_io *done;

	if (backend_poll(ch, &done, 1) <= 0) {
		poll(&pfd, pfd.fd >= 0, pfd.fd >= 0 ? 100 : 1);
		return;
	}
	for (unsigned int i = 0; i < n; i++) {
		if (done == &c[i].io) {
			c[i].result = done->result;
			return;
		}
	}
	if (ld->completed)
		ld->completed(ld->completed_ctx, done);
}

/* Begins to read a unit into buf; c->result says whether that is all. */
static void begin_read(struct loader *ld, struct block *b, uint64_t unit, struct coming *c,
		       void *buf, uint32_t io_flags)
{
	unsigned int tier = page_entry_tier(c->entry);
	struct backend_space *space = atomic_load(&b->vm->spaces[tier]);
	struct backend_channel *ch = loader_channel(ld, tier);
	uint32_t bytes = (uint32_t)block_unit_bytes(b);
	struct ebb_io *list = &c->io;

	if (tier == PE_TIER_FILL) {
		c->result = page_entry_fill_sound(c->entry, unit_owner(b, unit)) ? 0 : -EIO;
		if (!c->result)
			loader_fill_pattern(buf, bytes, page_entry_fill(c->entry));
		return;
	}
	c->result = !space ? -EIO : -EAGAIN; /* the channel could not be opened so far */
	if (!space || !ch)
		return;
	backend_io_prepare(&c->io, EBB_IO_LOAD, io_flags, space, page_entry_handle(c->entry), buf,
			   bytes, 0);
	c->io.owner = unit_owner(b, unit);
	while (backend_submit(ch, &list, 1) != 1)
		poll(NULL, 0, 1);
	c->result =
		backend_caps(backend_of(space)) & EBB_BACKEND_SYNC ? c->io.result : -EINPROGRESS;
}

/* Reads n units that follow each other; from slow tiers all at once. */
static void read_units(struct loader *ld, struct block *b, uint64_t unit, struct coming *c,
		       unsigned int n, void *buf, uint32_t io_flags)
{
	for (unsigned int i = 0; i < n; i++)
		begin_read(ld, b, unit + i, &c[i], (char *)buf + (i << b->unit_shift), io_flags);
	for (unsigned int i = 0; i < n; i++)
		while (c[i].result == -EINPROGRESS)
			take_completed(ld, loader_channel(ld, page_entry_tier(c[i].entry)), c, n);
}

int loader_read(struct loader *ld, struct block *b, uint64_t unit, uint64_t entry, void *buf,
		uint32_t io_flags)
{
	struct coming c = {.entry = entry};

	read_units(ld, b, unit, &c, 1, buf, io_flags);
	return c.result;
}

static void flush_tier(struct loader *ld, unsigned int tier)
{
	struct backend_channel *c = loader_channel(ld, tier);

	if (ld->n_freed[tier] && c) {
		FAULT_POINT(free_begin);
		backend_free(c, ld->freed_space[tier], ld->freed[tier], ld->n_freed[tier]);
		FAULT_POINT(free_end);
	}
	ld->n_freed[tier] = 0;
	ld->freed_space[tier] = NULL;
}

void loader_flush_frees(struct loader *ld)
{
	for (unsigned int t = 1; t < PE_TIERS; t++)
		flush_tier(ld, t);
}

void loader_free_handle(struct loader *ld, struct block *b, unsigned int tier, uint64_t handle)
{
	struct backend_space *space = atomic_load(&b->vm->spaces[tier]);

	if (tier == PE_TIER_FILL || !space || !loader_channel(ld, tier))
		return;
	if (ld->freed_space[tier] != space)
		flush_tier(ld, tier);
	ld->freed_space[tier] = space;
	ld->freed[tier][ld->n_freed[tier]++] = handle;
	/* 64 copies of huge units would be as much memory as a small VM has. */
	if (ld->n_freed[tier] == sizeof(ld->freed[0]) / sizeof(ld->freed[0][0]) ||
	    block_unit_bytes(b) > 4096)
		flush_tier(ld, tier);
}

/*
 * Whether the copy in the backend is worth keeping while the page is resident: it saves a second
 * store if the page is not written to, but in a RAM tier it takes memory all the while, so there
 * only a small part of the VM's RAM may hold such copies.
 */
static bool keep_copy(struct vm *vm, unsigned int tier, bool write)
{
	struct backend *b;
	uint64_t bound;

	/*
	 * What a drain has brought back must not stay behind in what is going away. And what comes
	 * back from a lower tier is wanted again: it starts in the first one when it is evicted.
	 */
	if (write || tier == PE_TIER_FILL || atomic_load(&vm->eng->slots[tier].draining) ||
	    tier != atomic_load(&vm->top_tier))
		return false;
	b = atomic_load(&vm->eng->slots[tier].backend);
	if (!b)
		return false;
	if (!(backend_caps(b) & EBB_BACKEND_IN_RAM))
		return true;
	bound = atomic_load(&vm->limit_bytes) / 32;
	return (uint64_t)atomic_load(&vm->copies) < bound;
}

/* The content is in place: says so in the entry, which is from before, and accounts. */
static void placed(struct loader *ld, struct block *b, uint64_t unit, uint64_t entry, bool write,
		   bool prefetch)
{
	struct vm *vm = b->vm;
	unsigned int tier = page_entry_tier(entry);
	bool was_none = page_entry_state(entry) == PE_NONE, keep, wanted;
	int64_t bytes = (int64_t)block_unit_bytes(b);
	uint64_t to;

	/* An evicted unit was registered apart from its neighbours; also one discarded since. */
	if (b->kind == BLOCK_THP) {
		if (thp_is_split(b, unit))
			thp_unprotect(b, unit);
		collapse_push(vm, b->first_unit + unit);
	}
	keep = !was_none && keep_copy(vm, tier, write);
	to = keep ? page_entry_in(entry & ~(PE_RECENT | PE_PARTIAL), unit_settled(b, unit)) |
			     PE_COPY
		  : page_entry_bare(unit_settled(b, unit)) | (entry & PE_PLAIN);
	if (prefetch)
		to |= PE_PREFETCHED;
	atomic_fetch_add(&vm->resident, bytes);
	if (!was_none) {
		atomic_fetch_sub(&vm->evicted, bytes);
		if (tier == PE_TIER_FILL)
			atomic_fetch_sub(&vm->zero, bytes);
		atomic_fetch_sub(&vm->tier_units[tier], keep ? 0 : bytes);
	}
	if (keep)
		atomic_fetch_add(&vm->copies, bytes);
	wanted = page_table_leave(&b->table, unit, to);
	FAULT_POINT(place_left);
	if (wanted)
		unit_wake(b, unit);
	else if (atomic_load_explicit(&b->n_mappings, memory_order_relaxed) > 1)
		unit_wake_others(b, unit);
	if (!was_none && !keep)
		loader_free_handle(ld, b, tier, page_entry_handle(entry));
}

int loader_place(struct loader *ld, struct block *b, uint64_t unit, uint64_t entry,
		 const void *data, bool write, bool prefetch)
{
	bool partial = entry & PE_PARTIAL;
	uint64_t to;
	int r;

	FAULT_POINT(place_begin);
	r = unit_fill(b, unit, data, &partial);
	FAULT_POINT(place_filled);
	if (r < 0) {
		/* As it was: the handle is still good. */
		to = entry & ~PE_WANTED;
		if (partial && page_entry_state(entry) != PE_NONE)
			to |= PE_PARTIAL;
		if (page_table_leave(&b->table, unit, to))
			unit_wake(b, unit);
		return r;
	}
	placed(ld, b, unit, entry, write, prefetch);
	return 0;
}

void loader_lost(struct loader *ld, struct block *b, uint64_t unit, uint64_t entry)
{
	struct vm *vm = b->vm;
	int64_t bytes = (int64_t)block_unit_bytes(b);
	struct mapping *m = atomic_load(&b->mappings[0]);

	unit_poison(b, unit);
	atomic_fetch_sub(&vm->evicted, bytes);
	atomic_fetch_sub(&vm->tier_units[page_entry_tier(entry)], bytes);
	atomic_fetch_add(&vm->lost, bytes);
	vm_count(vm, COUNTER_pages_lost);
	page_table_leave(&b->table, unit, page_entry_bare(PE_LOST));
	/* Where the kernel can poison, the woken thread gets its memory error; else it waits on. */
	unit_wake(b, unit);
	engine_emit(ld->eng, EVENT_PAGE_LOST, vm->name, ld->eng->slots[page_entry_tier(entry)].name,
		    m ? mapping_addr(m, unit) : 0,
		    "%s offset 0x%llx: the backend could not give it back", b->id,
		    (unsigned long long)(unit << b->unit_shift));
}

/* The content of a unit of ours could not be read: lost, or as it was. */
static void not_read(struct loader *ld, struct block *b, uint64_t unit, uint64_t entry, int r)
{
	if (r == -EIO || r == -EINVAL)
		loader_lost(ld, b, unit, entry);
	else if (page_table_leave(&b->table, unit, entry & ~PE_WANTED))
		unit_wake(b, unit);
}

/* Reads as zero, so it need not be put over a page that has come there meanwhile. */
static bool is_zero(const struct block *b, uint64_t unit, uint64_t entry)
{
	return page_entry_tier(entry) == PE_TIER_FILL && !page_entry_fill(entry) &&
	       page_entry_fill_sound(entry, unit_owner(b, unit));
}

bool loader_is_over(int r)
{
	return r == -EIO || r == -ENOENT || r == -EFAULT || r == -ENXIO || r == -EINVAL;
}

int loader_bring_back(struct loader *ld, struct block *b, uint64_t unit, bool prefetch)
{
	uint64_t e = page_table_get(&b->table, unit);
	int r;

	if (page_entry_state(e) != PE_EVICTED)
		return page_state_owned(page_entry_state(e)) || page_entry_state(e) == PE_PROTECTED
			       ? -EBUSY
			       : 1;
	if (!page_table_cas(&b->table, unit, &e, page_entry_in(e, PE_LOADING)))
		return -EBUSY;
	FAULT_POINT(fetch_owned);
	if (is_zero(b, unit, e))
		return loader_place(ld, b, unit, e, NULL, false, prefetch);
	r = loader_read(ld, b, unit, e, ld->buffers,
			prefetch ? EBB_IO_PREFETCH : EBB_IO_BACKGROUND);
	if (r) {
		not_read(ld, b, unit, e, r);
		return r == -EINVAL ? -EIO : r;
	}
	return loader_place(ld, b, unit, e, ld->buffers, false, prefetch);
}

static bool is_slow(const struct block *b, uint64_t entry)
{
	struct backend_space *space = atomic_load(&b->vm->spaces[page_entry_tier(entry)]);

	return page_entry_tier(entry) != PE_TIER_FILL && space &&
	       !(backend_caps(backend_of(space)) & EBB_BACKEND_SYNC);
}

/* Claims the units of a run that are evicted, up to the first that is not; returns how many. */
static unsigned int claim_run(struct block *b, uint64_t unit, struct coming *c, unsigned int n,
			      bool wait)
{
	for (unsigned int i = 0; i < n; i++) {
		uint64_t e = page_table_get(&b->table, unit + i);

		if (page_entry_state(e) != PE_EVICTED || (!wait && is_slow(b, e)) ||
		    !page_table_cas(&b->table, unit + i, &e, page_entry_in(e, PE_LOADING)))
			return i;
		c[i].entry = e;
	}
	return n;
}

/* Puts the contents of a run's first n units into place: with one call, if nothing is in the way.
 */
static unsigned int place_run(struct loader *ld, struct block *b, uint64_t unit,
			      const struct coming *c, unsigned int n, const char *data,
			      bool trusted)
{
	unsigned int at_once, done;

	FAULT_POINT(place_begin);
	at_once = done = n > 1 ? unit_fill_run(b, unit, data, n) : 0;
	FAULT_POINT(place_filled);
	for (unsigned int i = 0; i < at_once; i++)
		placed(ld, b, unit + i, c[i].entry, false, !trusted);
	for (unsigned int i = at_once; i < n; i++)
		done += !loader_place(
			ld, b, unit + i, c[i].entry,
			is_zero(b, unit + i, c[i].entry) ? NULL : data + (i << b->unit_shift),
			false, !trusted);
	return done;
}

/* Places those of the units [from, to) of a run that were read; returns how many. */
static unsigned int place_read(struct loader *ld, struct block *b, uint64_t unit,
			       const struct coming *c, unsigned int from, unsigned int to,
			       bool trusted)
{
	const char *data = ld->buffers;
	unsigned int brought = 0, len;

	for (unsigned int i = from; i < to; i += len) {
		len = 1;
		if (c[i].result) {
			not_read(ld, b, unit + i, c[i].entry, c[i].result);
			continue;
		}
		while (i + len < to && !c[i + len].result)
			len++;
		brought += place_run(ld, b, unit + i, c + i, len, data + (i << b->unit_shift),
				     trusted);
	}
	return brought;
}

static void unmap(struct block *b, uint64_t unit, uint64_t units)
{
	struct mapping *m = atomic_load(&b->mappings[0]);
	struct iovec v = {.iov_len = units << b->unit_shift};

	if (!m)
		return;
	v.iov_base = (void *)(uintptr_t)mapping_addr(m, unit);
	pageout_zap(m->att->pidfd, &v, 1);
}

unsigned int loader_bring_back_run(struct loader *ld, struct block *b, uint64_t unit, uint64_t most,
				   unsigned int how, unsigned int *brought)
{
	struct coming c[LOADER_RUN];
	bool wait = how & RUN_WAIT, trusted = how & RUN_TRUSTED;
	unsigned int n, from = 0, to;

	*brought = 0;
	if (wait && (!block_is_small(b) || most == 1)) {
		*brought = loader_bring_back(ld, b, unit, true) == 0;
		return 1;
	}
	n = claim_run(b, unit, c, most < LOADER_RUN ? (unsigned int)most : LOADER_RUN, wait);
	if (!n)
		return 1;
	FAULT_POINT(fetch_owned);
	read_units(ld, b, unit, c, n, ld->buffers, EBB_IO_PREFETCH);
	to = n;
	/*
	 * Who follows a fault closely is let into the run only when all of it is unmapped: what it
	 * touched before would look unused for ever.
	 */
	from += (how & RUN_UNMAP_ABOVE) != 0;
	to -= (how & RUN_UNMAP_BELOW) != 0;
	*brought = place_read(ld, b, unit, c, from, to, trusted);
	if (*brought && (from || to < n))
		unmap(b, unit + from, to - from);
	*brought += place_read(ld, b, unit, c, 0, from, true);
	*brought += place_read(ld, b, unit, c, to, n, true);
	return n;
}
