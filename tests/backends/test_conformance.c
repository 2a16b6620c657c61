/* SPDX-License-Identifier: BSD-3-Clause */
/* test_conformance.c: what every backend must do. Arguments: driver [option=value ...]. */
#include <dirent.h>
#include <errno.h>
#include <malloc.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "backends/harness.h"

static const char *driver;
static const char *const *options;
static uint32_t n_options;

static int setup(void **state)
{
	struct rig *r = malloc(sizeof(*r));

	rig_open(r, driver, options, n_options);
	*state = r;
	return 0;
}

static int teardown(void **state)
{
	rig_close(*state);
	free(*state);
	return 0;
}

static void assert_empty(struct rig *r)
{
	struct ebb_usage u;

	backend_usage(r->b, r->s, &u);
	assert_int_equal(u.objects, 0);
	assert_int_equal(u.logical_bytes, 0);
	assert_int_equal(u.stored_bytes, 0);
	assert_int_equal(u.footprint_bytes, u.overhead_bytes);
}

/* Stores, loads twice, compares, frees. */
static void roundtrip(struct rig *r, uint32_t len, unsigned int permille, uint32_t flags)
{
	uint8_t *in = buffer_new(), *out = buffer_new();
	uint64_t handle;

	fill(in, len, len + permille, permille);
	assert_int_equal(do_store(r->c, r->s, flags, in, len, &handle), 0);
	for (int i = 0; i < 2; i++) {
		memset(out, 0xa5, UNIT_MAX);
		assert_int_equal(do_load(r->c, r->s, handle, out, len), 0);
		assert_memory_equal(in, out, len);
		/* And nothing behind it was written. */
		for (uint32_t j = len; j < UNIT_MAX; j += 64)
			assert_int_equal(out[j], 0xa5);
	}
	backend_free(r->c, r->s, &handle, 1);
	free(in);
	free(out);
}

static void every_length(void **state)
{
	for (uint32_t len = 4096; len <= UNIT_MAX; len *= 2)
		roundtrip(*state, len, 400, 0);
	assert_empty(*state);
}

static void every_length_incompressible(void **state)
{
	for (uint32_t len = 4096; len <= UNIT_MAX; len *= 2) {
		roundtrip(*state, len, 1000, 0);
		roundtrip(*state, len, 1000, EBB_IO_NOCOMPRESS);
	}
	assert_empty(*state);
}

static void every_compressibility(void **state)
{
	for (unsigned int permille = 0; permille <= 1000;
	     permille += getenv("EBB_LAB_GUEST") ? 50 : 5)
		roundtrip(*state, 4096, permille, 0);
	for (unsigned int permille = 0; permille <= 1000; permille += 50)
		roundtrip(*state, 65536, permille, permille == 500 ? EBB_IO_NOCOMPRESS : 0);
	assert_empty(*state);
}

static void zeroes(void **state)
{
	for (uint32_t len = 4096; len <= UNIT_MAX; len *= 2)
		roundtrip(*state, len, 0, 0);
	assert_empty(*state);
}

static void usage_adds_up(void **state)
{
	struct rig *r = *state;
	struct ebb_usage u;
	void *buf = buffer_new();
	uint64_t h[3];

	fill(buf, UNIT_MAX, 1, 400);
	assert_int_equal(do_store(r->c, r->s, 0, buf, 4096, &h[0]), 0);
	assert_int_equal(do_store(r->c, r->s, 0, buf, 65536, &h[1]), 0);
	assert_int_equal(do_store(r->c, r->s, 0, buf, UNIT_MAX, &h[2]), 0);
	backend_usage(r->b, r->s, &u);
	assert_int_equal(u.objects, 3);
	assert_int_equal(u.logical_bytes, 4096 + 65536 + UNIT_MAX);
	assert_true(u.stored_bytes > 0);
	assert_true(u.footprint_bytes > u.stored_bytes);
	assert_int_equal(u.footprint_bytes, u.stored_bytes + u.overhead_bytes);
	backend_free(r->c, r->s, h, 3);
	assert_empty(r);
	free(buf);
}

