/* SPDX-License-Identifier: BSD-3-Clause */
/* keep.c: giving a VM's state to its client for safe keeping. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>

#include "base/fault_point.h"
#include "base/log.h"
#include "engine/internal.h"
#include "engine/shelf.h"

/*
 * Theory of operation
 *
 * A VM's surviving memory (record, page tables, stores) is memfds. The daemon's death would end
 * them, so the client that asked for it holds a read-only descriptor of each, and gives them to
 * whoever takes over. Pieces are offered by the keeper's rounds; until all that there are have been
 * confirmed, nothing is evicted from that VM: what is in no other hands must not be the only copy.
 *
 * A client that did not ask for it may have a shelf instead (shelf.c): then the service manager
 * holds the pieces, and what comes below "client" is it.
 */

/* A descriptor of the same memory that cannot be written through. */
static int read_only(int fd)
{
	char path[64];
	int ro;

	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	ro = open(path, O_RDONLY | O_CLOEXEC);
	return ro < 0 ? -errno : ro;
}

static struct attachment *primary_of(struct vm *vm)
{
	for (unsigned int i = 0; i < VM_ATTACH_MAX; i++) {
		struct attachment *att = atomic_load(&vm->attachments[i]);

		if (att && !att->secondary && !atomic_load(&att->dead))
			return att;
	}
	return NULL;
}

static int offer(struct attachment *att, const char *name, int fd, uint64_t bytes)
{
	struct shelf *shelf = att->vm->shelf;
	int r = -ENOTSUP;

	if (shelf && fd < 0)
		shelf_remove(shelf, name);
	if (shelf)
		return fd < 0 ? 0 : shelf_put(shelf, name, fd);
	pthread_mutex_lock(&att->client_lock);
	if (att->ops && att->ops->keep)
		r = att->ops->keep(att->client, name, fd, bytes);
	pthread_mutex_unlock(&att->client_lock);
	return r;
}

/* The first piece that is not in the client's hands; its descriptor is the caller's. */
static bool next_piece(struct vm *vm, char *name, int *fd, uint64_t *bytes)
{
	bool any = false;

	pthread_mutex_lock(&vm->lock);
	for (unsigned int i = 0; i < vm->n_stores && !any; i++) {
		if (vm->stores[i].kept || !vm->stores[i].name[0])
			continue;
		snprintf(name, STORE_NAME_MAX, "%s", vm->stores[i].name);
		*fd = read_only(vm->stores[i].fd);
		*bytes = vm->stores[i].bytes;
		any = true;
	}
	pthread_mutex_unlock(&vm->lock);
	return any;
}

/* The name of a piece that is gone; off the list. */
static bool next_gone(struct vm *vm, char *name)
{
	bool any;

	pthread_mutex_lock(&vm->lock);
	any = vm->n_unkeep;
	if (any)
		strcpy(name, vm->unkeep[--vm->n_unkeep]);
	pthread_mutex_unlock(&vm->lock);
	return any;
}

/* False when the piece has gone meanwhile: one of this name would be another. */
static bool mark_kept(struct vm *vm, const char *name)
{
	bool gone = false;

	pthread_mutex_lock(&vm->lock);
	for (unsigned int i = 0; i < vm->n_unkeep; i++)
		gone |= strcmp(vm->unkeep[i], name) == 0;
	for (unsigned int i = 0; i < vm->n_stores; i++)
		if (!gone && strcmp(vm->stores[i].name, name) == 0)
			vm->stores[i].kept = true;
	pthread_mutex_unlock(&vm->lock);
	return !gone;
}

/* Under the lock: a piece may have been made since we found none, and must be offered first. */
static void end_suspension(struct vm *vm)
{
	bool all;

	pthread_mutex_lock(&vm->lock);
	all = !vm->stores_to_come;
	for (unsigned int i = 0; i < vm->n_stores; i++)
		all &= vm->stores[i].kept || !vm->stores[i].name[0];
	if (all)
		vm_suspend(vm, SUSPEND_KEEPING, false);
	pthread_mutex_unlock(&vm->lock);
}

static void give_all(struct vm *vm, struct attachment *att)
{
	char name[STORE_NAME_MAX];
	uint64_t bytes;
	int fd;

	while (next_gone(vm, name)) {
		if (!offer(att, name, -1, 0))
			continue;
		/* Not connected, or slow: it holds memory a little longer. The next round. */
		pthread_mutex_lock(&vm->lock);
		if (vm->n_unkeep < VM_STORES_MAX)
			strcpy(vm->unkeep[vm->n_unkeep++], name);
		pthread_mutex_unlock(&vm->lock);
		break;
	}
	while (next_piece(vm, name, &fd, &bytes)) {
		int r;

		FAULT_POINT(keep_offer);
		r = fd < 0 ? fd : offer(att, name, fd, bytes);
		FAULT_POINT(keep_offered);
		fd_close(&fd);
		if (r) {
			vm_suspend(vm, SUSPEND_KEEPING, true);
			return; /* not connected, or slow: the next round tries again */
		}
		if (!mark_kept(vm, name))
			return; /* the next round lets go of it first */
	}
	if (vm->shelf && (shelf_put_request(vm->shelf, vm, att) || shelf_settle(vm->shelf))) {
		vm_suspend(vm, SUSPEND_KEEPING, true);
		return;
	}
	end_suspension(vm);
}

void keep_on_shelf(struct vm *vm, struct attachment *att)
{
	shelf_lock(vm->shelf);
	give_all(vm, att);
	shelf_unlock(vm->shelf);
}

void keep_round(struct vm *vm)
{
	struct attachment *att = primary_of(vm);

	if (!vm->keep || !att)
		return;
	if (vm->shelf)
		keep_on_shelf(vm, att);
	else
		give_all(vm, att);
}
