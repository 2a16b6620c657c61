/* SPDX-License-Identifier: BSD-3-Clause */
/* real.h: libc's own versions of the functions that hooks.c takes the place of. */
#ifndef CLIENT_REAL_H
#define CLIENT_REAL_H

#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/types.h>

/* The library's own code calls these, so that it never meets its own hooks. Never NULL. */
struct real_functions {
	void *(*mmap)(void *, size_t, int, int, int, off_t);
	int (*munmap)(void *, size_t);
	void *(*mremap)(void *, size_t, size_t, int, ...);
	int (*madvise)(void *, size_t, int);
	int (*fallocate)(int, int, off_t, off_t);
	ssize_t (*sendmsg)(int, const struct msghdr *, int);
	int (*ioctl)(int, unsigned long, ...);
	int (*execve)(const char *, char *const[], char *const[]);
	int (*execv)(const char *, char *const[]);
	int (*execvp)(const char *, char *const[]);
	int (*close)(int);
	int (*close_range)(unsigned int, unsigned int, int);
};
extern struct real_functions real;

/* Looks them up; until then they are plain system calls. Once, from the constructor. */
void real_init(void);

#endif
