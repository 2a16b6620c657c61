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

struct control_config {
	struct engine *engine;	   /* outlives the control */
	struct schema *schema;	   /* borrowed */
	struct settings *settings; /* borrowed; NULL: nothing is kept */
	const char *socket_path;
	unsigned int socket_mode; /* e.g. 0660 */
	gid_t group;		  /* whose members may connect, too; -1: nobody's */
	unsigned int max_clients; /* 0: CONTROL_CLIENTS_MAX */
	/* The daemon shall end (quit). Called from the loop. */
	void (*quit)(void *ctx);
	void *ctx;
};

#define CONTROL_CLIENTS_MAX 64

/* Listens. All of it runs in base's loop, but for the jobs' threads. */
int control_new(struct event_base *base, const struct control_config *config, struct control **out,
		struct error *e);
/* Cancels and joins the jobs, closes the socket and all connections. NULL is fine. */
void control_free(struct control *c);

/*
 * An event of the engine: goes out to all clients from the loop, after a VM that attaches has got
 * its settings. Any thread; never blocks for long. Can be given to the engine before control_new()
 * by way of struct event_queue (events.h).
 */
struct event_queue;
void control_take_events(struct control *c, struct event_queue *q);

#endif