static void wrong_lengths_are_refused(void **state)
{
	struct rig *r = *state;
	void *buf = buffer_new();
	uint64_t h, big;

	fill(buf, UNIT_MAX, 1, 400);
	assert_int_equal(do_store(r->c, r->s, 0, buf, 8192, &h), 0);
	assert_int_equal(do_store(r->c, r->s, 0, buf, UNIT_MAX, &big), 0);
	assert_int_equal(do_load(r->c, r->s, h, buf, 4096), -EINVAL);
	assert_int_equal(do_load(r->c, r->s, h, buf, 16384), -EINVAL);
	assert_int_equal(do_load(r->c, r->s, big, buf, 65536), -EINVAL);
	assert_int_equal(do_load(r->c, r->s, h, buf, 8192), 0);
	backend_free(r->c, r->s, &h, 1);
	backend_free(r->c, r->s, &big, 1);
	assert_empty(r);
	free(buf);
}

static void a_freed_handle_is_dead(void **state)
{
	struct rig *r = *state;
	void *buf = buffer_new();
	uint64_t old, new;

	for (uint32_t len = 4096; len <= UNIT_MAX; len *= 8) {
		fill(buf, len, 1, 400);
		assert_int_equal(do_store(r->c, r->s, 0, buf, len, &old), 0);
		backend_free(r->c, r->s, &old, 1);
		assert_int_equal(do_load(r->c, r->s, old, buf, len), -EINVAL);
		/* The place is used again, the handle is not. */
		fill(buf, len, 2, 400);
		assert_int_equal(do_store(r->c, r->s, 0, buf, len, &new), 0);
		assert_int_not_equal(old, new);
		backend_free(r->c, r->s, &old, 1);
		assert_int_equal(do_load(r->c, r->s, new, buf, len), 0);
		backend_free(r->c, r->s, &new, 1);
		backend_free(r->c, r->s, &new, 1);
		assert_empty(r);
	}
	free(buf);
}

static void garbage_handles_are_refused(void **state)
{
	struct rig *r = *state;
	void *buf = buffer_new();
	uint64_t h[64], seed = 7;
	unsigned int accepted = 0;

	for (int i = 0; i < 64; i++) {
		fill(buf, 4096, (uint64_t)i, 400);
		assert_int_equal(do_store(r->c, r->s, 0, buf, 4096, &h[i]), 0);
	}
	for (int i = 0; i < (getenv("EBB_LAB_GUEST") ? 2000 : 20000); i++) {
		uint64_t garbage = next_random(&seed) >> (next_random(&seed) % 64);

		/* A live handle hit by chance is a load like any other, and rare. */
		accepted += do_load(r->c, r->s, garbage, buf, 4096) == 0;
	}
	assert_in_range(accepted, 0, 20);
	assert_int_equal(do_load(r->c, r->s, h[0] | UINT64_C(1) << 48, buf, 4096), -EINVAL);
	assert_int_equal(do_load(r->c, r->s, UINT64_MAX, buf, 4096), -EINVAL);
	for (int i = 0; i < 1000; i++) {
		uint64_t garbage = next_random(&seed) | UINT64_C(1) << 47;

		backend_free(r->c, r->s, &garbage, 1);
	}
	backend_free(r->c, r->s, h, 64);
	assert_empty(r);
	free(buf);
}

static void unknown_operations_are_refused(void **state)
{
	struct rig *r = *state;
	struct ebb_io io, *p = &io, *back;
	void *buf = buffer_new();

	backend_io_prepare(&io, 77, 0, r->s, 0, buf, 4096, 0);
	while (backend_submit(r->c, &p, 1) == 0)
		;
	if (!(backend_caps(r->b) & EBB_BACKEND_SYNC))
		assert_int_equal(wait_some(r->c, &back, 1), 1);
	assert_int_equal(io.result, -EINVAL);
	free(buf);
}

/* A batch larger than the queue: taken in parts, all of it completes, each once. */
static void batches(void **state)
{
	enum { N = 300 };
	struct rig *r = *state;
	struct ebb_io ios[N], *list[N], *back[N];
	uint8_t *bufs = aligned_alloc(4096, N * 4096), *out = buffer_new();
	uint64_t handles[N];
	uint32_t sent = 0, done = 0, seen[N] = {0};

	for (uint32_t i = 0; i < N; i++) {
		fill(bufs + i * 4096, 4096, i, 300);
		backend_io_prepare(&ios[i], EBB_IO_STORE, 0, r->s, 0, bufs + i * 4096, 4096, i);
		list[i] = &ios[i];
	}
	while (done < N) {
		int taken = sent < N ? backend_submit(r->c, list + sent, N - sent) : 0;

		if (backend_caps(r->b) & EBB_BACKEND_SYNC) {
			assert_int_equal(taken, N);
			break;
		}
		sent += (uint32_t)taken;
		if (done == sent)
			continue;
		for (uint32_t n = wait_some(r->c, back, N); n-- > 0; done++) {
			assert_int_equal(back[n]->result, 0);
			seen[back[n]->user]++;
		}
		for (uint32_t i = 0; i < N; i++)
			assert_true(seen[i] <= 1);
	}
	for (uint32_t i = 0; i < N; i++) {
		handles[i] = ios[i].handle;
		assert_int_equal(do_load(r->c, r->s, handles[i], out, 4096), 0);
		assert_memory_equal(out, bufs + i * 4096, 4096);
	}
	backend_free(r->c, r->s, handles, N);
	assert_empty(r);
	free(bufs);
	free(out);
}

