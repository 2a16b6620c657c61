/* SPDX-License-Identifier: BSD-3-Clause */
/* maps.c: reads /proc/self/maps and judges the files behind mappings, without stdio or malloc. */
#include "client/maps.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "base/fd.h"

#define LINE_MAX_BYTES 4352 /* addresses and a path of PATH_MAX */

struct scan {
	void (*each)(void *ctx, const struct mapping *m);
	void *ctx;
	struct mapping run; /* VMAs merged so far; size 0: none */
};

static void flush_run(struct scan *s)
{
	if (s->run.size)
		s->each(s->ctx, &s->run);
	s->run.size = 0;
}

/* "/dev/shm/a b (deleted)" -> "a b": the part that tells files apart to people. */
static void copy_name(char *buf, size_t bytes, const char *path, size_t len)
{
	static const char gone[] = " (deleted)";
	const char *base = path, *end = path + len;
	size_t n = 0;

	if (len > sizeof(gone) - 1 && !memcmp(end - (sizeof(gone) - 1), gone, sizeof(gone) - 1))
		end -= sizeof(gone) - 1;
	for (const char *p = path; p < end; p++)
		if (*p == '/')
			base = p + 1;
	if (end - base > 6 && !memcmp(base, "memfd:", 6))
		base += 6;
	for (; base < end && n + 1 < bytes; base++) {
		bool plain = (*base >= 'a' && *base <= 'z') || (*base >= 'A' && *base <= 'Z') ||
			     (*base >= '0' && *base <= '9') || strchr("._-", *base);

		buf[n++] = plain ? *base : '_';
	}
	buf[n] = '\0';
}

/* start-end perms offset major:minor inode   path */
static bool parse_line(const char *line, size_t len, struct mapping *m)
{
	const char *end = line + len;
	char *p;
	unsigned int major_, minor_;

	m->addr = strtoull(line, &p, 16);
	if (*p++ != '-')
		return false;
	m->size = strtoull(p, &p, 16) - m->addr;
	m->vma_size = m->size;
	if (strncmp(p, " rw", 3) || p[4] != 's')
		return false;
	m->offset = strtoull(p + 5, &p, 16);
	major_ = (unsigned int)strtoul(p, &p, 16);
	if (*p++ != ':')
		return false;
	minor_ = (unsigned int)strtoul(p, &p, 16);
	m->dev = makedev(major_, minor_);
	m->ino = strtoull(p, &p, 10);
	while (p < end && *p == ' ')
		p++;
	copy_name(m->name, sizeof(m->name), p, (size_t)(end - p));
	return m->ino != 0;
}

static void take_line(struct scan *s, const char *line, size_t len)
{
	struct mapping m, *run = &s->run;

	if (!parse_line(line, len, &m)) {
		flush_run(s);
		return;
	}
	if (run->size && run->addr + run->size == m.addr && run->dev == m.dev &&
	    run->ino == m.ino && run->offset + run->size == m.offset) {
		run->size += m.size;
		return;
	}
	flush_run(s);
	*run = m;
}

int maps_scan(void (*each)(void *ctx, const struct mapping *m), void *ctx)
{
	struct scan s = {.each = each, .ctx = ctx};
	char buf[LINE_MAX_BYTES + 4096 + 1];
	size_t have = 0;
	FD_OWNED fd = open("/proc/self/maps", O_RDONLY | O_CLOEXEC);

	if (fd < 0)
		return -errno;
	for (;;) {
		ssize_t n = read(fd, buf + have, sizeof(buf) - 1 - have);
		char *line = buf, *nl;

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return -errno;
		if (!n)
			break;
		have += (size_t)n;
		buf[have] = '\0';
		while ((nl = memchr(line, '\n', have - (size_t)(line - buf)))) {
			*nl = '\0';
			take_line(&s, line, (size_t)(nl - line));
			line = nl + 1;
		}
		have -= (size_t)(line - buf);
		memmove(buf, line, have);
		if (have == sizeof(buf) - 1)
			return -EMSGSIZE;
	}
	flush_run(&s);
	return 0;
}

int memfile_check(int fd, struct memfile *out)
{
	struct statfs fs;
	struct stat st;
	int flags = fcntl(fd, F_GETFL), seals;

	if (flags < 0 || (flags & O_ACCMODE) != O_RDWR || fstat(fd, &st) || !S_ISREG(st.st_mode) ||
	    fstatfs(fd, &fs))
		return -EMEDIUMTYPE;
	if (fs.f_type != TMPFS_MAGIC && fs.f_type != HUGETLBFS_MAGIC)
		return -EMEDIUMTYPE;
	seals = fcntl(fd, F_GET_SEALS);
	if (seals >= 0 && (seals & (F_SEAL_WRITE | F_SEAL_FUTURE_WRITE)))
		return -EMEDIUMTYPE;
	*out = (struct memfile){
		.dev = st.st_dev,
		.ino = st.st_ino,
		.page_size = fs.f_type == HUGETLBFS_MAGIC ? (uint32_t)fs.f_bsize : 4096,
		.named = st.st_nlink > 0,
	};
	return 0;
}

static bool is_file_of(int fd, const struct mapping *m)
{
	struct memfile f;

	return !memfile_check(fd, &f) && f.dev == m->dev && f.ino == m->ino;
}

struct linux_dirent64 {
	uint64_t d_ino;
	int64_t d_off;
	unsigned short d_reclen;
	unsigned char d_type;
	char d_name[];
};

static int search_own_fds(const struct mapping *m)
{
	_Alignas(struct linux_dirent64) char buf[2048];
	FD_OWNED dir = open("/proc/self/fd", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	long n;

	if (dir < 0)
		return -ENOENT;
	while ((n = syscall(SYS_getdents64, dir, buf, sizeof(buf))) > 0) {
		for (long at = 0; at < n;) {
			const struct linux_dirent64 *d = (const void *)(buf + at);
			int fd = atoi(d->d_name);

			at += d->d_reclen;
			if (d->d_name[0] == '.' || fd == dir || !is_file_of(fd, m))
				continue;
			fd = fcntl(fd, F_DUPFD_CLOEXEC, 3);
			if (fd >= 0)
				return fd;
		}
	}
	return -ENOENT;
}

int memfile_open(const struct mapping *m)
{
	char path[80];
	int fd = search_own_fds(m);

	if (fd >= 0)
		return fd;
	snprintf(path, sizeof(path), "/proc/self/map_files/%llx-%llx", (unsigned long long)m->addr,
		 (unsigned long long)(m->addr + m->vma_size));
	fd = open(path, O_RDWR | O_CLOEXEC);
	if (fd >= 0 && !is_file_of(fd, m))
		fd_close(&fd);
	return fd >= 0 ? fd : -ENOENT;
}

void memfile_name(int fd, char *buf, size_t bytes)
{
	char link[40], path[256];
	ssize_t n;

	snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
	n = readlink(link, path, sizeof(path));
	copy_name(buf, bytes, n > 0 ? path : "ram", n > 0 ? (size_t)n : 3);
}
