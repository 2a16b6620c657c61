/* SPDX-License-Identifier: BSD-3-Clause */
/* guest-mem.c: fills a file or block device with a known pattern, and checks it (in the guest). */

/*
 *	guest-mem fill FILE MIB SEED [ONE_IN]	writes the pattern (every ONE_IN-th page of it)
 *	guest-mem check FILE MIB SEED		counts the bytes that are not as fill left them
 *	guest-mem loop FILE MIB SEED SECONDS	rewrites random pages and checks others meanwhile
 *
 * The pattern of a page follows from the seed and the page's number alone: half of it is
 * pseudo-random and half repeats, so that it compresses about two to one. The same program runs
 * on the host, to make a disk image or to check what the guest wrote.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define PAGE  4096
#define WORDS (PAGE / sizeof(uint64_t))

static uint64_t mix(uint64_t x)
{
	x ^= x >> 30;
	x *= 0xbf58476d1ce4e5b9ull;
	x ^= x >> 27;
	x *= 0x94d049bb133111ebull;
	return x ^ x >> 31;
}

static void page_fill(uint64_t *w, uint64_t seed, uint64_t number)
{
	uint64_t x = mix(seed * 0x9e3779b97f4a7c15ull + number + 1);

	for (size_t i = 0; i < WORDS / 2; i++) {
		x = x * 6364136223846793005ull + 1442695040888963407ull;
		w[i] = x;
	}
	for (size_t i = WORDS / 2; i < WORDS; i++)
		w[i] = number;
}

static uint64_t page_wrong_bytes(const uint8_t *page, uint64_t seed, uint64_t number)
{
	uint64_t want[WORDS], wrong = 0;

	page_fill(want, seed, number);
	if (!memcmp(want, page, PAGE))
		return 0;
	for (size_t i = 0; i < PAGE; i++)
		wrong += ((uint8_t *)want)[i] != page[i];
	printf("page %llu: %llu wrong bytes\n", (unsigned long long)number,
	       (unsigned long long)wrong);
	return wrong;
}

static uint64_t check(const uint8_t *map, uint64_t pages, uint64_t seed)
{
	uint64_t wrong = 0;

	for (uint64_t n = 0; n < pages; n++)
		wrong += page_wrong_bytes(map + n * PAGE, seed, n);
	return wrong;
}

static uint64_t loop(uint8_t *map, uint64_t pages, uint64_t seed, unsigned int seconds)
{
	struct timespec start, now;
	uint64_t wrong = 0, rounds = 0, x = seed + 1;

	clock_gettime(CLOCK_MONOTONIC, &start);
	do {
		for (int i = 0; i < 256; i++) {
			uint64_t n = (x = mix(x + 0x9e3779b97f4a7c15ull)) % pages;

			wrong += page_wrong_bytes(map + n * PAGE, seed, n);
			n = mix(x) % pages;
			page_fill((uint64_t *)(map + n * PAGE), seed, n);
		}
		rounds++;
		clock_gettime(CLOCK_MONOTONIC, &now);
	} while (now.tv_sec - start.tv_sec < (time_t)seconds);
	printf("%llu pages checked and as many rewritten\n", (unsigned long long)rounds * 256);
	return wrong;
}

static uint8_t *map_file(const char *path, uint64_t bytes, int writing)
{
	struct stat st;
	uint8_t *map;
	int fd = open(path, writing ? O_RDWR | O_CREAT : O_RDONLY, 0600);

	if (fd < 0 || fstat(fd, &st) ||
	    (writing && S_ISREG(st.st_mode) && (uint64_t)st.st_size < bytes &&
	     ftruncate(fd, (off_t)bytes))) {
		fprintf(stderr, "guest-mem: %s: %s\n", path, strerror(errno));
		exit(2);
	}
	map = mmap(NULL, bytes, writing ? PROT_READ | PROT_WRITE : PROT_READ, MAP_SHARED, fd, 0);
	close(fd);
	if (map == MAP_FAILED) {
		fprintf(stderr, "guest-mem: mmap of %s: %s\n", path, strerror(errno));
		exit(2);
	}
	return map;
}

int main(int argc, char **argv)
{
	uint64_t pages, seed, wrong = 0;
	const char *what;
	uint8_t *map;

	if (argc < 5) {
		fprintf(stderr,
			"usage: guest-mem fill|check|loop FILE MIB SEED [SECONDS|ONE_IN]\n");
		return 2;
	}
	what = argv[1];
	pages = strtoull(argv[3], NULL, 0) << 8;
	seed = strtoull(argv[4], NULL, 0);
	map = map_file(argv[2], pages * PAGE, strcmp(what, "check"));
	if (!strcmp(what, "fill")) {
		uint64_t step = argc > 5 ? strtoull(argv[5], NULL, 0) : 1;

		for (uint64_t n = 0; n < pages; n += step ? step : 1)
			page_fill((uint64_t *)(map + n * PAGE), seed, n);
		if (msync(map, pages * PAGE, MS_SYNC)) {
			fprintf(stderr, "guest-mem: msync: %s\n", strerror(errno));
			return 2;
		}
	} else if (!strcmp(what, "check")) {
		wrong = check(map, pages, seed);
	} else {
		wrong = loop(map, pages, seed, argc > 5 ? (unsigned int)atoi(argv[5]) : 5);
	}
	printf("%s: %llu MiB, wrong bytes: %llu\n", what, (unsigned long long)pages >> 8,
	       (unsigned long long)wrong);
	return wrong ? 1 : 0;
}