static void spaces_are_apart(void **state)
{
	struct rig *r = *state;
	struct kept kept = KEPT_NONE;
	struct backend_space *other = rig_space(r, &kept);
	void *buf = buffer_new();
	uint64_t h[50];
	uint64_t theirs;
	struct ebb_usage u;

	for (int i = 0; i < 50; i++) {
		fill(buf, 4096, (uint64_t)i, 400);
		assert_int_equal(do_store(r->c, r->s, 0, buf, 4096, &h[i]), 0);
	}
	/* The other space has something itself, and its own counts. */
	assert_int_equal(do_store(r->c, other, 0, buf, 65536, &theirs), 0);
	backend_usage(r->b, other, &u);
	assert_int_equal(u.objects, 1);
	for (int i = 0; i < 50; i++)
		assert_int_equal(do_load(r->c, other, h[i], buf, 4096), -EINVAL);
	backend_free(r->c, other, &theirs, 1);
	backend_space_close(other);
	kept_release(&kept);
	/* And it closes without harm to us. */
	for (int i = 0; i < 50; i++)
		assert_int_equal(do_load(r->c, r->s, h[i], buf, 4096), 0);
	backend_free(r->c, r->s, h, 50);
	assert_empty(r);
	free(buf);
}

/* ---- what overtakes what ---- */

enum { BEHIND = 128, BEHIND_BYTES = 256 << 10 };

/* I/Os that nobody waits for, and a load that somebody does, which comes after all of them. */
struct traffic {
	struct rig *r;
	struct backend_channel *back, *front; /* may be the same */
	struct ebb_io ios[BEHIND], demand;
	uint64_t handle[BEHIND], wanted;
	uint32_t n, under_way; /* of ios: given to the backend, and not given back */
	uint8_t *bufs, *page;
	bool stores;
};

/* The backend inject can be held, so that what comes when is not left to the clock. */
static bool hold(struct rig *r, const char *value)
{
	const struct ebb_option opt = {"stuck", value};
	struct error e;

	return backend_config(r->b, &opt, &e) == 0;
}

static void traffic_open(struct traffic *t, struct rig *r, bool stores, bool apart)
{
	*t = (struct traffic){.r = r, .stores = stores, .page = buffer_new()};
	/* A guest of the lab: few, because copying takes it long. */
	t->n = getenv("EBB_LAB_GUEST") ? BEHIND / 4 : BEHIND;
	t->bufs = aligned_alloc(4096, (size_t)t->n * BEHIND_BYTES);
	assert_non_null(t->bufs);
	assert_int_equal(backend_channel_open(r->b, NULL, 0, 2 * BEHIND, &t->back), 0);
	t->front = apart ? rig_channel(r) : t->back;
	for (uint32_t i = 0; i < t->n; i++) {
		fill(t->bufs + (size_t)i * BEHIND_BYTES, BEHIND_BYTES, i + 1, 900);
		if (!stores)
			assert_int_equal(do_store(r->c, r->s, 0, t->bufs + (size_t)i * BEHIND_BYTES,
						  BEHIND_BYTES, &t->handle[i]),
					 0);
	}
	fill(t->page, 4096, 99, 900);
	assert_int_equal(do_store(r->c, r->s, 0, t->page, 4096, &t->wanted), 0);
}

static void traffic_close(struct traffic *t)
{
	if (t->front != t->back)
		backend_channel_close(t->front);
	backend_channel_close(t->back);
	backend_free(t->r->c, t->r->s, t->handle, t->stores ? 0 : t->n);
	backend_free(t->r->c, t->r->s, &t->wanted, 1);
	free(t->bufs);
	free(t->page);
}

