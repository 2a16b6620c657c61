/* SPDX-License-Identifier: BSD-3-Clause */
/* longops.c: operations on a whole VM that take their time: reclaim, prefetch, detach. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/fault_point.h"
#include "base/log.h"
#include "engine/internal.h"
#include "sys/memfd.h"
#include "sys/procinfo.h"
#include "sys/uffd.h"

#define RETRY_US	    500
#define PROGRESS_MS	    10
#define PASSING_NS	    (3 * NS_PER_S)
#define RESTORE_PATIENCE_NS (30 * NS_PER_S) /* without a single unit brought back */

int restore_block(struct loader *ld, struct block *b, bool discard, struct progress *p)
{
	uint64_t last_ns = clock_ns();

	for (uint64_t u = 0; u < b->units;) {
		uint64_t e = page_table_get(&b->table, u), entry;
		int r;

		if (atomic_load(&p->cancel))
			return -ECANCELED;
		if (atomic_load(&b->vm->dead))
			return -ESRCH;
		if (u % PAGE_TABLE_RUN == 0 && page_table_uniform(&b->table, u, &entry) &&
		    (page_entry_state(entry) == PE_NONE ||
		     page_entry_state(entry) == PE_RESIDENT)) {
			u += PAGE_TABLE_RUN;
			continue;
		}
		if (discard && page_entry_state(e) == PE_EVICTED) {
			if (page_table_cas(&b->table, u, &e, page_entry_in(e, PE_CLEARING))) {
				int64_t bytes = (int64_t)block_unit_bytes(b);

				atomic_fetch_sub(&b->vm->evicted, bytes);
				atomic_fetch_sub(&b->vm->tier_units[page_entry_tier(e)], bytes);
				if (page_entry_tier(e) == PE_TIER_FILL)
					atomic_fetch_sub(&b->vm->zero, bytes);
				loader_free_handle(ld, b, page_entry_tier(e), page_entry_handle(e));
				FAULT_POINT(forget_freed);
				if (page_table_leave(&b->table, u, page_entry_bare(PE_NONE)))
					unit_wake(b, u);
			}
			continue;
		}
		r = loader_bring_back(ld, b, u, false);
		if (r == -ESRCH)
			return r;
		if (r < 0 && !loader_is_over(r)) {
			if (clock_ns() - last_ns > RESTORE_PATIENCE_NS)
				return r == -ENOMEM ? r : -ETIMEDOUT;
			usleep(RETRY_US);
			continue;
		}
		if (r == 0)
			atomic_fetch_add(&p->done, block_unit_bytes(b));
		last_ns = clock_ns();
		u++;
	}
	return 0;
}

int longops_let_go_lost(struct block *b, struct error *e)
{
	bool poison = b->vm->eng->features.uffd_poison;
	uint64_t n = 0, entry;

	for (uint64_t u = 0; atomic_load(&b->vm->lost) && u < b->units; u++) {
		if (u % PAGE_TABLE_RUN == 0 && page_table_uniform(&b->table, u, &entry) &&
		    page_entry_state(entry) != PE_LOST) {
			u += PAGE_TABLE_RUN - 1;
			continue;
		}
		if (page_entry_state(page_table_get(&b->table, u)) != PE_LOST)
			continue;
		n++;
		if (!poison)
			continue;
		/* Somebody unattached may have read the hole, and so filled it. */
		memfd_punch(b->memfd, block_file_offset(b, u), block_unit_bytes(b));
		unit_poison(b, u);
	}
	if (n && !poison)
		return error_set(e, ENOTRECOVERABLE, ERROR_GENERIC,
				 "region %s: %llu bytes of its content are lost, and this kernel "
				 "(before Linux 6.6) cannot mark them: they would read as zeroes",
				 b->id, (unsigned long long)(n << b->unit_shift));
	return 0;
}

static int let_go_lost(struct vm *vm, struct error *e)
{
	int r = 0;

	pthread_rwlock_rdlock(&vm->structure);
	for (unsigned int i = 0; i < atomic_load(&vm->n_blocks) && !r; i++) {
		struct block *b = atomic_load(&vm->blocks[i]);

		if (b && !atomic_load(&b->gone))
			r = longops_let_go_lost(b, e);
	}
	pthread_rwlock_unlock(&vm->structure);
	return r;
}

