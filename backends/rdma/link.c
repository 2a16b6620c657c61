/* SPDX-License-Identifier: BSD-3-Clause */
/* link.c: a donor, and the thread that looks after the connection to it. */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "rdma.h"

/*
 * Theory of operation
 *
 * The thread connects, proves the key and has it proved, claims the leases of all spaces, connects
 * a queue for every channel, and then serves: new spaces and channels, chunks that are wanted or go
 * back, a ping every second. All this may wait for the network; nobody waits for this thread.
 *
 * Whatever goes wrong with a donor (a completion with an error, a disconnect, a wrong answer, a
 * ping without one) ends the whole session: the shares are closed, the queues detached, their I/O
 * given back to be done again, and it all begins anew. So there is one way back from everything,
 * and a chunk's address and key are good exactly as long as its share is open and a queue attached.
 *
 * A donor whose life is another one than before does not know our leases: what was there is lost,
 * which the claim tells.
 */

#define PING_MS	     1000
#define ANSWER_MS    10000
#define QUIET_MS     2000 /* the same when we are about to hand over: it may be out of reach */
#define RETRY_MS     500
#define RECEIVES     4u
#define SEND_AT	     RECEIVES
#define MESSAGES     (RECEIVES + 1)
#define CHUNKS_ASKED 2u
#define PUTS	     64u

void link_kick(struct link *l)
{
	eventfd_write(l->wake_fd, 1);
}

void link_break(struct link *l)
{
	if (!atomic_exchange(&l->broken, true))
		link_kick(l);
}

static void say(struct link *l, int level, const char *what, int r)
{
	const struct ebb_backend_host *host = l->inst->host;

	host->log(host->ctx, level, "donor %s: %s%s%s", l->name, what, r ? ": " : "",
		  r ? strerror(-r) : "");
}

/* ---- messages ---- */

static int post_receive(struct link *l, uint32_t i)
{
	struct ibv_sge sge = {.addr = (uintptr_t)&l->buffers[i],
			      .length = sizeof(l->buffers[i]),
			      .lkey = l->mr->lkey};
	struct ibv_recv_wr wr = {.wr_id = i, .sg_list = &sge, .num_sge = 1}, *bad;

	return ibv_post_recv(l->id->qp, &wr, &bad) ? -EIO : 0;
}

/* Waits for the answer to the message that was sent last. Its buffer's index or -errno. */
static int answer(struct link *l)
{
	uint64_t end = now_ns() + ANSWER_MS * NS_PER_MS;

	for (;;) {
		struct pollfd p[] = {{.fd = l->comp->fd, .events = POLLIN},
				     {.fd = l->events->fd, .events = POLLIN}};
		struct ibv_cq *cq;
		struct ibv_wc wc;
		void *context;
		int n;

		while ((n = ibv_poll_cq(l->cq, 1, &wc)) > 0) {
			if (wc.status != IBV_WC_SUCCESS)
				return -EPIPE;
			if (wc.opcode != IBV_WC_RECV)
				continue;
			if (wire_message_open(&l->key, WIRE_TO_CLIENT, &l->buffers[wc.wr_id],
					      wc.byte_len) ||
			    l->buffers[wc.wr_id].header.number != l->last_message)
				return -EBADMSG;
			return (int)wc.wr_id;
		}
		link_events(l);
		if (n < 0 || atomic_load(&l->broken))
			return -EPIPE;
		if (atomic_load(&l->inst->quiet) && end > now_ns() + QUIET_MS * NS_PER_MS)
			end = now_ns() + QUIET_MS * NS_PER_MS;
		if (now_ns() >= end)
			return -ETIMEDOUT;
		if (poll(p, 2, 100) > 0 && ibv_get_cq_event(l->comp, &cq, &context) == 0) {
			ibv_ack_cq_events(cq, 1);
			if (ibv_req_notify_cq(l->cq, 0))
				return -EIO;
		}
	}
}

