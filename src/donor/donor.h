/* SPDX-License-Identifier: BSD-3-Clause */
/* donor.h: lending RAM over RDMA: the parts of the program and what they share. */
#ifndef DONOR_DONOR_H
#define DONOR_DONOR_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/socket.h>

#include <rdma/rdma_cma.h>

#include "base/error.h"
#include "base/log.h"
#include "donor/pool.h"
#include "rdma/wire.h"

#define DONOR_ALLOW_MAX	   64
#define DONOR_SESSIONS_MAX 256
#define DONOR_STRANGERS	   16  /* sessions that have not said hello yet, at most */
#define DONOR_QUEUES_MAX   256 /* of one session */
#define HELLO_SECONDS	   10u /* for the first message */
#define SILENT_SECONDS	   30u /* a client says something every second */

/* Addresses that may connect: the first `bits` of them. */
struct allow {
	int family;
	uint8_t addr[16];
	unsigned int bits;
};

struct donor_options {
	uint64_t size_bytes;
	struct sockaddr_storage listen;
	char listen_text[128];
	struct allow allow[DONOR_ALLOW_MAX];
	unsigned int n_allow; /* 0: all */
	char key_file[256], runtime_dir[256];
	uint64_t hold_seconds;
	enum log_level log_level;
};

enum donor_action { DONOR_RUN, DONOR_ASK, DONOR_HELP, DONOR_VERSION };

/* DONOR_ASK: what to ask the running one is in `question`. 0 or -errno with e filled. */
int donor_options_read(struct donor_options *o, int argc, char **argv, enum donor_action *action,
		       char *question, size_t question_bytes, struct error *e);
void donor_options_help(void);
/* True when an address may connect. */
bool donor_allows(const struct donor_options *o, const struct sockaddr *addr);
const char *address_text(const struct sockaddr *addr, char *out, size_t bytes);

struct donor {
	const struct donor_options *options;
	struct wire_key key;
	uint64_t boot;
	struct pool pool;
	struct session *sessions; /* owned */
	uint64_t last_session;
	struct rdma_event_channel *events;
	struct rdma_cm_id *listener;
	int epoll_fd, signal_fd, timer_fd, status_fd;
	struct log_limit limit;
	bool stop;
};

/* Runs until a signal. 0 or -errno with e filled. */
int donor_run(const struct donor_options *o, struct error *e);

/* ---- session.c: one client's connections ---- */

struct queue {
	struct rdma_cm_id *id; /* owned */
	struct queue *next;
};

struct session {
	struct donor *donor;
	uint64_t number;
	struct rdma_cm_id *id; /* the control connection; owned */
	struct ibv_pd *pd;
	struct ibv_comp_channel *channel;
	struct ibv_cq *cq;
	struct ibv_mr *mr;
	struct wire_message *buffers; /* owned: RECEIVES to receive into, then one to send from */
	struct wire_key key;
	bool greeted, dead;
	uint64_t last_message, heard_ns;
	uint32_t last_queue, n_queues;
	struct queue *queues;
	uint64_t chunks; /* of its leases */
	char name[WIRE_NAME_BYTES], peer[64];
	struct session *next;
};

/* A connection request: answers it. Owns id in any case. */
void session_begin(struct donor *d, struct rdma_cm_id *id, const struct wire_control *c);
void session_queue(struct donor *d, struct rdma_cm_id *id, const struct wire_queue *q);
/* A connection ended. */
void session_disconnected(struct donor *d, struct rdma_cm_id *id);
/* Its completion channel is readable. */
void session_ready(struct session *s);
/* Ends those that are dead or silent; forgets leases that nobody came back for. */
void session_sweep(struct donor *d);
void session_end_all(struct donor *d);

/* ---- status.c: the socket of the runtime folder ---- */

int status_listen(const struct donor_options *o, struct error *e);
/* Somebody is there: one line in ("status", "lend SIZE"), one JSON object out. */
void status_serve(struct donor *d);
/* The other side, for the command line. Returns the exit status. */
int status_ask(const struct donor_options *o, const char *question);

#endif
