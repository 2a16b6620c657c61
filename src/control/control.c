/* SPDX-License-Identifier: BSD-3-Clause */
/* control.c: the operators' socket. */
#include "control/control.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#include <event2/event.h>
#include <event2/listener.h>

#include "base/fd.h"
#include "control/events.h"
#include "control/internal.h"
#include "control/jobs.h"

/*
 * Theory of operation
 *
 * A server in QMP's manner on a unix socket. Job: check what operators ask for, hand it to the
 * engine, answer; tell all clients of events. It holds no state of the VMs: the engine does; what
 * was set at run time is kept by settings.c.
 *
 *   frame.c    cuts the byte stream into JSON objects
 *   client.c   one connection: greeting, buffers, limits
 *   methods*.c one function per command, apart from the engine
 *   jobs.c     long commands, each on a thread of its own
 *   events.c   the engine's events, from its threads into the loop
 *   metrics*.c the same numbers for OpenMetrics and query-metrics
 *
 * Threads: everything runs in the loop of the event_base, but for a job's run() and for
 * event_queue_push(). Those two touch no JSON and no client: they work on plain structs that the
 * loop reads when they are done. Quick engine calls are made from the loop.
 *
 * Trust: who may connect is the socket's mode; beyond that the peer must be root, the daemon's own
 * user or a member of the configured group. A client that got in may do everything, but must not
 * be able to stall or bloat the daemon by a mistake: every buffer is bounded, the number of
 * clients and of jobs is bounded, and who does not read is dropped.
 *
 * It does not: speak to VMMs (attach does), decide when memory is taken.
 */

struct client *control_client(struct control *c, uint64_t serial)
{
	struct client *cl;

	TAILQ_FOREACH(cl, &c->clients, entry)
		if (cl->serial == serial && !cl->dead)
			return cl;
	return NULL;
}

void control_broadcast(struct control *c, const char *event, json_t *data)
{
	struct client *cl;
	struct timeval now;
	json_t *m;

	gettimeofday(&now, NULL);
	m = json_pack("{s:s, s:o, s:{s:I, s:I}}", "event", event, "data", data, "timestamp",
		      "seconds", (json_int_t)now.tv_sec, "microseconds", (json_int_t)now.tv_usec);
	if (!m)
		return;
	TAILQ_FOREACH(cl, &c->clients, entry) {
		if (!cl->negotiated || cl->dead || cl->closing)
			continue;
		if (client_out_bytes(cl) > CLIENT_OUT_MAX) {
			log_limited(&c->refused, LOG_WARNING,
				    "control: a client that does not read its events is dropped");
			client_kill(cl);
			continue;
		}
		client_send(cl, json_incref(m));
	}
	json_decref(m);
}

/* Frees the clients that were marked dead in their own callbacks. */
static void on_sweep(evutil_socket_t fd, short what, void *ctx)
{
	struct control *c = ctx;
	struct client *cl = TAILQ_FIRST(&c->clients), *next;

	(void)fd;
	(void)what;
	for (; cl; cl = next) {
		next = TAILQ_NEXT(cl, entry);
		if (!cl->dead)
			continue;
		TAILQ_REMOVE(&c->clients, cl, entry);
		c->n_clients--;
		jobs_client_gone(c->jobs, cl->serial);
		client_free(cl);
	}
}

static bool in_group(int fd, gid_t gid, gid_t wanted)
{
	gid_t groups[64];
	socklen_t bytes = sizeof(groups);

	if (wanted == (gid_t)-1)
		return false;
	if (gid == wanted)
		return true;
	if (getsockopt(fd, SOL_SOCKET, SO_PEERGROUPS, groups, &bytes))
		return false;
	for (socklen_t i = 0; i < bytes / sizeof(gid_t); i++)
		if (groups[i] == wanted)
			return true;
	return false;
}

static bool peer_allowed(struct control *c, int fd)
{
	struct ucred peer;
	socklen_t bytes = sizeof(peer);

	if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &bytes))
		return false;
	return peer.uid == 0 || peer.uid == geteuid() || in_group(fd, peer.gid, c->config.group);
}