static struct wire_message *request(struct link *l, enum wire_type type)
{
	struct wire_message *m = &l->buffers[SEND_AT];

	memset(&m->header, 0, sizeof(m->header));
	m->header.type = type;
	return m;
}

/* Sends the request; the answer is in *reply until the next call. Its status, or -errno. */
static int call(struct link *l, struct wire_message **reply)
{
	struct wire_message *m = &l->buffers[SEND_AT];
	struct ibv_sge sge = {.addr = (uintptr_t)m, .lkey = l->mr->lkey};
	struct ibv_send_wr wr = {.wr_id = SEND_AT,
				 .sg_list = &sge,
				 .num_sge = 1,
				 .opcode = IBV_WR_SEND,
				 .send_flags = IBV_SEND_SIGNALED},
			   *bad;
	static const size_t room = WIRE_BODY_MAX;
	int i, r;

	m->header.number = ++l->last_message;
	sge.length = wire_message_close(&l->key, WIRE_TO_DONOR, m);
	r = ibv_post_send(l->id->qp, &wr, &bad) ? -EPIPE : 0;
	i = r ? r : answer(l);
	if (i < 0) {
		link_break(l);
		return i;
	}
	*reply = &l->buffers[i];
	/* The other buffers take the next ones; this one is given back right away, since one
	 * request at a time means that nothing comes into it before the next. */
	r = post_receive(l, (uint32_t)i);
	if (!r && (*reply)->header.count > room / sizeof(uint32_t))
		r = -EBADMSG;
	if (r) {
		link_break(l);
		return r;
	}
	return (*reply)->header.status;
}

static void put_lease(struct wire_message *m, const struct wire_lease *lease)
{
	memcpy(m->rest, lease, sizeof(*lease));
	m->header.body_bytes = sizeof(*lease);
}

static uint32_t chunks_in(const struct wire_message *m)
{
	return m->header.count * sizeof(struct wire_chunk) == m->header.body_bytes ? m->header.count
										   : 0;
}

/* ---- shares ---- */

static const struct wire_lease *lease_of(const struct space *sp, unsigned int share)
{
	return &sp->header->donors[share].lease;
}

static int give_back(struct link *l, const struct wire_lease *lease, const uint32_t *numbers,
		     uint32_t n)
{
	struct wire_message *m = request(l, WIRE_PUT), *reply;

	put_lease(m, lease);
	memcpy(m->rest + m->header.body_bytes, numbers, n * sizeof(*numbers));
	m->header.body_bytes = (uint16_t)(m->header.body_bytes + n * sizeof(*numbers));
	m->header.count = n;
	return call(l, &reply);
}

/* All that the donor lends under this lease. *list is the caller's to free. */
static int claim_list(struct link *l, const struct wire_lease *lease, struct wire_chunk **list,
		      uint32_t *n)
{
	*list = NULL;
	*n = 0;
	for (;;) {
		struct wire_message *m = request(l, WIRE_CLAIM), *reply;
		struct wire_chunk *grown;
		uint32_t more;
		int r;

		put_lease(m, lease);
		m->header.arg = *n;
		r = call(l, &reply);
		if (r < 0)
			return r;
		more = chunks_in(reply);
		if (!more)
			return 0;
		grown = realloc(*list, (*n + more) * sizeof(**list));
		if (!grown)
			return -ENOMEM;
		*list = grown;
		memcpy(*list + *n, reply->rest, more * sizeof(**list));
		*n += more;
	}
}

