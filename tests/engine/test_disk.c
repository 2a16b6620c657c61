/* SPDX-License-Identifier: BSD-3-Clause */
/* test_disk.c: a disk that forgets what it was given, or answers EIO, below the real daemon. */
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/dm-ioctl.h>
#include <linux/loop.h>
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "base/clock.h"
#include "engine/rig.h"

/*
 * The disk is a device-mapper device over a loop device over memory. Its table says where it is the
 * disk below, and where it is the target `error`: a block device that fails every read and write.
 */
#define MIB	    ((size_t)1 << 20)
#define DISK_BYTES  (64 * MIB)
#define SEGMENT	    (2 * MIB) /* of the backend; the first one on the disk is its own */
#define SECTOR	    512
#define DISK_NAME   "ebb-test-disk"
#define TARGETS_MAX 3
#define OVERWRITTEN 8 /* pages */
#define PATIENCE_NS (60 * NS_PER_S)

struct disk {
	int control, loop;
	char *memory; /* what is on it */
	char loop_path[32], path[32];
};

struct target {
	uint64_t first, end; /* bytes */
	bool fails;
};

static struct disk disk = {.control = -1, .loop = -1};

/* A device-mapper call with what follows its header. */
static int dm(unsigned long request, uint32_t flags, const struct target *targets, uint32_t n,
	      dev_t *dev)
{
	struct {
		struct dm_ioctl head;
		struct {
			struct dm_target_spec spec;
			char parameters[64];
		} target[TARGETS_MAX];
	} call = {.head = {.version = {DM_VERSION_MAJOR, 0, 0},
			   .data_size = sizeof(call),
			   .data_start = sizeof(call.head),
			   .flags = flags,
			   .target_count = n}};

	strcpy(call.head.name, DISK_NAME);
	for (uint32_t i = 0; i < n; i++) {
		const struct target *t = &targets[i];
		struct dm_target_spec *spec = &call.target[i].spec;

		spec->sector_start = t->first / SECTOR;
		spec->length = (t->end - t->first) / SECTOR;
		spec->next = sizeof(call.target[i]);
		strcpy(spec->target_type, t->fails ? "error" : "linear");
		if (!t->fails)
			snprintf(call.target[i].parameters, sizeof(call.target[i].parameters),
				 "%s %llu", disk.loop_path, (unsigned long long)spec->sector_start);
	}
	if (ioctl(disk.control, request, &call))
		return -errno;
	if (dev)
		*dev = call.head.dev;
	return 0;
}

/* From now on the bytes [first, end) fail; none when they are equal. */
static void disk_fails(uint64_t first, uint64_t end)
{
	const struct target all[TARGETS_MAX] = {
		{0, first, false}, {first, end, true}, {end, DISK_BYTES, false}};
	struct target some[TARGETS_MAX];
	uint32_t n = 0;

	for (unsigned int i = 0; i < TARGETS_MAX; i++)
		if (all[i].first < all[i].end)
			some[n++] = all[i];
	CHECK_EQ(dm(DM_TABLE_LOAD, 0, some, n, NULL), 0);
	/* Makes the new table the one in use, between two I/Os. */
	CHECK_EQ(dm(DM_DEV_SUSPEND, DM_SUSPEND_FLAG | DM_SKIP_LOCKFS_FLAG, NULL, 0, NULL), 0);
	CHECK_EQ(dm(DM_DEV_SUSPEND, 0, NULL, 0, NULL), 0);
}

static void disk_remove(void)
{
	if (disk.control >= 0)
		dm(DM_DEV_REMOVE, 0, NULL, 0, NULL);
	if (disk.loop >= 0)
		ioctl(disk.loop, LOOP_CLR_FD, 0);
}

