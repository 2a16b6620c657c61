/* SPDX-License-Identifier: BSD-3-Clause */
/* guest.c: the memory that is touched, in the same ways on every side. */
#include "guest.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/hist.h"

/*
 * Theory of operation
 *
 * A page's first word is its number (low half) and a count of writes to it (high half): an access
 * reads it, or reads and writes it, and so checks the page. The rest is one of CONTENTS made-up
 * pages, compared at the end. Every access is timed with the monotonic clock; those above
 * GUEST_FAULT_NS go into the thread's histogram. Threads run until the phase says stop, and count
 * only while it says so, so that all of them are measured over the same time.
 */

#define CONTENTS 256u
#define WORDS	 (GUEST_PAGE / 8)

volatile int guest_stop;

struct guest_content {
	uint64_t word[CONTENTS][WORDS];
};

static uint64_t next_random(uint64_t *s)
{
	*s ^= *s << 13;
	*s ^= *s >> 7;
	*s ^= *s << 17;
	return *s;
}

/* Like a heap: pointers into few places, small numbers, text, and what does not compress. */
static uint64_t heap_word(uint64_t *s, uint64_t base)
{
	uint64_t r = next_random(s), kind = r >> 56;

	if (kind < 90)
		return base + (r & 0xff0);
	if (kind < 160)
		return r & 0x3f;
	if (kind < 190)
		return UINT64_C(0x2073692065756c61) + (r & 3);
	return r;
}

int guest_content_new(struct guest_content **out)
{
	struct guest_content *c = malloc(sizeof(*c));
	uint64_t s = UINT64_C(0x9e3779b97f4a7c15);

	if (!c)
		return -ENOMEM;
	for (uint32_t i = 0; i < CONTENTS; i++) {
		uint64_t base = UINT64_C(0x7f0000000000) + (next_random(&s) & 0xffffff000);

		for (uint32_t k = 0; k < WORDS; k++)
			c->word[i][k] = heap_word(&s, base);
	}
	*out = c;
	return 0;
}

static int content_of_file(const char *path, struct guest_content *c)
{
	FILE *f = fopen(path, "re");
	uint32_t n = 0;
	int r = 0;

	if (!f)
		return -errno;
	while (n < CONTENTS && fread(c->word[n], GUEST_PAGE, 1, f) == 1)
		n++;
	if (!n)
		r = -EINVAL;
	for (uint32_t i = n; n && i < CONTENTS; i++)
		memcpy(c->word[i], c->word[i % n], GUEST_PAGE);
	fclose(f);
	return r;
}

int guest_content_named(const char *name, struct guest_content **out)
{
	uint64_t s = UINT64_C(0x2545f4914f6cdd1d);
	int r = guest_content_new(out);

	if (r || strcmp(name, "heap") == 0)
		return r;
	if (strcmp(name, "zero") == 0) {
		memset((*out)->word, 0, sizeof((*out)->word));
	} else if (strcmp(name, "random") == 0) {
		for (uint32_t i = 0; i < CONTENTS; i++)
			for (uint32_t k = 0; k < WORDS; k++)
				(*out)->word[i][k] = next_random(&s);
	} else {
		r = content_of_file(name, *out);
	}
	if (r)
		guest_content_free(*out);
	return r;
}

void guest_content_free(struct guest_content *c)
{
	free(c);
}

void guest_page(const struct guest_content *c, uint64_t n, void *out)
{
	memcpy(out, c->word[n % CONTENTS], GUEST_PAGE);
	*(uint64_t *)out = (uint32_t)n;
}

void guest_fill(const struct guest_content *c, const struct guest_ram *ram)
{
	for (uint64_t n = 0; n < ram->pages && !guest_stop; n++)
		guest_page(c, n, ram->at + n * GUEST_PAGE);
}

uint64_t guest_wrong_pages(const struct guest_content *c, const struct guest_ram *ram)
{
	uint64_t wrong = 0;

	for (uint64_t n = 0; n < ram->pages && !guest_stop; n++) {
		const uint64_t *p = (const uint64_t *)(ram->at + n * GUEST_PAGE);

		wrong += (uint32_t)p[0] != (uint32_t)n ||
			 memcmp(p + 1, &c->word[n % CONTENTS][1], GUEST_PAGE - 8) != 0;
	}
	return wrong;
}