/* All blocks of the VM whose RAM is still theirs. */
static int restore_vm(struct vm *vm, struct progress *p)
{
	struct loader *ld = malloc(sizeof(*ld));
	int r = ld ? loader_open_brief(vm->eng, ld) : -ENOMEM;

	if (r) {
		free(ld);
		return r;
	}
	pthread_rwlock_rdlock(&vm->structure);
	for (unsigned int i = 0; i < atomic_load(&vm->n_blocks) && !r; i++) {
		struct block *b = atomic_load(&vm->blocks[i]);

		if (b && !atomic_load(&b->gone))
			r = restore_block(ld, b, false, p);
	}
	loader_flush_frees(ld);
	pthread_rwlock_unlock(&vm->structure);
	loader_close(ld);
	free(ld);
	return r;
}

/* Would all that is evicted fit into the host, with something left over? */
static int check_fits(struct vm *vm, struct error *e)
{
	uint64_t small = 0, huge = 0, huge_free = 0;
	struct procinfo_host host;
	struct procinfo_pool pool;

	if (procinfo_host(&host))
		return 0;
	if (procinfo_pool(UNIT_MAX_BYTES, &pool) == 0)
		huge_free = (pool.free_pages - (pool.free_pages < pool.reserved_pages
							? pool.free_pages
							: pool.reserved_pages)) *
			    UNIT_MAX_BYTES;
	pthread_rwlock_rdlock(&vm->structure);
	for (unsigned int i = 0; i < atomic_load(&vm->n_blocks); i++) {
		struct block *b = atomic_load(&vm->blocks[i]);
		uint64_t n = 0;

		if (!b || atomic_load(&b->gone))
			continue;
		for (uint64_t u = 0; u < b->units; u++)
			n += page_entry_state(page_table_get(&b->table, u)) == PE_EVICTED;
		if (b->kind == BLOCK_HUGETLB)
			huge += n << b->unit_shift;
		else
			small += n << b->unit_shift;
	}
	pthread_rwlock_unlock(&vm->structure);
	if (huge > huge_free + huge_reserve_bytes(vm))
		return error_set(e, ENOSPC, ERROR_NO_SPACE,
				 "%llu bytes of huge pages are needed, %llu are free",
				 (unsigned long long)huge, (unsigned long long)huge_free);
	if (small > host.available_bytes)
		return error_set(e, ENOSPC, ERROR_NO_SPACE,
				 "%llu bytes of memory are needed, %llu are available",
				 (unsigned long long)small,
				 (unsigned long long)host.available_bytes);
	return 0;
}

static int detach(struct vm *vm, struct progress *p, struct error *e)
{
	int r = check_fits(vm, e);

	if (r)
		return r;
	if (atomic_exchange(&vm->restoring, true))
		return error_set(e, EBUSY, ERROR_BUSY, "VM %s is being detached already", vm->name);
	atomic_store(&p->total, (uint64_t)atomic_load(&vm->evicted));
	/* No eviction begins after the flag; after the barrier none is under way. */
	engine_barrier(vm->eng);
	reclaim_unpark(vm);
	r = restore_vm(vm, p);
	if (r == -ESRCH) {
		/* Its process is gone. What is missing stays so: others may still map it. */
		vm_primary_gone(vm);
		return error_set(e, ESRCH, ERROR_NOT_FOUND, "VM %s has ended", vm->name);
	}
	if (r) {
		atomic_store(&vm->restoring, false);
		engine_kick(vm);
		return error_set(e, -r, r == -ECANCELED ? ERROR_CANCELLED : ERROR_NO_SPACE,
				 "VM %s: its memory cannot be brought back: %s", vm->name,
				 error_text(r));
	}
	r = let_go_lost(vm, e);
	if (r) {
		atomic_store(&vm->restoring, false);
		engine_kick(vm);
		return r;
	}
	/* Every page is in place: unregistering lets all waiters go on. */
	pthread_rwlock_rdlock(&vm->structure);
	/* Whoever joined before the flag was set is in the list now. */
	pthread_mutex_lock(&vm->lock);
	pthread_mutex_unlock(&vm->lock);
	for (unsigned int i = 0; i < VM_ATTACH_MAX; i++) {
		struct attachment *att = atomic_load(&vm->attachments[i]);

		for (unsigned int k = 0; att && k < atomic_load(&att->n_mappings); k++) {
			struct mapping *m = atomic_load(&att->mappings[k]);

			if (m)
				uffd_unregister(att->uffd, m->host_addr,
						m->units << m->block->unit_shift);
		}
	}
	pthread_rwlock_unlock(&vm->structure);
	vm_remove(vm);
	return 0;
}

