/* SPDX-License-Identifier: BSD-3-Clause */
/* procinfo.h: what /proc, /sys and the cgroups say about a process and the host. */
#ifndef SYS_PROCINFO_H
#define SYS_PROCINFO_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

/* All of these read text files: slow paths only. 0 or -errno (-ESRCH or -ENOENT: no such pid). */

/* Memory that the process holds for DMA: VmPin (pinned) and VmLck (locked). */
int procinfo_pins(pid_t pid, uint64_t *pinned_bytes, uint64_t *locked_bytes);

/* When the process began, in clock ticks since the boot: with the pid it names a process for good.
 */
int procinfo_start(pid_t pid, uint64_t *ticks);
/*
 * The CPU that a thread runs on, or ran on last; -errno. Unlike the others it allocates nothing,
 * and costs a few microseconds.
 */
int procinfo_thread_cpu(pid_t pid, pid_t thread);

/* What the mappings of a range have in common. */
struct procinfo_range {
	uint64_t mapped_bytes;	 /* of the range; less than asked: there are gaps */
	uint64_t min_page_bytes; /* KernelPageSize; above 4096 on hugetlb */
	uint64_t max_page_bytes;
	uint64_t pmd_mapped_bytes; /* shmem huge pages mapped as such, of the whole mappings */
	unsigned int mappings;	   /* that the range touches */
	bool thp_eligible;	   /* any of them may be given huge pages by a fault */
	bool thp_advised;	   /* any has MADV_HUGEPAGE ("hg") */
	bool thp_refused;	   /* all have MADV_NOHUGEPAGE ("nh") */
	bool locked;		   /* any is mlock()ed ("lo") */
	bool dont_fork;		   /* all have MADV_DONTFORK ("dc") */
	bool uffd;		   /* any is registered with a userfaultfd ("um", "uw" or "ui") */
};
/* [start, end) in the address space of pid. -EFAULT when nothing is mapped there. */
int procinfo_range(pid_t pid, uint64_t start, uint64_t end, struct procinfo_range *out);

/* vm.max_map_count, and how many mappings the process has. */
int procinfo_max_map_count(uint64_t *out);
int procinfo_map_count(pid_t pid, uint64_t *out);

/* Bytes of active swap; 0: nothing can be swapped out. */
int procinfo_swap(uint64_t *total_bytes);

/* The memory cgroup of a process: of all the levels that bound it, the one with the least room. */
struct procinfo_memcg {
	int version;	      /* 1 or 2; 0: there is no memory controller */
	uint64_t limit_bytes; /* UINT64_MAX: none */
	uint64_t usage_bytes;
	bool swap_forbidden; /* version 2, memory.swap.max is 0 at some level */
};
int procinfo_memcg(pid_t pid, struct procinfo_memcg *out);
/* Memory pressure of the process's own cgroup: for how long some task of it has waited for memory.
 */
int procinfo_memory_pressure(pid_t pid, uint64_t *some_us);

struct procinfo_host {
	uint64_t total_bytes, available_bytes;
};
int procinfo_host(struct procinfo_host *out);

/* A pool of huge pages. */
struct procinfo_pool {
	uint64_t total_pages, free_pages, reserved_pages, surplus_pages;
};
/* -ENOENT when the kernel has no huge pages of that size. */
int procinfo_pool(uint64_t page_bytes, struct procinfo_pool *out);

#endif
