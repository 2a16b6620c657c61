/* SPDX-License-Identifier: BSD-3-Clause */
/* test_limits.c: a VM's faults wait at its limit, also while its evictors are slow. */
#include "engine/rig.h"

#include <pthread.h>
#include <unistd.h>

#define MIB	  ((size_t)1 << 20)
#define RAM_UNITS (8 * MIB / KT_PAGE)
/*
 * With a limit of 4 MiB, evictors are told to look above 3.25, have to find something above 3.5,
 * and faults wait above 6.25.
 */
#define LIMIT	    (4 * MIB)
#define BEGIN_UNITS (13 * MIB / 4 / KT_PAGE)
#define MUST_UNITS  (14 * MIB / 4 / KT_PAGE)
/* Evictions that take long between protecting and storing; loads do not. */
#define SLOW "folio-probe = no\nallow-quarantine = yes\n"

struct toucher {
	struct rig *rig;
	size_t first;
	pthread_t thread;
};

static void *toucher_main(void *arg)
{
	struct toucher *t = arg;

	for (size_t i = t->first; i < t->rig->units; i++)
		rig_tag(t->rig, i, 1);
	return NULL;
}

static void attach_empty(struct rig *r)
{
	CHECK_EQ(native_ram_make(&r->ram, "ram", RAM_UNITS * KT_PAGE, NATIVE_SHMEM), 0);
	r->unit_bytes = KT_PAGE;
	r->units = RAM_UNITS;
	CHECK_EQ(native_open(r->d.attach, &r->vmm), 0);
	CHECK_EQ(native_attach(r->vmm, "vm", &r->ram, 1, NATIVE_SERVE_ZAP), 0);
	/* Until all is known of it, nothing may be evicted, and no fault waits. */
	while (*rig_suspended(r))
		usleep(10000);
}

/* A guest that goes on to the end of its memory comes to wait. */
static void waits(struct rig *r, size_t first)
{
	struct toucher t = {.rig = r, .first = first};

	CHECK_EQ(pthread_create(&t.thread, NULL, toucher_main, &t), 0);
	rig_until(r, "faults-parked", 1);
	rig_limit(r, 0);
	pthread_join(t.thread, NULL);
}

/* That nothing was cold enough as long as nothing had to go is no reason to let faults through. */
static void unhurried(struct rig *r)
{
	rig_start(r, SLOW "quarantine-ms = 1500\n", "");
	attach_empty(r);
	rig_limit(r, LIMIT);
	for (size_t i = 0; i < MUST_UNITS - 16; i++) {
		rig_tag(r, i, 1);
		if (i > BEGIN_UNITS)
			usleep(2000); /* a round of an evictor each */
	}
	waits(r, MUST_UNITS - 16);
	rig_check_all(r);
	rig_end(r);
}

/* Nor that the guest wrote to everything before it could be stored. */
static void outrun(struct rig *r)
{
	struct rig_writer w;
	size_t hot = MUST_UNITS + 100;

	rig_start(r, SLOW "quarantine-ms = 300\n", "");
	attach_empty(r);
	for (size_t i = 0; i < hot; i++)
		rig_tag(r, i, 1);
	rig_writer_start(&w, r, 0, hot, 0);
	rig_limit(r, LIMIT);
	rig_until(r, "evictions-cancelled", 2800);
	waits(r, hot);
	rig_writer_stop(&w);
	CHECK_EQ(rig_writer_lost(&w), 0);
	for (size_t i = hot; i < r->units; i++)
		CHECK(rig_is(r, i, 1));
	rig_end(r);
}

int main(int argc, char **argv)
{
	static const struct rig_case cases[] = {
		{"unhurried", unhurried},
		{"outrun", outrun},
	};

	return rig_main(argc, argv, cases, sizeof(cases) / sizeof(cases[0]));
}
