/* SPDX-License-Identifier: BSD-3-Clause */
/* test_loads.c: what comes back is what went, or a memory error, and never zeroes instead. */
#include "base/clock.h"
#include "engine/rig.h"

#include <dirent.h>
#include <err.h>
#include <errno.h>
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

/*
 * The VMM drops pages itself and then says so, as the attach library does for a balloon: they are
 * off the books at once, and what was written after the drop stays.
 */
static void dropped(struct rig *r, enum native_kind kind, size_t units, size_t gone)
{
	uint64_t resident;

	rig_start(r, "", "");
	rig_attach(r, units * (kind == NATIVE_HUGETLB ? 2 * MIB : KT_PAGE), kind);
	resident = rig_number(r, "resident-bytes");
	CHECK_EQ(kt_punch(r->ram.memfd, 0, (off_t)(gone * r->unit_bytes)), 0);
	/* The discard covers as many again that were not dropped: those were "written since". */
	CHECK_EQ(native_discard_by(r->vmm, r->ram.id, 0, 2 * gone * r->unit_bytes,
				   clock_ns() + 60 * NS_PER_S),
		 0);
	CHECK_EQ(rig_number(r, "resident-bytes"), resident - gone * r->unit_bytes);
	CHECK_EQ(rig_number(r, "discards"), gone);
	for (size_t i = 0; i < units; i++)
		CHECK(rig_is(r, i, i >= gone));
	rig_end(r);
}

static void dropped_shmem(struct rig *r)
{
	dropped(r, NATIVE_SHMEM, 128, 32);
}

