/* SPDX-License-Identifier: BSD-3-Clause */
/* dax.h: a device whose memory is mapped, and whose each chunk of it is. */
#ifndef NUMA_DAX_H
#define NUMA_DAX_H

#include "place.h"

struct dax;

/* Opens and maps a devdax device, or a file that cannot shrink. 0 or -errno with a sentence. */
int dax_open(const char *path, int format, struct dax **out, char *err, uint64_t err_len);
void dax_close(struct dax *d);
/* Lets go of the lock, and takes it again. */
int dax_quiesce(struct dax *d);
int dax_resume(struct dax *d);

/* See place.h. */
struct place_device dax_device(const struct dax *d);
void dax_owner_enter(struct dax *d, struct chunk_owner *o);
void dax_owner_leave(struct dax *d, struct chunk_owner *o);
int dax_take(struct dax *d, const struct chunk_owner *o, uint32_t *chunk);
void dax_give(struct dax *d, uint32_t chunk, int wipe_now);
int dax_is(const struct dax *d, uint32_t chunk, uint64_t owner_id);
int dax_maintain(struct dax *d);

#endif