int engine_detach(struct attachment *a, struct progress *p, struct error *e)
{
	ENGINE_INSIDE(a->vm->eng);
	struct vm *vm = a->vm;
	int r;

	if (atomic_load(&a->dead) || atomic_load(&vm->dead))
		return error_set(e, ESRCH, ERROR_NOT_FOUND, "the VM was detached");
	if (a->secondary) {
		/* It maps nothing any more: there is nothing that it could read. */
		if (!attachment_maps(a)) {
			attachment_leave(a);
			return 0;
		}
		/* Its own registration goes; what is missing it would read as zeroes, so first
		 * everything comes back, and stays until this process is gone or attached anew. */
		atomic_fetch_add(&vm->joining, 1);
		vm_suspend(vm, SUSPEND_SHARED, true);
		engine_barrier(vm->eng);
		r = restore_vm(vm, p);
		if (r)
			error_set(e, -r, ERROR_NO_SPACE, "cannot bring the RAM back: %s",
				  error_text(r));
		else
			r = let_go_lost(vm, e);
		if (!r)
			attachment_leave(a);
		atomic_fetch_sub(&vm->joining, 1);
		vm_check_peers(vm);
		keeper_check_foreign(vm);
		return r;
	}
	vm_ref(vm);
	r = detach(vm, p, e);
	vm_put(vm);
	return r;
}

int engine_share(struct attachment *a, const char *id, pid_t peer, struct progress *p,
		 struct error *e)
{
	ENGINE_INSIDE(a->vm->eng);
	struct vm *vm = a->vm;
	bool known = false, attached = false;
	int r;

	pthread_rwlock_rdlock(&vm->structure);
	for (unsigned int i = 0; i < atomic_load(&vm->n_blocks); i++) {
		struct block *b = atomic_load(&vm->blocks[i]);

		known |= b && !atomic_load(&b->gone) && strcmp(b->id, id) == 0;
	}
	pthread_rwlock_unlock(&vm->structure);
	if (!known)
		return error_set(e, ENOENT, ERROR_NOT_FOUND, "no region %s", id);
	for (unsigned int i = 0; peer && i < VM_ATTACH_MAX; i++) {
		struct attachment *att = atomic_load(&vm->attachments[i]);

		attached |= att && att->pid == peer && !atomic_load(&att->dead);
	}
	if (attached)
		return 0;
	if (vm_expect_peer(vm, peer))
		log_warning("VM %s: too many processes were given its RAM", vm->name);
	/* No eviction begins after the flag; after the barrier none is under way. */
	engine_barrier(vm->eng);
	r = restore_vm(vm, p);
	if (r)
		return error_set(e, -r, ERROR_NO_SPACE, "cannot bring the RAM back: %s",
				 error_text(r));
	return 0;
}

int engine_vm_detach(struct engine *eng, const char *name, struct progress *p, struct error *e)
{
	ENGINE_INSIDE(eng);
	struct vm *vm = engine_vm_get(eng, name);
	int r;

	if (!vm)
		return error_set(e, ENOENT, ERROR_NOT_FOUND, "no VM %s", name);
	r = detach(vm, p, e);
	vm_put(vm);
	return r;
}

