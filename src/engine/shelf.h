/* SPDX-License-Identifier: BSD-3-Clause */
/* shelf.h: the state of a VM whose client keeps nothing, in the service manager's fd store. */
#ifndef ENGINE_SHELF_H
#define ENGINE_SHELF_H

#include "engine/internal.h"

struct shelf;

/*
 * Gives the VM a shelf: an empty one of its own, or (from not NULL) the one that lies there. NULL
 * when out of memory. Its end: shelf_drop().
 */
struct shelf *shelf_new(struct engine *eng, const struct attach_shelf *from);
/* The VM is over: nothing of it stays there, and nothing is put there any more. NULL is fine. */
void shelf_close(struct shelf *s);
/* The same, and frees it. NULL is fine. */
void shelf_drop(struct shelf *s);
/* Frees it and leaves everything there, for a successor. NULL is fine. */
void shelf_leave(struct shelf *s);

/* Held around a whole round: two threads may want one. */
void shelf_lock(struct shelf *s);
void shelf_unlock(struct shelf *s);
/* The rest under that lock. A piece of state (fd borrowed) goes there; again is fine. -errno. */
int shelf_put(struct shelf *s, const char *piece, int fd);
void shelf_remove(struct shelf *s, const char *piece);
/* What a client would give with its attach: userfaultfd, process, RAM, and how it belongs together.
 */
int shelf_put_request(struct shelf *s, struct vm *vm, struct attachment *att);
/* Returns when the manager has all that was put; -errno when it does not say so. */
int shelf_settle(struct shelf *s);

/* For a successor that takes over from the living: {"id":, "sequence":, "pieces":[]}. */
json_t *shelf_export(const struct shelf *s);
/* NULL when j is none, or when this daemon has no fd store. */
struct shelf *shelf_import(struct engine *eng, const json_t *j);

#endif