static int claim(struct link *l, struct space *sp, unsigned int share)
{
	const struct wire_lease *lease = lease_of(sp, share);
	struct wire_chunk *list;
	uint32_t n, n_strange = 0, *strange = NULL;
	int r = claim_list(l, lease, &list, &n);

	if (!r && n) {
		strange = malloc(n * sizeof(*strange));
		r = strange ? 0 : -ENOMEM;
	}
	if (!r) {
		uint64_t lost = atomic_load(&l->inst->count[COUNT_CHUNKS_LOST]);

		n_strange = share_claimed(sp, share, list, n, strange);
		if (n_strange == NONE)
			r = -ENOMEM;
		if (atomic_load(&l->inst->count[COUNT_CHUNKS_LOST]) != lost)
			say(l, 0, "it does not have any more what it had lent to us", 0);
	}
	/* Before the first I/O an old daemon may yet go on (resume()), and know them. */
	if (!atomic_load(&sp->active))
		n_strange = 0;
	for (uint32_t i = 0; !r && strange && i < n_strange; i += PUTS)
		r = give_back(l, lease, strange + i, n_strange - i < PUTS ? n_strange - i : PUTS);
	free(list);
	free(strange);
	if (!r)
		atomic_store(&sp->shares[share].open, true);
	return r;
}

static int get_more(struct link *l, struct space *sp, unsigned int share)
{
	struct wire_message *m = request(l, WIRE_GET), *reply;
	struct wire_chunk list[CHUNKS_ASKED];
	uint32_t n = 0, noted, strange[CHUNKS_ASKED];
	int r;

	put_lease(m, lease_of(sp, share));
	m->header.arg = CHUNKS_ASKED;
	r = call(l, &reply);
	if (r < 0 && r != -ENOSPC)
		return r;
	if (!r) {
		n = chunks_in(reply);
		n = n < CHUNKS_ASKED ? n : CHUNKS_ASKED;
		memcpy(list, reply->rest, n * sizeof(*list));
	}
	noted = share_given(sp, share, list, n);
	channels_kick(l->inst);
	for (uint32_t i = noted; i < n; i++)
		strange[i - noted] = list[i].number;
	return noted < n ? give_back(l, lease_of(sp, share), strange, n - noted) : 0;
}

static int put_some(struct link *l, struct space *sp, unsigned int share)
{
	uint32_t rows[PUTS], numbers[PUTS], n = share_leaving(sp, share, rows, numbers, PUTS);
	int r = n ? give_back(l, lease_of(sp, share), numbers, n) : 0;

	/* Not acknowledged: the next claim tells whether they are still ours. */
	if (!r)
		share_left(sp, rows, n);
	return r;
}

static int serve_space(struct link *l, struct space *sp)
{
	int r = 0;

	for (unsigned int i = 0; i < DONORS_MAX && !r; i++) {
		if (sp->shares[i].link != l)
			continue;
		if (!atomic_load(&sp->shares[i].open))
			r = claim(l, sp, i);
		if (!r && share_wants(sp, i))
			r = get_more(l, sp, i);
		if (!r)
			r = put_some(l, sp, i);
	}
	return r;
}

static int serve_spaces(struct link *l)
{
	struct space *sp = NULL;
	int r = 0;

	while ((sp = space_next(l->inst, sp))) {
		r = serve_space(l, sp);
		if (r) {
			space_put(sp);
			break;
		}
	}
	return r;
}

/* ---- leases that nobody needs ---- */

void link_drop(struct link *l, const struct wire_lease *lease)
{
	pthread_mutex_lock(&l->drops_lock);
	if (l->n_drops == l->drops_room) {
		uint32_t room = l->drops_room ? l->drops_room * 2 : 8;
		struct wire_lease *grown = realloc(l->drops, room * sizeof(*grown));

		if (grown) {
			l->drops = grown;
			l->drops_room = room;
		}
	}
	/* Else it goes back by itself, when the donor has held it long enough. */
	if (l->n_drops < l->drops_room)
		l->drops[l->n_drops++] = *lease;
	pthread_mutex_unlock(&l->drops_lock);
	link_kick(l);
}

static bool next_drop(struct link *l, struct wire_lease *out)
{
	bool any;

	pthread_mutex_lock(&l->drops_lock);
	any = l->n_drops;
	if (any)
		*out = l->drops[--l->n_drops];
	pthread_mutex_unlock(&l->drops_lock);
	return any;
}