int engine_vm_reclaim(struct engine *eng, const char *name, uint64_t bytes, struct progress *p,
		      uint64_t *reclaimed, struct error *e)
{
	ENGINE_INSIDE(eng);
	struct vm *vm = engine_vm_get(eng, name);
	uint64_t start, done = 0;
	char why[160];
	int r = 0;

	*reclaimed = 0;
	if (!vm)
		return error_set(e, ENOENT, ERROR_NOT_FOUND, "no VM %s", name);
	/* What a VM that has just attached waits for is there in a moment. */
	start = clock_ns();
	while ((atomic_load(&vm->suspended) & SUSPEND_PASSING) && !atomic_load(&p->cancel) &&
	       !atomic_load(&vm->dead) && clock_ns() - start < PASSING_NS) {
		keeper_hurry(eng->keeper);
		usleep(PROGRESS_MS * 1000);
	}
	if (atomic_load(&vm->suspended)) {
		vm_suspended_text(atomic_load(&vm->suspended), why, sizeof(why));
		vm_put(vm);
		return error_set(e, EBUSY, ERROR_BUSY, "eviction is suspended: %s", why);
	}
	if (bytes > (uint64_t)atomic_load(&vm->resident))
		bytes = (uint64_t)atomic_load(&vm->resident);
	atomic_store(&p->total, bytes);
	start = atomic_load(&vm->evicted_ever);
	atomic_store(&vm->reclaim_idle, 0);
	atomic_store(&vm->reclaim_dry, 0);
	atomic_fetch_add(&vm->reclaim_left, (int64_t)bytes);
	while (bytes) {
		engine_kick(vm);
		usleep(PROGRESS_MS * 1000);
		done = atomic_load(&vm->evicted_ever) - start;
		atomic_store(&p->done, done < bytes ? done : bytes);
		if (atomic_load(&vm->reclaim_left) <= 0 || atomic_load(&vm->dead) ||
		    atomic_load(&vm->restoring) || atomic_load(&vm->suspended) ||
		    atomic_load(&vm->reclaim_idle) >= 8)
			break;
		if (atomic_load(&p->cancel)) {
			r = error_set(e, ECANCELED, ERROR_CANCELLED, "cancelled");
			break;
		}
	}
	done = atomic_load(&vm->evicted_ever) - start;
	atomic_store(&vm->reclaim_left, 0);
	*reclaimed = done;
	vm_put(vm);
	return r;
}

/* Brings back as much of a block as fits under the VM's target. */
static int prefetch_block(struct loader *ld, struct block *b, struct progress *p, uint64_t *fetched)
{
	struct vm *vm = b->vm;

	for (uint64_t u = 0; u < b->units; u++) {
		if (atomic_load(&p->cancel))
			return -ECANCELED;
		if (atomic_load(&vm->dead))
			return -ESRCH;
		if ((uint64_t)atomic_load(&vm->resident) + block_unit_bytes(b) > reclaim_target(vm))
			return -ENOSPC;
		if (page_entry_state(page_table_get(&b->table, u)) != PE_EVICTED ||
		    loader_bring_back(ld, b, u, false))
			continue;
		*fetched += block_unit_bytes(b);
		atomic_fetch_add(&p->done, block_unit_bytes(b));
	}
	return 0;
}

int engine_vm_prefetch(struct engine *eng, const char *name, struct progress *p, uint64_t *fetched,
		       struct error *e)
{
	ENGINE_INSIDE(eng);
	struct vm *vm = engine_vm_get(eng, name);
	struct loader *ld;
	int r = 0;

	*fetched = 0;
	if (!vm)
		return error_set(e, ENOENT, ERROR_NOT_FOUND, "no VM %s", name);
	ld = malloc(sizeof(*ld));
	if (!ld || loader_open_brief(eng, ld)) {
		free(ld);
		vm_put(vm);
		return error_set(e, ENOMEM, ERROR_GENERIC, "out of memory");
	}
	atomic_store(&p->total, (uint64_t)atomic_load(&vm->evicted));
	pthread_rwlock_rdlock(&vm->structure);
	for (unsigned int i = 0; i < atomic_load(&vm->n_blocks) && !r; i++) {
		struct block *b = atomic_load(&vm->blocks[i]);

		if (b && !atomic_load(&b->gone))
			r = prefetch_block(ld, b, p, fetched);
	}
	loader_flush_frees(ld);
	pthread_rwlock_unlock(&vm->structure);
	loader_close(ld);
	free(ld);
	vm_put(vm);
	if (r == -ECANCELED)
		return error_set(e, ECANCELED, ERROR_CANCELLED, "cancelled");
	/* A limit that is reached is no error: it is as far as it may go. */
	return 0;
}
