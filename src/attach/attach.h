/* SPDX-License-Identifier: BSD-3-Clause */
/* attach.h: the attach socket: where VMMs hand over their RAM. */
#ifndef ATTACH_ATTACH_H
#define ATTACH_ATTACH_H

#include <stddef.h>
#include <stdint.h>

#include "base/error.h"

struct attach;
struct engine;
struct event_base;

/* Zero-initialise; every limit that is left 0 takes the default named beside it. */
struct attach_config {
	const char *socket_path; /* borrowed for the call */
	int listener;		 /* listens there already; consumed. 0: make it */
	unsigned int mode;	 /* of the socket; 0: 0660 */
	const char
		*uffd_device; /* lent to clients, borrowed for the call; NULL: /dev/userfaultfd */

	unsigned int max_connections;	      /* 1024 */
	unsigned int max_connections_per_uid; /* 512 */
	unsigned int max_pending_per_uid;     /* that have not attached; 32 */
	unsigned int max_held_fds;   /* received, not yet with the engine or closed; 2048 */
	size_t message_max_bytes;    /* 64 KiB */
	uint32_t attach_timeout_ms;  /* from connecting to a good attach; 10000 */
	uint32_t message_timeout_ms; /* for the rest of a begun message, or to take an answer; 5000
				      */
	uint32_t request_timeout_ms; /* for a client's answer to a request of ours; 1000 */

	/*
	 * A VM is with the engine and its client has not been answered yet: the last chance to
	 * give it its settings first. On a worker's thread; may block for a while. May be NULL.
	 */
	void (*attached)(void *ctx);
	void *attached_ctx;
};

/*
 * Listens at config->socket_path and serves attaching clients from base's loop. Borrows base and
 * eng, which must outlive the attach. To be called in the thread that runs base. Needs no
 * evthread_use_pthreads(): other threads reach the loop through an eventfd.
 */
int attach_new(struct event_base *base, struct engine *eng, const struct attach_config *config,
	       struct attach **out, struct error *e);
/*
 * Closes all connections, cancels what runs for them and waits for it; the VMs live on in the
 * engine. In the thread that runs (or ran) base, before engine_free(). Takes NULL.
 */
void attach_free(struct attach *at);
/* How many connections are open now (those being closed included). */
unsigned int attach_connections(const struct attach *at);

#endif
