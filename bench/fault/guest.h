/* SPDX-License-Identifier: BSD-3-Clause */
/* guest.h: the memory that is touched, in the same ways on every side. */
#ifndef BENCH_FAULT_GUEST_H
#define BENCH_FAULT_GUEST_H

#include <stdbool.h>
#include <stdint.h>

#define GUEST_PAGE 4096u
/* An access that took longer was a fault. (A fault that the kernel serves from its page cache, of
 * which nobody but it knows, takes about that long.) */
#define GUEST_FAULT_NS 2500u
#define GUEST_THREADS  8

/* Set by a signal: everything ends soon. */
extern volatile int guest_stop;

/*
 * Every page holds its number, a count of the writes to it, and one of a few made-up contents
 * (which lz4 packs to about half): any page can be checked at any time.
 */
struct guest_ram {
	uint8_t *at; /* borrowed */
	uint64_t pages;
	uint32_t unit_bytes; /* what one fault brings */
};

struct guest_content;
int guest_content_new(struct guest_content **out);
/* Other contents: "heap" (as above), "random", "zero" but for the first word, or pages of a file.
 */
int guest_content_named(const char *name, struct guest_content **out);
void guest_content_free(struct guest_content *c);
/* The content of page number n. */
void guest_page(const struct guest_content *c, uint64_t n, void *out);

void guest_fill(const struct guest_content *c, const struct guest_ram *ram);
/* How many pages do not hold what they should. */
uint64_t guest_wrong_pages(const struct guest_content *c, const struct guest_ram *ram);

/*
 * Touches n units once, starting at the `from`th of a fixed order that is none to a prefetcher;
 * ns gets the time of each. Returns how many held the wrong page number.
 */
uint64_t guest_touch(const struct guest_ram *ram, uint64_t from, uint32_t n, uint32_t *ns);

struct guest_load {
	unsigned int threads;
	double warm_s, run_s;
	unsigned int write_percent;
};

struct guest_figures {
	double accesses_s, faults_s;
	double p50_us, p99_us, p999_us; /* of the faults */
	uint64_t accesses, faults, wrong;
};

/* Reads and writes evenly spread pages for a while. 0 or -errno. */
int guest_run(const struct guest_ram *ram, const struct guest_load *load,
	      struct guest_figures *out);

#endif
