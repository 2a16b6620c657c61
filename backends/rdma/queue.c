/* SPDX-License-Identifier: BSD-3-Clause */
/* queue.c: making connections with RDMA CM, none of them without a time limit. */
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>

#include "rdma.h"

/*
 * Theory of operation
 *
 * Each donor has a thread and one channel for connection events, which only that thread reads. An
 * event is acknowledged as soon as it was looked at, since a connection cannot be destroyed while
 * one of its events is not; another thread may destroy a queue at any time, so an event's id is
 * compared and never followed.
 *
 * A queue that breaks is noticed by its completions, a donor that goes by its control connection:
 * other events do not matter.
 */

#define STEP_MS 5000
/* 4.096 us << 16 = 0.27 s for an answer, eight times: a network that is gone is so after 2 s. */
#define ACK_TIMEOUT 16

/* Takes one event. Returns 1 when it was one of `id` (type and data out), 0 when not, -EAGAIN. */
static int next_event(struct link *l, const struct rdma_cm_id *id, enum rdma_cm_event_type *type,
		      void *data, uint32_t bytes)
{
	struct rdma_cm_event *e;
	int ours;

	if (rdma_get_cm_event(l->events, &e))
		return -EAGAIN;
	ours = id && e->id == id;
	if (ours) {
		*type = e->event;
		if (data && e->event == RDMA_CM_EVENT_ESTABLISHED) {
			uint32_t n =
				e->param.conn.private_data ? e->param.conn.private_data_len : 0;

			memcpy(data, e->param.conn.private_data, n < bytes ? n : bytes);
		}
	} else if (e->id == l->id && (e->event == RDMA_CM_EVENT_DISCONNECTED ||
				      e->event == RDMA_CM_EVENT_DEVICE_REMOVAL)) {
		atomic_store(&l->broken, true);
	}
	rdma_ack_cm_event(e);
	return ours;
}

void link_events(struct link *l)
{
	enum rdma_cm_event_type type;

	while (next_event(l, NULL, &type, NULL, 0) >= 0)
		;
}

static int await(struct link *l, const struct rdma_cm_id *id, enum rdma_cm_event_type want,
		 void *data, uint32_t bytes)
{
	uint64_t end = now_ns() + STEP_MS * NS_PER_MS;

	for (;;) {
		struct pollfd p = {.fd = l->events->fd, .events = POLLIN};
		enum rdma_cm_event_type type;
		int r = next_event(l, id, &type, data, bytes);

		if (r == 1)
			return type == want			? 0
			       : type == RDMA_CM_EVENT_REJECTED ? -ECONNREFUSED
								: -EHOSTUNREACH;
		if (r == 0)
			continue;
		/* Nor is a hand-over held up by a network that is gone. */
		if (atomic_load(&l->inst->stop) || atomic_load(&l->inst->quiet) || now_ns() >= end)
			return -ETIMEDOUT;
		poll(&p, 1, 50);
	}
}

int resolve_id(struct link *l, struct rdma_cm_id **out)
{
	struct addrinfo hints = {.ai_socktype = SOCK_STREAM}, *found;
	uint8_t timeout = ACK_TIMEOUT;
	struct rdma_cm_id *id;
	int r;

	if (getaddrinfo(l->host, l->port, &hints, &found))
		return -EADDRNOTAVAIL;
	if (rdma_create_id(l->events, &id, l, RDMA_PS_TCP)) {
		r = -errno;
		freeaddrinfo(found);
		return r;
	}
	r = rdma_resolve_addr(id, NULL, found->ai_addr, STEP_MS) ? -errno : 0;
	freeaddrinfo(found);
	if (!r)
		r = await(l, id, RDMA_CM_EVENT_ADDR_RESOLVED, NULL, 0);
	if (!r)
		r = rdma_resolve_route(id, STEP_MS) ? -errno : 0;
	if (!r)
		r = await(l, id, RDMA_CM_EVENT_ROUTE_RESOLVED, NULL, 0);
	if (r) {
		rdma_destroy_id(id);
		return r;
	}
	/* Where it cannot be set, a lost network is noticed later. */
	rdma_set_option(id, RDMA_OPTION_ID, RDMA_OPTION_ID_ACK_TIMEOUT, &timeout, sizeof(timeout));
	*out = id;
	return 0;
}

int connect_id(struct link *l, struct rdma_cm_id *id, const void *hello, uint8_t hello_bytes,
	       void *answer, uint32_t answer_bytes)
{
	struct rdma_conn_param param = {.private_data = hello,
					.private_data_len = hello_bytes,
					.responder_resources = RDMA_MAX_RESP_RES,
					.initiator_depth = RDMA_MAX_INIT_DEPTH,
					.retry_count = 7,
					.rnr_retry_count = 7};

	if (rdma_connect(id, &param))
		return -errno;
	return await(l, id, RDMA_CM_EVENT_ESTABLISHED, answer, answer_bytes);
}

/* Also one that was not made completely. The id last: with it the device may be closed. */
void queue_free(struct queue *q)
{
	if (q->id && q->id->qp) {
		rdma_disconnect(q->id);
		rdma_destroy_qp(q->id);
	}
	if (q->cq) {
		if (q->events)
			ibv_ack_cq_events(q->cq, q->events);
		ibv_destroy_cq(q->cq);
	}
	if (q->mr)
		ibv_dereg_mr(q->mr);
	if (q->comp)
		ibv_destroy_comp_channel(q->comp);
	if (q->id)
		rdma_destroy_id(q->id);
	free(q);
}

static int make(struct link *l, struct channel *ch, struct queue *q)
{
	struct ibv_qp_init_attr attr = {.qp_type = IBV_QPT_RC,
					.cap = {.max_send_wr = SEGMENTS * COPIES,
						.max_recv_wr = 1,
						.max_send_sge = 1,
						.max_recv_sge = 1}};
	struct wire_queue hello = {
		.connect = {.magic = WIRE_MAGIC, .version = WIRE_VERSION, .kind = WIRE_QUEUE},
		.session = l->session,
		.number = ++l->last_queue};
	int r = resolve_id(l, &q->id);

	if (r || !q->id)
		return r;
	if (q->id->verbs != l->id->verbs)
		return -EXDEV; /* the session's memory is for one device */
	q->comp = ibv_create_comp_channel(q->id->verbs);
	if (!q->comp)
		return -ENOMEM;
	fcntl(q->comp->fd, F_SETFL, fcntl(q->comp->fd, F_GETFL) | O_NONBLOCK);
	q->cq = ibv_create_cq(q->id->verbs, SEGMENTS * COPIES + 1, NULL, q->comp, 0);
	q->mr = ibv_reg_mr(l->pd, ch->buffers, SEGMENTS * PIECE_BYTES, IBV_ACCESS_LOCAL_WRITE);
	if (!q->cq || !q->mr)
		return -ENOMEM;
	attr.send_cq = attr.recv_cq = q->cq;
	if (rdma_create_qp(q->id, l->pd, &attr))
		return -errno;
	wire_queue_mac(&l->key, &hello, hello.mac);
	return connect_id(l, q->id, &hello, sizeof(hello), NULL, 0);
}

struct queue *queue_new(struct link *l, struct channel *ch)
{
	struct queue *q = calloc(1, sizeof(*q));

	if (!q)
		return NULL;
	q->link = l;
	if (make(l, ch, q)) {
		queue_free(q);
		return NULL;
	}
	return q;
}
