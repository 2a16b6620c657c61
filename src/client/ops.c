/* SPDX-License-Identifier: BSD-3-Clause */
/* ops.c: messages to the daemon, from whichever thread, answered in order. */
#include <errno.h>
#include <sys/socket.h>

#include "base/clock.h"
#include "client/client.h"

int client_wait(struct client *c, uint64_t until_ns)
{
	struct timespec until = {.tv_sec = (time_t)(until_ns / NS_PER_S),
				 .tv_nsec = (long)(until_ns % NS_PER_S)};

	if (!until_ns)
		return -pthread_cond_wait(&c->changed, &c->lock);
	return -pthread_cond_timedwait(&c->changed, &c->lock, &until);
}

struct op *op_submit(struct client *c, enum op_kind kind, unsigned int region)
{
	struct op *op = c->ops;

	if (c->link != LINK_ATTACHED)
		return NULL;
	while (op < c->ops + CLIENT_OPS_MAX && op->state != OP_FREE)
		op++;
	if (op == c->ops + CLIENT_OPS_MAX)
		return NULL;
	*op = (struct op){
		.kind = kind,
		.state = OP_QUEUED,
		.seq = ++c->next_seq,
		.region = region,
		.serial = c->regions[region].serial,
	};
	return op;
}

struct region *op_region(struct client *c, const struct op *op)
{
	struct region *r = &c->regions[op->region];

	if (op->kind == OP_DETACH || r->state == REGION_FREE || r->serial != op->serial)
		return NULL;
	return r;
}

/*
 * The common case is that nothing is in the way: then the waiting thread sends its message itself,
 * which saves a hand-over to the helper (a guest that inflates its balloon discards page by page).
 */
static bool send_now(struct client *c, struct op *op)
{
	char line[512];
	int fds[1], n_fds, len;

	if (c->sending || c->link != LINK_ATTACHED || op != op_first(c, OP_QUEUED) ||
	    (op->kind != OP_DETACH && !op_region(c, op)))
		return false;
	len = message_op(c, op, line, sizeof(line) - 1, fds, &n_fds);
	if (len < 0 || n_fds)
		return false;
	line[len++] = '\n';
	if (send(c->sock, line, (size_t)len, MSG_DONTWAIT | MSG_NOSIGNAL) != len)
		return false;
	op->state = OP_SENT;
	return true;
}

void op_start(struct client *c, struct op *op)
{
	if (op->state == OP_QUEUED && !send_now(c, op))
		helper_wake(c);
}

int op_wait(struct client *c, struct op *op, unsigned int ms)
{
	uint64_t until = ms ? clock_ns() + ms * NS_PER_MS : 0;
	int r = 0;

	op_start(c, op);
	while (op->state != OP_DONE && r != -ETIMEDOUT)
		r = client_wait(c, until);
	if (op->state == OP_DONE) {
		op->state = OP_FREE;
		return op->result;
	}
	/* Not sent: take it back. Sent: the answer, when it comes, is nobody's. */
	if (op->state == OP_QUEUED)
		op->state = OP_FREE;
	else
		op->unwatched = true;
	return -ETIMEDOUT;
}

struct op *op_first(struct client *c, enum op_state state)
{
	struct op *first = NULL;

	for (struct op *op = c->ops; op < c->ops + CLIENT_OPS_MAX; op++)
		if (op->state == state && (!first || op->seq < first->seq))
			first = op;
	return first;
}

void op_done(struct client *c, struct op *op, int result)
{
	op->result = result;
	op->state = op->unwatched ? OP_FREE : OP_DONE;
	pthread_cond_broadcast(&c->changed);
}

void op_fail_all(struct client *c, int result)
{
	for (struct op *op = c->ops; op < c->ops + CLIENT_OPS_MAX; op++)
		if (op->state == OP_QUEUED || op->state == OP_SENT)
			op_done(c, op, result);
}
