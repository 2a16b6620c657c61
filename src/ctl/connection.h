/* SPDX-License-Identifier: BSD-3-Clause */
/* connection.h: ebbctl's side of the control socket. */
#ifndef CTL_CONNECTION_H
#define CTL_CONNECTION_H

#include <jansson.h>

#include "base/error.h"

struct connection {
	int fd; /* owned; -1 when not connected */
	char *buf;
	size_t len, room;
	json_int_t next_id;
};

/* Connects, takes the greeting, negotiates. connection_close() in any case. */
int connection_open(struct connection *c, const char *path, struct error *e);
void connection_close(struct connection *c);

/* Sends a command; consumes args. Its id goes to *id. */
int connection_send(struct connection *c, const char *command, json_t *args, json_int_t *id,
		    struct error *e);
/*
 * The next message, an answer or an event; waits for it at most timeout_ms (-1: for ever). Gives
 * *out. -ETIMEDOUT; -EINTR when a signal came; -EPIPE when the daemon has hung up.
 */
int connection_next(struct connection *c, int timeout_ms, json_t **out, struct error *e);
/* Sends a command and gives the whole answer to it, {"return":...} or {"error":...}. */
int connection_call(struct connection *c, const char *command, json_t *args, json_t **answer,
		    struct error *e);

#endif
