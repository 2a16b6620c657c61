/* SPDX-License-Identifier: BSD-3-Clause */
/* native_client.c: a process with RAM of its own that does what its standard input says. */
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/fd.h"
#include "native.h"
#include "sys/uffd.h"

/*
 * One command a line, each answered by a line "OK ..." or "ERR ...". ID names a RAM block, KIND is
 * shmem, thp or hugetlb; OFFSET and BYTES may be left out for the whole block.
 *
 *	connect SOCKET				ram ID BYTES KIND
 *	map ID BYTES KIND PID FD		another process's block, through /proc
 *	attach VM FLAGS ID...			FLAGS: "-", or of secondary,zap,keep,lent
 *	add ID		remove ID [discard]	detach		unmap ID
 *	discard|pin|unpin ID OFFSET BYTES
 *	fill|check ID SEED [OFFSET BYTES]	writes, compares content that depends on SEED
 *	zeroes ID [OFFSET BYTES]		compares with zeroes
 *	resident ID [OFFSET BYTES]		bytes in the page cache
 *	resume SOCKET VM FLAGS ID...		attaches anew after the daemon's death
 *	kept					pieces of state kept for the daemon
 *	disconnect				closes the socket, keeps the userfaultfd
 *	watch ID				with a userfaultfd of its own
 *	fd ID	zaps	quit
 */

#define BLOCKS_MAX 8
#define WORDS_MAX  16
#define PAGE	   4096
#define PAGE_WORDS (PAGE / sizeof(uint64_t))

struct client {
	struct native *native;
	int own_uffd; /* of "watch" */
	struct native_ram ram[BLOCKS_MAX];
	char *word[WORDS_MAX];
	int words;
};