/* One I/O that nobody waits for has come back. */
static void traffic_back(struct traffic *t, struct ebb_io *io)
{
	uint64_t i = (uint64_t)(io - t->ios);

	assert_true(i < t->n);
	assert_int_equal(io->result, 0);
	t->under_way--;
	if (t->stores)
		t->handle[i] = io->handle;
}

/* Gives the backend as many as it takes, at least half; none is taken back meanwhile. */
static void traffic_start(struct traffic *t)
{
	struct ebb_io *list[BEHIND];
	uint32_t in_vain = 0;

	for (uint32_t i = 0; i < t->n; i++) {
		backend_io_prepare(&t->ios[i], t->stores ? EBB_IO_STORE : EBB_IO_LOAD,
				   t->stores ? EBB_IO_BACKGROUND : EBB_IO_PREFETCH, t->r->s,
				   t->stores ? 0 : t->handle[i], t->bufs + (size_t)i * BEHIND_BYTES,
				   BEHIND_BYTES, 0);
		list[i] = &t->ios[i];
	}
	t->under_way = 0;
	/* It may wait for something of its own meanwhile (a segment, a donor's memory). */
	while (t->under_way < t->n / 2 || (t->under_way < t->n && in_vain < 100)) {
		int taken = backend_submit(t->back, list + t->under_way, t->n - t->under_way);

		t->under_way += (uint32_t)taken;
		in_vain = taken ? 0 : in_vain + 1;
		if (!taken)
			poll(NULL, 0, 1);
	}
}

static void demand_start(struct traffic *t)
{
	struct ebb_io *io = &t->demand;

	memset(t->page, 0, 4096);
	backend_io_prepare(io, EBB_IO_LOAD, EBB_IO_DEMAND, t->r->s, t->wanted, t->page, 4096, 0);
	while (backend_submit(t->front, &io, 1) != 1)
		;
}

static void demand_check(struct traffic *t)
{
	uint8_t *want = buffer_new();

	assert_int_equal(t->demand.result, 0);
	fill(want, 4096, 99, 900);
	assert_memory_equal(t->page, want, 4096);
	free(want);
}

/* What is yet under way, and all of it is right. */
static void traffic_end(struct traffic *t, uint32_t sent)
{
	struct ebb_io *done[BEHIND];
	uint8_t *want = buffer_new();

	while (t->under_way)
		for (uint32_t n = wait_some(t->back, done, BEHIND); n-- > 0;)
			traffic_back(t, done[n]);
	for (uint32_t i = 0; i < sent; i += 16) {
		fill(want, BEHIND_BYTES, i + 1, 900);
		assert_memory_equal(t->bufs + (size_t)i * BEHIND_BYTES, want, BEHIND_BYTES);
	}
	if (t->stores)
		backend_free(t->r->c, t->r->s, t->handle, sent);
	free(want);
}

/*
 * True when the demanded load is done before half of what was under way when it began. Counted, not
 * timed: what is at a device already is ahead for good, but a backend sends only so much there.
 */
static bool overtakes(struct traffic *t)
{
	struct ebb_io *done[BEHIND];
	bool held = hold(t->r, "1");
	uint32_t sent, before = 0;

	traffic_start(t);
	sent = t->under_way;
	demand_start(t);
	if (held) {
		poll(NULL, 0, 2); /* all delays are over: only the order is left */
		hold(t->r, "0");
	}
	for (;;) {
		assert_int_equal(wait_some(t->front, done, 1), 1);
		if (done[0] == &t->demand)
			break;
		traffic_back(t, done[0]);
		before++;
	}
	demand_check(t);
	if (t->front != t->back) {
		before = (uint32_t)backend_poll(t->back, done, t->n);
		for (uint32_t i = 0; i < before; i++)
			traffic_back(t, done[i]);
	}
	traffic_end(t, sent);
	if (getenv("EBB_TEST_VERBOSE"))
		print_message("%u of %u before the demanded load\n", before, sent);
	return before < sent / 2;
}

/* A disk may answer a single one late for reasons of its own: one of a few rounds must do. */
static void overtaking(struct rig *r, bool stores, bool apart)
{
	struct traffic t;
	bool good = false;

	if (backend_caps(r->b) & EBB_BACKEND_SYNC)
		return; /* complete when it was submitted: there is nothing to overtake */
	traffic_open(&t, r, stores, apart);
	for (int i = 0; i < 5 && !good; i++)
		good = overtakes(&t);
	traffic_close(&t);
	assert_true(good);
	assert_empty(r);
}

static void demand_overtakes_prefetch(void **state)
{
	overtaking(*state, false, false);
}

