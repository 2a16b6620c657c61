/* SPDX-License-Identifier: BSD-3-Clause */
/* uffd.h: userfaultfd; the one place that issues its ioctls. */
#ifndef SYS_UFFD_H
#define SYS_UFFD_H

#include <linux/userfaultfd.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/*
 * Thin wrappers: no state, any thread, nothing allocated, retried on EINTR only. Ranges are bytes
 * in the address space of the process that made the userfaultfd, aligned to the page size of the
 * mapping. Errors are negative errno:
 *   -EAGAIN  the address space is changing (an event is unread): try again later
 *   -ESRCH   the process is gone
 *   -EEXIST  (copy, continue) something is there already
 *   -EFAULT  (continue) nothing is in the page cache; (copy) not in the file any more
 */

/* Features that the headers of Debian 12 do not know yet. */
#ifndef UFFD_FEATURE_WP_UNPOPULATED
#define UFFD_FEATURE_WP_UNPOPULATED (1 << 13)
#endif
#ifndef UFFD_FEATURE_POISON
#define UFFD_FEATURE_POISON (1 << 14)
#endif
#ifndef UFFDIO_CONTINUE_MODE_WP
#define UFFDIO_CONTINUE_MODE_WP ((uint64_t)1 << 1)
#endif

/* UFFDIO_API with just these features. *supported, when not NULL: all that the kernel has. */
int uffd_api(int fd, uint64_t features, uint64_t *supported);
/* What the kernel offers, by a throw-away descriptor; 0 or -errno. */
int uffd_probe(uint64_t *supported);
/* A new userfaultfd of this process that serves kernel faults too (O_CLOEXEC | O_NONBLOCK). */
int uffd_new(void);
/* True when fd is a userfaultfd at all. */
bool uffd_is(int fd);

/* modes: UFFDIO_REGISTER_MODE_*. */
int uffd_register(int fd, uint64_t start, uint64_t bytes, uint64_t modes);
int uffd_unregister(int fd, uint64_t start, uint64_t bytes);

/* These return the bytes done (> 0, maybe fewer than asked) or -errno when none were. */
int64_t uffd_copy(int fd, uint64_t dst, const void *src, uint64_t bytes, uint64_t mode);
int64_t uffd_zero(int fd, uint64_t dst, uint64_t bytes);
int64_t uffd_continue(int fd, uint64_t start, uint64_t bytes, uint64_t mode);

/* Write-protects (leaving markers where nothing is mapped) or lifts it and wakes. */
int uffd_protect(int fd, uint64_t start, uint64_t bytes);
int uffd_unprotect(int fd, uint64_t start, uint64_t bytes);
int uffd_wake(int fd, uint64_t start, uint64_t bytes);
/* The next access is a memory error for that page alone. -EINVAL where the kernel lacks it. */
int uffd_poison(int fd, uint64_t start, uint64_t bytes);

/* Reads at most n messages; returns how many, 0 when there are none, -errno. */
int uffd_read(int fd, struct uffd_msg *msgs, int n);

#endif
