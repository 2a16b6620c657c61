/* SPDX-License-Identifier: BSD-3-Clause */
/* jobs.h: long commands, each on a thread of its own. */
#ifndef CONTROL_JOBS_H
#define CONTROL_JOBS_H

#include "control/internal.h"

#define JOBS_MAX	16
#define JOB_NAME_MAX	33
#define JOB_PROGRESS_MS 200

struct job {
	TAILQ_ENTRY(job) entry;
	struct jobs *jobs;
	char name[JOB_NAME_MAX];
	char command[32];
	char target[VM_NAME_MAX]; /* the VM or backend it works on; "" for all */
	struct engine *engine;
	struct progress progress;
	uint64_t bytes;	 /* in: what was asked for */
	uint64_t result; /* out */
	void *arg;	 /* more of both; freed with the job by free_arg */
	void (*free_arg)(void *arg);
	/* On the job's thread: no JSON, no client. */
	int (*run)(struct job *j, struct error *e);
	/* In the loop, after a run that succeeded: makes the answer (NULL: {}). May be NULL. */
	json_t *(*finish)(struct job *j, struct control *c);

	/* The loop's */
	pthread_t thread;
	uint64_t client; /* serial of the one that waits for the answer */
	json_t *id;
	bool cancel_on_disconnect;

	/* Written by the thread before `done`, read by the loop after it. */
	int status;
	struct error error;
	_Atomic bool done;
};

struct jobs *jobs_new(struct control *c);
/* Cancels all and waits for them. NULL is fine. */
void jobs_free(struct jobs *jobs);

/*
 * Starts a job for a request; the names of the arguments job and cancel-on-disconnect are the
 * schema's. target may be NULL. Returns METHOD_LATER or -errno.
 */
int job_start(struct request *r, const char *target, uint64_t bytes,
	      int (*run)(struct job *, struct error *),
	      json_t *(*finish)(struct job *, struct control *), struct error *e);
/* The same with an argument, which is consumed in any case. */
int job_start_with(struct request *r, const char *target, void *arg, void (*free_arg)(void *),
		   int (*run)(struct job *, struct error *),
		   json_t *(*finish)(struct job *, struct control *), struct error *e);
int jobs_cancel(struct jobs *jobs, const char *name, struct error *e);
json_t *jobs_query(struct jobs *jobs);
/* The client is gone: cancels what it wanted to be cancelled then. */
void jobs_client_gone(struct jobs *jobs, uint64_t serial);

#endif
