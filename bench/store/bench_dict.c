/* SPDX-License-Identifier: BSD-3-Clause */
/* bench_dict.c: what a zstd dictionary, trained from a VM's own pages, would save. */
#include <err.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <zdict.h>
#include <zstd.h>

#include "base/clock.h"

/*
 * Usage: bench_dict NAME=FILE|NAME=pid:PID...
 *
 * The pages of a file, or of the writable private memory of a process; those of zeroes only are
 * left out, as no store ever sees them. Every second one trains a dictionary, the others are
 * compressed one by one, as the store does it: a page that does not become smaller by 1/32 is kept
 * as it is. For each kind: bytes a page and time to pack and unpack one, with and without the
 * dictionary.
 */
#define PAGE	  4096u
#define PAGES_MAX 16384u
#define LEVEL	  1
#define ROUNDS	  5

struct pages {
	uint8_t (*page)[PAGE];
	uint32_t n;
};

static const size_t dict_sizes[] = {0, 16 << 10, 64 << 10, 110 << 10};

static void add(struct pages *p, const uint8_t *page)
{
	if (p->n < PAGES_MAX && (page[0] || memcmp(page, page + 1, PAGE - 1) != 0))
		memcpy(p->page[p->n++], page, PAGE);
}

static void add_range(struct pages *p, int fd, uint64_t from, uint64_t to)
{
	uint8_t page[PAGE];

	for (; from < to && pread(fd, page, PAGE, (off_t)from) == PAGE; from += PAGE)
		add(p, page);
}

static void add_process(struct pages *p, const char *pid)
{
	char path[64], line[512], mode[8];
	unsigned long from, to, inode;
	FILE *maps;
	int fd;

	snprintf(path, sizeof(path), "/proc/%.20s/mem", pid);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	snprintf(path, sizeof(path), "/proc/%.20s/maps", pid);
	maps = fopen(path, "re");
	if (fd < 0 || !maps)
		err(1, "process %s", pid);
	while (fgets(line, sizeof(line), maps))
		if (sscanf(line, "%lx-%lx %7s %*s %*s %lu", &from, &to, mode, &inode) == 4 &&
		    mode[1] == 'w' && mode[3] == 'p')
			add_range(p, fd, from, to);
	fclose(maps);
	close(fd);
}

static void add_file(struct pages *p, const char *path)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);

	if (fd < 0)
		err(1, "%s", path);
	add_range(p, fd, 0, UINT64_MAX);
	close(fd);
}

/* Packs and unpacks the pages that trained nothing; bytes and ns of a page. */
static void measure(const struct pages *p, const ZSTD_CDict *cd, const ZSTD_DDict *dd,
		    double *bytes, double *pack_ns, double *unpack_ns)
{
	ZSTD_CCtx *c = ZSTD_createCCtx();
	ZSTD_DCtx *d = ZSTD_createDCtx();
	static uint8_t packed[2 * PAGE], page[PAGE];
	uint64_t total = 0, packing = 0, unpacking = 0, n = 0;

	for (uint32_t i = 1; i < p->n; i += 2, n++) {
		uint64_t begin = clock_ns(), end;
		size_t size, back;

		size = cd ? ZSTD_compress_usingCDict(c, packed, sizeof(packed), p->page[i], PAGE,
						     cd)
			  : ZSTD_compressCCtx(c, packed, sizeof(packed), p->page[i], PAGE, LEVEL);
		end = clock_ns();
		packing += end - begin;
		if (ZSTD_isError(size))
			errx(1, "zstd: %s", ZSTD_getErrorName(size));
		back = dd ? ZSTD_decompress_usingDDict(d, page, PAGE, packed, size, dd)
			  : ZSTD_decompressDCtx(d, page, PAGE, packed, size);
		unpacking += clock_ns() - end;
		if (back != PAGE || memcmp(page, p->page[i], PAGE) != 0)
			errx(1, "another page came back");
		total += size > PAGE - PAGE / 32 ? PAGE : size;
	}
	*bytes = (double)total / (double)n;
	*pack_ns = (double)packing / (double)n;
	*unpack_ns = (double)unpacking / (double)n;
	ZSTD_freeCCtx(c);
	ZSTD_freeDCtx(d);
}

static void *train(const struct pages *p, size_t room, size_t *size)
{
	uint32_t n = (p->n + 1) / 2;
	size_t *sizes = calloc(n, sizeof(*sizes));
	uint8_t *samples = malloc((size_t)n * PAGE), *dict = malloc(room);

	if (!sizes || !samples || !dict)
		err(1, "malloc");
	for (uint32_t i = 0; i < n; i++) {
		memcpy(samples + (size_t)i * PAGE, p->page[2 * i], PAGE);
		sizes[i] = PAGE;
	}
	*size = ZDICT_trainFromBuffer(dict, room, samples, sizes, n);
	free(samples);
	free(sizes);
	if (ZDICT_isError(*size))
		errx(1, "training: %s", ZDICT_getErrorName(*size));
	return dict;
}

static void run(const char *name, const struct pages *p)
{
	double without = 0;

	for (size_t i = 0; i < sizeof(dict_sizes) / sizeof(dict_sizes[0]); i++) {
		ZSTD_CDict *cd = NULL;
		ZSTD_DDict *dd = NULL;
		double bytes = 0, pack = 1e18, unpack = 1e18;
		uint64_t begin = clock_ns(), trained_ms;
		void *dict = NULL;
		size_t size = 0;

		if (dict_sizes[i]) {
			dict = train(p, dict_sizes[i], &size);
			cd = ZSTD_createCDict(dict, size, LEVEL);
			dd = ZSTD_createDDict(dict, size);
		}
		trained_ms = (clock_ns() - begin) / 1000000;
		for (int r = 0; r < ROUNDS; r++) {
			double pack_ns, unpack_ns;

			measure(p, cd, dd, &bytes, &pack_ns, &unpack_ns);
			pack = pack_ns < pack ? pack_ns : pack;
			unpack = unpack_ns < unpack ? unpack_ns : unpack;
		}
		if (!i)
			without = bytes;
		printf("%-10s %6u pages  dictionary %3zu KiB (trained in %5llu ms)  %6.0f bytes "
		       "(%+5.1f %%)  pack %5.1f us  unpack %4.1f us\n",
		       name, p->n, dict_sizes[i] >> 10, (unsigned long long)trained_ms, bytes,
		       (bytes / without - 1) * 100, pack / 1000, unpack / 1000);
		ZSTD_freeCDict(cd);
		ZSTD_freeDDict(dd);
		free(dict);
	}
}

int main(int argc, char **argv)
{
	struct pages p = {0};

	if (argc < 2)
		errx(2, "usage: bench_dict NAME=FILE|NAME=pid:PID...");
	p.page = malloc((size_t)PAGES_MAX * PAGE);
	if (!p.page)
		err(1, "malloc");
	for (int i = 1; i < argc; i++) {
		char *what = strchr(argv[i], '=');

		if (!what)
			errx(2, "%s is not NAME=FILE or NAME=pid:PID", argv[i]);
		*what++ = '\0';
		p.n = 0;
		if (strncmp(what, "pid:", 4) == 0)
			add_process(&p, what + 4);
		else
			add_file(&p, what);
		if (p.n < 100)
			errx(1, "%s has %u pages that are not zeroes: too few", argv[i], p.n);
		run(argv[i], &p);
	}
	free(p.page);
	return 0;
}
