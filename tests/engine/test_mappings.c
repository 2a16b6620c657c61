/* SPDX-License-Identifier: BSD-3-Clause */
/* test_mappings.c: RAM that several processes map: attached, lying, or unknown. */
#include "engine/rig.h"

#include <dirent.h>
#include <err.h>
#include <fcntl.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/fd.h"

#define MIB    ((size_t)1 << 20)
#define ROUNDS 12

/* What this process and another one tell each other. */
struct shared {
	_Atomic int ready, go, end;
	_Atomic uint64_t writes, wrong;
	uint64_t count[512];
	enum native_kind kind;
};

static struct shared *shared_new(void)
{
	struct shared *s =
		mmap(NULL, sizeof(*s), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);

	CHECK(s != MAP_FAILED);
	return s;
}

static void wait_for(const _Atomic int *flag)
{
	for (int i = 0; i < 30000 && !atomic_load(flag); i++)
		usleep(1000);
	CHECK(atomic_load(flag));
}

/* In a child: RAM mapped and attached as a secondary. */
static struct rig attach_second(const struct rig *r, int memfd)
{
	struct rig s = *r;

	CHECK_EQ(native_ram_map(&s.ram, "ram", r->ram.bytes, NATIVE_SHMEM, memfd), 0);
	CHECK_EQ(native_open(r->d.attach, &s.vmm), 0);
	return s;
}

static pid_t start(void (*child)(const struct rig *, struct shared *), const struct rig *r,
		   struct shared *s)
{
	pid_t pid = fork();

	CHECK(pid >= 0);
	if (pid == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL); /* a failed test leaves nobody behind */
		child(r, s);
		_exit(0);
	}
	return pid;
}

static void finish(pid_t pid)
{
	int status;

	CHECK_EQ(waitpid(pid, &status, 0), pid);
	CHECK_EQ(status, 0);
}

static void reader(const struct rig *r, struct shared *s)
{
	struct rig mine = attach_second(r, r->ram.memfd);

	if (native_attach(mine.vmm, "second", &mine.ram, 1, NATIVE_SECONDARY))
		errx(1, "secondary: %s", native_error(mine.vmm));
	atomic_store(&s->ready, 1);
	wait_for(&s->go);
	/* Its own mapping: the content comes into the primary's. */
	rig_check_all(&mine);
	atomic_store(&s->ready, 2);
	wait_for(&s->end);
}

/* Whoever waits in another mapping than the one that is filled goes on too. */
static void second_reads(struct rig *r)
{
	struct shared *s = shared_new();
	pid_t pid;

	rig_start(r, "", "");
	rig_attach(r, MIB, NATIVE_SHMEM);
	pid = start(reader, r, s);
	wait_for(&s->ready);
	rig_evict_all(r);
	atomic_store(&s->go, 1);
	for (int i = 0; i < 30000 && atomic_load(&s->ready) < 2; i++)
		usleep(1000);
	CHECK_EQ(atomic_load(&s->ready), 2);
	rig_check_all(r);
	atomic_store(&s->end, 1);
	finish(pid);
	rig_end(r);
}

static void writer(const struct rig *r, struct shared *s)
{
	struct rig mine = attach_second(r, r->ram.memfd);

	if (native_attach(mine.vmm, "second", &mine.ram, 1, NATIVE_SECONDARY))
		errx(1, "secondary: %s", native_error(mine.vmm));
	atomic_store(&s->ready, 1);
	for (size_t i = 0; !atomic_load(&s->end); i = (i + 1) % mine.units) {
		volatile uint64_t *p = (volatile uint64_t *)(void *)(rig_unit(&mine, i) + 2048);

		*p = ++s->count[i];
		usleep(200);
	}
}

/* Protected in every mapping: a back end's write counts as much as the VMM's. */
static void second_writes(struct rig *r)
{
	struct shared *s = shared_new();
	size_t wrong = 0;
	pid_t pid;

	rig_start(r, "", "delay-us = 20000");
	rig_attach(r, MIB / 4, NATIVE_SHMEM);
	pid = start(writer, r, s);
	wait_for(&s->ready);
	/* A busy machine needs more rounds for as many evictions. */
	for (int i = 0; i < ROUNDS || (i < 50 * ROUNDS && rig_number(r, "evictions") <= r->units);
	     i++)
		rig_reclaim(r, 0);
	atomic_store(&s->end, 1);
	finish(pid);
	CHECK(rig_number(r, "evictions") > r->units);
	for (size_t i = 0; i < r->units; i++)
		wrong += s->count[i] && *(uint64_t *)(void *)(rig_unit(r, i) + 2048) != s->count[i];
	CHECK_EQ(wrong, 0);
	rig_end(r);
}

