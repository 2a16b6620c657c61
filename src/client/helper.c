/* SPDX-License-Identifier: BSD-3-Clause */
/* helper.c: the thread that connects, attaches, and carries messages. */
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/fd.h"
#include "client/client.h"
#include "client/json.h"
#include "client/real.h"

/*
 * Without a connection the thread looks for a daemon whenever there is RAM to offer, first after
 * 100 ms, then ever less often up to every 2 s (a minute where the daemon refused). Once attached
 * it sends what is queued, in order, and takes the answers, in the same order, and the daemon's
 * requests from one stream of lines.
 *
 * When the connection ends, the ranges may still be registered: pages may be evicted, and only
 * our duplicate of the userfaultfd keeps the vCPUs that need them waiting instead of reading
 * zeroes. So it is kept (LINK_ORPHANED) until the kernel says that nothing is registered with it
 * any more, which is so when the daemon let the VM go. Whoever let go is not asked again.
 */

#define STACK_BYTES	   (256 << 10)
#define LINE_BYTES	   (64 << 10) /* the longest line from the daemon */
#define MESSAGE_BYTES	   (32 << 10)
#define ATTACH_REGIONS	   32		     /* in one message; the rest follow by region-add */
#define SETTLE_NS	   (200 * NS_PER_MS) /* new RAM is left alone: it may be preallocated */
#define BACKOFF_FIRST_NS   (100 * NS_PER_MS)
#define BACKOFF_LAST_NS	   (2 * NS_PER_S)
#define BACKOFF_REFUSED_NS (60 * NS_PER_S)
#define ORPHAN_CHECK_NS	   (2 * NS_PER_S)
#define ATTACH_WAIT_MS	   60000
#define SEND_WAIT_S	   5

/* The helper's own memory, apart from the stack: static, because there is one helper. */
static struct {
	char line[LINE_BYTES + 1]; /* received, not yet handled */
	size_t have;
	char message[MESSAGE_BYTES];
} io;

void helper_wake(struct client *c)
{
	uint64_t one = 1;

	if (c->wake >= 0 && write(c->wake, &one, sizeof(one)) < 0)
		return; /* full: it will wake all the same */
}

static void link_set(struct client *c, enum link_state link)
{
	c->link = link;
	pthread_cond_broadcast(&c->changed);
}

static void disconnect(struct client *c)
{
	client_drop_fd(c, c->sock);
	c->sock = -1;
	io.have = 0;
}

static void back_off(struct client *c, uint64_t last_ns)
{
	c->backoff_ns = c->backoff_ns ? c->backoff_ns * 2 : BACKOFF_FIRST_NS;
	if (c->backoff_ns > last_ns)
		c->backoff_ns = last_ns;
	c->retry_ns = clock_ns() + c->backoff_ns;
}

/* Says why something did not work, once for each reason. */
static void say_once(struct client *c, const char *what, const char *why)
{
	char text[sizeof(c->last_error)];

	snprintf(text, sizeof(text), "%s: %s", what, why);
	if (strcmp(text, c->last_error))
		say("%s", text);
	memcpy(c->last_error, text, sizeof(text));
}

/* ---- lines ---- */

struct answer {
	int result; /* 0, or what the error's class says */
	char cls[32], desc[256];
};

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

static void read_answer(struct json_span line, struct answer *a)
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

/* Reads what is there (and, in *fd, a descriptor that came with it). 0 or -errno. */
static int receive(struct client *c, int *fd)
{
	int fds[1], n_fds = 1;
	ssize_t n;

	if (io.have == LINE_BYTES)
		return -EMSGSIZE;
	n = fd_recv(c->sock, io.line + io.have, LINE_BYTES - io.have, fds, &n_fds);
	if (n <= 0)
		return n ? (int)n : -ECONNRESET;
	io.have += (size_t)n;
	if (n_fds && fd && *fd < 0)
		*fd = fds[0];
	else if (n_fds)
		real.close(fds[0]);
	return 0;
}

