/* SPDX-License-Identifier: BSD-3-Clause */
/* leave.c: RAM that is about to leave the daemon's sight: what is evicted comes back first. */
#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/clock.h"
#include "client/client.h"
#include "client/real.h"

#define ASIDE_WAIT_MS	 30000
#define FORK_WAIT_S	 30
#define EXIT_WAIT_S	 60
#define SHARE_TELL_NS	 (10 * NS_PER_S)
#define SHARE_GIVE_UP_NS (60 * NS_PER_S) /* the daemon lives and says that it cannot */

/*
 * Until the daemon has answered, whoever gets the descriptor would read zeroes where content is
 * evicted. So this waits as long as the daemon lives, and through its death until it is back.
 */
static void share_region(struct client *c, unsigned int i, pid_t peer)
{
	uint64_t start = clock_ns(), serial = c->regions[i].serial;
	bool told = false;

	while (c->regions[i].serial == serial && region_known(&c->regions[i])) {
		enum op_kind kind = c->no_share ? OP_PIN : OP_SHARE;
		struct op *op = op_submit(c, kind, i);
		uint64_t waited;
		int r = -ENOTCONN;

		if (op) {
			op->size = c->regions[i].size;
			op->peer = peer;
			r = op_wait(c, op, 0);
		}
		if (!r)
			return;
		if (r == -EOPNOTSUPP && kind == OP_SHARE)
			continue;
		waited = clock_ns() - start;
		if (!told && waited > SHARE_TELL_NS)
			say("%s is to be shared: waiting for the daemon to bring it back (%s)",
			    c->regions[i].id, strerror(-r));
		told = told || waited > SHARE_TELL_NS;
		if (r != -ENOTCONN && waited > SHARE_GIVE_UP_NS) {
			say("%s is shared though the daemon could not bring it back",
			    c->regions[i].id);
			return;
		}
		client_wait(c, clock_ns() + 100 * NS_PER_MS);
	}
}

void client_before_share(struct client *c, int fd, pid_t peer)
{
	struct stat st;

	if (!atomic_load_explicit(&c->started, memory_order_acquire) || helper_is_self(c) ||
	    fstat(fd, &st))
		return;
	pthread_mutex_lock(&c->lock);
	region_wait_offers(c, clock_ns() + ASIDE_WAIT_MS * NS_PER_MS);
	for (unsigned int i = 0; i < CLIENT_REGIONS_MAX; i++) {
		struct region *r = &c->regions[i];

		if (!region_is_file(r, st.st_dev, st.st_ino))
			continue;
		/* Sent again each time: the next one to get it may be another process. */
		r->peer = r->shared && r->peer != peer ? 0 : peer;
		r->shared = true;
		share_region(c, i, peer);
	}
	pthread_mutex_unlock(&c->lock);
}

void client_step_aside(struct client *c, uint64_t addr, uint64_t bytes)
{
	if (!atomic_load_explicit(&c->started, memory_order_acquire))
		return;
	pthread_mutex_lock(&c->lock);
	for (unsigned int i = 0; i < CLIENT_REGIONS_MAX; i++) {
		struct region *r = &c->regions[i];
		int err;

		if (!region_overlaps(r, addr, bytes) || r->state == REGION_ASIDE)
			continue;
		err = region_take_back(c, i, false, ASIDE_WAIT_MS);
		if (err)
			say("%s: the VMM wants its own userfaultfd, the daemon did not let go (%s)",
			    r->id, strerror(-err));
		else if (region_overlaps(r, addr, bytes))
			r->state = REGION_ASIDE;
	}
	pthread_mutex_unlock(&c->lock);
}

void client_step_back(struct client *c, uint64_t addr, uint64_t bytes)
{
	if (!atomic_load_explicit(&c->started, memory_order_acquire))
		return;
	pthread_mutex_lock(&c->lock);
	for (unsigned int i = 0; i < CLIENT_REGIONS_MAX; i++) {
		struct region *r = &c->regions[i];

		if (!region_overlaps(r, addr, bytes) || r->state != REGION_ASIDE)
			continue;
		r->state = REGION_NEW;
		r->since_ns = clock_ns();
	}
	pthread_mutex_unlock(&c->lock);
	helper_wake(c);
}

