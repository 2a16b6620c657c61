/* SPDX-License-Identifier: BSD-3-Clause */
/* conn.c: one client's connection, whatever dialect it speaks. */
#include "attach/conn.h"

#include <errno.h>
#include <event2/event.h>
#include <jansson.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "attach/attach_internal.h"
#include "attach/member.h"
#include "base/clock.h"
#include "base/fd.h"

/*
 * Life of a connection: reading -> (finishing: output only) -> closing -> reaped -> freed. It is
 * reaped by a worker, because closing descriptors that came from a client may block: the last
 * reference of a file on FUSE or of a socket that lingers could be among them, or in the unread
 * rest of the socket's queue. Until then it counts as a connection.
 */

#define OUT_BOUND (64 << 10) /* a client that has not taken this much is sent no request */

static void on_read(evutil_socket_t fd, short what, void *arg);
static void on_write(evutil_socket_t fd, short what, void *arg);
static void on_timer(evutil_socket_t fd, short what, void *arg);
static void conn_reap(struct job *job);
static void conn_reaped(struct job *job);

static void conn_free(struct conn *c)
{
	struct attach *at = c->at;

	outbox_clear(&c->out);
	if (c->read_event)
		event_free(c->read_event);
	if (c->write_event)
		event_free(c->write_event);
	if (c->timer)
		event_free(c->timer);
	intake_reset(&c->intake);
	fd_close(&c->peer.pidfd);
	*c->link = c->next;
	if (c->next)
		c->next->link = c->link;
	at->n_conns--;
	at->held_fds -= (unsigned int)c->held_fds;
	free(c);
	attach_conn_freed(at);
}

struct conn *conn_new(struct attach *at, int fd)
{
	struct conn *c = calloc(1, sizeof(*c));

	if (!c)
		return NULL;
	c->at = at;
	c->fd = fd;
	c->peer.pidfd = -1;
	outbox_init(&c->out);
	c->reap.run = conn_reap;
	c->reap.done = conn_reaped;
	intake_init(&c->intake, at->config.message_max_bytes);
	c->next = at->conns;
	c->link = &at->conns;
	if (c->next)
		c->next->link = &c->next;
	at->conns = c;
	at->n_conns++;
	c->read_event = event_new(at->base, fd, EV_READ | EV_PERSIST, on_read, c);
	c->write_event = event_new(at->base, fd, EV_WRITE | EV_PERSIST, on_write, c);
	c->timer = evtimer_new(at->base, on_timer, c);
	if (!c->read_event || !c->write_event || !c->timer) {
		conn_free(c);
		return NULL;
	}
	conn_set_attached(c, false);
	return c;
}

void conn_start(struct conn *c)
{
	conn_update(c);
}

void conn_set_attached(struct conn *c, bool attached)
{
	c->attach_deadline_ns =
		attached ? 0 : clock_ns() + c->at->config.attach_timeout_ms * NS_PER_MS;
}

/* ---- closing ---- */

static void conn_reap(struct job *job)
{
	struct conn *c = (struct conn *)((char *)job - offsetof(struct conn, reap));

	if (c->dialect)
		c->dialect->release(c);
	for (int i = 0; i < c->intake.n_fds; i++)
		close(c->intake.fds[i]);
	c->intake.n_fds = 0;
	fd_close(&c->fd);
}

static void conn_reaped(struct job *job)
{
	struct conn *c = (struct conn *)((char *)job - offsetof(struct conn, reap));

	if (c->dialect)
		c->dialect->free(c);
	conn_free(c);
}

void conn_close(struct conn *c)
{
	if (c->closing)
		return;
	c->closing = true;
	event_del(c->read_event);
	event_del(c->write_event);
	event_del(c->timer);
	/* The client sees the end now, even when the descriptor is closed later. */
	shutdown(c->fd, SHUT_RDWR);
	if (c->dialect)
		c->dialect->hangup(c);
	if (!c->busy)
		worker_submit(c->at->pool, &c->reap);
}

void conn_job_begin(struct conn *c, struct job *job)
{
	c->busy = true;
	worker_submit(c->at->pool, job);
}

void conn_job_end(struct conn *c)
{
	c->busy = false;
	if (c->closing)
		worker_submit(c->at->pool, &c->reap);
	else
		conn_update(c);
}

/* ---- what to wait for ---- */

