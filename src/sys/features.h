/* SPDX-License-Identifier: BSD-3-Clause */
/* features.h: what this kernel can do, found out by doing it. */
#ifndef SYS_FEATURES_H
#define SYS_FEATURES_H

#include <stdbool.h>
#include <stdint.h>

/* One line for each thing of struct sys_features that is missing. */
enum sys_feature {
	SYS_UFFD,
	SYS_UFFD_POISON,
	SYS_UFFD_MOVE,
	SYS_WP_SHMEM,
	SYS_WP_HUGETLB,
	SYS_MINOR_SHMEM,
	SYS_CONTINUE_WP,
	SYS_PAGEMAP_SCAN,
	SYS_ZAP_SCAN,
	SYS_COLLAPSE_SAFE,
	SYS_FEATURES
};

struct sys_features {
	uint64_t uffd_features; /* all that UFFDIO_API offers */
	bool uffd;		/* a userfaultfd that serves kernel faults can be made */
	bool uffd_poison;	/* UFFDIO_POISON */
	bool uffd_move;		/* UFFDIO_MOVE */
	bool wp_shmem;		/* write protection of shmem, also of pages not mapped */
	bool wp_hugetlb;
	bool minor_shmem;  /* minor faults of shmem, UFFDIO_CONTINUE */
	bool continue_wp;  /* UFFDIO_CONTINUE_MODE_WP */
	bool pagemap_scan; /* PAGEMAP_SCAN */
	/*
	 * process_madvise(MADV_PAGEOUT) drops another process's page-table entries and the data
	 * stays: it did so on a child, and there is no swap that could take the pages.
	 */
	bool zap_scan;
	/*
	 * MADV_COLLAPSE does not fill holes with zeroes behind a MISSING registration's back (or
	 * there is no such thing here).
	 */
	bool collapse_safe;
	/*
	 * shmem without any MADV_COLLAPSE may be given large folios: by a policy of always,
	 * within_size or force, or, for ranges with MADV_HUGEPAGE only, advise.
	 */
	bool shmem_thp, shmem_thp_advised;
	char shmem_thp_policy[16];
	uint64_t hugetlb_2m_total, hugetlb_2m_free; /* pages */
	uint64_t hugetlb_1g_total, hugetlb_1g_free;
	/* A sentence for each thing that is missing, "" for what is there. */
	char why[SYS_FEATURES][120];
};

/*
 * Tries everything but what sys_features_probe_slow() does; takes about a millisecond. Returns 0,
 * also when all is missing; -errno when the trying itself could not be done.
 */
int sys_features_probe_fast(struct sys_features *out);
/*
 * Adds zap_scan and collapse_safe to what the other one found, and touches nothing else. Forks a
 * child (which makes system calls only); some ten milliseconds, more on a busy machine.
 */
void sys_features_probe_slow(struct sys_features *s);
/* Both. */
int sys_features_probe(struct sys_features *out);
/* E.g. "uffd-poison"; for the log and for operators. */
const char *sys_feature_name(enum sys_feature f);

#endif
