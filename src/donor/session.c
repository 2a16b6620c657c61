/* SPDX-License-Identifier: BSD-3-Clause */
/* session.c: one client's connections, and what it asks for on them. */
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>

#include "base/clock.h"
#include "donor/donor.h"

/*
 * Theory of operation
 *
 * A session is a control connection, the connections of the client's channels, and one protection
 * domain for all of them: a key to a chunk works on these connections and no others. Until the
 * first message with a right MAC has come it is a stranger, and can do nothing but be quiet for
 * HELLO_SECONDS.
 *
 * READs and WRITEs are done by the device; this program sees none of them. The order at the end of
 * a session is what keeps a client's stale connections off memory that somebody else has by then:
 * first its queues go, then its chunks are hidden from the device, then they may be shown to
 * another session or given to another lease.
 *
 * Sessions end in session_sweep() only, never in the middle of handling one of their events.
 */

#define RECEIVES 4u
#define SEND_AT	 RECEIVES
#define MESSAGES (RECEIVES + 1)

static void post_receive(struct session *s, uint32_t i)
{
	struct ibv_sge sge = {.addr = (uintptr_t)&s->buffers[i],
			      .length = sizeof(s->buffers[i]),
			      .lkey = s->mr->lkey};
	struct ibv_recv_wr wr = {.wr_id = i, .sg_list = &sge, .num_sge = 1}, *bad;

	if (ibv_post_recv(s->id->qp, &wr, &bad))
		s->dead = true;
}

/* The id last: with it the device may be closed. */
static struct session *session_free(struct session *s)
{
	struct session *next = s->next;

	if (s->id->qp)
		rdma_destroy_qp(s->id);
	if (s->mr)
		ibv_dereg_mr(s->mr);
	if (s->cq)
		ibv_destroy_cq(s->cq);
	if (s->channel)
		ibv_destroy_comp_channel(s->channel);
	if (s->pd)
		ibv_dealloc_pd(s->pd);
	rdma_destroy_id(s->id);
	free(s->buffers);
	explicit_bzero(&s->key, sizeof(s->key));
	free(s);
	return next;
}

static int make_resources(struct session *s)
{
	struct ibv_qp_init_attr attr = {.qp_type = IBV_QPT_RC,
					.cap = {.max_send_wr = 4,
						.max_recv_wr = RECEIVES + 1,
						.max_send_sge = 1,
						.max_recv_sge = 1}};
	struct epoll_event ev = {.events = EPOLLIN, .data.ptr = s};

	s->buffers = calloc(MESSAGES, sizeof(*s->buffers));
	s->pd = ibv_alloc_pd(s->id->verbs);
	s->channel = ibv_create_comp_channel(s->id->verbs);
	if (!s->buffers || !s->pd || !s->channel)
		return -ENOMEM;
	/* The queues of the client's channels use it too, for completions that never come. */
	s->cq = ibv_create_cq(s->id->verbs, 64, NULL, s->channel, 0);
	s->mr = ibv_reg_mr(s->pd, s->buffers, MESSAGES * sizeof(*s->buffers),
			   IBV_ACCESS_LOCAL_WRITE);
	if (!s->cq || !s->mr || ibv_req_notify_cq(s->cq, 0))
		return -ENOMEM;
	attr.send_cq = attr.recv_cq = s->cq;
	if (rdma_create_qp(s->id, s->pd, &attr))
		return -errno;
	for (uint32_t i = 0; i < RECEIVES; i++)
		post_receive(s, i);
	if (s->dead)
		return -EIO;
	fcntl(s->channel->fd, F_SETFL, fcntl(s->channel->fd, F_GETFL) | O_NONBLOCK);
	if (epoll_ctl(s->donor->epoll_fd, EPOLL_CTL_ADD, s->channel->fd, &ev))
		return -errno;
	return 0;
}

static int accept_with(struct rdma_cm_id *id, const void *data, uint8_t bytes)
{
	struct rdma_conn_param param = {.private_data = data,
					.private_data_len = bytes,
					.responder_resources = RDMA_MAX_RESP_RES,
					.initiator_depth = RDMA_MAX_INIT_DEPTH,
					.retry_count = 7,
					.rnr_retry_count = 7};

	return rdma_accept(id, &param) ? -errno : 0;
}

static void refuse(struct donor *d, struct rdma_cm_id *id, const char *why)
{
	char peer[64];

	log_limited(&d->limit, LOG_WARNING, "connection from %s refused: %s",
		    address_text(rdma_get_peer_addr(id), peer, sizeof(peer)), why);
	rdma_reject(id, NULL, 0);
	rdma_destroy_id(id);
}

