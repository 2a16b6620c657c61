/* SPDX-License-Identifier: BSD-3-Clause */
/* tagged.c: guest RAM of which each page tells what it must hold. */
#include "stress/tagged.h"

#include <err.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define LINE 64u

struct tag {
	uint64_t page, generation;
};

uint64_t rng(uint64_t *s)
{
	*s ^= *s << 13;
	*s ^= *s >> 7;
	*s ^= *s << 17;
	return *s;
}

void page_write(char *p, uint64_t page, uint64_t generation, uint64_t *seed)
{
	bool noise = generation % 3;

	for (size_t i = 0; i < PAGE; i += LINE) {
		struct tag t = {page, generation};

		if (noise)
			for (size_t k = sizeof(t); k < LINE / 2 + sizeof(t); k += 8)
				*(uint64_t *)(void *)(p + i + k) = rng(seed);
		memcpy(p + i, &t, sizeof(t));
	}
}

void page_check(const char *p, uint64_t page, uint64_t generation, const char *when)
{
	for (size_t i = 0; i < PAGE; i += LINE) {
		struct tag t;

		memcpy(&t, p + i, sizeof(t));
		if (generation ? t.page == page && t.generation == generation
			       : t.page == 0 && t.generation == 0)
			continue;
		errx(1,
		     "WRONG (%s): page %llu offset %zu: expected generation %llu, found page "
		     "%llu generation %llu",
		     when, (unsigned long long)page, i, (unsigned long long)generation,
		     (unsigned long long)t.page, (unsigned long long)t.generation);
	}
}

void area_make(struct area *a, const char *id, size_t bytes, enum native_kind kind,
	       uint64_t first_page)
{
	int r = native_ram_make(&a->ram, id, bytes, kind);

	if (r)
		errx(1, "cannot make RAM %s: %s", id, strerror(-r));
	a->first_page = first_page;
	a->pages = bytes / PAGE;
	a->generation = calloc(a->pages, sizeof(*a->generation));
	a->busy = calloc(a->pages, sizeof(*a->busy));
	if (!a->generation || !a->busy)
		err(1, "calloc");
}

void area_free(struct area *a)
{
	native_ram_free(&a->ram);
	free(a->generation);
	free(a->busy);
	a->generation = NULL;
	a->busy = NULL;
}

void area_fill(struct area *a, uint64_t *seed)
{
	for (size_t i = 0; i < a->pages; i++)
		if (i % 10)
			page_write(area_page(a, i), a->first_page + i, ++a->generation[i], seed);
	atomic_store(&a->in_use, true);
}

bool area_take(struct area *a, size_t page)
{
	return !atomic_exchange(&a->busy[page], true);
}

void area_give(struct area *a, size_t page)
{
	atomic_store(&a->busy[page], false);
}

void area_take_range(struct area *a, size_t first, size_t n)
{
	for (size_t i = first; i < first + n; i++)
		while (!area_take(a, i))
			usleep(50);
}

void area_give_range(struct area *a, size_t first, size_t n)
{
	for (size_t i = first; i < first + n; i++)
		area_give(a, i);
}

char *area_page(const struct area *a, size_t page)
{
	return (char *)a->ram.addr + page * PAGE;
}

void area_check(const struct area *a, size_t first, size_t n, const char *when)
{
	for (size_t i = first; i < first + n; i++)
		page_check(area_page(a, i), a->first_page + i, a->generation[i], when);
}

void area_access(struct area *a, size_t page, bool second_mapping, bool write, uint64_t *seed)
{
	void *base = second_mapping && a->twin.addr ? a->twin.addr : a->ram.addr;
	char *p = (char *)base + page * PAGE;

	page_check(p, a->first_page + page, a->generation[page], "access");
	if (write)
		page_write(p, a->first_page + page, ++a->generation[page], seed);
}
