/* SPDX-License-Identifier: BSD-3-Clause */
/* test_page_table.c: entries on demand, their changes, and tables that another daemon left. */
#include <errno.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "model/page_table.h"

#define RUN   PAGE_TABLE_RUN
#define UNITS (4 * RUN + 100) /* the last run is not whole */

/* The directory's marks, as they lie in memory that outlives the daemon. */
#define DIR_LEAF  (UINT64_C(1) << 63)
#define DIR_FILL  (UINT64_C(1) << 62)
#define DIR_WORDS 8 /* the directory begins after the header */

struct fixture {
	struct page_table pt;
	void *memory;
	uint64_t bytes;
};

static struct fixture make(uint64_t units)
{
	struct fixture f = {.bytes = page_table_bytes(units)};

	f.memory = mmap(NULL, f.bytes, PROT_READ | PROT_WRITE,
			MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	assert_true(f.memory != MAP_FAILED);
	page_table_init(&f.pt, f.memory, units);
	return f;
}

static void drop(struct fixture *f)
{
	munmap(f->memory, f->bytes);
}

static uint64_t *dir_word(struct fixture *f, uint64_t run)
{
	return (uint64_t *)f->memory + DIR_WORDS + run;
}

/* Changes a unit that must be `from`. */
static void change(struct fixture *f, uint64_t unit, uint64_t from, uint64_t to)
{
	uint64_t e = from;

	assert_true(page_table_cas(&f->pt, unit, &e, to));
}

static void test_starts_empty(void **state)
{
	struct fixture f = make(UNITS);
	uint64_t e = 1;

	for (uint64_t u = 0; u < UNITS; u++)
		assert_int_equal(page_table_get(&f.pt, u), PE_NONE);
	for (uint64_t u = 0; u < UNITS; u += RUN) {
		assert_true(page_table_uniform(&f.pt, u, &e));
		assert_int_equal(e, PE_NONE);
	}
	assert_int_equal(page_table_footprint(&f.pt), 4096);
	drop(&f);
}

static void test_a_leaf_comes_with_the_first_change(void **state)
{
	struct fixture f = make(UNITS);
	uint64_t before = page_table_footprint(&f.pt), e;

	page_table_set_run(&f.pt, 0, 2 * RUN, PE_RESIDENT);
	assert_int_equal(page_table_footprint(&f.pt), before);
	change(&f, RUN + 3, PE_RESIDENT, PE_PROTECTED);
	assert_int_equal(page_table_footprint(&f.pt), before + 4096 + 64);
	for (uint64_t u = 0; u < UNITS; u++)
		assert_int_equal(page_table_get(&f.pt, u), u == RUN + 3	 ? PE_PROTECTED
							   : u < 2 * RUN ? PE_RESIDENT
									 : PE_NONE);
	assert_true(page_table_uniform(&f.pt, 5, &e));
	assert_int_equal(e, PE_RESIDENT);
	assert_false(page_table_uniform(&f.pt, RUN, &e));
	assert_int_equal(e, PE_RESIDENT); /* untouched */
	/* One leaf a run, once. */
	change(&f, RUN + 4, PE_RESIDENT, PE_PROTECTED);
	assert_int_equal(page_table_footprint(&f.pt), before + 4096 + 64);
	/* The unit after the last whole run. */
	change(&f, UNITS - 1, PE_NONE, PE_LOADING);
	assert_int_equal(page_table_get(&f.pt, UNITS - 1), PE_LOADING);
	drop(&f);
}

static void test_set_run_in_parts(void **state)
{
	struct fixture f = make(UNITS);
	uint64_t e;

	page_table_set_run(&f.pt, 100, 2 * RUN, PE_RESIDENT);
	for (uint64_t u = 0; u < UNITS; u++)
		assert_int_equal(page_table_get(&f.pt, u),
				 u >= 100 && u < 100 + 2 * RUN ? PE_RESIDENT : PE_NONE);
	assert_false(page_table_uniform(&f.pt, 0, &e));
	assert_true(page_table_uniform(&f.pt, RUN, &e));
	assert_false(page_table_uniform(&f.pt, 2 * RUN, &e));
	/* Over a run that has a leaf, the leaf is what counts. */
	page_table_set_run(&f.pt, 0, RUN, PE_NONE);
	for (uint64_t u = 0; u < RUN; u++)
		assert_int_equal(page_table_get(&f.pt, u), PE_NONE);
	page_table_set_run(&f.pt, 0, 0, PE_RESIDENT);
	assert_int_equal(page_table_get(&f.pt, 0), PE_NONE);
	drop(&f);
}

static void test_cas_that_fails(void **state)
{
	struct fixture f = make(UNITS);
	uint64_t e = PE_RESIDENT;

	/* On a run without a leaf: told what is there, and nothing changed. */
	assert_false(page_table_cas(&f.pt, 7, &e, PE_PROTECTED));
	assert_int_equal(e, PE_NONE);
	assert_int_equal(page_table_get(&f.pt, 7), PE_NONE);
	/* Another flag is another entry. */
	change(&f, 7, PE_NONE, PE_LOADING | PE_WANTED);
	e = PE_LOADING;
	assert_false(page_table_cas(&f.pt, 7, &e, PE_RESIDENT));
	assert_int_equal(e, PE_LOADING | PE_WANTED);
	drop(&f);
}

static void test_leave_tells_of_waiters(void **state)
{
	struct fixture f = make(UNITS);

	change(&f, 0, PE_NONE, PE_LOADING);
	assert_false(page_table_leave(&f.pt, 0, PE_RESIDENT));
	change(&f, 1, PE_NONE, PE_LOADING);
	change(&f, 1, PE_LOADING, PE_LOADING | PE_WANTED);
	assert_true(page_table_leave(&f.pt, 1, PE_RESIDENT));
	assert_int_equal(page_table_get(&f.pt, 0), PE_RESIDENT);
	assert_int_equal(page_table_get(&f.pt, 1), PE_RESIDENT);
	drop(&f);
}

static int ends_in(void (*deed)(struct fixture *))
{
	struct fixture f = make(UNITS);
	int status;
	pid_t pid = fork();

	assert_true(pid >= 0);
	if (pid == 0) {
		const struct rlimit none = {0, 0};

		setrlimit(RLIMIT_CORE, &none);
		signal(SIGABRT, SIG_DFL); /* cmocka catches it */
		fclose(stderr);
		deed(&f);
		_exit(0);
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	drop(&f);
	return status;
}

static void cas_wrongly(struct fixture *f)
{
	uint64_t e = PE_NONE;

	page_table_cas(&f->pt, 0, &e, PE_EVICTED);
}

static void leave_wrongly(struct fixture *f)
{
	uint64_t e = PE_NONE;

	page_table_cas(&f->pt, 0, &e, PE_LOADING);
	page_table_leave(&f->pt, 0, PE_PROTECTED);
}

static void cas_rightly(struct fixture *f)
{
	uint64_t e = PE_NONE;

	page_table_cas(&f->pt, 0, &e, PE_LOADING);
	page_table_leave(&f->pt, 0, PE_RESIDENT);
}

static void test_illegal_edges_end_the_process(void **state)
{
	int status = ends_in(cas_wrongly);

	assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT);
	status = ends_in(leave_wrongly);
	assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT);
	status = ends_in(cas_rightly);
	assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

static void test_open_finds_all(void **state)
{
	struct fixture f = make(UNITS);
	struct page_table again;
	uint64_t stored = page_entry_with_copy(PE_LOADING, 3, 99);

	page_table_set_run(&f.pt, RUN, RUN, PE_RESIDENT);
	change(&f, 5, PE_NONE, stored);
	change(&f, 2 * RUN + 5, PE_NONE, PE_RESIDENT);
	assert_int_equal(page_table_open(&again, f.memory, f.bytes), 0);
	assert_int_equal(again.units, UNITS);
	for (uint64_t u = 0; u < UNITS; u++)
		assert_int_equal(page_table_get(&again, u), page_table_get(&f.pt, u));
	assert_int_equal(page_table_get(&again, 5), stored);
	assert_int_equal(page_table_footprint(&again), 4096 + 2 * (4096 + 64));
	drop(&f);
}

static void test_open_mends_a_cut_off_fill(void **state)
{
	struct fixture f = make(UNITS);
	struct page_table again;
	uint64_t e;

	page_table_set_run(&f.pt, 0, RUN, PE_RESIDENT);
	/* The daemon died with the leaf half written and the directory still filling. */
	*dir_word(&f, 0) |= DIR_FILL;
	for (unsigned int i = 0; i < RUN / 2; i++)
		atomic_store(&f.pt.leaves[i], PE_RESIDENT);
	assert_int_equal(page_table_open(&again, f.memory, f.bytes), 0);
	assert_int_equal(*dir_word(&f, 0), PE_RESIDENT);
	for (uint64_t u = 0; u < RUN; u++)
		assert_int_equal(page_table_get(&again, u), PE_RESIDENT);
	/* And it can be filled anew, which before would have waited for ever. */
	e = PE_RESIDENT;
	assert_true(page_table_cas(&again, RUN - 1, &e, PE_PROTECTED));
	assert_int_equal(page_table_get(&again, RUN - 2), PE_RESIDENT);
	drop(&f);
}

/* Moves a unit that is in `from` on to `to`, as its owner. */
static void leave(struct fixture *f, uint64_t unit, enum page_state to)
{
	page_table_leave(&f->pt, unit, page_entry_bare(to));
}

static void test_the_away_bit_follows(void **state)
{
	struct fixture f = make(UNITS);
	uint64_t u = RUN + 70;

#define AWAY(yes) assert_int_equal(page_table_away(&f.pt, u), yes)
	page_table_set_run(&f.pt, 0, 2 * RUN, PE_RESIDENT);
	AWAY(false);
	change(&f, u, PE_RESIDENT, PE_PROTECTED);
	change(&f, u, PE_PROTECTED, PE_STORING);
	AWAY(false);
	change(&f, u, PE_STORING, PE_PUNCHING);
	AWAY(true);
	change(&f, u, PE_PUNCHING, PE_UNPROTECTING);
	AWAY(false);
	leave(&f, u, PE_RESIDENT);
	change(&f, u, PE_RESIDENT, PE_PROTECTED);
	change(&f, u, PE_PROTECTED, PE_STORING);
	change(&f, u, PE_STORING, PE_PUNCHING);
	leave(&f, u, PE_EVICTED);
	AWAY(true);
	/* A load that fails; one that succeeds. */
	change(&f, u, PE_EVICTED, PE_LOADING);
	AWAY(true);
	leave(&f, u, PE_EVICTED);
	AWAY(true);
	change(&f, u, PE_EVICTED, PE_LOADING);
	leave(&f, u, PE_RESIDENT);
	AWAY(false);
	/* First touch. */
	change(&f, u, PE_RESIDENT, PE_CLEARING);
	leave(&f, u, PE_NONE);
	change(&f, u, PE_NONE, PE_LOADING);
	AWAY(false);
	leave(&f, u, PE_RESIDENT);
	AWAY(false);
	/* Given up while it is away, and lost. */
	page_table_repair(&f.pt, u, PE_EVICTED);
	AWAY(true);
	assert_true(page_table_run_away(&f.pt, RUN));
	assert_false(page_table_run_away(&f.pt, 0));
	change(&f, u, PE_EVICTED, PE_CLEARING);
	AWAY(false);
	leave(&f, u, PE_LOST);
	AWAY(true);
	page_table_repair(&f.pt, u, PE_RESIDENT);
	AWAY(false);
	/* Nobody else's. */
	for (uint64_t i = 0; i < UNITS; i++)
		assert_false(page_table_away(&f.pt, i));
#undef AWAY
	drop(&f);
}

/* A word of the directory that cannot be: the leaf is looked at, whose entries are checked. */
static void test_open_mends_the_directory(void **state)
{
	struct fixture f = make(UNITS);
	struct page_table again;

	change(&f, 5, PE_NONE, PE_LOADING);
	for (int bit = 0; bit < 64; bit++) {
		*dir_word(&f, 0) ^= UINT64_C(1) << bit;
		assert_int_equal(page_table_open(&again, f.memory, f.bytes), 0);
		assert_int_equal(page_table_get(&again, 5), PE_LOADING);
		assert_int_equal(page_table_get(&again, 6), PE_NONE);
	}
	/* Of a run that has none, all are zero. */
	for (int bit = 1; bit < 62; bit++) {
		*dir_word(&f, 1) = UINT64_C(1) << bit;
		assert_int_equal(page_table_open(&again, f.memory, f.bytes), 0);
		assert_int_equal(page_table_get(&again, RUN), PE_NONE);
	}
	drop(&f);
}

static void test_open_counts_leaves_itself(void **state)
{
	struct fixture f = make(UNITS);
	struct page_table again;
	uint64_t want;

	change(&f, 0, PE_NONE, PE_RESIDENT);
	change(&f, RUN, PE_NONE, PE_RESIDENT);
	want = page_table_footprint(&f.pt);
	((uint64_t *)f.memory)[2] = 77; /* cut off between a leaf and its count */
	assert_int_equal(page_table_open(&again, f.memory, f.bytes), 0);
	assert_int_equal(page_table_footprint(&again), want);
	drop(&f);
}

static void test_open_refuses_what_is_damaged(void **state)
{
	struct fixture f = make(UNITS);
	uint64_t *header = f.memory, magic = header[0];
	struct page_table pt;

	assert_int_equal(page_table_open(&pt, f.memory, f.bytes), 0);
	assert_int_equal(page_table_open(&pt, f.memory, 0), -EUCLEAN);
	assert_int_equal(page_table_open(&pt, f.memory, 4095), -EUCLEAN);
	assert_int_equal(page_table_open(&pt, f.memory, f.bytes - 4096), -EUCLEAN);
	assert_int_equal(page_table_open(&pt, f.memory, f.bytes + 4096), -EUCLEAN);
	header[0] = magic ^ 1;
	assert_int_equal(page_table_open(&pt, f.memory, f.bytes), -EUCLEAN);
	header[0] = magic;
	/* Sizes that do not fit the memory, also those that would wrap around. */
	for (int shift = 0; shift < 64; shift++) {
		header[1] = UNITS + (UINT64_C(1) << shift);
		if (page_table_bytes(header[1]) == f.bytes)
			continue; /* within the last run */
		assert_int_equal(page_table_open(&pt, f.memory, f.bytes), -EUCLEAN);
	}
	header[1] = UNITS;
	assert_int_equal(page_table_open(&pt, f.memory, f.bytes), 0);
	drop(&f);
}

/* ---- the sum, a third witness ---- */

#define FITS(f, unit) assert_true(page_table_sum_fits(&(f).pt, unit))

/* As damage does it: an entry and its bit, which agree, and nothing else. */
static void deny(struct fixture *f, uint64_t unit)
{
	assert_int_equal(page_table_get(&f->pt, unit), PE_EVICTED);
	atomic_store(&f->pt.leaves[unit], PE_RESIDENT);
	atomic_fetch_and(&f->pt.away[unit / 64], ~(UINT64_C(1) << unit % 64));
}

static void flip_bit(struct fixture *f, uint64_t unit)
{
	atomic_fetch_xor(&f->pt.away[unit / 64], UINT64_C(1) << unit % 64);
}

/* Every fourth unit of two runs is evicted. */
static struct fixture quarter_away(void)
{
	struct fixture f = make(UNITS);

