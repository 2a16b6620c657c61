/* SPDX-License-Identifier: BSD-3-Clause */
/* place.h: which memory a store's content is in. place_host.c: any; ../numa/place_node.c: a node's.
 */
#ifndef COMPRESSED_PLACE_H
#define COMPRESSED_PLACE_H

#include <stdatomic.h>
#include <stdint.h>

#include "ebb/backend.h"

struct place {
	unsigned int node;
	uint64_t has_node;
	_Atomic int64_t room;		/* bytes that may be taken before looking again */
	_Atomic uint64_t full_until_ns; /* it had none: not asked again before */
};

/* What the backend over this memory is called. */
extern const char place_backend_name[], place_backend_description[];
extern const uint32_t place_backend_caps;
extern const char *const place_option_help[];

/* Takes an option that is the place's. -ENOENT when it is not, -EINVAL with a sentence. */
int place_option(struct place *p, const struct ebb_option *o, char *err, uint64_t err_len);
/* All options were given: can it be used? 0 or -errno with a sentence. */
int place_ready(const struct place *p, char *err, uint64_t err_len);
/* Memory that this mapping of a memfd gets from now on is of the place. 0 or -errno. */
int place_bind(const struct place *p, void *addr, uint64_t bytes);
/* So many more bytes are about to be taken. -ENOSPC when the place has not got them. */
int place_take(struct place *p, uint64_t bytes);

#endif
