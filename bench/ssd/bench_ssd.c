/* SPDX-License-Identifier: BSD-3-Clause */
/* bench_ssd.c: what the SSD backend costs beside bare io_uring on the same file. */
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <liburing.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/clock.h"
#include "plugin/backend_host.h"

/*
 * Usage: bench_ssd PATH [MIB [ROUNDS [READS [OPTION=VALUE]]]]
 *
 * PATH is a file (made) or block device for the backend. Half of MIB is filled with 4 KiB objects,
 * half with objects of 2 MiB. Both sides use the same file, direct I/O and registered buffers and
 * file, and follow each other in every round, in changing order; a ratio is that of one round, and
 * what is printed is the median of the rounds and their range.
 *
 *   read    one 4 KiB read at a time, at random: the time until it is there (median of the round).
 *           Bare: submit and wait in one call. Ours: submit, poll() on the descriptor, take it:
 *           what a thread with other descriptors to watch has to do
 *   large   2 MiB, DEPTH at a time, one behind the other: the rate of reads, and of writes
 */
#define PAGE	   4096u
#define LARGE	   (2u << 20)
#define DEPTH	   4u
#define ROUNDS_MAX 200

enum figure { BARE_READ, OUR_READ, BARE_LOAD, OUR_LOAD, BARE_STORE, OUR_STORE, FIGURES };

struct bench {
	const char *path;
	uint32_t pages, larges, rounds, reads;
	int map_fd;
	struct backend *b;
	struct backend_space *s;
	struct backend_channel *c;
	uint64_t *page_handle, *large_handle;
	char *buffers; /* DEPTH of 2 MiB */
	struct io_uring ring;
	int fd;
	uint64_t seed;
	double figure[FIGURES][ROUNDS_MAX], ratio[3][ROUNDS_MAX];
};

static int mem_open(void *ctx, void *space_ctx, const char *name, uint64_t max_bytes, void **addr,
		    int *found)
{
	struct bench *be = ctx;

	be->map_fd = memfd_create(name, MFD_CLOEXEC);
	if (be->map_fd < 0 || ftruncate(be->map_fd, (off_t)max_bytes))
		return -errno;
	*addr = mmap(NULL, max_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, be->map_fd, 0);
	*found = 0;
	return *addr == MAP_FAILED ? -errno : 0;
}

static int mem_trim(void *ctx, void *space_ctx, const char *name, uint64_t offset, uint64_t bytes)
{
	return 0;
}

static uint64_t draw(struct bench *be)
{
	be->seed ^= be->seed << 13;
	be->seed ^= be->seed >> 7;
	be->seed ^= be->seed << 17;
	return be->seed;
}

/* Content that tells which object it is. */
static void fill(char *buf, uint32_t len, uint64_t object)
{
	for (uint32_t i = 0; i < len; i += 8) {
		uint64_t word = (object * 1000003 + i) * UINT64_C(0x9e3779b97f4a7c15);

		memcpy(buf + i, &word, 8);
	}
}

static void check(const char *buf, uint64_t object)
{
	uint64_t word = object * 1000003 * UINT64_C(0x9e3779b97f4a7c15);

	if (memcmp(buf, &word, 8) != 0)
		errx(1, "object %llu came back wrong", (unsigned long long)object);
}

/* ---- our side ---- */

static void submit(struct bench *be, struct ebb_io **list, uint32_t n)
{
	for (uint32_t sent = 0; sent < n;) {
		int got = backend_submit(be->c, list + sent, n - sent);

		sent += (uint32_t)got;
		if (!got)
			usleep(100);
	}
}

static struct ebb_io *take(struct bench *be)
{
	struct pollfd p = {.fd = backend_event_fd(be->c), .events = POLLIN};
	struct ebb_io *io;

	while (backend_poll(be->c, &io, 1) != 1)
		poll(&p, 1, -1);
	if (io->result)
		errx(1, "I/O failed: %s", strerror(-io->result));
	return io;
}

