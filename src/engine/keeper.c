/* SPDX-License-Identifier: BSD-3-Clause */
/* keeper.c: what has to be done from time to time, and when a process exits. */
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>

#include "base/log.h"
#include "engine/internal.h"
#include "engine/thp.h"
#include "sys/mappings.h"
#include "sys/procinfo.h"

/*
 * Theory of operation
 *
 * Two threads. The reaper sleeps on the pidfds of all attached processes and takes an attachment
 * out of service when its process exits; it waits for engine barriers, so it is not one of the
 * threads that a barrier waits for. The keeper does the rounds: policy ticks and access windows,
 * idle-time work of the backends, the look-out for processes that map guest RAM unattached, and
 * second chances for faults that were parked for want of memory.
 */

#define TICK_MS	      250u
#define FOREIGN_TICKS 40u /* ten seconds */
#define MAINTAIN_US   2000u

struct keeper {
	struct engine *eng;
	struct engine_thread t;
	pthread_t reaper;
	bool reaper_runs;
	_Atomic bool reaper_ends;
	int epoll_fd; /* the reaper's */
	int stop_fd;
	uint64_t ticks;
	_Atomic bool hurry; /* do not wait for the next round's time */
};

static void *reaper_main(void *arg)
{
	struct keeper *k = arg;
	struct epoll_event ev;

	while (!atomic_load(&k->reaper_ends)) {
		int n = epoll_wait(k->epoll_fd, &ev, 1, -1);

		if (n == 1 && ev.data.u64)
			attachment_exited(k->eng, ev.data.u64);
		else if (n < 0 && errno != EINTR)
			break;
	}
	return NULL;
}

int keeper_watch_exit(struct keeper *k, struct attachment *att)
{
	struct epoll_event ev = {.events = EPOLLIN | EPOLLONESHOT, .data.u64 = att->serial};

	return epoll_ctl(k->epoll_fd, EPOLL_CTL_ADD, att->pidfd, &ev) ? -errno : 0;
}

void keeper_unwatch_exit(struct keeper *k, struct attachment *att)
{
	epoll_ctl(k->epoll_fd, EPOLL_CTL_DEL, att->pidfd, NULL);
}

/* The RAM files of a VM; returns how many. */
static unsigned int ram_files(struct vm *vm, dev_t *dev, ino_t *ino)
{
	unsigned int n = 0;

	pthread_rwlock_rdlock(&vm->structure);
	for (unsigned int i = 0; i < atomic_load(&vm->n_blocks); i++) {
		struct block *b = atomic_load(&vm->blocks[i]);
		bool known = false;

		if (!b || atomic_load(&b->gone))
			continue;
		for (unsigned int j = 0; j < n; j++)
			known |= dev[j] == b->dev && ino[j] == b->ino;
		if (known)
			continue;
		dev[n] = b->dev;
		ino[n++] = b->ino;
	}
	pthread_rwlock_unlock(&vm->structure);
	return n;
}

void keeper_check_foreign(struct vm *vm)
{
	static struct log_limit limit;
	dev_t dev[VM_REGIONS_MAX];
	ino_t ino[VM_REGIONS_MAX];
	pid_t known[VM_ATTACH_MAX + 1];
	unsigned int n_known = 0, files = ram_files(vm, dev, ino);
	struct foreign_mapping found;
	bool foreign = false;

	for (unsigned int i = 0; i < VM_ATTACH_MAX; i++) {
		struct attachment *att = atomic_load(&vm->attachments[i]);

		if (att && !atomic_load(&att->dead))
			known[n_known++] = att->pid;
	}
	for (unsigned int i = 0; i < files; i++) {
		if (mappings_foreign(dev[i], ino[i], known, n_known, &found, 1) <= 0)
			continue;
		foreign = true;
		if (!(atomic_load(&vm->suspended) & SUSPEND_FOREIGN))
			log_limited(&limit, LOG_WARNING,
				    "VM %s: process %d (%s) maps its RAM without being attached",
				    vm->name, (int)found.pid, found.comm);
	}
	vm_suspend(vm, SUSPEND_FOREIGN, foreign);
	/* What it has read where something is evicted, it has filled with zeroes. */
	if (foreign)
		attachment_watch_cache(vm);
	vm_check_peers(vm);
}

/* Without the probe, memory that is locked or pinned for DMA stops eviction. */
static void check_pins(struct vm *vm)
{
	bool locked = false;

	if (!probes_done(vm->eng) || atomic_load(&vm->eng->probe))
		return;
	for (unsigned int i = 0; i < VM_ATTACH_MAX; i++) {
		struct attachment *att = atomic_load(&vm->attachments[i]);
		uint64_t pinned_bytes = 0, locked_bytes = 0;

		if (att && !atomic_load(&att->dead) &&
		    procinfo_pins(att->pid, &pinned_bytes, &locked_bytes) == 0)
			locked |= pinned_bytes || locked_bytes;
	}
	vm_suspend(vm, SUSPEND_LOCKED, locked);
}

