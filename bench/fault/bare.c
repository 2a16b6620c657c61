/* SPDX-License-Identifier: BSD-3-Clause */
/* bare.c: the least that a userfaultfd handler in another process can cost. */
#include "bare.h"

#include <errno.h>
#include <fcntl.h>
#include <lz4.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "sys/uffd.h"

/*
 * Theory of operation
 *
 * This process touches, a child serves: epoll_wait(), one read(), UFFDIO_COPY of one and the same
 * buffer (which is as warm in the cache as freshly decompressed content is). Nothing else: no
 * state, no accounting, no second thread, so it is the floor for any handler that sleeps while
 * there is nothing to do. All holes are made again before each round.
 */

#define HUGE (2u << 20)

struct bare {
	struct native_ram ram;
	uint32_t units, unit_bytes;
	int uffd;
	pid_t handler;
};

static void serve(int uffd, const void *from, uint32_t unit_bytes)
{
	int epoll_fd = epoll_create1(EPOLL_CLOEXEC);
	struct epoll_event ev = {.events = EPOLLIN};
	struct uffd_msg msg;

	if (epoll_fd < 0 || epoll_ctl(epoll_fd, EPOLL_CTL_ADD, uffd, &ev))
		_exit(1);
	for (;;) {
		if (epoll_wait(epoll_fd, &ev, 1, -1) < 0 && errno != EINTR)
			_exit(1);
		if (uffd_read(uffd, &msg, 1) != 1)
			continue;
		if (uffd_copy(uffd, msg.arg.pagefault.address & ~(uint64_t)(unit_bytes - 1), from,
			      unit_bytes, 0) < 0)
			_exit(1);
	}
}

static int start(struct bare *b)
{
	uint64_t bytes = (uint64_t)b->units * b->unit_bytes;
	void *from = mmap(NULL, b->unit_bytes, PROT_READ | PROT_WRITE,
			  MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
	int r;

	if (from == MAP_FAILED)
		return -errno;
	memset(from, 0x5a, b->unit_bytes);
	b->uffd = uffd_new();
	r = b->uffd < 0 ? b->uffd : uffd_api(b->uffd, 0, NULL);
	if (!r)
		r = uffd_register(b->uffd, (uintptr_t)b->ram.addr, bytes,
				  UFFDIO_REGISTER_MODE_MISSING);
	if (!r) {
		b->handler = fork();
		if (b->handler == 0) {
			prctl(PR_SET_PDEATHSIG, SIGKILL);
			/* Copied on the fork's account here, not in the first fault. */
			memset(from, 0x5a, b->unit_bytes);
			serve(b->uffd, from, b->unit_bytes);
		}
		if (b->handler < 0)
			r = -errno;
	}
	munmap(from, b->unit_bytes);
	return r;
}

int bare_new(enum native_kind kind, uint32_t units, struct bare **out)
{
	struct bare *b = calloc(1, sizeof(*b));
	int r;

	if (!b)
		return -ENOMEM;
	b->units = units;
	b->unit_bytes = kind == NATIVE_SHMEM ? GUEST_PAGE : HUGE;
	b->uffd = -1;
	r = native_ram_make(&b->ram, "bare", (size_t)units * b->unit_bytes, kind);
	if (r) {
		free(b);
		return r;
	}
	r = start(b);
	if (r) {
		bare_free(b);
		return r;
	}
	*out = b;
	return 0;
}

void bare_free(struct bare *b)
{
	if (!b)
		return;
	if (b->handler > 0) {
		kill(b->handler, SIGKILL);
		waitpid(b->handler, NULL, 0);
	}
	if (b->uffd >= 0)
		close(b->uffd);
	native_ram_free(&b->ram);
	free(b);
}

pid_t bare_handler(const struct bare *b)
{
	return b->handler;
}

int bare_round(struct bare *b, uint32_t n, uint32_t *ns)
{
	const uint8_t *at = b->ram.addr;
	int wrong = 0;

	if (fallocate(b->ram.memfd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0,
		      (off_t)b->units * b->unit_bytes))
		return -errno;
	for (uint32_t i = 0; i < n; i++) {
		uint64_t unit = i * UINT64_C(2654435761) % b->units;
		uint64_t begin = clock_ns();

		wrong += *(volatile const uint8_t *)(at + unit * b->unit_bytes) != 0x5a;
		begin = clock_ns() - begin;
		ns[i] = begin < UINT32_MAX ? (uint32_t)begin : UINT32_MAX;
	}
	return wrong;
}

/* ---- lz4 ---- */

static int unpack_all(char *const *packed, const int *len, uint32_t n, uint32_t unit_bytes,
		      uint32_t *ns)
{
	char *out = malloc(unit_bytes);
	int r = out ? 0 : -ENOMEM;

	for (uint32_t i = 0; i < n && !r; i++) {
		uint32_t k = (uint32_t)(i * UINT64_C(2654435761) % n);
		uint64_t begin = clock_ns();

		if (LZ4_decompress_safe(packed[k], out, len[k], (int)unit_bytes) != (int)unit_bytes)
			r = -EIO;
		ns[i] = (uint32_t)(clock_ns() - begin);
	}
	free(out);
	return r;
}

int bare_lz4(const struct guest_content *c, uint32_t n, uint32_t unit_bytes, uint32_t *ns)
{
	char *plain = malloc(unit_bytes),
	     *room = malloc((size_t)LZ4_compressBound((int)unit_bytes));
	char **packed = calloc(n, sizeof(*packed));
	int *len = calloc(n, sizeof(*len)), r = -ENOMEM;
	uint32_t pages = unit_bytes / GUEST_PAGE;

	if (!plain || !room || !packed || !len)
		goto out;
	for (uint32_t i = 0; i < n; i++) {
		for (uint32_t k = 0; k < pages; k++)
			guest_page(c, (uint64_t)i * pages + k, plain + (size_t)k * GUEST_PAGE);
		len[i] = LZ4_compress_default(plain, room, (int)unit_bytes,
					      LZ4_compressBound((int)unit_bytes));
		packed[i] = malloc((size_t)len[i]);
		if (!packed[i])
			goto out;
		memcpy(packed[i], room, (size_t)len[i]);
	}
	r = unpack_all(packed, len, n, unit_bytes, ns);
out:
	for (uint32_t i = 0; packed && i < n; i++)
		free(packed[i]);
	free(packed);
	free(len);
	free(room);
	free(plain);
	return r;
}
