/* SPDX-License-Identifier: BSD-3-Clause */
/* internal.h: the daemon's parts, for the files that put it together. */
#ifndef DAEMON_INTERNAL_H
#define DAEMON_INTERNAL_H

#include <limits.h>
#include <stdatomic.h>
#include <stdbool.h>

#include "daemon/daemon.h"
#include "engine/engine.h"

#define SOCKET_MODE 0660

struct daemon {
	struct config *config;
	const struct schema *schema;
	int argc;
	char **argv;
	int lock, signals; /* owned */
	struct event_base *base;
	struct event *on_signal, *watchdog;
	struct event_queue *events;
	struct settings *settings;
	struct engine *engine;
	struct crashes *crashes;
	bool ended; /* as it should */
	bool kept;  /* the engine left VMs to a successor */
	struct listen *listen;
	struct control *control;
	struct metrics_http *metrics;
	struct plugin_path plugins;
	char own_plugins[PATH_MAX];
	gid_t group; /* of the sockets; -1: none */
	/* A successor has all of it: nothing is touched any more, the process just ends. */
	_Atomic bool handed_over;
};

/* The parts, in the order of a start. */
int daemon_make_settings(struct daemon *d, struct error *e);
int daemon_make_engine(struct daemon *d, bool held, struct error *e);
/* listener: 0, or a socket that listens there already (consumed). */
int daemon_make_control(struct daemon *d, int listener, struct error *e);
int daemon_make_metrics(struct daemon *d, struct error *e);
/* DIR/name in buf, which has PATH_MAX bytes. */
const char *daemon_path(const struct daemon *d, const char *name, char *buf);

#endif
