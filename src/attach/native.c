/* SPDX-License-Identifier: BSD-3-Clause */
/* native.c: the native dialect: one JSON object per line, one line in answer. */
#include "attach/native_request.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "attach/attach_internal.h"
#include "attach/member.h"
#include "attach/native_handover.h"
#include "attach/requests.h"
#include "base/fd.h"
#include "engine/handover.h"

/*
 * A line is parsed in the loop, carried out by a worker and answered in the loop, one at a time.
 * While one is carried out the loop reads on, because the engine may just then wait for the
 * client's answer to a request of its own; the next request that comes is kept, and with it
 * reading stops: the rest waits in the socket, whose size the kernel bounds.
 */
struct native {
	struct attachment *attachment; /* NULL: not attached */
	struct requests *requests;     /* NULL: the client serves none, else: */
	bool serves_zap, keeps;
	struct native_request *running, *kept;
};

#define LINES_PER_TURN 16 /* then the other connections have theirs */

static void native_settle(struct job *job);

/* ---- answers ---- */

static void native_answer(struct conn *c, struct native_request *req)
{
	json_t *message;
	char *text, *line = NULL;
	int n;

	if (req->result) {
		conn_send_error(c, &req->error);
		return;
	}
	if (!strcmp(req->command->name, "attach"))
		message =
			json_pack("{s:{s:s, s:i}}", "return", "vm",
				  engine_attachment_vm(req->attachment), "version", NATIVE_VERSION);
	else
		message = json_pack("{s:{}}", "return");
	text = message ? json_dumps(message, JSON_COMPACT) : NULL;
	json_decref(message);
	n = text ? asprintf(&line, "%s\n", text) : -1;
	free(text);
	if (n < 0)
		conn_close(c);
	else
		conn_send(c, line, (size_t)n, fd_take(&req->lent_fd), false);
}

static void native_log(struct conn *c, struct native_request *req)
{
	if (req->result)
		conn_log(c, req->error.cls, req->error.desc);
	else if (!strcmp(req->command->name, "attach"))
		log_info("attach: process %d (uid %u): VM %s%s%s, %u regions", (int)c->peer.pid,
			 (unsigned int)c->peer.uid, engine_attachment_vm(req->attachment),
			 req->secondary ? " (another mapping)" : "",
			 req->resume ? ", taken over" : "", req->n_regions);
}

/* ---- carrying out ---- */

static int native_send_request(void *ctx, char *line, size_t bytes, int fd)
{
	return conn_send(ctx, line, bytes, fd, true);
}

static bool native_serves(const struct native_request *req)
{
	return req->serves_zap || req->keep;
}

static void native_run(struct job *job)
{
	struct native_request *req = (struct native_request *)job;

	if (!req->result)
		req->result = req->command->run(req, &req->error);
	native_request_close_fds(req);
}

/* What can be said only now, when all requests before this one are answered. */
static int native_admit(struct native *native, struct native_request *req)
{
	struct error *e = &req->error;

	switch (req->command->when) {
	case NATIVE_DETACHED:
		if (native->attachment)
			return error_set(e, EISCONN, ERROR_BUSY,
					 "this connection has attached VM %s already",
					 engine_attachment_vm(native->attachment));
		break;
	case NATIVE_ATTACHED:
		if (!native->attachment)
			return error_set(e, ENOTCONN, ERROR_PROTOCOL,
					 "%s: nothing is attached on this connection",
					 req->command->name);
		break;
	case NATIVE_ANY:
		break;
	}
	req->attachment = native->attachment;
	req->requests = native->requests;
	if (native_serves(req) &&
	    requests_new(req->conn->at->pool, req->conn->at->config.request_timeout_ms,
			 native_send_request, req->conn, &req->requests))
		return error_set(e, ENOMEM, ERROR_GENERIC, "out of memory");
	return 0;
}

static void native_start(struct conn *c, struct native_request *req)
{
	struct native *native = c->state;

	if (!req->result)
		req->result = native_admit(native, req);
	native->running = req;
	req->job.run = native_run;
	req->job.done = native_settle;
	conn_job_begin(c, &req->job);
}