/* Tells a peer why it is not let in, as far as that can be done without waiting. */
static void refuse(struct control *c, int fd, const char *cls, const char *why)
{
	char text[300];
	int n = snprintf(text, sizeof(text), "{\"error\":{\"class\":\"%s\",\"desc\":\"%s\"}}\r\n",
			 cls, why);

	if (send(fd, text, (size_t)n, MSG_DONTWAIT | MSG_NOSIGNAL) < 0)
		log_debug("control: %s", error_text(errno));
	log_limited(&c->refused, LOG_WARNING, "control: a connection is refused: %s", why);
	close(fd);
}

static void on_accept(struct evconnlistener *l, evutil_socket_t fd, struct sockaddr *sa, int len,
		      void *ctx)
{
	struct control *c = ctx;
	struct client *cl;

	(void)l;
	(void)sa;
	(void)len;
	if (!peer_allowed(c, fd)) {
		refuse(c, fd, ERROR_PERMISSION, "only root, the daemon's user and its group may");
		return;
	}
	if (c->n_clients >= c->config.max_clients) {
		refuse(c, fd, ERROR_LIMIT, "too many connections");
		return;
	}
	cl = client_new(c, fd);
	if (!cl)
		return;
	TAILQ_INSERT_TAIL(&c->clients, cl, entry);
	c->n_clients++;
}

static void on_accept_again(evutil_socket_t fd, short what, void *ctx)
{
	struct control *c = ctx;

	(void)fd;
	(void)what;
	evconnlistener_enable(c->listener);
}

/* Out of descriptors, most likely: the kernel would call again at once, so pause a little. */
static void on_accept_error(struct evconnlistener *l, void *ctx)
{
	struct control *c = ctx;
	static const struct timeval pause = {0, 100000};

	log_limited(&c->refused, LOG_WARNING, "control: accept: %s", error_text(errno));
	evconnlistener_disable(l);
	event_add(c->accept_again, &pause);
}

int control_listener(const struct control *c)
{
	return evconnlistener_get_fd(c->listener);
}

void control_take_events(struct control *c, struct event_queue *q)
{
	c->queue = q;
	event_queue_attach(q, c->base, c);
}

void control_free(struct control *c)
{
	struct client *cl;

	if (!c)
		return;
	if (c->queue)
		event_queue_detach(c->queue);
	jobs_free(c->jobs);
	if (c->listener)
		evconnlistener_free(c->listener);
	while ((cl = TAILQ_FIRST(&c->clients))) {
		TAILQ_REMOVE(&c->clients, cl, entry);
		client_flush(cl);
		client_free(cl);
	}
	if (c->sweep)
		event_free(c->sweep);
	if (c->accept_again)
		event_free(c->accept_again);
	free(c);
}

static int set_up(struct control *c, struct error *e)
{
	const struct control_config *config = &c->config;
	bool made = config->listener <= 0;
	FD_OWNED fd = made ? fd_listen_unix(config->socket_path, config->socket_mode, e)
			   : config->listener;

	if (fd < 0)
		return fd;
	if (made && config->group != (gid_t)-1 &&
	    chown(config->socket_path, (uid_t)-1, config->group))
		log_warning("control: %s: its group could not be set: %s", config->socket_path,
			    error_text(errno));
	c->sweep = event_new(c->base, -1, 0, on_sweep, c);
	c->accept_again = event_new(c->base, -1, EV_TIMEOUT, on_accept_again, c);
	c->jobs = jobs_new(c);
	if (c->sweep && c->accept_again && c->jobs)
		c->listener =
			evconnlistener_new(c->base, on_accept, c,
					   LEV_OPT_CLOSE_ON_FREE | LEV_OPT_CLOSE_ON_EXEC, 0, fd);
	if (!c->listener)
		return error_set(e, ENOMEM, ERROR_GENERIC, "no memory");
	fd_take(&fd);
	evconnlistener_set_error_cb(c->listener, on_accept_error);
	return 0;
}

int control_new(struct event_base *base, const struct control_config *config, struct control **out,
		struct error *e)
{
	struct control *c = calloc(1, sizeof(*c));
	int r;

	if (!c)
		return error_set(e, ENOMEM, ERROR_GENERIC, "no memory");
	TAILQ_INIT(&c->clients);
	c->base = base;
	c->config = *config;
	if (!c->config.max_clients)
		c->config.max_clients = CONTROL_CLIENTS_MAX;
	r = set_up(c, e);
	if (r) {
		control_free(c);
		return r;
	}
	*out = c;
	return 0;
}
