/* SPDX-License-Identifier: BSD-3-Clause */
/* test_samples.c: kept pieces of released versions, frozen in samples/, are read by today's code.
 */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "engine/vm_record.h"
#include "model/page_table.h"

/*
 * Copies of the memfds that the daemon made for a VM of 2 MiB (table-2: 1 MiB), half of it evicted,
 * in a region of which every page was written. They are never made anew: when one cannot be read
 * any more, VMs that run cannot be taken over by the new version after a crash.
 */

static void *load(const char *name, size_t *bytes)
{
	char path[512];
	void *data;
	FILE *f;

	snprintf(path, sizeof(path), SAMPLES "/%s", name);
	f = fopen(path, "rb");
	assert_non_null(f);
	fseek(f, 0, SEEK_END);
	*bytes = (size_t)ftell(f);
	rewind(f);
	data = aligned_alloc(4096, (*bytes + 4095) & ~(size_t)4095);
	assert_non_null(data);
	assert_int_equal(fread(data, 1, *bytes, f), *bytes);
	fclose(f);
	return data;
}

static void test_record_2(void **state)
{
	struct vm_record *rec = calloc(1, sizeof(*rec));
	size_t bytes;
	void *data = load("record-2.bin", &bytes);
	int compressed = 0;

	(void)state;
	assert_non_null(rec);
	assert_int_equal(vm_record_read(data, bytes, rec), 0);
	assert_int_equal(rec->n_blocks, 1);
	assert_int_equal(rec->blocks[0].bytes, 2 << 20);
	assert_string_equal(rec->blocks[0].table, "table:0");
	assert_int_equal(rec->units, 512);
	assert_int_equal(rec->n_order, 1);
	for (unsigned int t = 1; t < PE_TIERS; t++)
		compressed += strcmp(rec->tiers[t].backend, "compressed") == 0;
	assert_int_equal(compressed, 1);
	assert_string_equal(rec->tiers[rec->order[0]].backend, "compressed");
	free(rec);
	free(data);
}

static void test_table_1(void **state)
{
	unsigned int n[PE_STATES] = {0}, evicted = 0;
	struct page_table pt;
	size_t bytes;
	void *data = load("table-1.bin", &bytes);

	(void)state;
	assert_int_equal(page_table_open(&pt, data, bytes), 0);
	assert_int_equal(pt.units, 512);
	for (uint64_t u = 0; u < pt.units; u++) {
		uint64_t e = page_table_get(&pt, u);

		assert_true(page_entry_sound(e, page_table_away(&pt, u), u + 1));
		n[page_entry_state(e)]++;
		evicted += page_entry_state(e) == PE_EVICTED && page_entry_tier(e) == 1;
	}
	assert_int_equal(n[PE_EVICTED] + n[PE_RESIDENT], 512);
	assert_int_equal(evicted, n[PE_EVICTED]);
	assert_in_range(evicted, 256, 511);
	free(data);
}

/* With sums. */
static void test_table_2(void **state)
{
	unsigned int evicted = 0;
	struct page_table pt;
	size_t bytes;
	void *data = load("table-2.bin", &bytes);

	(void)state;
	assert_int_equal(page_table_open(&pt, data, bytes), 0);
	assert_int_equal(pt.units, 256);
	assert_true(page_table_sum_fits(&pt, 0));
	for (uint64_t u = 0; u < pt.units; u++) {
		uint64_t e = page_table_get(&pt, u);

		assert_true(page_entry_sound(e, page_table_away(&pt, u), u + 1));
		evicted += page_entry_state(e) == PE_EVICTED && page_entry_tier(e) == 1;
	}
	assert_in_range(evicted, 64, 128);
	/* Not by chance: one bit less, and they do not. */
	for (uint64_t u = 0; u < pt.units; u++)
		if (page_table_away(&pt, u)) {
			pt.away[u / 64] &= ~(UINT64_C(1) << u % 64);
			break;
		}
	assert_false(page_table_sum_fits(&pt, 0));
	((char *)data)[7]++; /* of version 3 */
	assert_int_equal(page_table_open(&pt, data, bytes), -EUCLEAN);
	free(data);
}

int main(void)
{
	static const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_record_2),
		cmocka_unit_test(test_table_1),
		cmocka_unit_test(test_table_2),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