static bool full(const struct donor *d)
{
	unsigned int n = 0, strangers = 0;

	for (const struct session *s = d->sessions; s; s = s->next) {
		n++;
		strangers += !s->greeted;
	}
	return n >= DONOR_SESSIONS_MAX || strangers >= DONOR_STRANGERS;
}

void session_begin(struct donor *d, struct rdma_cm_id *id, const struct wire_control *c)
{
	struct wire_challenge answer = {
		.connect = {.magic = WIRE_MAGIC, .version = WIRE_VERSION, .kind = WIRE_CONTROL}};
	struct session *s;
	int r;

	if (full(d)) {
		refuse(d, id, "too many connections");
		return;
	}
	s = calloc(1, sizeof(*s));
	if (!s) {
		refuse(d, id, "out of memory");
		return;
	}
	s->donor = d;
	s->number = ++d->last_session;
	s->id = id;
	s->heard_ns = clock_ns();
	address_text(rdma_get_peer_addr(id), s->peer, sizeof(s->peer));
	wire_random(answer.nonce, sizeof(answer.nonce));
	wire_proof(&d->key, c->nonce, answer.nonce, answer.proof);
	wire_session_key(&d->key, c->nonce, answer.nonce, &s->key);
	r = make_resources(s);
	if (!r)
		r = accept_with(id, &answer, sizeof(answer));
	if (r) {
		log_limited(&d->limit, LOG_WARNING, "connection from %s: %s", s->peer,
			    strerror(-r));
		session_free(s);
		return;
	}
	s->next = d->sessions;
	d->sessions = s;
}

static struct session *session_find(struct donor *d, uint64_t number)
{
	for (struct session *s = d->sessions; s; s = s->next)
		if (s->number == number && s->greeted && !s->dead)
			return s;
	return NULL;
}

void session_queue(struct donor *d, struct rdma_cm_id *id, const struct wire_queue *q)
{
	struct ibv_qp_init_attr attr = {
		.qp_type = IBV_QPT_RC,
		.cap = {.max_send_wr = 1, .max_recv_wr = 1, .max_send_sge = 1, .max_recv_sge = 1}};
	struct session *s = session_find(d, q->session);
	uint8_t mac[WIRE_MAC_BYTES];
	struct queue *queue;

	if (s)
		wire_queue_mac(&s->key, q, mac);
	if (!s || wire_differ(mac, q->mac, sizeof(mac)) || q->number <= s->last_queue) {
		refuse(d, id, "no such session, or not of its client");
		return;
	}
	if (s->n_queues == DONOR_QUEUES_MAX || s->id->verbs != id->verbs) {
		refuse(d, id, "too many queues, or on another device than their session");
		return;
	}
	s->last_queue = q->number;
	queue = calloc(1, sizeof(*queue));
	attr.send_cq = attr.recv_cq = s->cq;
	if (!queue || rdma_create_qp(id, s->pd, &attr)) {
		free(queue);
		refuse(d, id, "no memory for a queue");
		return;
	}
	queue->id = id;
	if (accept_with(id, NULL, 0)) {
		rdma_destroy_qp(id);
		rdma_destroy_id(id);
		free(queue);
		return;
	}
	queue->next = s->queues;
	s->queues = queue;
	s->n_queues++;
}

static void queue_free(struct queue *q)
{
	rdma_destroy_qp(q->id);
	rdma_destroy_id(q->id);
	free(q);
}

void session_disconnected(struct donor *d, struct rdma_cm_id *id)
{
	for (struct session *s = d->sessions; s; s = s->next) {
		if (s->id == id)
			s->dead = true;
		for (struct queue **at = &s->queues; *at; at = &(*at)->next) {
			struct queue *q = *at;

			if (q->id != id)
				continue;
			*at = q->next;
			s->n_queues--;
			queue_free(q);
			return;
		}
	}
}

/* ---- what a client asks for ---- */

/* From the end of a session on, its connections reach nothing; see above for the order. */
static void cut_off(struct session *s)
{
	while (s->queues) {
		struct queue *q = s->queues;

		s->queues = q->next;
		queue_free(q);
	}
	s->n_queues = 0;
	for (struct lease *l = s->donor->pool.leases; l; l = l->next) {
		if (l->owner != s)
			continue;
		pool_close(&s->donor->pool, l);
		l->owner = NULL;
		l->left_ns = clock_ns();
	}
	s->chunks = 0;
}