static void answer(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
static void answer(const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	vprintf(fmt, ap);
	va_end(ap);
	putchar('\n');
	fflush(stdout);
}

static void answer_result(struct client *c, int r)
{
	if (!r)
		answer("OK");
	else if (r == -EPROTO || r == -EPIPE)
		answer("ERR %s", native_error(c->native));
	else
		answer("ERR errno %d: %s", -r, strerror(-r));
}

static struct native_ram *find_ram(struct client *c, const char *id)
{
	for (int i = 0; i < BLOCKS_MAX; i++)
		if (c->ram[i].addr && !strcmp(c->ram[i].id, id))
			return &c->ram[i];
	errx(1, "no block %s", id);
}

static struct native_ram *free_ram(struct client *c)
{
	for (int i = 0; i < BLOCKS_MAX; i++)
		if (!c->ram[i].addr)
			return &c->ram[i];
	errx(1, "too many blocks");
}

static const char *arg(struct client *c, int i)
{
	if (i >= c->words)
		errx(1, "%s: too few arguments", c->word[0]);
	return c->word[i];
}

static uint64_t number(struct client *c, int i)
{
	return strtoull(arg(c, i), NULL, 0);
}

static enum native_kind kind_of(const char *text)
{
	return !strcmp(text, "hugetlb") ? NATIVE_HUGETLB
	       : !strcmp(text, "thp")	? NATIVE_THP
					: NATIVE_SHMEM;
}

/* Half of a page is noise, the other half one word; every word tells page and seed. */
static uint64_t content(uint64_t seed, uint64_t page, size_t word)
{
	uint64_t x = seed * UINT64_C(0x9e3779b97f4a7c15) + page * UINT64_C(0xbf58476d1ce4e5b9);

	if (word < PAGE_WORDS / 2)
		x += word * UINT64_C(0x94d049bb133111eb);
	x ^= x >> 31;
	x *= UINT64_C(0xd6e8feb86659fd93);
	return x ^ x >> 29;
}

struct range {
	struct native_ram *ram;
	uint64_t first, pages;
};

/* The block word[1], and OFFSET and BYTES from word[i] on. */
static struct range range_of(struct client *c, int i)
{
	struct range r = {.ram = find_ram(c, arg(c, 1))};
	uint64_t bytes = c->words > i + 1 ? number(c, i + 1) : r.ram->bytes;

	r.first = c->words > i ? number(c, i) / PAGE : 0;
	r.pages = bytes / PAGE;
	return r;
}

static uint64_t *page_at(const struct range *r, uint64_t i)
{
	return (uint64_t *)((char *)r->ram->addr + (r->first + i) * PAGE);
}

static void do_fill(struct client *c)
{
	struct range r = range_of(c, 3);
	uint64_t seed = number(c, 2);

	for (uint64_t i = 0; i < r.pages; i++)
		for (size_t w = 0; w < PAGE_WORDS; w++)
			page_at(&r, i)[w] = content(seed, r.first + i, w);
	answer("OK %" PRIu64, r.pages * PAGE);
}

static void compare(const struct range *r, bool zero, uint64_t seed)
{
	uint64_t wrong = 0, first = 0;

	for (uint64_t i = 0; i < r->pages; i++) {
		const uint64_t *page = page_at(r, i);
		size_t w = 0;

		while (w < PAGE_WORDS && page[w] == (zero ? 0 : content(seed, r->first + i, w)))
			w++;
		if (w < PAGE_WORDS && !wrong++)
			first = r->first + i;
	}
	if (wrong)
		answer("ERR %" PRIu64 " of %" PRIu64 " pages are wrong, page %" PRIu64 " first",
		       wrong, r->pages, first);
	else
		answer("OK %" PRIu64, r->pages * PAGE);
}

static void do_check(struct client *c)
{
	struct range r = range_of(c, 3);

	compare(&r, false, number(c, 2));
}

static void do_zeroes(struct client *c)
{
	struct range r = range_of(c, 2);

	compare(&r, true, 0);
}

static void do_resident(struct client *c)
{
	struct range r = range_of(c, 2);
	unsigned char *there = malloc(r.pages);
	uint64_t n = 0;

	if (!there || mincore(page_at(&r, 0), r.pages * PAGE, there))
		err(1, "mincore");
	for (uint64_t i = 0; i < r.pages; i++)
		n += there[i] & 1;
	free(there);
	answer("OK %" PRIu64, n * PAGE);
}

static void do_map(struct client *c)
{
	char path[64];
	FD_OWNED fd = -1;

	snprintf(path, sizeof(path), "/proc/%s/fd/%s", arg(c, 4), arg(c, 5));
	fd = open(path, O_RDWR | O_CLOEXEC);
	answer_result(c, fd < 0 ? -errno
				: native_ram_map(free_ram(c), arg(c, 1), number(c, 2),
						 kind_of(arg(c, 3)), fd));
}

/* VM FLAGS ID... from word[i] on. */
static void attach_from(struct client *c, int at, const char *resume_socket)
{
	static const struct {
		const char *name;
		unsigned int flag;
	} names[] = {{"secondary", NATIVE_SECONDARY},
		     {"zap", NATIVE_SERVE_ZAP},
		     {"keep", NATIVE_KEEP},
		     {"lent", NATIVE_LENT_UFFD}};
	struct native_ram ram[BLOCKS_MAX];
	unsigned int n = 0, flags = 0;

	for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++)
		if (strstr(arg(c, at + 1), names[i].name))
			flags |= names[i].flag;
	for (int i = at + 2; i < c->words && n < BLOCKS_MAX; i++)
		ram[n++] = *find_ram(c, c->word[i]);
	answer_result(c, resume_socket ? native_resume(c->native, resume_socket, arg(c, at), ram, n,
						       flags)
				       : native_attach(c->native, arg(c, at), ram, n, flags));
}

static void do_attach(struct client *c)
{
	attach_from(c, 1, NULL);
}

static void do_resume(struct client *c)
{
	attach_from(c, 2, arg(c, 1));
}

static void do_kept(struct client *c)
{
	answer("OK %u", native_kept(c->native));
}

