/* SPDX-License-Identifier: BSD-3-Clause */
/* guest.c: the VM of the benchmark: a process of its own, with the attach library in it. */
#include "guest.h"

#include <err.h>
#include <fcntl.h>
#include <signal.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"

#define PAGE 4096u

static uint64_t mix(uint64_t x)
{
	x ^= x >> 30;
	x *= UINT64_C(0xbf58476d1ce4e5b9);
	x ^= x >> 27;
	x *= UINT64_C(0x94d049bb133111eb);
	return x ^ x >> 31;
}

/* Word i of a page: its number first, then random ones, then always the same. */
static uint64_t word(uint64_t page, size_t i, size_t random_words)
{
	return i ? i < random_words ? mix(page << 9 | i) : UINT64_C(0x6562626562626562) : page + 1;
}

static bool is_right(const uint64_t *ram, uint64_t page, size_t random_words)
{
	const uint64_t *p = ram + page * (PAGE / 8);

	for (size_t i = 0; i < PAGE / 8; i++)
		if (p[i] != word(page, i, random_words))
			return false;
	return true;
}

int guest_main(char **args)
{
	uint64_t bytes = strtoull(args[0], NULL, 10), pages = bytes / PAGE, page, wrong = 0;
	size_t random_words = PAGE / 8 / strtoul(args[1], NULL, 10);
	int fd = memfd_create("guest-ram", MFD_CLOEXEC);
	uint64_t *ram;
	char line[64];

	if (fd < 0 || ftruncate(fd, (off_t)bytes))
		err(1, "memfd");
	ram = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (ram == MAP_FAILED)
		err(1, "mmap");
	for (page = 0; page < pages; page++)
		for (size_t i = 0; i < PAGE / 8; i++)
			ram[page * (PAGE / 8) + i] = word(page, i, random_words);
	puts("filled");
	fflush(stdout);
	while (fgets(line, sizeof(line), stdin)) {
		if (sscanf(line, "touch %lu", &page) == 1) {
			uint64_t first = *(volatile uint64_t *)(ram + page * (PAGE / 8));
			uint64_t now = clock_ns();

			printf("%llu\n", first && is_right(ram, page, random_words)
						 ? (unsigned long long)now
						 : 0ull);
		} else {
			for (page = 0; page < pages; page++)
				wrong += !is_right(ram, page, random_words);
			printf("%llu\n", (unsigned long long)wrong);
		}
		fflush(stdout);
	}
	return 0;
}

void guest_start(struct guest *g, const char *self, const char *socket, const char *name,
		 uint64_t bytes, unsigned int part)
{
	int to[2], from[2];
	char line[64], library[512], size[32], parts[16];

	snprintf(library, sizeof(library), "%s/libebb-attach.so", getenv("EBB_BUILD"));
	snprintf(size, sizeof(size), "%llu", (unsigned long long)bytes);
	snprintf(parts, sizeof(parts), "%u", part);
	if (pipe2(to, O_CLOEXEC) || pipe2(from, O_CLOEXEC))
		err(1, "pipe");
	g->pid = fork();
	if (g->pid < 0)
		err(1, "fork");
	if (g->pid == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		dup2(to[0], STDIN_FILENO);
		dup2(from[1], STDOUT_FILENO);
		setenv("LD_PRELOAD", library, 1);
		setenv("EBB_SOCKET", socket, 1);
		setenv("EBB_NAME", name, 1);
		setenv("EBB_MIN_SIZE", "1M", 1);
		execl(self, self, "--guest", size, parts, NULL);
		err(127, "%s", self);
	}
	close(to[0]);
	close(from[1]);
	g->to = fdopen(to[1], "w");
	g->from = fdopen(from[0], "r");
	if (!g->to || !g->from || !fgets(line, sizeof(line), g->from))
		errx(1, "the guest did not start");
}

void guest_end(struct guest *g)
{
	fclose(g->to);
	fclose(g->from);
	if (waitpid(g->pid, NULL, 0) != g->pid)
		err(1, "waitpid");
}

static uint64_t answer(struct guest *g)
{
	char line[64];

	if (!fgets(line, sizeof(line), g->from))
		errx(1, "the guest died");
	return strtoull(line, NULL, 10);
}

void guest_touch(struct guest *g, uint64_t page)
{
	fprintf(g->to, "touch %llu\n", (unsigned long long)page);
	fflush(g->to);
}

uint64_t guest_touched(struct guest *g)
{
	uint64_t ns = answer(g);

	if (!ns)
		errx(1, "a page has the wrong content");
	return ns;
}

uint64_t guest_wrong(struct guest *g)
{
	fputs("check\n", g->to);
	fflush(g->to);
	return answer(g);
}
