/* SPDX-License-Identifier: BSD-3-Clause */
/* thp.c: guest RAM on transparent huge pages: how it is split, and made whole again. */
#include "engine/thp.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>

#include "base/fault_point.h"
#include "sys/memfd.h"
#include "sys/pagemap.h"
#include "sys/procinfo.h"
#include "sys/uffd.h"

#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif

/*
 * Theory of operation
 *
 * Write protection splits a huge page's mapping, and a range that is registered for it cannot be
 * collapsed. So memory that may be huge is registered MISSING only, and mapped by one PMD.
 *
 * Blocks of kind MIXED. Units are pages of 4 KiB; an extent, 2 MiB of them, is whole or split:
 *
 *   whole   registered MISSING. All units are RESIDENT, or NONE, or PINNED, or just being touched
 *           (LOADING) or discarded (CLEARING); nothing of it is evicted or protected
 *   split   registered MISSING | WP | MINOR, so that its units are treated like those of small
 * pages
 *
 * The first unit that is to be protected splits its extent; evict.c then takes all of the extent,
 * as its accesses were seen by the extent. What comes back comes in small pages, those that are
 * asked for: of an extent that was used here and there (hot bloat), the rest stays away, and from
 * then on its pages are evicted one by one. An extent that has come back as a whole, and is used as
 * a whole, is made one huge page again: thp_look() finds it, thp_merge() owns all of its units,
 * unregisters the range (which is safe because it has no hole, see thp_unprotect()), registers it
 * MISSING and collapses it. Each time that an extent is split again it has to prove itself longer.
 *
 * The bit of an extent changes under split_lock together with its registration. It goes from whole
 * to split only while somebody has claimed a unit of it (PROTECTED), and back only while somebody
 * owns all of them (UNPROTECTING), so the two exclude each other; faults need not know it. A dead
 * daemon leaves no bits: its successor registers all as split, which is always allowed.
 *
 * A punch of a part of a huge page splits that, unless a part of it is pinned: then the punched
 * part stays in the cache, zeroed. Because of MINOR its next access comes to us, and the content is
 * written over (unit_fill()).
 *
 * Blocks of kind THP. Those have units of 2 MiB, which are never split: less to keep, and for a VM
 * that uses its memory by huge pages, fewer faults. To protect one, its 2 MiB are registered
 * MISSING | MINOR and its mapping is dropped from outside (a zap): from then on any access, also a
 * read, is a minor fault, and comes to us. To lift it, the range is unregistered and registered
 * MISSING again (a kernel skips a registration with fewer modes than before), which also wakes; the
 * next access maps the huge page natively. Unregistering is safe because the unit has no hole then.
 *
 * A bit for each unit says that it is registered MINOR, for whoever meets such a one where it
 * should not be: a fault may cancel an eviction before its evictor comes to protecting, which then
 * happens to a resident unit; and a unit that was discarded while it was evicted stays registered
 * so. The bit is set after the registration and cleared before it is undone, so whenever the two
 * cross, it is set at least where MINOR is.
 *
 * A unit comes back by 4 KiB copies in one ioctl, which charge the VMM's memory cgroup, and is made
 * one huge page again later, off the fault path (thp_collapse), owned meanwhile: collapsing
 * installs a mapping, which must never happen under an eviction.
 *
 * Of both kinds: extents of both sorts side by side are separate VMAs of the VMM, two per run;
 * may_split() bounds them well below vm.max_map_count. A page that two processes map cannot be
 * zapped, so with a secondary mapping nothing of such a block is evicted.
 */

#define MISSING UFFDIO_REGISTER_MODE_MISSING
#define MINOR	UFFDIO_REGISTER_MODE_MINOR
#define SPLIT	(MISSING | MINOR | UFFDIO_REGISTER_MODE_WP)

/* Of split extents, for each VM and look. */
#define LOOKS	   128u
#define MERGES_MAX 2u /* some milliseconds of a CPU each */
/* How many looks in a row, as a power of two; at first, and at most. */
#define PROOF_MIN 1u
#define PROOF_MAX 4u
#define HOT_UNITS (EXTENT_UNITS / 4 * 3)
/* A byte an extent: the looks in a row below, the proof that is asked for above. */
#define WHOLE_LOOKS 0x1fu
#define WHOLE_PROOF 0xe0u
#define PROOF_SHIFT 5

bool thp_suits(struct engine *eng, const struct attach_region *reg, pid_t pid)
{
	struct procinfo_range range;

	probes_wait(eng);
	if (!eng->features.zap_scan || !eng->features.minor_shmem || !eng->features.collapse_safe)
		return false;
	if (reg->host_addr % UNIT_MAX_BYTES || reg->memfd_offset % UNIT_MAX_BYTES ||
	    reg->size % UNIT_MAX_BYTES)
		return false;
	return procinfo_range(pid, reg->host_addr, reg->host_addr + reg->size, &range) == 0 &&
	       range.thp_eligible && !range.thp_refused;
}

