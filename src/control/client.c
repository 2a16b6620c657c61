/* SPDX-License-Identifier: BSD-3-Clause */
/* client.c: one connection to the control socket. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/fsuid.h>
#include <sys/socket.h>

#include <event2/buffer.h>
#include <event2/bufferevent.h>
#include <event2/event.h>

#include "base/fd.h"
#include "control/internal.h"

/*
 * A client can make the daemon hold: one unfinished request (FRAME_BYTES_MAX), what it has sent
 * ahead (the read watermark), and what it does not read (CLIENT_OUT_PAUSE plus one answer, or
 * CLIENT_OUT_MAX of events before it is dropped).
 */

static json_t *greeting(void)
{
	int major = 0, minor = 0, micro = 0;

	/* "qemu" is what QMP clients look for; the version is ours. */
	sscanf(EBB_VERSION, "%d.%d.%d", &major, &minor, &micro);
	return json_pack("{s:{s:{s:{s:i, s:i, s:i}, s:s}, s:[]}}", "QMP", "version", "qemu",
			 "major", major, "minor", minor, "micro", micro, "package",
			 "ebb " EBB_VERSION, "capabilities");
}

void client_kill(struct client *cl)
{
	if (cl->dead)
		return;
	cl->dead = true;
	bufferevent_disable(cl->bev, EV_READ | EV_WRITE);
	event_active(cl->control->sweep, EV_TIMEOUT, 1);
}

size_t client_out_bytes(const struct client *cl)
{
	return evbuffer_get_length(bufferevent_get_output(cl->bev));
}

void client_send(struct client *cl, json_t *message)
{
	char *text = message ? json_dumps(message, JSON_COMPACT) : NULL;

	json_decref(message);
	if (cl->dead) {
		free(text);
		return;
	}
	if (!text || evbuffer_add_printf(bufferevent_get_output(cl->bev), "%s\r\n", text) < 0)
		client_kill(cl);
	free(text);
	if (!cl->dead && client_out_bytes(cl) > CLIENT_OUT_PAUSE)
		bufferevent_disable(cl->bev, EV_READ);
}

void client_answer(struct client *cl, json_t *id, json_t *ret)
{
	json_t *m = json_object();

	json_object_set_new(m, "return", ret ? ret : json_object());
	if (id)
		json_object_set(m, "id", id);
	client_send(cl, m);
}

/* An error's text as a string of JSON, though a name in it was cut in the middle of a character. */
static json_t *desc_to_json(const char *desc)
{
	json_t *s = json_string(desc);
	char ascii[sizeof(((struct error *)0)->desc)];

	if (s)
		return s;
	snprintf(ascii, sizeof(ascii), "%s", desc);
	for (char *p = ascii; *p; p++)
		if ((unsigned char)*p >= 0x80)
			*p = '?';
	return json_string(ascii);
}

void client_fail(struct client *cl, json_t *id, const struct error *e)
{
	json_t *desc = desc_to_json(e->desc);
	json_t *m;

	m = json_pack("{s:{s:s, s:o}}", "error", "class", e->cls, "desc", desc);
	if (m && id)
		json_object_set(m, "id", id);
	client_send(cl, m);
}

/* The stream cannot be followed any more: says why, and hangs up. */
static void give_up(struct client *cl, const char *why)
{
	struct error e;

	error_set(&e, EPROTO, ERROR_PROTOCOL, "%s", why);
	client_fail(cl, NULL, &e);
	cl->closing = true;
	bufferevent_disable(cl->bev, EV_READ);
}

static void take_object(struct client *cl)
{
	json_error_t je;
	json_t *message = json_loadb(cl->frame.buf, cl->frame.len, JSON_REJECT_DUPLICATES, &je);
	struct error e;

	frame_reset(&cl->frame);
	if (message) {
		methods_dispatch(cl->control, cl, message);
		return;
	}
	error_set(&e, EPROTO, ERROR_PROTOCOL, "not valid JSON at byte %d: %s", je.position,
		  je.text);
	client_fail(cl, NULL, &e);
}

