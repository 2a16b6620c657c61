/* SPDX-License-Identifier: BSD-3-Clause */
/* attach_internal.h: what the files of this module share. */
#ifndef ATTACH_ATTACH_INTERNAL_H
#define ATTACH_ATTACH_INTERNAL_H

#include <stdbool.h>
#include <sys/types.h>

#include "attach/attach.h"
#include "attach/conn.h"
#include "attach/worker.h"
#include "base/log.h"

struct event;

/* All of it belongs to the loop's thread; workers may read config and eng. */
struct attach {
	struct event_base *base;
	struct engine *eng;
	struct attach_config config; /* defaults filled in, both paths owned */
	struct worker_pool *pool;

	int listener;
	struct event *accept_event, *resume_event;
	bool paused; /* not accepting */
	bool bound;  /* the socket's file is ours: */
	dev_t dev;
	ino_t ino;

	struct conn *conns; /* all that are not freed, also while they are being closed */
	unsigned int n_conns;
	unsigned int held_fds;
	bool stopping;
	bool holding; /* no message is begun: see handover.c */
	struct log_limit log_limit;
};

/* A connection was freed: there may be room to accept again. */
void attach_conn_freed(struct attach *at);

#endif
