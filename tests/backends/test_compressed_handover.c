/* SPDX-License-Identifier: BSD-3-Clause */
/* test_compressed_handover.c: a store goes from a living daemon to its successor, or does not.
 * [DRIVER [OPTION=VALUE...]]
 */
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "backends/harness.h"

#define OBJECTS	      6000
#define RUNNING_MAGIC UINT64_C(0x6e6e755262624531) /* as in running.c */

/* What a successor, a process of its own, does with the space. */
enum successor {
	LOOKS,	 /* opens it, reads everything, and dies before it was given it */
	GOES_ON, /* is given it, and uses it */
	RECOVERS /* as LOOKS, but cannot make use of what was left */
};

static const char *driver = "compressed";
static const char *const *options;
static uint32_t n_options;

static void shuffle(struct herd *h, uint32_t times)
{
	for (uint32_t i = 0; i < times; i++) {
		uint32_t at = (uint32_t)(next_random(&h->state) % h->n);

		herd_drop(h, at);
		if (i % 3)
			assert_int_equal(herd_store(h, at), 0);
		if (i % 1000 == 0)
			backend_maintain(h->r->s, 100);
	}
}

/* A store in the middle of things: sparse slabs, and a compaction that has begun. */
static struct herd *in_use(struct rig *r)
{
	struct herd *h;

	rig_open(r, driver, options, n_options);
	h = herd_new(r, OBJECTS, 4096, 0);
	for (uint32_t i = 0; i < h->n; i++)
		assert_int_equal(herd_store(h, i), 0);
	for (uint32_t i = 0; i < h->n; i++)
		if (i % 4)
			herd_drop(h, i);
	for (int i = 0; i < 3; i++)
		backend_maintain(r->s, 1);
	shuffle(h, 500);
	return h;
}

static void succeed(struct herd *h, enum successor what)
{
	struct ebb_usage before = {0}, now = {0};
	struct rig r = {0};
	struct error e;
	pid_t pid;
	int status;

	backend_usage(h->r->b, h->r->s, &before);
	pid = fork();
	assert_true(pid >= 0);
	if (pid == 0) {
		assert_int_equal(rig_backend(&r, driver, options, n_options, &e), 0);
		r.s = rig_space(&r, &h->r->kept);
		r.c = rig_channel(&r);
		h->r = &r;
		herd_check(h, 1);
		backend_usage(r.b, r.s, &now);
		assert_int_equal(now.objects, before.objects);
		assert_int_equal(now.stored_bytes, before.stored_bytes);
		/* Taken as it was left; recovering would have trimmed this and that. */
		if (what != RECOVERS)
			assert_int_equal(now.footprint_bytes, before.footprint_bytes);
		if (what == GOES_ON) {
			assert_int_equal(backend_resume(r.b), 0);
			shuffle(h, 20000);
			maintain_all(r.s);
			herd_check(h, 1);
		}
		_exit(0);
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_int_equal(status, 0);
}

static void successor_goes_on(void **state)
{
	struct rig r;
	struct herd *h = in_use(&r);

	assert_int_equal(backend_quiesce(r.b), 0);
	succeed(h, LOOKS); /* one that fails changes nothing for the next */
	succeed(h, GOES_ON);
	herd_free(h);
	rig_close(&r);
}

static void old_daemon_goes_on(void **state)
{
	struct rig r;
	struct herd *h = in_use(&r);

	for (int i = 0; i < 3; i++) {
		assert_int_equal(backend_quiesce(r.b), 0);
		if (i)
			succeed(h, LOOKS);
		assert_int_equal(backend_resume(r.b), 0);
		shuffle(h, 10000);
		maintain_all(r.s);
		herd_check(h, 1);
	}
	herd_free(h);
	rig_close(&r);
}

/* Changes one word of what was left, so that a successor takes it for another version's. */
static void spoil(const struct kept *k)
{
	const uint32_t other = 99;
	bool found = false;

	for (off_t at = 0; (at = lseek(k->fd, at, SEEK_DATA)) >= 0; at += 4096) {
		uint64_t word = 0;

		assert_int_equal(pread(k->fd, &word, sizeof(word), at), sizeof(word));
		if (word != RUNNING_MAGIC)
			continue;
		assert_int_equal(pwrite(k->fd, &other, sizeof(other), at + 8), sizeof(other));
		found = true;
	}
	assert_true(found);
}

static void successor_of_another_version(void **state)
{
	struct rig r;
	struct herd *h = in_use(&r);

	assert_int_equal(backend_quiesce(r.b), 0);
	spoil(&r.kept);
	succeed(h, RECOVERS);
	/* It has changed free entries under us. */
	assert_int_equal(backend_resume(r.b), 0);
	shuffle(h, 20000);
	maintain_all(r.s);
	herd_check(h, 1);
	herd_free(h);
	rig_close(&r);
}

/* What was left must not be believed once the daemon has gone on: it died later. */
static void mark_does_not_outlive_it(void **state)
{
	struct rig r;
	struct herd *h = in_use(&r);

	assert_int_equal(backend_quiesce(r.b), 0);
	assert_int_equal(backend_resume(r.b), 0);
	shuffle(h, 5000);
	succeed(h, RECOVERS);
	herd_free(h);
	rig_close(&r);
}

int main(int argc, char **argv)
{
	/* The last one has two daemons use it at a time, which a device does not allow. */
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(successor_goes_on),
		cmocka_unit_test(old_daemon_goes_on),
		cmocka_unit_test(successor_of_another_version),
		cmocka_unit_test(mark_does_not_outlive_it),
	};
	const struct CMUnitTest exclusive[] = {
		cmocka_unit_test(successor_goes_on),
		cmocka_unit_test(old_daemon_goes_on),
		cmocka_unit_test(successor_of_another_version),
	};

	if (argc < 2)
		return cmocka_run_group_tests(tests, NULL, NULL);
	driver = argv[1];
	options = (const char *const *)argv + 2;
	n_options = (uint32_t)argc - 2;
	return cmocka_run_group_tests(exclusive, NULL, NULL);
}
