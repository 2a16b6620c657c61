/* SPDX-License-Identifier: BSD-3-Clause */
/* store_rig.h: the compressed store with all that it needs of an engine, and pages for it. */
#ifndef BENCH_STORE_RIG_H
#define BENCH_STORE_RIG_H

#include "plugin/backend_host.h"

#define STORE_PAGE 4096u

struct store_rig {
	struct backend_env env;
	struct backend *b;
	struct backend_space *s;
	int fd; /* of the space's memory */
};

/* Opens backends/compressed.so of the build that EBB_BUILD names. Ends the process on an error. */
void store_rig_open(struct store_rig *rig);
void store_rig_close(struct store_rig *rig);

/* One EBB_IO_STORE or EBB_IO_LOAD of a page, done when it returns; ends the process on an error. */
void store_rig_io(struct backend_channel *c, struct backend_space *s, uint32_t op, uint64_t *handle,
		  void *buf);

/*
 * Makes up n pages: words drawn from a few recent ones, small numbers and noise, which lz4 packs to
 * about 40 %, as it does the heaps of programs. The same for the same n.
 */
void store_rig_pages(uint8_t *pages, uint32_t n);

#endif