/*
 * The first whole line, parsed; its length goes to *bytes for line_done(). -EAGAIN when there is
 * none yet, -EPROTO when it is not JSON.
 */
static int line_next(struct json_span *out, size_t *bytes)
{
	const char *nl = memchr(io.line, '\n', io.have);

	if (!nl)
		return -EAGAIN;
	*bytes = (size_t)(nl - io.line) + 1;
	return json_parse(io.line, *bytes - 1, out) ? -EPROTO : 0;
}

static void line_done(size_t bytes)
{
	io.have -= bytes;
	memmove(io.line, io.line + bytes, io.have);
}

/* Waits for one answer, outside the stream of ops: while attaching nothing else is under way. */
static int await_answer(struct client *c, struct answer *a, int *fd)
{
	uint64_t until = clock_ns() + ATTACH_WAIT_MS * NS_PER_MS;
	struct json_span line;
	size_t bytes;
	int r;

	while ((r = line_next(&line, &bytes)) == -EAGAIN) {
		struct pollfd p = {.fd = c->sock, .events = POLLIN};
		uint64_t now = clock_ns();

		if (now >= until)
			return -ETIMEDOUT;
		r = poll(&p, 1, (int)((until - now) / NS_PER_MS) + 1);
		if (r > 0)
			r = receive(c, fd);
		else if (r < 0 && errno != EINTR)
			r = -errno;
		if (r < 0)
			return r;
	}
	if (r)
		return r;
	read_answer(line, a);
	line_done(bytes);
	return 0;
}

static int send_line(struct client *c, size_t len, const int *fds, int n_fds)
{
	io.message[len] = '\n';
	return fd_send(c->sock, io.message, len + 1, fds, n_fds);
}

/* ---- attaching ---- */

/* Which regions go into the attach; 0 when none, or when one is not ready. *ready_ns: when. */
static unsigned int choose(struct client *c, bool *chosen, uint64_t *ready_ns)
{
	uint64_t now = clock_ns();
	unsigned int n = 0;

	memset(chosen, 0, CLIENT_REGIONS_MAX * sizeof(*chosen));
	*ready_ns = 0;
	for (unsigned int k = 0; k < CLIENT_REGIONS_MAX; k++) {
		unsigned int i = c->one_by_one ? (c->next_one + k) % CLIENT_REGIONS_MAX : k;
		const struct region *r = &c->regions[i];

		if (r->state != REGION_NEW || n == (c->one_by_one ? 1 : ATTACH_REGIONS))
			continue;
		if (r->busy || r->since_ns + SETTLE_NS > now) {
			*ready_ns = r->busy ? 0 : r->since_ns + SETTLE_NS;
			memset(chosen, 0, CLIENT_REGIONS_MAX * sizeof(*chosen));
			return 0;
		}
		chosen[i] = true;
		n++;
		if (c->one_by_one)
			c->next_one = i + 1;
	}
	return n;
}

static void set_chosen(struct client *c, const bool *chosen, enum region_state from,
		       enum region_state to)
{
	for (unsigned int i = 0; i < CLIENT_REGIONS_MAX; i++)
		if (chosen[i] && c->regions[i].state == from)
			c->regions[i].state = to;
}

/* The daemon's userfaultfd device, for a process that may not open its own. */
static int uffd_from_daemon(struct client *c)
{
	static const char ask[] = "{\"execute\":\"userfaultfd\"}";
	FD_OWNED device = -1;
	struct answer a;
	int r;

	memcpy(io.message, ask, sizeof(ask) - 1);
	r = send_line(c, sizeof(ask) - 1, NULL, 0);
	if (!r)
		r = await_answer(c, &a, &device);
	if (r)
		return r;
	if (a.result || device < 0) {
		say_once(c, "no userfaultfd", a.result ? a.desc : "the daemon lent no device");
		return -EPERM;
	}
	return uffd_from_device(device);
}

static int daemon_pid(int sock)
{
	struct ucred cred;
	socklen_t len = sizeof(cred);

	return getsockopt(sock, SOL_SOCKET, SO_PEERCRED, &cred, &len) ? 0 : cred.pid;
}

