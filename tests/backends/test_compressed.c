/* SPDX-License-Identifier: BSD-3-Clause */
/* test_compressed.c: the compressed store's own promises: overhead, bounds, memory given back. */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <unistd.h>

#include "backends/harness.h"

static struct ebb_usage usage_of(struct rig *r)
{
	struct ebb_usage u;

	backend_usage(r->b, r->s, &u);
	/* What is said to be taken is taken, and no more: the rest is the daemon's own memory. */
	assert_true(u.footprint_bytes >= kept_bytes(&r->kept));
	assert_true(u.footprint_bytes <= kept_bytes(&r->kept) + (2u << 20));
	return u;
}

static uint64_t stat_of(struct rig *r, const char *name)
{
	struct ebb_stat s[32];
	int n = backend_stats(r->b, s, 32);

	for (int i = 0; i < n; i++)
		if (strcmp(s[i].name, name) == 0)
			return s[i].value;
	fail_msg("no stat %s", name);
	return 0;
}

static void assert_overhead(struct rig *r, const char *when)
{
	struct ebb_usage u = usage_of(r);
	double percent = 100.0 * (double)u.overhead_bytes / (double)u.stored_bytes;

	print_message("%-38s %7.1f MB stored, overhead %5.2f %%\n", when,
		      (double)u.stored_bytes / 1e6, percent);
	if (percent > 8)
		fail_msg("%s: overhead %.2f %%", when, percent);
}

/* ---- overhead ---- */

static void overhead_of(uint32_t n, uint32_t len, unsigned int permille, const char *what)
{
	const uint32_t replaced = SANITIZED ? n / 4 : 3 * n;
	struct rig r;
	struct herd *h;
	char when[64];

	rig_open(&r, "compressed", NULL, 0);
	h = herd_new(&r, n, len, permille);
	for (uint32_t i = 0; i < n; i++)
		assert_int_equal(herd_store(h, i), 0);
	snprintf(when, sizeof(when), "%s, filled", what);
	assert_overhead(&r, when);
	/* Random replacement, three times over (less when that is slow), with idle-time work in
	 * between as in the daemon. */
	for (uint32_t i = 0; i < replaced; i++) {
		uint32_t at = (uint32_t)(next_random(&h->state) % n);

		herd_drop(h, at);
		assert_int_equal(herd_store(h, at), 0);
		if (i % 4096 == 0)
			backend_maintain(r.s, 2000);
	}
	maintain_all(r.s);
	snprintf(when, sizeof(when), "%s, replaced at random", what);
	assert_overhead(&r, when);
	herd_check(h, 7);
	/* Half of it goes. */
	for (uint32_t i = 0; i < n; i++)
		if (next_random(&h->state) % 2)
			herd_drop(h, i);
	maintain_all(r.s);
	snprintf(when, sizeof(when), "%s, half freed", what);
	assert_overhead(&r, when);
	herd_check(h, 3);
	herd_free(h);
	rig_close(&r);
}

static void overhead_of_pages(void **state)
{
	overhead_of(60000, 4096, 0, "4 KiB, guest mix");
	overhead_of(60000, 4096, 150, "4 KiB, all near 15 %");
	overhead_of(40000, 4096, 1000, "4 KiB, incompressible");
}

static void overhead_of_large_units(void **state)
{
	overhead_of(3000, 65536, 0, "64 KiB, guest mix");
	overhead_of(100, UNIT_MAX, 0, "2 MiB, guest mix");
}

/* ---- memory comes back ---- */

static void freed_memory_is_given_back_at_once(void **state)
{
	struct rig r;
	struct herd *h;
	uint64_t full;

	rig_open(&r, "compressed", NULL, 0);
	h = herd_new(&r, 40000, 4096, 0);
	for (uint32_t i = 0; i < h->n; i++)
		assert_int_equal(herd_store(h, i), 0);
	full = kept_bytes(&r.kept);
	assert_true(full > 40u << 20);
	for (uint32_t i = 0; i < h->n; i++)
		herd_drop(h, i);
	assert_true(kept_bytes(&r.kept) < full / 20);
	maintain_all(r.s);
	/* What it knew of its slabs stays, 1/400 of what was there at most. */
	assert_true(kept_bytes(&r.kept) <= (64u << 10) + full / 400);
	/* And it can be used again. */
	for (uint32_t i = 0; i < 1000; i++)
		assert_int_equal(herd_store(h, i), 0);
	herd_check(h, 1);
	herd_free(h);
	rig_close(&r);
}

