/* SPDX-License-Identifier: BSD-3-Clause */
/* watch.c: seeing at once that a daemon's socket has come. */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/inotify.h>
#include <unistd.h>

#include "client/link.h"

/*
 * While no daemon is there, vCPUs that need evicted pages wait, so the helper does not only look
 * for one from time to time: it watches the folder of the socket. Where that cannot be (no folder
 * yet, no inotify), looking from time to time has to do.
 *
 * The path comes into being a moment before anybody listens there. So an event makes the next try
 * due, and that try's failure has the one after it come soon, and later ones ever less often.
 */

#define SEEN_BACKOFF_NS (NS_PER_MS / 2)

static const char *socket_name(const struct client *c)
{
	const char *slash = strrchr(c->dial_path, '/');

	return slash ? slash + 1 : c->dial_path;
}

void watch_begin(struct client *c)
{
	const char *name = socket_name(c);
	char folder[CLIENT_PATH_MAX];
	int len = (int)(name - c->dial_path);

	if (c->watch < 0)
		c->watch = client_keep_fd(c, inotify_init1(IN_CLOEXEC | IN_NONBLOCK));
	if (c->watch < 0 || c->watching)
		return;
	snprintf(folder, sizeof(folder), "%.*s", len ? len : 1, len ? c->dial_path : ".");
	c->watching = inotify_add_watch(c->watch, folder,
					IN_CREATE | IN_MOVED_TO | IN_ATTRIB | IN_ONLYDIR) >= 0;
}

/* True when one of the events in buf is about the socket. */
static bool about_socket(struct client *c, const char *buf, size_t bytes)
{
	const char *name = socket_name(c);
	bool any = false;

	while (bytes >= sizeof(struct inotify_event)) {
		const struct inotify_event *ev = (const struct inotify_event *)(const void *)buf;
		size_t n = sizeof(*ev) + ev->len;

		/* The folder was removed, or its file system unmounted. */
		if (ev->mask & IN_IGNORED)
			c->watching = false;
		if (ev->mask & IN_Q_OVERFLOW || (ev->len && !strcmp(ev->name, name)))
			any = true;
		buf += n;
		bytes -= n;
	}
	return any;
}

void watch_read(struct client *c)
{
	char buf[2048] __attribute__((aligned(8)));
	bool any = false;
	ssize_t n;

	while ((n = read(c->watch, buf, sizeof(buf))) > 0)
		any |= about_socket(c, buf, (size_t)n);
	if (any && c->link != LINK_ATTACHED) {
		c->retry_ns = 0;
		c->backoff_ns = SEEN_BACKOFF_NS;
	}
}
