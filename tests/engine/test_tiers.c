/* SPDX-License-Identifier: BSD-3-Clause */
/* test_tiers.c: what is cold moves down, nothing is lost on the way, and what comes back starts on
 * top. */
#include <err.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "engine/rig.h"

#define MIB	    ((size_t)1 << 20)
#define PATIENCE_NS (60 * NS_PER_S)

/* A number of one of the VM's tiers, of the answer to query-vm that is there. */
static uint64_t in_answer(const struct rig *r, const char *backend, const char *name)
{
	char key[80];
	const char *p;

	snprintf(key, sizeof(key), "\"backend\":\"%s\"", backend);
	p = strstr(r->d.answer, key);
	snprintf(key, sizeof(key), "\"%s\":", name);
	p = p ? strstr(p, key) : NULL;
	if (!p)
		errx(1, "no %s of %s in %.2000s", name, backend, r->d.answer);
	return strtoull(p + strlen(key), NULL, 10);
}

static uint64_t tier(struct rig *r, const char *backend, const char *name)
{
	daemon_ask(&r->d, "{\"execute\":\"query-vm\",\"arguments\":{\"vm\":\"vm\"}}");
	return in_answer(r, backend, name);
}

static void give_up(struct rig *r, const char *what)
{
	daemon_ask(&r->d, "{\"execute\":\"query-vm\",\"arguments\":{\"vm\":\"vm\"}}");
	errx(1, "%s: %.4000s", what, r->d.answer);
}

static void tier_until(struct rig *r, const char *backend, const char *name, uint64_t at_most)
{
	uint64_t end = clock_ns() + PATIENCE_NS;

	while (tier(r, backend, name) > at_most) {
		if (clock_ns() > end)
			give_up(r, "a tier does not shrink");
		usleep(10000);
	}
}

static void set(struct rig *r, const char *settings)
{
	daemon_ask(&r->d, "{\"execute\":\"vm-set\",\"arguments\":{\"vm\":\"vm\",%s}}", settings);
	if (!strstr(r->d.answer, "\"return\""))
		errx(1, "vm-set %s: %.300s", settings, r->d.answer);
}

static void set_marks(struct rig *r, uint64_t high, uint64_t low)
{
	char text[128];

	snprintf(text, sizeof(text), "\"tier-high\":[%llu],\"tier-low\":[%llu]",
		 (unsigned long long)high, (unsigned long long)low);
	set(r, text);
}

/* Two tiers, without marks; all of the VM is evicted to the first. */
static void begin(struct rig *r, size_t bytes, enum native_kind kind, const char *below)
{
	char keys[256];

	snprintf(keys, sizeof(keys), "[backend below]\n%s", below);
	rig_start(r, keys, NULL);
	rig_attach(r, bytes, kind);
	set(r, "\"tiers\":[\"compressed\",\"below\"]");
	rig_evict_all(r);
}

/* Units that came back from below so far: what was moved there and is there no more. */
static uint64_t back_now(struct rig *r)
{
	daemon_ask(&r->d, "{\"execute\":\"query-vm\",\"arguments\":{\"vm\":\"vm\"}}");
	return (in_answer(r, "compressed", "moved-bytes") - in_answer(r, "below", "units-bytes")) /
	       r->unit_bytes;
}

/* The same with nothing half counted. */
static uint64_t back(struct rig *r)
{
	uint64_t one = back_now(r), two;

	for (int same = 0; same < 10; same++) {
		usleep(10000);
		two = back_now(r);
		if (two != one)
			same = 0;
		one = two;
	}
	return one;
}

/* It is that many, or will be when nothing is half counted. */
static void expect_back(struct rig *r, uint64_t n)
{
	uint64_t end = clock_ns() + PATIENCE_NS;

	while (back_now(r) != n) {
		if (clock_ns() > end)
			give_up(r, "others came back from below");
		usleep(10000);
	}
}

/* Each unit is in exactly one of the tiers. */
static void expect_all(struct rig *r)
{
	uint64_t end = clock_ns() + PATIENCE_NS, sum;

	do {
		if (clock_ns() > end)
			give_up(r, "the tiers do not have all");
		usleep(10000);
		sum = tier(r, "compressed", "units-bytes");
		sum += in_answer(r, "below", "units-bytes");
	} while (sum != r->ram.bytes);
}

static void touch(struct rig *r, size_t first, size_t n)
{
	for (size_t i = first; i < first + n; i++)
		CHECK(rig_is(r, i, 1));
}