static void dropped_hugetlb(struct rig *r)
{
	kt_set_free_huge_pages(8);
	dropped(r, NATIVE_HUGETLB, 8, 2);
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

/* A discard whose time had come before it was looked at: nothing is given up, nobody dies of it. */
static void late_discard(struct rig *r)
{
	rig_start(r, "", "");
	rig_attach(r, MIB / 2, NATIVE_SHMEM);
	rig_evict_all(r);
	CHECK_EQ(native_call(r->vmm,
			     "{\"execute\":\"discard\",\"arguments\":{\"id\":\"ram\",\"offset\":0,"
			     "\"size\":65536,\"deadline\":1}}",
			     NULL, 0),
		 -EPROTO);
	CHECK(strstr(native_error(r->vmm), "too late"));
	rig_check_all(r);
	CHECK_EQ(rig_number(r, "discards"), 0);
	rig_end(r);
}

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

/* Which units can be read, in threads of their own: a lost one may hold its reader for ever. */
static size_t count_blocked(struct rig *r, struct kt_access *a)
{
	size_t blocked = 0;

	for (size_t i = 0; i < r->units; i++)
		kt_access_start(&a[i], rig_unit(r, i));
	for (int i = 0; i < 3000; i++) {
		blocked = 0;
		for (size_t k = 0; k < r->units; k++)
			blocked += !a[k].done;
		if (rig_number(r, "pages-lost") == blocked)
			break;
		usleep(10000);
	}
	return blocked;
}

/*
 * What is lost reads as a memory error also when the daemon has let go, in every mapping; where
 * the kernel has no such thing the daemon does not let go.
 */
static void lost_detach(struct rig *r)
{
	static struct kt_access a[32];
	size_t n = 0, second = 0;
	struct rig again;

	rig_start(r, "", "load-error = 1/4");
	daemon_ask(&r->d, "{\"execute\":\"query-host\"}");
	if (!strstr(r->d.answer, "\"poison\":true")) {
		rig_attach(r, 32 * KT_PAGE, NATIVE_SHMEM);
		rig_evict_all(r);
		n = count_blocked(r, a);
		CHECK(n > 0 && n < r->units);
		CHECK_EQ(native_detach(r->vmm), -EPROTO);
		CHECK(strstr(native_error(r->vmm), "lost"));
		CHECK_EQ(native_region_remove(r->vmm, "ram", false), -EPROTO);
		CHECK(strstr(native_error(r->vmm), "lost"));
		for (size_t i = 0; i < r->units; i++)
			CHECK(a[i].done || kt_blocked(&a[i]));
		printf("ok\n");
		fflush(NULL);
		_exit(0);
	}
	rig_attach(r, 32 * KT_PAGE, NATIVE_SHMEM);
	again = *r;
	/* Its page table has met none of it when it is let go of. */
	CHECK_EQ(native_ram_map(&again.ram, "again", r->ram.bytes, NATIVE_SHMEM, r->ram.memfd), 0);
	CHECK_EQ(native_region_add(r->vmm, &again.ram), 0);
	rig_evict_all(r);
	for (size_t i = 0; i < r->units; i++)
		n += (size_t)lost_or_right(r, i);
	CHECK(n > 0 && n < r->units);
	CHECK_EQ(native_detach(r->vmm), 0);
	for (size_t i = 0; i < r->units; i++) {
		second += (size_t)lost_or_right(&again, i);
		n -= (size_t)lost_or_right(r, i);
	}
	CHECK_EQ(n, 0);
	CHECK(second > 0);
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

/* Also for a client that pins. */
static void pin_retried(struct rig *r)
{
	rig_start(r, "", "load-error = 1/2\nload-errno = ETIMEDOUT");
	rig_attach(r, MIB / 2, NATIVE_SHMEM);
	rig_evict_all(r);
	CHECK_EQ(native_pin(r->vmm, "ram", 0, 64 * KT_PAGE), 0);
	CHECK_EQ(rig_number(r, "pinned-bytes"), 64 * KT_PAGE);
	for (size_t i = 0; i < 64; i++)
		CHECK(rig_cached(r, i));
	CHECK_EQ(native_unpin(r->vmm, "ram", 0, 64 * KT_PAGE), 0);
	rig_check_all(r);
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

/*
 * A VM with more loads in flight than there is room for keeps no other one from its own: that one
 * gets the next slot, and not when the crowd is through.
 */
static void starved(struct rig *r)
{
	static struct kt_access a[300];
	struct rig other;
	struct kt_access b;
	size_t before = 0, done = 0;

	rig_start(r, "", "delay-us = 200000");
	other = *r;
	rig_attach(r, 300 * KT_PAGE, NATIVE_SHMEM);
	CHECK_EQ(native_ram_make(&other.ram, "ram", MIB / 4, NATIVE_SHMEM), 0);
	CHECK_EQ(native_open(r->d.attach, &other.vmm), 0);
	other.unit_bytes = KT_PAGE;
	rig_tag(&other, 7, 1);
	CHECK_EQ(native_attach(other.vmm, "other", &other.ram, 1, 0), 0);
	while (daemon_vm_number(&r->d, "other", "evictions") < 1)
		daemon_ask(&r->d, "{\"execute\":\"vm-reclaim\",\"arguments\":{\"vm\":\"other\","
				  "\"bytes\":4096}}");
	rig_evict_all(r);
	for (size_t i = 0; i < 300; i++)
		kt_access_start(&a[i], rig_unit(r, i));
	kt_access_start(&b, rig_unit(&other, 7));
	for (size_t i = 0; i < 300; i++)
		before += a[i].done;
	rig_access_end(&b);
	for (size_t i = 0; i < 300; i++)
		done += a[i].done;
	kt_saw("%zu of 300 others were done before, %zu of them from the start", done, before);
	/* Two workers with 32 slots each: it stood behind those that had one, and no more. */
	CHECK(done - before < 200);
	for (size_t i = 0; i < 300; i++)
		rig_access_end(&a[i]);
	CHECK(rig_is(&other, 7, 1));
	native_close(other.vmm, true);
	rig_check_all(r);
	rig_end(r);
}

/* Whatever is stored or loaded lies in buffers that the backend was told of before. */
static void announced(struct rig *r)
{
	static struct kt_access a[120];

	rig_start(r, "", "delay-us = 3000");
	rig_attach(r, MIB, NATIVE_SHMEM);
	rig_evict_all(r);
	for (size_t i = 0; i < 120; i++)
		kt_access_start(&a[i], rig_unit(r, i));
	for (size_t i = 0; i < 120; i++)
		rig_access_end(&a[i]);
	daemon_ask(&r->d, "{\"execute\":\"vm-prefetch\",\"arguments\":{\"vm\":\"vm\"}}");
	rig_check_all(r);
	CHECK(rig_backend_number(r, "inject", "loads") >= 120);
	CHECK(rig_backend_number(r, "inject", "stores") >= r->units);
	CHECK_EQ(rig_backend_number(r, "inject", "outside"), 0);
	rig_end(r);
}

/* A removal that is given up has taken nothing from the VM. */
static void remove_cancelled(struct rig *r)
{
	static struct daemon other;
	uint64_t evicted;

	rig_start(r, "", "delay-us = 5000");
	daemon_connect(&r->d, &other);
	rig_attach(r, MIB, NATIVE_SHMEM);
	rig_evict_all(r);
	/* Not by daemon_ask(), which waits for the answer. */
	rig_send(r, "{\"execute\":\"backend-remove\",\"arguments\":{\"name\":\"inject\","
		    "\"job\":\"gone\"}}");
	while (rig_number(r, "evicted-bytes") == r->ram.bytes)
		usleep(1000);
	daemon_ask(&other, "{\"execute\":\"job-cancel\",\"arguments\":{\"job\":\"gone\"}}");
	for (int i = 0; i < 3000 && !strstr(other.answer, "\"return\":[]"); i++) {
		usleep(10000);
		daemon_ask(&other, "{\"execute\":\"query-jobs\"}");
	}
	evicted = rig_number(r, "evicted-bytes");
	CHECK(evicted > 0 && evicted < r->ram.bytes);
	rig_evict_all(r);
	rig_check_all(r);
	close(other.fd);
	rig_end(r);
}

/* CPU time of the fault workers, in ticks. */
static uint64_t worker_ticks(const struct rig *r)
{
	char path[64], text[512];
	uint64_t sum = 0;
	DIR *dir;

	snprintf(path, sizeof(path), "/proc/%d/task", (int)r->d.pid);
	dir = opendir(path);
	CHECK(dir);
	for (struct dirent *ent; (ent = readdir(dir));) {
		char stat[128], *p;
		ssize_t n = 0;
		int fd;

		snprintf(stat, sizeof(stat), "%s/%.20s/stat", path, ent->d_name);
		fd = open(stat, O_RDONLY | O_CLOEXEC);
		if (fd < 0)
			continue;
		n = read(fd, text, sizeof(text) - 1);
		close(fd);
		text[n > 0 ? n : 0] = 0;
		p = strstr(text, "(ebb-fault) ");
		if (!p)
			continue;
		p += strlen("(ebb-fault) ");
		/* Fields 14 and 15; p is at the third. */
		for (int i = 3; i < 14 && p; i++)
			p = strchr(p, ' ') ? strchr(p, ' ') + 1 : NULL;
		if (p) {
			sum += strtoull(p, &p, 10);
			sum += strtoull(p, NULL, 10);
		}
	}
	closedir(dir);
	return sum;
}

/*
 * Somebody waits for the workers to pass while a load takes its time: they sleep until it is there,
 * also when there are faults that they do not serve meanwhile.
 */
static void idle(struct rig *r)
{
	struct kt_access a, b;
	uint64_t before;

	rig_start(r, "", "delay-us = 4000000");
	rig_attach(r, MIB, NATIVE_SHMEM);
	rig_evict_all(r);
	kt_access_start(&a, rig_unit(r, 50));
	usleep(300000);
	before = worker_ticks(r);
	rig_send(r, "{\"execute\":\"backend-add\",\"arguments\":{\"name\":\"more\","
		    "\"driver\":\"example\"}}");
	usleep(300000);
	kt_access_start(&b, rig_unit(r, 60));
	rig_access_end(&a);
	/* Of four seconds one at most, by however many. */
	CHECK(worker_ticks(r) - before < (uint64_t)sysconf(_SC_CLK_TCK));
	rig_access_end(&b);
	CHECK(rig_is(r, 50, 1) && rig_is(r, 60, 1));
	/* Bringing all back would take as long again. */
	daemon_kill(&r->d);
	native_close(r->vmm, false);
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
		{"dropped_shmem", dropped_shmem},
		{"dropped_hugetlb", dropped_hugetlb},
		{"dontneed", dontneed},
		{"late_discard", late_discard},
		{"detach", detach},
		{"detach_retries", detach_retries},
		{"retried", retried},
		{"pin_retried", pin_retried},
		{"crowded", crowded},
		{"starved", starved},
		{"announced", announced},
		{"remove_cancelled", remove_cancelled},
		{"idle", idle},
		{"lost", lost},
		{"lost_detach", lost_detach},
		{"store_error", store_error},
		{"store_full", store_full},
		{"store_some", store_some},
		{"quit", quit},
		{"killed", killed},
		{"foreign_zeroes", foreign_zeroes},
	};

	return rig_main(argc, argv, cases, sizeof(cases) / sizeof(cases[0]));
}