/* n objects of one length, DEPTH at a time. Seconds. */
static double our_stream(struct bench *be, uint32_t op, uint64_t *handles, uint32_t n, uint32_t len,
			 bool fresh)
{
	struct ebb_io ios[DEPTH], *list[DEPTH];
	uint64_t start = clock_ns();

	/* In groups, as the bare side does it, so that a buffer is free when its turn comes. */
	for (uint32_t first = 0; first < n; first += DEPTH) {
		uint32_t some = n - first < DEPTH ? n - first : DEPTH;

		for (uint32_t k = 0; k < some; k++) {
			char *buf = be->buffers + (uint64_t)k * LARGE;

			if (fresh)
				fill(buf, len, first + k);
			backend_io_prepare(&ios[k], op, EBB_IO_BACKGROUND, be->s,
					   op == EBB_IO_LOAD ? handles[first + k] : 0, buf, len, 0);
			list[k] = &ios[k];
		}
		submit(be, list, some);
		for (uint32_t k = 0; k < some; k++)
			take(be);
		for (uint32_t k = 0; k < some && op == EBB_IO_STORE; k++)
			handles[first + k] = ios[k].handle;
	}
	return (double)(clock_ns() - start) / 1e9;
}

static int by_value(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return x < y ? -1 : x > y;
}

static double median(const double *list, uint32_t n)
{
	double *copy = malloc(n * sizeof(*copy)), m;

	if (!copy)
		err(1, "malloc");
	memcpy(copy, list, n * sizeof(*copy));
	qsort(copy, n, sizeof(*copy), by_value);
	m = copy[n / 2];
	free(copy);
	return m;
}

/* Microseconds, median. */
static double our_reads(struct bench *be)
{
	double *us = calloc(be->reads, sizeof(*us)), m;

	for (uint32_t i = 0; us && i < be->reads; i++) {
		uint64_t object = draw(be) % be->pages, start = clock_ns();
		struct ebb_io io, *list = &io;

		backend_io_prepare(&io, EBB_IO_LOAD, EBB_IO_DEMAND, be->s, be->page_handle[object],
				   be->buffers, PAGE, 0);
		submit(be, &list, 1);
		take(be);
		us[i] = (double)(clock_ns() - start) / 1000;
		check(be->buffers, object);
	}
	m = median(us, be->reads);
	free(us);
	return m;
}

/* ---- bare ---- */

static void queue(struct bench *be, bool write, unsigned int buffer, uint32_t len, uint64_t at)
{
	struct io_uring_sqe *sqe = io_uring_get_sqe(&be->ring);
	char *buf = be->buffers + (uint64_t)buffer * LARGE;

	if (write)
		io_uring_prep_write_fixed(sqe, 0, buf, len, at, 0);
	else
		io_uring_prep_read_fixed(sqe, 0, buf, len, at, 0);
	io_uring_sqe_set_flags(sqe, IOSQE_FIXED_FILE);
}

static void reap(struct bench *be, uint32_t len)
{
	struct io_uring_cqe *cqe;

	if (io_uring_wait_cqe(&be->ring, &cqe))
		err(1, "io_uring_wait_cqe");
	if (cqe->res != (int)len)
		errx(1, "bare I/O: %d", cqe->res);
	io_uring_cqe_seen(&be->ring, cqe);
}

static double bare_reads(struct bench *be)
{
	double *us = calloc(be->reads, sizeof(*us)), m;

	for (uint32_t i = 0; us && i < be->reads; i++) {
		uint64_t at = LARGE + draw(be) % be->pages * PAGE, start = clock_ns();

		queue(be, false, 0, PAGE, at);
		io_uring_submit_and_wait(&be->ring, 1);
		reap(be, PAGE);
		us[i] = (double)(clock_ns() - start) / 1000;
	}
	m = median(us, be->reads);
	free(us);
	return m;
}