/* With the lock held. */
static int detach_locked(struct client *c, unsigned int seconds)
{
	uint64_t until = clock_ns() + seconds * NS_PER_S;

	region_wait_offers(c, until);
	while (c->link != LINK_NONE && clock_ns() < until) {
		struct op *op = op_submit(c, OP_DETACH, 0);
		int r = -ENOTCONN;

		if (op)
			r = op_wait(c, op, (unsigned int)((until - clock_ns()) / NS_PER_MS) + 1);
		if (r)
			client_wait(c, clock_ns() + 100 * NS_PER_MS);
	}
	return c->link == LINK_NONE ? 0 : -ETIMEDOUT;
}

int client_detach(struct client *c, unsigned int seconds)
{
	int r;

	if (!atomic_load_explicit(&c->started, memory_order_acquire) || helper_is_self(c) ||
	    getpid() != c->pid)
		return 0;
	pthread_mutex_lock(&c->lock);
	r = detach_locked(c, seconds);
	pthread_mutex_unlock(&c->lock);
	return r;
}

void client_exit(struct client *c)
{
	bool named = false;

	if (!atomic_load_explicit(&c->started, memory_order_acquire) || getpid() != c->pid)
		return;
	pthread_mutex_lock(&c->lock);
	for (unsigned int i = 0; i < CLIENT_REGIONS_MAX; i++)
		named |= c->regions[i].named && region_known(&c->regions[i]);
	atomic_store(&c->finished, true);
	if (named) /* by an attach that is under way, too */
		region_wait_offers(c, clock_ns() + EXIT_WAIT_S * NS_PER_S);
	if (named && c->link == LINK_ATTACHED && detach_locked(c, EXIT_WAIT_S))
		say("the daemon did not bring back what it had of this VM's files");
	pthread_mutex_unlock(&c->lock);
}

/* ---- fork ---- */

/*
 * A child's copy of the mapping is not registered with any userfaultfd, so the child would read
 * zeroes over what is evicted, and by that make them the guest's. Either the child gets no copy
 * (MADV_DONTFORK, which QEMU sets itself), or everything comes back first.
 */
void client_fork_prepare(struct client *c)
{
	bool inherits = false;

	if (!atomic_load_explicit(&c->started, memory_order_acquire))
		return;
	pthread_mutex_lock(&c->lock);
	c->fork_locked = true;
	for (unsigned int i = 0; i < CLIENT_REGIONS_MAX; i++)
		inherits |= region_known(&c->regions[i]) && !c->regions[i].dontfork;
	if (!inherits || !detach_locked(c, FORK_WAIT_S))
		return;
	for (unsigned int i = 0; i < CLIENT_REGIONS_MAX; i++) {
		struct region *r = &c->regions[i];

		if (!region_known(r))
			continue;
		r->dontfork = true;
		real.madvise((void *)(uintptr_t)r->addr, r->size, MADV_DONTFORK);
	}
	say("the daemon did not let go before a fork: the child gets no guest RAM");
}

void client_fork_parent(struct client *c)
{
	if (!c->fork_locked)
		return;
	c->fork_locked = false;
	pthread_mutex_unlock(&c->lock);
}

void client_fork_child(struct client *c)
{
	bool any = false;

	if (!c->fork_locked)
		return;
	c->fork_locked = false;
	/* The parent's connection is not the child's; its userfaultfd is about the parent. */
	client_drop_fd(c, c->sock);
	client_drop_fd(c, c->wake);
	client_drop_fd(c, c->watch);
	client_drop_fd(c, c->uffd);
	for (unsigned int i = 0; i < c->n_kept; i++)
		client_drop_fd(c, c->kept[i].fd);
	c->n_kept = 0;
	c->taking_over = false;
	c->lost_by = 0;
	c->sock = c->wake = c->watch = c->uffd = -1;
	c->watching = false;
	c->link = LINK_NONE;
	c->sending = false;
	c->pid = getpid();
	c->retry_ns = c->backoff_ns = 0;
	memset(c->ops, 0, sizeof(c->ops));
	memset(&c->zap, 0, sizeof(c->zap));
	pthread_mutex_init(&c->lock, NULL);
	atomic_store(&c->started, false);
	for (unsigned int i = 0; i < CLIENT_REGIONS_MAX; i++) {
		struct region *r = &c->regions[i];

		if (r->state == REGION_FREE)
			continue;
		if (r->dontfork) {
			region_drop(c, r);
			continue;
		}
		r->state = REGION_NEW;
		r->zapping = false;
		r->busy = 0;
		r->since_ns = clock_ns();
		any = true;
	}
	if (any || c->secondary)
		helper_start(c);
}
