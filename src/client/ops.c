/* SPDX-License-Identifier: BSD-3-Clause */
/* ops.c: messages to the daemon, from whichever thread, answered in order. */
#include <errno.h>

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
	helper_wake(c);
	return op;
}

struct region *op_region(struct client *c, const struct op *op)
{
	struct region *r = &c->regions[op->region];

	if (op->kind == OP_DETACH || r->state == REGION_FREE || r->serial != op->serial)
		return NULL;
	return r;
}

int op_wait(struct client *c, struct op *op, unsigned int ms)
{
	uint64_t until = ms ? clock_ns() + ms * NS_PER_MS : 0;
	int r = 0;

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
