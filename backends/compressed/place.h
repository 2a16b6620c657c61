/* SPDX-License-Identifier: BSD-3-Clause */
/* place.h: which memory a store's content is in. place_host.c: any; ../numa/place_node.c: a node's,
 * or a device's.
 */
#ifndef COMPRESSED_PLACE_H
#define COMPRESSED_PLACE_H

#include <stdatomic.h>
#include <stdint.h>

#include "ebb/backend.h"

struct dax;

struct place {
	unsigned int node;
	uint64_t has_node;
	_Atomic int64_t room;		/* bytes that may be taken before looking again */
	_Atomic uint64_t full_until_ns; /* it had none: not asked again before */
	struct dax *dax;		/* the device instead of a node; NULL: none */
	const char *device_path;	/* of the option, while options are read */
	int format;
};

/* What the backend over this memory is called. */
extern const char place_backend_name[], place_backend_description[];
extern const uint32_t place_backend_caps;
extern const char *const place_option_help[];

/* Takes an option that is the place's. -ENOENT when it is not, -EINVAL with a sentence. */
int place_option(struct place *p, const struct ebb_option *o, char *err, uint64_t err_len);
/* All options were given: opens it, if it can be used. 0 or -errno with a sentence. */
int place_open(struct place *p, char *err, uint64_t err_len);
void place_close(struct place *p);
/* As of struct ebb_backend. */
int place_quiesce(struct place *p);
int place_resume(struct place *p);
/* Memory that this mapping of a memfd gets from now on is of the place. 0 or -errno. */
int place_bind(const struct place *p, void *addr, uint64_t bytes);
/* So many more bytes are about to be taken. -ENOSPC when the place has not got them. */
int place_take(struct place *p, uint64_t bytes);

/*
 * A place that is a device has its content there, and not in the space's own memory: it hands out
 * chunks, each to one space. See chunks.c.
 */
struct place_device {
	uint8_t *base;	    /* all of it, mapped */
	uint8_t id[16];	    /* of the device as it was last formatted */
	unsigned int shift; /* a chunk has 1 << shift bytes; 0: the place is no device */
	uint32_t n_chunks;  /* chunk 0 is not handed out */
};

/* Whose a chunk is: a space, and the process that keeps the space's memory. */
struct chunk_owner {
	uint64_t id; /* random, never 0 or 1 */
	uint32_t pid, pid_start;
	struct chunk_owner *next; /* the place's */
};

/* What the device is; shift 0 where there is none. */
struct place_device place_device(const struct place *p);
/* The owner is here, until it leaves: its chunks are not looked at as those of somebody gone. */
void place_owner_enter(struct place *p, struct chunk_owner *o);
void place_owner_leave(struct place *p, struct chunk_owner *o);
/* A chunk that is the owner's from now on, also after a crash. -ENOSPC. Any thread. */
int place_chunk_take(struct place *p, const struct chunk_owner *o, uint32_t *chunk);
/* It is nobody's; its content is wiped, now or in place_maintain(). */
void place_chunk_give(struct place *p, uint32_t chunk, int wipe_now);
int place_chunk_is(const struct place *p, uint32_t chunk, uint64_t owner_id);
/* For a moment; true when there is more to do. */
int place_maintain(struct place *p);

#endif