static int serve_drops(struct link *l)
{
	struct wire_lease lease;

	while (next_drop(l, &lease)) {
		struct wire_message *reply;
		int r;

		/* It may be of a session before: then it is claimed first. */
		put_lease(request(l, WIRE_CLAIM), &lease);
		r = call(l, &reply);
		if (r >= 0) {
			put_lease(request(l, WIRE_DROP), &lease);
			r = call(l, &reply);
		}
		if (r < 0 && atomic_load(&l->broken)) {
			link_drop(l, &lease);
			return r;
		}
	}
	return 0;
}

/* ---- a session ---- */

/* The id last: with it the device may be closed. */
static void disconnect(struct link *l)
{
	if (l->id && l->id->qp) {
		rdma_disconnect(l->id);
		rdma_destroy_qp(l->id);
	}
	if (l->mr)
		ibv_dereg_mr(l->mr);
	if (l->cq)
		ibv_destroy_cq(l->cq);
	if (l->comp)
		ibv_destroy_comp_channel(l->comp);
	if (l->pd)
		ibv_dealloc_pd(l->pd);
	if (l->id)
		rdma_destroy_id(l->id);
	l->id = NULL;
	l->mr = NULL;
	l->cq = NULL;
	l->comp = NULL;
	l->pd = NULL;
	explicit_bzero(&l->key, sizeof(l->key));
}

static int make_control(struct link *l)
{
	struct ibv_qp_init_attr attr = {.qp_type = IBV_QPT_RC,
					.cap = {.max_send_wr = 4,
						.max_recv_wr = RECEIVES + 1,
						.max_send_sge = 1,
						.max_recv_sge = 1}};
	int r = resolve_id(l, &l->id);

	if (r)
		return r;
	l->pd = ibv_alloc_pd(l->id->verbs);
	l->comp = ibv_create_comp_channel(l->id->verbs);
	if (!l->pd || !l->comp)
		return -ENOMEM;
	fcntl(l->comp->fd, F_SETFL, fcntl(l->comp->fd, F_GETFL) | O_NONBLOCK);
	l->cq = ibv_create_cq(l->id->verbs, 16, NULL, l->comp, 0);
	l->mr = ibv_reg_mr(l->pd, l->buffers, MESSAGES * sizeof(*l->buffers),
			   IBV_ACCESS_LOCAL_WRITE);
	if (!l->cq || !l->mr || ibv_req_notify_cq(l->cq, 0))
		return -ENOMEM;
	attr.send_cq = attr.recv_cq = l->cq;
	if (rdma_create_qp(l->id, l->pd, &attr))
		return -errno;
	for (uint32_t i = 0; i < RECEIVES && !r; i++)
		r = post_receive(l, i);
	return r;
}

static int greet(struct link *l)
{
	struct wire_message *m = request(l, WIRE_HELLO), *reply;
	struct wire_welcome w;
	int r;

	m->header.body_bytes = sizeof(struct wire_hello);
	memset(m->rest, 0, sizeof(struct wire_hello));
	gethostname((char *)m->rest, WIRE_NAME_BYTES - 1);
	r = call(l, &reply);
	if (r)
		return r;
	if (reply->header.body_bytes != sizeof(w))
		return -EPROTO;
	memcpy(&w, reply->rest, sizeof(w));
	if (w.chunk_bytes != WIRE_CHUNK_BYTES)
		return -EPROTO;
	l->session = w.session;
	return 0;
}

