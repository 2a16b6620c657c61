/* SPDX-License-Identifier: BSD-3-Clause */
/* conn.h: one client's connection, whatever dialect it speaks. */
#ifndef ATTACH_CONN_H
#define ATTACH_CONN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "attach/intake.h"
#include "attach/outbox.h"
#include "attach/peer.h"
#include "attach/worker.h"

struct attach;
struct conn;
struct event;

/*
 * A dialect of the socket. All but release() run in the loop's thread; state is the dialect's own,
 * kept in conn->state.
 */
struct dialect {
	const char *name;
	char first; /* the first byte of a stream that speaks it */
	int (*begin)(struct conn *c);
	/* The socket has something to read. Bounded work; called again when more is there. */
	void (*input)(struct conn *c);
	/* The client sends no more. What runs goes on. May be called twice. */
	void (*hangup)(struct conn *c);
	/* In a worker, after hangup() and the last job: gives back what may block. */
	void (*release)(struct conn *c);
	/* The end of state. */
	void (*free)(struct conn *c);
};

extern const struct dialect native_dialect, firecracker_dialect;

struct conn {
	struct attach *at;
	struct conn *next, **link;
	int fd; /* owned */
	struct peer peer;
	const struct dialect *dialect; /* NULL until the first byte has told */
	void *state;
	struct intake intake;
	int held_fds; /* charged to at->held_fds for this connection */

	struct event *read_event, *write_event, *timer;
	struct outbox out;
	uint64_t attach_deadline_ns;		       /* 0 while attached */
	uint64_t message_deadline_ns, out_deadline_ns; /* 0: none */

	bool busy;	 /* a job runs for it: neither closed nor freed meanwhile */
	bool hold_input; /* the dialect wants no more input now */
	bool eof;	 /* the client sends no more */
	bool finishing;	 /* to be closed when all output is out */
	bool closing;	 /* is being closed */
	struct job reap;
};

/* Takes fd over. NULL: out of memory, and fd is still the caller's. */
struct conn *conn_new(struct attach *at, int fd);
/* No message is half here, none is carried out or not answered. */
bool conn_rests(const struct conn *c);
/* Begins to read. */
void conn_start(struct conn *c);

/* The client has attached, or has not or no longer: then the time to attach runs. */
void conn_set_attached(struct conn *c, bool attached);
/* intake_first() and intake_line() with all errors dealt with: 1 or 0. */
int conn_first(struct conn *c, char *first);
int conn_line(struct conn *c);
/* n descriptors that came with a message are closed or given away. */
void conn_uncharge(struct conn *c, int n);

/*
 * Sends a line (consumed in any case) with at most one descriptor (-1: none; consumed as well).
 * Returns 0, -ENOTCONN when the connection is closing, or -EAGAIN when `bounded` and the client
 * does not take what it was sent before.
 */
int conn_send(struct conn *c, char *line, size_t bytes, int fd, bool bounded);
/* Sends {"error":{"class":...,"desc":...}}. */
void conn_send_error(struct conn *c, const struct error *e);
/* The same, logs it, and closes when it is out. */
void conn_fail(struct conn *c, const char *cls, const char *fmt, ...)
	__attribute__((format(printf, 3, 4)));
/* Writes a rate-limited warning about this client. */
void conn_log(struct conn *c, const char *cls, const char *desc);

/* A job of the dialect's begins and ends; at most one at a time. */
void conn_job_begin(struct conn *c, struct job *job);
void conn_job_end(struct conn *c);
/* Reads, waits and closes as the state now asks for. After every change. */
void conn_update(struct conn *c);
/* Closes without waiting for output. The connection is freed later, from the loop. */
void conn_close(struct conn *c);

#endif
