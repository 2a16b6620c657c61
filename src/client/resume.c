/* SPDX-License-Identifier: BSD-3-Clause */
/* resume.c: what is kept for a daemon that may die, and handing it to the one that comes next. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "client/link.h"
#include "client/real.h"

/*
 * The daemon's state of this VM (which page is where, and the pages themselves) is in files of
 * which it hands over duplicates, read-only, under names. When it dies they are all that is left
 * of the evicted content, with the userfaultfd that keeps whoever needs it waiting. The next
 * daemon gets both in an attach that says so. Whatever it answers, nothing is let go before the
 * kernel says that nothing is registered any more.
 */

#define BACKOFF_RESUME_NS (5 * NS_PER_S)
#define TELL_NS		  (60 * NS_PER_S)

/* ---- keeping ---- */

/* With the lock held. */
static void forget_kept(struct client *c, unsigned int i)
{
	client_drop_fd(c, c->kept[i].fd);
	c->kept[i] = c->kept[--c->n_kept];
}

void kept_drop_all(struct client *c)
{
	while (c->n_kept)
		forget_kept(c, c->n_kept - 1);
}

/* Takes fd, unless it fails. With the lock held. */
static int keep_one(struct client *c, const char *name, int fd)
{
	unsigned int i = 0;

	while (i < c->n_kept && strcmp(c->kept[i].name, name))
		i++;
	if (fd >= 0 && i == CLIENT_KEPT_MAX)
		return -ENOSPC;
	if (i < c->n_kept)
		forget_kept(c, i);
	if (fd < 0)
		return 0;
	snprintf(c->kept[c->n_kept].name, CLIENT_NAME_MAX, "%s", name);
	c->kept[c->n_kept++].fd = client_keep_fd(c, fd);
	return 0;
}

int kept_serve(struct client *c, struct json_span line, bool keep)
{
	struct json_span arguments, value;
	char name[CLIENT_NAME_MAX + 1];
	int fd = link_take_fd(), r = -EINVAL;

	if (keep == (fd >= 0) && json_member(line, "arguments", &arguments) &&
	    json_member(arguments, "name", &value) && !json_string(value, name, sizeof(name)) &&
	    name[0] && strlen(name) < CLIENT_NAME_MAX) {
		pthread_mutex_lock(&c->lock);
		r = keep_one(c, name, fd);
		pthread_mutex_unlock(&c->lock);
	}
	if (r && fd >= 0)
		real.close(fd);
	return r;
}

/* ---- taking over ---- */

/* An attach with all that is registered; the files are duplicates of ours, to be closed. */
struct takeover {
	bool chosen[CLIENT_REGIONS_MAX];
	uint64_t serial[CLIENT_REGIONS_MAX];
	int fds[LINK_FDS_MAX], n_fds;
	int files; /* fds[1] to fds[files] are the duplicates */
	int len;
};

/* A message's regions must not overlap in a file; a second mapping of one follows later. */
static void choose_registered(struct client *c, struct takeover *t)
{
	for (unsigned int i = 0; i < CLIENT_REGIONS_MAX; i++) {
		const struct region *r = &c->regions[i];

		t->serial[i] = r->serial;
		t->chosen[i] = region_known(r) && !offer_overlaps(c, t->chosen, r) &&
			       uffd_registered(c->uffd, r->addr, r->page_size);
	}
}

/* Makes the message. The duplicates live through a region that goes meanwhile. */
static int takeover_begin(struct client *c, struct takeover *t)
{
	int r = 0;

	pthread_mutex_lock(&c->lock);
	choose_registered(c, t);
	t->len = message_attach(c, t->chosen, c->uffd, true, link_io.message,
				LINK_MESSAGE_BYTES - 1, t->fds, &t->n_fds);
	if (t->len < 0)
		r = t->len;
	while (!r && t->files < t->n_fds - 1 - (int)c->n_kept) {
		int fd = fcntl(t->fds[t->files + 1], F_DUPFD_CLOEXEC, 3);

		if (fd < 0)
			r = -errno;
		else
			t->fds[++t->files] = client_keep_fd(c, fd);
	}
	c->taking_over = !r;
	pthread_mutex_unlock(&c->lock);
	return r;
}

static void takeover_end(struct client *c, struct takeover *t)
{
	for (int i = 1; i <= t->files; i++)
		client_drop_fd(c, t->fds[i]);
	pthread_mutex_lock(&c->lock);
	c->taking_over = false;
	pthread_cond_broadcast(&c->changed);
	pthread_mutex_unlock(&c->lock);
}

static void taken_over(struct client *c, const struct takeover *t)
{
	pthread_mutex_lock(&c->lock);
	link_set(c, LINK_ATTACHED);
	for (unsigned int i = 0; i < CLIENT_REGIONS_MAX; i++) {
		struct region *r = &c->regions[i];

		r->pins = 0;
		if (!region_known(r) || r->serial != t->serial[i])
			continue;
		if (t->chosen[i]) {
			r->state = REGION_OFFERED;
			offer_taken(c, i);
		} else {
			r->state = REGION_NEW;
		}
	}
	pthread_mutex_unlock(&c->lock);
	c->backoff_ns = 0;
	c->lost_by = 0;
	c->told_ns = 0;
	c->ever_attached = true;
	c->last_error[0] = '\0';
	say("the daemon at %s took %s over", c->socket_path, c->name);
}

static void refused(struct client *c, const char *why)
{
	if (c->told_ns && clock_ns() < c->told_ns + TELL_NS)
		return;
	c->told_ns = clock_ns();
	say("the daemon does not take %s over; what it evicted waits: %s", c->name, why);
}

void resume_attach(struct client *c)
{
	struct takeover t = {.n_fds = 0};
	struct answer a = {0};
	int r = link_connect(c);

	if (!r) {
		r = takeover_begin(c, &t);
		if (!r)
			r = link_send(c, (size_t)t.len, t.fds, t.n_fds);
		if (!r)
			r = link_await(c, &a, NULL);
		if (!r && !a.result)
			taken_over(c, &t);
		takeover_end(c, &t);
		if (!r && !a.result)
			return;
		refused(c, r ? strerror(-r) : a.desc);
		/* It may have taken over and have been too slow to say so: not asked again. */
		if (r == -ETIMEDOUT)
			c->lost_by = link_daemon_pid(c);
		link_close(c);
	}
	link_back_off(c, a.result ? BACKOFF_RESUME_NS : BACKOFF_LAST_NS);
}
