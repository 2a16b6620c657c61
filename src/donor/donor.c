/* SPDX-License-Identifier: BSD-3-Clause */
/* donor.c: lending RAM over RDMA: the loop. */
#include "donor/donor.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/fd.h"

/*
 * Theory of operation
 *
 * One thread and one epoll set: connection events, messages of clients (session.c), the status
 * socket, signals, and once a second a look at who has gone. What clients read and write is between
 * them and the device, so this thread is idle nearly always.
 *
 * What is lent lives in this process only. When it ends, the content is gone, and the clients are
 * told so by the donor that comes after it (it does not know their leases).
 */

/* The tags of the epoll set that are no sessions. */
static int tag_events, tag_signal, tag_timer, tag_status;

static void on_request(struct donor *d, struct rdma_cm_id *id, const uint8_t *data)
{
	struct wire_connect connect;
	char peer[64];

	memcpy(&connect, data, sizeof(connect));
	if (!donor_allows(d->options, rdma_get_peer_addr(id)) || connect.magic != WIRE_MAGIC ||
	    connect.version != WIRE_VERSION) {
		log_limited(&d->limit, LOG_WARNING, "connection from %s refused: %s",
			    address_text(rdma_get_peer_addr(id), peer, sizeof(peer)),
			    connect.magic == WIRE_MAGIC ? "not allowed, or another version"
							: "not allowed, or no client of ours");
		rdma_reject(id, NULL, 0);
		rdma_destroy_id(id);
		return;
	}
	if (connect.kind == WIRE_CONTROL) {
		struct wire_control c;

		memcpy(&c, data, sizeof(c));
		session_begin(d, id, &c);
	} else {
		struct wire_queue q;

		memcpy(&q, data, sizeof(q));
		session_queue(d, id, &q);
	}
}

static void on_event(struct donor *d)
{
	uint8_t data[sizeof(struct wire_queue)] = {0};
	struct rdma_cm_event *event;
	enum rdma_cm_event_type type;
	struct rdma_cm_id *id;

	if (rdma_get_cm_event(d->events, &event))
		return;
	type = event->event;
	id = event->id;
	if (type == RDMA_CM_EVENT_CONNECT_REQUEST && event->param.conn.private_data) {
		size_t n = event->param.conn.private_data_len;

		memcpy(data, event->param.conn.private_data, n < sizeof(data) ? n : sizeof(data));
	}
	/* First acknowledged: what is destroyed while handling it waits for that. */
	rdma_ack_cm_event(event);
	switch (type) {
	case RDMA_CM_EVENT_CONNECT_REQUEST:
		on_request(d, id, data);
		break;
	case RDMA_CM_EVENT_DISCONNECTED:
	case RDMA_CM_EVENT_CONNECT_ERROR:
	case RDMA_CM_EVENT_UNREACHABLE:
	case RDMA_CM_EVENT_REJECTED:
	case RDMA_CM_EVENT_DEVICE_REMOVAL:
		session_disconnected(d, id);
		break;
	default:
		break;
	}
}

static int add(struct donor *d, int fd, void *tag)
{
	struct epoll_event ev = {.events = EPOLLIN, .data.ptr = tag};

	return epoll_ctl(d->epoll_fd, EPOLL_CTL_ADD, fd, &ev) ? -errno : 0;
}

