/* SPDX-License-Identifier: BSD-3-Clause */
/* kernel.h: the same load on memory that the kernel itself swaps. */
#ifndef BENCH_FAULT_KERNEL_H
#define BENCH_FAULT_KERNEL_H

#include "guest.h"
#include "swap.h"

/*
 * Runs n loads, one after the other, in a process of its own inside of the cgroup, on anonymous
 * memory of `bytes`. 0, or -errno (-ECANCELED: the kernel killed it). wrong: pages that did not
 * hold what they should at the end.
 */
int kernel_run(const struct swap_setup *s, const struct guest_content *c, uint64_t bytes,
	       const struct guest_load *loads, unsigned int n, struct guest_figures *out,
	       uint64_t *wrong);

#endif
