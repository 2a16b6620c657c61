/* SPDX-License-Identifier: BSD-3-Clause */
/* real.c: finds libc's own versions of the functions that hooks.c takes the place of. */
#include "client/real.h"

#include <dlfcn.h>
#include <errno.h>
#include <stdarg.h>
#include <sys/syscall.h>
#include <unistd.h>

/*
 * A hook can be called before the constructor has run (by an allocator that another library's
 * constructor wakes), so the table starts out with the system calls themselves.
 */
static void *early_mmap(void *addr, size_t len, int prot, int flags, int fd, off_t off)
{
	return (void *)syscall(SYS_mmap, addr, len, prot, flags, fd, off);
}

static int early_munmap(void *addr, size_t len)
{
	return (int)syscall(SYS_munmap, addr, len);
}

static void *early_mremap(void *addr, size_t from, size_t to, int flags, ...)
{
	void *target;
	va_list ap;

	va_start(ap, flags);
	target = va_arg(ap, void *);
	va_end(ap);
	return (void *)syscall(SYS_mremap, addr, from, to, flags, target);
}

static int early_madvise(void *addr, size_t len, int advice)
{
	return (int)syscall(SYS_madvise, addr, len, advice);
}

static int early_fallocate(int fd, int mode, off_t off, off_t len)
{
	return (int)syscall(SYS_fallocate, fd, mode, off, len);
}

static ssize_t early_sendmsg(int sock, const struct msghdr *msg, int flags)
{
	return syscall(SYS_sendmsg, sock, msg, flags);
}

static int early_ioctl(int fd, unsigned long request, ...)
{
	void *arg;
	va_list ap;

	va_start(ap, request);
	arg = va_arg(ap, void *);
	va_end(ap);
	return (int)syscall(SYS_ioctl, fd, request, arg);
}

static int early_execve(const char *path, char *const argv[], char *const envp[])
{
	return (int)syscall(SYS_execve, path, argv, envp);
}

static int early_execv(const char *path, char *const argv[])
{
	return early_execve(path, argv, environ);
}

static int early_close(int fd)
{
	return (int)syscall(SYS_close, fd);
}

static int early_close_range(unsigned int first, unsigned int last, int flags)
{
	return (int)syscall(SYS_close_range, first, last, flags);
}

struct real_functions real = {
	.mmap = early_mmap,
	.munmap = early_munmap,
	.mremap = early_mremap,
	.madvise = early_madvise,
	.fallocate = early_fallocate,
	.sendmsg = early_sendmsg,
	.ioctl = early_ioctl,
	.execve = early_execve,
	.execv = early_execv,
	.execvp = early_execv,
	.close = early_close,
	.close_range = early_close_range,
};

/* RTLD_NEXT: whatever would have been called without us, be it libc or another preload. */
#define FIND(field, symbol)                              \
	do {                                             \
		void *found_ = dlsym(RTLD_NEXT, symbol); \
		if (found_)                              \
			*(void **)&real.field = found_;  \
	} while (0)

void real_init(void)
{
	FIND(mmap, "mmap64");
	FIND(munmap, "munmap");
	FIND(mremap, "mremap");
	FIND(madvise, "madvise");
	FIND(fallocate, "fallocate64");
	FIND(sendmsg, "sendmsg");
	FIND(ioctl, "ioctl");
	FIND(execve, "execve");
	FIND(execv, "execv");
	FIND(execvp, "execvp");
	FIND(close, "close");
	FIND(close_range, "close_range");
}
