/* SPDX-License-Identifier: BSD-3-Clause */
/* vm.c: VMs: making and freeing them, looking things up in them. */
#include "engine/vm.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/fault_point.h"
#include "engine/internal.h"
#include "engine/shelf.h"
#include "sys/memfd.h"

/* Refaults are those within so many evictions; 1/32 of the units, within these bounds. */
#define RECENT_MIN 256u
#define RECENT_MAX 65536u

struct block *vm_block_of(struct vm *vm, uint64_t vm_unit, uint64_t *unit)
{
	for (unsigned int i = 0; i < atomic_load_explicit(&vm->n_blocks, memory_order_acquire);
	     i++) {
		struct block *b = atomic_load_explicit(&vm->blocks[i], memory_order_acquire);

		if (b && vm_unit - b->first_unit < b->units) {
			*unit = vm_unit - b->first_unit;
			return b;
		}
	}
	return NULL;
}

struct mapping *attachment_find(struct attachment *att, uint64_t addr, uint64_t *unit)
{
	unsigned int n = atomic_load_explicit(&att->n_mappings, memory_order_acquire);

	for (unsigned int i = 0; i < n; i++) {
		struct mapping *m = atomic_load_explicit(&att->mappings[i], memory_order_acquire);
		uint64_t off;

		if (!m)
			continue;
		off = addr - m->host_addr;
		if (off < m->units << m->block->unit_shift) {
			*unit = m->first_unit + (off >> m->block->unit_shift);
			return m;
		}
	}
	return NULL;
}

struct vm *vm_new(struct engine *eng, const char *name, const char *uuid, uid_t uid)
{
	struct vm *vm = calloc(1, sizeof(*vm));

	if (!vm)
		return NULL;
	vm->eng = eng;
	vm->uid = uid;
	snprintf(vm->name, sizeof(vm->name), "%s", name);
	snprintf(vm->uuid, sizeof(vm->uuid), "%s", uuid);
	snprintf(vm->granularity, sizeof(vm->granularity), "auto");
	vm->reclaim.saved_fd = vm->prefetch.saved_fd = -1;
	atomic_store(&vm->refs, 1);
	atomic_store(&vm->weight, 100);
	vm->recent.size = RECENT_MIN;
	vm->recent.units = calloc(RECENT_MAX, sizeof(uint64_t));
	if (!vm->recent.units) {
		free(vm);
		return NULL;
	}
	pthread_mutex_init(&vm->lock, NULL);
	pthread_rwlock_init(&vm->structure, NULL);
	pthread_mutex_init(&vm->move_lock, NULL);
	pthread_mutex_init(&vm->policy_lock, NULL);
	pthread_mutex_init(&vm->op_lock, NULL);
	pthread_mutex_init(&vm->stores_lock, NULL);
	pthread_mutex_init(&vm->recent.lock, NULL);
	pthread_mutex_init(&vm->bulk.lock, NULL);
	return vm;
}

void vm_ref(struct vm *vm)
{
	atomic_fetch_add(&vm->refs, 1);
}

void block_free(struct block *b)
{
	if (!b)
		return;
	for (unsigned int i = 0; i < BLOCK_MAPPINGS_MAX; i++)
		free(atomic_load(&b->mappings[i]));
	if (b->memfd >= 0)
		close(b->memfd);
	pthread_mutex_destroy(&b->pin_lock);
	pthread_mutex_destroy(&b->split_lock);
	free((void *)atomic_load(&b->ages));
	free(b->split);
	free(b->whole);
	free(b);
}

/* The others stay where they are: backends know their addresses. */
static struct store_memory *store_put(struct vm *vm, unsigned int slot,
				      const struct store_memory *s)
{
	pthread_mutex_lock(&vm->stores_lock);
	vm->stores[slot] = *s;
	if (slot == vm->n_stores)
		vm->n_stores++;
	pthread_mutex_unlock(&vm->stores_lock);
	return &vm->stores[slot];
}

static void store_drop(struct vm *vm, unsigned int slot)
{
	static const struct store_memory none;
	struct store_memory s = vm->stores[slot];

	if (!s.name[0])
		return;
	store_put(vm, slot, &none);
	munmap(s.addr, s.bytes);
	close(s.fd);
}

void vm_drop_stores(struct vm *vm)
{
	for (unsigned int i = 0; i < vm->n_stores; i++)
		store_drop(vm, i);
}

void vm_put(struct vm *vm)
{
	if (!vm || atomic_fetch_sub(&vm->refs, 1) != 1)
		return;
	shelf_drop(vm->shelf);
	policies_detach(vm);
	huge_reserve_drop(vm);
	if (vm->op_loader)
		loader_close(vm->op_loader);
	free(vm->op_loader);
	backends_close_spaces(vm);
	for (unsigned int i = 0; i < VM_REGIONS_MAX; i++)
		block_free(atomic_load(&vm->blocks[i]));
	vm_drop_stores(vm);
	pthread_mutex_destroy(&vm->lock);
	pthread_rwlock_destroy(&vm->structure);
	pthread_mutex_destroy(&vm->move_lock);
	pthread_mutex_destroy(&vm->policy_lock);
	pthread_mutex_destroy(&vm->op_lock);
	pthread_mutex_destroy(&vm->stores_lock);
	pthread_mutex_destroy(&vm->recent.lock);
	pthread_mutex_destroy(&vm->bulk.lock);
	free(vm->bulk.slots);
	free(vm->windows.passed_ns);
	json_decref(vm->reclaim.options);
	json_decref(vm->prefetch.options);
	free(vm->recent.units);
	free(vm);
}