/* The attachment as it is after the request. */
static void native_adopt(struct conn *c, struct native_request *req)
{
	struct native *native = c->state;

	if (req->command && req->command->when == NATIVE_DETACHED && req->attachment &&
	    req->attachment != native->attachment) {
		native->attachment = req->attachment;
		native->requests = req->requests;
		native->serves_zap = req->serves_zap;
		native->keeps = req->keep;
		conn_set_attached(c, true);
	} else if (native_serves(req) && req->requests != native->requests) {
		requests_free(req->requests);
	}
	if (req->ended) {
		requests_free(native->requests);
		native->requests = NULL;
		native->attachment = NULL;
		conn_set_attached(c, false);
	}
}

static void native_settle(struct job *job)
{
	struct native_request *req = (struct native_request *)job;
	struct conn *c = req->conn;
	struct native *native = c->state;

	native->running = NULL;
	conn_uncharge(c, req->charged);
	native_adopt(c, req);
	native_log(c, req);
	if (!c->closing)
		native_answer(c, req);
	if (native->requests && !c->closing && !c->eof && !req->ended)
		requests_open(native->requests);
	native_request_free(req);
	conn_job_end(c);
	if (native->kept && !c->closing && !c->finishing) {
		req = native->kept;
		native->kept = NULL;
		c->hold_input = false;
		native_start(c, req);
		conn_update(c);
	}
}

/* ---- reading ---- */

/* {"return":...,"id":N} or {"error":...,"id":N}: the answer to a request of ours. */
static int native_take_answer(struct native *native, json_t *message, struct error *e)
{
	static const char *const known[] = {"return", "error", "id", NULL};
	bool ok = json_object_get(message, "return");
	uint64_t id;
	int r = member_known(message, "", known, e);

	if (!r && ok && json_object_get(message, "error"))
		return error_set(e, EINVAL, ERROR_ARGUMENT,
				 "a message has either return or error, not both");
	if (!r)
		r = member_u64(message, "", "id", &id, e);
	if (r)
		return r;
	if (!native->requests || requests_answer(native->requests, id, ok))
		return error_set(e, ENOENT, ERROR_PROTOCOL,
				 "no request with the id %llu was sent to you",
				 (unsigned long long)id);
	return 0;
}

/* Fills req's command and arguments from the message. */
static int native_parse(struct native_request *req, json_t *message, struct error *e)
{
	static const char *const known[] = {"execute", "arguments", NULL};
	const json_t *execute = json_object_get(message, "execute");
	const struct native_command *command;
	char name[40];
	int r = member_known(message, "", known, e);

	if (r)
		return r;
	if (!json_is_string(execute))
		return error_set(e, EINVAL, ERROR_ARGUMENT, "execute is %s",
				 execute ? "not a string" : "missing");
	command = native_command_find(json_string_value(execute));
	if (!command)
		return error_set(e, EOPNOTSUPP, ERROR_COMMAND, "there is no command \"%s\"",
				 member_quote(json_string_value(execute), name, sizeof(name)));
	if (req->n_fds < command->fds_min || req->n_fds > command->fds_max)
		return error_set(e, EINVAL, ERROR_ARGUMENT,
				 "%s came with %d descriptors, where %s%d are needed",
				 command->name, req->n_fds,
				 command->fds_max > command->fds_min ? "at least " : "",
				 command->fds_min);
	r = command->parse(req, json_object_get(message, "arguments"), e);
	if (!r)
		req->command = command;
	return r;
}

static bool is_answer(const json_t *message)
{
	return json_is_object(message) && !json_object_get(message, "execute") &&
	       (json_object_get(message, "return") || json_object_get(message, "error"));
}

static struct native_request *request_new(struct conn *c)
{
	struct native_request *req = calloc(1, sizeof(*req));

	if (!req)
		return NULL;
	req->conn = c;
	req->lent_fd = -1;
	req->n_fds = intake_take_fds(&c->intake, req->fds);
	req->charged = req->n_fds;
	return req;
}

