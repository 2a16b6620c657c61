/* SPDX-License-Identifier: BSD-3-Clause */
/* folio_probe.h: does anything but the page cache and the page tables hold a page of guest RAM? */
#ifndef SYS_FOLIO_PROBE_H
#define SYS_FOLIO_PROBE_H

#include <stdint.h>

#include "base/error.h"
#include "sys/folio_probe_abi.h" /* enum folio_verdict, FOLIO_PROBE_MAX */

struct folio_probe;

/*
 * Loads the probe and tries it on pages of its own, pinned and not: a probe that opens is one that
 * told them apart on this kernel. Takes some ten milliseconds. -ENOTSUP with the reason in e:
 * built without it, no right to load it (CAP_BPF and CAP_PERFMON), no BTF, or a kernel whose
 * folios it does not understand.
 */
int folio_probe_open(struct folio_probe **out, struct error *e);
void folio_probe_close(struct folio_probe *p);

/*
 * verdict[i] (an enum folio_verdict) for the page index[i], in 4 KiB from the start of the file,
 * also on hugetlbfs. fd: a memfd or a file of tmpfs or hugetlbfs, open in the calling process
 * (borrowed). n: at most FOLIO_PROBE_MAX. A page that is part of a larger folio answers for the
 * whole folio. The verdict holds for the moment of the call; a write pin that begins later faults
 * on the write protection that the caller must have set before.
 *
 * One probe serves any number of threads at once. Allocates nothing, never waits for I/O.
 * Returns 0 or -errno (-EBADF no such fd, -EMEDIUMTYPE not a file of tmpfs or hugetlbfs).
 */
int folio_probe_check(struct folio_probe *p, int fd, const uint64_t *index, uint32_t n,
		      uint8_t *verdict);

#endif