static void conn_arm(struct conn *c)
{
	uint64_t now = clock_ns(), first = 0;
	uint64_t at[] = {c->busy ? 0 : c->attach_deadline_ns, c->message_deadline_ns,
			 c->out_deadline_ns};
	struct timeval in = {0, 1000};

	for (size_t i = 0; i < sizeof(at) / sizeof(at[0]); i++)
		if (at[i] && (!first || at[i] < first))
			first = at[i];
	if (!first) {
		evtimer_del(c->timer);
		return;
	}
	if (first > now) {
		uint64_t us = (first - now) / NS_PER_US + 1000;

		in.tv_sec = (time_t)(us / 1000000);
		in.tv_usec = (suseconds_t)(us % 1000000);
	}
	evtimer_add(c->timer, &in);
}

static void want(struct event *ev, bool wanted)
{
	if (wanted)
		event_add(ev, NULL);
	else
		event_del(ev);
}

bool conn_rests(const struct conn *c)
{
	return !c->busy && !c->out.bytes && !c->intake.bytes && !c->intake.n_fds && !c->hold_input;
}

void conn_update(struct conn *c)
{
	if (c->closing)
		return;
	if ((c->finishing || c->eof) && !c->out.bytes && !c->busy) {
		conn_close(c);
		return;
	}
	want(c->read_event, !c->eof && !c->finishing && !c->hold_input &&
				    c->out.bytes < OUT_BOUND && !(c->at->holding && conn_rests(c)));
	want(c->write_event, c->out.bytes);
	conn_arm(c);
}

static bool passed(uint64_t deadline_ns)
{
	return deadline_ns && clock_ns() >= deadline_ns;
}

static void on_timer(evutil_socket_t fd, short what, void *arg)
{
	struct conn *c = arg;
	const struct attach_config *config = &c->at->config;

	(void)fd;
	(void)what;
	if (passed(c->out_deadline_ns)) {
		conn_log(c, ERROR_PROTOCOL, "it does not read its answers");
		conn_close(c);
	} else if (c->finishing || c->eof) {
		conn_update(c);
	} else if (passed(c->message_deadline_ns)) {
		conn_fail(c, ERROR_PROTOCOL, "the message is not complete after %u ms",
			  config->message_timeout_ms);
	} else if (!c->busy && passed(c->attach_deadline_ns)) {
		conn_fail(c, ERROR_PROTOCOL, "nothing attached within %u ms",
			  config->attach_timeout_ms);
	} else {
		conn_update(c);
	}
}

/* ---- input ---- */

static void conn_eof(struct conn *c)
{
	if (c->intake.bytes || c->intake.n_fds) {
		conn_fail(c, ERROR_PROTOCOL, "the message is cut off after %zu bytes",
			  c->intake.bytes);
		return;
	}
	c->eof = true;
	if (c->dialect)
		c->dialect->hangup(c);
}

static void conn_input_failed(struct conn *c, int err)
{
	switch (err) {
	case -EPIPE:
		conn_eof(c);
		break;
	case -ECONNRESET:
		conn_close(c);
		break;
	case -EMSGSIZE:
		conn_fail(c, ERROR_PROTOCOL, "the message is longer than %zu bytes", c->intake.max);
		break;
	case -ETOOMANYREFS:
		conn_fail(c, ERROR_LIMIT,
			  "descriptors were lost: more than %d with one message, or the daemon may "
			  "open no more",
			  INTAKE_FDS_MAX);
		break;
	default:
		conn_fail(c, ERROR_GENERIC, "reading from the socket: %s", error_text(err));
	}
}

void conn_uncharge(struct conn *c, int n)
{
	c->held_fds -= n;
	c->at->held_fds -= (unsigned int)n;
}

/* Charges what a read brought; refuses it when all clients together hold too much. */
static int conn_charge(struct conn *c, int before, int r)
{
	int n = c->intake.n_fds - before;

	c->held_fds += n;
	c->at->held_fds += (unsigned int)n;
	if (r < 0) {
		conn_input_failed(c, r);
		return 0;
	}
	if (n && c->at->held_fds > c->at->config.max_held_fds) {
		conn_fail(c, ERROR_LIMIT, "more than %u descriptors are in flight; try again",
			  c->at->config.max_held_fds);
		return 0;
	}
	return r;
}

