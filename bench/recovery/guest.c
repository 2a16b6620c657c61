/* SPDX-License-Identifier: BSD-3-Clause */
/* guest.c: the VM of the benchmark: a process of its own, with the attach library in it. */
#include "guest.h"

#include <err.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
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

/* ---- threads that touch memory all the time, and note how long that takes at the most ---- */

struct toucher {
	uint64_t *at;
	uint64_t pages, page;
	useconds_t pause_us;
	_Atomic uint64_t longest_ns, touches;
};

static void *touch(void *arg)
{
	struct toucher *t = arg;

	for (;;) {
		uint64_t begin = clock_ns(), took, longest = atomic_load(&t->longest_ns);

		*(volatile uint64_t *)(t->at + t->page * (PAGE / 8));
		took = clock_ns() - begin;
		while (took > longest &&
		       !atomic_compare_exchange_weak(&t->longest_ns, &longest, took))
			;
		atomic_fetch_add(&t->touches, 1);
		t->page = (t->page + t->pages * 5 / 8 + 1) % t->pages;
		usleep(t->pause_us);
	}
	return NULL;
}

/* One in the VM's RAM, one in memory that nobody takes: what that one sees is the machine's noise.
 */
static void start_touchers(struct toucher *t, uint64_t *ram, uint64_t pages)
{
	static uint64_t own[16 * PAGE / 8];
	pthread_t thread;

	t[0] = (struct toucher){.at = ram, .pages = pages, .pause_us = 100};
	t[1] = (struct toucher){.at = own, .pages = 16, .pause_us = 100};
	memset(own, 1, sizeof(own));
	for (int i = 0; i < 2; i++)
		if (pthread_create(&thread, NULL, touch, &t[i]))
			err(1, "pthread_create");
}

int guest_main(char **args)
{
	uint64_t bytes = strtoull(args[0], NULL, 10), pages = bytes / PAGE, page, wrong = 0;
	size_t random_words = PAGE / 8 / strtoul(args[1], NULL, 10);
	int fd = memfd_create("guest-ram", MFD_CLOEXEC);
	static struct toucher touchers[2];
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
		} else if (strcmp(line, "go\n") == 0) {
			start_touchers(touchers, ram, pages);
			puts("1");
		} else if (strcmp(line, "longest\n") == 0) {
			printf("%llu %llu %llu\n",
			       (unsigned long long)atomic_exchange(&touchers[0].longest_ns, 0),
			       (unsigned long long)atomic_exchange(&touchers[1].longest_ns, 0),
			       (unsigned long long)atomic_load(&touchers[0].touches));
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

void guest_go(struct guest *g)
{
	fputs("go\n", g->to);
	fflush(g->to);
	answer(g);
}

struct guest_longest guest_longest(struct guest *g)
{
	struct guest_longest l;
	unsigned long long v[3];
	char line[96];

	fputs("longest\n", g->to);
	fflush(g->to);
	if (!fgets(line, sizeof(line), g->from) ||
	    sscanf(line, "%llu %llu %llu", &v[0], &v[1], &v[2]) != 3)
		errx(1, "the guest died");
	l = (struct guest_longest){v[0], v[1], v[2]};
	return l;
}

uint64_t guest_wrong(struct guest *g)
{
	fputs("check\n", g->to);
	fflush(g->to);
	return answer(g);
}