/* Says once that a policy was put aside. Under policy_lock. */
static void tell_failure(struct vm *vm, struct vm_policy *role)
{
	struct policy_instance *p = atomic_load(&role->instance);
	const char *why = p ? policy_failed(p) : NULL;

	if (!why)
		role->failure_told = false;
	if (!why || role->failure_told)
		return;
	role->failure_told = true;
	engine_emit(vm->eng, EVENT_POLICY_FAILED, vm->name, role->name, 0, "%s", why);
}

static void tick_policies(struct vm *vm)
{
	struct policy_instance *p;
	uint64_t want = 0;

	pthread_mutex_lock(&vm->policy_lock);
	p = atomic_load(&vm->reclaim.instance);
	if (p)
		want = policy_tick(p, clock_ns());
	p = atomic_load(&vm->prefetch.instance);
	if (p)
		policy_tick(p, clock_ns());
	tell_failure(vm, &vm->reclaim);
	tell_failure(vm, &vm->prefetch);
	pthread_mutex_unlock(&vm->policy_lock);
	if (want) {
		atomic_store(&vm->proactive_left, (int64_t)want);
		engine_kick(vm);
	}
}

static void maintain(struct vm *vm)
{
	for (unsigned int t = 1; t < PE_TIERS; t++) {
		struct backend_space *s = atomic_load(&vm->spaces[t]);

		if (s)
			backend_maintain(s, MAINTAIN_US);
	}
}

static void rounds(struct keeper *k, struct vm *vm)
{
	if (atomic_load(&vm->dead))
		return;
	if (!atomic_load(&vm->orphaned))
		keep_round(vm);
	maintain(vm);
	huge_reserve_renew(vm);
	if ((uint64_t)atomic_load(&vm->resident) > reclaim_target(vm))
		engine_kick(vm);
	else if (atomic_load(&vm->parked))
		reclaim_unpark(vm); /* parked for want of host memory: try again */
	if (atomic_load(&vm->orphaned))
		return; /* nothing of it is evicted */
	if (k->ticks % 4 == 0) {
		tick_policies(vm);
		check_pins(vm);
	}
	tracker_window(vm);
	thp_look(vm);
	if (k->ticks % FOREIGN_TICKS == 0)
		keeper_check_foreign(vm);
}

void keeper_hurry(struct keeper *k)
{
	atomic_store(&k->hurry, true);
	engine_thread_wake(&k->t);
}

static void *keeper_main(void *arg)
{
	struct keeper *k = arg;
	struct vm **vms = calloc(ENGINE_VMS_MAX, sizeof(*vms));

	while (vms && !atomic_load(&k->eng->stop)) {
		struct pollfd pfd = {.fd = k->t.wake_fd, .events = POLLIN};
		uint64_t start = clock_ns();
		unsigned int n;

		engine_thread_pass(&k->t);
		n = engine_vms_get(k->eng, vms, ENGINE_VMS_MAX);
		for (unsigned int i = 0; i < n; i++) {
			rounds(k, vms[i]);
			vm_put(vms[i]);
		}
		k->ticks++;
		/* A barrier wakes us early; the next round is still due at its time. */
		while (clock_ns() - start < TICK_MS * NS_PER_MS && !atomic_load(&k->eng->stop) &&
		       !atomic_exchange(&k->hurry, false)) {
			poll(&pfd, 1, TICK_MS);
			engine_thread_pass(&k->t);
		}
	}
	free(vms);
	return NULL;
}

int keeper_new(struct engine *eng, struct keeper **out)
{
	struct keeper *k = calloc(1, sizeof(*k));
	struct epoll_event ev = {.events = EPOLLIN, .data.u64 = 0};
	int r;

	if (!k)
		return -ENOMEM;
	k->eng = eng;
	k->epoll_fd = k->stop_fd = -1;
	r = engine_thread_init(eng, &k->t);
	if (!r) {
		k->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
		k->stop_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
		if (k->epoll_fd < 0 || k->stop_fd < 0 ||
		    epoll_ctl(k->epoll_fd, EPOLL_CTL_ADD, k->stop_fd, &ev))
			r = -errno;
	}
	if (!r)
		r = -pthread_create(&k->reaper, NULL, reaper_main, k);
	if (!r) {
		k->reaper_runs = true;
		r = engine_thread_start(&k->t, "ebb-keeper", keeper_main, k);
	}
	if (r) {
		atomic_store(&eng->stop, true);
		keeper_free(k);
		return r;
	}
	*out = k;
	return 0;
}

void keeper_end_reaper(struct keeper *k)
{
	uint64_t one = 1;

	if (!k || !k->reaper_runs)
		return;
	atomic_store(&k->reaper_ends, true);
	if (write(k->stop_fd, &one, sizeof(one)) != (ssize_t)sizeof(one))
		return;
	pthread_join(k->reaper, NULL);
	k->reaper_runs = false;
}

void keeper_free(struct keeper *k)
{
	if (!k)
		return;
	keeper_end_reaper(k);
	engine_thread_end(&k->t);
	if (k->epoll_fd >= 0)
		close(k->epoll_fd);
	if (k->stop_fd >= 0)
		close(k->stop_fd);
	free(k);
}
