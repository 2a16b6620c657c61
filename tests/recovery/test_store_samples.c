/* SPDX-License-Identifier: BSD-3-Clause */
/* test_store_samples.c: what released versions' stores left in kept memory (and on a device),
 * frozen, is opened by today's backends. */
#include <err.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "backends/harness.h"
#include "recovery/sample.h"
#include "ssd/layout.h"

/*
 * A sample has the memory of a space, for a disk also the device's first bytes, and the handles of
 * its objects, which tests/backends' fill() makes from their seeds. Some objects were freed, so
 * that there are entries of all kinds.
 *
 *	test_store_samples -w FOLDER [DISK]	makes the samples of today's backends
 *	test_store_samples FOLDER [DISK]	reads the compressed store's, or with a disk the SSD
 *						backend's
 */

#define OBJECTS	 10u
#define PERMILLE 60u
#define SIZE	 "24M"
#define DEVICE	 (UINT64_C(24) << 20)

static const char *folder, *disk;

static int make_rig(struct rig *r, struct error *e)
{
	char path[512];
	const char *opts[] = {path, "size=" SIZE};

	memset(r, 0, sizeof(*r));
	snprintf(path, sizeof(path), "path=%s", disk ? disk : "");
	return disk ? rig_backend(r, "ssd", opts, 2, e) : rig_backend(r, "compressed", NULL, 0, e);
}

/* A space over that memory (-1: new). 0 or -errno; the rig is closed then. */
static int open_space(struct rig *r, int fd)
{
	struct ebb_space_params p = {.vm_name = "guest",
				     .ram_bytes = 1u << 26,
				     .unit_bytes = 4096,
				     .space_ctx = &r->kept};
	int err;

	memset(p.key, 7, sizeof(p.key));
	r->kept.fd = fd;
	err = backend_space_open(r->b, &p, &r->s);
	if (err) {
		backend_close(r->b);
		kept_release(&r->kept);
		return err;
	}
	r->c = rig_channel(r);
	return 0;
}

/* ---- making them ---- */

static json_t *store_objects(struct rig *r)
{
	json_t *objects = json_array();
	uint64_t handle[OBJECTS];
	uint8_t *buf = buffer_new();

	for (uint64_t i = 0; i < OBJECTS; i++) {
		fill(buf, 4096, i + 1, PERMILLE);
		assert_int_equal(do_store(r->c, r->s, 0, buf, 4096, &handle[i]), 0);
	}
	for (uint64_t i = 0; i < OBJECTS; i++) {
		if (i % 5 == 4)
			backend_free(r->c, r->s, &handle[i], 1);
		else
			json_array_append_new(objects, json_pack("[I, I]", (json_int_t)(i + 1),
								 (json_int_t)handle[i]));
	}
	free(buf);
	return objects;
}

/* By a process that then dies, as a daemon would. */
static void make_samples(void)
{
	json_t *sample = json_object();
	struct error e;
	struct rig r;

	if (make_rig(&r, &e))
		errx(1, "%s", e.desc);
	assert_int_equal(open_space(&r, -1), 0);
	json_object_set_new(sample, "objects", store_objects(&r));
	json_object_set_new(sample, "memory", sample_of_file(r.kept.fd, r.kept.bytes));
	if (disk) {
		int fd = open(disk, O_RDONLY | O_CLOEXEC);

		json_object_set_new(sample, "device", sample_of_file(fd, DEVICE));
	}
	sample_write(folder, disk ? "ssd-1.json" : "compressed-1.json", sample);
	_exit(0);
}

/* ---- reading them ---- */

static void read_text(const char *file, char *text, size_t room)
{
	FILE *f = fopen(file, "r");

	memset(text, 0, room);
	if (!f || !fgets(text, (int)room, f))
		errx(1, "%s cannot be read", file);
	fclose(f);
	text[strcspn(text, "\n")] = '\0';
}

/* A device is believed only by the machine, and in the boot, that wrote it. */
static void write_device(const json_t *device)
{
	int fd = open(disk, O_RDWR | O_TRUNC | O_CLOEXEC);
	struct super_block s;

	assert_true(fd >= 0);
	assert_int_equal(ftruncate(fd, (off_t)sample_bytes(device)), 0);
	sample_to_file(device, fd);
	assert_int_equal(pread(fd, &s, sizeof(s), 0), sizeof(s));
	read_text("/proc/sys/kernel/random/boot_id", s.boot, sizeof(s.boot));
	read_text("/etc/machine-id", s.machine, sizeof(s.machine));
	s.sum = XXH3_64bits(&s, offsetof(struct super_block, sum));
	assert_int_equal(pwrite(fd, &s, sizeof(s), 0), sizeof(s));
	assert_int_equal(fsync(fd), 0);
	close(fd);
}