/* Over the part of the file that holds the large objects, or (writes) a file beside it. */
static double bare_stream(struct bench *be, bool write, uint32_t n, uint64_t from)
{
	uint64_t start = clock_ns();

	for (uint32_t i = 0; i < n; i += DEPTH) {
		uint32_t some = n - i < DEPTH ? n - i : DEPTH;

		for (uint32_t k = 0; k < some; k++)
			queue(be, write, k, LARGE, from + (uint64_t)(i + k) * LARGE);
		io_uring_submit(&be->ring);
		for (uint32_t k = 0; k < some; k++)
			reap(be, LARGE);
	}
	return (double)(clock_ns() - start) / 1e9;
}

static void use_file(struct bench *be, const char *path, int flags)
{
	if (be->fd >= 0) {
		io_uring_unregister_files(&be->ring);
		close(be->fd);
	}
	be->fd = open(path, flags | O_DIRECT | O_CLOEXEC, 0600);
	if (be->fd < 0)
		err(1, "%s", path);
	if (io_uring_register_files(&be->ring, &be->fd, 1))
		errx(1, "io_uring_register_files");
}

/* ---- rounds ---- */

static void small_round(struct bench *be, uint32_t r)
{
	for (int side = 0; side < 2; side++) {
		if ((side + r) % 2)
			be->figure[OUR_READ][r] = our_reads(be);
		else
			be->figure[BARE_READ][r] = bare_reads(be);
	}
	be->ratio[0][r] = be->figure[OUR_READ][r] / be->figure[BARE_READ][r];
}

static void large_round(struct bench *be, uint32_t r)
{
	double mib = be->larges * 2.0;
	uint64_t end = LARGE + (uint64_t)be->pages * PAGE;

	for (int side = 0; side < 2; side++) {
		if ((side + r) % 2)
			be->figure[OUR_LOAD][r] =
				mib / our_stream(be, EBB_IO_LOAD, be->large_handle, be->larges,
						 LARGE, false);
		else
			be->figure[BARE_LOAD][r] =
				mib / bare_stream(be, false, be->larges,
						  (end + LARGE - 1) / LARGE * LARGE);
	}
	be->ratio[1][r] = be->figure[OUR_LOAD][r] / be->figure[BARE_LOAD][r];
	/* Stores take new segments; both sides write where something was before. */
	for (int side = 0; side < 2; side++) {
		if ((side + r) % 2) {
			backend_free(be->c, be->s, be->large_handle, be->larges);
			be->figure[OUR_STORE][r] =
				mib / our_stream(be, EBB_IO_STORE, be->large_handle, be->larges,
						 LARGE, false);
		} else {
			char name[600];

			snprintf(name, sizeof(name), "%s.bare", be->path);
			use_file(be, name, O_RDWR);
			be->figure[BARE_STORE][r] = mib / bare_stream(be, true, be->larges, 0);
			use_file(be, be->path, O_RDONLY);
		}
	}
	be->ratio[2][r] = be->figure[OUR_STORE][r] / be->figure[BARE_STORE][r];
}

static void print(struct bench *be, const char *what, const char *unit, int bare, int ours,
		  int ratio)
{
	uint32_t n = be->rounds;
	double *list = be->ratio[ratio];
	double mid = median(list, n);

	qsort(list, n, sizeof(*list), by_value);
	printf("%-16s bare %9.1f %s   ours %9.1f %s   ratio %.2f (%.2f to %.2f)\n", what,
	       median(be->figure[bare], n), unit, median(be->figure[ours], n), unit, mid, list[0],
	       list[n - 1]);
}