	for (uint64_t u = 0; u < 2 * RUN; u++)
		page_table_repair(&f.pt, u, u % 4 ? PE_RESIDENT : PE_EVICTED);
	FITS(f, 0);
	FITS(f, RUN);
	return f;
}

/* What a takeover would find in the run of unit: the given ones (-1: none) and no others. */
static void expect_suspects(struct fixture *f, uint64_t unit, int64_t a, int64_t b)
{
	bool sound[RUN], suspect[RUN];
	uint64_t first = unit / RUN * RUN;

	for (uint64_t i = 0; i < RUN; i++) {
		enum page_state s = page_entry_state(page_table_get(&f->pt, first + i));

		sound[i] = page_state_owned(s) ||
			   page_table_away(&f->pt, first + i) == page_state_away(s);
	}
	assert_int_equal(page_table_suspects(&f->pt, unit, sound, suspect), (a >= 0) + (b >= 0));
	for (uint64_t i = 0; i < RUN; i++)
		assert_int_equal(suspect[i],
				 (int64_t)(first + i) == a || (int64_t)(first + i) == b);
}

static void test_the_sum_follows(void **state)
{
	struct fixture f = make(UNITS);
	uint64_t u = RUN + 70;

	page_table_set_run(&f.pt, 0, 2 * RUN, PE_RESIDENT);
	for (uint64_t i = 0; i < 3; i++) {
		change(&f, u + i, PE_RESIDENT, PE_PROTECTED);
		change(&f, u + i, PE_PROTECTED, PE_STORING);
		change(&f, u + i, PE_STORING, PE_PUNCHING);
		FITS(f, u);
	}
	change(&f, u, PE_PUNCHING, PE_UNPROTECTING);
	FITS(f, u);
	leave(&f, u + 1, PE_EVICTED);
	leave(&f, u + 2, PE_EVICTED);
	change(&f, u + 1, PE_EVICTED, PE_LOADING);
	leave(&f, u + 1, PE_RESIDENT);
	change(&f, u + 2, PE_EVICTED, PE_CLEARING);
	FITS(f, u);
	leave(&f, u + 2, PE_LOST);
	FITS(f, u);
	expect_suspects(&f, u, -1, -1);
	drop(&f);
}

static void test_the_sum_denies(void **state)
{
	struct fixture f = quarter_away();
	struct page_table again;

	deny(&f, 8);
	expect_suspects(&f, 0, 8, -1);
	/* Also to who opens it then. */
	assert_int_equal(page_table_open(&again, f.memory, f.bytes), 0);
	assert_false(page_table_sum_fits(&again, 8));
	assert_true(page_table_sum_fits(&again, RUN));
	deny(&f, 500);
	expect_suspects(&f, 0, 8, 500);
	/* Bits that do not agree with their entries are told without the sum. */
	for (uint64_t u = 100; u < 110; u++)
		flip_bit(&f, u);
	expect_suspects(&f, 0, 8, 500);
	page_table_seal(&f.pt, 0);
	FITS(f, 0);
	drop(&f);
}

/* Many at once cannot be told one by one. */
static void test_the_sum_denies_all(void **state)
{
	struct fixture f = quarter_away();
	bool sound[RUN], suspect[RUN];

	memset(sound, 1, sizeof(sound));
	for (uint64_t u = 40; u < 52; u += 4)
		deny(&f, u);
	assert_int_equal(page_table_suspects(&f.pt, 0, sound, suspect), RUN * 3 / 4 + 3);
	for (uint64_t i = 0; i < RUN; i++)
		assert_int_equal(suspect[i], i % 4 || (i >= 40 && i < 52));
	drop(&f);
}

/* The owner of a unit died between its bit and the sum: that says nothing of others. */
static void test_the_sum_is_late(void **state)
{
	static const enum page_state owned[] = {PE_PUNCHING, PE_LOADING, PE_CLEARING};
	struct fixture f = quarter_away();

	for (uint64_t i = 0; i < 3; i++) {
		atomic_store(&f.pt.leaves[RUN + 4 * i], page_entry_bare(owned[i]));
		flip_bit(&f, RUN + 4 * i);
	}
	assert_false(page_table_sum_fits(&f.pt, RUN));
	expect_suspects(&f, RUN, -1, -1);
	deny(&f, RUN + 100);
	expect_suspects(&f, RUN, RUN + 100, -1);
	/* A whole batch of them, of which two are late. */
	for (uint64_t u = RUN + 200; u < RUN + 400; u += 4)
		atomic_store(&f.pt.leaves[u], page_entry_bare(PE_PUNCHING));
	flip_bit(&f, RUN);
	flip_bit(&f, RUN + 4);
	flip_bit(&f, RUN + 204);
	expect_suspects(&f, RUN, RUN + 100, -1);
	drop(&f);
}

/* What versions without sums left. */
static void test_without_sums(void **state)
{
	struct fixture f = quarter_away();
	struct page_table again;

	*(uint64_t *)f.memory = UINT64_C(0x31304c4254424245); /* "EBBTBL01" */
	for (uint64_t run = 0; run < 2; run++)
		*dir_word(&f, run) = DIR_LEAF | UINT64_C(0x005a5a5a5a5a5a5a);
	assert_int_equal(page_table_open(&again, f.memory, f.bytes), 0);
	assert_true(page_table_sum_fits(&again, 0));
	page_table_repair(&again, 0, page_entry_bare(PE_RESIDENT));
	assert_int_equal(*dir_word(&f, 0), DIR_LEAF | UINT64_C(0x005a5a5a5a5a5a5a));
	drop(&f);
}

/* The promise: at most 0.2 % of RAM with 4 KiB units, with every unit in a state of its own. */
static void test_footprint(void **state)
{
	static const uint64_t gib = UINT64_C(1) << 30;

	for (uint64_t ram = gib / 4; ram <= 16 * gib; ram *= 4) {
		uint64_t units = ram / 4096;
		struct fixture f = make(units);

		assert_true(page_table_footprint(&f.pt) * 10000 < ram); /* untouched: 0.01 % */
		if (ram <= gib)
			for (uint64_t u = 0; u < units; u += RUN)
				change(&f, u, PE_NONE, PE_LOADING);
		else
			atomic_store((_Atomic uint64_t *)f.memory + 2, units / RUN);
		assert_true(page_table_footprint(&f.pt) * 500 <= ram);
		assert_true(page_table_footprint(&f.pt) <= page_table_bytes(units));
		/* What is promised is what the address space could take at most, too. */
		assert_true(page_table_bytes(units) * 500 <= ram);
		drop(&f);
	}
}

struct racer {
	struct fixture *f;
	pthread_barrier_t *start;
	unsigned int odd;
	uint64_t won, wrong;
};

static void *race(void *arg)
{
	struct racer *r = arg;

	pthread_barrier_wait(r->start);
	/* Neighbours in the same runs, from both ends, so that both meet unfilled leaves. */
	for (uint64_t i = 0; i < r->f->pt.units; i++) {
		uint64_t u = r->odd ? i : r->f->pt.units - 1 - i, e = PE_RESIDENT;

		if (page_table_cas(&r->f->pt, u, &e,
				   page_entry_with_copy(PE_PROTECTED, r->odd + 1, u)))
			r->won++;
		else
			r->wrong += page_entry_state(e) != PE_PROTECTED;
	}
	return NULL;
}

static void test_two_threads_fill_one_leaf(void **state)
{
	for (int round = 0; round < 200; round++) {
		struct fixture f = make(RUN);
		pthread_barrier_t start;
		struct racer r[2];
		pthread_t t[2];

		page_table_set_run(&f.pt, 0, RUN, PE_RESIDENT);
		pthread_barrier_init(&start, NULL, 2);
		for (unsigned int i = 0; i < 2; i++) {
			r[i] = (struct racer){.f = &f, .start = &start, .odd = i};
			assert_int_equal(pthread_create(&t[i], NULL, race, &r[i]), 0);
		}
		for (unsigned int i = 0; i < 2; i++)
			pthread_join(t[i], NULL);
		/* Each unit was won once, and a late fill took nothing back. */
		assert_int_equal(r[0].won + r[1].won, RUN);
		assert_int_equal(r[0].wrong + r[1].wrong, 0);
		for (uint64_t u = 0; u < RUN; u++) {
			assert_int_equal(page_entry_state(page_table_get(&f.pt, u)), PE_PROTECTED);
			assert_int_equal(page_entry_handle(page_table_get(&f.pt, u)), u);
		}
		assert_int_equal(page_table_footprint(&f.pt), 4096 + 4096 + 64);
		pthread_barrier_destroy(&start);
		drop(&f);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_starts_empty),
		cmocka_unit_test(test_a_leaf_comes_with_the_first_change),
		cmocka_unit_test(test_set_run_in_parts),
		cmocka_unit_test(test_cas_that_fails),
		cmocka_unit_test(test_leave_tells_of_waiters),
		cmocka_unit_test(test_illegal_edges_end_the_process),
		cmocka_unit_test(test_open_finds_all),
		cmocka_unit_test(test_open_mends_a_cut_off_fill),
		cmocka_unit_test(test_open_counts_leaves_itself),
		cmocka_unit_test(test_open_refuses_what_is_damaged),
		cmocka_unit_test(test_the_away_bit_follows),
		cmocka_unit_test(test_open_mends_the_directory),
		cmocka_unit_test(test_the_sum_follows),
		cmocka_unit_test(test_the_sum_denies),
		cmocka_unit_test(test_the_sum_denies_all),
		cmocka_unit_test(test_the_sum_is_late),
		cmocka_unit_test(test_without_sums),
		cmocka_unit_test(test_footprint),
		cmocka_unit_test(test_two_threads_fill_one_leaf),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
