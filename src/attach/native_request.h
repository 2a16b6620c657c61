/* SPDX-License-Identifier: BSD-3-Clause */
/* native_request.h: a request of the native dialect, on its way from the line to the answer. */
#ifndef ATTACH_NATIVE_REQUEST_H
#define ATTACH_NATIVE_REQUEST_H

#include <jansson.h>
#include <stdbool.h>

#include "attach/intake.h"
#include "attach/worker.h"
#include "engine/engine.h"

#define NATIVE_VERSION 1

struct conn;
struct native_command;
struct requests;

/*
 * Made by the loop, run by a worker, answered and freed by the loop. One at a time of a connection
 * is with a worker.
 */
struct native_request {
	struct job job;
	struct conn *conn;
	const struct native_command *command; /* NULL: the message was refused */
	int result;			      /* 0 or -errno, then error says what */
	struct error error;
	int fds[INTAKE_FDS_MAX]; /* owned */
	int n_fds;
	int charged; /* so many of them count as held by the connection */
	struct progress progress;

	/* Arguments, as far as the command has them. */
	char vm_name[VM_NAME_MAX], uuid[40];
	bool secondary, keep, serves_zap, discard;
	struct attach_region *regions; /* owned; memfd is an index into fds */
	unsigned int n_regions;
	bool resume;		  /* takes over from a daemon that died */
	struct attach_kept *kept; /* owned; fd is an index into fds */
	unsigned int n_kept;
	char id[REGION_ID_MAX];
	uint64_t offset, size;
	uint64_t deadline_ns; /* discard: 0 or CLOCK_MONOTONIC */

	/* What it works on and what it gives. */
	struct attachment *attachment;
	struct requests *requests;
	bool ended;  /* attachment has been given back */
	int lent_fd; /* goes out with the answer; owned, -1 when there is none */
};

enum native_when {
	NATIVE_ANY,
	NATIVE_DETACHED, /* refused once attached */
	NATIVE_ATTACHED, /* refused before */
};

struct native_command {
	const char *name;
	enum native_when when;
	int fds_min, fds_max;
	/* In the loop: checks the arguments (NULL when there are none) and keeps them. */
	int (*parse)(struct native_request *req, json_t *args, struct error *e);
	/* In a worker: does it. */
	int (*run)(struct native_request *req, struct error *e);
};

/* native_args.c */
int native_parse_attach(struct native_request *req, json_t *args, struct error *e);
int native_parse_region(struct native_request *req, json_t *args, struct error *e);
int native_parse_remove(struct native_request *req, json_t *args, struct error *e);
int native_parse_share(struct native_request *req, json_t *args, struct error *e);
int native_parse_discard(struct native_request *req, json_t *args, struct error *e);
int native_parse_range(struct native_request *req, json_t *args, struct error *e);
int native_parse_nothing(struct native_request *req, json_t *args, struct error *e);

/* native_ops.c */
const struct native_command *native_command_find(const char *name);
/* The request with everything it owns except its descriptors, which a worker closes. */
void native_request_free(struct native_request *req);
void native_request_close_fds(struct native_request *req);

#endif