static void open_all(struct bench *be, const char *option)
{
	const char *build = getenv("EBB_BUILD");
	struct plugin_path path = {{build ? build : "build"}, 1};
	static struct backend_env env;
	char size[32], name[64] = "", *value;
	struct ebb_option opts[3] = {{"path", be->path}, {"size", size}};
	struct ebb_space_params p = {
		.vm_name = "bench", .ram_bytes = UINT64_C(8) << 30, .unit_bytes = PAGE};
	struct iovec v = {be->buffers, DEPTH * (size_t)LARGE};
	struct error e;

	env = (struct backend_env){be, mem_open, mem_trim};
	snprintf(size, sizeof(size), "%llu",
		 (unsigned long long)((uint64_t)be->pages * PAGE +
				      (2 * (uint64_t)be->larges + 32) * LARGE));
	if (option) {
		snprintf(name, sizeof(name), "%s", option);
		value = strchr(name, '=');
		if (!value)
			errx(2, "an option is name=value");
		*value++ = 0;
		opts[2] = (struct ebb_option){name, value};
	}
	if (backend_open(&path, &env, "bench", "ssd", opts, option ? 3 : 2, &be->b, &e))
		errx(1, "%s", e.desc);
	if (backend_space_open(be->b, &p, &be->s) ||
	    backend_channel_open(be->b, be->buffers, DEPTH * (uint64_t)LARGE, 64, &be->c))
		errx(1, "cannot open space and channel");
	if (io_uring_queue_init(64, &be->ring, 0) || io_uring_register_buffers(&be->ring, &v, 1))
		errx(1, "io_uring");
	be->fd = -1;
	use_file(be, be->path, O_RDONLY);
}

/* The bare side's own file, written once, as the backend's segments are. */
static void make_bare_file(struct bench *be)
{
	char name[600];

	snprintf(name, sizeof(name), "%s.bare", be->path);
	use_file(be, name, O_RDWR | O_CREAT | O_TRUNC);
	bare_stream(be, true, be->larges, 0);
	use_file(be, be->path, O_RDONLY);
}

int main(int argc, char **argv)
{
	static struct bench be = {.rounds = 15, .reads = 1000, .seed = 88172645463325252u};
	uint64_t mib = 512;
	char name[600];

	if (argc < 2)
		errx(2, "usage: bench_ssd PATH [MIB [ROUNDS [READS [OPTION=VALUE]]]]");
	be.path = argv[1];
	if (argc > 2)
		mib = strtoul(argv[2], NULL, 10);
	if (argc > 3)
		be.rounds = (uint32_t)strtoul(argv[3], NULL, 10);
	if (argc > 4)
		be.reads = (uint32_t)strtoul(argv[4], NULL, 10);
	if (mib < 16 || !be.rounds || be.rounds > ROUNDS_MAX || !be.reads)
		errx(2, "at least 16 MiB, 1 to %d rounds, 1 read", ROUNDS_MAX);
	be.pages = (uint32_t)(mib * 128);
	be.larges = (uint32_t)(mib / 4);
	be.buffers = mmap(NULL, DEPTH * (size_t)LARGE, PROT_READ | PROT_WRITE,
			  MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
	be.page_handle = calloc(be.pages, sizeof(*be.page_handle));
	be.large_handle = calloc(be.larges, sizeof(*be.large_handle));
	if (be.buffers == MAP_FAILED || !be.page_handle || !be.large_handle)
		err(1, "memory");
	open_all(&be, argc > 5 ? argv[5] : NULL);
	our_stream(&be, EBB_IO_STORE, be.page_handle, be.pages, PAGE, true);
	our_stream(&be, EBB_IO_STORE, be.large_handle, be.larges, LARGE, true);
	make_bare_file(&be);
	for (uint32_t r = 0; r < be.rounds; r++) {
		small_round(&be, r);
		large_round(&be, r);
	}
	print(&be, "read 4 KiB", "us", BARE_READ, OUR_READ, 0);
	print(&be, "read 2 MiB", "MiB/s", BARE_LOAD, OUR_LOAD, 1);
	print(&be, "write 2 MiB", "MiB/s", BARE_STORE, OUR_STORE, 2);
	backend_channel_close(be.c);
	backend_space_close(be.s);
	backend_close(be.b);
	io_uring_queue_exit(&be.ring);
	snprintf(name, sizeof(name), "%s.bare", be.path);
	unlink(name);
	return 0;
}
