/* SPDX-License-Identifier: BSD-3-Clause */
/* test_null.c: the backend that takes nothing. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "backends/harness.h"

static void takes_nothing(void **state)
{
	void *buf = buffer_new();
	struct ebb_usage u;
	struct rig r;
	uint64_t h = 0;

	rig_open(&r, "null", NULL, 0);
	for (uint32_t len = 4096; len <= UNIT_MAX; len *= 2)
		assert_int_equal(do_store(r.c, r.s, 0, buf, len, &h), -ENOSPC);
	assert_int_equal(do_load(r.c, r.s, h, buf, 4096), -EINVAL);
	backend_free(r.c, r.s, &h, 1);
	backend_usage(r.b, r.s, &u);
	assert_int_equal(u.objects, 0);
	assert_int_equal(u.footprint_bytes, 0);
	assert_false(backend_maintain(r.s, 10));
	rig_close(&r);
	free(buf);
}

static void takes_no_options(void **state)
{
	const char *opts[] = {"size=1"};
	struct error e;
	struct rig r;

	memset(&r, 0, sizeof(r));
	assert_int_equal(rig_backend(&r, "null", opts, 1, &e), -EINVAL);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(takes_nothing),
		cmocka_unit_test(takes_no_options),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