static void demand_overtakes_stores(void **state)
{
	overtaking(*state, true, false);
}

/*
 * The same from another thread's channel, where a device works for all of them by itself, whether
 * or not somebody polls.
 */
static void demand_overtakes_other_channels(void **state)
{
	struct rig *r = *state;

	if (!(backend_caps(r->b) & EBB_BACKEND_REGISTERED_BUFFERS))
		return;
	overtaking(r, false, true);
	overtaking(r, true, true);
}

/* A second batch of stores is taken while the first is on its way, so that the thread which made
 * it goes on to compress, or to punch. */
static void batches_overlap(void **state)
{
	enum { BATCH = 16 };
	struct rig *r = *state;
	struct ebb_io ios[2 * BATCH], *list[2 * BATCH], *done[2 * BATCH];
	uint8_t *bufs = aligned_alloc(4096, (size_t)2 * BATCH * 4096), *out = buffer_new();
	uint64_t handles[2 * BATCH];
	bool held = hold(r, "1");

	for (uint32_t i = 0; i < 2 * BATCH; i++) {
		fill(bufs + (size_t)i * 4096, 4096, i, 300);
		backend_io_prepare(&ios[i], EBB_IO_STORE, 0, r->s, 0, bufs + (size_t)i * 4096, 4096,
				   i);
		list[i] = &ios[i];
	}
	for (uint32_t sent = 0, tries = 0; sent < 2 * BATCH; tries++) {
		uint32_t end = sent < BATCH ? BATCH : 2 * BATCH;

		sent += (uint32_t)backend_submit(r->c, list + sent, end - sent);
		assert_true(tries < 60000);
		if (tries > BATCH)
			poll(NULL, 0, 1);
	}
	if (held)
		hold(r, "0");
	for (uint32_t n = 0; n < 2 * BATCH && !(backend_caps(r->b) & EBB_BACKEND_SYNC);)
		n += wait_some(r->c, done, 2 * BATCH);
	for (uint32_t i = 0; i < 2 * BATCH; i++) {
		assert_int_equal(ios[i].result, 0);
		handles[i] = ios[i].handle;
		assert_int_equal(do_load(r->c, r->s, handles[i], out, 4096), 0);
		assert_memory_equal(out, bufs + (size_t)i * 4096, 4096);
	}
	backend_free(r->c, r->s, handles, 2 * BATCH);
	assert_empty(r);
	free(bufs);
	free(out);
}

/* ---- many threads ---- */

struct worker {
	struct rig *r;
	struct backend_channel *c;
	uint64_t seed;
	pthread_t thread;
	unsigned int wrong;
};

static void *work(void *arg)
{
	enum { LIVE = 400, ROUNDS_MAX = 6000 };
	/* A lab guest takes ten to twenty times as long. */
	const uint32_t rounds = getenv("EBB_LAB_GUEST") ? ROUNDS_MAX / 10 : ROUNDS_MAX;
	struct worker *w = arg;
	uint64_t handle[LIVE], seed[LIVE] = {0}, state = w->seed;
	uint32_t order[LIVE];
	uint8_t *buf = aligned_alloc(4096, UNIT_MAX), *want = aligned_alloc(4096, UNIT_MAX);

	for (uint32_t i = 0; i < rounds + LIVE; i++) {
		uint32_t at = (uint32_t)(i < rounds ? next_random(&state) % LIVE : i - rounds);

		if (seed[at]) {
			uint32_t len = 4096u << order[at];

			fill(want, len, seed[at], guest_permille(seed[at]));
			if (do_load(w->c, w->r->s, handle[at], buf, len) || memcmp(buf, want, len))
				w->wrong++;
			if (next_random(&state) % 4 && i < rounds)
				continue;
			backend_free(w->c, w->r->s, &handle[at], 1);
			seed[at] = 0;
		} else if (i < rounds) {
			uint64_t draw = next_random(&state);

			order[at] = draw % 16 ? 0 : (uint32_t)(draw >> 8) % 7;
			seed[at] = draw | 1;
			fill(buf, 4096u << order[at], seed[at], guest_permille(seed[at]));
			if (do_store(w->c, w->r->s, 0, buf, 4096u << order[at], &handle[at]))
				w->wrong++;
		}
	}
	free(buf);
	free(want);
	return NULL;
}