static int connect_daemon(struct client *c)
{
	struct timeval limit = {.tv_sec = SEND_WAIT_S};
	int fd = fd_connect_unix(c->socket_path);
	pid_t pid;

	if (fd < 0)
		return fd;
	pid = daemon_pid(fd);
	if (pid > 0 && pid == c->released_by) {
		real.close(fd);
		return -ECONNABORTED;
	}
	setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof(limit));
	c->sock = client_keep_fd(c, fd);
	io.have = 0;
	return 0;
}

/* Offers what is ready by now and marks it in `chosen`; -EAGAIN when nothing is. */
static int offer(struct client *c, bool *chosen, int uffd, struct answer *a)
{
	int fds[ATTACH_REGIONS + 1], n_fds, len = -EAGAIN;
	uint64_t ready_ns;
	int r;

	pthread_mutex_lock(&c->lock);
	if (choose(c, chosen, &ready_ns))
		len = message_attach(c, chosen, uffd, io.message, MESSAGE_BYTES - 1, fds, &n_fds);
	if (len > 0)
		set_chosen(c, chosen, REGION_NEW, REGION_OFFERED);
	pthread_mutex_unlock(&c->lock);
	if (len < 0)
		return len;
	r = send_line(c, (size_t)len, fds, n_fds);
	return r ? r : await_answer(c, a, NULL);
}

static unsigned int count_state(struct client *c, enum region_state state)
{
	unsigned int n = 0;

	for (unsigned int i = 0; i < CLIENT_REGIONS_MAX; i++)
		n += c->regions[i].state == state;
	return n;
}

static void refused(struct client *c, const bool *chosen, const struct answer *a)
{
	say_once(c, "not attached", a->desc);
	if (c->require && !c->ever_attached) {
		say("EBB_REQUIRE is set: giving up");
		_exit(1);
	}
	pthread_mutex_lock(&c->lock);
	/* Somebody's userfaultfd is on the range: it is theirs until the mappings change. */
	if (a->result == -EBUSY)
		set_chosen(c, chosen, REGION_OFFERED, REGION_REFUSED);
	else
		set_chosen(c, chosen, REGION_OFFERED, REGION_NEW);
	c->one_by_one = count_state(c, REGION_NEW) > 1 && a->result != -EEXIST;
	pthread_cond_broadcast(&c->changed);
	pthread_mutex_unlock(&c->lock);
	back_off(c, c->secondary || a->result == -EEXIST ? BACKOFF_LAST_NS : BACKOFF_REFUSED_NS);
}

/* A region's state after the daemon has taken it. With the lock held. */
static void region_taken(struct client *c, unsigned int i)
{
	struct op *op;

	if (c->regions[i].state == REGION_OFFERED)
		c->regions[i].state = REGION_MANAGED;
	if (!c->regions[i].shared)
		return;
	op = op_submit(c, c->no_share ? OP_PIN : OP_SHARE, i);
	if (op) {
		op->size = c->regions[i].size;
		op->unwatched = true;
	}
}

static void attached(struct client *c, const bool *chosen, int uffd)
{
	pthread_mutex_lock(&c->lock);
	c->uffd = client_keep_fd(c, uffd);
	link_set(c, LINK_ATTACHED);
	for (unsigned int i = 0; i < CLIENT_REGIONS_MAX; i++)
		if (chosen[i])
			region_taken(c, i);
	pthread_mutex_unlock(&c->lock);
	c->backoff_ns = 0;
	c->one_by_one = false;
	c->ever_attached = true;
	c->last_error[0] = '\0';
	say("attached to %s as %s", c->socket_path, c->name);
}

static void close_uffd(struct client *c)
{
	client_drop_fd(c, c->uffd);
	c->uffd = -1;
}

