/* SPDX-License-Identifier: BSD-3-Clause */
/* lock.c: one daemon for one runtime folder. */
#include "daemon/lock.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <sys/stat.h>

#include "base/fd.h"

/*
 * A POSIX record lock belongs to the process, so it ends with it even when duplicates of the
 * descriptor live on elsewhere; an OFD lock would not. The other side of that: closing any
 * descriptor of this file in this process drops it, so nobody else opens the file here.
 */
int lock_take(const char *dir, struct error *e)
{
	struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
	char path[PATH_MAX], pid[32];
	FD_OWNED fd = -1;
	int n;

	snprintf(path, sizeof(path), "%s/ebbd.lock", dir);
	fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
	if (fd < 0)
		return error_set(e, errno, ERROR_GENERIC, "%s: %s", path, error_text(errno));
	if (fcntl(fd, F_SETLK, &lock)) {
		int err = errno;

		lock.l_pid = 0;
		if ((err == EACCES || err == EAGAIN) && fcntl(fd, F_GETLK, &lock) == 0)
			return error_set(e, EBUSY, ERROR_BUSY,
					 "%s: another ebbd runs there (pid %d)", path,
					 (int)lock.l_pid);
		return error_set(e, err, ERROR_GENERIC, "%s: %s", path, error_text(err));
	}
	n = snprintf(pid, sizeof(pid), "%d\n", (int)getpid());
	if (ftruncate(fd, 0) || pwrite(fd, pid, (size_t)n, 0) != n)
		return error_set(e, EIO, ERROR_GENERIC, "%s: cannot be written", path);
	return fd_take(&fd);
}
