/* SPDX-License-Identifier: BSD-3-Clause */
/* pause.c: standing still, so that a successor can take over. */
#include <errno.h>
#include <time.h>
#include <unistd.h>

#include "engine/handover.h"
#include "engine/internal.h"

/*
 * Theory of operation
 *
 * Three kinds of work change VMs, and are stopped in this order, each when it is at rest:
 *
 *   commands    from outside (control, attach, exits of processes): each is between
 *               engine_enter() and engine_leave(). The gate closes at an instant when nobody is
 *               inside; who comes later waits. While a long command runs, it stays open.
 *   background  evictors, prefetcher, keeper: stopped where they hold nothing
 *               (engine_thread_pass), the VMs' faults are served all the while
 *   faults      the fault workers, likewise, with no load under way: from here on the VMs wait
 *
 * After that every entry of every table is at rest (none in an owned state, and no fault was read
 * that was not answered, but for parked ones, which the wake of the whole range delivers again).
 */

#define GATE_LOOK_US 500

void engine_enter(struct engine *eng)
{
	pthread_mutex_lock(&eng->pause.lock);
	while (eng->pause.closed)
		pthread_cond_wait(&eng->pause.changed, &eng->pause.lock);
	eng->pause.inside++;
	pthread_mutex_unlock(&eng->pause.lock);
}

void engine_leave(struct engine *eng)
{
	pthread_mutex_lock(&eng->pause.lock);
	eng->pause.inside--;
	pthread_mutex_unlock(&eng->pause.lock);
}

static bool close_gate(struct engine *eng)
{
	bool closed;

	pthread_mutex_lock(&eng->pause.lock);
	closed = !eng->pause.closed && !eng->pause.inside;
	if (closed)
		eng->pause.closed = true;
	pthread_mutex_unlock(&eng->pause.lock);
	return closed;
}

int engine_pause_commands(struct engine *eng, uint32_t timeout_ms, struct error *e)
{
	uint64_t end = clock_ns() + timeout_ms * NS_PER_MS;

	while (!close_gate(eng)) {
		if (clock_ns() >= end)
			return error_set(e, EBUSY, ERROR_BUSY,
					 "a long command is still running after %u ms", timeout_ms);
		usleep(GATE_LOOK_US);
	}
	return 0;
}

static bool stands(const struct engine_thread *t)
{
	const struct engine_pause *p = &t->eng->pause;

	return t->serves_faults ? atomic_load(&p->faults) : atomic_load(&p->background);
}

bool engine_thread_hold(struct engine_thread *t)
{
	struct engine_pause *p = &t->eng->pause;

	if (!stands(t))
		return false;
	pthread_mutex_lock(&p->lock);
	atomic_store(&t->held, true);
	pthread_cond_broadcast(&p->changed);
	while (stands(t) && !atomic_load(&t->eng->stop))
		pthread_cond_wait(&p->changed, &p->lock);
	atomic_store(&t->held, false);
	pthread_mutex_unlock(&p->lock);
	return true;
}

/* Waits until every thread that must stand still does. */
static void await(struct engine *eng)
{
	struct engine_pause *p = &eng->pause;

	pthread_mutex_lock(&eng->barrier_lock);
	for (struct engine_thread *t = eng->threads; t; t = t->next) {
		if (!stands(t))
			continue;
		engine_thread_wake(t);
		pthread_mutex_lock(&p->lock);
		while (!atomic_load(&t->held) && !atomic_load(&eng->stop))
			pthread_cond_wait(&p->changed, &p->lock);
		pthread_mutex_unlock(&p->lock);
	}
	pthread_mutex_unlock(&eng->barrier_lock);
}

void engine_pause_background(struct engine *eng)
{
	atomic_store(&eng->pause.background, true);
	await(eng);
}

void engine_pause_faults(struct engine *eng)
{
	atomic_store(&eng->pause.faults, true);
	await(eng);
}

void engine_go_on(struct engine *eng)
{
	pthread_mutex_lock(&eng->pause.lock);
	atomic_store(&eng->pause.faults, false);
	atomic_store(&eng->pause.background, false);
	eng->pause.closed = false;
	pthread_cond_broadcast(&eng->pause.changed);
	pthread_mutex_unlock(&eng->pause.lock);
}
