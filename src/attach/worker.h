/* SPDX-License-Identifier: BSD-3-Clause */
/* worker.h: threads for what may block, and the way back into the event loop. */
#ifndef ATTACH_WORKER_H
#define ATTACH_WORKER_H

#include "base/error.h"

struct event_base;
struct worker_pool;

/* Embedded in whatever it is about. Owned by the pool from submitting until done() is called. */
struct job {
	void (*run)(struct job *job);  /* in a worker thread; may block */
	void (*done)(struct job *job); /* in the loop's thread; may free the job */
	struct job *next;
};

/* Borrows base. In the loop's thread. */
int worker_pool_new(struct event_base *base, struct worker_pool **out, struct error *e);
/* Waits for all jobs, calls their done(), then frees the pool. In the loop's thread. Takes NULL. */
void worker_pool_free(struct worker_pool *pool);

/*
 * Runs the job in a thread of its own: one that is idle, or a new one, so that no job waits for
 * another. Who submits bounds the number of jobs. In the loop's thread; never fails (should no
 * thread be had at all, the job waits for one or, as the last resort, runs here).
 */
void worker_submit(struct worker_pool *pool, struct job *job);
/* Skips run(): done() is called from the loop. Any thread; posts are done in order. */
void worker_post(struct worker_pool *pool, struct job *job);

#endif
