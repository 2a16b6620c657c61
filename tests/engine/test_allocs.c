/* SPDX-License-Identifier: BSD-3-Clause */
/* test_allocs.c: the fault path asks nothing of the allocator. */
#include "engine/rig.h"

#include <stdatomic.h>
#include <unistd.h>

#include "engine/count_allocs.h"

#define MIB ((size_t)1 << 20)

static struct alloc_counts *preload(void)
{
	char path[64];
	int fd = kt_memfd(KT_PAGE, false);
	void *p = mmap(NULL, KT_PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);

	CHECK(p != MAP_FAILED);
	snprintf(path, sizeof(path), "/proc/%d/fd/%d", (int)getpid(), fd);
	CHECK(!setenv(ALLOC_COUNTS_ENV, path, 1));
	CHECK(!setenv("LD_PRELOAD", COUNT_ALLOCS, 1));
	return p;
}

/* Zero fills, stored content, discarded holes, cancelled evictions: three times over. */
static void faults(struct rig *r, struct alloc_counts *c)
{
	uint64_t before;

	rig_attach(r, 4 * MIB, NATIVE_SHMEM);
	CHECK(atomic_load(&c->all) > 0); /* it counts at all */
	before = atomic_load(&c->fault_threads);
	for (int round = 0; round < 3; round++) {
		struct rig_writer w;

		rig_evict_all(r);
		rig_check_all(r);
		CHECK_EQ(kt_punch(r->ram.memfd, 0, 32 * KT_PAGE), 0);
		for (size_t i = 0; i < 32; i++)
			rig_tag(r, i, 1);
		rig_writer_start(&w, r, 0, r->units, 50);
		rig_reclaim(r, 0);
		rig_writer_stop(&w);
		CHECK_EQ(rig_writer_lost(&w), 0);
		for (size_t i = 0; i < r->units; i++)
			rig_tag(r, i, 1);
	}
	CHECK(rig_number(r, "faults") >= 3 * (r->units - 64));
	printf("faults %llu, calls of the allocator: all threads %llu, fault threads %llu\n",
	       (unsigned long long)rig_number(r, "faults"),
	       (unsigned long long)atomic_load(&c->all),
	       (unsigned long long)(atomic_load(&c->fault_threads) - before));
	CHECK_EQ(atomic_load(&c->fault_threads), before);
}

static void plain(struct rig *r)
{
	struct alloc_counts *c = preload();

	rig_start(r, "", NULL);
	faults(r, c);
	rig_end(r);
}

/* With policies that are told of every fault. */
static void policies(struct rig *r)
{
	struct alloc_counts *c = preload();

	rig_start(r, "", NULL);
	faults(r, c);
	daemon_ask(&r->d, "{\"execute\":\"policy-set\",\"arguments\":{\"vm\":\"vm\",\"role\":"
			  "\"prefetch\",\"policy\":\"sequential\"}}");
	CHECK(strstr(r->d.answer, "\"return\""));
	daemon_ask(&r->d, "{\"execute\":\"policy-set\",\"arguments\":{\"vm\":\"vm\",\"role\":"
			  "\"reclaim\",\"policy\":\"clock\"}}");
	CHECK(strstr(r->d.answer, "\"return\""));
	{
		uint64_t before = atomic_load(&c->fault_threads), asked;

		for (int round = 0; round < 3; round++) {
			rig_reclaim(r, 0);
			rig_check_all(r);
		}
		asked = rig_number(r, "faults") + rig_number(r, "prefetched");
		CHECK(asked > r->units);
		CHECK_EQ(atomic_load(&c->fault_threads), before);
	}
	rig_end(r);
}

int main(int argc, char **argv)
{
	static const struct rig_case cases[] = {
		{"plain", plain},
		{"policies", policies},
	};

	return rig_main(argc, argv, cases, sizeof(cases) / sizeof(cases[0]));
}
