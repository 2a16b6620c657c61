/* SPDX-License-Identifier: BSD-3-Clause */
/* takeover.h: going on with a VM whose daemon has died. */
#ifndef ENGINE_TAKEOVER_H
#define ENGINE_TAKEOVER_H

#include "engine/internal.h"

/*
 * False when the client was never given the VM's record. It is offered last, and nothing is evicted
 * before the client holds everything: so then all RAM is there, and the VM is attached anew.
 */
bool takeover_possible(const struct attach_request *req);
/* What is between the two steps of a takeover. */
struct takeover;

/*
 * Rebuilds a VM from what its client kept (req->kept): blocks, page tables, stores; as far as its
 * faults depend on it. The VM is in nobody's hands yet. 0 and *out for takeover_end(), or -errno
 * with e filled; then nothing was changed that a later try would miss, and the client's faults go
 * on waiting.
 */
int takeover_begin(struct vm *vm, struct attachment *att, const struct attach_request *req,
		   struct takeover **out, struct error *e);
/* The rest, beside faults; nothing is evicted before. Consumes t; NULL is fine. */
void takeover_end(struct takeover *t);
/* Gives t up: the attach failed after all. NULL is fine. */
void takeover_drop(struct takeover *t);

#endif
