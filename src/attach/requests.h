/* SPDX-License-Identifier: BSD-3-Clause */
/* requests.h: what the engine asks of a client, and the client's answers. */
#ifndef ATTACH_REQUESTS_H
#define ATTACH_REQUESTS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "attach/worker.h"
#include "engine/engine.h"

struct requests;

/*
 * Takes the line (malloc'ed, with its newline) and fd (-1: none; consumed in any case) to the
 * client; in the loop. 0 or -errno.
 */
typedef int (*requests_send_fn)(void *ctx, char *line, size_t bytes, int fd);

/*
 * What goes into struct attach_request for a client that serves these requests: NULL for none. Its
 * client is the struct requests. Until requests_open() keep() gives -EAGAIN, and so do both while
 * held.
 */
const struct attach_client_ops *requests_ops(bool zap, bool keep);

/* Borrows pool and ctx. Starts out closed. */
int requests_new(struct worker_pool *pool, uint32_t timeout_ms, requests_send_fn send, void *ctx,
		 struct requests **out);
/* From now on requests are sent / are refused with -ENOTCONN, those that wait as well. */
void requests_open(struct requests *r);
void requests_close(struct requests *r);
/*
 * A successor is about to take the client over: those that wait end at once with -EAGAIN, and so do
 * new ones, until it is given up. What the client still answers is dropped by whoever reads it.
 */
void requests_hold(struct requests *r, bool hold);
/* The id of the last request, and after which one to go on. */
uint64_t requests_last_id(struct requests *r);
void requests_go_on(struct requests *r, uint64_t last_id);
/*
 * An answer came; ok: it was "return", no error. Returns 0, also for an answer that came too late,
 * or -ENOENT when no request ever had this id.
 */
int requests_answer(struct requests *r, uint64_t id, bool ok);
/*
 * Closed before; the engine calls no more (engine_attachment_put() has returned), and posts of the
 * pool that came before are done. Takes NULL.
 */
void requests_free(struct requests *r);

#endif
