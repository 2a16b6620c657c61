/* SPDX-License-Identifier: BSD-3-Clause */
/* link.c: the connection to the daemon: lines both ways, and what is left when it ends. */
#include "client/link.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/fd.h"
#include "client/real.h"

#define ATTACH_WAIT_MS 60000
#define SEND_WAIT_S    5

struct link_io link_io;

void link_set(struct client *c, enum link_state link)
{
	c->link = link;
	pthread_cond_broadcast(&c->changed);
}

void link_close(struct client *c)
{
	pthread_mutex_lock(&c->lock);
	client_drop_fd(c, c->sock);
	c->sock = -1;
	pthread_mutex_unlock(&c->lock);
	link_done(link_io.have);
}

void link_back_off(struct client *c, uint64_t last_ns)
{
	c->backoff_ns = c->backoff_ns ? c->backoff_ns * 2 : BACKOFF_FIRST_NS;
	if (c->backoff_ns > last_ns)
		c->backoff_ns = last_ns;
	c->retry_ns = clock_ns() + c->backoff_ns;
}

/* Says why something did not work, once for each reason. */
void link_say_once(struct client *c, const char *what, const char *why)
{
	char text[sizeof(c->last_error)];

	snprintf(text, sizeof(text), "%s: %s", what, why);
	if (strcmp(text, c->last_error))
		say("%s", text);
	memcpy(c->last_error, text, sizeof(text));
}

/* ---- lines ---- */

static int class_errno(const char *cls)
{
	static const struct {
		const char *cls;
		int err;
	} known[] = {
		{"CommandNotFound", EOPNOTSUPP},
		{"Busy", EBUSY},
		{"RegionsInUse", EADDRINUSE},
		{"AlreadyExists", EEXIST},
		{"NotFound", ENOENT},
		{"PermissionDenied", EACCES},
		{"NoSpace", ENOSPC},
	};

	for (size_t i = 0; i < sizeof(known) / sizeof(*known); i++)
		if (!strcmp(cls, known[i].cls))
			return -known[i].err;
	return -EIO;
}

void link_read_answer(struct json_span line, struct answer *a)
{
	struct json_span error, value;

	*a = (struct answer){0};
	if (json_member(line, "return", &value))
		return;
	snprintf(a->desc, sizeof(a->desc), "an answer that is neither return nor error");
	a->result = -EPROTO;
	if (!json_member(line, "error", &error))
		return;
	if (json_member(error, "class", &value))
		json_string(value, a->cls, sizeof(a->cls));
	if (json_member(error, "desc", &value))
		json_string(value, a->desc, sizeof(a->desc));
	a->result = class_errno(a->cls);
}

/*
 * What one recvmsg() gives ends behind the packet that carried a descriptor, and the daemon sends
 * each line by itself: so a descriptor belongs to the last line that has begun.
 */
static int add_fd(int fd)
{
	size_t n = link_io.have;

	if (link_io.n_fds == LINK_FDS_WAITING) {
		real.close(fd);
		return -EPROTO;
	}
	if (n)
		n--;
	while (n && link_io.line[n - 1] != '\n')
		n--;
	link_io.fds[link_io.n_fds].fd = fd;
	link_io.fds[link_io.n_fds++].at = n;
	return 0;
}

int link_receive(struct client *c)
{
	int fds[1], n_fds = 1;
	ssize_t n;

	if (link_io.have == LINK_LINE_BYTES)
		return -EMSGSIZE;
	n = fd_recv(c->sock, link_io.line + link_io.have, LINK_LINE_BYTES - link_io.have, fds,
		    &n_fds);
	if (n <= 0)
		return n ? (int)n : -ECONNRESET;
	link_io.have += (size_t)n;
	return n_fds ? add_fd(fds[0]) : 0;
}

int link_take_fd(void)
{
	int fd;

	if (!link_io.n_fds || link_io.fds[0].at)
		return -1;
	fd = link_io.fds[0].fd;
	link_io.fds[0] = link_io.fds[1];
	link_io.n_fds--;
	return fd;
}

/*
 * The first whole line, parsed; its length goes to *bytes for link_done(). -EAGAIN when there is
 * none yet, -EPROTO when it is not JSON.
 */
int link_next(struct json_span *out, size_t *bytes)
{
	const char *nl = memchr(link_io.line, '\n', link_io.have);

	if (!nl)
		return -EAGAIN;
	*bytes = (size_t)(nl - link_io.line) + 1;
	return json_parse(link_io.line, *bytes - 1, out) ? -EPROTO : 0;
}

void link_done(size_t bytes)
{
	unsigned int left = 0;

	for (unsigned int i = 0; i < link_io.n_fds; i++) {
		if (link_io.fds[i].at < bytes) {
			real.close(link_io.fds[i].fd);
			continue;
		}
		link_io.fds[left] = link_io.fds[i];
		link_io.fds[left++].at -= bytes;
	}
	link_io.n_fds = left;
	link_io.have -= bytes;
	memmove(link_io.line, link_io.line + bytes, link_io.have);
}

