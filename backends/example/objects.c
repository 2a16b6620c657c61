/* SPDX-License-Identifier: BSD-3-Clause */
/* objects.c: content kept as it came, in the daemon's own memory. */
#include "objects.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

/*
 * A handle is an index into a table (bits 0 to 31) and the generation that the entry had when the
 * handle was made (bits 32 to 47). A handle comes from memory that may be damaged, so both are
 * checked before anything is followed.
 */
#define NONE UINT32_MAX

int objects_init(struct objects *o, uint64_t max_bytes)
{
	memset(o, 0, sizeof(*o));
	o->first_free = NONE;
	o->max_bytes = max_bytes;
	/* Generations begin anywhere, so that the handles of one space do not fit another. */
	if (getrandom(&o->first_gen, sizeof(o->first_gen), 0) != sizeof(o->first_gen))
		return -EIO;
	return -pthread_mutex_init(&o->lock, NULL);
}

void objects_destroy(struct objects *o)
{
	for (uint32_t i = 0; i < o->n; i++)
		free(o->table[i].content);
	free(o->table);
	pthread_mutex_destroy(&o->lock);
}

/* The live object of a handle, or NULL. Under the lock. */
static struct object *find(struct objects *o, uint64_t handle)
{
	uint32_t i = (uint32_t)handle;

	if (handle & ~EBB_HANDLE_MASK || i >= o->n || !o->table[i].content ||
	    o->table[i].gen != (uint16_t)(handle >> 32))
		return NULL;
	return &o->table[i];
}

/* The index of a free entry, or NONE without memory. Under the lock. */
static uint32_t take_entry(struct objects *o)
{
	uint32_t i = o->first_free;

	if (i != NONE) {
		o->first_free = o->table[i].next_free;
		return i;
	}
	if (o->n == o->room) {
		uint32_t room = o->room ? o->room * 2 : 1024;
		struct object *table = realloc(o->table, room * sizeof(*table));

		if (!table)
			return NONE;
		o->table = table;
		o->room = room;
	}
	o->table[o->n].gen = o->first_gen;
	return o->n++;
}

int objects_put(struct objects *o, const void *buf, uint32_t len, uint64_t *handle)
{
	void *content = malloc(len);
	uint32_t i = NONE;

	if (!content)
		return -ENOSPC;
	memcpy(content, buf, len);
	pthread_mutex_lock(&o->lock);
	if (!o->max_bytes || o->bytes + len <= o->max_bytes)
		i = take_entry(o);
	if (i != NONE) {
		o->table[i].content = content;
		o->table[i].len = len;
		o->live++;
		o->bytes += len;
		*handle = i | (uint64_t)o->table[i].gen << 32;
	}
	pthread_mutex_unlock(&o->lock);
	if (i == NONE)
		free(content);
	return i == NONE ? -ENOSPC : 0;
}

int objects_get(struct objects *o, uint64_t handle, void *buf, uint32_t len)
{
	const struct object *object;
	int r = -EINVAL;

	pthread_mutex_lock(&o->lock);
	object = find(o, handle);
	if (object && object->len == len) {
		memcpy(buf, object->content, len);
		r = 0;
	}
	pthread_mutex_unlock(&o->lock);
	return r;
}

void objects_drop(struct objects *o, uint64_t handle)
{
	struct object *object;

	pthread_mutex_lock(&o->lock);
	object = find(o, handle);
	if (object) {
		free(object->content);
		object->content = NULL;
		object->gen++;
		object->next_free = o->first_free;
		o->first_free = (uint32_t)handle;
		o->live--;
		o->bytes -= object->len;
	} else {
		o->ignored++;
	}
	pthread_mutex_unlock(&o->lock);
}

void objects_usage(struct objects *o, struct ebb_usage *out)
{
	uint64_t table;

	pthread_mutex_lock(&o->lock);
	table = (uint64_t)o->room * sizeof(*o->table);
	out->objects += o->live;
	out->logical_bytes += o->bytes;
	out->stored_bytes += o->bytes;
	out->footprint_bytes += o->bytes + table;
	out->overhead_bytes += table;
	out->capacity_bytes += o->max_bytes;
	pthread_mutex_unlock(&o->lock);
}
