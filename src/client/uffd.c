/* SPDX-License-Identifier: BSD-3-Clause */
/* uffd.c: the process's userfaultfd: made here, driven by the daemon. */
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/fd.h"
#include "client/client.h"
#include "client/real.h"

#ifndef USERFAULTFD_IOC_NEW
#define USERFAULTFD_IOC_NEW _IO(0xAA, 0x00)
#endif

/* O_NONBLOCK because a blocking userfaultfd polls as POLLERR. */
#define UFFD_FLAGS (O_CLOEXEC | O_NONBLOCK)

int uffd_from_device(int device)
{
	int fd = real.ioctl(device, USERFAULTFD_IOC_NEW, UFFD_FLAGS);

	return fd < 0 ? -errno : fd;
}

int uffd_new(void)
{
	int fd = (int)syscall(SYS_userfaultfd, UFFD_FLAGS);
	FD_OWNED device = -1;

	if (fd >= 0)
		return fd;
	/* Not UFFD_USER_MODE_ONLY, which would be allowed: KVM faults in kernel mode. */
	device = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);
	return device < 0 ? -EPERM : uffd_from_device(device);
}

bool uffd_registered(int uffd, uint64_t addr, uint32_t page_size)
{
	/*
	 * The kernel looks at the destination before it reads the source, so a source that cannot
	 * be read tells ENOENT (not registered) from EFAULT (registered), and nothing is copied.
	 * EAGAIN means an event that nobody has read: registered.
	 */
	void *hole = real.mmap(NULL, page_size, PROT_NONE,
			       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	struct uffdio_copy copy = {
		.dst = addr,
		.src = (uintptr_t)hole,
		.len = page_size,
		.mode = UFFDIO_COPY_MODE_DONTWAKE,
	};
	int r, err;

	/* Keeping a userfaultfd too long costs less than closing it too early. */
	if (hole == MAP_FAILED)
		return true;
	r = real.ioctl(uffd, UFFDIO_COPY, &copy);
	err = errno;
	real.munmap(hole, page_size);
	return r && err != ENOENT && err != EINVAL && err != ESRCH;
}
