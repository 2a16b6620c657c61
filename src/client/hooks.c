/* SPDX-License-Identifier: BSD-3-Clause */
/* hooks.c: stands in for the libc functions by which a VMM changes its guest RAM. */

/* Under this macro the headers would give the name mmap64 to a function called mmap. */
#undef _FILE_OFFSET_BITS
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/close_range.h>
#include <linux/userfaultfd.h>
#include <stdarg.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "client/client.h"
#include "client/real.h"

/*
 * Each hook does what libc's function does, and tells client.c before or after. errno is the
 * caller's: what we do after the real call must not change it. The pairs with and without 64 are
 * one function, as off_t has 64 bits on the machines that got.c knows. The library is linked with
 * -Bsymbolic-functions, so the names below are these functions here, whoever else has them.
 */

#define EXPORT __attribute__((visibility("default")))
#if __has_attribute(copy) /* clang does not know it, and does not miss it */
#define ALIAS(name) __attribute__((visibility("default"), alias(#name), copy(name)))
#else
#define ALIAS(name) __attribute__((visibility("default"), alias(#name)))
#endif

struct client the_client = {.sock = -1, .wake = -1, .watch = -1, .uffd = -1};
static _Atomic bool ready; /* the constructor is through */
static _Atomic bool
	early; /* a file was mapped before that: an allocator's memory, for the loader */

static bool hooks_ready(void)
{
	return atomic_load_explicit(&ready, memory_order_acquire);
}

EXPORT void *mmap(void *addr, size_t len, int prot, int flags, int fd, off_t off)
{
	void *p;
	int saved;

	/* Plain MAP_FIXED replaces what is there. */
	if (hooks_ready() && (flags & (MAP_FIXED | MAP_FIXED_NOREPLACE)) == MAP_FIXED)
		client_before_unmap(&the_client, addr, len, true);
	p = real.mmap(addr, len, prot, flags, fd, off);
	if (p == MAP_FAILED || fd < 0)
		return p;
	if (!hooks_ready()) {
		atomic_store(&early, true);
		return p;
	}
	saved = errno;
	client_mapped(&the_client, p, len, prot, flags, fd, off);
	errno = saved;
	return p;
}
ALIAS(mmap) void *mmap64(void *addr, size_t len, int prot, int flags, int fd, off_t off);

EXPORT int munmap(void *addr, size_t len)
{
	if (hooks_ready())
		client_before_unmap(&the_client, addr, len, false);
	return real.munmap(addr, len);
}

EXPORT void *mremap(void *addr, size_t from, size_t to, int flags, ...)
{
	void *target = NULL, *p;
	va_list ap;
	int saved;

	va_start(ap, flags);
	if (flags & (MREMAP_FIXED | MREMAP_DONTUNMAP))
		target = va_arg(ap, void *);
	va_end(ap);
	if (hooks_ready()) {
		client_before_unmap(&the_client, addr, from, true);
		if (flags & MREMAP_FIXED)
			client_before_unmap(&the_client, target, to, true);
	}
	p = real.mremap(addr, from, to, flags, target);
	if (hooks_ready() && to >= the_client.min_size &&
	    atomic_load_explicit(&the_client.started, memory_order_acquire)) {
		saved = errno;
		client_scan(&the_client);
		helper_start(&the_client);
		errno = saved;
	}
	return p;
}

EXPORT int madvise(void *addr, size_t len, int advice)
{
	bool populate = advice == MADV_POPULATE_READ || advice == MADV_POPULATE_WRITE;
	int r, saved;

	if (!hooks_ready())
		return real.madvise(addr, len, advice);
	if (populate)
		client_populating(&the_client, addr, len, 1);
	r = real.madvise(addr, len, advice);
	saved = errno;
	if (populate)
		client_populating(&the_client, addr, len, -1);
	else if (!r && advice == MADV_REMOVE)
		client_discarded(&the_client, addr, len);
	else if (!r && (advice == MADV_DONTFORK || advice == MADV_DOFORK))
		client_dontfork(&the_client, addr, len, advice == MADV_DONTFORK);
	errno = saved;
	return r;
}

EXPORT int fallocate(int fd, int mode, off_t off, off_t len)
{
	int r = real.fallocate(fd, mode, off, len), saved = errno;

	if (!r && (mode & FALLOC_FL_PUNCH_HOLE) && hooks_ready()) {
		client_punched(&the_client, fd, off, len);
		errno = saved;
	}
	return r;
}
ALIAS(fallocate) int fallocate64(int fd, int mode, off_t off, off_t len);

static void share_descriptors(int sock, const struct msghdr *msg)
{
	struct ucred peer = {0};
	socklen_t len = sizeof(peer);

	/* Nothing is sent: no system call that a sandbox need not allow. */
	if (!CMSG_FIRSTHDR(msg))
		return;
	/* A socketpair tells who made it, not who has its other end by now. */
	if (getsockopt(sock, SOL_SOCKET, SO_PEERCRED, &peer, &len) || peer.pid == getpid())
		peer.pid = 0;
	for (struct cmsghdr *m = CMSG_FIRSTHDR(msg); m; m = CMSG_NXTHDR((struct msghdr *)msg, m)) {
		size_t n = (m->cmsg_len - CMSG_LEN(0)) / sizeof(int);

		if (m->cmsg_level != SOL_SOCKET || m->cmsg_type != SCM_RIGHTS)
			continue;
		for (size_t i = 0; i < n; i++) {
			int fd;

			memcpy(&fd, CMSG_DATA(m) + i * sizeof(int), sizeof(int));
			client_before_share(&the_client, fd, peer.pid);
		}
	}
}

