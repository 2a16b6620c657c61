/* SPDX-License-Identifier: BSD-3-Clause */
/* attach.c: the attach socket: where VMMs hand over their RAM. */
#include "attach/attach.h"

#include <errno.h>
#include <event2/event.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include "attach/attach_internal.h"
#include "base/fd.h"

/*
 * Theory of operation
 *
 * Job: listen on a unix socket; tell by the first byte of a connection which dialect the client
 * speaks; take its messages apart, refuse what is malformed with a sentence that names what is
 * wrong, and ask the engine for the rest. One file per dialect (native.c, firecracker.c) behind
 * struct dialect; docs/attach.md has the wire format.
 *
 *   attach.c        listener, limits, life of the whole
 *   conn.c          one connection: input, output, timers, closing
 *   intake.c        one message at a time, with its descriptors
 *   outbox.c        lines on their way out
 *   peer.c          who connected
 *   native.c        the native dialect: order of requests and answers
 *   native_args.c   its arguments        native_ops.c   its commands
 *   member.c        checked access to JSON
 *   fd_check.c, region_check.c           what descriptors and regions must be
 *   requests.c      what the engine asks of a client
 *   worker.c        threads for what may block
 *   handover.c      giving the connections to a successor
 *
 * Threads: everything runs in the loop's thread but the run() and release() functions, which run
 * in workers, one for each connection that has something under way, so a client whose request
 * takes long, or for ever, delays nobody else. Engine threads enter only through requests_ops().
 * Locks: requests.lock, then worker_pool.lock; nothing else is taken under the latter.
 *
 * Ownership: a descriptor belongs to the intake it came in by, then to the request, then
 * (userfaultfd and pidfd of an attach) to the engine; whoever has it last closes it, in a worker,
 * because closing what a client made may block. An attachment belongs to its connection and is put
 * back when that ends; the VM lives on in the engine as long as its process does.
 *
 * Bounds, since any local user may be let in by the socket's mode: connections in all and for a
 * user, those that have not attached, bytes of a message, descriptors held, time to complete a
 * message, to attach, to read answers; one request at a time; output is bounded because no request
 * is read while the answers before it are not taken. Memory a client can make us hold is thus
 * below 256 KiB (a worker's stack included) a connection.
 *
 * What it does not do: anything with the memory itself. Whether a VM's name is free, whether its
 * ranges are mapped, whether a second mapping fits is the engine's to say.
 */

#define ACCEPTS_PER_TURN 16
#define REFUSALS_MAX                                                                 \
	64 /* connections beyond the limit that are told so rather than left waiting \
	    */
#define BACKLOG_PAUSE_US 100000

static void attach_pause(struct attach *at, bool pause)
{
	if (at->stopping || pause == at->paused)
		return;
	at->paused = pause;
	if (at->holding)
		return;
	if (pause)
		event_del(at->accept_event);
	else
		event_add(at->accept_event, NULL);
}

void attach_conn_freed(struct attach *at)
{
	if (at->n_conns < at->config.max_connections + REFUSALS_MAX)
		attach_pause(at, false);
}

static void on_resume(evutil_socket_t fd, short what, void *arg)
{
	(void)fd;
	(void)what;
	attach_pause(arg, false);
}

static void check_limits(struct attach *at, struct conn *newcomer)
{
	const struct attach_config *config = &at->config;
	uid_t uid = newcomer->peer.uid;
	unsigned int same = 0, pending = 0;

	for (struct conn *c = at->conns; c; c = c->next) {
		if (c == newcomer || c->peer.uid != uid || c->peer.pidfd < 0)
			continue;
		same++;
		pending += c->attach_deadline_ns && !c->closing;
	}
	if (at->n_conns > config->max_connections)
		conn_fail(newcomer, ERROR_LIMIT, "the daemon has %u connections, its maximum",
			  config->max_connections);
	else if (same >= config->max_connections_per_uid)
		conn_fail(newcomer, ERROR_LIMIT, "user %u has %u connections, its maximum",
			  (unsigned int)uid, same);
	else if (pending >= config->max_pending_per_uid)
		conn_fail(newcomer, ERROR_LIMIT,
			  "user %u has %u connections that have not attached, its maximum",
			  (unsigned int)uid, pending);
}

static void attach_accepted(struct attach *at, int fd)
{
	struct conn *c = conn_new(at, fd);
	struct error e;

	if (!c) {
		close(fd);
		return;
	}
	if (peer_get(fd, &c->peer, &e))
		conn_fail(c, e.cls, "%s", e.desc);
	else
		check_limits(at, c);
	conn_start(c);
}

