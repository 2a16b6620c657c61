/* SPDX-License-Identifier: BSD-3-Clause */
/* test_watch.c: vm-heatmap and vm-wss show of a VM what it does: hot, cold, evicted, untouched. */
#include "engine/rig.h"

#include <err.h>
#include <jansson.h>
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"

/*
 * RAM in quarters: the first is used all the time, the second once before anybody looks, the third
 * is evicted, the fourth holds nothing. On a busy machine the thread that uses the first may miss a
 * window, and another CPU's batch may hold a page that cannot be dropped from the page tables; so a
 * picture is asked for until it shows exactly that, with 60 s against hanging.
 */

#define MIB	    ((size_t)1 << 20)
#define COLUMNS	    16
#define PATIENCE_NS (60 * NS_PER_S)

struct scene {
	struct rig *r;
	struct native_ram more; /* a second RAM block; bytes 0: there is none */
	char *quarter[4];
	size_t bytes, page; /* of a quarter; at what step it is touched */
	_Atomic bool stop, once;
	pthread_t thread;
};

static void touch(struct scene *s, unsigned int quarter)
{
	for (size_t at = 0; at < s->bytes; at += s->page)
		(void)*(volatile char *)(s->quarter[quarter] + at);
}

/* Uses the first quarter, and when told to the second one, once, as soon as a watch has begun. */
static void *use(void *arg)
{
	struct scene *s = arg;
	bool armed = false;

	while (!atomic_load(&s->stop)) {
		if (armed && !kt_present(0, s->quarter[0])) {
			touch(s, 1);
			armed = false;
		}
		touch(s, 0);
		armed |= atomic_exchange(&s->once, false);
		usleep(2000);
	}
	return NULL;
}

static json_t *ask(struct rig *r, const char *what)
{
	json_t *answer, *value;

	daemon_ask(&r->d, "%s", what);
	answer = json_loads(r->d.answer, 0, NULL);
	CHECK(answer);
	value = json_object_get(answer, "return");
	if (!value && strstr(r->d.answer, "\"Unsupported\""))
		SKIP("swap is on, so there is no tracker; runs in the lab");
	if (!value)
		errx(1, "%.300s", r->d.answer);
	json_incref(value);
	json_decref(answer);
	return value;
}

/* Puts the scene: all evicted, then the first two quarters read, the last one discarded. */
static void set_scene(struct scene *s, const char *last_block, uint64_t last_offset)
{
	struct rig *r = s->r;
	uint64_t end = clock_ns() + PATIENCE_NS;

	while (rig_number(r, "evicted-bytes") < 4 * s->bytes) {
		rig_reclaim(r, 4 * s->bytes);
		CHECK(clock_ns() < end);
		kt_settle();
	}
	CHECK_EQ(native_discard(r->vmm, last_block, last_offset, s->bytes), 0);
	touch(s, 0);
	touch(s, 1);
	kt_settle();
	CHECK(!pthread_create(&s->thread, NULL, use, s));
}

static void end_scene(struct scene *s)
{
	atomic_store(&s->stop, true);
	CHECK(!pthread_join(s->thread, NULL));
}

/* True when each column of that part of the rows is so many permille of `what`, in some row. */
static bool shows(const json_t *rows, const char *what, unsigned int quarter, json_int_t permille,
		  bool every_row)
{
	bool some = false, every = true;
	json_t *row;
	size_t i;

	json_array_foreach(rows, i, row) {
		bool all = true;

		for (size_t c = quarter * COLUMNS / 4; c < (quarter + 1) * COLUMNS / 4; c++)
			all &= json_integer_value(json_array_get(json_object_get(row, what), c)) ==
			       permille;
		some |= all;
		every &= all;
	}
	return every_row ? every : some;
}

static bool as_it_is(const json_t *map)
{
	static const char *const what[] = {"hot", "cold", "evicted"};
	const json_t *rows = json_object_get(map, "rows");
	bool right = shows(rows, "hot", 0, 1000, false);

	for (unsigned int k = 0; k < 3; k++)
		for (unsigned int quarter = 1; quarter < 4; quarter++)
			right &= shows(rows, what[k], quarter, k == quarter ? 1000 : 0, true);
	return right;
}

static void see(struct scene *s, unsigned int blocks)
{
	uint64_t end = clock_ns() + PATIENCE_NS;
	bool right = false;

	while (!right) {
		json_t *map = ask(s->r, "{\"execute\":\"vm-heatmap\",\"arguments\":{\"vm\":\"vm\","
					"\"seconds\":1,\"window-ms\":300,\"columns\":16}}");
		json_t *block = json_array_get(json_object_get(map, "blocks"), blocks - 1);

		CHECK_EQ(json_integer_value(json_object_get(map, "ram-bytes")), 4 * s->bytes);
		CHECK_EQ(json_array_size(json_object_get(map, "rows")), 3);
		CHECK_EQ(json_array_size(json_object_get(map, "blocks")), blocks);
		CHECK_EQ(json_integer_value(json_object_get(block, "bytes")),
			 4 * s->bytes / blocks);
		right = as_it_is(map);
		if (!right && clock_ns() > end)
			errx(1, "not what is done: %.4000s", s->r->d.answer);
		json_decref(map);
	}
	/* Looking has changed nothing. */
	CHECK_EQ(rig_number(s->r, "evicted-bytes"), s->bytes);
	CHECK_EQ(rig_number(s->r, "resident-bytes"), 2 * s->bytes);
}

