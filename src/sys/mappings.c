/* SPDX-License-Identifier: BSD-3-Clause */
/* mappings.c: which processes map a file of guest RAM, by walking /proc. */
#include "sys/mappings.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/kcmp.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "base/fd.h"

/*
 * Theory of operation. Every line of /proc/PID/maps names the mapped file as " MAJOR:MINOR INODE "
 * in one fixed spelling, so a maps file is searched for that text instead of being parsed; the
 * spaces around it keep it from matching a part of another number, and it cannot be forged by a
 * file's name because names come last on the line and the match must start at the fourth field.
 * No state, any thread.
 */

#define MAPS_BUF_BYTES 65536

struct needle {
	char text[64];
	size_t length;
};

static void needle_make(struct needle *n, dev_t dev, ino_t ino)
{
	n->length = (size_t)snprintf(n->text, sizeof(n->text), " %02x:%02x %llu ", major(dev),
				     minor(dev), (unsigned long long)ino);
}

/* True when the needle stands behind the third field: addresses, permissions, offset. */
static bool line_has(const char *line, size_t length, const struct needle *n)
{
	const char *p = line, *end = line + length;

	for (int field = 0; field < 3; field++) {
		if (field)
			p++;
		p = memchr(p, ' ', (size_t)(end - p));
		if (!p)
			return false;
	}
	return (size_t)(end - p) >= n->length && !memcmp(p, n->text, n->length);
}

/* True when a whole line in buf has the needle; *used: the bytes of whole lines. */
static bool lines_have(const char *buf, size_t bytes, const struct needle *n, size_t *used)
{
	const char *p = buf, *end = buf + bytes, *eol;

	while ((eol = memchr(p, '\n', (size_t)(end - p)))) {
		/* A line without a file's name ends with spaces, so the needle fits before \n. */
		if (line_has(p, (size_t)(eol - p), n))
			return true;
		p = eol + 1;
	}
	*used = (size_t)(p - buf);
	return false;
}

/* 1: maps it; 0: does not, or is gone; -errno: may not be read. */
static int process_maps(int proc_fd, pid_t pid, const struct needle *n, char *buf)
{
	char path[64];
	FD_OWNED fd = -1;
	size_t have = 0;

	snprintf(path, sizeof(path), "%d/maps", pid);
	fd = openat(proc_fd, path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return errno == ENOENT || errno == ESRCH ? 0 : -errno;
	for (;;) {
		size_t used;
		ssize_t r = read(fd, buf + have, MAPS_BUF_BYTES - have);

		if (r < 0 && errno == EINTR)
			continue;
		if (r <= 0)
			return r == 0 || errno == ESRCH ? 0 : -errno;
		have += (size_t)r;
		if (lines_have(buf, have, n, &used))
			return 1;
		/* A path is at most a page, so no line comes near this; drop what does. */
		if (!used && have == MAPS_BUF_BYTES)
			used = have;
		memmove(buf, buf + used, have - used);
		have -= used;
	}
}

/* A vfork()ed child runs in the address space of its parent: not a mapping of its own. */
static bool is_known(pid_t pid, const pid_t *known, unsigned int n_known)
{
	for (unsigned int i = 0; i < n_known; i++)
		if (pid == known[i])
			return true;
	for (unsigned int i = 0; i < n_known; i++)
		if (syscall(SYS_kcmp, pid, known[i], KCMP_VM, 0, 0) == 0)
			return true;
	return false;
}

static void read_comm(int proc_fd, pid_t pid, char comm[16])
{
	char path[64];
	FD_OWNED fd = -1;
	ssize_t r = 0;

	snprintf(path, sizeof(path), "%d/comm", pid);
	fd = openat(proc_fd, path, O_RDONLY | O_CLOEXEC);
	if (fd >= 0)
		r = read(fd, comm, 15);
	if (r < 0)
		r = 0;
	comm[r] = 0;
	comm[strcspn(comm, "\n")] = 0;
}

int mappings_foreign(dev_t dev, ino_t ino, const pid_t *known, unsigned int n_known,
		     struct foreign_mapping *out, unsigned int max)
{
	DIR *proc = opendir("/proc");
	char *buf = malloc(MAPS_BUF_BYTES);
	struct needle needle;
	struct dirent *entry;
	int found = 0;

	if (!proc || !buf) {
		found = proc ? -ENOMEM : -errno;
		goto out;
	}
	needle_make(&needle, dev, ino);
	while ((entry = readdir(proc))) {
		pid_t pid = (pid_t)strtol(entry->d_name, NULL, 10);

		if (pid <= 0 || process_maps(dirfd(proc), pid, &needle, buf) <= 0 ||
		    is_known(pid, known, n_known))
			continue;
		if ((unsigned int)found < max) {
			out[found].pid = pid;
			read_comm(dirfd(proc), pid, out[found].comm);
		}
		found++;
	}
out:
	free(buf);
	if (proc)
		closedir(proc);
	return found;
}