static void on_accept(evutil_socket_t listener, short what, void *arg)
{
	static const struct timeval pause = {0, BACKLOG_PAUSE_US};
	struct attach *at = arg;

	(void)what;
	for (int i = 0; i < ACCEPTS_PER_TURN; i++) {
		int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);

		if (fd >= 0) {
			attach_accepted(at, fd);
		} else if (errno == EMFILE || errno == ENFILE || errno == ENOMEM ||
			   errno == ENOBUFS) {
			/* The connection stays in the queue and would wake us for ever. */
			log_limited(&at->log_limit, LOG_ERROR, "attach: accept: %s",
				    error_text(errno));
			attach_pause(at, true);
			evtimer_add(at->resume_event, &pause);
			return;
		} else if (errno == EAGAIN) {
			return;
		}
		if (at->n_conns >= at->config.max_connections + REFUSALS_MAX) {
			attach_pause(at, true);
			return;
		}
	}
}

static int config_copy(struct attach_config *to, const struct attach_config *from)
{
	*to = *from;
	to->socket_path = strdup(from->socket_path);
	to->uffd_device = strdup(from->uffd_device ? from->uffd_device : "/dev/userfaultfd");
#define DEFAULT(member, value) to->member = from->member ? from->member : (value)
	DEFAULT(mode, 0660);
	DEFAULT(max_connections, 1024);
	DEFAULT(max_connections_per_uid, 512);
	DEFAULT(max_pending_per_uid, 32);
	DEFAULT(max_held_fds, 2048);
	DEFAULT(message_max_bytes, 64 << 10);
	DEFAULT(attach_timeout_ms, 10000);
	DEFAULT(message_timeout_ms, 5000);
	DEFAULT(request_timeout_ms, 1000);
#undef DEFAULT
	return to->socket_path && to->uffd_device ? 0 : -ENOMEM;
}

static int attach_listen(struct attach *at, struct error *e)
{
	const char *path = at->config.socket_path;
	struct stat st;

	if (at->listener < 0)
		at->listener = fd_listen_unix(path, at->config.mode, e);
	if (at->listener < 0)
		return at->listener;
	at->bound = !stat(path, &st);
	if (at->bound) {
		at->dev = st.st_dev;
		at->ino = st.st_ino;
	}
	at->accept_event = event_new(at->base, at->listener, EV_READ | EV_PERSIST, on_accept, at);
	at->resume_event = evtimer_new(at->base, on_resume, at);
	if (!at->accept_event || !at->resume_event || event_add(at->accept_event, NULL))
		return error_set(e, ENOMEM, ERROR_GENERIC, "cannot watch %s", path);
	return 0;
}

int attach_new(struct event_base *base, struct engine *eng, const struct attach_config *config,
	       struct attach **out, struct error *e)
{
	struct attach *at = calloc(1, sizeof(*at));
	int r;

	if (!at)
		return error_set(e, ENOMEM, ERROR_GENERIC, "out of memory");
	at->base = base;
	at->eng = eng;
	at->listener = config->listener > 0 ? config->listener : -1;
	r = config_copy(&at->config, config);
	if (r)
		r = error_set(e, ENOMEM, ERROR_GENERIC, "out of memory");
	if (!r)
		r = worker_pool_new(base, &at->pool, e);
	if (!r)
		r = attach_listen(at, e);
	if (r)
		attach_free(at);
	else
		*out = at;
	return r;
}

/* A successor may have bound the path to a socket of its own. */
static void attach_unlink(struct attach *at)
{
	struct stat st;

	if (at->bound && !stat(at->config.socket_path, &st) && st.st_dev == at->dev &&
	    st.st_ino == at->ino)
		unlink(at->config.socket_path);
}

void attach_free(struct attach *at)
{
	if (!at)
		return;
	at->stopping = true;
	attach_unlink(at);
	if (at->accept_event)
		event_free(at->accept_event);
	if (at->resume_event)
		event_free(at->resume_event);
	fd_close(&at->listener);
	for (struct conn *c = at->conns; c; c = c->next)
		conn_close(c);
	worker_pool_free(at->pool);
	free((char *)at->config.socket_path);
	free((char *)at->config.uffd_device);
	free(at);
}

unsigned int attach_connections(const struct attach *at)
{
	return at->n_conns;
}
