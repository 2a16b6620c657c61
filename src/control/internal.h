/* SPDX-License-Identifier: BSD-3-Clause */
/* internal.h: what the files of the control socket share. */
#ifndef CONTROL_INTERNAL_H
#define CONTROL_INTERNAL_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/queue.h>

#include "base/log.h"
#include "control/control.h"
#include "control/frame.h"
#include "schema/schema.h"

/* More than this waiting to be read by a client: its requests wait. */
#define CLIENT_OUT_PAUSE (256 * 1024)
/* More than this: an event does not go to it any more, it is dropped. */
#define CLIENT_OUT_MAX (1024 * 1024)
/* A client that takes nothing for this long is dropped. */
#define CLIENT_STALL_S 30

struct bufferevent;
struct event;
struct evconnlistener;
struct jobs;

struct client {
	TAILQ_ENTRY(client) entry;
	struct control *control;
	struct bufferevent *bev;
	struct frame frame;
	uint64_t serial; /* never used twice, so that a job can name a client that is gone */
	bool negotiated;
	bool closing; /* goes when what is written to it has been read */
	bool dead;    /* goes at the next sweep */
};
TAILQ_HEAD(client_list, client);

struct control {
	struct event_base *base;
	struct control_config config;
	struct evconnlistener *listener;
	struct event *sweep; /* frees dead clients outside of their own callbacks */
	struct event *accept_again;
	struct client_list clients;
	unsigned int n_clients;
	uint64_t next_serial;
	struct jobs *jobs;
	struct event_queue *queue; /* borrowed */
	struct log_limit refused;
};

/* One request while it is answered. */
struct request {
	struct control *control;
	struct client *client;
	const json_t *command; /* its declaration */
	json_t *args;	       /* checked, defaults filled in */
	json_t *id;	       /* NULL when it had none */
};

/* ---- client.c ---- */
/* Consumes fd; sends the greeting. NULL when out of memory. */
struct client *client_new(struct control *c, int fd);
void client_free(struct client *cl);
/* Sends one message; consumes it. */
void client_send(struct client *cl, json_t *message);
void client_answer(struct client *cl, json_t *id, json_t *ret /* consumed; NULL: {} */);
void client_fail(struct client *cl, json_t *id, const struct error *e);
/* How much it has not read yet. */
size_t client_out_bytes(const struct client *cl);
/* To be freed at the next sweep. */
void client_kill(struct client *cl);
/* The last attempt to write what is waiting, without waiting. */
void client_flush(struct client *cl);
/*
 * Creates a file that must not exist yet, with the rights of whoever is at the other end, and for
 * them. A descriptor, or -errno with e filled.
 */
int client_create_file(struct client *cl, const char *path, struct error *e);

/* ---- control.c ---- */
/* NULL when that client is gone. */
struct client *control_client(struct control *c, uint64_t serial);
/* Consumes data. */
void control_broadcast(struct control *c, const char *event, json_t *data);

/* ---- methods.c ---- */
#define METHOD_LATER 1 /* a job answers */
typedef int (*method_fn)(struct request *r, json_t **ret, struct error *e);
struct method {
	const char *name;
	method_fn fn;
};
/* Ends of the tables have a NULL name. */
extern const struct method methods_vm[], methods_plugin[];
/* Answers one request, now or by a job later. Consumes message. */
void methods_dispatch(struct control *c, struct client *cl, json_t *message);
/* True when every declared command has a handler and the other way round (for tests). */
bool methods_complete(const struct schema *s, struct error *e);

static inline const char *arg_text(const json_t *args, const char *name)
{
	return json_string_value(json_object_get(args, name));
}

#endif
