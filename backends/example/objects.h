/* SPDX-License-Identifier: BSD-3-Clause */
/* objects.h: content kept as it came, in the daemon's own memory. */
#ifndef EXAMPLE_OBJECTS_H
#define EXAMPLE_OBJECTS_H

#include <pthread.h>
#include <stdint.h>

#include "ebb/backend.h"

struct object {
	void *content; /* NULL: this entry is free */
	uint32_t len;
	uint16_t gen; /* grows with each free, so that an old handle is told from a new one */
	uint32_t next_free;
};

/* One space. All functions are thread-safe and take its lock. */
struct objects {
	pthread_mutex_t lock;
	struct object *table;
	uint32_t n, room, first_free;
	uint16_t first_gen;
	uint64_t live, bytes;
	uint64_t ignored;   /* frees of handles that were not live */
	uint64_t max_bytes; /* 0: no bound */
};

int objects_init(struct objects *o, uint64_t max_bytes);
void objects_destroy(struct objects *o);

/* 0 and *handle, or -ENOSPC. */
int objects_put(struct objects *o, const void *buf, uint32_t len, uint64_t *handle);
/* 0, or -EINVAL when the handle is not live or not of this length. */
int objects_get(struct objects *o, uint64_t handle, void *buf, uint32_t len);
void objects_drop(struct objects *o, uint64_t handle);
/* Adds what it holds to *out. */
void objects_usage(struct objects *o, struct ebb_usage *out);

#endif