static int start(struct donor *d, struct error *e)
{
	struct itimerspec every = {.it_interval.tv_sec = 1, .it_value.tv_sec = 1};
	const struct donor_options *o = d->options;
	sigset_t signals;
	int r;

	sigemptyset(&signals);
	sigaddset(&signals, SIGTERM);
	sigaddset(&signals, SIGINT);
	sigprocmask(SIG_BLOCK, &signals, NULL);
	d->signal_fd = signalfd(-1, &signals, SFD_CLOEXEC | SFD_NONBLOCK);
	d->timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
	d->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
	if (d->signal_fd < 0 || d->timer_fd < 0 || d->epoll_fd < 0 ||
	    timerfd_settime(d->timer_fd, 0, &every, NULL))
		return error_set(e, errno, ERROR_GENERIC, "cannot start: %s", strerror(errno));
	r = pool_init(&d->pool, o->size_bytes);
	if (r)
		return error_set(e, -r, ERROR_GENERIC, "cannot reserve the memory: %s",
				 strerror(-r));
	d->events = rdma_create_event_channel();
	if (!d->events || rdma_create_id(d->events, &d->listener, NULL, RDMA_PS_TCP))
		return error_set(e, errno, ERROR_UNSUPPORTED, "no RDMA on this host: %s",
				 strerror(errno));
	if (rdma_bind_addr(d->listener, (struct sockaddr *)&d->options->listen) ||
	    rdma_listen(d->listener, 64))
		return error_set(e, errno, ERROR_GENERIC, "cannot listen on %s: %s", o->listen_text,
				 strerror(errno));
	fcntl(d->events->fd, F_SETFL, fcntl(d->events->fd, F_GETFL) | O_NONBLOCK);
	d->status_fd = status_listen(o, e);
	if (d->status_fd < 0)
		return d->status_fd;
	if (add(d, d->events->fd, &tag_events) || add(d, d->signal_fd, &tag_signal) ||
	    add(d, d->timer_fd, &tag_timer) || add(d, d->status_fd, &tag_status))
		return error_set(e, errno, ERROR_GENERIC, "cannot start: %s", strerror(errno));
	return 0;
}

/* Tells the service manager, if there is one (sd_notify's protocol). */
static void notify_ready(void)
{
	static const char text[] = "READY=1";
	const char *path = getenv("NOTIFY_SOCKET");
	struct sockaddr_un addr = {.sun_family = AF_UNIX};
	size_t len = path ? strlen(path) : 0;
	FD_OWNED fd = -1;

	if (!len || len >= sizeof(addr.sun_path))
		return;
	memcpy(addr.sun_path, path, len);
	if (addr.sun_path[0] == '@')
		addr.sun_path[0] = '\0';
	fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	if (fd >= 0)
		sendto(fd, text, strlen(text), MSG_NOSIGNAL, (struct sockaddr *)&addr,
		       (socklen_t)(offsetof(struct sockaddr_un, sun_path) + len));
}

static void loop(struct donor *d)
{
	while (!d->stop) {
		struct epoll_event ev[16];
		int n = epoll_wait(d->epoll_fd, ev, 16, -1);

		for (int i = 0; i < n; i++) {
			void *tag = ev[i].data.ptr;
			uint64_t ticks;

			if (tag == &tag_events)
				on_event(d);
			else if (tag == &tag_status)
				status_serve(d);
			else if (tag == &tag_signal)
				d->stop = true;
			else if (tag == &tag_timer)
				(void)!read(d->timer_fd, &ticks, sizeof(ticks));
			else
				session_ready(tag);
		}
		/* Only here, where no event of this round is left that names a session. */
		session_sweep(d);
	}
}

int donor_run(const struct donor_options *o, struct error *e)
{
	struct donor d = {
		.options = o, .epoll_fd = -1, .signal_fd = -1, .timer_fd = -1, .status_fd = -1};
	char why[256] = "";
	int r = wire_init();

	if (r)
		return error_set(e, -r, ERROR_GENERIC, "libsodium does not work here");
	r = wire_key_load(o->key_file, &d.key, why, sizeof(why));
	if (r)
		return error_set(e, -r, ERROR_ARGUMENT, "%s", why);
	wire_random(&d.boot, sizeof(d.boot));
	r = start(&d, e);
	if (!r) {
		log_info("lending up to %llu MiB on %s",
			 (unsigned long long)d.pool.n_chunks * WIRE_CHUNK_BYTES >> 20,
			 o->listen_text);
		notify_ready();
		loop(&d);
	}
	session_end_all(&d);
	if (d.listener)
		rdma_destroy_id(d.listener);
	if (d.events)
		rdma_destroy_event_channel(d.events);
	pool_destroy(&d.pool);
	fd_close(&d.status_fd);
	fd_close(&d.epoll_fd);
	fd_close(&d.timer_fd);
	fd_close(&d.signal_fd);
	explicit_bzero(&d.key, sizeof(d.key));
	return r;
}
