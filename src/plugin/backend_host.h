/* SPDX-License-Identifier: BSD-3-Clause */
/* backend_host.h: the only way into a backend plugin: every call, checked both ways. */
#ifndef PLUGIN_BACKEND_HOST_H
#define PLUGIN_BACKEND_HOST_H

#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"
#include "ebb/backend.h"
#include "plugin/plugin.h"

/* What the engine offers to backends; see struct ebb_backend_host for the meaning. */
struct backend_env {
	void *ctx;
	int (*mem_open)(void *ctx, void *space_ctx, const char *name, uint64_t max_bytes,
			void **addr, int *found);
	int (*mem_trim)(void *ctx, void *space_ctx, const char *name, uint64_t offset,
			uint64_t bytes);
};

struct backend;		/* an instance */
struct backend_space;	/* one VM's part of an instance */
struct backend_channel; /* one thread's way in */

/*
 * Loads driver `driver` (backends/<driver>.so on path) and opens an instance called `name`.
 * env must outlive it. Gives *out. 0 or -errno with e filled.
 */
int backend_open(const struct plugin_path *path, const struct backend_env *env, const char *name,
		 const char *driver, const struct ebb_option *opts, uint32_t n_opts,
		 struct backend **out, struct error *e);
/* No space and no channel is open any more. NULL is fine. */
void backend_close(struct backend *b);

const char *backend_name(const struct backend *b);
const char *backend_driver(const struct backend *b);
const char *backend_description(const struct backend *b);
uint32_t backend_caps(const struct backend *b);

int backend_space_open(struct backend *b, const struct ebb_space_params *params,
		       struct backend_space **out);
void backend_space_close(struct backend_space *s);
struct backend *backend_of(const struct backend_space *s);

int backend_channel_open(struct backend *b, void *buffers, uint64_t buffers_bytes,
			 uint32_t queue_depth, struct backend_channel **out);
void backend_channel_close(struct backend_channel *c);

/*
 * Prepares and submits. io->space is set from `space` here. The wrapper checks what comes back: a
 * store's handle within EBB_HANDLE_BITS, a result that is 0 or a negative errno, a count within n.
 * Same contract as ebb_backend.submit/poll. Thread: the channel's. Never blocks, never allocates.
 */
int backend_submit(struct backend_channel *c, struct ebb_io **ios, uint32_t n);
int backend_poll(struct backend_channel *c, struct ebb_io **ios, uint32_t n);
int backend_event_fd(struct backend_channel *c);
void backend_free(struct backend_channel *c, struct backend_space *s, const uint64_t *handles,
		  uint32_t n);

/* Fills an ebb_io for submit; buf page-aligned, len a power of two 4 KiB..2 MiB. */
void backend_io_prepare(struct ebb_io *io, uint32_t op, uint32_t flags, struct backend_space *s,
			uint64_t handle, void *buf, uint32_t len, uint64_t user);

/* See ebb_backend.retain: handles ascending. How many were freed, -ENOTSUP, -errno. */
int64_t backend_retain(struct backend_channel *c, struct backend_space *s, const uint64_t *handles,
		       uint64_t n);

/* See ebb_backend.matches: 1, 0, or -ENOTSUP. Thread: the channel's. */
int backend_matches(struct backend_channel *c, struct backend_space *s, uint64_t handle,
		    uint64_t owner, const void *buf, uint32_t len);

void backend_usage(struct backend *b, struct backend_space *s, struct ebb_usage *out);
int backend_stats(struct backend *b, struct ebb_stat *out, uint32_t n);
/* One slice of idle-time work; true when there is more to do. */
bool backend_maintain(struct backend_space *s, uint32_t budget_us);
/*
 * Before a hand-over to a successor, and after one that failed; or in the successor, when it has
 * everything: see ebb_backend.quiesce. A backend without them has nothing to do. 0 or -errno.
 */
int backend_quiesce(struct backend *b);
int backend_resume(struct backend *b);
int backend_config(struct backend *b, const struct ebb_option *opt, struct error *e);

#endif