static void liar(const struct rig *r, struct shared *s)
{
	int other = kt_memfd(r->ram.bytes, false);
	struct rig mine = attach_second(r, other);
	struct kt_access a[8];
	int real = mine.ram.memfd;

	/* Maps a memory of its own, and says that it is the VM's. */
	mine.ram.memfd = r->ram.memfd;
	if (native_attach(mine.vmm, "second", &mine.ram, 1, NATIVE_SECONDARY)) {
		atomic_store(&s->ready, 3); /* found out: as good */
		return;
	}
	atomic_store(&s->ready, 1);
	wait_for(&s->go);
	for (size_t i = 0; i < 8; i++)
		kt_access_start(&a[i], rig_unit(&mine, 16 * i));
	usleep(500000);
	/* Content would have come as a page of its memory. */
	for (size_t i = 0; i < r->units; i++) {
		char page[KT_PAGE] = {0};

		if (pread(real, page, sizeof(page), (off_t)(i * KT_PAGE)) != (ssize_t)KT_PAGE)
			_exit(3);
		for (size_t k = 0; k < KT_PAGE; k++)
			if (page[k])
				atomic_fetch_add(&s->wrong, 1);
	}
	atomic_store(&s->ready, 2);
	wait_for(&s->end);
	_exit(0);
}

/* A secondary that lies about what it maps is never given the VM's content. */
static void second_lies(struct rig *r)
{
	struct shared *s = shared_new();
	pid_t pid;

	rig_start(r, "", "");
	rig_attach(r, MIB, NATIVE_SHMEM);
	pid = start(liar, r, s);
	wait_for(&s->ready);
	if (atomic_load(&s->ready) != 3) {
		rig_evict_all(r);
		atomic_store(&s->go, 1);
		for (int i = 0; i < 30000 && atomic_load(&s->ready) < 2; i++)
			usleep(1000);
		CHECK_EQ(atomic_load(&s->ready), 2);
		CHECK_EQ(atomic_load(&s->wrong), 0);
	}
	rig_check_all(r);
	atomic_store(&s->end, 1);
	finish(pid);
	rig_end(r);
}

static void other_vm(const struct rig *r, struct shared *s)
{
	struct rig mine = attach_second(r, kt_memfd(r->ram.bytes, false));

	/* Its own memory, of which no VM is known. */
	if (native_attach(mine.vmm, "second", &mine.ram, 1, NATIVE_SECONDARY) != -EPROTO)
		_exit(1);
	/* The VM's, as if it were another VM. */
	CHECK_EQ(native_ram_map(&mine.ram, "ram", r->ram.bytes, NATIVE_SHMEM, r->ram.memfd), 0);
	_exit(native_attach(mine.vmm, "other", &mine.ram, 1, 0) != -EPROTO);
}

static void second_refused(struct rig *r)
{
	rig_start(r, "", "");
	rig_attach(r, MIB / 4, NATIVE_SHMEM);
	finish(start(other_vm, r, NULL));
	rig_evict_all(r);
	rig_check_all(r);
	rig_end(r);
}

static void holds_mapping(const struct rig *r, struct shared *s)
{
	const char *map = mmap(NULL, r->ram.bytes, PROT_READ, MAP_SHARED, r->ram.memfd, 0);

	CHECK(map != MAP_FAILED);
	atomic_store(&s->ready, 1);
	wait_for(&s->end);
}

/* Mapped by a process that is not attached: nothing is evicted, and the operator is told why. */
static void foreign(struct rig *r)
{
	struct shared *s = shared_new();
	pid_t pid;

	rig_start(r, "", "");
	CHECK_EQ(native_ram_make(&r->ram, "ram", 8 * MIB, NATIVE_SHMEM), 0);
	pid = start(holds_mapping, r, s);
	wait_for(&s->ready);
	rig_attach_ram(r);
	CHECK(strstr(rig_suspended(r), "not attached"));
	CHECK_EQ(rig_reclaim(r, 0), 0);
	CHECK(strstr(r->d.answer, "not attached"));
	CHECK_EQ(rig_number(r, "evictions"), 0);
	rig_event(r, "VM_SUSPENDED");
	for (size_t i = 0; i < r->units; i++)
		CHECK(rig_cached(r, i));
	/* A limit suspends no rule. */
	rig_limit(r, 4 * MIB);
	usleep(300000);
	CHECK_EQ(rig_number(r, "evictions"), 0);
	rig_check_all(r);
	atomic_store(&s->end, 1);
	finish(pid);
	rig_end(r);
}

