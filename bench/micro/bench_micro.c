/* SPDX-License-Identifier: BSD-3-Clause */
/* bench_micro.c: the pieces that every fault and eviction passes, for counting instructions. */
#include <lz4.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <valgrind/callgrind.h>

#include "base/hist.h"
#include "fake_vm.h"
#include "model/page_table.h"
#include "store_rig.h"

/*
 * Each section does its work PAGES times between section() and section_end(). Under callgrind that
 * makes one dump a section, named after it; check_micro.py divides by PAGES and compares with the
 * counts that are kept. Without callgrind it runs and shows nothing but that it works.
 */
#define PAGES 2048u

static void section(void)
{
	CALLGRIND_ZERO_STATS;
	CALLGRIND_TOGGLE_COLLECT;
}

static void section_end(const char *name)
{
	CALLGRIND_TOGGLE_COLLECT;
	CALLGRIND_DUMP_STATS_AT(name);
}

static void must(bool ok, const char *what)
{
	if (!ok) {
		fprintf(stderr, "bench_micro: %s\n", what);
		exit(1);
	}
}

/* ---- page table: a unit's way out and back ---- */

static void step(struct page_table *pt, uint64_t unit, enum page_state to)
{
	uint64_t e = page_table_get(pt, unit);

	must(page_table_cas(pt, unit, &e, page_entry_in(e, to)), "an entry changed by itself");
}

static void table(void)
{
	size_t bytes = page_table_bytes(PAGES);
	struct page_table pt;
	void *memory = calloc(1, bytes);

	must(memory, "memory");
	page_table_init(&pt, memory, PAGES);
	page_table_set_run(&pt, 0, PAGES, PE_RESIDENT);
	/* The leaves are filled before it counts. */
	for (uint64_t u = 0; u < PAGES; u += PAGE_TABLE_RUN) {
		step(&pt, u, PE_PROTECTED);
		step(&pt, u, PE_UNPROTECTING);
		page_table_leave(&pt, u, PE_RESIDENT);
	}
	section();
	for (uint64_t u = 0; u < PAGES; u++) {
		step(&pt, u, PE_PROTECTED);
		step(&pt, u, PE_STORING);
		step(&pt, u, PE_PUNCHING);
		page_table_leave(&pt, u, page_entry_with_copy(PE_EVICTED, 1, u + 1));
	}
	section_end("table-out");
	section();
	for (uint64_t u = 0; u < PAGES; u++) {
		step(&pt, u, PE_LOADING);
		page_table_leave(&pt, u, PE_RESIDENT);
	}
	section_end("table-in");
	free(memory);
}

/* ---- codec and store ---- */

static void codec(uint8_t *pages)
{
	static char packed[LZ4_COMPRESSBOUND(STORE_PAGE)], out[STORE_PAGE];
	void *state = malloc((size_t)LZ4_sizeofState());
	int n;

	must(state, "memory");
	section();
	for (uint32_t i = 0; i < PAGES; i++)
		LZ4_compress_fast_extState(state, (char *)pages + (size_t)i * STORE_PAGE, packed,
					   STORE_PAGE, sizeof(packed), 1);
	section_end("lz4-pack");
	n = LZ4_compress_fast_extState(state, (char *)pages, packed, STORE_PAGE, sizeof(packed), 1);
	section();
	for (uint32_t i = 0; i < PAGES; i++)
		must(LZ4_decompress_safe(packed, out, n, STORE_PAGE) == (int)STORE_PAGE, "lz4");
	section_end("lz4-unpack");
	free(state);
}

static void store(uint8_t *pages)
{
	static uint8_t out[STORE_PAGE] __attribute__((aligned(STORE_PAGE)));
	static uint64_t handles[PAGES];
	struct backend_channel *c;
	struct store_rig rig;

	store_rig_open(&rig);
	must(!backend_channel_open(rig.b, NULL, 0, 64, &c), "channel");
	section();
	for (uint32_t i = 0; i < PAGES; i++)
		store_rig_io(c, rig.s, EBB_IO_STORE, &handles[i], pages + (size_t)i * STORE_PAGE);
	section_end("store");
	section();
	for (uint32_t i = 0; i < PAGES; i++)
		store_rig_io(c, rig.s, EBB_IO_LOAD, &handles[i * 1031u % PAGES], out);
	section_end("load");
	section();
	backend_free(c, rig.s, handles, PAGES);
	section_end("free");
	backend_channel_close(c);
	store_rig_close(&rig);
}

/* ---- a victim, with the part of a VM that is made of arrays ---- */

static void reclaimer(const char *name)
{
	struct policy *p = fake_load("", name);
	struct fake_vm v;
	struct error e = {0};
	uint64_t gone = 0;

	fake_vm_init(&v, 4 * (uint64_t)PAGES);
	must(!policy_attach(p, &v.host, &v.vm, EBB_POLICY_RECLAIM, NULL, 0, &v.reclaim, &e),
	     e.desc);
	for (uint64_t u = 0; u < v.units; u++)
		fake_vm_touch(&v, u);
	for (int k = 0; k < 4; k++) {
		v.now_ns += UINT64_C(2000000000);
		fake_vm_window(&v, UINT64_C(2000000000));
	}
	section();
	while (gone < PAGES) {
		uint64_t n = fake_vm_reclaim(&v, 64, true);

		must(n, "no victims");
		gone += n;
	}
	section_end(name);
	fake_vm_free(&v);
	policy_unload(p);
}

static void histogram(void)
{
	static struct hist h;

	section();
	for (uint64_t i = 0; i < PAGES; i++)
		hist_record(&h, i * 977);
	section_end("histogram");
	must(h.count == PAGES, "histogram");
}

int main(void)
{
	uint8_t *pages = aligned_alloc(STORE_PAGE, (size_t)PAGES * STORE_PAGE);

	must(pages, "memory");
	store_rig_pages(pages, PAGES);
	table();
	codec(pages);
	store(pages);
	reclaimer("clock");
	reclaimer("temperature");
	histogram();
	free(pages);
	return 0;
}
