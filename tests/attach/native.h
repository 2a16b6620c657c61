/* SPDX-License-Identifier: BSD-3-Clause */
/* native.h: a client of the attach socket for tests and benchmarks. */
#ifndef TESTS_ATTACH_NATIVE_H
#define TESTS_ATTACH_NATIVE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/*
 * A process that maps RAM from a memfd and attaches it, as a VMM would:
 *
 *	struct native *client;
 *	struct native_ram ram;
 *
 *	native_ram_make(&ram, "ram", 256 << 20, NATIVE_SHMEM);
 *	native_open("/run/ebb/attach.sock", &client);
 *	if (native_attach(client, "guest1", &ram, 1, NATIVE_SERVE_ZAP))
 *		errx(1, "%s", native_error(client));
 *	... use ram.addr ...
 *	native_detach(client);
 *	native_close(client);
 *	native_ram_free(&ram);
 *
 * Functions return 0 or -errno (-EPROTO: the daemon refused; native_error() has its words). One
 * thread at a time for each client; a thread of its own serves the daemon's requests.
 */

enum native_kind {
	NATIVE_SHMEM,	/* memfd, 4 KiB pages */
	NATIVE_THP,	/* the same, aligned to 2 MiB and MADV_HUGEPAGE */
	NATIVE_HUGETLB, /* memfd, 2 MiB pages; -ENOMEM when the pool has too few */
};

struct native_ram {
	char id[64];
	void *addr;
	size_t bytes;
	int memfd;
	uint64_t offset; /* in the memfd */
	uint32_t page_bytes;
	uint64_t guest_addr; /* UINT64_MAX: not told */
};

int native_ram_make(struct native_ram *ram, const char *id, size_t bytes, enum native_kind kind);
/* Maps an existing memfd (borrowed, duplicated), e.g. for a secondary mapping. */
int native_ram_map(struct native_ram *ram, const char *id, size_t bytes, enum native_kind kind,
		   int memfd);
void native_ram_free(struct native_ram *ram);

enum native_flag {
	NATIVE_SECONDARY = 1 << 0,
	NATIVE_SERVE_ZAP = 1 << 1, /* says that it serves "zap", and does */
	NATIVE_KEEP = 1 << 2,	   /* keeps what the daemon gives it, for native_resume() */
	NATIVE_LENT_UFFD = 1 << 3, /* makes its userfaultfd from the daemon's device */
};

struct native;

int native_open(const char *socket_path, struct native **out);
/* Closes the socket; its duplicate of the userfaultfd is closed only with close_uffd. */
void native_close(struct native *c, bool close_uffd);
/* The last error's class and text. */
const char *native_error(const struct native *c);

/* n > 0 RAM blocks in one attach. Keeps a duplicate of the userfaultfd. */
int native_attach(struct native *c, const char *vm, const struct native_ram *ram, unsigned int n,
		  unsigned int flags);
/*
 * After the daemon's death: connects anew and attaches the same RAM with the userfaultfd and the
 * state that were kept. On failure all of it is still kept, and it may be tried again.
 */
int native_resume(struct native *c, const char *socket_path, const char *vm,
		  const struct native_ram *ram, unsigned int n, unsigned int flags);
int native_region_add(struct native *c, const struct native_ram *ram);
int native_region_remove(struct native *c, const char *id, bool discard);
int native_discard(struct native *c, const char *id, uint64_t offset, uint64_t bytes);
/* The same by a client that has dropped what was resident, and waits until deadline_ns. */
int native_discard_by(struct native *c, const char *id, uint64_t offset, uint64_t bytes,
		      uint64_t deadline_ns);
int native_pin(struct native *c, const char *id, uint64_t offset, uint64_t bytes);
int native_unpin(struct native *c, const char *id, uint64_t offset, uint64_t bytes);
int native_detach(struct native *c);

/* Sends any line (the newline is added) with descriptors and waits for the answer. */
int native_call(struct native *c, const char *line, const int *fds, int n_fds);
/* The last answer's text, and how many of the daemon's requests were served. */
const char *native_answer(const struct native *c);
unsigned int native_zaps(const struct native *c);
/* A piece of state that is kept (the descriptor is lent), or -1; how many there are. */
int native_kept_fd(struct native *c, const char *name);
unsigned int native_kept(struct native *c);

#endif