/* Waits for one answer, outside the stream of ops: while attaching nothing else is under way. */
int link_await(struct client *c, struct answer *a, int *fd)
{
	uint64_t until = clock_ns() + ATTACH_WAIT_MS * NS_PER_MS;
	struct json_span line;
	size_t bytes;
	int r;

	while ((r = link_next(&line, &bytes)) == -EAGAIN) {
		struct pollfd p = {.fd = c->sock, .events = POLLIN};
		uint64_t now = clock_ns();

		if (now >= until)
			return -ETIMEDOUT;
		r = poll(&p, 1, (int)((until - now) / NS_PER_MS) + 1);
		if (r > 0)
			r = link_receive(c);
		else if (r < 0 && errno != EINTR)
			r = -errno;
		if (r < 0)
			return r;
	}
	if (r)
		return r;
	link_read_answer(line, a);
	if (fd)
		*fd = link_take_fd();
	link_done(bytes);
	return 0;
}

int link_send(struct client *c, size_t len, const int *fds, int n_fds)
{
	const char *from = link_io.message;
	int r = 0;

	link_io.message[len++] = '\n';
	pthread_mutex_lock(&c->lock);
	c->sending = true;
	pthread_mutex_unlock(&c->lock);
	/* Descriptors may come with any byte of the message they belong to. */
	for (; n_fds > FD_MESSAGE_MAX && !r; n_fds -= FD_MESSAGE_MAX, fds += FD_MESSAGE_MAX, len--)
		r = fd_send(c->sock, from++, 1, fds, FD_MESSAGE_MAX);
	if (!r)
		r = fd_send(c->sock, from, len, fds, n_fds);
	pthread_mutex_lock(&c->lock);
	c->sending = false;
	pthread_mutex_unlock(&c->lock);
	return r;
}

/* ---- the connection ---- */

static int daemon_pid(int sock)
{
	struct ucred cred;
	socklen_t len = sizeof(cred);

	return getsockopt(sock, SOL_SOCKET, SO_PEERCRED, &cred, &len) ? 0 : cred.pid;
}

pid_t link_daemon_pid(struct client *c)
{
	return daemon_pid(c->sock);
}

int link_connect(struct client *c)
{
	struct timeval limit = {.tv_sec = SEND_WAIT_S};
	int fd = fd_connect_unix(c->dial_path);
	pid_t pid;

	if (fd < 0) {
		/* Gone; what answers next time is another daemon, whatever its number. */
		c->released_by = c->lost_by = 0;
		return fd;
	}
	pid = daemon_pid(fd);
	/* 0: another PID namespace; 1: systemd's socket, whoever serves it. */
	if (pid > 1 && (pid == c->released_by || pid == c->lost_by)) {
		real.close(fd);
		return -ECONNABORTED;
	}
	setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof(limit));
	pthread_mutex_lock(&c->lock);
	c->sock = client_keep_fd(c, fd);
	pthread_mutex_unlock(&c->lock);
	/* link_close() left nothing; a forked child has what its parent was reading. */
	link_io.have = link_io.n_fds = 0;
	return 0;
}

static void close_uffd(struct client *c)
{
	client_drop_fd(c, c->uffd);
	c->uffd = -1;
}

/* Nothing is registered any more: start afresh. With the lock held. */
void link_let_go(struct client *c)
{
	close_uffd(c);
	kept_drop_all(c);
	c->lost_by = 0;
	for (unsigned int i = 0; i < CLIENT_REGIONS_MAX; i++) {
		struct region *r = &c->regions[i];

		r->pins = 0;
		if (r->state == REGION_OFFERED || r->state == REGION_MANAGED)
			r->state = REGION_NEW;
	}
	link_set(c, LINK_NONE);
}

bool link_registered(struct client *c)
{
	for (unsigned int i = 0; i < CLIENT_REGIONS_MAX; i++) {
		const struct region *r = &c->regions[i];

		if (region_known(r) && uffd_registered(c->uffd, r->addr, r->page_size))
			return true;
	}
	return false;
}

/*
 * There is no connection any more, but there is a userfaultfd. True when nothing is registered
 * with it, so that it was given up. With the lock held.
 */
bool link_orphaned(struct client *c)
{
	for (unsigned int i = 0; i < CLIENT_REGIONS_MAX; i++)
		if (c->regions[i].state == REGION_LEAVING)
			c->regions[i].state = REGION_MANAGED;
	link_set(c, LINK_ORPHANED);
	op_fail_all(c, -ENOTCONN);
	c->zap.id = 0;
	if (link_registered(c))
		return false;
	link_let_go(c);
	return true;
}

void link_lost(struct client *c)
{
	pid_t pid = daemon_pid(c->sock);

	link_close(c);
	pthread_mutex_lock(&c->lock);
	if (link_orphaned(c)) {
		c->released_by = pid;
	} else {
		c->lost_by = pid;
		say("lost the daemon; its memory waits for it to come back");
	}
	pthread_mutex_unlock(&c->lock);
	link_back_off(c, BACKOFF_LAST_NS);
}

void link_check_orphan(struct client *c)
{
	pthread_mutex_lock(&c->lock);
	if (!link_registered(c))
		link_let_go(c);
	pthread_mutex_unlock(&c->lock);
}
