/* SPDX-License-Identifier: BSD-3-Clause */
/* helper.c: the thread that connects, attaches, and carries messages. */
#include <errno.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/prctl.h>
#include <unistd.h>

#include "client/link.h"

/*
 * Without a connection the thread looks for a daemon whenever there is RAM to offer: when its
 * socket appears (watch.c), and from time to time, first after 10 ms, then ever less often up to
 * every 2 s (a minute where the daemon refused). Once attached it sends what is queued, in order,
 * and takes the answers, in the same order, and the daemon's requests from one stream of lines.
 *
 * When the connection ends, the ranges may still be registered: pages may be evicted, and only
 * our duplicate of the userfaultfd keeps the vCPUs that need them waiting instead of reading
 * zeroes. So it is kept (LINK_ORPHANED) until the kernel says that nothing is registered with it
 * any more, which is so when the daemon let the VM go, or a daemon takes over (resume.c). Whoever
 * let go is not asked again, and neither is who may still have the RAM.
 */

#define STACK_BYTES (256 << 10)

/*
 * A back end may change its root before it is given any RAM. The thread keeps a root and a working
 * folder of its own: the one the daemon's socket is in, so that it can always be reached. (A
 * seccomp filter that the back end loads later is its own threads', not this one's, unless it asks
 * for all threads.)
 */
static void keep_root(struct client *c)
{
	const char *slash = strrchr(c->socket_path, '/');
	char folder[CLIENT_PATH_MAX];

	if (unshare(CLONE_FS) || !slash || slash == c->socket_path)
		return;
	snprintf(folder, sizeof(folder), "%.*s", (int)(slash - c->socket_path), c->socket_path);
	if (!chdir(folder))
		c->dial_path = slash + 1;
}

void helper_wake(struct client *c)
{
	uint64_t one = 1;

	if (c->wake >= 0 && write(c->wake, &one, sizeof(one)) < 0)
		return; /* full: it will wake all the same */
}

static uint64_t step(struct client *c)
{
	uint64_t next;

	if (c->link != LINK_ATTACHED && !c->watching)
		watch_begin(c);
	switch (c->link) {
	case LINK_NONE:
		return offer_attach(c);
	case LINK_ORPHANED:
		if (clock_ns() < c->retry_ns)
			return c->retry_ns;
		link_check_orphan(c);
		if (c->link == LINK_ORPHANED)
			resume_attach(c);
		return c->link == LINK_ORPHANED ? c->retry_ns : clock_ns();
	case LINK_ATTACHED:
		/* Requests may have come right behind the attach's answer. */
		serve_lines(c);
		if (c->link != LINK_ATTACHED)
			return c->retry_ns;
		if (zap_finish(c)) {
			link_lost(c);
			return c->retry_ns;
		}
		next = offer_more(c);
		serve_ops(c);
		return next;
	}
	return 0;
}

static void *helper_main(void *arg)
{
	struct client *c = arg;

	prctl(PR_SET_NAME, "ebb-attach");
	if (c->secondary)
		keep_root(c);
	while (!atomic_load(&c->finished) || c->link == LINK_ATTACHED) {
		uint64_t next = step(c), now = clock_ns(), count;
		struct pollfd p[3] = {
			{.fd = c->wake, .events = POLLIN},
			{.fd = c->link == LINK_ATTACHED ? c->sock : -1, .events = POLLIN},
			{.fd = c->watch, .events = POLLIN},
		};
		int ms = -1;

		if (next)
			ms = next > now ? (int)((next - now + NS_PER_MS - 1) / NS_PER_MS) : 0;
		if (poll(p, 3, ms) < 0)
			continue;
		if (p[0].revents && read(c->wake, &count, sizeof(count)) < 0)
			continue;
		if (p[2].revents)
			watch_read(c);
		if (p[1].revents)
			serve_input(c);
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
		zap_start(c);
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