int conn_first(struct conn *c, char *first)
{
	int before = c->intake.n_fds;

	return conn_charge(c, before, intake_first(&c->intake, c->fd, first));
}

int conn_line(struct conn *c)
{
	int before = c->intake.n_fds;
	int r = conn_charge(c, before, intake_line(&c->intake, c->fd));

	if (r || !c->intake.bytes)
		c->message_deadline_ns = 0;
	else if (!c->message_deadline_ns)
		c->message_deadline_ns = clock_ns() + c->at->config.message_timeout_ms * NS_PER_MS;
	return r;
}

/* The first byte tells the dialect. */
static void conn_sniff(struct conn *c)
{
	static const struct dialect *const dialects[] = {&native_dialect, &firecracker_dialect};
	char first;

	if (!conn_first(c, &first))
		return;
	for (size_t i = 0; i < sizeof(dialects) / sizeof(dialects[0]); i++) {
		if (dialects[i]->first != first)
			continue;
		if (dialects[i]->begin(c))
			conn_fail(c, ERROR_GENERIC, "out of memory");
		else
			c->dialect = dialects[i];
		return;
	}
	conn_fail(c, ERROR_PROTOCOL, "a message begins with '{' or '[', not with the byte 0x%02x",
		  (unsigned int)(unsigned char)first);
}

static void on_read(evutil_socket_t fd, short what, void *arg)
{
	struct conn *c = arg;

	(void)fd;
	(void)what;
	if (!c->dialect)
		conn_sniff(c);
	if (c->dialect && !c->finishing && !c->closing)
		c->dialect->input(c);
	conn_update(c);
}

/* ---- output ---- */

/* Sends what the socket takes; the client has its time anew whenever it takes something. */
static int conn_flush(struct conn *c)
{
	int n = outbox_flush(&c->out, c->fd);

	if (n < 0)
		return n;
	if (!c->out.bytes)
		c->out_deadline_ns = 0;
	else if (n || !c->out_deadline_ns)
		c->out_deadline_ns = clock_ns() + c->at->config.message_timeout_ms * NS_PER_MS;
	return 0;
}

static void on_write(evutil_socket_t fd, short what, void *arg)
{
	struct conn *c = arg;

	(void)fd;
	(void)what;
	if (conn_flush(c))
		conn_close(c);
	conn_update(c);
}

int conn_send(struct conn *c, char *line, size_t bytes, int fd, bool bounded)
{
	int r = c->closing ? -ENOTCONN : 0;

	if (!r && bounded && c->out.bytes >= OUT_BOUND)
		r = -EAGAIN;
	if (r) {
		free(line);
		fd_close(&fd);
		return r;
	}
	r = outbox_add(&c->out, line, bytes, fd);
	if (r)
		return r;
	if (conn_flush(c)) {
		conn_close(c);
		return -ENOTCONN;
	}
	conn_update(c);
	return 0;
}

void conn_log(struct conn *c, const char *cls, const char *desc)
{
	char text[sizeof(((struct error *)0)->desc)];

	log_limited(&c->at->log_limit, LOG_WARNING, "attach: process %d (uid %u): %s: %s",
		    (int)c->peer.pid, (unsigned int)c->peer.uid, cls,
		    member_quote(desc, text, sizeof(text)));
}

void conn_send_error(struct conn *c, const struct error *e)
{
	char desc[sizeof(e->desc)];
	char *line = NULL;
	int n;

	/* The text may quote a file name or be cut within a character; JSON must be UTF-8. */
	member_quote(e->desc, desc, sizeof(desc));
	json_t *message = json_pack("{s:{s:s, s:s}}", "error", "class", e->cls, "desc", desc);
	char *text = message ? json_dumps(message, JSON_COMPACT) : NULL;

	json_decref(message);
	n = text ? asprintf(&line, "%s\n", text) : -1;
	free(text);
	if (n < 0)
		conn_close(c);
	else
		conn_send(c, line, (size_t)n, -1, false);
}

void conn_fail(struct conn *c, const char *cls, const char *fmt, ...)
{
	struct error e = {.cls = cls};
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(e.desc, sizeof(e.desc), fmt, ap);
	va_end(ap);
	if (c->closing || c->finishing)
		return;
	conn_log(c, cls, e.desc);
	c->finishing = true;
	if (c->dialect)
		c->dialect->hangup(c);
	conn_send_error(c, &e);
	conn_update(c);
}
