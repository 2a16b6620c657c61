/* SPDX-License-Identifier: BSD-3-Clause */
/* vm.h: the benchmark's VM as its daemon sees it. */
#ifndef BENCH_RECOVERY_VM_H
#define BENCH_RECOVERY_VM_H

#include "stress/daemon.h"

/* Evicts what can be evicted of VM "vm"; returns how much is. */
uint64_t evict_all(struct daemon *d, uint64_t bytes);
/* Waits until query-vms has that text. */
void wait_vm(struct daemon *d, const char *until);

#endif