/* Nothing is registered any more: start afresh. With the lock held. */
static void let_go(struct client *c)
{
	close_uffd(c);
	for (unsigned int i = 0; i < CLIENT_REGIONS_MAX; i++)
		if (c->regions[i].state == REGION_OFFERED || c->regions[i].state == REGION_MANAGED)
			c->regions[i].state = REGION_NEW;
	link_set(c, LINK_NONE);
}

static bool still_registered(struct client *c)
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
static bool orphaned(struct client *c)
{
	for (unsigned int i = 0; i < CLIENT_REGIONS_MAX; i++)
		if (c->regions[i].state == REGION_LEAVING)
			c->regions[i].state = REGION_MANAGED;
	link_set(c, LINK_ORPHANED);
	op_fail_all(c, -ENOTCONN);
	if (still_registered(c))
		return false;
	let_go(c);
	return true;
}

static void attach_now(struct client *c)
{
	bool chosen[CLIENT_REGIONS_MAX] = {false};
	struct answer a = {0};
	FD_OWNED uffd = -1;
	int r = connect_daemon(c);

	if (!r) {
		uffd = uffd_new();
		if (uffd == -EPERM)
			uffd = uffd_from_daemon(c);
		r = uffd < 0 ? uffd : offer(c, chosen, uffd, &a);
	}
	if (!r && !a.result) {
		attached(c, chosen, fd_take(&uffd));
		return;
	}
	disconnect(c);
	if (!r) {
		refused(c, chosen, &a);
		return;
	}
	/*
	 * An attach that was not answered may have registered ranges: the userfaultfd is kept as
	 * after a lost connection, unless nothing is registered with it.
	 */
	pthread_mutex_lock(&c->lock);
	if (uffd >= 0) {
		c->uffd = client_keep_fd(c, fd_take(&uffd));
		orphaned(c);
	}
	pthread_mutex_unlock(&c->lock);
	back_off(c, BACKOFF_LAST_NS);
}

/* Tries to attach when it is time to; returns when (CLOCK_MONOTONIC) to look again, 0: never. */
static uint64_t try_attach(struct client *c)
{
	bool chosen[CLIENT_REGIONS_MAX];
	uint64_t ready_ns;
	unsigned int n, first = c->next_one;

	if (atomic_exchange(&c->mappings_changed, false) && c->backoff_ns > BACKOFF_LAST_NS)
		c->retry_ns = c->backoff_ns = 0;
	pthread_mutex_lock(&c->lock);
	n = choose(c, chosen, &ready_ns);
	c->next_one = first;
	pthread_mutex_unlock(&c->lock);
	if (!n || clock_ns() < c->retry_ns)
		return n ? c->retry_ns : ready_ns;
	attach_now(c);
	return clock_ns();
}

/* ---- attached ---- */

static void connection_lost(struct client *c)
{
	pid_t pid = daemon_pid(c->sock);

	disconnect(c);
	pthread_mutex_lock(&c->lock);
	if (orphaned(c))
		c->released_by = pid;
	else
		say("lost the daemon; its memory waits for it to come back");
	pthread_mutex_unlock(&c->lock);
	back_off(c, BACKOFF_LAST_NS);
}

static void check_orphan(struct client *c)
{
	pthread_mutex_lock(&c->lock);
	if (!still_registered(c))
		let_go(c);
	pthread_mutex_unlock(&c->lock);
	c->retry_ns = clock_ns() + ORPHAN_CHECK_NS;
}

static void finish_op(struct client *c, struct op *op, const struct answer *a)
{
	struct region *r = op_region(c, op);
	int result = a->result;

	switch (op->kind) {
	case OP_ADD:
		if (!r)
			break;
		if (!result) {
			region_taken(c, op->region);
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
				region_taken(c, op->region);
		}
		break;
	case OP_DISCARD:
		if (result && r)
			say("%s: discard failed: %s", r->id, a->desc);
		break;
	case OP_PIN:
	case OP_DETACH:
		break;
	}
	op_done(c, op, result);
}

/* The daemon let everything go because we asked. With the lock held. */
static void detached(struct client *c)
{
	op_fail_all(c, -ENOTCONN);
	let_go(c);
}

