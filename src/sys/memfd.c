/* SPDX-License-Identifier: BSD-3-Clause */
/* memfd.c: memory files: guest RAM and the daemon's own surviving memory. */
#include "sys/memfd.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/magic.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#ifndef F_SEAL_FUTURE_WRITE
#define F_SEAL_FUTURE_WRITE 0x0010
#endif

int memfd_make(const char *name, uint64_t bytes)
{
	int fd = memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING), r;

	if (fd < 0)
		return -errno;
	if (ftruncate(fd, (off_t)bytes) || fchmod(fd, 0600) ||
	    fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW)) {
		r = -errno;
		close(fd);
		return r;
	}
	return fd;
}

#ifndef MFD_HUGE_2MB /* the C library leaves it to <linux/memfd.h>, which it clashes with */
#define MFD_HUGE_2MB (21u << 26)
#endif
#define HUGE_BYTES ((off_t)2 << 20)

int memfd_reserve_huge(void)
{
	int fd = memfd_create("ebb:huge", MFD_CLOEXEC | MFD_HUGETLB | MFD_HUGE_2MB), r;
	void *p;

	if (fd < 0)
		return -errno;
	/* A shared mapping reserves for the file, and what is reserved stays when it goes. */
	if (ftruncate(fd, HUGE_BYTES) || (p = mmap(NULL, (size_t)HUGE_BYTES, PROT_READ | PROT_WRITE,
						   MAP_SHARED, fd, 0)) == MAP_FAILED) {
		r = -errno;
		close(fd);
		return r;
	}
	munmap(p, (size_t)HUGE_BYTES);
	return fd;
}

void memfd_unreserve_huge(int fd)
{
	/* Cannot fail: the file is ours, and not sealed. */
	if (ftruncate(fd, 0))
		return;
}

int memfd_info(int fd, struct memfd_info *out)
{
	struct memfd_info info = {0};
	struct statfs fs;
	struct stat st;
	int flags, seals;

	if (fstat(fd, &st) || fstatfs(fd, &fs))
		return -errno;
	flags = fcntl(fd, F_GETFL);
	if (flags < 0)
		return -errno;
	if (!S_ISREG(st.st_mode) ||
	    (fs.f_type != TMPFS_MAGIC && fs.f_type != (__typeof__(fs.f_type))HUGETLBFS_MAGIC))
		return -EMEDIUMTYPE;
	/* Files that know no seals (a tmpfs mount on old kernels) answer EINVAL: nothing is sealed.
	 */
	seals = fcntl(fd, F_GET_SEALS);
	if (seals < 0)
		seals = 0;
	info.dev = st.st_dev;
	info.ino = st.st_ino;
	info.size = (uint64_t)st.st_size;
	info.page_bytes = fs.f_type == TMPFS_MAGIC ? 4096 : (uint32_t)fs.f_bsize;
	info.writable =
		(flags & O_ACCMODE) == O_RDWR && !(seals & (F_SEAL_WRITE | F_SEAL_FUTURE_WRITE));
	info.shrinkable = !(seals & F_SEAL_SHRINK);
	info.named = st.st_nlink > 0;
	*out = info;
	return 0;
}

int memfd_punch(int fd, uint64_t offset, uint64_t bytes)
{
	int r;

	do {
		r = fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)offset,
			      (off_t)bytes);
	} while (r < 0 && errno == EINTR);
	return r < 0 ? -errno : 0;
}

int memfd_allocate(int fd, uint64_t offset, uint64_t bytes)
{
	int r;

	do {
		r = fallocate(fd, FALLOC_FL_KEEP_SIZE, (off_t)offset, (off_t)bytes);
	} while (r < 0 && errno == EINTR);
	return r < 0 ? -errno : 0;
}

int memfd_read(int fd, void *buf, uint64_t bytes, uint64_t offset)
{
	char *p = buf;

	while (bytes) {
		ssize_t n = pread(fd, p, bytes, (off_t)offset);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return -errno;
		if (n == 0)
			return -ENODATA;
		p += n;
		bytes -= (uint64_t)n;
		offset += (uint64_t)n;
	}
	return 0;
}

int memfd_write(int fd, const void *buf, uint64_t bytes, uint64_t offset)
{
	const char *p = buf;

	while (bytes) {
		ssize_t n = pwrite(fd, p, bytes, (off_t)offset);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return -errno;
		p += n;
		bytes -= (uint64_t)n;
		offset += (uint64_t)n;
	}
	return 0;
}

bool memfd_next_data(int fd, uint64_t offset, uint64_t end, uint64_t *start, uint64_t *stop)
{
	off_t data, hole;

	if (offset >= end)
		return false;
	data = lseek(fd, (off_t)offset, SEEK_DATA);
	if (data < 0 || (uint64_t)data >= end)
		return false;
	hole = lseek(fd, data, SEEK_HOLE);
	if (hole < 0 || (uint64_t)hole > end)
		hole = (off_t)end;
	*start = (uint64_t)data;
	*stop = (uint64_t)hole;
	return true;
}

uint64_t memfd_allocated(int fd)
{
	struct stat st;

	return fstat(fd, &st) ? 0 : (uint64_t)st.st_blocks * 512;
}
