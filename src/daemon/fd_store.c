/* SPDX-License-Identifier: BSD-3-Clause */
/* fd_store.c: what the service manager kept for us. */
#include "daemon/fd_store.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/fd.h"
#include "base/log.h"
#include "daemon/notify.h"

/*
 * systemd starts us with the stored descriptors open from number 3 on, and their names in
 * LISTEN_FDNAMES (sd_listen_fds(3)). src/engine/shelf.c knows what the names mean.
 */

#define FIRST_FD   3
#define SETTLE_MS  1000
#define STORED_MAX 65536

static int put(void *ctx, const char *name, int fd)
{
	(void)ctx;
	return notify_fd_put(name, fd);
}

static void drop(void *ctx, const char *name)
{
	(void)ctx;
	notify_fd_drop(name);
}

static int settle(void *ctx)
{
	(void)ctx;
	return notify_barrier(SETTLE_MS);
}

struct engine_fd_store fd_store(void)
{
	unsigned int max = notify_fds_max();
	struct engine_fd_store none = {0}, s = {put, drop, settle, NULL, max};

	return max ? s : none;
}

struct stored {
	char id[SHELF_ID_MAX];
	struct attach_kept piece;
};

/* What is ours of n descriptors; the rest is closed. */
static unsigned int take(struct stored *out, unsigned int n, char *names)
{
	unsigned int found = 0;
	char *save = NULL, *name = strtok_r(names, ":", &save);

	for (unsigned int i = 0; i < n; i++, name = name ? strtok_r(NULL, ":", &save) : NULL) {
		int fd = FIRST_FD + (int)i;

		if (fcntl(fd, F_SETFD, FD_CLOEXEC))
			continue;
		if (name && shelf_parse_name(name, out[found].id, out[found].piece.name))
			out[found++].piece.fd = fd;
		else
			close(fd);
	}
	return found;
}

/* All of the VM of stored[i], which are then marked as done (id ""). */
static void restore(struct engine *eng, struct stored *stored, unsigned int n, unsigned int first)
{
	struct attach_kept pieces[SHELF_PIECES_MAX];
	struct attach_shelf shelf = {.pieces = pieces};
	char id[SHELF_ID_MAX];
	struct error e;

	strcpy(id, stored[first].id);
	shelf.id = id;
	for (unsigned int i = first; i < n; i++)
		if (strcmp(stored[i].id, id) == 0 && shelf.n_pieces < SHELF_PIECES_MAX) {
			pieces[shelf.n_pieces++] = stored[i].piece;
			stored[i].id[0] = '\0';
		}
	if (engine_restore(eng, &shelf, &e))
		log_warning("a VM in the service manager's store (%s) is not taken over: %s", id,
			    e.desc);
}

void fd_store_restore(struct engine *eng)
{
	/* NOLINTBEGIN(concurrency-mt-unsafe): nothing else reads or sets these */
	const char *pid = getenv("LISTEN_PID"), *count = getenv("LISTEN_FDS"),
		   *names = getenv("LISTEN_FDNAMES");
	char *copy = strdup(names ? names : "");
	unsigned long n = count ? strtoul(count, NULL, 10) : 0;
	struct stored *stored = NULL;

	if (pid && strtol(pid, NULL, 10) == getpid() && n && n <= STORED_MAX && copy)
		stored = calloc(n, sizeof(*stored));
	/* A successor is started with our environment, and has none of it. */
	unsetenv("LISTEN_PID");
	unsetenv("LISTEN_FDS");
	unsetenv("LISTEN_FDNAMES");
	/* NOLINTEND(concurrency-mt-unsafe) */
	n = stored ? take(stored, (unsigned int)n, copy) : 0;
	for (unsigned int i = 0; i < n; i++)
		if (stored[i].id[0])
			restore(eng, stored, (unsigned int)n, i);
	for (unsigned int i = 0; i < n; i++)
		close(stored[i].piece.fd);
	free(stored);
	free(copy);
}