static json_t *sample(void)
{
	return sample_read(folder, disk ? "ssd-1.json" : "compressed-1.json");
}

/* The memory as it was kept; the caller's. */
static int memory_of(const json_t *j)
{
	const json_t *memory = json_object_get(j, "memory");
	int fd = memfd_create("frozen", MFD_CLOEXEC);

	assert_true(fd >= 0);
	assert_int_equal(ftruncate(fd, (off_t)sample_bytes(memory)), 0);
	sample_to_file(memory, fd);
	if (disk)
		write_device(json_object_get(j, "device"));
	return fd;
}

static void every_object_is_there(void **state)
{
	json_t *j = sample(), *item;
	int fd = memory_of(j);
	uint8_t *buf = buffer_new(), *want = buffer_new();
	struct ebb_usage usage = {0};
	struct error e;
	struct rig r;
	size_t i;

	if (make_rig(&r, &e))
		fail_msg("%s", e.desc);
	assert_int_equal(open_space(&r, fd), 0);
	backend_usage(r.b, r.s, &usage);
	assert_int_equal(usage.objects, OBJECTS - OBJECTS / 5);
	assert_int_equal(usage.logical_bytes, usage.objects * 4096);
	assert_int_equal(json_array_size(json_object_get(j, "objects")), usage.objects);
	json_array_foreach(json_object_get(j, "objects"), i, item) {
		uint64_t seed = (uint64_t)json_integer_value(json_array_get(item, 0)),
			 handle = (uint64_t)json_integer_value(json_array_get(item, 1));

		fill(want, 4096, seed, PERMILLE);
		assert_int_equal(do_load(r.c, r.s, handle, buf, 4096), 0);
		assert_memory_equal(buf, want, 4096);
		/* And it can be let go of. */
		backend_free(r.c, r.s, &handle, 1);
		assert_true(do_load(r.c, r.s, handle, buf, 4096) < 0);
	}
	rig_close(&r);
	json_decref(j);
	free(buf);
	free(want);
}

/* With one byte of the header (of 64-bit words) changed it is refused as a whole. */
static void changed_headers_are_refused(void **state)
{
	/* Magic, version, what sizes mean (compressed) or encryption (SSD). */
	static const off_t at[] = {0, 8, 12};

	for (size_t i = 0; i < sizeof(at) / sizeof(at[0]); i++) {
		json_t *j = sample();
		int fd = memory_of(j);
		struct error e;
		struct rig r;
		unsigned char byte;

		assert_int_equal(pread(fd, &byte, 1, at[i]), 1);
		byte ^= 2;
		assert_int_equal(pwrite(fd, &byte, 1, at[i]), 1);
		if (make_rig(&r, &e))
			fail_msg("%s", e.desc);
		if (!open_space(&r, fd))
			fail_msg("byte %d was changed, and it is believed", (int)at[i]);
		json_decref(j);
	}
}

/* The same of the device's superblock: of another version of Ebb. */
static void another_devices_version_is_refused(void **state)
{
	const uint32_t version = SUPER_VERSION + 1;
	json_t *j = sample();
	int fd = memory_of(j), dev = open(disk, O_RDWR | O_CLOEXEC);
	struct error e;
	struct rig r;

	assert_int_equal(
		pwrite(dev, &version, sizeof(version), offsetof(struct super_block, version)),
		sizeof(version));
	fsync(dev);
	close(dev);
	close(fd);
	assert_true(make_rig(&r, &e) < 0);
	assert_non_null(strstr(e.desc, "another version"));
	json_decref(j);
}

int main(int argc, char **argv)
{
	static const struct CMUnitTest tests[] = {
		cmocka_unit_test(every_object_is_there),
		cmocka_unit_test(changed_headers_are_refused),
	};
	static const struct CMUnitTest disk_tests[] = {
		cmocka_unit_test(every_object_is_there),
		cmocka_unit_test(changed_headers_are_refused),
		cmocka_unit_test(another_devices_version_is_refused),
	};
	bool make = argc > 1 && strcmp(argv[1], "-w") == 0;

	if (argc < 2 + make)
		errx(2, "usage: test_store_samples [-w] FOLDER [DISK]");
	folder = argv[1 + make];
	disk = argc > 2 + make ? argv[2 + make] : NULL;
	if (make)
		make_samples();
	return disk ? cmocka_run_group_tests(disk_tests, NULL, NULL)
		    : cmocka_run_group_tests(tests, NULL, NULL);
}