EXPORT ssize_t sendmsg(int sock, const struct msghdr *msg, int flags)
{
	if (msg && msg->msg_control && hooks_ready())
		share_descriptors(sock, msg);
	return real.sendmsg(sock, msg, flags);
}

EXPORT int ioctl(int fd, unsigned long request, ...)
{
	struct uffdio_range range;
	int r, saved;
	va_list ap;
	void *arg;

	va_start(ap, request);
	arg = va_arg(ap, void *);
	va_end(ap);
	if ((request != UFFDIO_REGISTER && request != UFFDIO_UNREGISTER) || !arg || !hooks_ready())
		return real.ioctl(fd, request, arg);
	/* Both arguments begin with the range. */
	memcpy(&range, arg, sizeof(range));
	if (request == UFFDIO_REGISTER)
		client_step_aside(&the_client, range.start, range.len);
	r = real.ioctl(fd, request, arg);
	saved = errno;
	if ((request == UFFDIO_REGISTER) == (r != 0))
		client_step_back(&the_client, range.start, range.len);
	errno = saved;
	return r;
}

/* ---- exec: the address space goes, the files may stay ---- */

#define EXEC_WAIT_S 30

EXPORT int execve(const char *path, char *const argv[], char *const envp[])
{
	if (hooks_ready())
		client_detach(&the_client, EXEC_WAIT_S);
	return real.execve(path, argv, envp);
}

EXPORT int execv(const char *path, char *const argv[])
{
	if (hooks_ready())
		client_detach(&the_client, EXEC_WAIT_S);
	return real.execv(path, argv);
}

EXPORT int execvp(const char *file, char *const argv[])
{
	if (hooks_ready())
		client_detach(&the_client, EXEC_WAIT_S);
	return real.execvp(file, argv);
}

/* ---- descriptors: ours are not the VMM's to close, as when it closes all it can find ---- */

EXPORT int close(int fd)
{
	if (hooks_ready() && client_owns_fd(&the_client, fd)) {
		errno = EBADF;
		return -1;
	}
	return real.close(fd);
}

EXPORT int close_range(unsigned int first, unsigned int last, int flags)
{
	unsigned int from = first;
	int r = 0;

	if (!hooks_ready() || (flags & ~CLOSE_RANGE_UNSHARE) || first > last)
		return real.close_range(first, last, flags);
	for (unsigned int fd = first; !r && fd <= last && fd < CLIENT_FD_MAX; fd++) {
		if (!client_owns_fd(&the_client, (int)fd))
			continue;
		if (fd > from)
			r = real.close_range(from, fd - 1, flags);
		from = fd + 1;
	}
	return r || from > last ? r : real.close_range(from, last, flags);
}

EXPORT void closefrom(int low)
{
	close_range(low < 0 ? 0 : (unsigned int)low, ~0U, 0);
}

/* ---- the library's beginning and end ---- */

static void fork_prepare(void)
{
	client_fork_prepare(&the_client);
}

static void fork_parent(void)
{
	client_fork_parent(&the_client);
}

static void fork_child(void)
{
	client_fork_child(&the_client);
}

/* The loader has bound libc's names to the functions here. */
static bool preloaded(void)
{
	return dlsym(RTLD_DEFAULT, "closefrom") == (void *)closefrom;
}

__attribute__((constructor)) static void begin(void)
{
	real_init();
	client_init(&the_client);
	/* Covers what libc calls fork() for itself, too (daemon(), forkpty()). */
	pthread_atfork(fork_prepare, fork_parent, fork_child);
	atomic_store_explicit(&ready, true, memory_order_release);
	/* virtiofsd maps guest RAM when it has a new root and a seccomp filter: be there first. */
	if (the_client.secondary)
		helper_start(&the_client);
	/* A plugin of QEMU has its settings yet to come. */
	if (atomic_load(&early) && preloaded())
		client_scan_early(&the_client);
}

__attribute__((destructor)) static void end(void)
{
	client_exit(&the_client);
}

void hooks_install(void)
{
	static const struct got_hook hooks[] = {
		{"mmap", mmap},
		{"mmap64", mmap},
		{"munmap", munmap},
		{"mremap", mremap},
		{"madvise", madvise},
		{"fallocate", fallocate},
		{"fallocate64", fallocate},
		{"sendmsg", sendmsg},
		{"ioctl", ioctl},
		{"execve", execve},
		{"execv", execv},
		{"execvp", execvp},
		{"close", close},
		{"close_range", close_range},
		{"closefrom", closefrom},
	};

	if (preloaded())
		return;
	got_patch(hooks, sizeof(hooks) / sizeof(*hooks));
}
