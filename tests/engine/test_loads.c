/* SPDX-License-Identifier: BSD-3-Clause */
/* test_loads.c: what comes back is what went, or a memory error, and never zeroes instead. */
#include "engine/rig.h"

#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <sys/file.h>
#include <sys/wait.h>
#include <unistd.h>

#define MIB	  ((size_t)1 << 20)
#define SHMEM_THP "/sys/kernel/mm/transparent_hugepage/shmem_enabled"

/* Resident, and the VMM punched it away: it reads as zero, and the VM goes on. */
static void discarded(struct rig *r)
{
	struct kt_access a;

	rig_start(r, "", "");
	rig_attach(r, MIB / 2, NATIVE_SHMEM);
	CHECK_EQ(kt_punch(r->ram.memfd, 0, 32 * KT_PAGE), 0);
	for (size_t i = 0; i < 32; i++) {
		kt_access_start(&a, rig_unit(r, i));
		CHECK_EQ(rig_access_end(&a), 0);
		CHECK(rig_is(r, i, 0));
	}
	rig_until(r, "discards", 32);
	CHECK_EQ(rig_number(r, "discards"), 32);
	for (size_t i = 32; i < r->units; i++)
		CHECK(rig_is(r, i, 1));
	rig_end(r);
}

/* MADV_DONTNEED and a VMM's MADV_REMOVE say nothing about what is stored. */
static void dontneed(struct rig *r)
{
	rig_start(r, "", "");
	rig_attach(r, MIB / 2, NATIVE_SHMEM);
	rig_reclaim(r, MIB / 4);
	CHECK_EQ(madvise(r->ram.addr, r->ram.bytes, MADV_DONTNEED), 0);
	rig_check_all(r);
	rig_evict_all(r);
	CHECK_EQ(madvise(r->ram.addr, r->ram.bytes, MADV_REMOVE), 0);
	rig_check_all(r);
	CHECK_EQ(rig_number(r, "discards"), 0);
	rig_end(r);
}

static sigjmp_buf bus;

static void on_bus(int sig)
{
	siglongjmp(bus, sig);
}

/* 1: the unit gives a memory error; 0: it is as it was. Anything else ends the test. */
static int lost_or_right(struct rig *r, size_t unit)
{
	struct sigaction sa = {.sa_handler = on_bus};

	sigaction(SIGBUS, &sa, NULL);
	if (sigsetjmp(bus, 1))
		return 1;
	CHECK(rig_is(r, unit, 1));
	return 0;
}

/* Content that cannot be brought back is a memory error on that page alone. */
static void lost(struct rig *r)
{
	size_t n = 0;

	rig_start(r, "", "load-error = 1/4");
	daemon_ask(&r->d, "{\"execute\":\"query-host\"}");
	if (!strstr(r->d.answer, "\"poison\":true"))
		SKIP("UFFDIO_POISON");
	rig_attach(r, MIB / 2, NATIVE_SHMEM);
	rig_evict_all(r);
	for (size_t i = 0; i < r->units; i++)
		n += (size_t)lost_or_right(r, i);
	CHECK(n > 0 && n < r->units);
	rig_until(r, "pages-lost", n);
	CHECK_EQ(rig_number(r, "pages-lost"), n);
	CHECK_EQ(rig_number(r, "lost-bytes"), n * KT_PAGE);
	rig_event(r, "PAGE_LOST");
	/* It stays lost, and its neighbours stay right. */
	for (size_t i = 0; i < r->units; i++)
		n -= (size_t)lost_or_right(r, i);
	CHECK_EQ(n, 0);
	native_close(r->vmm, true);
	daemon_stop(&r->d);
}