static int connect_control(struct link *l)
{
	struct wire_control hello = {
		.connect = {.magic = WIRE_MAGIC, .version = WIRE_VERSION, .kind = WIRE_CONTROL}};
	const struct wire_key *key = &l->inst->key;
	struct wire_challenge challenge = {0};
	uint8_t proof[WIRE_MAC_BYTES];
	int r = make_control(l);

	if (r)
		return r;
	wire_random(hello.nonce, sizeof(hello.nonce));
	r = connect_id(l, l->id, &hello, sizeof(hello), &challenge, sizeof(challenge));
	if (r)
		return r;
	wire_proof(key, hello.nonce, challenge.nonce, proof);
	if (challenge.connect.magic != WIRE_MAGIC ||
	    wire_differ(proof, challenge.proof, sizeof(proof)))
		return -EKEYREJECTED;
	wire_session_key(key, hello.nonce, challenge.nonce, &l->key);
	l->last_message = 0;
	l->last_queue = 0;
	return greet(l);
}

static int serve_channels(struct link *l)
{
	struct channel *ch = NULL;

	while ((ch = channel_next(l->inst, ch))) {
		struct queue *q;
		bool has;

		pthread_mutex_lock(&ch->lock);
		has = ch->queues[l->index] || ch->closed;
		pthread_mutex_unlock(&ch->lock);
		if (has)
			continue;
		/* One that does not come about is tried again with the next ping. */
		q = queue_new(l, ch);
		if (q && !channel_attach(ch, q))
			queue_free(q);
		if (atomic_load(&l->broken)) {
			channel_put(ch);
			return -EPIPE;
		}
	}
	return 0;
}

static int ping(struct link *l)
{
	struct wire_message *reply;
	struct wire_pong pong;
	int r;

	request(l, WIRE_PING);
	r = call(l, &reply);
	if (r || reply->header.body_bytes != sizeof(pong))
		return r ? r : -EPROTO;
	memcpy(&pong, reply->rest, sizeof(pong));
	if (pong.recall && !atomic_load(&l->recall))
		say(l, 2, "it wants memory back", 0);
	atomic_store(&l->recall, pong.recall);
	atomic_store(&l->room, pong.free_chunks);
	return 0;
}

static int serve(struct link *l)
{
	uint64_t next_ping = 0;
	int r = 0;

	while (!r && !atomic_load(&l->broken)) {
		struct pollfd p[] = {{.fd = l->wake_fd, .events = POLLIN},
				     {.fd = l->events->fd, .events = POLLIN}};
		uint64_t now = now_ns();
		eventfd_t ignored;

		eventfd_read(l->wake_fd, &ignored);
		if (atomic_load(&l->inst->stop) || atomic_load(&l->inst->quiet))
			return 0;
		r = serve_drops(l);
		if (!r)
			r = serve_spaces(l);
		if (!r)
			r = serve_channels(l);
		if (!r && now >= next_ping) {
			r = ping(l);
			next_ping = now + PING_MS * NS_PER_MS;
		}
		now = now_ns();
		if (!r && now < next_ping)
			poll(p, 2, (int)((next_ping - now) / NS_PER_MS) + 1);
		link_events(l);
	}
	return r ? r : -EPIPE;
}

/* The end of a session, whatever ended it; the order is that of the theory above. */
static void leave(struct link *l)
{
	struct space *sp = NULL;

	atomic_store(&l->up, false);
	atomic_store(&l->recall, 0);
	while ((sp = space_next(l->inst, sp)))
		for (unsigned int i = 0; i < DONORS_MAX; i++)
			if (sp->shares[i].link == l)
				atomic_store(&sp->shares[i].open, false);
	channels_detach(l);
	disconnect(l);
	channels_kick(l->inst);
}

static void tell(struct link *l, int r)
{
	if (l->complained)
		return;
	l->complained = true;
	if (r == -EKEYREJECTED)
		say(l, 0, "it does not have our key (or is no donor)", 0);
	else
		say(l, 1, "cannot be reached", r);
}

static void rest(struct link *l)
{
	struct pollfd p = {.fd = l->wake_fd, .events = POLLIN};
	uint64_t end = now_ns() + RETRY_MS * NS_PER_MS;
	eventfd_t ignored;

	while (!atomic_load(&l->inst->stop) && now_ns() < end) {
		poll(&p, 1, 100);
		eventfd_read(l->wake_fd, &ignored);
		poll(NULL, 0, 20); /* kicks may come in numbers, and there is nothing to do */
	}
}