static void compaction_shrinks_what_is_left(void **state)
{
	struct ebb_usage u;
	struct rig r;
	struct herd *h;

	rig_open(&r, "compressed", NULL, 0);
	h = herd_new(&r, 60000, 4096, 0);
	for (uint32_t i = 0; i < h->n; i++)
		assert_int_equal(herd_store(h, i), 0);
	for (uint32_t i = 0; i < h->n; i++)
		if (i % 8)
			herd_drop(h, i);
	/* One in eight is left in nearly every slab. */
	u = usage_of(&r);
	assert_true(u.footprint_bytes > 4 * u.stored_bytes);
	maintain_all(r.s);
	u = usage_of(&r);
	assert_true(u.footprint_bytes < u.stored_bytes + u.stored_bytes / 5);
	assert_true(stat_of(&r, "compaction-moved") > 1000);
	assert_true(stat_of(&r, "compaction-released") > 20u << 20);
	assert_false(backend_maintain(r.s, 1000));
	herd_check(h, 1);
	herd_free(h);
	rig_close(&r);
}

static void a_failing_trim_loses_no_account(void **state)
{
	struct ebb_usage before, after;
	struct rig r;
	struct herd *h;

	rig_open(&r, "compressed", NULL, 0);
	h = herd_new(&r, 10000, 4096, 0);
	r.kept.fail_trims = 50;
	for (int round = 0; round < 3; round++) {
		for (uint32_t i = 0; i < h->n; i++)
			assert_int_equal(herd_store(h, i), 0);
		before = usage_of(&r);
		for (uint32_t i = 0; i < h->n; i++)
			herd_drop(h, i);
		maintain_all(r.s);
		after = usage_of(&r);
		assert_true(after.footprint_bytes < before.footprint_bytes);
	}
	herd_free(h);
	rig_close(&r);
}

/* ---- bounds ---- */

/* Stores until there is no room; then what is there is whole, and freeing makes room again. */
static void fill_up(struct rig *r, uint32_t n, uint64_t most)
{
	struct herd *h = herd_new(r, n, 4096, 0);
	uint32_t stored = 0, again = 0;
	int err = 0;

	for (uint32_t i = 0; i < n; i++) {
		err = herd_store(h, i);
		assert_true(err == 0 || err == -ENOSPC);
		assert_true(kept_bytes(&r->kept) <= most);
		stored += !err;
	}
	assert_int_equal(err, -ENOSPC);
	assert_true(usage_of(r).stored_bytes > most * 8 / 10);
	/* A large object does not fit either, and leaves no piece behind. */
	fill(h->buf, UNIT_MAX, 1, 1000);
	assert_int_equal(do_store(r->c, r->s, 0, h->buf, UNIT_MAX, &h->handle[n - 1]), -ENOSPC);
	assert_int_equal(usage_of(r).objects, stored);
	assert_int_equal(usage_of(r).logical_bytes, stored * UINT64_C(4096));
	herd_check(h, 5);
	for (uint32_t i = 0; i < n; i += 2)
		herd_drop(h, i);
	maintain_all(r->s);
	for (uint32_t i = 0; i < n; i++)
		if (!h->seed[i])
			again += !herd_store(h, i);
	assert_true(again > stored / 3);
	assert_true(kept_bytes(&r->kept) <= most);
	herd_check(h, 5);
	assert_true(stat_of(r, "full") > 0);
	herd_free(h);
}

static void max_bytes_bounds_the_memory(void **state)
{
	const char *opts[] = {"max-bytes=16M"};
	struct ebb_usage u;
	struct rig r;

	rig_open(&r, "compressed", opts, 1);
	fill_up(&r, 20000, 16u << 20);
	backend_usage(r.b, NULL, &u);
	assert_int_equal(u.capacity_bytes, 16u << 20);
	rig_close(&r);
}

static void max_bytes_counts_all_spaces(void **state)
{
	const char *opts[] = {"max-bytes=4M"};
	struct kept kept = KEPT_NONE;
	struct backend_space *other;
	struct ebb_option more = {"max-bytes", "8M"};
	struct error e;
	struct rig r;
	struct herd *h;
	uint64_t handle;
	int err = 0;

	rig_open(&r, "compressed", opts, 1);
	other = rig_space(&r, &kept);
	h = herd_new(&r, 5000, 4096, 1000);
	for (uint32_t i = 0; i < h->n && !err; i++)
		err = herd_store(h, i);
	assert_int_equal(err, -ENOSPC);
	assert_int_equal(do_store(r.c, other, 0, h->buf, 4096, &handle), -ENOSPC);
	assert_int_equal(backend_config(r.b, &more, &e), 0);
	assert_int_equal(do_store(r.c, other, 0, h->buf, 4096, &handle), 0);
	/* A space that is closed gives its share back. */
	backend_space_close(other);
	kept_release(&kept);
	herd_free(h);
	rig_close(&r);
}