static volatile uint64_t *page_at(const struct guest_ram *ram, uint64_t n)
{
	return (volatile uint64_t *)(ram->at + n * GUEST_PAGE);
}

uint64_t guest_touch(const struct guest_ram *ram, uint64_t from, uint32_t n, uint32_t *ns)
{
	uint64_t per_unit = ram->unit_bytes / GUEST_PAGE, units = ram->pages / per_unit, wrong = 0;

	for (uint32_t i = 0; i < n; i++) {
		/* A large prime as the step visits every unit once, far from the one before. */
		uint64_t page = (from + i) % units * UINT64_C(2654435761) % units * per_unit;
		uint64_t start = clock_ns();

		wrong += (uint32_t)*page_at(ram, page) != (uint32_t)page;
		start = clock_ns() - start;
		ns[i] = start < UINT32_MAX ? (uint32_t)start : UINT32_MAX;
	}
	return wrong;
}

/* ---- load ---- */

enum phase { WARM, RUN, END };

struct run {
	const struct guest_ram *ram;
	unsigned int write_percent;
	_Atomic int phase;
};

struct guest_thread {
	struct run *run;
	pthread_t thread;
	uint64_t seed, accesses, wrong;
	struct hist faults;
};

static void access_one(struct guest_thread *t, bool counts)
{
	const struct guest_ram *ram = t->run->ram;
	uint64_t r = next_random(&t->seed), page = (r >> 20) % ram->pages, start, was;
	volatile uint64_t *p = page_at(ram, page);
	bool write = (r & 127) * 100 < t->run->write_percent * UINT64_C(128);

	start = clock_ns();
	was = *p;
	if (write)
		*p = was + (UINT64_C(1) << 32);
	start = clock_ns() - start;
	t->wrong += (uint32_t)was != (uint32_t)page;
	if (!counts)
		return;
	t->accesses++;
	if (start > GUEST_FAULT_NS)
		hist_record(&t->faults, start);
}

static void *guest_main(void *arg)
{
	struct guest_thread *t = arg;
	int phase;

	while ((phase = atomic_load_explicit(&t->run->phase, memory_order_relaxed)) != END)
		for (int i = 0; i < 16; i++)
			access_one(t, phase == RUN);
	return NULL;
}

static void sleep_s(double s)
{
	uint64_t end = clock_ns() + (uint64_t)(s * 1e9);

	while (clock_ns() < end && !guest_stop)
		usleep(10000);
}

int guest_run(const struct guest_ram *ram, const struct guest_load *load, struct guest_figures *out)
{
	struct run run = {.ram = ram, .write_percent = load->write_percent, .phase = WARM};
	struct guest_thread *t = calloc(load->threads, sizeof(*t));
	struct hist all = {.count = 0};
	unsigned int started = 0;
	uint64_t start;
	double s;
	int r = 0;

	if (!t)
		return -ENOMEM;
	for (; started < load->threads && !r; started += !r) {
		t[started].run = &run;
		t[started].seed = UINT64_C(88172645463325252) + started * 7919;
		r = -pthread_create(&t[started].thread, NULL, guest_main, &t[started]);
	}
	if (!r)
		sleep_s(load->warm_s);
	atomic_store(&run.phase, RUN);
	start = clock_ns();
	if (!r)
		sleep_s(load->run_s);
	atomic_store(&run.phase, END);
	s = (double)(clock_ns() - start) / 1e9;
	memset(out, 0, sizeof(*out));
	for (unsigned int i = 0; i < started; i++) {
		pthread_join(t[i].thread, NULL);
		hist_merge(&all, &t[i].faults);
		out->accesses += t[i].accesses;
		out->wrong += t[i].wrong;
	}
	out->faults = all.count;
	out->accesses_s = (double)out->accesses / s;
	out->faults_s = (double)out->faults / s;
	out->p50_us = (double)hist_quantile(&all, 0.5) / 1e3;
	out->p99_us = (double)hist_quantile(&all, 0.99) / 1e3;
	out->p999_us = (double)hist_quantile(&all, 0.999) / 1e3;
	free(t);
	return r;
}