int thp_block_init(struct block *b)
{
	pthread_mutex_init(&b->split_lock, NULL);
	if (b->kind != BLOCK_THP && b->kind != BLOCK_MIXED)
		return 0;
	b->split = calloc((block_extents(b) + 63) / 64, sizeof(*b->split));
	if (b->kind == BLOCK_MIXED)
		b->whole = calloc(block_extents(b), sizeof(*b->whole));
	return b->split && (b->whole || b->kind == BLOCK_THP) ? 0 : -ENOMEM;
}

/* True while the VMM may get more mappings by our registering parts of its RAM differently. */
static bool may_split(struct block *b)
{
	uint64_t most, runs = atomic_load(&b->splits);

	if (!atomic_load(&b->max_splits)) {
		if (procinfo_max_map_count(&most))
			most = 65530;
		/* A quarter of what a process may have, for all blocks of a VM alike. */
		atomic_store(&b->max_splits, most / 8);
	}
	/* Where nearly all are split, it is the others that stand apart. */
	if (b->kind == BLOCK_MIXED && runs > block_extents(b) / 2)
		runs = block_extents(b) - runs;
	return runs < atomic_load(&b->max_splits);
}

static bool is_split(const struct block *b, uint64_t extent)
{
	return atomic_load(&b->split[extent / 64]) >> (extent % 64) & 1;
}

bool thp_is_split(const struct block *b, uint64_t unit)
{
	return is_split(b, block_extent_of(b, unit));
}

/* After its registration, while clear_split() comes before the unregistering: see above. */
static bool set_split(struct block *b, uint64_t extent)
{
	uint64_t bit = UINT64_C(1) << (extent % 64);

	if (atomic_fetch_or(&b->split[extent / 64], bit) & bit)
		return false;
	atomic_fetch_add(&b->splits, 1);
	return true;
}

static bool clear_split(struct block *b, uint64_t extent)
{
	uint64_t bit = UINT64_C(1) << (extent % 64);

	if (!(atomic_fetch_and(&b->split[extent / 64], ~bit) & bit))
		return false;
	atomic_fetch_sub(&b->splits, 1);
	return true;
}

/* A slot behind the primary's is in use. */
static bool mapped_twice(struct block *b)
{
	for (unsigned int i = 1; i < atomic_load(&b->n_mappings); i++)
		if (atomic_load(&b->mappings[i]))
			return true;
	return false;
}

int thp_protect(struct block *b, uint64_t unit)
{
	struct mapping *m = atomic_load(&b->mappings[0]);
	uint64_t addr, bit = 0;
	struct iovec v;
	int r;

	if (!m || mapped_twice(b) || !may_split(b))
		return -EBUSY;
	addr = mapping_addr(m, unit);
	r = uffd_register(m->att->uffd, addr, UNIT_MAX_BYTES, MISSING | MINOR);
	if (r)
		return r;
	set_split(b, unit);
	FAULT_POINT(thp_registered);
	v = (struct iovec){(void *)(uintptr_t)addr, UNIT_MAX_BYTES};
	r = pageout_zap(m->att->pidfd, &v, 1);
	if (!r)
		r = pagemap_present(m->att->pagemap_fd, addr, addr + UNIT_MAX_BYTES, UNIT_MAX_BYTES,
				    &bit);
	/* Still mapped (a page new to the LRU, locked, ...): it could be written to unseen. */
	return r ? r : bit & 1 ? -EBUSY : 0;
}

void thp_unprotect(struct block *b, uint64_t unit)
{
	struct mapping *m = atomic_load(&b->mappings[0]);
	uint64_t addr;

	if (!m)
		return;
	addr = mapping_addr(m, unit);
	/*
	 * Between the two nothing is registered. The unit is whole, so an access meanwhile finds
	 * its page; if the VMM punches it just then, it reads zero, as it must.
	 */
	if (clear_split(b, unit)) {
		uffd_unregister(m->att->uffd, addr, UNIT_MAX_BYTES);
		FAULT_POINT(thp_open);
		uffd_register(m->att->uffd, addr, UNIT_MAX_BYTES, MISSING);
	}
	uffd_wake(m->att->uffd, addr, UNIT_MAX_BYTES);
}

