/* SPDX-License-Identifier: BSD-3-Clause */
/* link.h: the helper thread's own parts: the connection, offering RAM, serving. */
#ifndef CLIENT_LINK_H
#define CLIENT_LINK_H

#include "base/clock.h"
#include "client/client.h"
#include "client/json.h"

/* All of this is called in the helper thread only. */

#define LINK_LINE_BYTES	   (64 << 10) /* the longest line from the daemon */
#define LINK_MESSAGE_BYTES (32 << 10)
#define LINK_FDS_MAX	   (1 + CLIENT_REGIONS_MAX + CLIENT_KEPT_MAX) /* that we send with a line */
/* That came and are not taken: one with the line that is not complete yet, one just read. */
#define LINK_FDS_WAITING 2

#define BACKOFF_FIRST_NS   (10 * NS_PER_MS)
#define BACKOFF_LAST_NS	   (2 * NS_PER_S)
#define BACKOFF_REFUSED_NS (60 * NS_PER_S)

/* The helper's memory for messages, too large for its stack: static, as there is one helper. */
struct link_io {
	char line[LINK_LINE_BYTES + 1]; /* received, not yet handled */
	size_t have;
	struct {
		int fd;	   /* owned */
		size_t at; /* where in `line` the message begins that it came with */
	} fds[LINK_FDS_WAITING];
	unsigned int n_fds;
	char message[LINK_MESSAGE_BYTES]; /* being made; room for the newline is kept */
};
extern struct link_io link_io;

struct answer {
	int result; /* 0, or -errno after the error's class */
	char cls[32], desc[256];
};

/* ---- link.c: the connection ---- */

/* Connects; -ECONNABORTED for the daemon process that let us go. */
int link_connect(struct client *c);
void link_close(struct client *c);
/* The next try is to be made twice as late as the last, at most last_ns from now. */
void link_back_off(struct client *c, uint64_t last_ns);
/* Tells people why something did not work, once as long as the reason stays the same. */
void link_say_once(struct client *c, const char *what, const char *why);
/* Sends link_io.message (len bytes) as a line. 0 or -errno. Borrows fds. */
int link_send(struct client *c, size_t len, const int *fds, int n_fds);
/* Reads what is there. */
int link_receive(struct client *c);
/*
 * The first whole line that has been received, parsed; its length goes to *bytes, for link_done().
 * -EAGAIN when there is none yet, -EPROTO when it is not JSON.
 */
int link_next(struct json_span *out, size_t *bytes);
void link_done(size_t bytes);
/* The descriptor that came with that line, now the caller's; -1 when there is none. */
int link_take_fd(void);
void link_read_answer(struct json_span line, struct answer *a);
/*
 * Waits for one answer (and its descriptor; fd may be NULL), outside the stream of ops: while
 * attaching nothing else is under way.
 */
int link_await(struct client *c, struct answer *a, int *fd);
/* Sets the state and tells who waits. With the lock held. */
void link_set(struct client *c, enum link_state link);
/* Nothing is registered any more: start afresh. With the lock held. */
void link_let_go(struct client *c);
/* Is any range registered with our userfaultfd? With the lock held. */
bool link_registered(struct client *c);
/*
 * There is no connection any more, but there is a userfaultfd. True when nothing is registered
 * with it, so that it was given up. With the lock held.
 */
bool link_orphaned(struct client *c);
void link_lost(struct client *c);
/* The process at the other end; 0 when it is not known. */
pid_t link_daemon_pid(struct client *c);
void link_check_orphan(struct client *c);

/* ---- watch.c: seeing at once that a daemon's socket has come ---- */

/* Watches the socket's folder, if that can be. Before a try to connect, so that none is missed. */
void watch_begin(struct client *c);
/* Something happened in the folder: the next try may be due. */
void watch_read(struct client *c);

/* ---- resume.c: for the daemon that comes after this one ---- */

/* Serves "keep" or "unkeep". 0 or -errno. */
int kept_serve(struct client *c, struct json_span line, bool keep);
/* With the lock held. */
void kept_drop_all(struct client *c);
/* One try to have a daemon take over, while LINK_ORPHANED; sets when to try again. */
void resume_attach(struct client *c);

/* ---- offer.c: RAM for the daemon ---- */

/* Does r share bytes of a file with one of the chosen? With the lock held. */
bool offer_overlaps(const struct client *c, const bool *chosen, const struct region *r);

/* Tries to attach when it is time to; when (CLOCK_MONOTONIC) to look again, 0: never. */
uint64_t offer_attach(struct client *c);
/* RAM that came later, by region-add. When to look again, 0: never. */
uint64_t offer_more(struct client *c);
/* The daemon has taken region i. With the lock held. */
void offer_taken(struct client *c, unsigned int i);

/* ---- serve.c: messages both ways ---- */

void serve_ops(struct client *c);
void serve_input(struct client *c);
void serve_lines(struct client *c);
/* Answers the daemon's request `id`. 0 or -errno. */
int serve_answer(struct client *c, uint64_t id, int result);

/* ---- zap.c: dropping page-table entries for the daemon ---- */

/* Makes the thread for it; before the helper's, by the same thread. */
void zap_start(struct client *c);
/* Begins the request in `line`. Its answer is sent by zap_finish(). 0, -EINVAL, -EBUSY,
 * -ENOMEM: there is no thread. */
int zap_begin(struct client *c, struct json_span line, uint64_t id);
/* Sends the answer of a request that is through. 0 or -errno. */
int zap_finish(struct client *c);

#endif
