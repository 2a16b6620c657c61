/* SPDX-License-Identifier: BSD-3-Clause */
/* bare.h: the least that a userfaultfd handler in another process can cost. */
#ifndef BENCH_FAULT_BARE_H
#define BENCH_FAULT_BARE_H

#include <stdint.h>
#include <sys/types.h>

#include "attach/native.h"
#include "guest.h"

struct bare;

/* Memory of `units` units and a process that serves its faults. 0 or -errno. */
int bare_new(enum native_kind kind, uint32_t units, struct bare **out);
pid_t bare_handler(const struct bare *b);
/* Touches n <= units units, each a fault; ns gets the times. Returns wrong ones, or -errno. */
int bare_round(struct bare *b, uint32_t n, uint32_t *ns);
void bare_free(struct bare *b);

/* Decompresses the pages of n units with lz4 alone, one by one; ns gets the times. */
int bare_lz4(const struct guest_content *c, uint32_t n, uint32_t unit_bytes, uint32_t *ns);

#endif