void thp_settle(struct block *b)
{
	struct mapping *m = atomic_load(&b->mappings[0]);

	for (uint64_t u = 0, n; m && u < b->units; u += n + 1) {
		for (n = 0; u + n < b->units; n++) {
			enum page_state s = page_entry_state(page_table_get(&b->table, u + n));

			if (s == PE_EVICTED || s == PE_LOST)
				break;
		}
		if (n) {
			uffd_unregister(m->att->uffd, mapping_addr(m, u), n * UNIT_MAX_BYTES);
			uffd_register(m->att->uffd, mapping_addr(m, u), n * UNIT_MAX_BYTES,
				      MISSING);
		}
		if (u + n < b->units)
			set_split(b, u + n);
	}
}

void thp_collapse(struct block *b, uint64_t unit)
{
	struct mapping *m = atomic_load(&b->mappings[0]);
	uint64_t e = page_table_get(&b->table, unit);
	struct iovec v;

	if (!m || page_entry_state(e) != PE_RESIDENT ||
	    !page_table_cas(&b->table, unit, &e, page_entry_in(e, PE_UNPROTECTING)))
		return;
	FAULT_POINT(thp_collapsing);
	v = (struct iovec){(void *)(uintptr_t)mapping_addr(m, unit), UNIT_MAX_BYTES};
	if (syscall(SYS_process_madvise, m->att->pidfd, &v, 1, MADV_COLLAPSE, 0) < 0)
		vm_count(b->vm, COUNTER_collapses_failed);
	else
		vm_count(b->vm, COUNTER_collapses);
	if (page_table_leave(&b->table, unit, page_entry_in(e, unit_settled(b, unit))))
		unit_wake(b, unit);
}

/* ---- blocks of kind MIXED ---- */

static uint64_t extent_addr(const struct mapping *m, uint64_t extent)
{
	return mapping_addr(m, extent * EXTENT_UNITS);
}

/* Its proof of being used as a whole begins anew, and is to be a longer one. */
static void note_split(struct block *b, uint64_t extent)
{
	unsigned int proof = atomic_load(&b->whole[extent]) >> PROOF_SHIFT;

	proof = proof < PROOF_MIN ? PROOF_MIN : proof < PROOF_MAX ? proof + 1 : PROOF_MAX;
	atomic_store(&b->whole[extent], (uint8_t)(proof << PROOF_SHIFT));
	vm_count(b->vm, COUNTER_huge_splits);
}

void thp_set_all_split(struct block *b)
{
	for (uint64_t x = 0; x < block_extents(b); x++)
		if (set_split(b, x))
			atomic_store(&b->whole[x], PROOF_MIN << PROOF_SHIFT);
}

/* Under split_lock. Where there would be too many VMAs, the whole block, which is one then. */
static int split_extent(struct block *b, struct mapping *m, uint64_t extent)
{
	bool all = !may_split(b);
	int r;

	if (is_split(b, extent))
		return 0;
	r = all ? uffd_register(m->att->uffd, m->host_addr, b->bytes, SPLIT)
		: uffd_register(m->att->uffd, extent_addr(m, extent), EXTENT_BYTES, SPLIT);
	if (r)
		return r;
	if (all)
		thp_set_all_split(b);
	else if (set_split(b, extent))
		note_split(b, extent);
	FAULT_POINT(thp_registered);
	return 0;
}

int thp_split_run(struct block *b, uint64_t unit, uint64_t n)
{
	uint64_t last = block_extent_of(b, unit + n - 1);
	struct mapping *m = atomic_load(&b->mappings[0]);
	int r = 0;

	if (!m || mapped_twice(b))
		return -EBUSY;
	pthread_mutex_lock(&b->split_lock);
	for (uint64_t x = block_extent_of(b, unit); x <= last && !r; x++)
		r = split_extent(b, m, x);
	pthread_mutex_unlock(&b->split_lock);
	return r;
}

/* All of it in the page cache? */
static bool has_no_hole(struct block *b, uint64_t extent)
{
	uint64_t at = b->memfd_offset + extent * EXTENT_BYTES, start, stop;

	return memfd_next_data(b->memfd, at, at + EXTENT_BYTES, &start, &stop) && start == at &&
	       stop >= at + EXTENT_BYTES;
}

/* Owns the units of an extent from `unit` on, as far as they are RESIDENT and free; how many. */
static unsigned int own_all(struct block *b, uint64_t unit, uint64_t *entry)
{
	for (unsigned int i = 0; i < EXTENT_UNITS; i++) {
		entry[i] = page_table_get(&b->table, unit + i);
		if (page_entry_state(entry[i]) != PE_RESIDENT ||
		    !page_table_cas(&b->table, unit + i, &entry[i],
				    page_entry_in(entry[i], PE_UNPROTECTING)))
			return i;
	}
	return EXTENT_UNITS;
}