/* One complete line is in the intake. */
static void native_line(struct conn *c)
{
	struct native *native = c->state;
	struct native_request *req = request_new(c);
	json_error_t where;
	json_t *message;

	if (!req) {
		conn_close(c);
		return;
	}
	message = json_loadb(c->intake.text, c->intake.bytes, JSON_REJECT_DUPLICATES, &where);
	intake_reset(&c->intake);
	if (!message) {
		req->result =
			error_set(&req->error, EPROTO, ERROR_PROTOCOL,
				  "this is no JSON: %s (byte %d)", where.text, where.position);
	} else if (is_answer(message) && !req->n_fds) {
		/* Never kept waiting, not even a wrong one: the right one may be behind it. */
		if (native_take_answer(native, message, &req->error)) {
			conn_log(c, req->error.cls, req->error.desc);
			conn_send_error(c, &req->error);
		}
		json_decref(message);
		native_request_free(req);
		return;
	} else {
		req->result = native_parse(req, message, &req->error);
	}
	json_decref(message);
	if (native->running) {
		native->kept = req;
		c->hold_input = true;
	} else {
		native_start(c, req);
	}
}

static void native_input(struct conn *c)
{
	for (int i = 0; i < LINES_PER_TURN; i++) {
		char first;

		if (c->closing || c->finishing || c->eof || c->hold_input)
			return;
		if (c->at->holding && conn_rests(c))
			return;
		if (!c->intake.bytes && !conn_first(c, &first))
			return;
		if (!conn_line(c))
			return;
		native_line(c);
	}
}

/* ---- the connection's life ---- */

static int native_begin(struct conn *c)
{
	c->state = calloc(1, sizeof(struct native));
	return c->state ? 0 : -ENOMEM;
}

static void native_hangup(struct conn *c)
{
	struct native *native = c->state;

	if (native->requests)
		requests_close(native->requests);
	/* What a client began goes on without it (a detach, say), but not when the daemon ends. */
	if (c->at->stopping && native->running)
		native->running->progress.cancel = true;
}

static void native_release(struct conn *c)
{
	struct native *native = c->state;

	if (native->attachment)
		engine_attachment_put(native->attachment);
	if (native->kept)
		native_request_close_fds(native->kept);
}

static void native_free(struct conn *c)
{
	struct native *native = c->state;

	requests_free(native->requests);
	native_request_free(native->kept);
	free(native);
}

/* ---- a daemon's successor ---- */

void native_hold(struct conn *c, bool hold)
{
	const struct native *native = c->state;

	if (native->requests)
		requests_hold(native->requests, hold);
}

json_t *native_export(struct conn *c)
{
	const struct native *native = c->state;

	if (!native->attachment)
		return NULL;
	return json_pack("{s:I, s:b, s:b, s:I}", "attachment",
			 (json_int_t)handover_serial(native->attachment), "zap", native->serves_zap,
			 "keep", native->keeps, "last-id",
			 (json_int_t)(native->requests ? requests_last_id(native->requests) : 0));
}

int native_inherit(struct conn *c, const json_t *j)
{
	struct native *native;
	json_int_t serial, last_id;
	int zap, keep, r;

	if (json_unpack((json_t *)j, "{s:I, s:b, s:b, s:I}", "attachment", &serial, "zap", &zap,
			"keep", &keep, "last-id", &last_id))
		return -EINVAL;
	r = native_begin(c);
	if (r)
		return r;
	c->dialect = &native_dialect;
	native = c->state;
	native->serves_zap = zap;
	native->keeps = keep;
	if ((zap || keep) && requests_new(c->at->pool, c->at->config.request_timeout_ms,
					  native_send_request, c, &native->requests))
		return -ENOMEM;
	native->attachment = handover_attachment(c->at->eng, (uint64_t)serial,
						 requests_ops(zap, keep), native->requests);
	if (!native->attachment)
		return -ENOENT;
	conn_set_attached(c, true);
	if (native->requests) {
		requests_go_on(native->requests, (uint64_t)last_id);
		requests_open(native->requests);
	}
	return 0;
}

const struct dialect native_dialect = {
	.name = "native",
	.first = '{',
	.begin = native_begin,
	.input = native_input,
	.hangup = native_hangup,
	.release = native_release,
	.free = native_free,
};