/* All that is needed for the end's check of every tag. */
static void put_back(struct scene *s)
{
	for (size_t u = 0; u < s->r->units; u++)
		if (rig_unit(s->r, u) == s->quarter[3] ||
		    (rig_unit(s->r, u) > s->quarter[3] &&
		     rig_unit(s->r, u) < s->quarter[3] + s->bytes))
			rig_tag(s->r, u, 1);
	rig_check_all(s->r);
}

static void begin(struct scene *s, struct rig *r, size_t bytes, enum native_kind kind)
{
	rig_start(r, "", NULL);
	rig_attach(r, bytes, kind);
	s->r = r;
	s->bytes = bytes / 4;
	s->page = r->unit_bytes;
	for (unsigned int k = 0; k < 4; k++)
		s->quarter[k] = (char *)r->ram.addr + k * s->bytes;
	set_scene(s, "ram", 3 * s->bytes);
}

static void one_block(struct rig *r, size_t bytes, enum native_kind kind)
{
	struct scene s = {.r = r};

	begin(&s, r, bytes, kind);
	see(&s, 1);
	end_scene(&s);
	put_back(&s);
	rig_end(r);
}

/* Columns that are smaller than a unit. */
static void hugetlb(struct rig *r)
{
	kt_set_free_huge_pages(8);
	one_block(r, 8 * KT_HUGE, NATIVE_HUGETLB);
}

/* The upper half in a block of its own, of huge pages, plugged later. */
static void blocks(struct rig *r)
{
	struct scene s = {.r = r, .bytes = 2 * KT_HUGE, .page = KT_PAGE};

	rig_start(r, "", NULL);
	rig_attach(r, 2 * s.bytes, NATIVE_SHMEM);
	CHECK_EQ(native_ram_make(&s.more, "more", 2 * s.bytes, NATIVE_THP), 0);
	memset(s.more.addr, 7, s.more.bytes);
	kt_settle();
	CHECK_EQ(native_region_add(r->vmm, &s.more), 0);
	for (unsigned int k = 0; k < 4; k++)
		s.quarter[k] = (char *)(k < 2 ? r->ram.addr : s.more.addr) + k % 2 * s.bytes;
	set_scene(&s, "more", s.bytes);
	see(&s, 2);
	end_scene(&s);
	for (size_t at = 0; at < s.bytes; at++)
		CHECK(s.quarter[2][at] == 7 && s.quarter[3][at] == 0);
	rig_end(r);
	native_ram_free(&s.more);
}

/* What was used all the time is in every point; what was used once, at first, in the longest. */
static void curve(struct rig *r)
{
	struct scene s = {.r = r};
	uint64_t end = clock_ns() + PATIENCE_NS;
	bool right = false;

	begin(&s, r, 8 * MIB, NATIVE_SHMEM);
	while (!right) {
		json_int_t within[4] = {0}, accessed[4] = {0};
		json_t *wss, *points, *point;
		size_t i;

		atomic_store(&s.once, true);
		wss = ask(r, "{\"execute\":\"vm-wss\",\"arguments\":{\"vm\":\"vm\",\"seconds\":2,"
			     "\"window-ms\":300}}");
		points = json_object_get(wss, "curve");
		/* 1, 2, 4 and 6 windows. */
		CHECK_EQ(json_array_size(points), 4);
		json_array_foreach(points, i, point) {
			within[i] = json_integer_value(json_object_get(point, "within-ms"));
			accessed[i] = json_integer_value(json_object_get(point, "accessed-bytes"));
			CHECK(!i || (within[i] > within[i - 1] && accessed[i] >= accessed[i - 1]));
		}
		CHECK(within[0] >= 300 && within[3] >= 1800);
		right = accessed[0] == (json_int_t)s.bytes && accessed[1] == accessed[0] &&
			accessed[3] == 2 * (json_int_t)s.bytes;
		if (!right && clock_ns() > end)
			errx(1, "not what is done: %.4000s", r->d.answer);
		json_decref(wss);
	}
	end_scene(&s);
	put_back(&s);
	rig_end(r);
}

static const struct rig_case cases[] = {{"hugetlb", hugetlb}, {"blocks", blocks}, {"curve", curve}};

int main(int argc, char **argv)
{
	return rig_main(argc, argv, cases, sizeof(cases) / sizeof(cases[0]));
}
