/* SPDX-License-Identifier: BSD-3-Clause */
/* uffd.c: userfaultfd; the one place that issues its ioctls. */
#include "sys/uffd.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifndef USERFAULTFD_IOC_NEW
#define USERFAULTFD_IOC_NEW _IO(0xAA, 0x00)
#endif

/* Since Linux 6.6. */
struct uffd_poison_arg {
	struct uffdio_range range;
	uint64_t mode;
	int64_t updated;
};
#define UFFD_IOC_POISON _IOWR(UFFDIO, 0x08, struct uffd_poison_arg)

static int do_ioctl(int fd, unsigned long request, void *arg)
{
	int r;

	do {
		r = ioctl(fd, request, arg);
	} while (r < 0 && errno == EINTR);
	return r < 0 ? -errno : 0;
}

int uffd_api(int fd, uint64_t features, uint64_t *supported)
{
	struct uffdio_api api = {.api = UFFD_API, .features = features};
	int r = do_ioctl(fd, UFFDIO_API, &api);

	if (r)
		return r;
	if (supported)
		*supported = api.features;
	return 0;
}

int uffd_new(void)
{
	int dev, fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);

	if (fd >= 0)
		return fd;
	dev = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);
	if (dev < 0)
		return -errno;
	fd = ioctl(dev, USERFAULTFD_IOC_NEW, O_CLOEXEC | O_NONBLOCK);
	if (fd < 0)
		fd = -errno;
	close(dev);
	return fd;
}

int uffd_probe(uint64_t *supported)
{
	int fd = uffd_new(), r;

	if (fd < 0)
		return fd;
	/* Asked for nothing, the kernel answers with all that it has. */
	r = uffd_api(fd, 0, supported);
	close(fd);
	return r;
}

bool uffd_is(int fd)
{
	char link[64], target[64];
	ssize_t n;

	snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
	n = readlink(link, target, sizeof(target) - 1);
	if (n < 0)
		return false;
	target[n] = 0;
	return strcmp(target, "anon_inode:[userfaultfd]") == 0;
}

int uffd_register(int fd, uint64_t start, uint64_t bytes, uint64_t modes)
{
	struct uffdio_register reg = {.range = {start, bytes}, .mode = modes};

	return do_ioctl(fd, UFFDIO_REGISTER, &reg);
}

int uffd_unregister(int fd, uint64_t start, uint64_t bytes)
{
	struct uffdio_range range = {start, bytes};

	return do_ioctl(fd, UFFDIO_UNREGISTER, &range);
}

/*
 * An ioctl that stopped in the middle says how far it came in its result field; by pointer, so
 * that it is read after the ioctl, whatever the order of evaluation.
 */
static int64_t partial(int r, const int64_t *done)
{
	if (!r || (r == -EAGAIN && *done > 0))
		return *done;
	return *done < 0 ? *done : r;
}

int64_t uffd_copy(int fd, uint64_t dst, const void *src, uint64_t bytes, uint64_t mode)
{
	struct uffdio_copy copy = {
		.dst = dst, .src = (uint64_t)(uintptr_t)src, .len = bytes, .mode = mode};

	return partial(do_ioctl(fd, UFFDIO_COPY, &copy), (const int64_t *)&copy.copy);
}

int64_t uffd_zero(int fd, uint64_t dst, uint64_t bytes)
{
	struct uffdio_zeropage zero = {.range = {dst, bytes}};

	return partial(do_ioctl(fd, UFFDIO_ZEROPAGE, &zero), (const int64_t *)&zero.zeropage);
}

int64_t uffd_continue(int fd, uint64_t start, uint64_t bytes, uint64_t mode)
{
	struct uffdio_continue cont = {.range = {start, bytes}, .mode = mode};

	return partial(do_ioctl(fd, UFFDIO_CONTINUE, &cont), (const int64_t *)&cont.mapped);
}

static int write_protect(int fd, uint64_t start, uint64_t bytes, uint64_t mode)
{
	struct uffdio_writeprotect wp = {.range = {start, bytes}, .mode = mode};

	return do_ioctl(fd, UFFDIO_WRITEPROTECT, &wp);
}

int uffd_protect(int fd, uint64_t start, uint64_t bytes)
{
	return write_protect(fd, start, bytes, UFFDIO_WRITEPROTECT_MODE_WP);
}

int uffd_unprotect(int fd, uint64_t start, uint64_t bytes)
{
	return write_protect(fd, start, bytes, 0);
}

int uffd_wake(int fd, uint64_t start, uint64_t bytes)
{
	struct uffdio_range range = {start, bytes};

	return do_ioctl(fd, UFFDIO_WAKE, &range);
}

int uffd_poison(int fd, uint64_t start, uint64_t bytes)
{
	struct uffd_poison_arg arg = {.range = {start, bytes}};

	return do_ioctl(fd, UFFD_IOC_POISON, &arg);
}

int uffd_read(int fd, struct uffd_msg *msgs, int n)
{
	ssize_t r;

	do {
		r = read(fd, msgs, sizeof(*msgs) * (size_t)n);
	} while (r < 0 && errno == EINTR);
	if (r < 0)
		return errno == EAGAIN ? 0 : -errno;
	return (int)(r / (ssize_t)sizeof(*msgs));
}