/* ---- the primary's process dies while another one maps its RAM ---- */

static void primary(const struct rig *r, struct shared *s)
{
	struct rig mine = *r;

	CHECK_EQ(native_ram_map(&mine.ram, "ram", r->ram.bytes, s->kind, r->ram.memfd), 0);
	rig_attach_ram(&mine);
	atomic_store(&s->ready, 1);
	pause();
}

/* A back end that has accesses under way when the VMM dies, and others later. */
static void survivor(const struct rig *r, struct shared *s)
{
	struct rig mine = *r;
	struct kt_access a[8];

	CHECK_EQ(native_ram_map(&mine.ram, "ram", r->ram.bytes, s->kind, r->ram.memfd), 0);
	CHECK_EQ(native_open(r->d.attach, &mine.vmm), 0);
	mine.unit_bytes = mine.ram.page_bytes;
	mine.units = mine.ram.bytes / mine.unit_bytes;
	if (native_attach(mine.vmm, "second", &mine.ram, 1, NATIVE_SECONDARY))
		errx(1, "secondary: %s", native_error(mine.vmm));
	atomic_store(&s->ready, 2);
	wait_for(&s->go);
	for (size_t i = 0; i < 8; i++)
		kt_access_start(&a[i], rig_unit(&mine, i));
	usleep(20000);
	atomic_store(&s->ready, 3);
	for (size_t i = 0; i < 8; i++)
		rig_access_end(&a[i]);
	rig_check_all(&mine);
	for (size_t i = 0; i < mine.units; i++) {
		rig_tag(&mine, i, 2);
		CHECK(rig_is(&mine, i, 2));
	}
	atomic_store(&s->ready, 4);
	wait_for(&s->end);
	if (atomic_load(&s->end) == 1)
		CHECK_EQ(native_region_remove(mine.vmm, "ram", false), 0);
	atomic_store(&s->ready, 5);
	pause();
}

static void wait_until(const _Atomic int *what, int value)
{
	for (int i = 0; i < 60000 && atomic_load(what) < value; i++)
		usleep(1000);
	CHECK_EQ(atomic_load(what), value);
}

static void ends(pid_t pid)
{
	CHECK_EQ(kill(pid, SIGKILL), 0);
	CHECK_EQ(waitpid(pid, NULL, 0), pid);
}

/* The daemon's descriptors of this kind: "/memfd:" for guest RAM, tables and stores. */
static unsigned int daemon_holds(const struct rig *r, const char *kind)
{
	char path[64], target[256];
	unsigned int n = 0;
	struct dirent *entry;
	DIR *dir;

	snprintf(path, sizeof(path), "/proc/%d/fd", (int)r->d.pid);
	dir = opendir(path);
	CHECK(dir);
	while ((entry = readdir(dir))) {
		ssize_t len = readlinkat(dirfd(dir), entry->d_name, target, sizeof(target) - 1);

		target[len > 0 ? len : 0] = 0;
		n += strncmp(target, kind, strlen(kind)) == 0;
	}
	closedir(dir);
	return n;
}

static void until_gone(const struct rig *r, const char *kind)
{
	for (int i = 0; i < 3000 && daemon_holds(r, kind); i++)
		usleep(10000);
	CHECK_EQ(daemon_holds(r, kind), 0);
}

/*
 * What is evicted is there for a back end also when the VMM is gone, until it lets go, by itself
 * (end 1) or with its process (end 2).
 */
static void orphaned(struct rig *r, enum native_kind kind, size_t bytes, int end)
{
	struct shared *s = shared_new();
	struct rig anew;
	pid_t vmm, back_end;

	s->kind = kind;
	rig_start(r, "", "delay-us = 40000");
	r->ram.bytes = bytes;
	r->ram.memfd = kt_memfd(bytes, kind == NATIVE_HUGETLB);
	CHECK(r->ram.memfd >= 0);
	vmm = start(primary, r, s);
	wait_until(&s->ready, 1);
	back_end = start(survivor, r, s);
	wait_until(&s->ready, 2);
	rig_evict_all(r);
	atomic_store(&s->go, 1);
	wait_until(&s->ready, 3);
	ends(vmm);
	wait_until(&s->ready, 4);
	/* To the operator it has ended, and its name is free. */
	daemon_ask(&r->d, "{\"execute\":\"query-vms\"}");
	CHECK(!strstr(r->d.answer, "\"name\""));
	if (kind == NATIVE_SHMEM) {
		anew = *r;
		rig_attach(&anew, bytes, kind);
		rig_evict_all(&anew);
		rig_check_all(&anew);
		CHECK_EQ(native_detach(anew.vmm), 0);
		native_close(anew.vmm, true);
		native_ram_free(&anew.ram);
	}
	atomic_store(&s->end, end);
	wait_until(&s->ready, 5);
	if (end == 2)
		ends(back_end);
	/* All goes that was for the VM, also where the back end's connection lives on. */
	until_gone(r, "/memfd:");
	if (end == 2)
		until_gone(r, "anon_inode:[userfaultfd]");
	if (end == 1)
		ends(back_end);
	fd_close(&r->events);
	daemon_stop(&r->d);
}