void vm_tiers_changed(struct vm *vm)
{
	atomic_store(&vm->top_tier, vm->n_tiers ? vm->tiers[0] : 0);
	atomic_store(&vm->chained, vm->n_tiers > 1);
}

unsigned int vm_chain(struct vm *vm, unsigned int tiers[ENGINE_BACKENDS_MAX])
{
	unsigned int n;

	pthread_mutex_lock(&vm->lock);
	n = vm->n_tiers;
	memcpy(tiers, vm->tiers, n * sizeof(*tiers));
	pthread_mutex_unlock(&vm->lock);
	return n;
}

void vm_resize_recent(struct vm *vm)
{
	uint64_t size = atomic_load(&vm->units) / 32;

	pthread_mutex_lock(&vm->recent.lock);
	if (size > vm->recent.size)
		vm->recent.size = size < RECENT_MAX ? size : RECENT_MAX;
	pthread_mutex_unlock(&vm->recent.lock);
}

int vm_store_open(struct vm *vm, const char *name, uint64_t bytes, struct store_memory **out,
		  bool *found)
{
	struct store_memory s = {.bytes = bytes};
	char full[128];
	unsigned int slot;

	for (unsigned int i = 0; i < vm->n_stores; i++) {
		if (strcmp(vm->stores[i].name, name) == 0) {
			if (vm->stores[i].bytes != bytes)
				return -EUCLEAN;
			*found = true;
			*out = &vm->stores[i];
			return 0;
		}
	}
	for (slot = 0; slot < vm->n_stores && vm->stores[slot].name[0];)
		slot++;
	if (slot == VM_STORES_MAX)
		return -ENOSPC;
	if (strlen(name) >= sizeof(s.name))
		return -ENAMETOOLONG;
	snprintf(s.name, sizeof(s.name), "%s", name);
	snprintf(full, sizeof(full), "ebb:%s", name);
	s.fd = memfd_make(full, bytes);
	if (s.fd < 0)
		return s.fd;
	s.addr = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, s.fd, 0);
	if (s.addr == MAP_FAILED) {
		int r = -errno;

		close(s.fd);
		return r;
	}
	/* It holds guest content, or says where that is: not for core dumps. */
	madvise(s.addr, bytes, MADV_DONTDUMP);
	*out = store_put(vm, slot, &s);
	FAULT_POINT(store_made);
	*found = false;
	return 0;
}

/* Only what a daemon of this user made: its own memfd, which nobody else could write to. */
bool vm_store_is_ours(int fd, struct stat *st)
{
	int seals = fcntl(fd, F_GET_SEALS);

	return !fstat(fd, st) && S_ISREG(st->st_mode) && st->st_uid == geteuid() &&
	       (st->st_mode & 0777) == 0600 && st->st_size > 0 && seals >= 0 &&
	       (seals & (F_SEAL_SHRINK | F_SEAL_GROW)) == (F_SEAL_SHRINK | F_SEAL_GROW);
}

int vm_store_adopt(struct vm *vm, const char *name, int fd)
{
	char path[64];
	struct stat st;

	for (unsigned int i = 0; i < vm->n_stores; i++)
		if (strcmp(vm->stores[i].name, name) == 0)
			return -EEXIST;
	if (!vm_store_is_ours(fd, &st))
		return -EPERM;
	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	fd = open(path, O_RDWR | O_CLOEXEC);
	if (fd < 0)
		return -errno;
	return vm_store_inherit(vm, name, fd, (uint64_t)st.st_size, true);
}

int vm_store_inherit(struct vm *vm, const char *name, int fd, uint64_t bytes, bool kept)
{
	struct store_memory s = {.fd = fd, .kept = kept, .bytes = bytes};
	struct stat st;
	int r = 0;

	if (vm->n_stores == VM_STORES_MAX || strlen(name) >= sizeof(s.name))
		r = -ENOSPC;
	else if (fd < 0 || fstat(fd, &st))
		r = -EBADF;
	else if (!bytes || (uint64_t)st.st_size != bytes)
		r = -EUCLEAN;
	if (!r) {
		s.addr = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd,
			      0);
		if (s.addr == MAP_FAILED)
			r = -errno;
	}
	if (r) {
		fd_close(&fd);
		return r;
	}
	strcpy(s.name, name);
	madvise(s.addr, bytes, MADV_DONTDUMP);
	store_put(vm, vm->n_stores, &s);
	return 0;
}