/* Takes bytes from data until the client has to wait; returns how many. */
static size_t take_bytes(struct client *cl, const char *data, size_t n)
{
	struct error e;

	for (size_t i = 0; i < n; i++) {
		switch (frame_byte(&cl->frame, data[i])) {
		case FRAME_MORE:
			continue;
		case FRAME_OBJECT:
			take_object(cl);
			break;
		case FRAME_GARBAGE:
			error_set(&e, EPROTO, ERROR_PROTOCOL,
				  "expected a JSON object; the rest of the line is left out");
			client_fail(cl, NULL, &e);
			break;
		case FRAME_TOO_BIG:
			give_up(cl, "request too long or too deeply nested");
			return n;
		}
		if (cl->dead || cl->closing || client_out_bytes(cl) > CLIENT_OUT_PAUSE)
			return i + 1;
	}
	return n;
}

static void on_read(struct bufferevent *bev, void *ctx)
{
	struct client *cl = ctx;
	struct evbuffer *in = bufferevent_get_input(bev);
	struct evbuffer_iovec v;

	while (!cl->dead && !cl->closing && client_out_bytes(cl) <= CLIENT_OUT_PAUSE &&
	       evbuffer_peek(in, -1, NULL, &v, 1) > 0)
		evbuffer_drain(in, take_bytes(cl, v.iov_base, v.iov_len));
}

static void on_write(struct bufferevent *bev, void *ctx)
{
	struct client *cl = ctx;

	if (cl->closing) {
		client_kill(cl);
		return;
	}
	/* All is read: go on with the requests that had to wait. */
	bufferevent_enable(bev, EV_READ);
	on_read(bev, cl);
}

static void on_event(struct bufferevent *bev, short what, void *ctx)
{
	struct client *cl = ctx;

	(void)bev;
	if (what & BEV_EVENT_TIMEOUT)
		log_limited(&cl->control->refused, LOG_WARNING,
			    "control: a client that reads nothing is dropped");
	client_kill(cl);
}

struct client *client_new(struct control *c, int fd)
{
	static const struct timeval stall = {CLIENT_STALL_S, 0};
	struct client *cl = calloc(1, sizeof(*cl));

	if (cl)
		cl->bev = bufferevent_socket_new(c->base, fd, BEV_OPT_CLOSE_ON_FREE);
	if (!cl || !cl->bev) {
		free(cl);
		fd_close(&fd);
		return NULL;
	}
	cl->control = c;
	cl->serial = ++c->next_serial;
	bufferevent_setcb(cl->bev, on_read, on_write, on_event, cl);
	bufferevent_setwatermark(cl->bev, EV_READ, 0, FRAME_BYTES_MAX);
	bufferevent_set_timeouts(cl->bev, NULL, &stall);
	client_send(cl, greeting());
	bufferevent_enable(cl->bev, EV_READ | EV_WRITE);
	return cl;
}

void client_free(struct client *cl)
{
	if (!cl)
		return;
	bufferevent_free(cl->bev);
	frame_free(&cl->frame);
	free(cl);
}

void client_flush(struct client *cl)
{
	struct evbuffer *out = bufferevent_get_output(cl->bev);

	bufferevent_disable(cl->bev, EV_WRITE); /* unfreezes the buffer's front */
	evbuffer_unfreeze(out, 1);
	while (evbuffer_get_length(out) > 0 && evbuffer_write(out, bufferevent_getfd(cl->bev)) > 0)
		;
}

int client_create_file(struct client *cl, const char *path, struct error *e)
{
	struct ucred peer = {0};
	socklen_t bytes = sizeof(peer);
	uid_t uid;
	gid_t gid;
	int fd, err;

	if (path[0] != '/')
		return error_set(e, EINVAL, ERROR_ARGUMENT, "'%s' is no absolute path", path);
	if (getsockopt(bufferevent_getfd(cl->bev), SOL_SOCKET, SO_PEERCRED, &peer, &bytes))
		return error_set(e, errno, ERROR_GENERIC, "whose file it would be is not known");
	/* Of this thread only; the capabilities that overrule file modes go with uid 0. */
	gid = (gid_t)setfsgid(peer.gid);
	uid = (uid_t)setfsuid(peer.uid);
	fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
	err = errno;
	setfsuid(uid);
	setfsgid(gid);
	if (fd < 0)
		return error_set(e, err, err == EEXIST ? ERROR_EXISTS : ERROR_GENERIC, "%s: %s",
				 path, error_text(err));
	return fd;
}