/* Four threads, their own objects each, while idle-time work goes on beside them. */
static void threads(void **state)
{
	enum { THREADS = 4 };
	struct rig *r = *state;
	struct worker w[THREADS];

	for (int i = 0; i < THREADS; i++) {
		w[i] = (struct worker){.r = r, .c = rig_channel(r), .seed = (uint64_t)i + 1};
		assert_int_equal(pthread_create(&w[i].thread, NULL, work, &w[i]), 0);
	}
	for (int i = 0; i < THREADS; i++) {
		while (pthread_tryjoin_np(w[i].thread, NULL) == EBUSY)
			backend_maintain(r->s, 500);
		assert_int_equal(w[i].wrong, 0);
		backend_channel_close(w[i].c);
	}
	assert_empty(r);
}

/* ---- leaks ---- */

static unsigned int open_fds(void)
{
	DIR *d = opendir("/proc/self/fd");
	unsigned int n = 0;

	assert_non_null(d);
	while (readdir(d))
		n++;
	closedir(d);
	return n;
}

static unsigned int mappings(void)
{
	FILE *f = fopen("/proc/self/maps", "r");
	unsigned int n = 0;
	int c;

	assert_non_null(f);
	while ((c = getc(f)) != EOF)
		n += c == '\n';
	fclose(f);
	return n;
}

/* Opened, used and closed with objects still in it, again and again, nothing piles up. */
static void closing_leaves_nothing(void **state)
{
	unsigned int fds = 0, maps = 0;
	size_t heap = 0;
	void *buf = buffer_new();

	fill(buf, UNIT_MAX, 1, 400);
	for (int i = 0; i < 12; i++) {
		struct rig r;
		uint64_t h;

		rig_open(&r, driver, options, n_options);
		for (int j = 0; j < 20; j++)
			assert_int_equal(do_store(r.c, r.s, 0, buf, 4096u << j % 10, &h), 0);
		rig_close(&r);
		if (i == 4) {
			fds = open_fds();
			maps = mappings();
			heap = mallinfo2().uordblks;
		}
	}
	assert_int_equal(open_fds(), fds);
	/* A sanitizer has a heap and mappings of its own (and finds leaks by itself). */
	if (!SANITIZED) {
		assert_in_range(mappings(), 0, maps + 1);
		/* What malloc keeps ready for its threads counts as in use. */
		assert_in_range(mallinfo2().uordblks, 0, heap + 16384);
	}
	free(buf);
}

static void unknown_options_are_refused(void **state)
{
	const char *opts[] = {"no-such-option=1"};
	struct error e;
	struct rig r;

	memset(&r, 0, sizeof(r));
	assert_int_equal(rig_backend(&r, driver, opts, 1, &e), -EINVAL);
	assert_non_null(strstr(e.desc, "no-such-option"));
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(every_length, setup, teardown),
		cmocka_unit_test_setup_teardown(every_length_incompressible, setup, teardown),
		cmocka_unit_test_setup_teardown(every_compressibility, setup, teardown),
		cmocka_unit_test_setup_teardown(zeroes, setup, teardown),
		cmocka_unit_test_setup_teardown(usage_adds_up, setup, teardown),
		cmocka_unit_test_setup_teardown(wrong_lengths_are_refused, setup, teardown),
		cmocka_unit_test_setup_teardown(a_freed_handle_is_dead, setup, teardown),
		cmocka_unit_test_setup_teardown(garbage_handles_are_refused, setup, teardown),
		cmocka_unit_test_setup_teardown(unknown_operations_are_refused, setup, teardown),
		cmocka_unit_test_setup_teardown(batches, setup, teardown),
		cmocka_unit_test_setup_teardown(batches_overlap, setup, teardown),
		cmocka_unit_test_setup_teardown(demand_overtakes_prefetch, setup, teardown),
		cmocka_unit_test_setup_teardown(demand_overtakes_stores, setup, teardown),
		cmocka_unit_test_setup_teardown(demand_overtakes_other_channels, setup, teardown),
		cmocka_unit_test_setup_teardown(spaces_are_apart, setup, teardown),
		cmocka_unit_test_setup_teardown(threads, setup, teardown),
		cmocka_unit_test(closing_leaves_nothing),
		cmocka_unit_test(unknown_options_are_refused),
	};

	if (argc < 2) {
		fprintf(stderr, "usage: %s DRIVER [OPTION=VALUE ...]\n", argv[0]);
		return 2;
	}
	driver = argv[1];
	options = (const char *const *)argv + 2;
	n_options = (uint32_t)argc - 2;
	return cmocka_run_group_tests(tests, NULL, NULL);
}