/* The caller owns all of it. Registered MISSING only: no unit is protected after this. */
static bool make_whole(struct block *b, struct mapping *m, uint64_t extent)
{
	uint64_t addr = extent_addr(m, extent);
	bool can;

	pthread_mutex_lock(&b->split_lock);
	can = !is_split(b, extent) || (may_split(b) && !mapped_twice(b));
	if (can && clear_split(b, extent)) {
		/* As in thp_unprotect(): whoever accesses it now finds its page. */
		uffd_unregister(m->att->uffd, addr, EXTENT_BYTES);
		FAULT_POINT(thp_open);
		uffd_register(m->att->uffd, addr, EXTENT_BYTES, MISSING);
	}
	pthread_mutex_unlock(&b->split_lock);
	return can;
}

void thp_merge(struct block *b, uint64_t unit)
{
	struct mapping *m = atomic_load(&b->mappings[0]);
	uint64_t entry[EXTENT_UNITS], extent = block_extent_of(b, unit);
	unsigned int owned;
	bool was_split;
	struct iovec v;

	if (!m || m->att->stand_in)
		return;
	was_split = is_split(b, extent);
	unit = extent * EXTENT_UNITS;
	owned = own_all(b, unit, entry);
	if (owned == EXTENT_UNITS && has_no_hole(b, extent) && make_whole(b, m, extent)) {
		FAULT_POINT(thp_collapsing);
		v = (struct iovec){(void *)(uintptr_t)extent_addr(m, extent), EXTENT_BYTES};
		if (syscall(SYS_process_madvise, m->att->pidfd, &v, 1, MADV_COLLAPSE, 0) >= 0) {
			vm_count(b->vm, COUNTER_collapses);
		} else {
			vm_count(b->vm, COUNTER_collapses_failed);
			/* To be tried again later. */
			if (was_split)
				thp_split_run(b, unit, 1);
		}
	}
	for (unsigned int i = 0; i < owned; i++)
		if (page_table_leave(&b->table, unit + i,
				     page_entry_in(entry[i], unit_settled(b, unit + i))))
			unit_wake(b, unit + i);
}

/* Is it resident as a whole, and was most of it used since its accesses were last forgotten? */
static bool is_hot_and_whole(struct block *b, uint64_t extent)
{
	uint64_t first = extent * EXTENT_UNITS, present[EXTENT_UNITS / 64];
	unsigned int used = 0;

	for (unsigned int i = 0; i < EXTENT_UNITS; i++)
		if (page_entry_state(page_table_get(&b->table, first + i)) != PE_RESIDENT)
			return false;
	if (tracker_present(b, first, EXTENT_UNITS, present))
		return false;
	for (unsigned int i = 0; i < EXTENT_UNITS / 64; i++)
		used += (unsigned int)__builtin_popcountll(present[i]);
	return used >= HOT_UNITS;
}

/* True: it is to be made whole. */
static bool look_at(struct block *b, uint64_t extent)
{
	uint8_t was = atomic_load(&b->whole[extent]);
	unsigned int looks = was & WHOLE_LOOKS, proof = 1u << (was >> PROOF_SHIFT);

	if (!is_hot_and_whole(b, extent))
		looks = 0;
	else if (looks < proof)
		looks++;
	/* If it was split meanwhile, that is what counts. */
	atomic_compare_exchange_strong(&b->whole[extent], &was,
				       (uint8_t)((was & WHOLE_PROOF) | looks));
	return looks >= proof;
}

static void look_at_block(struct block *b, unsigned int *looks, unsigned int *merges)
{
	uint64_t extents = block_extents(b);

	for (uint64_t n = 0; n < extents && *looks && *merges; n++) {
		uint64_t x = b->look_hand++ % extents;

		/* 64 whole ones at once. */
		if (x % 64 == 0 && !atomic_load(&b->split[x / 64])) {
			b->look_hand += 63;
			n += 63;
			continue;
		}
		if (!is_split(b, x))
			continue;
		--*looks;
		if (!look_at(b, x))
			continue;
		--*merges;
		collapse_push(b->vm, b->first_unit + x * EXTENT_UNITS);
	}
}

void thp_look(struct vm *vm)
{
	unsigned int looks = LOOKS, merges = MERGES_MAX;

	for (unsigned int i = 0; i < atomic_load(&vm->n_blocks); i++) {
		struct block *b = atomic_load(&vm->blocks[i]);

		if (b && b->kind == BLOCK_MIXED && !atomic_load(&b->gone) &&
		    atomic_load(&b->splits))
			look_at_block(b, &looks, &merges);
	}
}

void thp_grow(const struct block *b, uint64_t *unit, uint64_t *count)
{
	uint64_t end = *unit + *count;

	if (!*count)
		return;
	if (!thp_is_split(b, *unit))
		*unit -= *unit % EXTENT_UNITS;
	if (!thp_is_split(b, end - 1))
		end += (EXTENT_UNITS - end % EXTENT_UNITS) % EXTENT_UNITS;
	*count = end - *unit;
}
