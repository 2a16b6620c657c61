/* SPDX-License-Identifier: BSD-3-Clause */
/* control.h: the operators' socket. */
#ifndef CONTROL_CONTROL_H
#define CONTROL_CONTROL_H

#include <stdbool.h>
#include <sys/types.h>

#include "base/error.h"
#include "engine/engine.h"

struct control;
struct event_base;
struct schema;
struct settings;

/* What a successor said of itself. */
struct upgrade_done {
	pid_t pid;
	char version[32];
	uint64_t paused_us; /* how long no fault was served */
};

struct control_config {
	struct engine *engine;	   /* outlives the control */
	struct schema *schema;	   /* borrowed */
	struct settings *settings; /* borrowed; NULL: nothing is kept */
	const char *socket_path;
	int listener;		  /* listens there already; consumed. 0: make it */
	unsigned int socket_mode; /* e.g. 0660 */
	gid_t group;		  /* whose members may connect, too; -1: nobody's */
	unsigned int max_clients; /* 0: CONTROL_CLIENTS_MAX */
	/* The daemon shall end (quit). Called from the loop. */
	void (*quit)(void *ctx);
	/*
	 * Replace this daemon by another binary (NULL: the file that it runs), which has wait_ms to
	 * get ready. On a job's thread. After 0 everything belongs to the successor: answer, and
	 * quit.
	 */
	int (*upgrade)(void *ctx, const char *binary, uint32_t wait_ms, struct upgrade_done *out,
		       struct error *e);
	void *ctx;
};

#define CONTROL_CLIENTS_MAX 64

/* Listens. All of it runs in base's loop, but for the jobs' threads. */
int control_new(struct event_base *base, const struct control_config *config, struct control **out,
		struct error *e);
/* Cancels and joins the jobs, closes the socket and all connections. NULL is fine. */
void control_free(struct control *c);

/* The socket that it listens on; borrowed. */
int control_listener(const struct control *c);

/*
 * An event of the engine: goes out to all clients from the loop, after a VM that attaches has got
 * its settings. Any thread; never blocks for long. Can be given to the engine before control_new()
 * by way of struct event_queue (events.h).
 */
struct event_queue;
void control_take_events(struct control *c, struct event_queue *q);

#endif