/* What was evicted first goes first, down to the low mark; and content is right. */
static void cold_first(struct rig *r)
{
	uint64_t content, n;

	begin(r, 8 * MIB, NATIVE_SHMEM, "driver = compressed");
	content = tier(r, "compressed", "content-bytes");
	/* A little goes: so the demoter has looked, and what is evicted from here on is younger. */
	set_marks(r, content * 15 / 16, content * 14 / 16);
	rig_until(r, "demotions", 1);
	touch(r, 0, r->units / 4);
	rig_reclaim(r, 0);
	n = back(r);
	set_marks(r, content / 2, content * 3 / 8);
	tier_until(r, "compressed", "content-bytes", content / 2);
	/* The first quarter is the youngest: it stayed. Behind it is the oldest. */
	touch(r, 0, r->units / 4);
	expect_back(r, n);
	touch(r, r->units / 4, 64);
	expect_back(r, n + 64);
	rig_check_all(r);
	CHECK_EQ(rig_number(r, "pages-lost"), 0);
	rig_end(r);
}

/* The mark holds while more is evicted all the time. */
static void mark_holds(struct rig *r)
{
	uint64_t content;

	begin(r, 8 * MIB, NATIVE_SHMEM, "driver = compressed\ncodec = plain");
	content = tier(r, "compressed", "content-bytes");
	set_marks(r, content / 4, content / 8);
	for (int round = 0; round < 3; round++) {
		tier_until(r, "compressed", "content-bytes", content / 4);
		rig_check_all(r);
		rig_evict_all(r);
	}
	tier_until(r, "compressed", "content-bytes", content / 4);
	expect_all(r);
	rig_check_all(r);
	rig_end(r);
}

/* What comes back from below and is evicted again, unchanged, is stored in the first tier. */
static void starts_on_top(struct rig *r)
{
	begin(r, 2 * MIB, NATIVE_SHMEM, "driver = inject");
	set_marks(r, 2, 1);
	tier_until(r, "compressed", "objects", 0);
	CHECK_EQ(tier(r, "below", "units-bytes"), r->ram.bytes);
	set(r, "\"tiers\":[\"compressed\",\"below\"]"); /* takes the marks away */
	touch(r, 0, 64);
	rig_evict_all(r);
	CHECK_EQ(tier(r, "compressed", "units-bytes"), 64 * r->unit_bytes);
	CHECK_EQ(tier(r, "below", "units-bytes"), r->ram.bytes - 64 * r->unit_bytes);
	rig_check_all(r);
	rig_end(r);
}

/* The tier below takes little: the rest stays above. */
static void below_full(struct rig *r)
{
	begin(r, 4 * MIB, NATIVE_SHMEM, "driver = compressed\ncodec = plain\nmax-bytes = 1M");
	set_marks(r, 2, 1);
	rig_event(r, "BACKEND_FULL");
	CHECK(tier(r, "compressed", "units-bytes") >= 2 * MIB);
	CHECK_EQ(rig_number(r, "evicted-bytes"), r->ram.bytes);
	rig_check_all(r);
	CHECK_EQ(rig_number(r, "pages-lost"), 0);
	rig_end(r);
}

/* The tier below fails now and then, and at last always: what it did not take stays above. */
static void below_fails(struct rig *r)
{
	begin(r, 2 * MIB, NATIVE_SHMEM, "driver = inject\nstore-error = 1/8\ndelay-us = 200");
	set_marks(r, 2, 1);
	/* Those that failed are tried again. */
	tier_until(r, "compressed", "objects", 0);
	CHECK_EQ(tier(r, "below", "units-bytes"), r->ram.bytes);
	rig_check_all(r);
	CHECK_EQ(rig_number(r, "pages-lost"), 0);
	rig_end(r);
}

/* Without marks: nearly full for all VMs together is a reason too. */
static void first_full(struct rig *r)
{
	rig_start(r, "[backend first]\ndriver = compressed\ncodec = plain\nmax-bytes = 4M", NULL);
	rig_attach(r, 8 * MIB, NATIVE_SHMEM);
	set(r, "\"tiers\":[\"first\",\"compressed\"]");
	rig_evict_all(r);
	/* Not only what did not fit: down to where there is room for more. */
	tier_until(r, "first", "content-bytes", 4 * MIB * 7 / 8);
	rig_until(r, "demotions", 1);
	rig_check_all(r);
	rig_end(r);
}

/* Writers, and moves that take their time: each write is there. */
static void races(struct rig *r, size_t bytes, enum native_kind kind, int rounds)
{
	struct rig_writer w;

	begin(r, bytes, kind,
	      "driver = inject\ndelay-us = 200\ndelay-random-us = 2000\nreorder = 1\nfew = 1/3");
	set_marks(r, 2, 1);
	rig_writer_start(&w, r, 0, r->units / 2, 100);
	/* Evicted again and again, so that some move, are wanted, written to and evicted meanwhile.
	 */
	for (int round = 0; round < rounds && rig_number(r, "demotions") < 4 * r->units; round++)
		rig_reclaim(r, 0);
	CHECK(rig_number(r, "demotions") > 0);
	rig_writer_stop(&w);
	CHECK_EQ(rig_writer_lost(&w), 0);
	for (size_t i = r->units / 2; i < r->units; i++)
		CHECK(rig_is(r, i, 1));
	CHECK_EQ(rig_number(r, "pages-lost"), 0);
	rig_end(r);
}

