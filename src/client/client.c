/* SPDX-License-Identifier: BSD-3-Clause */
/* client.c: the process's guest RAM, as the hooks report it and the daemon is told of it. */
#include "client/client.h"

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/fd.h"
#include "base/size.h"
#include "client/real.h"

/*
 * Theory of operation
 *
 * Job. The library lives inside a VMM that knows nothing of it. It finds the guest's RAM (shared
 * mappings of memfds and of files on tmpfs or hugetlbfs), hands it with a userfaultfd to the
 * daemon, and tells the daemon whatever the VMM does to that RAM later.
 *
 * Parts. hooks.c stands in for the libc functions that matter, by LD_PRELOAD or, as a QEMU
 * plugin, by patching call tables (got.c). The hooks call the functions of this file in the VMM's
 * threads. They change the table of regions and, where the daemon has to know before the VMM may
 * go on, submit an op (ops.c) and wait for it. One helper thread (helper.c) does everything that
 * speaks to the daemon, and is made when the first region is found.
 *
 * Invariants.
 * - Without a daemon no call of the VMM fails or waits (EBB_REQUIRE is the operator's wish that
 *   it does). With one, a wait is bounded, except where going on would let somebody read zeroes
 *   instead of evicted content: before RAM's descriptor leaves the process.
 * - The userfaultfd stays open as long as a range is registered with it, daemon or not: when its
 *   last descriptor closes, vCPUs that wait for evicted pages read zeroes.
 * - The lock is never held across anything that can block on the daemon or on a guest page.
 * - Nothing here uses malloc or stdio streams; the hooks may run inside an allocator.
 * - No scheduler calls: QEMU's sandbox can forbid them.
 *
 * Ownership. The regions own a duplicate of their file each; the context owns the userfaultfd;
 * the helper owns the connection. There is one context because there is one process: the hooks
 * are called without one.
 *
 * What it does not do: see the daemon's side of the userfaultfd (it never reads it), keep guest
 * RAM off the VMM's own hands, or know what is evicted.
 */

#define MIN_SIZE_DEFAULT (UINT64_C(64) << 20)

static void default_name(struct client *c)
{
	snprintf(c->name, sizeof(c->name), "%.48s-%d", program_invocation_short_name, (int)c->pid);
}

static bool env_is_set(const char *name)
{
	const char *v = getenv(name);

	return v && *v && strcmp(v, "0");
}

void client_init(struct client *c)
{
	const char *path = getenv("EBB_SOCKET"), *name = getenv("EBB_NAME");
	const char *min = getenv("EBB_MIN_SIZE");
	pthread_condattr_t attr;

	c->pid = getpid();
	c->sock = c->wake = c->watch = c->uffd = -1;
	c->min_size = MIN_SIZE_DEFAULT;
	if (min && size_parse(min, &c->min_size))
		say("EBB_MIN_SIZE=%s is no size; using 64M", min);
	if (!path || !*path)
		path = "/run/ebb/attach.sock";
	if (snprintf(c->socket_path, sizeof(c->socket_path), "%s", path) >=
	    (int)sizeof(c->socket_path))
		say("EBB_SOCKET is longer than a unix socket's path can be");
	c->dial_path = c->socket_path;
	if (name && *name)
		snprintf(c->name, sizeof(c->name), "%s", name);
	else
		default_name(c);
	c->require = env_is_set("EBB_REQUIRE");
	c->secondary = env_is_set("EBB_SECONDARY");
	/* QEMU keeps its RAM from its children, and unmaps it only to give it up. */
	c->in_qemu = dlsym(RTLD_DEFAULT, "qemu_plugin_register_vcpu_init_cb") != NULL;
	pthread_mutex_init(&c->lock, NULL);
	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_cond_init(&c->changed, &attr);
	pthread_condattr_destroy(&attr);
}

/* ---- descriptors that are ours ---- */

static _Atomic uint64_t *fd_word(struct client *c, int fd, uint64_t *bit)
{
	if (fd < 0 || fd >= CLIENT_FD_MAX)
		return NULL;
	*bit = UINT64_C(1) << (fd % 64);
	return &c->own_fds[fd / 64];
}

int client_keep_fd(struct client *c, int fd)
{
	uint64_t bit;
	_Atomic uint64_t *word = fd_word(c, fd, &bit);

	if (word)
		atomic_fetch_or(word, bit);
	return fd;
}

void client_drop_fd(struct client *c, int fd)
{
	uint64_t bit;
	_Atomic uint64_t *word = fd_word(c, fd, &bit);

	if (word)
		atomic_fetch_and(word, ~bit);
	if (fd >= 0)
		real.close(fd);
}

bool client_owns_fd(struct client *c, int fd)
{
	uint64_t bit;
	_Atomic uint64_t *word = fd_word(c, fd, &bit);

	return word && (atomic_load_explicit(word, memory_order_relaxed) & bit);
}