/* A load that may be tried again is: the handle outlives it. */
static void retried(struct rig *r)
{
	rig_start(r, "", "load-error = 1/2\nload-errno = ETIMEDOUT");
	rig_attach(r, MIB / 2, NATIVE_SHMEM);
	rig_evict_all(r);
	rig_check_all(r);
	CHECK(rig_number(r, "fault-retries") > 0);
	CHECK_EQ(rig_number(r, "pages-lost"), 0);
	rig_end(r);
}

/* More loads at once than a fault thread has room for, from one VM: another VM's come too. */
static void crowded(struct rig *r)
{
	static struct kt_access a[120];
	struct rig other;
	struct kt_access b;

	rig_start(r, "", "delay-us = 150000");
	other = *r;
	rig_attach(r, MIB / 2, NATIVE_SHMEM);
	CHECK_EQ(native_ram_make(&other.ram, "ram", MIB / 4, NATIVE_SHMEM), 0);
	CHECK_EQ(native_open(r->d.attach, &other.vmm), 0);
	other.unit_bytes = KT_PAGE;
	rig_tag(&other, 7, 1);
	CHECK_EQ(native_attach(other.vmm, "other", &other.ram, 1, 0), 0);
	while (daemon_vm_number(&r->d, "other", "evictions") < 1)
		daemon_ask(&r->d, "{\"execute\":\"vm-reclaim\",\"arguments\":{\"vm\":\"other\","
				  "\"bytes\":4096}}");
	rig_evict_all(r);
	for (size_t i = 0; i < 120; i++)
		kt_access_start(&a[i], rig_unit(r, i));
	usleep(50000);
	kt_access_start(&b, rig_unit(&other, 7));
	for (size_t i = 0; i < 120; i++)
		rig_access_end(&a[i]);
	rig_access_end(&b);
	CHECK(rig_is(&other, 7, 1));
	native_close(other.vmm, true);
	rig_check_all(r);
	rig_end(r);
}

static void no_store(struct rig *r, const char *inject)
{
	rig_start(r, "", inject);
	rig_attach(r, MIB / 2, NATIVE_SHMEM);
	CHECK_EQ(rig_reclaim(r, 0), 0);
	CHECK(rig_number(r, "evictions-failed") > 0);
	CHECK_EQ(rig_number(r, "resident-bytes"), r->ram.bytes);
	for (size_t i = 0; i < r->units; i++)
		CHECK(rig_cached(r, i));
	rig_check_all(r);
	/* The protection is gone too. */
	for (size_t i = 0; i < r->units; i++)
		rig_tag(r, i, 2);
	rig_end(r);
}

static void store_error(struct rig *r)
{
	no_store(r, "store-error = 1/1");
}

static void store_full(struct rig *r)
{
	no_store(r, "store-error = 1/1\nstore-errno = ENOSPC");
}

/* Some are stored and some are not, within one batch. */
static void store_some(struct rig *r)
{
	rig_start(r, "", "store-error = 1/3\npartial = 1/3\nagain = 1/4\nreorder = 1\nfew = 1/2");
	rig_attach(r, MIB, NATIVE_SHMEM);
	for (int i = 0; i < 10; i++)
		rig_reclaim(r, 0);
	CHECK(rig_number(r, "evictions") > 0);
	CHECK(rig_number(r, "evictions-failed") > 0);
	rig_check_all(r);
	rig_end(r);
}

/* Everything is back before the ranges are let go. */
static void detach(struct rig *r)
{
	rig_start(r, "", "");
	rig_attach(r, MIB, NATIVE_SHMEM);
	rig_evict_all(r);
	CHECK_EQ(native_detach(r->vmm), 0);
	for (size_t i = 0; i < r->units; i++)
		CHECK(rig_cached(r, i));
	rig_check_all(r);
	native_close(r->vmm, true);
	daemon_stop(&r->d);
}

/* Also when the backend needs to be asked several times. */
static void detach_retries(struct rig *r)
{
	rig_start(r, "", "load-error = 1/3\nload-errno = ETIMEDOUT");
	rig_attach(r, MIB / 2, NATIVE_SHMEM);
	rig_evict_all(r);
	CHECK_EQ(native_detach(r->vmm), 0);
	rig_check_all(r);
	native_close(r->vmm, true);
	daemon_stop(&r->d);
}

