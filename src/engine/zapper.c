/* SPDX-License-Identifier: BSD-3-Clause */
/* zapper.c: the thread that has page-table entries dropped while evictions go on. */
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <time.h>

#include "engine/internal.h"

/*
 * Theory of operation
 *
 * A policy that forgets accesses does not need that to have happened when its call returns: a unit
 * that is touched before its entry is dropped counts as in use if it is looked at before, and else
 * has to be touched once more to count. So ranges wait in a ring of their VM, and this thread asks
 * the client for all that has come meanwhile in one request. What does not fit is refused, and done
 * by whoever asked. An entry may be dropped at any time and in any state of its unit: the page
 * stays, and write protection stays with it (tests/kernel/test_uffd_wp.c).
 */

#define BATCH	  64u
#define GATHER_NS (5 * NS_PER_MS)

struct zapper {
	struct engine_thread t;
};

bool zapper_push(struct vm *vm, const struct ebb_range *range)
{
	if (!ring_push(&vm->zap_ring, range))
		return false;
	engine_thread_wake(&vm->eng->zapper->t);
	return true;
}

static void zap_all(struct vm *vm)
{
	struct ebb_range ranges[BATCH];
	unsigned int n;

	do {
		for (n = 0; n < BATCH && ring_pop(&vm->zap_ring, &ranges[n]); n++)
			;
		if (n && !atomic_load(&vm->dead))
			tracker_zap(vm, ranges, n, true);
	} while (n == BATCH);
}

/* Lets more ranges come; not so long that a barrier would notice. */
static void gather(struct engine *eng)
{
	struct timespec nap = {.tv_nsec = GATHER_NS};

	if (!atomic_load(&eng->stop))
		nanosleep(&nap, NULL);
}

static void *zapper_main(void *arg)
{
	struct zapper *z = arg;
	struct engine *eng = z->t.eng;
	struct vm **vms = calloc(ENGINE_VMS_MAX, sizeof(*vms));

	while (vms && !atomic_load(&eng->stop)) {
		struct pollfd pfd = {.fd = z->t.wake_fd, .events = POLLIN};
		unsigned int n;

		engine_thread_pass(&z->t);
		if (poll(&pfd, 1, 1000) > 0)
			gather(eng);
		n = engine_vms_get(eng, vms, ENGINE_VMS_MAX);
		for (unsigned int i = 0; i < n; i++) {
			zap_all(vms[i]);
			vm_put(vms[i]);
		}
	}
	free(vms);
	return NULL;
}

int zapper_new(struct engine *eng, struct zapper **out)
{
	struct zapper *z = calloc(1, sizeof(*z));
	int r;

	if (!z)
		return -ENOMEM;
	r = engine_thread_init(eng, &z->t);
	if (!r)
		r = engine_thread_start(&z->t, "ebb-zap", zapper_main, z);
	if (r) {
		zapper_free(z);
		return r;
	}
	*out = z;
	return 0;
}

void zapper_free(struct zapper *z)
{
	if (!z)
		return;
	engine_thread_end(&z->t);
	free(z);
}
