/* SPDX-License-Identifier: BSD-3-Clause */
/* engine.c: making and ending the engine; its threads and their barrier. */
#include <errno.h>
#include <sched.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/syscall.h>

#include "base/log.h"
#include "engine/handover.h"
#include "engine/internal.h"

/*
 * Theory of operation
 *
 * An engine is a set of threads around a list of VMs: fault workers (fault.c), evictors
 * (reclaim.c), a prefetcher (prefetch.c), a zapper
 * (zapper.c), a demoter (demote.c), a keeper and a reaper (keeper.c). Callers from outside
 * (control, attach) use engine.h from threads of their own. Several engines can live in one
 * process; nothing is global.
 *
 * Objects that threads read without locks are taken away in three steps: unpublish, barrier, free.
 * engine_barrier() raises the epoch and wakes every thread; a thread that holds nothing takes the
 * new epoch over (engine_thread_pass).
 */

void engine_thread_wake(struct engine_thread *t)
{
	uint64_t one = 1;

	/* Full means that it is awake already. */
	if (write(t->wake_fd, &one, sizeof(one)) < 0)
		return;
}

bool engine_thread_pass(struct engine_thread *t)
{
	uint64_t drain;

	if (read(t->wake_fd, &drain, sizeof(drain)) < 0 && errno != EAGAIN)
		return false;
	atomic_store(&t->passed, atomic_load(&t->eng->epoch));
	return engine_thread_hold(t);
}

void engine_thread_schedule(int nice, uint64_t slice_ns)
{
	/* struct sched_attr, which no header that goes with <sched.h> has. */
	struct {
		uint32_t size, policy;
		uint64_t flags;
		int32_t nice;
		uint32_t priority;
		uint64_t runtime, deadline, period;
	} attr = {.size = sizeof(attr), .policy = SCHED_OTHER, .nice = nice, .runtime = slice_ns};

	if (syscall(SYS_sched_setattr, 0, &attr, 0))
		return;
}

int engine_thread_init(struct engine *eng, struct engine_thread *t)
{
	t->eng = eng;
	t->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	return t->wake_fd < 0 ? -errno : 0;
}

int engine_thread_start(struct engine_thread *t, const char *name, void *(*main)(void *), void *arg)
{
	struct engine *eng = t->eng;
	int r;

	pthread_mutex_lock(&eng->barrier_lock);
	atomic_store(&t->passed, atomic_load(&eng->epoch));
	r = pthread_create(&t->thread, NULL, main, arg);
	if (!r) {
		pthread_setname_np(t->thread, name);
		atomic_store(&t->running, true);
		t->next = eng->threads;
		eng->threads = t;
	}
	pthread_mutex_unlock(&eng->barrier_lock);
	return -r;
}

static void join(struct engine_thread *t)
{
	engine_thread_wake(t);
	pthread_join(t->thread, NULL);
	pthread_mutex_lock(&t->eng->barrier_lock);
	for (struct engine_thread **l = &t->eng->threads; *l; l = &(*l)->next)
		if (*l == t) {
			*l = t->next;
			break;
		}
	pthread_mutex_unlock(&t->eng->barrier_lock);
	atomic_store(&t->running, false);
}

void engine_thread_end(struct engine_thread *t)
{
	if (atomic_load(&t->running))
		join(t);
	if (t->wake_fd >= 0)
		close(t->wake_fd);
	t->wake_fd = -1;
}

void engine_barrier(struct engine *eng)
{
	uint64_t epoch;

	pthread_mutex_lock(&eng->barrier_lock);
	epoch = atomic_fetch_add(&eng->epoch, 1) + 1;
	for (struct engine_thread *t = eng->threads; t; t = t->next)
		engine_thread_wake(t);
	for (struct engine_thread *t = eng->threads; t; t = t->next)
		while (atomic_load(&t->passed) < epoch && !atomic_load(&t->held) &&
		       !atomic_load(&eng->stop))
			usleep(50);
	pthread_mutex_unlock(&eng->barrier_lock);
}

void engine_emit(struct engine *eng, enum engine_event_type type, const char *vm,
		 const char *subject, uint64_t value, const char *fmt, ...)
{
	struct engine_event ev = {.type = type, .value = value};
	va_list ap;

	if (!eng->config.event)
		return;
	snprintf(ev.vm, sizeof(ev.vm), "%s", vm);
	snprintf(ev.subject, sizeof(ev.subject), "%s", subject);
	va_start(ap, fmt);
	vsnprintf(ev.detail, sizeof(ev.detail), fmt, ap);
	va_end(ap);
	eng->config.event(eng->config.event_ctx, &ev);
}

struct vm *engine_vm_get(struct engine *eng, const char *name)
{
	struct vm *vm;

	pthread_mutex_lock(&eng->lock);
	for (vm = eng->vms; vm && (!vm_is_named(vm) || strcmp(vm->name, name) != 0); vm = vm->next)
		;
	if (vm)
		vm_ref(vm);
	pthread_mutex_unlock(&eng->lock);
	return vm;
}

unsigned int engine_vms_get(struct engine *eng, struct vm **out, unsigned int max)
{
	unsigned int n = 0;

	pthread_mutex_lock(&eng->lock);
	for (struct vm *vm = eng->vms; vm && n < max; vm = vm->next) {
		vm_ref(vm);
		out[n++] = vm;
	}
	pthread_mutex_unlock(&eng->lock);
	return n;
}

void engine_kick(struct vm *vm)
{
	uint64_t one = 1;

	if (atomic_exchange(&vm->kicked, true))
		return;
	/* In this order: who has ended its work on the VM looks at the flag after that. */
	if (atomic_load(&vm->evictors) && !reclaim_wants_more(vm))
		return;
	if (write(vm->eng->evict_fd, &one, sizeof(one)) < 0)
		return; /* full: every evictor is awake */
}

