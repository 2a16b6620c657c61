/* SPDX-License-Identifier: BSD-3-Clause */
/* test_thp.c: transparent huge pages that are split when a part of them goes, and made whole again.
 */
#include <fcntl.h>
#include <sys/file.h>
#include <sys/uio.h>
#include <unistd.h>

#include "engine/rig.h"

#define SHMEM_THP "/sys/kernel/mm/transparent_hugepage/shmem_enabled"
#define EXTENTS	  4
#define UNITS	  (KT_HUGE / KT_PAGE)
#define RAM	  (EXTENTS * KT_HUGE)

/* A daemon, on a host where memory that asks for huge pages gets them. */
static void start(struct rig *r, const char *keys, const char *inject)
{
	/* Two at a time would put back what the other one has set. */
	int lock = open(SHMEM_THP, O_RDONLY | O_CLOEXEC);

	if (lock < 0 || flock(lock, LOCK_EX) || !kt_set(SHMEM_THP, "advise"))
		SKIP("huge pages of shmem; runs in the lab");
	rig_start(r, keys, inject);
}

static void attached(struct rig *r)
{
	if (*rig_suspended(r))
		SKIP("eviction of huge pages: %s; runs in the lab", rig_suspended(r));
	/* Somebody else may have changed that setting just now. */
	if (!strstr(r->d.answer, "\"memory-kind\":\"shmem-thp\""))
		SKIP("memory that may be huge; runs in the lab");
}

static char *extent(struct rig *r, size_t n)
{
	return rig_unit(r, n * UNITS);
}

/* Where the kernel gave huge pages at once: the others are made by the first touches. */
static void huge(struct rig *r, size_t bytes)
{
	start(r, "", "");
	rig_attach(r, bytes, NATIVE_THP);
	attached(r);
}

static void use(struct rig *r, size_t first, size_t n)
{
	for (size_t i = 0; i < n; i++)
		CHECK(rig_is(r, first + i, 1));
}

/* Some other CPU's batch may hold a page for a moment. */
static void reclaim_to(struct rig *r, uint64_t bytes)
{
	while (rig_number(r, "resident-bytes") > bytes) {
		rig_reclaim(r, KT_PAGE);
		kt_settle();
	}
}

static void finish(struct rig *r)
{
	rig_check_all(r);
	rig_end(r);
}

/* Who has waited for a page may ask before it is on the books. */
static void resident_is(struct rig *r, uint64_t bytes)
{
	rig_until(r, "resident-bytes", bytes);
	CHECK_EQ(rig_number(r, "resident-bytes"), bytes);
}

/*
 * The kernel refuses what some CPU's batch holds a page of, and has unmapped it then; it is tried
 * again, ever later, if it is used. Uses an extent all the while, which others may write to.
 */
static void collapsed(struct rig *r, uint64_t at_least, size_t used)
{
	for (unsigned int i = 0; rig_number(r, "collapses") < at_least; i++) {
		CHECK(i < 1000);
		kt_settle();
		for (size_t u = 0; u < UNITS; u++)
			*(volatile char *)rig_unit(r, used * UNITS + u);
		usleep(100000);
	}
}

/* It goes as a whole, and what is used of it comes back alone. */
static void split(struct rig *r)
{
	huge(r, RAM);
	CHECK_EQ(rig_number(r, "huge-splits"), 0);
	/* Asked for a page of it. */
	reclaim_to(r, RAM - KT_PAGE);
	CHECK(rig_number(r, "huge-splits") >= 1);
	rig_evict_all(r);
	CHECK_EQ(rig_number(r, "huge-splits"), EXTENTS);
	CHECK_EQ(rig_number(r, "resident-bytes"), 0);
	use(r, 2 * UNITS + 77, 1);
	resident_is(r, KT_PAGE);
	CHECK(rig_cached(r, 2 * UNITS + 77) && !rig_cached(r, 2 * UNITS + 78));
	/* What is split already is taken by pages. */
	use(r, 2 * UNITS + 78, 3);
	resident_is(r, 4 * KT_PAGE);
	reclaim_to(r, 3 * KT_PAGE);
	CHECK_EQ(rig_number(r, "resident-bytes"), 3 * KT_PAGE);
	finish(r);
}

/* Two extents come back, one of them but for a page: that one stays split, as what it wants is
 * less. */