static void races_shmem(struct rig *r)
{
	races(r, 2 * MIB, NATIVE_SHMEM, 100);
}

static void races_hugetlb(struct rig *r)
{
	kt_set_free_huge_pages(8);
	races(r, 8 * MIB, NATIVE_HUGETLB, 15);
}

/* A backend that is removed gives what it has to the VM's other tiers, not to its RAM. */
static void removed(struct rig *r)
{
	begin(r, 4 * MIB, NATIVE_SHMEM, "driver = inject\ndelay-us = 100");
	set_marks(r, 2, 1);
	tier_until(r, "compressed", "objects", 0);
	daemon_ask(&r->d, "{\"execute\":\"backend-remove\",\"arguments\":{\"name\":\"below\"}}");
	CHECK(strstr(r->d.answer, "\"return\""));
	CHECK_EQ(rig_number(r, "evicted-bytes"), r->ram.bytes);
	CHECK_EQ(tier(r, "compressed", "units-bytes"), r->ram.bytes);
	rig_check_all(r);
	rig_end(r);
}

/* The daemon dies in the middle of a move; the next one has everything, once. */
static void die_at(struct rig *r, const char *point)
{
	uint64_t stored = 0;
	char text[64];
	int status;

	snprintf(text, sizeof(text), "%s:3", point);
	setenv("EBB_FAULT_POINT", text, 1);
	r->d.log[0] = 0;
	daemon_start(&r->d, NULL);
	unsetenv("EBB_FAULT_POINT");
	CHECK_EQ(native_ram_make(&r->ram, "ram", 4 * MIB, NATIVE_SHMEM), 0);
	r->unit_bytes = r->ram.page_bytes;
	r->units = r->ram.bytes / r->unit_bytes;
	for (size_t i = 0; i < r->units; i++)
		rig_tag(r, i, 1);
	CHECK_EQ(native_open(r->d.attach, &r->vmm), 0);
	if (native_attach(r->vmm, "vm", &r->ram, 1, NATIVE_SERVE_ZAP | NATIVE_KEEP))
		errx(1, "attach: %s", native_error(r->vmm));
	daemon_ask(&r->d, "{\"execute\":\"backend-add\",\"arguments\":{\"name\":\"below\","
			  "\"driver\":\"compressed\",\"options\":{\"codec\":\"plain\"}}}");
	set(r, "\"tiers\":[\"compressed\",\"below\"]");
	rig_evict_all(r);
	daemon_try(&r->d, "{\"execute\":\"vm-set\",\"arguments\":{\"vm\":\"vm\","
			  "\"tier-high\":[2],\"tier-low\":[1]}}");
	status = daemon_reap(&r->d);
	CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
	daemon_next(&r->d);
	if (native_resume(r->vmm, r->d.attach, "vm", &r->ram, 1, NATIVE_SERVE_ZAP | NATIVE_KEEP))
		errx(1, "resume: %s", native_error(r->vmm));
	CHECK_EQ(rig_number(r, "pages-lost"), 0);
	/* The one that died may have kept the marks, and then they are kept. */
	set_marks(r, 2, 1);
	tier_until(r, "compressed", "objects", 0);
	CHECK_EQ(tier(r, "below", "units-bytes"), r->ram.bytes);
	/* A store that was taken over counts what it had when it has settled, beside all that. */
	for (uint64_t end = clock_ns() + PATIENCE_NS; stored != r->units; usleep(10000)) {
		if (clock_ns() > end)
			give_up(r, "not every unit is stored once");
		daemon_ask(&r->d, "{\"execute\":\"query-backends\"}");
		stored = 0;
		for (const char *p = r->d.answer; (p = strstr(p, "\"objects\":")); p++)
			stored += strtoull(p + 10, NULL, 10);
	}
	rig_check_all(r);
	rig_end(r);
}

static void killed(struct rig *r)
{
	static const char *const points[] = {"move_owned", "move_read", "move_stored",
					     "move_named"};

	for (size_t i = 0; i < sizeof(points) / sizeof(points[0]); i++)
		die_at(r, points[i]);
}

int main(int argc, char **argv)
{
	static const struct rig_case cases[] = {
		{"starts_on_top", starts_on_top},
		{"mark_holds", mark_holds},
		{"cold_first", cold_first},
		{"first_full", first_full},
		{"below_full", below_full},
		{"below_fails", below_fails},
		{"removed", removed},
		{"races_shmem", races_shmem},
		{"races_hugetlb", races_hugetlb},
		{"killed", killed},
	};

	return rig_main(argc, argv, cases, sizeof(cases) / sizeof(cases[0]));
}