static struct lease *lease_of(struct session *s, const struct wire_message *m)
{
	struct wire_lease name;
	struct lease *l;

	if (m->header.body_bytes < sizeof(name))
		return NULL;
	memcpy(&name, m->rest, sizeof(name));
	l = pool_find(&s->donor->pool, &name);
	return l && l->owner == s ? l : NULL;
}

static void list(struct session *s, struct lease *l, uint32_t from, struct wire_message *out)
{
	uint32_t n = 0;

	for (; from < l->n && n < WIRE_CHUNKS_MAX; from++, n++)
		pool_describe(&s->donor->pool, l, from, (struct wire_chunk *)out->rest + n);
	out->header.count = n;
	out->header.body_bytes = (uint16_t)(n * sizeof(struct wire_chunk));
}

static int claim(struct session *s, const struct wire_message *in, struct wire_message *out)
{
	struct donor *d = s->donor;
	uint64_t from = in->header.arg;
	struct wire_lease name;
	struct lease *l;
	int made = 0;

	if (in->header.body_bytes != sizeof(name))
		return -EINVAL;
	memcpy(&name, in->rest, sizeof(name));
	l = pool_find(&d->pool, &name);
	if (!l && !from) {
		l = pool_lease(&d->pool, &name);
		made = 1;
		if (l)
			l->owner = s;
	}
	if (!l)
		return from ? -EINVAL : -ENOMEM;
	if (l->owner != s) {
		/* The client is back, or its successor: whoever had it is not there any more, or
		 * must not be. */
		if (l->owner) {
			l->owner->dead = true;
			cut_off(l->owner);
		}
		l->owner = s;
		s->chunks += l->n;
	}
	/* Shown to the new session part by part, as it asks. */
	for (uint64_t i = from; i < l->n && i < from + WIRE_CHUNKS_MAX; i++) {
		int r = pool_open(&d->pool, l, (uint32_t)i, s->pd);

		if (r)
			return r;
	}
	if (from < l->n)
		list(s, l, (uint32_t)from, out);
	return made;
}

static int get(struct session *s, const struct wire_message *in, struct wire_message *out)
{
	struct lease *l = lease_of(s, in);
	uint32_t had;

	if (!l)
		return -ENOENT;
	had = l->n;
	for (uint64_t i = 0; i < in->header.arg && i < WIRE_CHUNKS_MAX; i++)
		if (pool_take(&s->donor->pool, l, s->pd))
			break;
	s->chunks += l->n - had;
	list(s, l, had, out);
	return l->n == had ? -ENOSPC : 0;
}

static int put(struct session *s, const struct wire_message *in)
{
	struct lease *l = lease_of(s, in);
	const uint8_t *numbers = in->rest + sizeof(struct wire_lease);
	int r = 0;

	if (!l)
		return -ENOENT;
	if (in->header.body_bytes !=
	    sizeof(struct wire_lease) + (uint64_t)in->header.count * sizeof(uint32_t))
		return -EINVAL;
	for (uint32_t i = 0; i < in->header.count && !r; i++) {
		uint32_t number;

		memcpy(&number, numbers + i * sizeof(number), sizeof(number));
		r = pool_put(&s->donor->pool, l, number);
		s->chunks -= !r;
	}
	return r;
}

static int drop(struct session *s, const struct wire_message *in)
{
	struct lease *l = lease_of(s, in);

	if (!l)
		return -ENOENT;
	s->chunks -= l->n;
	pool_drop(&s->donor->pool, l);
	return 0;
}

static int hello(struct session *s, const struct wire_message *in, struct wire_message *out)
{
	struct wire_welcome w = {
		.session = s->number, .boot = s->donor->boot, .chunk_bytes = WIRE_CHUNK_BYTES};

	if (in->header.body_bytes != sizeof(struct wire_hello))
		return -EINVAL;
	memcpy(s->name, in->rest, sizeof(s->name));
	s->name[sizeof(s->name) - 1] = '\0';
	for (char *p = s->name; *p; p++)
		if (*p < ' ' || *p > '~' || *p == '"' || *p == '\\')
			*p = '?';
	s->greeted = true;
	memcpy(out->rest, &w, sizeof(w));
	out->header.body_bytes = sizeof(w);
	log_info("client %s (%s) is here", s->name, s->peer);
	return 0;
}