/* What the kernel offers, as far as serving a fault depends on it; probes.c has the rest. */
static int look_around(struct engine *eng, struct error *e)
{
	int r = sys_features_probe_fast(&eng->features);

	if (r)
		return error_set(e, -r, ERROR_GENERIC, "cannot probe the kernel: %s",
				 error_text(r));
	if (!eng->features.uffd)
		return error_set(e, ENOTSUP, ERROR_UNSUPPORTED, "no userfaultfd: %s",
				 eng->features.why[SYS_UFFD]);
	r = probes_start(eng);
	return r ? error_set(e, -r, ERROR_GENERIC, "cannot start a thread: %s", error_text(r)) : 0;
}

static void defaults(struct engine_config *c)
{
	long cpus = sysconf(_SC_NPROCESSORS_ONLN);
	unsigned int n = cpus > 0 ? (unsigned int)cpus : 1;

	if (!c->fault_threads)
		c->fault_threads = n < 4 ? n : 4;
	if (c->fault_threads > FAULT_THREADS_MAX)
		c->fault_threads = FAULT_THREADS_MAX;
	if (!c->evict_threads)
		c->evict_threads = n < 2 ? 1 : n < 8 ? 2 : 4;
	if (c->evict_threads > EVICT_THREADS_MAX)
		c->evict_threads = EVICT_THREADS_MAX;
	if (!c->window_ms)
		c->window_ms = 2000;
	if (!c->quarantine_ms)
		c->quarantine_ms = 100;
}

static int start_threads(struct engine *eng)
{
	int r = 0;

	for (unsigned int i = 0; i < eng->config.fault_threads && !r; i++) {
		r = fault_worker_new(eng, i, &eng->fault_workers[i]);
		if (!r)
			eng->n_fault_workers++;
	}
	for (unsigned int i = 0; i < eng->config.evict_threads && !r; i++) {
		r = evictor_new(eng, i, &eng->evictors[i]);
		if (!r)
			eng->n_evictors++;
	}
	if (!r)
		r = prefetcher_new(eng, &eng->prefetcher);
	if (!r)
		r = zapper_new(eng, &eng->zapper);
	if (!r)
		r = demoter_new(eng, &eng->demoter);
	if (!r)
		r = keeper_new(eng, &eng->keeper);
	return r;
}

int engine_new(const struct engine_config *config, struct engine **out, struct error *e)
{
	struct engine *eng = calloc(1, sizeof(*eng));
	int r;

	if (!eng)
		return error_set(e, ENOMEM, ERROR_GENERIC, "out of memory");
	eng->config = *config;
	defaults(&eng->config);
	pthread_mutex_init(&eng->lock, NULL);
	pthread_mutex_init(&eng->barrier_lock, NULL);
	pthread_mutex_init(&eng->pause.lock, NULL);
	pthread_cond_init(&eng->pause.changed, NULL);
	atomic_store(&eng->pause.background, config->start_held);
	eng->evict_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK | EFD_SEMAPHORE);
	eng->zeroes = mmap(NULL, UNIT_MAX_BYTES, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (eng->evict_fd < 0 || eng->zeroes == MAP_FAILED) {
		r = error_set(e, errno, ERROR_GENERIC, "%s", error_text(errno));
		goto fail;
	}
	backends_init(eng);
	r = look_around(eng, e);
	if (r)
		goto fail;
	if (eng->config.lock_memory && mlockall(MCL_CURRENT | MCL_FUTURE | MCL_ONFAULT))
		log_warning("cannot lock the daemon's memory: %s", error_text(errno));
	r = start_threads(eng);
	if (r) {
		error_set(e, -r, ERROR_GENERIC, "cannot start threads: %s", error_text(r));
		goto fail;
	}
	*out = eng;
	return 0;
fail:
	engine_free(eng);
	return r;
}

bool engine_free(struct engine *eng)
{
	bool kept = false;

	if (!eng)
		return false;
	probes_end(eng);
	/* A VM whose process just exited is taken apart behind a barrier, and there are none once
	 * the threads end. */
	keeper_end_reaper(eng->keeper);
	atomic_store(&eng->stop, true);
	engine_go_on(eng);
	/* All of them before any is freed: they wake each other. */
	while (eng->threads)
		join(eng->threads);
	keeper_free(eng->keeper);
	demoter_free(eng->demoter);
	zapper_free(eng->zapper);
	prefetcher_free(eng->prefetcher);
	for (unsigned int i = 0; i < eng->n_evictors; i++)
		evictor_free(eng->evictors[i]);
	for (unsigned int i = 0; i < eng->n_fault_workers; i++)
		fault_worker_free(eng->fault_workers[i]);
	while (eng->vms) {
		struct vm *vm = eng->vms;

		eng->vms = vm->next;
		kept |= vm_abandon(vm);
	}
	if (!kept) {
		policies_free(eng);
		backends_free(eng);
	}
	for (unsigned int t = 1; t < PE_TIERS; t++)
		json_decref(eng->slots[t].options);
	folio_probe_close(atomic_load(&eng->probe));
	if (eng->evict_fd >= 0)
		close(eng->evict_fd);
	if (eng->zeroes && eng->zeroes != MAP_FAILED)
		munmap(eng->zeroes, UNIT_MAX_BYTES);
	pthread_mutex_destroy(&eng->lock);
	pthread_mutex_destroy(&eng->barrier_lock);
	pthread_mutex_destroy(&eng->pause.lock);
	pthread_cond_destroy(&eng->pause.changed);
	free(eng);
	return kept;
}
