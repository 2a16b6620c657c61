/* SPDX-License-Identifier: BSD-3-Clause */
/* test_writes.c: not one write is lost to an eviction. */
#include "engine/rig.h"

#include <unistd.h>

#define MIB ((size_t)1 << 20)

/* Protected before it is read: a write while the content is on its way to the backend counts. */
static void write_protect(struct rig *r)
{
	struct rig_writer w;

	rig_start(r, "", "delay-us = 20000");
	rig_attach(r, MIB / 4, NATIVE_SHMEM);
	rig_writer_start(&w, r, 0, r->units, 200);
	/* A busy machine needs more rounds for as many evictions. */
	for (int i = 0; i < 15 || (i < 500 && (rig_number(r, "evictions") <= r->units ||
					       !rig_number(r, "evictions-cancelled")));
	     i++)
		rig_reclaim(r, 0);
	rig_writer_stop(&w);
	CHECK(rig_number(r, "evictions") > r->units);
	CHECK(rig_number(r, "evictions-cancelled") > 0);
	CHECK_EQ(rig_writer_lost(&w), 0);
	for (size_t i = 0; i < r->units; i++)
		rig_tag(r, i, 1);
	rig_end(r);
}

/* A cancelled eviction lifts its protection before anybody may protect the unit again. */
static void cancel(struct rig *r)
{
	struct rig_writer w[4];

	rig_start(r, "folio-probe = no\nallow-quarantine = yes\nquarantine-ms = 4\n",
		  "delay-us = 3000");
	rig_attach(r, 16 * KT_PAGE, NATIVE_SHMEM);
	for (size_t i = 0; i < 4; i++)
		rig_writer_start(&w[i], r, 4 * i, 4, i % 2 ? 0 : 700);
	for (int i = 0; i < 60; i++)
		rig_reclaim(r, 0);
	for (size_t i = 0; i < 4; i++)
		rig_writer_stop(&w[i]);
	CHECK(rig_number(r, "evictions-cancelled") > 30);
	for (size_t i = 0; i < 4; i++)
		CHECK_EQ(rig_writer_lost(&w[i]), 0);
	rig_end(r);
}

/* A fault between "stored" and the punch waits for the punch. */
static void punching(struct rig *r)
{
	struct rig_writer w[2];

	rig_start(r, "", "");
	rig_attach(r, MIB / 4, NATIVE_SHMEM);
	for (size_t i = 0; i < 2; i++)
		rig_writer_start(&w[i], r, i * r->units / 2, r->units / 2, i ? 0 : 100);
	for (int i = 0; i < 30; i++)
		rig_reclaim(r, 0);
	for (size_t i = 0; i < 2; i++)
		rig_writer_stop(&w[i]);
	CHECK(rig_number(r, "evictions") > 0);
	for (size_t i = 0; i < 2; i++)
		CHECK_EQ(rig_writer_lost(&w[i]), 0);
	rig_end(r);
}

/* The copy that the backend kept is taken for good only when it is what the page holds. */
static void clean_copy(struct rig *r)
{
	size_t n;

	rig_start(r, "", "");
	rig_attach(r, MIB / 2, NATIVE_SHMEM);
	n = r->units;
	rig_limit(r, 1024 * MIB); /* copies in RAM are kept up to a part of the limit */
	rig_evict_all(r);
	rig_check_all(r);
	rig_until(r, "clean-copy-bytes", r->ram.bytes);
	for (size_t i = 0; i < n; i += 2)
		rig_tag(r, i, 2);
	rig_evict_all(r);
	CHECK_EQ(rig_number(r, "evictions-clean"), n / 2);
	for (size_t i = 0; i < n; i++)
		CHECK(rig_is(r, i, i % 2 ? 1 : 2));
	rig_end(r);
}

/* What was pinned before an eviction, or while it runs, stays where it is. */
static void pinned(struct rig *r)
{
	rig_start(r, "", "");
	rig_attach(r, MIB / 2, NATIVE_SHMEM);
	rig_evict_all(r);
	CHECK_EQ(native_pin(r->vmm, "ram", 16 * KT_PAGE, 32 * KT_PAGE), 0);
	for (size_t i = 16; i < 48; i++)
		CHECK(rig_cached(r, i));
	CHECK_EQ(rig_number(r, "pinned-bytes"), 32 * KT_PAGE);
	CHECK_EQ(native_pin(r->vmm, "ram", 40 * KT_PAGE, 16 * KT_PAGE), 0);
	CHECK_EQ(rig_number(r, "pinned-bytes"), 40 * KT_PAGE);
	rig_reclaim(r, 0);
	for (size_t i = 0; i < r->units; i++)
		CHECK_EQ(rig_cached(r, i), i >= 16 && i < 56);
	CHECK_EQ(native_unpin(r->vmm, "ram", 16 * KT_PAGE, 32 * KT_PAGE), 0);
	rig_reclaim(r, 0);
	for (size_t i = 0; i < r->units; i++)
		CHECK_EQ(rig_cached(r, i), i >= 40 && i < 56);
	CHECK_EQ(native_unpin(r->vmm, "ram", 40 * KT_PAGE, 16 * KT_PAGE), 0);
	CHECK_EQ(rig_number(r, "pinned-bytes"), 0);
	rig_evict_all(r);
	rig_check_all(r);
	rig_end(r);
}

int main(int argc, char **argv)
{
	static const struct rig_case cases[] = {
		{"pinned", pinned}, {"clean_copy", clean_copy}, {"write_protect", write_protect},
		{"cancel", cancel}, {"punching", punching},
	};

	return rig_main(argc, argv, cases, sizeof(cases) / sizeof(cases[0]));
}
