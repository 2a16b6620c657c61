/* SPDX-License-Identifier: BSD-3-Clause */
/* mappings.h: which processes map a file of guest RAM. */
#ifndef SYS_MAPPINGS_H
#define SYS_MAPPINGS_H

#include <sys/types.h>

/*
 * A process that maps guest RAM without having attached reads zeroes where pages were evicted, and
 * so puts zero pages into the file for everybody. This finds such processes.
 */
struct foreign_mapping {
	pid_t pid;
	char comm[16];
};

/*
 * Looks for processes that map the file (dev, ino), shared or private, other than known[0..n_known)
 * and those that share the address space of one of them. A forked child of a known process has an
 * address space of its own and counts. The caller itself counts too unless it is in known.
 *
 * Returns how many there are (only the first max are in out), or -errno when /proc cannot be read.
 * Walks all of /proc: takes milliseconds to tens of milliseconds, so it belongs on a slow path.
 * Processes that come or go meanwhile may be missed or counted. A process whose maps the caller may
 * not read is passed over: only a caller with CAP_SYS_PTRACE sees them all.
 */
int mappings_foreign(dev_t dev, ino_t ino, const pid_t *known, unsigned int n_known,
		     struct foreign_mapping *out, unsigned int max);

#endif