/* Nobody serves the faults any more: they wait, as long as the client keeps its descriptor. */
static void waits_for_nobody(struct rig *r)
{
	struct kt_access a[4];

	for (size_t i = 0; i < 4; i++)
		kt_access_start(&a[i], rig_unit(r, 100 * i));
	for (size_t i = 0; i < 4; i++)
		CHECK(kt_blocked(&a[i]));
	for (size_t i = 0; i < r->units; i++)
		CHECK(!rig_cached(r, i));
	native_close(r->vmm, false);
	printf("ok\n");
	fflush(NULL);
	_exit(0); /* with threads that wait for ever */
}

static void killed(struct rig *r)
{
	struct kt_access a;

	rig_start(r, "", "delay-us = 500000");
	rig_attach(r, 2 * MIB, NATIVE_SHMEM);
	rig_evict_all(r);
	/* One that it has read already. */
	kt_access_start(&a, rig_unit(r, 50));
	usleep(100000);
	daemon_kill(&r->d);
	CHECK(kt_blocked(&a));
	waits_for_nobody(r);
}

static void quit(struct rig *r)
{
	rig_start(r, "", "");
	rig_attach(r, 2 * MIB, NATIVE_SHMEM);
	rig_evict_all(r);
	daemon_stop(&r->d);
	waits_for_nobody(r);
}

/*
 * A process that is not attached reads holes and so puts zeroes there. With MINOR registered the
 * guest's own access still asks, and gets what was stored.
 */
static void foreign_zeroes(struct rig *r)
{
	int status, lock;
	pid_t pid;

	/* Two at a time would put back what the other one has set. */
	lock = open(SHMEM_THP, O_RDONLY | O_CLOEXEC);
	if (lock < 0 || flock(lock, LOCK_EX) || !kt_set(SHMEM_THP, "advise"))
		SKIP("huge pages of shmem");
	rig_start(r, "", "");
	CHECK_EQ(native_ram_make(&r->ram, "ram", MIB, NATIVE_SHMEM), 0);
	rig_attach_ram(r);
	if (*rig_suspended(r))
		SKIP("eviction beside huge pages of shmem: %s", rig_suspended(r));
	rig_evict_all(r);
	pid = fork();
	CHECK(pid >= 0);
	if (pid == 0) {
		const char *map = mmap(NULL, r->ram.bytes, PROT_READ, MAP_SHARED, r->ram.memfd, 0);
		char sum = 0;

		for (size_t i = 0; map != MAP_FAILED && i < 64; i++)
			sum |= map[2 * i * KT_PAGE];
		_exit(map == MAP_FAILED ? 2 : sum != 0);
	}
	CHECK_EQ(waitpid(pid, &status, 0), pid);
	CHECK_EQ(status, 0); /* it read zeroes, which is the hazard */
	for (size_t i = 0; i < 64; i++)
		CHECK(rig_cached(r, 2 * i));
	rig_check_all(r);
	rig_until(r, "poisoned-fills", 64);
	CHECK_EQ(rig_number(r, "poisoned-fills"), 64);
	rig_end(r);
}

int main(int argc, char **argv)
{
	static const struct rig_case cases[] = {
		{"discarded", discarded},
		{"dontneed", dontneed},
		{"detach", detach},
		{"detach_retries", detach_retries},
		{"retried", retried},
		{"crowded", crowded},
		{"lost", lost},
		{"store_error", store_error},
		{"store_full", store_full},
		{"store_some", store_some},
		{"quit", quit},
		{"killed", killed},
		{"foreign_zeroes", foreign_zeroes},
	};

	return rig_main(argc, argv, cases, sizeof(cases) / sizeof(cases[0]));
}