/* The memory itself is full before any bound of ours: no signal, an error. */
static void full_memory_is_an_error(void **state)
{
	char dir[] = "/tmp/ebb-full-XXXXXX", file[64];
	struct rig r;

	assert_non_null(mkdtemp(dir));
	if (unshare(CLONE_NEWNS) || mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) ||
	    mount("tmpfs", dir, "tmpfs", 0, "size=16M")) {
		rmdir(dir);
		print_message("needs root for a small tmpfs; runs in the gate's virtual machine\n");
		skip();
	}
	snprintf(file, sizeof(file), "%s/store", dir);
	memset(&r, 0, sizeof(r));
	assert_int_equal(rig_backend(&r, "compressed", NULL, 0, &(struct error){0}), 0);
	r.kept.fd = open(file, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	assert_true(r.kept.fd >= 0);
	r.s = rig_space(&r, &r.kept);
	r.c = rig_channel(&r);
	fill_up(&r, 20000, 16u << 20);
	rig_close(&r);
	assert_int_equal(umount(dir), 0);
	rmdir(dir);
}

/* ---- coding ---- */

static void incompressible_is_kept_plain(void **state)
{
	void *buf = buffer_new();
	struct rig r;
	uint64_t h[3];

	rig_open(&r, "compressed", NULL, 0);
	fill(buf, 4096, 1, 1000);
	assert_int_equal(do_store(r.c, r.s, 0, buf, 4096, &h[0]), 0);
	assert_int_equal(stat_of(&r, "stored-plain"), 1);
	fill(buf, 4096, 1, 300);
	assert_int_equal(do_store(r.c, r.s, EBB_IO_NOCOMPRESS, buf, 4096, &h[1]), 0);
	assert_int_equal(stat_of(&r, "stored-plain"), 2);
	assert_int_equal(usage_of(&r).stored_bytes, 8192);
	assert_int_equal(do_store(r.c, r.s, 0, buf, 4096, &h[2]), 0);
	assert_int_equal(stat_of(&r, "stored-plain"), 2);
	assert_true(usage_of(&r).stored_bytes < 8192 + 2048);
	rig_close(&r);
	free(buf);
}

static void codecs_change_while_in_use(void **state)
{
	static const struct ebb_option steps[] = {
		{"codec", "zstd"}, {"level", "5"}, {"codec", "lz4"}, {"level", "9"}};
	struct error e;
	struct rig r;
	struct herd *h;

	rig_open(&r, "compressed", NULL, 0);
	h = herd_new(&r, 500, 4096, 0);
	for (uint32_t i = 0; i < h->n; i++) {
		if (i % 100 == 99)
			assert_int_equal(backend_config(r.b, &steps[i / 100 % 4], &e), 0);
		assert_int_equal(herd_store(h, i), 0);
	}
	herd_check(h, 1);
	herd_free(h);
	rig_close(&r);
}

static void wrong_options_are_refused(void **state)
{
	static const char *const wrong[][2] = {
		{"codec=gzip", "codec=gzip"},  {"level=0", "codec=lz4"},
		{"level=1001", "codec=lz4"},   {"level=13", "codec=zstd"},
		{"level=-51", "codec=zstd"},   {"level=1x", "codec=lz4"},
		{"max-bytes=1Q", "codec=lz4"}, {"max-bytes=-1", "codec=lz4"},
		{"max-bytes=", "codec=lz4"},   {"max-bytes=99999999T", "codec=lz4"},
	};
	struct error e;
	struct rig r;

	for (unsigned int i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++) {
		memset(&r, 0, sizeof(r));
		assert_int_equal(rig_backend(&r, "compressed", wrong[i], i ? 2 : 1, &e), -EINVAL);
		assert_true(strlen(e.desc) > 10);
	}
}

/* ---- handles ---- */

static void handles_of_another_space_are_refused(void **state)
{
	struct kept kept = KEPT_NONE;
	struct backend_space *other;
	struct rig r;
	struct herd *h;

	rig_open(&r, "compressed", NULL, 0);
	other = rig_space(&r, &kept);
	h = herd_new(&r, 3000, 4096, 0);
	for (uint32_t i = 0; i < h->n; i++) {
		uint64_t theirs;

		assert_int_equal(herd_store(h, i), 0);
		assert_int_equal(do_store(r.c, other, 0, h->buf, 4096, &theirs), 0);
	}
	for (uint32_t i = 0; i < h->n; i++) {
		assert_int_equal(do_load(r.c, other, h->handle[i], h->buf, 4096), -EINVAL);
		backend_free(r.c, other, &h->handle[i], 1);
	}
	herd_check(h, 1);
	assert_int_equal(stat_of(&r, "bad-handles"), 2 * h->n);
	backend_space_close(other);
	kept_release(&kept);
	herd_free(h);
	rig_close(&r);
}

