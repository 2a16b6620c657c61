/* SPDX-License-Identifier: BSD-3-Clause */
/* offer.c: offers the process's guest RAM to the daemon. */
#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "base/fd.h"
#include "client/link.h"

#define ATTACH_REGIONS 32		 /* in one message; the rest follow by region-add */
#define SETTLE_NS      (200 * NS_PER_MS) /* new RAM is left alone: it may be preallocated */

/* A message's regions must not overlap in a file; a second mapping of one follows by region-add. */
bool offer_overlaps(const struct client *c, const bool *chosen, const struct region *r)
{
	for (unsigned int i = 0; i < CLIENT_REGIONS_MAX; i++) {
		const struct region *at = &c->regions[i];

		if (chosen[i] && region_is_file(at, r->dev, r->ino) &&
		    r->offset < at->offset + at->size && at->offset < r->offset + r->size)
			return true;
	}
	return false;
}

/* A back end does not preallocate, and until it has attached it can be in the way of the VM. */
static uint64_t settled_ns(const struct client *c, const struct region *r)
{
	return c->secondary ? 0 : r->since_ns + SETTLE_NS;
}

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
		if (r->busy || settled_ns(c, r) > now) {
			*ready_ns = r->busy ? 0 : settled_ns(c, r);
			memset(chosen, 0, CLIENT_REGIONS_MAX * sizeof(*chosen));
			return 0;
		}
		if (offer_overlaps(c, chosen, r))
			continue;
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

	memcpy(link_io.message, ask, sizeof(ask) - 1);
	r = link_send(c, sizeof(ask) - 1, NULL, 0);
	if (!r)
		r = link_await(c, &a, &device);
	if (r)
		return r;
	if (a.result || device < 0) {
		link_say_once(c, "no userfaultfd", a.result ? a.desc : "the daemon lent no device");
		return -EPERM;
	}
	return uffd_from_device(device);
}

/* Offers what is ready by now and marks it in `chosen`; -EAGAIN when nothing is. */
static int offer(struct client *c, bool *chosen, int uffd, struct answer *a)
{
	int fds[ATTACH_REGIONS + 1], n_fds, len = -EAGAIN;
	uint64_t ready_ns;
	int r;

	pthread_mutex_lock(&c->lock);
	if (choose(c, chosen, &ready_ns))
		len = message_attach(c, chosen, uffd, false, link_io.message,
				     LINK_MESSAGE_BYTES - 1, fds, &n_fds);
	if (len > 0)
		set_chosen(c, chosen, REGION_NEW, REGION_OFFERED);
	pthread_mutex_unlock(&c->lock);
	if (len < 0)
		return len;
	r = link_send(c, (size_t)len, fds, n_fds);
	return r ? r : link_await(c, a, NULL);
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
	link_say_once(c, "not attached", a->desc);
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
	link_back_off(c,
		      c->secondary || a->result == -EEXIST ? BACKOFF_LAST_NS : BACKOFF_REFUSED_NS);
}

/* A region's state after the daemon has taken it. With the lock held. */
void offer_taken(struct client *c, unsigned int i)
{
	struct op *op;

	if (c->regions[i].state == REGION_OFFERED)
		c->regions[i].state = REGION_MANAGED;
	if (!c->regions[i].shared)
		return;
	op = op_submit(c, c->no_share ? OP_PIN : OP_SHARE, i);
	if (op) {
		op->size = c->regions[i].size;
		op->peer = c->regions[i].peer;
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
			offer_taken(c, i);
	pthread_mutex_unlock(&c->lock);
	c->backoff_ns = 0;
	c->one_by_one = false;
	c->ever_attached = true;
	c->last_error[0] = '\0';
	say("attached to %s as %s", c->socket_path, c->name);
}

static void attach_now(struct client *c)
{
	bool chosen[CLIENT_REGIONS_MAX] = {false};
	struct answer a = {0};
	FD_OWNED uffd = -1;
	pid_t pid = 0;
	int r = link_connect(c);

	if (!r) {
		pid = link_daemon_pid(c);
		uffd = uffd_new();
		if (uffd == -EPERM)
			uffd = uffd_from_daemon(c);
		r = uffd < 0 ? uffd : offer(c, chosen, uffd, &a);
	}
	if (!r && !a.result) {
		attached(c, chosen, fd_take(&uffd));
		return;
	}
	link_close(c);
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
		if (!link_orphaned(c))
			c->lost_by = pid;
	}
	pthread_mutex_unlock(&c->lock);
	link_back_off(c, BACKOFF_LAST_NS);
}

/* Tries to attach when it is time to; returns when (CLOCK_MONOTONIC) to look again, 0: never. */
uint64_t offer_attach(struct client *c)
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

/* RAM that came later, and pins that end. Returns when to look again, 0: never. */
uint64_t offer_more(struct client *c)
{
	uint64_t now = clock_ns(), next = 0;

	pthread_mutex_lock(&c->lock);
	for (unsigned int i = 0; i < CLIENT_REGIONS_MAX; i++) {
		struct region *r = &c->regions[i];
		struct op *op;

		if (r->pins && r->unpin_ns <= now) {
			op = op_submit(c, OP_UNPIN, i);
			if (op) {
				op->size = r->size;
				op->unwatched = true;
				r->pins--;
			}
		}
		if (r->pins && (!next || r->unpin_ns < next))
			next = r->unpin_ns;
		if (r->state != REGION_NEW || r->busy)
			continue;
		if (settled_ns(c, r) > now) {
			if (!next || settled_ns(c, r) < next)
				next = settled_ns(c, r);
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