static void *link_main(void *arg)
{
	struct link *l = arg;

	while (!atomic_load(&l->inst->stop)) {
		int r;

		if (atomic_load(&l->inst->quiet)) {
			atomic_store(&l->idle, true);
			rest(l);
			continue;
		}
		atomic_store(&l->idle, false);
		atomic_store(&l->broken, false);
		r = connect_control(l);
		if (!r) {
			atomic_store(&l->up, true);
			atomic_store(&l->hopeful, true);
			l->complained = false;
			count(l->inst, COUNT_CONNECTED, 1);
			say(l, 2, "connected", 0);
		}
		l->error = r;
		atomic_store(&l->tried, true);
		if (!r) {
			r = serve(l);
			atomic_store(&l->down_ns, now_ns());
			if (r) {
				count(l->inst, COUNT_BROKEN, 1);
				say(l, 1, "connection lost", r);
			} else if (!atomic_load(&l->broken)) {
				serve_drops(l);
			}
		} else {
			atomic_store(&l->hopeful, false);
			tell(l, r);
		}
		leave(l);
		if (!atomic_load(&l->hopeful))
			rest(l);
	}
	return NULL;
}

/* ---- links ---- */

/* host:port, [host]:port. */
static int parse_name(struct link *l, const char *name)
{
	const char *colon = strrchr(name, ':');
	size_t len;

	if (!colon || strlen(name) >= sizeof(l->name) || strlen(colon + 1) >= sizeof(l->port) ||
	    !colon[1])
		return -EINVAL;
	len = (size_t)(colon - name);
	if (len >= 2 && name[0] == '[' && name[len - 1] == ']') {
		name++;
		len -= 2;
	}
	if (!len)
		return -EINVAL;
	memcpy(l->host, name, len);
	strcpy(l->port, colon + 1);
	return 0;
}

void link_free(struct link *l)
{
	if (!l)
		return;
	if (l->runs) {
		link_kick(l);
		pthread_join(l->thread, NULL);
	}
	if (l->events)
		rdma_destroy_event_channel(l->events);
	if (l->wake_fd >= 0)
		close(l->wake_fd);
	pthread_mutex_destroy(&l->drops_lock);
	free(l->drops);
	free(l->buffers);
	free(l);
}

int link_get(struct rdma *inst, const char *name, bool placing, struct link **out)
{
	struct link *l;
	int r;

	for (unsigned int i = 0; i < inst->n_links; i++) {
		if (strcmp(inst->links[i]->name, name) == 0) {
			*out = inst->links[i];
			return 0;
		}
	}
	if (inst->n_links == DONORS_MAX)
		return -ENOSPC;
	l = calloc(1, sizeof(*l));
	if (!l)
		return -ENOMEM;
	l->inst = inst;
	l->index = inst->n_links;
	l->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	l->placing = placing;
	l->hopeful = true;
	l->down_ns = now_ns();
	pthread_mutex_init(&l->drops_lock, NULL);
	l->buffers = calloc(MESSAGES, sizeof(*l->buffers));
	l->events = rdma_create_event_channel();
	r = parse_name(l, name);
	if (!r && !l->events)
		r = -ENODEV;
	if (!r && (!l->buffers || l->wake_fd < 0))
		r = -ENOMEM;
	if (!r) {
		strcpy(l->name, name);
		fcntl(l->events->fd, F_SETFL, fcntl(l->events->fd, F_GETFL) | O_NONBLOCK);
		/* Counted first: the thread may look at channels at once. */
		inst->links[inst->n_links++] = l;
		r = -pthread_create(&l->thread, NULL, link_main, l);
		l->runs = !r;
		if (r)
			inst->n_links--;
	}
	if (r) {
		link_free(l);
		return r;
	}
	*out = l;
	return 0;
}
