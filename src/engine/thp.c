/* SPDX-License-Identifier: BSD-3-Clause */
/* thp.c: guest RAM on transparent huge pages, taken and given back 2 MiB at a time. */
#include "engine/thp.h"

#include <errno.h>
#include <sys/mman.h>
#include <sys/syscall.h>

#include "base/fault_point.h"
#include "sys/pagemap.h"
#include "sys/procinfo.h"
#include "sys/uffd.h"

#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif

/*
 * Theory of operation
 *
 * Write protection splits a huge page's mapping and a range that is registered for it cannot be
 * collapsed, so blocks of this kind are protected in another way. Resident units are registered
 * MISSING only and mapped by one PMD. To protect one, its 2 MiB are registered MISSING | MINOR and
 * its mapping is dropped from outside (a zap): from then on any access, also a read, is a minor
 * fault, and comes to us. To lift it, the range is unregistered and registered MISSING again (a
 * kernel skips a registration with fewer modes than before), which also wakes; the next access maps
 * the huge page natively. Unregistering is safe because the unit has no hole then.
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
 * Units of both kinds side by side are separate VMAs of the VMM, two per evicted run;
 * thp_may_split() bounds them well below vm.max_map_count. A page that two processes map cannot be
 * zapped, so with a secondary mapping nothing of such a block is evicted.
 */

#define MISSING UFFDIO_REGISTER_MODE_MISSING
#define MINOR	UFFDIO_REGISTER_MODE_MINOR

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

bool thp_may_split(struct block *b)
{
	uint64_t most;

	if (!atomic_load(&b->max_splits)) {
		if (procinfo_max_map_count(&most))
			most = 65530;
		/* A quarter of what a process may have, for all blocks of a VM alike. */
		atomic_store(&b->max_splits, most / 8);
	}
	return atomic_load(&b->splits) < atomic_load(&b->max_splits);
}

bool thp_is_split(const struct block *b, uint64_t unit)
{
	return atomic_load(&b->split[unit / 64]) >> (unit % 64) & 1;
}

/* After its registration, while clear_split() comes before the unregistering: see above. */
static void set_split(struct block *b, uint64_t unit)
{
	uint64_t bit = UINT64_C(1) << (unit % 64);

	if (!(atomic_fetch_or(&b->split[unit / 64], bit) & bit))
		atomic_fetch_add(&b->splits, 1);
}

static bool clear_split(struct block *b, uint64_t unit)
{
	uint64_t bit = UINT64_C(1) << (unit % 64);

	if (!(atomic_fetch_and(&b->split[unit / 64], ~bit) & bit))
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

	if (!m || mapped_twice(b) || !thp_may_split(b))
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
