/* SPDX-License-Identifier: BSD-3-Clause */
/* test_hugetlb.c: evicted huge pages come back although others take from the same pool. */
#include "engine/rig.h"

#include <err.h>
#include <unistd.h>

#define MIB   ((size_t)1 << 20)
#define UNITS 8
#define ALL   64

/* Somebody else who takes huge pages, as many as there are. */
struct newcomer {
	void *page[ALL];
	unsigned int n;
};

static void newcomer_takes(struct newcomer *c)
{
	while (c->n < ALL) {
		void *p = mmap(NULL, KT_HUGE, PROT_READ | PROT_WRITE,
			       MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB | MAP_POPULATE, -1, 0);

		if (p == MAP_FAILED)
			break;
		c->page[c->n++] = p;
	}
}

/* Tries until it is told to stop. */
struct greedy {
	struct newcomer *newcomer;
	_Atomic bool *stop;
};

static void *greedy_main(void *arg)
{
	struct greedy *g = arg;

	while (!atomic_load(g->stop))
		newcomer_takes(g->newcomer);
	return NULL;
}

static void newcomer_leaves(struct newcomer *c)
{
	while (c->n)
		munmap(c->page[--c->n], KT_HUGE);
}

/* Copies of huge units go with the fault that made them useless: some would be as much as a VM has.
 */
static void freed(struct rig *r)
{
	const char *objects;

	kt_set_free_huge_pages(UNITS);
	rig_start(r, "", NULL);
	rig_attach(r, UNITS * KT_HUGE, NATIVE_HUGETLB);
	rig_evict_all(r);
	/* Each is the last one's end too. */
	for (size_t i = 0; i < r->units; i++)
		CHECK(rig_is(r, i, 1));
	daemon_ask(&r->d, "{\"execute\":\"query-backends\"}");
	objects = strstr(r->d.answer, "\"objects\":");
	CHECK(objects);
	CHECK(strtoul(objects + strlen("\"objects\":"), NULL, 10) <= 1);
	rig_end(r);
}

/* A dry pool: faults wait with their content kept, a detach that cannot fit is refused. */
static void dry(struct rig *r)
{
	struct newcomer other = {.n = 0};
	struct kt_access a[4];
	uint64_t parked, discards;

	kt_set_free_huge_pages(UNITS);
	rig_start(r, "", "");
	rig_attach(r, UNITS * KT_HUGE, NATIVE_HUGETLB);
	rig_evict_all(r);
	/* One of them reads as zero. */
	CHECK_EQ(native_discard(r->vmm, "ram", 6 * KT_HUGE, KT_HUGE), 0);
	discards = rig_number(r, "discards");
	newcomer_takes(&other);
	CHECK_EQ(other.n, UNITS);
	for (size_t i = 0; i < 4; i++)
		kt_access_start(&a[i], rig_unit(r, 2 * i));
	rig_until(r, "faults-parked", 2);
	for (size_t i = 0; i < 4; i++)
		CHECK(kt_blocked(&a[i]));
	CHECK_EQ(native_detach(r->vmm), -EPROTO);
	CHECK(strstr(native_error(r->vmm), "NoSpace"));
	CHECK_EQ(rig_number(r, "pages-lost"), 0);
	CHECK_EQ(rig_number(r, "resident-bytes"), 0);
	CHECK_EQ(rig_number(r, "evicted-bytes"), r->ram.bytes - KT_HUGE);
	/* They wait; they do not go round and round. */
	parked = rig_number(r, "faults-parked");
	sleep(1);
	CHECK(rig_number(r, "faults-parked") - parked < 100);
	/* None of the holes was taken for a page. */
	CHECK_EQ(rig_number(r, "resident-bytes"), 0);
	CHECK_EQ(rig_number(r, "discards"), discards);
	newcomer_leaves(&other);
	for (size_t i = 0; i < 4; i++)
		rig_access_end(&a[i]);
	CHECK(rig_is(r, 6, 0));
	rig_tag(r, 6, 1);
	rig_check_all(r);
	rig_end(r);
}

/* A unit that is away. */
static void comes_back(struct rig *r)
{
	struct kt_access a;
	size_t unit = UNITS;

	/* All the others are in the process's page table. */
	for (size_t i = 0; i < UNITS; i++)
		if (!kt_present(0, rig_unit(r, i)))
			unit = i;
	CHECK(unit < UNITS);
	kt_access_start(&a, rig_unit(r, unit));
	rig_access_end(&a);
	CHECK(rig_is(r, unit, 1));
}

/* Three units go; some of their pages are kept back then. */
static void give_up_some(struct rig *r)
{
	rig_limit(r, 6 * KT_HUGE);
	rig_until(r, "evicted-bytes", 3 * KT_HUGE);
	for (int i = 0; i < 100 && kt_free_huge_pages() > 2; i++)
		usleep(10000);
}

/* The VM gets them although somebody has taken all others. */
static void end_with(struct rig *r, struct newcomer *other)
{
	comes_back(r);
	newcomer_leaves(other);
	rig_limit(r, 0);
	rig_check_all(r);
	rig_end(r);
}