static void orphan_leaves(struct rig *r)
{
	orphaned(r, NATIVE_SHMEM, 32 * KT_PAGE, 1);
}

static void orphan_dies(struct rig *r)
{
	orphaned(r, NATIVE_SHMEM, 32 * KT_PAGE, 2);
}

static void orphan_huge(struct rig *r)
{
	kt_set_free_huge_pages(8);
	orphaned(r, NATIVE_HUGETLB, 8 * KT_HUGE, 1);
}

/* Reads what is evicted, unattached, and so fills it with zeroes. */
static void pollutes(const struct rig *r, struct shared *s)
{
	const char *map = mmap(NULL, r->ram.bytes, PROT_READ, MAP_SHARED, r->ram.memfd, 0);

	CHECK(map != MAP_FAILED);
	for (size_t i = 0; i < r->units; i += 2)
		atomic_fetch_or(&s->wrong, (uint64_t)map[i * KT_PAGE]);
	atomic_store(&s->ready, 1);
	wait_for(&s->end);
}

/* Seen while it is there: what it has spoilt and the guest has not met yet is mended. */
static void foreign_late(struct rig *r)
{
	struct shared *s = shared_new();
	struct native_ram more;
	pid_t pid;

	rig_start(r, "", "");
	rig_attach(r, MIB, NATIVE_SHMEM);
	rig_evict_all(r);
	pid = start(pollutes, r, s);
	wait_for(&s->ready);
	CHECK_EQ(atomic_load(&s->wrong), 0); /* it read zeroes, which is the hazard */
	/* Any new region is an occasion to look; else it takes ten seconds. */
	CHECK_EQ(native_ram_make(&more, "more", 64 * KT_PAGE, NATIVE_SHMEM), 0);
	CHECK_EQ(native_region_add(r->vmm, &more), 0);
	CHECK(strstr(rig_suspended(r), "not attached"));
	rig_check_all(r);
	CHECK(rig_number(r, "poisoned-fills") >= r->units / 2);
	atomic_store(&s->end, 1);
	finish(pid);
	rig_end(r);
	native_ram_free(&more);
}

/* RAM with a name can be opened by anybody at any time: nobody has to be seen for it. */
static void named(struct rig *r)
{
	struct shared *s = shared_new();
	char path[] = "/dev/shm/ebb-engine.XXXXXX";
	int fd = mkstemp(path);
	pid_t pid;

	if (fd < 0)
		SKIP("no tmpfs on /dev/shm; runs in the lab");
	rig_start(r, "", "");
	CHECK(!ftruncate(fd, (off_t)MIB));
	CHECK_EQ(native_ram_map(&r->ram, "ram", MIB, NATIVE_SHMEM, fd), 0);
	rig_attach_ram(r);
	CHECK(!unlink(path));
	rig_evict_all(r);
	pid = start(pollutes, r, s);
	wait_for(&s->ready);
	atomic_store(&s->end, 1);
	finish(pid);
	CHECK_EQ(atomic_load(&s->wrong), 0);
	rig_check_all(r);
	CHECK(rig_number(r, "poisoned-fills") >= r->units / 2);
	rig_end(r);
	close(fd);
}

/* Reads all of it when nothing of it is mapped; how many MINOR faults it took, and how long. */
static uint64_t read_unmapped(struct rig *r, uint64_t *took_ns)
{
	uint64_t minor = rig_number(r, "minor-faults");

	CHECK(!madvise(r->ram.addr, r->ram.bytes, MADV_DONTNEED));
	*took_ns = clock_ns();
	for (size_t u = 0; u < r->units; u++)
		(void)*(volatile char *)rig_unit(r, u);
	*took_ns = clock_ns() - *took_ns;
	return rig_number(r, "minor-faults") - minor;
}

