/* SPDX-License-Identifier: BSD-3-Clause */
/* connection.c: ebbctl's side of the control socket. */
#include "ctl/connection.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "base/fd.h"

/* The daemon ends each message with a line break, which cannot be part of one. */

static int lost(struct error *e)
{
	return error_set(e, EPIPE, ERROR_GENERIC, "the daemon has closed the connection");
}

static int fill(struct connection *c, int timeout_ms, struct error *e)
{
	struct pollfd p = {.fd = c->fd, .events = POLLIN};
	ssize_t n;
	int r = poll(&p, 1, timeout_ms);

	if (r == 0)
		return error_set(e, ETIMEDOUT, ERROR_GENERIC, "the daemon does not answer");
	if (r < 0)
		return error_set(e, errno, ERROR_GENERIC, "%s", error_text(errno));
	if (c->room - c->len < 4096) {
		size_t room = c->room ? c->room * 2 : 65536;
		char *buf = realloc(c->buf, room);

		if (!buf)
			return error_set(e, ENOMEM, ERROR_GENERIC, "no memory");
		c->buf = buf;
		c->room = room;
	}
	n = recv(c->fd, c->buf + c->len, c->room - c->len, 0);
	if (n < 0)
		return error_set(e, errno, ERROR_GENERIC, "%s", error_text(errno));
	if (n == 0)
		return lost(e);
	c->len += (size_t)n;
	return 0;
}

int connection_next(struct connection *c, int timeout_ms, json_t **out, struct error *e)
{
	size_t looked = 0;
	char *end;
	json_error_t je;

	while (!(end = c->len > looked ? memchr(c->buf + looked, '\n', c->len - looked) : NULL)) {
		int r;

		looked = c->len;
		r = fill(c, timeout_ms, e);
		if (r)
			return r;
	}
	*out = json_loadb(c->buf, (size_t)(end - c->buf), 0, &je);
	c->len -= (size_t)(end + 1 - c->buf);
	memmove(c->buf, end + 1, c->len);
	if (!json_is_object(*out)) {
		json_decref(*out);
		return error_set(e, EPROTO, ERROR_PROTOCOL, "not an answer of ebbd: %s", je.text);
	}
	return 0;
}

int connection_send(struct connection *c, const char *command, json_t *args, json_int_t *id,
		    struct error *e)
{
	json_t *m;
	size_t bytes;
	char *text;
	int r;

	*id = ++c->next_id;
	m = json_pack("{s:s, s:o, s:I}", "execute", command, "arguments",
		      args ? args : json_object(), "id", *id);
	text = m ? json_dumps(m, JSON_COMPACT) : NULL;
	json_decref(m);
	if (!text)
		return error_set(e, EINVAL, ERROR_ARGUMENT, "the arguments are not UTF-8");
	/*
	 * In one piece, the line break (which is not part of the request) in the place of the NUL:
	 * after the last brace of `quit` the daemon may be gone.
	 */
	bytes = strlen(text);
	text[bytes++] = '\n';
	r = fd_send(c->fd, text, bytes, NULL, 0);
	free(text);
	if (r == -EPIPE)
		return lost(e);
	return r ? error_set(e, -r, ERROR_GENERIC, "%s", error_text(r)) : 0;
}

int connection_call(struct connection *c, const char *command, json_t *args, json_t **answer,
		    struct error *e)
{
	json_int_t id;
	int r = connection_send(c, command, args, &id, e);

	while (!r) {
		r = connection_next(c, -1, answer, e);
		if (!r && json_integer_value(json_object_get(*answer, "id")) == id)
			return 0;
		if (!r)
			json_decref(*answer); /* an event */
		if (r == -EINTR)
			r = 0;
	}
	return r;
}

int connection_open(struct connection *c, const char *path, struct error *e)
{
	const char *why;
	json_t *m = NULL;
	int r;

	memset(c, 0, sizeof(*c));
	c->fd = fd_connect_unix(path);
	if (c->fd < 0)
		return error_set(e, -c->fd, ERROR_GENERIC, "%s: %s%s", path, error_text(c->fd),
				 c->fd == -ENOENT || c->fd == -ECONNREFUSED ? " (is ebbd running?)"
									    : "");
	r = connection_next(c, -1, &m, e);
	if (r)
		return r;
	if (!json_object_get(m, "QMP")) {
		why = json_string_value(json_object_get(json_object_get(m, "error"), "desc"));
		r = error_set(e, EPROTO, ERROR_PROTOCOL, "%s: %s", path,
			      why ? why : "no control socket of ebbd");
		json_decref(m);
		return r;
	}
	json_decref(m);
	r = connection_call(c, "qmp_capabilities", NULL, &m, e);
	if (!r)
		json_decref(m);
	return r;
}

void connection_close(struct connection *c)
{
	fd_close(&c->fd);
	free(c->buf);
	c->buf = NULL;
}
