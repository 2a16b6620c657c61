/* SPDX-License-Identifier: BSD-3-Clause */
/* fd_check.c: what kind of file a descriptor from a client is. */
#include "attach/fd_check.h"

#include <errno.h>
#include <fcntl.h>

#include "sys/uffd.h"

#ifndef F_SEAL_FUTURE_WRITE
#define F_SEAL_FUTURE_WRITE 0x0010
#endif

/* The kernel names files without a path "class:[name]", so no file can pass for one. */
int fd_check_uffd(int fd, int index, struct error *e)
{
	if (!uffd_is(fd))
		return error_set(e, EINVAL, ERROR_ARGUMENT, "descriptor %d is no userfaultfd",
				 index);
	return 0;
}

/*
 * The seals come first: the kernel answers them for files of shmem and hugetlbfs alone, without
 * asking any file system, so that fstat() and fstatfs() after it are known not to block.
 */
static int file_check_kind(int fd, int index, int *flags_out, int *seals_out, struct error *e)
{
	int flags = fcntl(fd, F_GETFL);
	int seals;

	if (flags < 0)
		return error_set(e, errno, ERROR_GENERIC, "descriptor %d: %s", index,
				 error_text(errno));
	if (flags & O_PATH)
		return error_set(e, EINVAL, ERROR_ARGUMENT, "descriptor %d was opened with O_PATH",
				 index);
	seals = fcntl(fd, F_GET_SEALS);
	if (seals < 0)
		return error_set(
			e, EINVAL, ERROR_ARGUMENT,
			"descriptor %d is neither a memfd nor a file on tmpfs or hugetlbfs", index);
	*flags_out = flags;
	*seals_out = seals;
	return 0;
}

static int memory_check_kind(int fd, int index, struct error *e)
{
	int flags, seals;
	int r = file_check_kind(fd, index, &flags, &seals, e);

	if (r)
		return r;
	if ((flags & O_ACCMODE) != O_RDWR)
		return error_set(e, EACCES, ERROR_ARGUMENT,
				 "descriptor %d is not open for reading and writing", index);
	if (seals & (F_SEAL_WRITE | F_SEAL_FUTURE_WRITE))
		return error_set(
			e, EPERM, ERROR_ARGUMENT,
			"descriptor %d is sealed against writing (%s): its memory could not "
			"be given back",
			index, seals & F_SEAL_WRITE ? "F_SEAL_WRITE" : "F_SEAL_FUTURE_WRITE");
	return 0;
}

int fd_check_memory(int fd, int index, struct memfd_info *out, struct error *e)
{
	int r = memory_check_kind(fd, index, e);

	if (r)
		return r;
	r = memfd_info(fd, out);
	if (r)
		return error_set(e, -r, ERROR_GENERIC, "descriptor %d: %s", index, error_text(r));
	return 0;
}

int fd_check_kept(int fd, int index, struct error *e)
{
	int flags, seals;

	return file_check_kind(fd, index, &flags, &seals, e);
}