/* True when the connection is to be closed. */
static bool take_answer(struct client *c, struct json_span line)
{
	struct answer a;
	struct op *op;
	bool gone = false;

	read_answer(line, &a);
	pthread_mutex_lock(&c->lock);
	op = op_first(c, OP_SENT);
	if (op) {
		gone = op->kind == OP_DETACH && !a.result;
		finish_op(c, op, &a);
		if (gone)
			detached(c);
	}
	pthread_mutex_unlock(&c->lock);
	if (gone) {
		disconnect(c);
		/* A fork or exec follows; a child that maps the RAM must be seen first. */
		c->retry_ns = clock_ns() + BACKOFF_LAST_NS;
	}
	return !op;
}

/*
 * Drops page-table entries: the data stays in the file. The region is marked, not locked: with a
 * REMOVE event to be read by the daemon, madvise() takes as long as the daemon does.
 */
static int zap(struct client *c, uint64_t addr, uint64_t bytes)
{
	struct region *r = NULL;
	int err;

	pthread_mutex_lock(&c->lock);
	for (unsigned int i = 0; i < CLIENT_REGIONS_MAX; i++) {
		struct region *at = &c->regions[i];

		if (at->state == REGION_MANAGED && addr >= at->addr && bytes <= at->size &&
		    addr - at->addr <= at->size - bytes)
			r = at;
	}
	if (r)
		r->zapping = true;
	pthread_mutex_unlock(&c->lock);
	if (!r)
		return -EINVAL;
	err = real.madvise((void *)(uintptr_t)addr, bytes, MADV_DONTNEED) ? -errno : 0;
	pthread_mutex_lock(&c->lock);
	r->zapping = false;
	pthread_cond_broadcast(&c->changed);
	pthread_mutex_unlock(&c->lock);
	return err;
}

/* {"ranges":[[address,bytes],...]} */
static int zap_ranges(struct client *c, struct json_span line)
{
	struct json_span arguments, ranges, range = {0};

	if (!json_member(line, "arguments", &arguments) ||
	    !json_member(arguments, "ranges", &ranges))
		return -EINVAL;
	while (json_next(ranges, &range)) {
		struct json_span at = {0};
		uint64_t pair[2];
		int r = 0;

		for (int i = 0; i < 2 && !r; i++)
			r = json_next(range, &at) ? json_u64(at, &pair[i]) : -EINVAL;
		if (!r)
			r = zap(c, pair[0], pair[1]);
		if (r)
			return r;
	}
	return 0;
}

static int take_request(struct client *c, struct json_span line, struct json_span name)
{
	struct json_text t = {.buf = io.message, .cap = MESSAGE_BYTES - 1};
	struct json_span value;
	uint64_t id = 0;
	char command[32];
	int r;

	if (json_string(name, command, sizeof(command)) || !json_member(line, "id", &value) ||
	    json_u64(value, &id))
		return -EPROTO;
	r = strcmp(command, "zap") ? -ENOSYS : zap_ranges(c, line);
	if (!r)
		json_add(&t, "{\"return\":{}");
	else
		json_add(&t, "{\"error\":{\"class\":\"%s\",\"desc\":\"%s: %s\"}",
			 r == -ENOSYS ? "CommandNotFound" : "GenericError",
			 r == -ENOSYS ? "request" : "zap", strerror(-r));
	json_add(&t, ",\"id\":%llu}", (unsigned long long)id);
	return send_line(c, t.len, NULL, 0);
}

/* Handles the whole lines that have come. */
static void handle_lines(struct client *c)
{
	struct json_span line, name;
	size_t bytes;
	int r;

	while ((r = line_next(&line, &bytes)) == 0) {
		if (json_member(line, "execute", &name))
			r = take_request(c, line, name);
		else if (!json_member(line, "event", &name) && take_answer(c, line))
			r = -EPROTO;
		if (c->sock < 0)
			return;
		if (r)
			break;
		line_done(bytes);
	}
	if (r == -EPROTO)
		say("the daemon sent something that is not the protocol");
	if (r != -EAGAIN)
		connection_lost(c);
}

