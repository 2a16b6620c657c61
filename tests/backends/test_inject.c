/* SPDX-License-Identifier: BSD-3-Clause */
/* test_inject.c: the backend that fails on request does fail, and only as requested. */
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "backends/harness.h"

static void set(struct rig *r, const char *name, const char *value)
{
	const struct ebb_option o = {name, value};
	struct error e;

	if (backend_config(r->b, &o, &e))
		fail_msg("%s", e.desc);
}

static void errors_at_their_rate(void **state)
{
	const char *opts[] = {"store-error=1/10", "store-errno=ENOSPC", "load-error=1/5", "seed=3"};
	unsigned int full = 0, lost = 0, stored = 0;
	void *buf = buffer_new();
	uint64_t h[2000];
	struct rig r;

	rig_open(&r, "inject", opts, 4);
	for (int i = 0; i < 2000; i++) {
		int err = do_store(r.c, r.s, 0, buf, 4096, &h[stored]);

		assert_true(err == 0 || err == -ENOSPC);
		full += err == -ENOSPC;
		stored += !err;
	}
	for (unsigned int i = 0; i < stored; i++) {
		int err = do_load(r.c, r.s, h[i], buf, 4096);

		assert_true(err == 0 || err == -EIO);
		lost += err == -EIO;
	}
	assert_in_range(full, 100, 320);
	assert_in_range(lost, 200, 600);
	/* An injected error loses nothing. */
	set(&r, "load-error", "0");
	for (unsigned int i = 0; i < stored; i++)
		assert_int_equal(do_load(r.c, r.s, h[i], buf, 4096), 0);
	backend_free(r.c, r.s, h, stored);
	rig_close(&r);
	free(buf);
}

/* Stores n pages without waiting. */
static void submit_n(struct rig *r, struct ebb_io *ios, uint32_t n, uint8_t *buf)
{
	struct ebb_io *list[64];
	uint32_t sent = 0;

	for (uint32_t i = 0; i < n; i++) {
		backend_io_prepare(&ios[i], EBB_IO_STORE, 0, r->s, 0, buf, 4096, i);
		list[i] = &ios[i];
	}
	while (sent < n)
		sent += (uint32_t)backend_submit(r->c, list + sent, n - sent);
}

static void delays_hold_back(void **state)
{
	const char *opts[] = {"delay-us=30000"};
	struct timespec before, after;
	struct ebb_io io, *back;
	void *buf = buffer_new();
	struct rig r;
	int64_t us;

	rig_open(&r, "inject", opts, 1);
	clock_gettime(CLOCK_MONOTONIC, &before);
	submit_n(&r, &io, 1, buf);
	assert_int_equal(backend_poll(r.c, &back, 1), 0);
	assert_int_equal(wait_some(r.c, &back, 1), 1);
	clock_gettime(CLOCK_MONOTONIC, &after);
	us = (after.tv_sec - before.tv_sec) * 1000000 + (after.tv_nsec - before.tv_nsec) / 1000;
	assert_true(us >= 30000);
	rig_close(&r);
	free(buf);
}

static void order_is_shuffled(void **state)
{
	const char *opts[] = {"reorder=1", "seed=5"};
	struct ebb_io ios[64], *back[64];
	void *buf = buffer_new();
	unsigned int out_of_order = 0;
	uint32_t n = 0;
	struct rig r;

	rig_open(&r, "inject", opts, 2);
	submit_n(&r, ios, 64, buf);
	while (n < 64)
		n += wait_some(r.c, back + n, 64 - n);
	for (int i = 1; i < 64; i++)
		out_of_order += back[i]->user < back[i - 1]->user;
	assert_in_range(out_of_order, 10, 60);
	rig_close(&r);
	free(buf);
}

static void submits_and_polls_fall_short(void **state)
{
	const char *opts[] = {"again=1/4", "partial=1/2", "few=1/2"};
	unsigned int nothing = 0, part = 0, single = 0;
	void *buf = buffer_new();
	struct rig r;

	rig_open(&r, "inject", opts, 3);
	for (int round = 0; round < 200; round++) {
		struct ebb_io ios[8], *list[8], *back[8];
		int taken, got, n = 0;

		for (uint32_t i = 0; i < 8; i++) {
			backend_io_prepare(&ios[i], EBB_IO_STORE, 0, r.s, 0, buf, 4096, i);
			list[i] = &ios[i];
		}
		taken = backend_submit(r.c, list, 8);
		nothing += taken == 0;
		part += taken > 0 && taken < 8;
		for (; n < taken; n += got) {
			got = (int)wait_some(r.c, back, 8);
			single += got == 1 && taken - n > 1;
		}
	}
	assert_in_range(nothing, 20, 90);
	assert_in_range(part, 40, 110);
	assert_in_range(single, 20, 800);
	rig_close(&r);
	free(buf);
}

static void stuck_until_released(void **state)
{
	const char *opts[] = {"stuck=1"};
	struct ebb_io ios[4], *back[4];
	void *buf = buffer_new();
	struct pollfd p = {.events = POLLIN};
	uint32_t n = 0;
	struct rig r;

	rig_open(&r, "inject", opts, 1);
	submit_n(&r, ios, 4, buf);
	p.fd = backend_event_fd(r.c);
	assert_int_equal(poll(&p, 1, 20), 0);
	assert_int_equal(backend_poll(r.c, back, 4), 0);
	set(&r, "stuck", "0");
	while (n < 4)
		n += wait_some(r.c, back + n, 4 - n);
	for (int i = 0; i < 4; i++)
		assert_int_equal(ios[i].result, 0);
	rig_close(&r);
	free(buf);
}

static void room_is_bounded(void **state)
{
	const char *opts[] = {"max-bytes=16384"};
	void *buf = buffer_new();
	uint64_t h[5];
	struct rig r;

	rig_open(&r, "inject", opts, 1);
	for (int i = 0; i < 4; i++)
		assert_int_equal(do_store(r.c, r.s, 0, buf, 4096, &h[i]), 0);
	assert_int_equal(do_store(r.c, r.s, 0, buf, 4096, &h[4]), -ENOSPC);
	backend_free(r.c, r.s, h, 1);
	assert_int_equal(do_store(r.c, r.s, 0, buf, 4096, &h[4]), 0);
	rig_close(&r);
	free(buf);
}

static void nonsense_is_refused(void **state)
{
	static const char *const wrong[] = {"store-error=2/3", "store-error=x",	  "delay-us=-1",
					    "delay-us=",       "load-errno=EFOO", "reorder=1x"};
	struct error e;
	struct rig r;

	for (unsigned int i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++) {
		memset(&r, 0, sizeof(r));
		assert_int_equal(rig_backend(&r, "inject", &wrong[i], 1, &e), -EINVAL);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(errors_at_their_rate),
		cmocka_unit_test(delays_hold_back),
		cmocka_unit_test(order_is_shuffled),
		cmocka_unit_test(submits_and_polls_fall_short),
		cmocka_unit_test(stuck_until_released),
		cmocka_unit_test(room_is_bounded),
		cmocka_unit_test(nonsense_is_refused),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
