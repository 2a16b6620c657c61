/* SPDX-License-Identifier: BSD-3-Clause */
/* orphan.c: RAM that back ends still map when their VM's process is gone. */
#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "base/log.h"
#include "engine/internal.h"
#include "sys/uffd.h"

/*
 * Theory of operation
 *
 * When the VMM dies, a vhost-user back end still has requests of the guest in its hands, and reads
 * and writes guest RAM for them until it notices and unmaps it. What it finds missing must be what
 * the guest had put there: zeroes could end up on the guest's disk, a memory error would kill a
 * back end that serves other VMs too, and waiting for ever would stop it for all of them. So the VM
 * goes on as an orphan for as long as others map its RAM: nothing of it is evicted any more, their
 * faults are served as before, and with the last of them it ends. It has no name any more, so the
 * operator sees it detached and the VMM can be started again.
 *
 * Content goes in through the primary's mapping only (see unit.c), and that is gone with the
 * process. In its place each block gets a mapping of our own, registered with a userfaultfd of our
 * own, which never is touched (PROT_NONE) and only is the target of UFFDIO_COPY. It is a mapping
 * of the memfd that the VM's primary had given us, so a back end that lies about what it maps is
 * given nothing.
 *
 * The VM's state was in its process's hands and ended with it: when the daemon ends too before the
 * back ends let go, they wait in their accesses until they are ended.
 */

struct own_mapping {
	void *addr;
	uint64_t bytes;
};

void orphan_unmap(struct attachment *stand_in)
{
	for (unsigned int i = 0; stand_in->own && i < VM_REGIONS_MAX; i++)
		if (stand_in->own[i].addr)
			munmap(stand_in->own[i].addr, stand_in->own[i].bytes);
	free(stand_in->own);
	stand_in->own = NULL;
}

static struct attachment *stand_in_new(struct vm *vm)
{
	struct attachment *in = calloc(1, sizeof(*in));

	if (!in)
		return NULL;
	in->vm = vm;
	in->stand_in = true;
	in->pid = getpid();
	in->uid = geteuid();
	in->pidfd = in->pagemap_fd = -1;
	in->serial = atomic_fetch_add(&vm->eng->serial, 1) + 1;
	atomic_store(&in->refs, 1);
	pthread_mutex_init(&in->client_lock, NULL);
	in->own = calloc(VM_REGIONS_MAX, sizeof(*in->own));
	in->uffd = uffd_new();
	vm_ref(vm);
	return in;
}

/* One block's mapping, into in->own[i] and *out. */
static int map_block(struct attachment *in, struct block *b, unsigned int i, struct mapping **out)
{
	struct mapping *m = calloc(1, sizeof(*m));
	int r;
	/* Without the reservation that hugetlbfs would make for every hole. */
	void *p = m ? mmap(NULL, b->bytes, PROT_NONE, MAP_SHARED | MAP_NORESERVE, b->memfd,
			   (off_t)b->memfd_offset)
		    : MAP_FAILED;

	if (p == MAP_FAILED) {
		free(m);
		return m ? -errno : -ENOMEM;
	}
	in->own[i] = (struct own_mapping){p, b->bytes};
	madvise(p, b->bytes, MADV_DONTDUMP);
	r = uffd_register(in->uffd, (uint64_t)(uintptr_t)p, b->bytes, UFFDIO_REGISTER_MODE_MISSING);
	if (r) {
		free(m);
		return r;
	}
	*m = (struct mapping){
		.att = in, .block = b, .host_addr = (uint64_t)(uintptr_t)p, .units = b->units};
	*out = m;
	return 0;
}

/*
 * The primary out, its stand-in in; gives the mappings that nobody finds any more. Under vm.lock.
 */
static unsigned int swap(struct attachment *in, struct attachment *primary, struct block **blocks,
			 struct mapping **made, struct mapping **gone)
{
	struct vm *vm = in->vm;
	unsigned int n = 0;