static void whole(struct rig *r)
{
	uint64_t before;

	huge(r, RAM);
	rig_evict_all(r);
	before = rig_number(r, "collapses");
	use(r, UNITS, UNITS - 1);
	use(r, 2 * UNITS, UNITS);
	collapsed(r, before + 1, 2);
	CHECK_EQ(kt_pmd_mapped(extent(r, 2)), KT_HUGE);
	CHECK_EQ(kt_pmd_mapped(r->ram.addr), 0);
	/* With its last page it is as good as the other one. */
	use(r, 2 * UNITS - 1, 1);
	collapsed(r, before + 2, 1);
	resident_is(r, 2 * KT_HUGE);
	/* And round again: what is whole goes as a whole. */
	rig_evict_all(r);
	CHECK(rig_number(r, "huge-splits") >= EXTENTS + 2);
	CHECK(!rig_cached(r, UNITS) && !rig_cached(r, 2 * UNITS));
	finish(r);
}

/* While it is split and made whole, writers lose nothing. */
static void writes(struct rig *r)
{
	struct rig_writer w[2];
	uint64_t merged;

	start(r, "", "delay-us = 200");
	rig_attach(r, RAM, NATIVE_THP);
	attached(r);
	for (size_t i = 0; i < 2; i++)
		rig_writer_start(&w[i], r, i * 2 * UNITS, 2 * UNITS, 0);
	merged = rig_number(r, "collapses");
	for (unsigned int round = 0; round < 20; round++)
		rig_reclaim(r, KT_HUGE);
	CHECK(rig_number(r, "huge-splits") > 0);
	collapsed(r, merged + 1, 0);
	for (unsigned int round = 0; round < 20; round++)
		rig_reclaim(r, KT_HUGE);
	for (size_t i = 0; i < 2; i++) {
		rig_writer_stop(&w[i]);
		CHECK_EQ(rig_writer_lost(&w[i]), 0);
	}
	for (size_t u = 0; u < r->units; u++)
		rig_tag(r, u, 1);
	finish(r);
}

/*
 * Something holds a part of a huge page, so that the kernel cannot split it: what is punched stays
 * in the cache then, zeroed, and the guest has to be given what was stored. (Here a pipe, of which
 * no guard knows: there is nobody to write through it.)
 */
static void held(struct rig *r)
{
	struct iovec page;
	int ends[2];

	start(r, "folio-probe = no\nallow-quarantine = yes\nquarantine-ms = 1\n", "");
	rig_attach(r, RAM, NATIVE_THP);
	attached(r);
	page = (struct iovec){extent(r, 1) + 5 * KT_PAGE, KT_PAGE};
	CHECK_EQ(pipe(ends), 0);
	CHECK_EQ(vmsplice(ends[1], &page, 1, 0), KT_PAGE);
	rig_evict_all(r);
	CHECK(rig_cached(r, UNITS + 5) && rig_cached(r, UNITS + 6));
	use(r, UNITS, UNITS);
	CHECK(rig_number(r, "poisoned-fills") >= UNITS);
	close(ends[0]);
	close(ends[1]);
	finish(r);
}

/* What nobody has touched is made as a whole by its first touch; at the limit, a page of it. */
static void touched(struct rig *r)
{
	start(r, "", "");
	CHECK_EQ(native_ram_make(&r->ram, "ram", 16 * KT_HUGE, NATIVE_THP), 0);
	r->unit_bytes = KT_PAGE;
	r->units = r->ram.bytes / KT_PAGE;
	CHECK_EQ(native_open(r->d.attach, &r->vmm), 0);
	CHECK_EQ(native_attach(r->vmm, "vm", &r->ram, 1, NATIVE_SERVE_ZAP), 0);
	attached(r);
	CHECK_EQ(rig_number(r, "resident-bytes"), 0);
	rig_tag(r, 5 * UNITS + 9, 1);
	resident_is(r, KT_HUGE);
	rig_limit(r, 2 * KT_HUGE);
	rig_tag(r, 7 * UNITS, 1);
	resident_is(r, KT_HUGE + KT_PAGE);
	for (size_t u = 0; u < r->units; u++)
		rig_tag(r, u, 1);
	rig_limit(r, 0);
	finish(r);
}

/* The operator's other choice. */
static void kept(struct rig *r)
{
	start(r, "keep-huge-pages = yes\n", "");
	rig_attach(r, RAM, NATIVE_THP);
	attached(r);
	rig_evict_all(r);
	CHECK_EQ(rig_number(r, "huge-splits"), 0);
	use(r, UNITS + 5, 1);
	resident_is(r, KT_HUGE);
	finish(r);
}

int main(int argc, char **argv)
{
	static const struct rig_case cases[] = {
		{"split", split}, {"whole", whole},	{"writes", writes},
		{"held", held},	  {"touched", touched}, {"kept", kept},
	};

	return rig_main(argc, argv, cases, sizeof(cases) / sizeof(cases[0]));
}
