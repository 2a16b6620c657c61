/* SPDX-License-Identifier: BSD-3-Clause */
/* swap.h: the kernel's own way: a memory cgroup with swap to zram. */
#ifndef BENCH_FAULT_SWAP_H
#define BENCH_FAULT_SWAP_H

#include <stdint.h>
#include <sys/types.h>

/*
 * Swap on a zram device (lz4) and a memory cgroup, set up and taken down again by a process of
 * their own, which does so also when this one dies. One at a time on a machine: a lock file.
 */
struct swap_setup {
	pid_t keeper;
	int alive; /* its end says: take down */
	char cgroup[256];
	char why[200]; /* why it cannot be had */
};

/* limit: of the cgroup; bytes: of the device. 0, or -1 with s->why. */
int swap_on(struct swap_setup *s, uint64_t limit, uint64_t bytes);
/* Ends what is in the cgroup; swap off, device and cgroup as they were. 0, or -1 with s->why. */
int swap_off(struct swap_setup *s);
/* The calling process into the cgroup. 0 or -errno. */
int swap_enter(const struct swap_setup *s);

#endif