static void serve(struct client *c)
{
	if (receive(c, NULL))
		connection_lost(c);
	else
		handle_lines(c);
}

/* Sends the queued ops. */
static void send_queued(struct client *c)
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
		len = message_op(c, op, io.message, MESSAGE_BYTES - 1, fds, &n_fds);
		/* A duplicate: the region may go while its message is under way. */
		if (n_fds)
			fd = dup(fds[0]);
		op->state = OP_SENT;
		pthread_mutex_unlock(&c->lock);
		r = len < 0 ? len : send_line(c, (size_t)len, &fd, n_fds);
		if (fd >= 0)
			real.close(fd);
		if (r) {
			connection_lost(c);
			return;
		}
	}
}

/* RAM that came later. Returns when to look again, 0: never. */
static uint64_t offer_more(struct client *c)
{
	uint64_t now = clock_ns(), next = 0;

	pthread_mutex_lock(&c->lock);
	for (unsigned int i = 0; i < CLIENT_REGIONS_MAX; i++) {
		struct region *r = &c->regions[i];
		struct op *op;

		if (r->state != REGION_NEW || r->busy)
			continue;
		if (r->since_ns + SETTLE_NS > now) {
			if (!next || r->since_ns + SETTLE_NS < next)
				next = r->since_ns + SETTLE_NS;
			continue;
		}
		op = op_submit(c, OP_ADD, i);
		if (!op)
			break;
		op->unwatched = true;
		r->state = REGION_OFFERED;
	}
	pthread_mutex_unlock(&c->lock);
	return next;
}

static uint64_t step(struct client *c)
{
	uint64_t next;

	switch (c->link) {
	case LINK_NONE:
		return try_attach(c);
	case LINK_ORPHANED:
		if (clock_ns() >= c->retry_ns)
			check_orphan(c);
		return c->retry_ns;
	case LINK_ATTACHED:
		/* Requests may have come right behind the attach's answer. */
		handle_lines(c);
		if (c->link != LINK_ATTACHED)
			return c->retry_ns;
		next = offer_more(c);
		send_queued(c);
		return next;
	}
	return 0;
}

static void *helper_main(void *arg)
{
	struct client *c = arg;

	prctl(PR_SET_NAME, "ebb-attach");
	while (!atomic_load(&c->finished) || c->link == LINK_ATTACHED) {
		uint64_t next = step(c), now = clock_ns(), count;
		struct pollfd p[2] = {
			{.fd = c->wake, .events = POLLIN},
			{.fd = c->link == LINK_ATTACHED ? c->sock : -1, .events = POLLIN},
		};
		int ms = -1;

		if (next)
			ms = next > now ? (int)((next - now + NS_PER_MS - 1) / NS_PER_MS) : 0;
		if (poll(p, 2, ms) < 0)
			continue;
		if (p[0].revents && read(c->wake, &count, sizeof(count)) < 0)
			continue;
		if (p[1].revents)
			serve(c);
	}
	return NULL;
}

void helper_start(struct client *c)
{
	pthread_attr_t attr;
	sigset_t all, old;
	bool make;

	pthread_mutex_lock(&c->lock);
	make = !atomic_load(&c->started);
	if (make) {
		c->wake = client_keep_fd(c, eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
		sigfillset(&all);
		pthread_attr_init(&attr);
		pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
		pthread_attr_setstacksize(&attr, STACK_BYTES);
		/* The new thread inherits the mask: no signal of the VMM's ends up in it. */
		pthread_sigmask(SIG_SETMASK, &all, &old);
		if (!pthread_create(&c->helper, &attr, helper_main, c))
			atomic_store_explicit(&c->started, true, memory_order_release);
		else
			say("cannot make a thread; this VM is not managed");
		pthread_sigmask(SIG_SETMASK, &old, NULL);
		pthread_attr_destroy(&attr);
	}
	pthread_mutex_unlock(&c->lock);
	if (!make)
		helper_wake(c);
}