int vm_store_punch(struct vm *vm, const char *name, uint64_t offset, uint64_t bytes)
{
	struct store_memory s = {.fd = -1};

	pthread_mutex_lock(&vm->stores_lock);
	for (unsigned int i = 0; i < vm->n_stores && s.fd < 0; i++)
		if (strcmp(vm->stores[i].name, name) == 0)
			s = vm->stores[i];
	pthread_mutex_unlock(&vm->stores_lock);
	if (s.fd < 0)
		return -ENOENT;
	if (offset > s.bytes || bytes > s.bytes - offset)
		return -EINVAL;
	return memfd_punch(s.fd, offset, bytes);
}

void vm_store_close(struct vm *vm, const char *name)
{
	for (unsigned int i = 0; i < vm->n_stores; i++) {
		if (strcmp(vm->stores[i].name, name) != 0)
			continue;
		/* An offer of it may be under way; letting go of what it has not is nothing to it.
		 */
		if ((vm->stores[i].kept || vm->keep) && vm->n_unkeep < VM_STORES_MAX)
			strcpy(vm->unkeep[vm->n_unkeep++], vm->stores[i].name);
		store_drop(vm, i);
		return;
	}
}

void vm_suspended_text(uint32_t reasons, char *buf, size_t bytes)
{
	static const struct {
		uint32_t bit;
		const char *text;
	} texts[] = {
		{SUSPEND_NO_GUARD, "no folio probe here and quarantine is not allowed"},
		{SUSPEND_FOREIGN, "a process that is not attached maps this RAM"},
		{SUSPEND_LOCKED, "the VMM has locked or pinned memory and there is no folio probe"},
		{SUSPEND_SHARED, "the RAM is being handed to another process"},
		{SUSPEND_KEEPING, "the VM's state is not in safe keeping yet"},
		{SUSPEND_TWICE, "transparent huge pages that two processes map cannot be taken"},
		{SUSPEND_COLLAPSE, "this kernel fills holes when it collapses huge pages"},
		{SUSPEND_PROBING, "the daemon is still finding out what this kernel can do"},
		{SUSPEND_ORPHANED, "the VM is over, processes still map its RAM"},
	};
	size_t n = 0;

	buf[0] = 0;
	for (size_t i = 0; i < sizeof(texts) / sizeof(texts[0]); i++)
		if ((reasons & texts[i].bit) && n < bytes)
			n += (size_t)snprintf(buf + n, bytes - n, "%s%s", n ? "; " : "",
					      texts[i].text);
}

int vm_expect_peer(struct vm *vm, pid_t pid)
{
	bool known = false;
	int r = 0;

	pthread_mutex_lock(&vm->lock);
	for (unsigned int i = 0; i < vm->n_peers; i++)
		known |= vm->peers[i] == pid;
	if (!known && vm->n_peers == VM_PEERS_MAX)
		r = -ENOSPC;
	else if (!known)
		vm->peers[vm->n_peers++] = pid;
	/* Also with -ENOSPC: whom we cannot remember must not read holes either. Under the lock, or
	 * somebody who has just seen that there are no peers would lift it again. */
	vm_suspend(vm, SUSPEND_SHARED, true);
	pthread_mutex_unlock(&vm->lock);
	return r;
}

/* Drops the peers that `gone` says yes to; with none left eviction may go on. */
static void drop_peers(struct vm *vm, bool (*gone)(pid_t peer, pid_t pid), pid_t pid)
{
	pthread_mutex_lock(&vm->lock);
	for (unsigned int i = vm->n_peers; i-- > 0;)
		if (gone(vm->peers[i], pid))
			vm->peers[i] = vm->peers[--vm->n_peers];
	if (!vm->n_peers && !atomic_load(&vm->joining))
		vm_suspend(vm, SUSPEND_SHARED, false);
	pthread_mutex_unlock(&vm->lock);
}

static bool is_peer(pid_t peer, pid_t pid)
{
	return peer == 0 || peer == pid;
}

static bool has_exited(pid_t peer, pid_t pid)
{
	(void)pid;
	return peer != 0 && kill(peer, 0) && errno == ESRCH;
}

void vm_forget_peer(struct vm *vm, pid_t pid)
{
	drop_peers(vm, is_peer, pid);
}

void vm_check_peers(struct vm *vm)
{
	if (atomic_load(&vm->suspended) & SUSPEND_SHARED && !atomic_load(&vm->joining))
		drop_peers(vm, has_exited, 0);
}

void vm_suspend(struct vm *vm, enum suspend_reason reason, bool on)
{
	uint32_t was = on ? atomic_fetch_or(&vm->suspended, reason)
			  : atomic_fetch_and(&vm->suspended, ~(uint32_t)reason);
	uint32_t now = on ? was | reason : was & ~(uint32_t)reason;
	char text[160];

	if (was == now)
		return;
	vm_suspended_text(now, text, sizeof(text));
	engine_emit(vm->eng, EVENT_VM_SUSPENDED, vm->name, "", now, "%s", text);
	engine_kick(vm);
}