/*
 * What is cached and not mapped comes back through the daemon: soon with its neighbours, but for
 * what the VMM has dropped; and no write is lost to an eviction that goes on meanwhile.
 */
static void named_comes_back(struct rig *r)
{
	char path[] = "/dev/shm/ebb-engine.XXXXXX";
	struct rig_writer w = {.rig = r};
	uint64_t took_ns = 0, minor = 0;
	int fd = mkstemp(path);

	if (fd < 0)
		SKIP("no tmpfs on /dev/shm; runs in the lab");
	rig_start(r, "", "");
	CHECK(!ftruncate(fd, (off_t)(8 * MIB)));
	CHECK_EQ(native_ram_map(&r->ram, "ram", 8 * MIB, NATIVE_SHMEM, fd), 0);
	rig_attach_ram(r);
	CHECK(!unlink(path));
	/* Who is slow enough does not come over the budget: then each is a fault. */
	for (int tries = 0; tries < 10; tries++) {
		minor = read_unmapped(r, &took_ns);
		rig_check_all(r);
		if (took_ns < r->units * (NS_PER_MS / 2))
			break;
	}
	printf("%llu faults for %zu units\n", (unsigned long long)minor, r->units);
	CHECK(minor < r->units / 2 || took_ns >= r->units * (NS_PER_MS / 2));

	CHECK(!fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 1000 * KT_PAGE,
			 3 * KT_PAGE));
	read_unmapped(r, &took_ns);
	for (size_t u = 0; u < r->units; u++) {
		if (u < 1000 || u >= 1003)
			CHECK(rig_is(r, u, 1));
		else
			CHECK(!*rig_unit(r, u));
	}

	rig_writer_start(&w, r, 0, r->units, 0);
	for (int round = 0; round < 10; round++) {
		CHECK(!madvise(r->ram.addr, r->ram.bytes, MADV_DONTNEED));
		rig_reclaim(r, MIB);
	}
	rig_writer_stop(&w);
	CHECK_EQ(rig_writer_lost(&w), 0);
	for (size_t u = 0; u < r->units; u++)
		rig_tag(r, u, 1);
	rig_end(r);
	close(fd);
}

static void stays(const struct rig *r, struct shared *s)
{
	wait_for(&s->end);
}

/* Shared: all is back before the answer, and nothing goes until the other one has attached. */
static void share(struct rig *r)
{
	struct shared *s = shared_new();
	char line[160];
	pid_t pid;

	rig_start(r, "", "");
	rig_attach(r, MIB, NATIVE_SHMEM);
	pid = start(stays, r, s);
	rig_evict_all(r);
	snprintf(line, sizeof(line),
		 "{\"execute\":\"share\",\"arguments\":{\"id\":\"ram\",\"pid\":%d}}", (int)pid);
	CHECK_EQ(native_call(r->vmm, line, NULL, 0), 0);
	for (size_t i = 0; i < r->units; i++)
		CHECK(rig_cached(r, i));
	CHECK(strstr(rig_suspended(r), "handed"));
	CHECK_EQ(rig_reclaim(r, 0), 0);
	CHECK_EQ(rig_number(r, "evicted-bytes"), 0);
	rig_check_all(r);
	atomic_store(&s->end, 1);
	finish(pid);
	rig_end(r);
}

/* What a client that resumes may say: it is no second mapping, and going it goes as a whole. */
static void told_again(struct rig *r)
{
	rig_start(r, "", "");
	rig_attach(r, MIB, NATIVE_SHMEM);
	CHECK_EQ(native_region_add(r->vmm, &r->ram), 0);
	rig_evict_all(r);
	CHECK_EQ(native_region_remove(r->vmm, "ram", false), 0);
	rig_check_all(r);
	CHECK_EQ(native_region_remove(r->vmm, "ram", false), -EPROTO);
	CHECK(strstr(native_error(r->vmm), "no region"));
	rig_end(r);
}

int main(int argc, char **argv)
{
	static const struct rig_case cases[] = {
		{"second_reads", second_reads},
		{"second_writes", second_writes},
		{"second_lies", second_lies},
		{"second_refused", second_refused},
		{"foreign", foreign},
		{"share", share},
		{"orphan_leaves", orphan_leaves},
		{"orphan_dies", orphan_dies},
		{"orphan_huge", orphan_huge},
		{"foreign_late", foreign_late},
		{"named", named},
		{"named_comes_back", named_comes_back},
		{"told_again", told_again},
	};

	return rig_main(argc, argv, cases, sizeof(cases) / sizeof(cases[0]));
}