static void do_connect(struct client *c)
{
	native_close(c->native, true);
	c->native = NULL;
	answer_result(c, native_open(arg(c, 1), &c->native));
}

static void do_disconnect(struct client *c)
{
	native_close(c->native, false);
	c->native = NULL;
	answer("OK");
}

static void do_watch(struct client *c)
{
	const struct native_ram *ram = find_ram(c, arg(c, 1));

	fd_close(&c->own_uffd);
	c->own_uffd = uffd_new();
	answer_result(c, c->own_uffd < 0 ? c->own_uffd
					 : uffd_api(c->own_uffd, 0, NULL)
						   ?: uffd_register(c->own_uffd,
								    (uintptr_t)ram->addr, ram->bytes,
								    UFFDIO_REGISTER_MODE_MISSING));
}

static void do_ram(struct client *c)
{
	answer_result(c, native_ram_make(free_ram(c), arg(c, 1), number(c, 2), kind_of(arg(c, 3))));
}

static void do_unmap(struct client *c)
{
	native_ram_free(find_ram(c, arg(c, 1)));
	answer("OK");
}

static void do_add(struct client *c)
{
	answer_result(c, native_region_add(c->native, find_ram(c, arg(c, 1))));
}

static void do_remove(struct client *c)
{
	answer_result(c, native_region_remove(c->native, arg(c, 1), c->words > 2));
}

static void do_discard(struct client *c)
{
	answer_result(c, native_discard(c->native, arg(c, 1), number(c, 2), number(c, 3)));
}

static void do_pin(struct client *c)
{
	answer_result(c, native_pin(c->native, arg(c, 1), number(c, 2), number(c, 3)));
}

static void do_unpin(struct client *c)
{
	answer_result(c, native_unpin(c->native, arg(c, 1), number(c, 2), number(c, 3)));
}

static void do_detach(struct client *c)
{
	answer_result(c, native_detach(c->native));
}

static void do_fd(struct client *c)
{
	answer("OK %d", find_ram(c, arg(c, 1))->memfd);
}

static void do_zaps(struct client *c)
{
	answer("OK %u", native_zaps(c->native));
}

static void execute(struct client *c)
{
	static const struct {
		const char *name;
		void (*run)(struct client *c);
	} commands[] = {
		{"connect", do_connect},   {"ram", do_ram},	  {"map", do_map},
		{"attach", do_attach},	   {"add", do_add},	  {"remove", do_remove},
		{"discard", do_discard},   {"pin", do_pin},	  {"unpin", do_unpin},
		{"detach", do_detach},	   {"fill", do_fill},	  {"check", do_check},
		{"zeroes", do_zeroes},	   {"unmap", do_unmap},	  {"fd", do_fd},
		{"zaps", do_zaps},	   {"watch", do_watch},	  {"disconnect", do_disconnect},
		{"resident", do_resident}, {"resume", do_resume}, {"kept", do_kept}};

	for (size_t i = 0; i < sizeof(commands) / sizeof(commands[0]); i++) {
		if (!strcmp(commands[i].name, c->word[0])) {
			commands[i].run(c);
			return;
		}
	}
	errx(1, "%s: no such command", c->word[0]);
}

int main(void)
{
	struct client c = {.own_uffd = -1};
	char line[512];

	while (fgets(line, sizeof(line), stdin)) {
		char *save = NULL;

		c.words = 0;
		for (char *w = strtok_r(line, " \n", &save); w && c.words < WORDS_MAX;
		     w = strtok_r(NULL, " \n", &save))
			c.word[c.words++] = w;
		if (c.words && !strcmp(c.word[0], "quit"))
			break;
		if (c.words)
			execute(&c);
	}
	native_close(c.native, true);
	fd_close(&c.own_uffd);
	for (int i = 0; i < BLOCKS_MAX; i++)
		if (c.ram[i].addr)
			native_ram_free(&c.ram[i]);
	return 0;
}
