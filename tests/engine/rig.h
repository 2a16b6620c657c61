/* SPDX-License-Identifier: BSD-3-Clause */
/* rig.h: a real daemon and a VM of tagged pages, for tests of one rule each. */
#ifndef TESTS_ENGINE_RIG_H
#define TESTS_ENGINE_RIG_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "attach/native.h"
#include "kernel/kernel_test.h"
#include "stress/daemon.h"

/*
 * The test process is the VMM. Its one VM, "vm", has policies that do nothing of themselves, so
 * units go only when a test asks for it, and is stored in the inject backend unless told
 * otherwise, whose delays make the short moments of an eviction or a load long enough to be met.
 * Nothing is decided by time: what must happen is waited for (rig_until), and what must not happen
 * is looked for at the end.
 */

struct rig {
	struct daemon d;
	struct native *vmm;
	struct native_ram ram;
	size_t units, unit_bytes;
	int events; /* another control connection, for events; -1 */
};

struct rig_case {
	const char *name;
	void (*run)(struct rig *rig);
};

/*
 * Runs the cases named on the command line, each in a process of its own; all of them when none is
 * named. A case that exits with 77 is skipped, unless another one failed.
 */
int rig_main(int argc, char **argv, const struct rig_case *cases, size_t n);

/*
 * Starts the daemon. keys: lines of ebbd.conf ahead of the first section; inject: lines of the
 * inject backend's section, NULL: the VM is stored in the compressed backend. Both may be "".
 */
void rig_start(struct rig *r, const char *keys, const char *inject);
/* RAM of the VM, each unit tagged, and attached. */
void rig_attach(struct rig *r, size_t bytes, enum native_kind kind);
void rig_attach_ram(struct rig *r); /* r->ram is there already */
/* Detaches, looks at all tags, ends client and daemon. */
void rig_end(struct rig *r);
/* A command of the control socket, sent by the connection that gets the events; no answer awaited.
 */
void rig_send(struct rig *r, const char *command);

/* A unit's place, its tag written, and its tag looked at (all of it). */
char *rig_unit(const struct rig *r, size_t unit);
void rig_tag(const struct rig *r, size_t unit, uint64_t generation);
bool rig_is(const struct rig *r, size_t unit, uint64_t generation);
/* Every unit has generation 1: CHECKed. */
void rig_check_all(const struct rig *r);

/* vm-reclaim of so many bytes (0: all that is resident); how many were reclaimed. */
uint64_t rig_reclaim(struct rig *r, uint64_t bytes);
/* Reclaims until the page cache has none of the units any more: CHECKed. */
void rig_evict_all(struct rig *r);
bool rig_cached(const struct rig *r, size_t unit);
uint64_t rig_number(struct rig *r, const char *name);
/* A statistic of a backend, from query-backends; the test ends where there is none. */
uint64_t rig_backend_number(struct rig *r, const char *backend, const char *name);
/* Waits (30 s at most: CHECKed) until the number is at least that. */
void rig_until(struct rig *r, const char *name, uint64_t at_least);
/* The text of query-vm's "suspended". */
const char *rig_suspended(struct rig *r);
void rig_limit(struct rig *r, uint64_t bytes);
/* Waits for an event with this name: CHECKed. */
void rig_event(struct rig *r, const char *name);

/* Waits until the thread is through with its access: CHECKed. */
char rig_access_end(struct kt_access *a);

/*
 * Writers: a thread that adds one to a counter of each of its units, in turn, until told to stop,
 * and knows what each must be.
 */
struct rig_writer {
	struct rig *rig;
	void *base; /* the mapping to write through */
	size_t first, n;
	unsigned int pause_us;
	uint64_t *count; /* what was written to each */
	uint64_t writes;
	pthread_t thread;
	_Atomic bool stop;
};
void rig_writer_start(struct rig_writer *w, struct rig *r, size_t first, size_t n,
		      unsigned int pause_us);
void rig_writer_stop(struct rig_writer *w);
/* Units whose counter is not what was written. Once, after the stop: it frees. */
size_t rig_writer_lost(struct rig_writer *w);

#endif
