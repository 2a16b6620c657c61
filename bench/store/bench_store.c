/* SPDX-License-Identifier: BSD-3-Clause */
/* bench_store.c: what the compressed store costs beside lz4 alone, per 4 KiB page. */
#include <errno.h>
#include <fcntl.h>
#include <lz4.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "plugin/backend_host.h"
#include "store_rig.h"

/*
 * Usage: bench_store [PAGES [ROUNDS [FILE]]]
 *
 * Each round times the same pages with lz4 alone (packed one behind the other into memory that is
 * already there, which is the best that any store could do) and through the backend host: store
 * all, load all in another order, free all. The two sides follow each other within a round, and
 * the ratio is taken per round; what is printed is the median of the rounds and their range. Time
 * is the thread's own. Then stores by one and by two threads on one space, in real time.
 *
 * Pages come from FILE, or are made up: words drawn from a few recent ones, small numbers and
 * noise, which lz4 packs to about 40 %, as it does the heaps of programs.
 */
#define PAGE	   4096u
#define ROUNDS_MAX 200

enum figure { LZ4_PACK, STORE, LZ4_UNPACK, LOAD, FREE, STORE_RATIO, LOAD_RATIO, FIGURES };

struct bench {
	uint32_t n, rounds;
	uint8_t *pages;
	char *packed, **at; /* lz4 alone: where each page went */
	struct store_rig rig;
	double figure[FIGURES][ROUNDS_MAX];
};

/* ---- surroundings ---- */

static int read_pages(struct bench *be, const char *path)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t got;

	if (fd < 0)
		return -errno;
	got = pread(fd, be->pages, (size_t)be->n * PAGE, 0);
	close(fd);
	if (got < (ssize_t)PAGE)
		return -ENODATA;
	/* A short file is repeated. */
	for (size_t at = (size_t)got / PAGE * PAGE; at < (size_t)be->n * PAGE; at += PAGE)
		memcpy(be->pages + at, be->pages + at % ((size_t)got / PAGE * PAGE), PAGE);
	return 0;
}

static void die(const char *what, int r)
{
	fprintf(stderr, "%s: %s\n", what, strerror(-r));
	exit(1);
}

/* ---- one round ---- */

/* Time of this thread alone: the others of a busy machine do not count. */
static uint64_t cpu_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
	return (uint64_t)t.tv_sec * NS_PER_S + (uint64_t)t.tv_nsec;
}

/* The odd step visits every page once, far from the one before. */
static uint32_t shuffled(uint32_t i, uint32_t n)
{
	return (uint32_t)((uint64_t)i * 2654435761u % n);
}

static void bare_lz4(struct bench *be, uint32_t round, void *state)
{
	static char out[PAGE];
	char *to = be->packed;
	uint64_t start = cpu_ns();

	for (uint32_t i = 0; i < be->n; i++) {
		be->at[i] = to;
		to += LZ4_compress_fast_extState(state, (char *)be->pages + (size_t)i * PAGE, to,
						 PAGE, LZ4_COMPRESSBOUND(PAGE), 1);
	}
	be->at[be->n] = to;
	be->figure[LZ4_PACK][round] = (double)(cpu_ns() - start) / be->n;
	start = cpu_ns();
	for (uint32_t i = 0; i < be->n; i++) {
		uint32_t j = shuffled(i, be->n);

		if (LZ4_decompress_safe(be->at[j], out, (int)(be->at[j + 1] - be->at[j]), PAGE) !=
		    (int)PAGE)
			die("lz4", -EIO);
	}
	be->figure[LZ4_UNPACK][round] = (double)(cpu_ns() - start) / be->n;
}

static void through_store(struct bench *be, uint32_t round, struct backend_channel *c,
			  uint64_t *handles)
{
	static uint8_t out[PAGE] __attribute__((aligned(PAGE)));
	uint64_t start = cpu_ns();

	for (uint32_t i = 0; i < be->n; i++)
		store_rig_io(c, be->rig.s, EBB_IO_STORE, &handles[i], be->pages + (size_t)i * PAGE);
	be->figure[STORE][round] = (double)(cpu_ns() - start) / be->n;
	start = cpu_ns();
	for (uint32_t i = 0; i < be->n; i++)
		store_rig_io(c, be->rig.s, EBB_IO_LOAD, &handles[shuffled(i, be->n)], out);
	be->figure[LOAD][round] = (double)(cpu_ns() - start) / be->n;
	start = cpu_ns();
	backend_free(c, be->rig.s, handles, be->n);
	be->figure[FREE][round] = (double)(cpu_ns() - start) / be->n;
}

/* ---- several threads ---- */

struct worker {
	struct bench *be;
	pthread_t thread;
	uint64_t ns;
};