static int ping(struct session *s, struct wire_message *out)
{
	const struct pool *p = &s->donor->pool;
	uint64_t excess = p->lent > p->limit ? p->lent - p->limit : 0, all = 0;
	struct wire_pong pong = {.free_chunks = p->lent < p->limit ? p->limit - p->lent : 0};

	/* From each that is here in proportion; what is held for others cannot be asked for. */
	for (const struct session *other = s->donor->sessions; other; other = other->next)
		all += other->chunks;
	excess = excess < all ? excess : all;
	if (excess)
		pong.recall = (excess * s->chunks + all - 1) / all;
	memcpy(out->rest, &pong, sizeof(pong));
	out->header.body_bytes = sizeof(pong);
	return 0;
}

static int answer(struct session *s, const struct wire_message *in, struct wire_message *out)
{
	if (in->header.type != WIRE_HELLO && !s->greeted)
		return -EPERM;
	switch (in->header.type) {
	case WIRE_HELLO:
		return hello(s, in, out);
	case WIRE_CLAIM:
		return claim(s, in, out);
	case WIRE_GET:
		return get(s, in, out);
	case WIRE_PUT:
		return put(s, in);
	case WIRE_DROP:
		return drop(s, in);
	case WIRE_PING:
		return ping(s, out);
	default:
		return -ENOTSUP;
	}
}

static void received(struct session *s, uint32_t i, uint32_t bytes)
{
	const struct wire_message *in = &s->buffers[i];
	struct wire_message *out = &s->buffers[SEND_AT];
	struct ibv_sge sge = {.addr = (uintptr_t)out, .lkey = s->mr->lkey};
	struct ibv_send_wr wr = {.wr_id = SEND_AT,
				 .sg_list = &sge,
				 .num_sge = 1,
				 .opcode = IBV_WR_SEND,
				 .send_flags = IBV_SEND_SIGNALED},
			   *bad;

	if (wire_message_open(&s->key, WIRE_TO_DONOR, in, bytes) ||
	    in->header.number != s->last_message + 1) {
		log_limited(&s->donor->limit, LOG_WARNING,
			    "%s: a message that does not have our key", s->peer);
		s->dead = true;
		return;
	}
	s->last_message++;
	s->heard_ns = clock_ns();
	memset(&out->header, 0, sizeof(out->header));
	out->header.status = answer(s, in, out);
	out->header.type = in->header.type;
	out->header.number = in->header.number;
	sge.length = wire_message_close(&s->key, WIRE_TO_CLIENT, out);
	post_receive(s, i);
	if (ibv_post_send(s->id->qp, &wr, &bad))
		s->dead = true;
}

void session_ready(struct session *s)
{
	struct ibv_cq *cq;
	struct ibv_wc wc;
	void *context;

	if (ibv_get_cq_event(s->channel, &cq, &context) == 0)
		ibv_ack_cq_events(cq, 1);
	if (ibv_req_notify_cq(s->cq, 0))
		s->dead = true;
	while (!s->dead && ibv_poll_cq(s->cq, 1, &wc) > 0) {
		/* Queues that were cut off flush what they never had; the control one counts. */
		if (wc.qp_num != s->id->qp->qp_num)
			continue;
		if (wc.status != IBV_WC_SUCCESS)
			s->dead = true;
		else if (wc.opcode == IBV_WC_RECV && wc.wr_id < RECEIVES)
			received(s, (uint32_t)wc.wr_id, wc.byte_len);
	}
}

/* ---- the end ---- */

static struct session *end(struct session *s)
{
	cut_off(s);
	if (s->greeted)
		log_info("client %s (%s) is gone", s->name, s->peer);
	return session_free(s);
}

void session_sweep(struct donor *d)
{
	uint64_t now = clock_ns(), hold = d->options->hold_seconds * NS_PER_S;
	struct lease *next;

	for (struct session **at = &d->sessions; *at;) {
		struct session *s = *at;
		uint64_t patience = (s->greeted ? SILENT_SECONDS : HELLO_SECONDS) * NS_PER_S;

		if (s->dead || now > s->heard_ns + patience)
			*at = end(s);
		else
			at = &s->next;
	}
	for (struct lease *l = d->pool.leases; l; l = next) {
		next = l->next;
		if (!l->owner && now > l->left_ns + hold) {
			log_warning("%u MiB are free again: their client did not come back",
				    l->n * (WIRE_CHUNK_BYTES >> 20));
			pool_drop(&d->pool, l);
		}
	}
}

void session_end_all(struct donor *d)
{
	while (d->sessions)
		d->sessions = end(d->sessions);
}