static void flipped_bits_are_refused(void **state)
{
	unsigned int accepted = 0;
	struct rig r;
	struct herd *h;

	rig_open(&r, "compressed", NULL, 0);
	h = herd_new(&r, 2000, 4096, 0);
	for (uint32_t i = 0; i < h->n; i++)
		assert_int_equal(herd_store(h, i), 0);
	for (uint32_t i = 0; i < h->n; i++)
		for (unsigned int bit = 0; bit < 48; bit++)
			accepted +=
				!do_load(r.c, r.s, h->handle[i] ^ UINT64_C(1) << bit, h->buf, 4096);
	/* 22,000 flips lead to a live entry, whose generation has 19 bits. */
	assert_in_range(accepted, 0, 3);
	herd_free(h);
	rig_close(&r);
}

/* Generations go on when the memory of the table was given back in between. */
static void handles_stay_dead_after_a_trim(void **state)
{
	unsigned int accepted = 0;
	uint64_t *old = calloc(5000, sizeof(*old));
	struct rig r;
	struct herd *h;

	rig_open(&r, "compressed", NULL, 0);
	h = herd_new(&r, 5000, 4096, 0);
	for (uint32_t i = 0; i < h->n; i++) {
		assert_int_equal(herd_store(h, i), 0);
		old[i] = h->handle[i];
	}
	for (uint32_t i = 0; i < h->n; i++)
		herd_drop(h, i);
	maintain_all(r.s);
	for (uint32_t i = 0; i < h->n; i++)
		assert_int_equal(herd_store(h, i), 0);
	for (uint32_t i = 0; i < h->n; i++)
		accepted += !do_load(r.c, r.s, old[i], h->buf, 4096);
	assert_in_range(accepted, 0, 1);
	free(old);
	herd_free(h);
	rig_close(&r);
}

/* ---- loads beside compaction ---- */

struct reader {
	struct herd *h;
	struct backend_channel *c;
	pthread_t thread;
	_Atomic bool stop;
	unsigned int wrong, loads;
};

static void *read_on(void *arg)
{
	struct reader *d = arg;
	uint8_t *buf = aligned_alloc(4096, 4096), *want = aligned_alloc(4096, 4096);
	uint64_t state = 99;

	while (!d->stop) {
		uint32_t i = (uint32_t)(next_random(&state) % d->h->n) / 8 * 8;

		herd_fill(d->h, want, d->h->seed[i]);
		if (do_load(d->c, d->h->r->s, d->h->handle[i], buf, 4096) ||
		    memcmp(buf, want, 4096))
			d->wrong++;
		d->loads++;
	}
	free(buf);
	free(want);
	return NULL;
}

/* Objects are read while they are moved, and the memory that they leave is used by others. */
static void objects_are_read_while_they_move(void **state)
{
	struct reader d = {0};
	struct rig r;
	struct herd *h;

	rig_open(&r, "compressed", NULL, 0);
	h = herd_new(&r, 16000, 4096, 0);
	for (uint32_t i = 0; i < h->n; i++)
		assert_int_equal(herd_store(h, i), 0);
	d.h = h;
	d.c = rig_channel(&r);
	assert_int_equal(pthread_create(&d.thread, NULL, read_on, &d), 0);
	for (int round = 0; round < (SANITIZED ? 4 : 12); round++) {
		/* Every eighth object stays as long as the reader runs. */
		for (uint32_t i = 0; i < h->n; i++)
			if (i % 8)
				herd_drop(h, i);
		while (backend_maintain(r.s, 200))
			;
		for (uint32_t i = 0; i < h->n; i++)
			if (i % 8)
				assert_int_equal(herd_store(h, i), 0);
	}
	d.stop = true;
	pthread_join(d.thread, NULL);
	assert_int_equal(d.wrong, 0);
	assert_true(d.loads > 100);
	assert_true(stat_of(&r, "compaction-moved") > 1000);
	assert_int_equal(stat_of(&r, "corrupt"), 0);
	herd_check(h, 1);
	backend_channel_close(d.c);
	herd_free(h);
	rig_close(&r);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(incompressible_is_kept_plain),
		cmocka_unit_test(codecs_change_while_in_use),
		cmocka_unit_test(wrong_options_are_refused),
		cmocka_unit_test(handles_of_another_space_are_refused),
		cmocka_unit_test(flipped_bits_are_refused),
		cmocka_unit_test(handles_stay_dead_after_a_trim),
		cmocka_unit_test(freed_memory_is_given_back_at_once),
		cmocka_unit_test(compaction_shrinks_what_is_left),
		cmocka_unit_test(a_failing_trim_loses_no_account),
		cmocka_unit_test(objects_are_read_while_they_move),
		cmocka_unit_test(max_bytes_bounds_the_memory),
		cmocka_unit_test(max_bytes_counts_all_spaces),
		cmocka_unit_test(overhead_of_pages),
		cmocka_unit_test(overhead_of_large_units),
		cmocka_unit_test(full_memory_is_an_error),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