/* What a VM below its limit has given up is kept back for it. */
static void reserved(struct rig *r)
{
	struct newcomer other = {.n = 0};

	kt_set_free_huge_pages(UNITS);
	rig_start(r, "", "");
	rig_attach(r, UNITS * KT_HUGE, NATIVE_HUGETLB);
	give_up_some(r);
	newcomer_takes(&other);
	CHECK(other.n > 0);
	end_with(r, &other);
}

/*
 * The same while the daemon is replaced, again and again: there is no moment at which the newcomer,
 * who tries all the time, gets what is kept back.
 */
static void handed_over(struct rig *r)
{
	struct newcomer other = {.n = 0};
	unsigned int had;

	kt_set_free_huge_pages(UNITS);
	rig_start(r, "", NULL);
	rig_attach(r, UNITS * KT_HUGE, NATIVE_HUGETLB);
	give_up_some(r);
	newcomer_takes(&other);
	had = other.n;
	CHECK(had > 0);
	for (int i = 0; i < 3; i++) {
		_Atomic bool stop = false;
		struct greedy g = {&other, &stop};
		pthread_t t;

		CHECK(!pthread_create(&t, NULL, greedy_main, &g));
		daemon_upgrade(&r->d);
		atomic_store(&stop, true);
		pthread_join(t, NULL);
		CHECK_EQ(other.n, had);
	}
	end_with(r, &other);
}

/* With a daemon that is killed they are gone; the next one takes them anew, evicting nothing. */
static void renewed(struct rig *r)
{
	const unsigned int flags = NATIVE_SERVE_ZAP | NATIVE_KEEP;
	struct newcomer other = {.n = 0};
	uint64_t kept_back;

	kt_set_free_huge_pages(UNITS);
	rig_start(r, "", NULL);
	CHECK_EQ(native_ram_make(&r->ram, "ram", UNITS * KT_HUGE, NATIVE_HUGETLB), 0);
	r->unit_bytes = KT_HUGE;
	r->units = UNITS;
	for (size_t i = 0; i < UNITS; i++)
		rig_tag(r, i, 1);
	CHECK_EQ(native_open(r->d.attach, &r->vmm), 0);
	CHECK_EQ(native_attach(r->vmm, "vm", &r->ram, 1, flags), 0);
	give_up_some(r);
	kept_back = 3 - kt_free_huge_pages();
	CHECK(kept_back > 0);
	daemon_replace(&r->d);
	CHECK_EQ(native_resume(r->vmm, r->d.attach, "vm", &r->ram, 1, flags), 0);
	for (int i = 0; i < 3000 && kt_free_huge_pages() > 3 - kept_back; i++)
		usleep(10000);
	newcomer_takes(&other);
	CHECK_EQ(other.n, 3 - kept_back);
	CHECK_EQ(rig_number(r, "evictions"), 0);
	end_with(r, &other);
}

/* Whatever is pinned by I/O, protected for writers, or stored: the same as with small pages. */
static void writes(struct rig *r)
{
	struct rig_writer w;

	kt_set_free_huge_pages(UNITS);
	rig_start(r, "", "delay-us = 5000");
	rig_attach(r, UNITS * KT_HUGE, NATIVE_HUGETLB);
	rig_writer_start(&w, r, 0, UNITS, 5000);
	for (int i = 0; i < 12; i++)
		rig_reclaim(r, 0);
	rig_writer_stop(&w);
	CHECK(rig_number(r, "evictions") > 0);
	CHECK_EQ(rig_writer_lost(&w), 0);
	rig_end(r);
}

/* What is only in the cache when the VM attaches counts as resident, and is as it was. */
static void cached(struct rig *r)
{
	kt_set_free_huge_pages(UNITS);
	rig_start(r, "", "");
	r->unit_bytes = KT_HUGE;
	r->units = UNITS;
	r->ram.memfd = kt_memfd(UNITS * KT_HUGE, true);
	CHECK(r->ram.memfd >= 0);
	r->ram.addr = kt_map(r->ram.memfd, UNITS * KT_HUGE);
	for (size_t i = 0; i < UNITS / 2; i++)
		rig_tag(r, i, 1);
	CHECK(!munmap(r->ram.addr, UNITS * KT_HUGE));
	CHECK_EQ(native_ram_map(&r->ram, "ram", UNITS * KT_HUGE, NATIVE_HUGETLB, r->ram.memfd), 0);
	CHECK_EQ(native_open(r->d.attach, &r->vmm), 0);
	CHECK_EQ(native_attach(r->vmm, "vm", &r->ram, 1, NATIVE_SERVE_ZAP), 0);
	CHECK_EQ(rig_number(r, "resident-bytes"), UNITS / 2 * KT_HUGE);
	rig_reclaim(r, 0);
	CHECK_EQ(rig_number(r, "evicted-bytes"), UNITS / 2 * KT_HUGE);
	for (size_t i = UNITS / 2; i < UNITS; i++) {
		CHECK(rig_is(r, i, 0));
		rig_tag(r, i, 1);
	}
	rig_check_all(r);
	rig_end(r);
}

int main(int argc, char **argv)
{
	static const struct rig_case cases[] = {
		{"freed", freed},	{"writes", writes},	      {"dry", dry},
		{"reserved", reserved}, {"handed_over", handed_over}, {"renewed", renewed},
		{"cached", cached},
	};

	return rig_main(argc, argv, cases, sizeof(cases) / sizeof(cases[0]));
}
