/* SPDX-License-Identifier: BSD-3-Clause */
/* test_trace.c: what is written to a trace is read from it, and nothing else is. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "ebb/policy.h"
#include "trace/trace.h"

#define UNITS 1000

static char path[] = "/tmp/ebb-trace.XXXXXX";
static int fd;

/* A trace with a record of each kind; returns the file's bytes. */
static long write_one(uint64_t max_bytes, bool *full)
{
	struct trace_writer *w = calloc(1, sizeof(*w));
	uint64_t touched[(UNITS + 63) / 64] = {0};
	long bytes;

	assert_int_equal(ftruncate(fd, 0), 0);
	assert_int_equal(lseek(fd, 0, SEEK_SET), 0);
	assert_int_equal(trace_begin(w, fd, UNITS, 4096, max_bytes), 0);
	trace_access(w, 5, 0, false);
	trace_access(w, 4, 0, true);
	trace_time(w, 300);
	trace_fault(w, UNITS - 1, 77, EBB_FAULT_LOADED | EBB_FAULT_WRITE);
	trace_access(w, UNITS, 77, true); /* no such unit: not written */
	trace_lost(w, 12);
	touched[0] = UINT64_C(0xf0) | UINT64_C(1) << 63;
	touched[1] = 3;
	touched[UNITS / 64] = UINT64_C(1) << (UNITS % 64 - 1);
	trace_window(w, touched);
	trace_access(w, 0, 77, false);
	assert_int_equal(trace_finish(w), 0);
	if (full)
		*full = w->full;
	free(w);
	bytes = lseek(fd, 0, SEEK_END);
	return bytes;
}

static void test_what_is_written_is_read(void **state)
{
	static const struct trace_record expected[] = {
		{TRACE_ACCESS, 5, 0, 0, 0},
		{TRACE_ACCESS, 4, 1, 0, 0},
		{TRACE_TIME, 0, 0, 0, 300},
		{TRACE_THREAD, 0, 0, 0, 77},
		{TRACE_FAULT, UNITS - 1, EBB_FAULT_LOADED | EBB_FAULT_WRITE, 77, 0},
		{TRACE_LOST, 0, 0, 0, 12},
		{TRACE_WINDOW, 0, 0, 0, 3},
		{TRACE_ACCESS, 0, 0, 77, 0},
	};
	static const uint64_t runs[][2] = {{4, 4}, {63, 3}, {UNITS - 1, 1}};
	struct trace_record r;
	struct trace t;
	struct error e;
	uint64_t first, count;

	write_one(0, NULL);
	assert_int_equal(trace_open(&t, path, &e), 0);
	assert_int_equal(t.units, UNITS);
	assert_int_equal(t.unit_bytes, 4096);
	for (size_t k = 0; k < sizeof(expected) / sizeof(expected[0]); k++) {
		assert_true(trace_next(&t, &r));
		assert_int_equal(r.kind, expected[k].kind);
		if (r.kind == TRACE_ACCESS || r.kind == TRACE_FAULT) {
			assert_int_equal(r.unit, expected[k].unit);
			assert_int_equal(r.flags, expected[k].flags);
			assert_int_equal(r.thread, expected[k].thread);
		} else {
			assert_int_equal(r.value,
					 expected[k].kind == TRACE_THREAD ? 77 : expected[k].value);
		}
		for (size_t i = 0; r.kind == TRACE_WINDOW && i < 3; i++) {
			assert_true(trace_window_run(&t, &first, &count));
			assert_int_equal(first, runs[i][0]);
			assert_int_equal(count, runs[i][1]);
		}
	}
	assert_false(trace_next(&t, &r));
	trace_close(&t);
}

static int open_bytes(const uint8_t *data, long bytes)
{
	struct trace t;
	struct error e = {0};
	int r;

	assert_int_equal(ftruncate(fd, 0), 0);
	assert_int_equal(pwrite(fd, data, (size_t)bytes, 0), bytes);
	r = trace_open(&t, path, &e);
	if (r)
		assert_true(e.desc[0] != '\0');
	else
		trace_close(&t);
	return r;
}

/* A file that was cut off, or lengthened, or that has one bit turned, is refused. */
static void test_damage_is_refused(void **state)
{
	uint8_t data[512];
	long bytes = write_one(0, NULL);

	assert_true(bytes < (long)sizeof(data));
	assert_int_equal(pread(fd, data, sizeof(data), 0), bytes);
	assert_int_equal(open_bytes(data, bytes), 0);
	for (long n = 0; n < bytes; n++)
		assert_int_not_equal(open_bytes(data, n), 0);
	data[bytes] = 0;
	assert_int_not_equal(open_bytes(data, bytes + 1), 0);
	for (long bit = 0; bit < bytes * 8; bit++) {
		/* The number of units may be another one, or its size: the header has no sum. */
		if (bit / 8 >= 16 && bit / 8 < 28)
			continue;
		data[bit / 8] ^= (uint8_t)(1 << (bit % 8));
		assert_int_not_equal(open_bytes(data, bytes), 0);
		data[bit / 8] ^= (uint8_t)(1 << (bit % 8));
	}
	/* But then the units that are named must still be there. */
	memset(data + 16, 0, 8);
	data[16] = 200;
	assert_int_not_equal(open_bytes(data, bytes), 0);
}

static void test_the_size_is_bounded(void **state)
{
	struct trace_writer *w = calloc(1, sizeof(*w));
	struct trace_record r;
	struct trace t;
	struct error e;
	uint64_t records = 0;

	assert_int_equal(ftruncate(fd, 0), 0);
	assert_int_equal(lseek(fd, 0, SEEK_SET), 0);
	assert_int_equal(trace_begin(w, fd, UNITS, 4096, 4096), 0);
	for (uint64_t k = 0; k < 100000; k++)
		trace_access(w, k * 7919 % UNITS, (uint32_t)(k / 100), false);
	assert_int_equal(trace_finish(w), 0);
	assert_true(w->full);
	assert_true(lseek(fd, 0, SEEK_END) <= 4096);
	assert_int_equal(trace_open(&t, path, &e), 0);
	while (trace_next(&t, &r)) {
		if (r.kind == TRACE_ACCESS)
			assert_int_equal(r.unit, records++ * 7919 % UNITS);
	}
	assert_true(records > 1000);
	trace_close(&t);
	free(w);
}

static int remove_file(void **state)
{
	close(fd);
	return unlink(path);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_what_is_written_is_read),
		cmocka_unit_test(test_damage_is_refused),
		cmocka_unit_test(test_the_size_is_bounded),
	};

	fd = mkstemp(path);
	return cmocka_run_group_tests(tests, NULL, remove_file);
}