	for (unsigned int i = 0; i < VM_REGIONS_MAX; i++) {
		struct block *b = blocks[i];

		if (!b)
			continue;
		if (atomic_load(&vm->blocks[i]) != b) {
			free(made[i]); /* unplugged meanwhile */
			continue;
		}
		atomic_store(&in->mappings[i], made[i]);
		atomic_store(&b->mappings[0], made[i]);
		for (unsigned int k = 1; k < BLOCK_MAPPINGS_MAX; k++) {
			struct mapping *m = atomic_load(&b->mappings[k]);

			if (m && m->att == primary)
				atomic_store(&b->mappings[k], NULL);
		}
	}
	atomic_store(&in->n_mappings, VM_REGIONS_MAX);
	for (unsigned int i = 0; i < VM_REGIONS_MAX; i++) {
		gone[n] = atomic_exchange(&primary->mappings[i], NULL);
		n += gone[n] != NULL;
	}
	for (unsigned int i = 0; i < VM_ATTACH_MAX; i++) {
		struct attachment *same = primary;

		atomic_compare_exchange_strong(&vm->attachments[i], &same, in);
	}
	atomic_store(&vm->orphaned, true);
	return n;
}

static void wake_others(struct vm *vm)
{
	pthread_rwlock_rdlock(&vm->structure);
	for (unsigned int i = 0; i < VM_ATTACH_MAX; i++) {
		struct attachment *att = atomic_load(&vm->attachments[i]);

		if (att && !att->stand_in)
			attachment_wake(att);
	}
	pthread_rwlock_unlock(&vm->structure);
}

int orphan_adopt(struct vm *vm, struct attachment *primary)
{
	struct engine *eng = vm->eng;
	struct attachment *in = stand_in_new(vm);
	struct block *blocks[VM_REGIONS_MAX] = {NULL};
	struct mapping *made[VM_REGIONS_MAX] = {NULL}, *gone[VM_REGIONS_MAX + 1];
	unsigned int n;
	int r = !in || !in->own ? -ENOMEM : in->uffd < 0 ? in->uffd : 0;

	if (!r)
		r = uffd_api(in->uffd, attachment_features(eng), NULL);
	pthread_rwlock_rdlock(&vm->structure);
	for (unsigned int i = 0; i < VM_REGIONS_MAX && !r; i++) {
		blocks[i] = atomic_load(&vm->blocks[i]);
		if (blocks[i])
			r = map_block(in, blocks[i], i, &made[i]);
	}
	if (r) {
		pthread_rwlock_unlock(&vm->structure);
		for (unsigned int i = 0; i < VM_REGIONS_MAX; i++)
			free(made[i]);
		attachment_unref(in);
		return r;
	}
	vm_suspend(vm, SUSPEND_ORPHANED, true);
	atomic_store(&vm->limit_bytes, 0);
	pthread_mutex_lock(&vm->lock);
	n = swap(in, primary, blocks, made, gone);
	pthread_mutex_unlock(&vm->lock);
	pthread_rwlock_unlock(&vm->structure);
	fault_unwatch(eng, primary);
	keeper_unwatch_exit(eng->keeper, primary);
	attachment_free_mappings(vm, gone, n);
	/* A fault that was to be filled through the primary's mapping met -ESRCH and waits. */
	wake_others(vm);
	log_info("VM %s: its process is gone, others still map its RAM", vm->name);
	engine_emit(eng, EVENT_VM_DETACHED, vm->name, "", 0, "%s", "others still map its RAM");
	/* Whoever looked it up under the engine's lock has its own reference now. */
	pthread_mutex_lock(&eng->lock);
	pthread_mutex_unlock(&eng->lock);
	attachment_unref(primary);
	return 0;
}

int orphan_inherit(struct vm *vm)
{
	struct attachment *in = stand_in_new(vm);
	int r = !in || !in->own ? -ENOMEM : in->uffd < 0 ? in->uffd : 0;

	if (!r)
		r = uffd_api(in->uffd, attachment_features(vm->eng), NULL);
	for (unsigned int i = 0; i < VM_REGIONS_MAX && !r; i++) {
		struct block *b = atomic_load(&vm->blocks[i]);
		struct mapping *m;

		if (!b)
			continue;
		r = map_block(in, b, i, &m);
		if (r)
			break;
		atomic_store(&in->mappings[i], m);
		atomic_store(&b->mappings[0], m);
	}
	atomic_store(&in->n_mappings, VM_REGIONS_MAX);
	for (unsigned int i = 0; i < VM_ATTACH_MAX && !r; i++) {
		struct attachment *none = NULL;

		if (atomic_compare_exchange_strong(&vm->attachments[i], &none, in))
			return 0;
	}
	return r ? r : -ENOSPC; /* the process ends, and with it what was made */
}
