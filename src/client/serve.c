/* SPDX-License-Identifier: BSD-3-Clause */
/* serve.c: what goes to the daemon and what comes from it, once attached. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "client/link.h"
#include "client/real.h"

/*
 * A daemon that does not know "share" looks for processes that map the RAM without being attached
 * from time to time. Pinned for long enough, RAM is not evicted until whoever got its descriptor
 * has mapped it and has been seen, or has attached.
 */
#define PIN_FOR_SHARE_NS (30 * NS_PER_S)

static void finish_op(struct client *c, struct op *op, const struct answer *a)
{
	struct region *r = op_region(c, op);
	int result = a->result;

	switch (op->kind) {
	case OP_ADD:
		if (!r)
			break;
		if (!result) {
			offer_taken(c, op->region);
		} else if (r->state == REGION_OFFERED) {
			say("%s: not managed: %s", r->id, a->desc);
			r->state = REGION_REFUSED;
		}
		break;
	case OP_REMOVE:
		/* The waiter says what it becomes; without one it was not unmapped after all. */
		if (r && r->state == REGION_LEAVING && op->unwatched)
			r->state = result ? REGION_MANAGED : REGION_NEW;
		break;
	case OP_SHARE:
		if (result == -EOPNOTSUPP) {
			c->no_share = true;
			if (r && op->unwatched)
				offer_taken(c, op->region);
		}
		break;
	case OP_DISCARD:
		if (result && r)
			say("%s: discard failed: %s", r->id, a->desc);
		break;
	case OP_PIN:
		if (!result && r) {
			r->pins++;
			r->unpin_ns = clock_ns() + PIN_FOR_SHARE_NS;
		}
		break;
	case OP_UNPIN:
	case OP_DETACH:
		break;
	}
	op_done(c, op, result);
}

/* The daemon let everything go because we asked. With the lock held. */
static void detached(struct client *c)
{
	op_fail_all(c, -ENOTCONN);
	link_let_go(c);
}

/* True when the connection is to be closed. */
static bool take_answer(struct client *c, struct json_span line)
{
	struct answer a;
	struct op *op;
	bool gone = false, dismissed = false;

	link_read_answer(line, &a);
	pthread_mutex_lock(&c->lock);
	op = op_first(c, OP_SENT);
	if (op) {
		/* An operator can detach the VM; we hear of it when we next ask for something. */
		dismissed = a.result == -ENOENT && !link_registered(c);
		gone = op->kind == OP_DETACH && (!a.result || dismissed);
		finish_op(c, op, &a);
		if (gone)
			detached(c);
	}
	pthread_mutex_unlock(&c->lock);
	if (gone) {
		link_close(c);
		/* A fork or exec follows; a child that maps the RAM must be seen first. */
		c->retry_ns = clock_ns() + BACKOFF_LAST_NS;
	} else if (dismissed) {
		link_lost(c);
	}
	return !op;
}

int serve_answer(struct client *c, uint64_t id, int result)
{
	struct json_text t = {.buf = link_io.message, .cap = LINK_MESSAGE_BYTES - 1};

	if (!result)
		json_add(&t, "{\"return\":{}");
	else
		json_add(&t, "{\"error\":{\"class\":\"%s\",\"desc\":\"%s\"}",
			 result == -ENOSYS ? "CommandNotFound" : "GenericError", strerror(-result));
	json_add(&t, ",\"id\":%llu}", (unsigned long long)id);
	return link_send(c, t.len, NULL, 0);
}

static int take_request(struct client *c, struct json_span line, struct json_span name)
{
	struct json_span value;
	uint64_t id = 0;
	char command[32];
	int r;

	if (json_string(name, command, sizeof(command)) || !json_member(line, "id", &value) ||
	    json_u64(value, &id))
		return -EPROTO;
	if (!strcmp(command, "zap")) {
		r = zap_begin(c, line, id);
		return r ? serve_answer(c, id, r) : 0;
	}
	if (!strcmp(command, "keep") || !strcmp(command, "unkeep"))
		r = kept_serve(c, line, command[0] == 'k');
	else
		r = -ENOSYS;
	return serve_answer(c, id, r);
}

/* Handles the whole lines that have come. */
void serve_lines(struct client *c)
{
	struct json_span line, name;
	size_t bytes;
	int r;

	while ((r = link_next(&line, &bytes)) == 0) {
		if (json_member(line, "execute", &name))
			r = take_request(c, line, name);
		else if (!json_member(line, "event", &name) && take_answer(c, line))
			r = -EPROTO;
		if (c->sock < 0)
			return;
		if (r)
			break;
		link_done(bytes);
	}
	if (r == -EPROTO)
		say("the daemon sent something that is not the protocol");
	if (r != -EAGAIN)
		link_lost(c);
}

void serve_input(struct client *c)
{
	if (link_receive(c))
		link_lost(c);
	else
		serve_lines(c);
}

/* Sends the queued ops. */
void serve_ops(struct client *c)
{
	for (;;) {
		int fds[1], n_fds, len, fd = -1, r;
		struct op *op;

		pthread_mutex_lock(&c->lock);
		op = op_first(c, OP_QUEUED);
		if (op && op->kind != OP_DETACH && !op_region(c, op)) {
			op_done(c, op, -ENOENT);
			pthread_mutex_unlock(&c->lock);
			continue;
		}
		if (!op) {
			pthread_mutex_unlock(&c->lock);
			return;
		}
		len = message_op(c, op, link_io.message, LINK_MESSAGE_BYTES - 1, fds, &n_fds);
		/* It always fits: names are bounded. */
		if (len < 0) {
			op_done(c, op, len);
			pthread_mutex_unlock(&c->lock);
			continue;
		}
		/* A duplicate: the region may go while its message is under way. */
		if (n_fds)
			fd = fcntl(fds[0], F_DUPFD_CLOEXEC, 3);
		/* Before the lock goes, or another thread's message could overtake this one. */
		op->state = OP_SENT;
		c->sending = true;
		pthread_mutex_unlock(&c->lock);
		r = link_send(c, (size_t)len, &fd, n_fds);
		if (fd >= 0)
			real.close(fd);
		if (r) {
			link_lost(c);
			return;
		}
	}
}