/* False where there is no such thing. */
static bool disk_make(void)
{
	int fd = memfd_create("disk", MFD_CLOEXEC), loops, n;
	struct loop_config config = {.fd = (uint32_t)fd};
	dev_t dev = 0;

	if (system("modprobe -qa loop dm-mod"))
		return false;
	CHECK_EQ(ftruncate(fd, DISK_BYTES), 0);
	disk.memory = mmap(NULL, DISK_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	CHECK(disk.memory != MAP_FAILED);
	loops = open("/dev/loop-control", O_RDWR | O_CLOEXEC);
	disk.control = open("/dev/mapper/control", O_RDWR | O_CLOEXEC);
	if (loops < 0 || disk.control < 0)
		return false;
	n = ioctl(loops, LOOP_CTL_GET_FREE);
	CHECK(n >= 0);
	snprintf(disk.loop_path, sizeof(disk.loop_path), "/dev/loop%d", n);
	disk.loop = open(disk.loop_path, O_RDWR | O_CLOEXEC);
	CHECK(disk.loop >= 0);
	atexit(disk_remove);
	CHECK_EQ(ioctl(disk.loop, LOOP_CONFIGURE, &config), 0);
	close(fd);
	close(loops);
	CHECK_EQ(dm(DM_DEV_CREATE, 0, NULL, 0, &dev), 0);
	snprintf(disk.path, sizeof(disk.path), "/dev/dm-%u", minor(dev));
	disk_fails(0, 0);
	return true;
}

static sigjmp_buf bus;

static void on_bus(int sig)
{
	siglongjmp(bus, sig);
}

/* Reads a unit: false when that is a memory error. Anything else than its content ends the test. */
static bool readable(struct rig *r, size_t unit, uint64_t generation)
{
	struct sigaction sa = {.sa_handler = on_bus};

	sigaction(SIGBUS, &sa, NULL);
	if (sigsetjmp(bus, 1))
		return false;
	CHECK(rig_is(r, unit, generation));
	return true;
}

/* How much of the VM is in one of its tiers, bytes. */
static uint64_t tier(struct rig *r, const char *backend)
{
	char key[80];
	const char *p;

	daemon_ask(&r->d, "{\"execute\":\"query-vm\",\"arguments\":{\"vm\":\"vm\"}}");
	snprintf(key, sizeof(key), "\"backend\":\"%s\"", backend);
	p = strstr(r->d.answer, key);
	p = p ? strstr(p, "\"units-bytes\":") : NULL;
	CHECK(p);
	return strtoull(p + strlen("\"units-bytes\":"), NULL, 10);
}

/* Writes to all that can still be used, so that it has this generation, and evicts it. */
static void evict(struct rig *r, const bool *lost, uint64_t generation)
{
	uint64_t end = clock_ns() + PATIENCE_NS;

	for (size_t i = 0; i < r->units; i++)
		if (!lost[i])
			rig_tag(r, i, generation);
	while (rig_reclaim(r, 0),
	       rig_number(r, "evicted-bytes") + rig_number(r, "lost-bytes") < r->ram.bytes) {
		if (clock_ns() > end)
			errx(1, "not all can be evicted: %.2000s", r->d.answer);
		kt_settle();
	}
}

static void check(struct rig *r, const bool *lost, uint64_t generation)
{
	for (size_t i = 0; i < r->units; i++)
		CHECK_EQ(readable(r, i, generation), !lost[i]);
}

/* The daemon's log, until it has these words. */
static void logged(int log, const char *words)
{
	static char text[65536];
	uint64_t end = clock_ns() + PATIENCE_NS;

	do {
		ssize_t n = pread(log, text, sizeof(text) - 1, 0);

		CHECK(n >= 0);
		text[n] = '\0';
		if (strstr(text, words))
			return;
		usleep(10000);
	} while (clock_ns() < end);
	errx(1, "the log has no '%s'", words);
}

/* Begins with all of the VM on the disk; returns where the daemon logs. */
static int begin(struct rig *r)
{
	int log = memfd_create("log", MFD_CLOEXEC), stderr_fd = dup(STDERR_FILENO);
	char keys[256];

	CHECK(log >= 0 && stderr_fd >= 0);
	snprintf(keys, sizeof(keys), "[backend disk]\ndriver = ssd\npath = %s\n", disk.path);
	CHECK(dup2(log, STDERR_FILENO) >= 0);
	rig_start(r, keys, NULL);
	CHECK(dup2(stderr_fd, STDERR_FILENO) >= 0);
	close(stderr_fd);
	daemon_ask(&r->d, "{\"execute\":\"query-host\"}");
	if (!strstr(r->d.answer, "\"poison\":true"))
		SKIP("UFFDIO_POISON");
	rig_attach(r, MIB / 2, NATIVE_SHMEM);
	daemon_ask(&r->d, "{\"execute\":\"vm-set\",\"arguments\":{\"vm\":\"vm\","
			  "\"tiers\":[\"disk\",\"compressed\"]}}");
	CHECK(strstr(r->d.answer, "\"return\""));
	return log;
}

/* Reads all; whose content does not come back is noted. Returns how many these are. */
static size_t find_lost(struct rig *r, bool *lost, uint64_t generation)
{
	size_t n = 0;

	for (size_t i = 0; i < r->units; i++) {
		lost[i] = !readable(r, i, generation);
		n += lost[i];
	}
	return n;
}

/*
 * Somebody writes to the disk, and reads fail: exactly the pages there are memory errors, for good,
 * and told; writes fail, those of content or all of them: the next tier takes it. When the disk is
 * well again it is used again.
 */
static void eio(struct rig *r)
{
	static bool lost[MIB / 2 / KT_PAGE];
	uint64_t generation = 1, end, good;
	size_t n;
	int log;

	if (!disk_make())
		SKIP("no device-mapper here; runs in the lab");
	log = begin(r);
	evict(r, lost, generation);
	CHECK_EQ(tier(r, "disk"), r->ram.bytes);

	/* The content lies in the first segment behind the backend's own, page after page. */
	memset(disk.memory + SEGMENT, 1, OVERWRITTEN * r->unit_bytes);
	disk_fails(SEGMENT + MIB / 8, SEGMENT + MIB / 4);
	n = find_lost(r, lost, generation);
	CHECK_EQ(n, OVERWRITTEN + MIB / 8 / r->unit_bytes);
	good = r->ram.bytes - n * r->unit_bytes;
	rig_until(r, "pages-lost", n);
	CHECK_EQ(rig_number(r, "pages-lost"), n);
	CHECK_EQ(rig_backend_number(r, "disk", "corrupt"), OVERWRITTEN);
	CHECK_EQ(rig_backend_number(r, "disk", "load-errors"), n - OVERWRITTEN);
	rig_event(r, "PAGE_LOST");
	logged(log, "reads failed");
	disk_fails(0, 0);
	check(r, lost, generation);

	disk_fails(SEGMENT, DISK_BYTES);
	evict(r, lost, ++generation);
	CHECK_EQ(tier(r, "compressed"), good);
	CHECK(rig_backend_number(r, "disk", "store-errors") > 0);
	logged(log, "writes failed");
	check(r, lost, generation);

	disk_fails(0, DISK_BYTES);
	evict(r, lost, ++generation);
	CHECK_EQ(tier(r, "compressed"), good);
	check(r, lost, generation);

	disk_fails(0, 0);
	end = clock_ns() + PATIENCE_NS;
	do {
		evict(r, lost, ++generation);
		check(r, lost, generation);
		CHECK(clock_ns() < end);
	} while (tier(r, "disk") < good);
	CHECK_EQ(rig_number(r, "pages-lost"), n);
	native_close(r->vmm, true);
	daemon_stop(&r->d);
}

int main(int argc, char **argv)
{
	static const struct rig_case cases[] = {
		{"eio", eio},
	};

	return rig_main(argc, argv, cases, sizeof(cases) / sizeof(cases[0]));
}
