/* SPDX-License-Identifier: BSD-3-Clause */
/* tagged.h: guest RAM of which each page tells what it must hold. */
#ifndef TESTS_STRESS_TAGGED_H
#define TESTS_STRESS_TAGGED_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "attach/native.h"

/*
 * Every 64 bytes of a page carry its number and generation, the rest is half noise, half zeroes; a
 * page of generation 0 is zero. Each page is in one thread's hands at a time: area_take() before
 * it is looked at or written, area_give() after. A wrong tag ends the test at once, with what was
 * found.
 */

#define PAGE 4096u

struct area {
	struct native_ram ram;
	struct native_ram twin; /* a second mapping of it; addr NULL: none */
	uint64_t first_page;	/* in the numbering of the test */
	size_t pages;
	uint32_t *generation; /* 0: reads as zero */
	_Atomic bool *busy;   /* a worker or the operator is at this page */
	_Atomic bool in_use;
};

uint64_t rng(uint64_t *seed);

void page_write(char *p, uint64_t page, uint64_t generation, uint64_t *seed);
void page_check(const char *p, uint64_t page, uint64_t generation, const char *when);

/* Makes and maps it; ends the test when there is no memory. */
void area_make(struct area *a, const char *id, size_t bytes, enum native_kind kind,
	       uint64_t first_page);
/* Unmaps and frees. No page is in anybody's hands. */
void area_free(struct area *a);
/* Writes all pages but every tenth, which is never touched, and lets the workers in. */
void area_fill(struct area *a, uint64_t *seed);
bool area_take(struct area *a, size_t page);
void area_give(struct area *a, size_t page);
/* Waits until no one else has any of [first, first + n). */
void area_take_range(struct area *a, size_t first, size_t n);
void area_give_range(struct area *a, size_t first, size_t n);
char *area_page(const struct area *a, size_t page);
void area_check(const struct area *a, size_t first, size_t n, const char *when);
/* One access of a worker: checks the page, and may write it. It is in the caller's hands. */
void area_access(struct area *a, size_t page, bool second_mapping, bool write, uint64_t *seed);

#endif