static void *store_all(void *arg)
{
	struct worker *w = arg;
	struct bench *be = w->be;
	uint64_t *handles = calloc(be->n, sizeof(*handles)), start;
	struct backend_channel *c;

	if (!handles || backend_channel_open(be->rig.b, NULL, 0, 64, &c))
		die("channel", -ENOMEM);
	start = clock_ns();
	for (uint32_t i = 0; i < be->n; i++)
		store_rig_io(c, be->rig.s, EBB_IO_STORE, &handles[i], be->pages + (size_t)i * PAGE);
	w->ns = clock_ns() - start;
	backend_free(c, be->rig.s, handles, be->n);
	backend_channel_close(c);
	free(handles);
	return NULL;
}

static double stores_per_second(struct bench *be, unsigned int threads)
{
	struct worker w[8];
	uint64_t slowest = 0;

	for (unsigned int i = 0; i < threads; i++) {
		w[i].be = be;
		if (pthread_create(&w[i].thread, NULL, store_all, &w[i]))
			die("thread", -EAGAIN);
	}
	for (unsigned int i = 0; i < threads; i++) {
		pthread_join(w[i].thread, NULL);
		slowest = w[i].ns > slowest ? w[i].ns : slowest;
	}
	return (double)be->n * threads * 1e9 / (double)slowest;
}

/* ---- the table ---- */

static int by_value(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

static void print(struct bench *be, const char *what, enum figure f)
{
	qsort(be->figure[f], be->rounds, sizeof(double), by_value);
	printf("%-28s %9.2f   (%.2f to %.2f)\n", what, be->figure[f][be->rounds / 2],
	       be->figure[f][0], be->figure[f][be->rounds - 1]);
}

int main(int argc, char **argv)
{
	static struct bench be = {.n = 8192, .rounds = 15};
	struct backend_channel *c;
	uint64_t *handles;
	void *state = malloc((size_t)LZ4_sizeofState());

	if (argc > 1)
		be.n = (uint32_t)strtoul(argv[1], NULL, 10);
	if (argc > 2)
		be.rounds = (uint32_t)strtoul(argv[2], NULL, 10);
	if (be.n < 2 || !be.rounds || be.rounds > ROUNDS_MAX)
		die("pages or rounds", -ERANGE);
	be.pages = aligned_alloc(PAGE, (size_t)be.n * PAGE);
	be.packed = malloc((size_t)be.n * LZ4_COMPRESSBOUND(PAGE));
	be.at = calloc((size_t)be.n + 1, sizeof(*be.at));
	handles = calloc(be.n, sizeof(*handles));
	if (!be.pages || !be.packed || !be.at || !handles || !state)
		die("pages", -ENOMEM);
	if (argc > 3) {
		int r = read_pages(&be, argv[3]);

		if (r)
			die(argv[3], r);
	} else {
		store_rig_pages(be.pages, be.n);
	}
	store_rig_open(&be.rig);
	if (backend_channel_open(be.rig.b, NULL, 0, 64, &c))
		die("channel", -ENOMEM);

	bare_lz4(&be, 0, state); /* warm both up */
	through_store(&be, 0, c, handles);
	for (uint32_t i = 0; i < be.rounds; i++) {
		bare_lz4(&be, i, state);
		through_store(&be, i, c, handles);
		be.figure[STORE_RATIO][i] = be.figure[STORE][i] / be.figure[LZ4_PACK][i];
		be.figure[LOAD_RATIO][i] = be.figure[LOAD][i] / be.figure[LZ4_UNPACK][i];
	}
	printf("%u pages, %u rounds; ns a page: median (range of rounds)\n", be.n, be.rounds);
	print(&be, "lz4 compress alone", LZ4_PACK);
	print(&be, "store", STORE);
	print(&be, "  ratio", STORE_RATIO);
	print(&be, "lz4 decompress alone", LZ4_UNPACK);
	print(&be, "load", LOAD);
	print(&be, "  ratio", LOAD_RATIO);
	print(&be, "free", FREE);
	for (uint32_t i = 0; i < be.rounds; i++) {
		be.figure[STORE][i] = stores_per_second(&be, 1) / 1000;
		be.figure[LOAD][i] = stores_per_second(&be, 2) / 1000;
		be.figure[STORE_RATIO][i] = be.figure[LOAD][i] / be.figure[STORE][i];
	}
	printf("thousand stores a second on one space\n");
	print(&be, "one thread", STORE);
	print(&be, "two threads", LOAD);
	print(&be, "  ratio", STORE_RATIO);
	backend_channel_close(c);
	store_rig_close(&be.rig);
	free(handles);
	free(be.pages);
	free(be.packed);
	free(be.at);
	free(state);
	return 0;
}
