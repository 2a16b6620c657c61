/* SPDX-License-Identifier: BSD-3-Clause */
/* fd_check.h: what kind of file a descriptor from a client is. */
#ifndef ATTACH_FD_CHECK_H
#define ATTACH_FD_CHECK_H

#include "base/error.h"
#include "sys/memfd.h"

/*
 * Nothing here calls into a file system that a client could have made (FUSE): the kernel answers
 * from its own memory, so these checks do not block. All borrow fd.
 */

/* fd is a userfaultfd. index: how the client counts it, for the error text. */
int fd_check_uffd(int fd, int index, struct error *e);
/* fd is a memfd or a file on tmpfs or hugetlbfs that may be written, punched and read. */
int fd_check_memory(int fd, int index, struct memfd_info *out, struct error *e);
/* fd is a file on tmpfs or hugetlbfs, which no client can make block whoever looks closer. */
int fd_check_kept(int fd, int index, struct error *e);

#endif
