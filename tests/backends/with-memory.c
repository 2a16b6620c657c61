/* SPDX-License-Identifier: BSD-3-Clause */
/* with-memory.c: runs a test over memory that stands for a devdax device. */
#include <err.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

/* with-memory MIB COMMAND [ARG...]: "@" in an argument becomes the memory's path */
int main(int argc, char **argv)
{
	char path[64];
	int fd;

	if (argc < 3)
		errx(2, "usage: %s MIB COMMAND [ARG...]", argv[0]);
	/* Not CLOEXEC: the command inherits it, under the process id that the path names. */
	fd = memfd_create("device", MFD_ALLOW_SEALING);
	if (fd < 0 || ftruncate(fd, atol(argv[1]) << 20) || fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK))
		err(1, "memfd");
	snprintf(path, sizeof(path), "/proc/%d/fd/%d", (int)getpid(), fd);
	for (char **a = argv + 3; *a; a++) {
		char *at = strchr(*a, '@'), *with = NULL;

		if (at && asprintf(&with, "%.*s%s%s", (int)(at - *a), *a, path, at + 1) > 0)
			*a = with;
	}
	execv(argv[2], argv + 2);
	err(1, "%s", argv[2]);
}
