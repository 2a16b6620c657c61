/* SPDX-License-Identifier: BSD-3-Clause */
/* test_dax.c: the backend numa on a device: whose each chunk is, whatever happens. PATH */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>
#define XXH_INLINE_ALL
#include <xxhash.h>

#include "backends/harness.h"

#define CHUNK	     (2u << 20)
#define TABLE_OFFSET 4096u /* as in dax.c */

/* The device under test, mapped; of some MiB. */
static const char *path;
static uint8_t *device;
static uint64_t device_bytes;

static void map_device(void)
{
	int fd = open(path, O_RDWR | O_CLOEXEC);
	struct stat st;
	FILE *f;

	if (fd < 0 || fstat(fd, &st)) {
		printf("skipped: no %s here; runs in the lab\n", path);
		exit(77);
	}
	device_bytes = (uint64_t)st.st_size;
	if (S_ISCHR(st.st_mode)) {
		f = fopen("/sys/bus/dax/devices/dax0.0/size", "re");
		if (!f || fscanf(f, "%lu", &device_bytes) != 1)
			exit(1);
		fclose(f);
	}
	device = mmap(NULL, device_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (device == MAP_FAILED)
		exit(1);
	close(fd);
}

/* Nobody has used it yet. */
static void clear(void)
{
	memset(device, 0, 4096);
}

static int try_open(struct rig *r, const char *where, const char *more, struct error *e)
{
	char text[300];
	const char *opts[] = {text, more};

	memset(r, 0, sizeof(*r));
	snprintf(text, sizeof(text), "device=%s", where);
	return rig_backend(r, "numa", opts, more ? 2 : 1, e);
}

static void open_device(struct rig *r)
{
	struct error e;

	if (try_open(r, path, NULL, &e))
		fail_msg("%s", e.desc);
}

static void refused(const char *where, const char *more, int err, const char *word)
{
	struct error e = {.desc = ""};
	struct rig r;

	assert_int_equal(try_open(&r, where, more, &e), err);
	if (!strstr(e.desc, word))
		fail_msg("'%s' does not say '%s'", e.desc, word);
}

static void what_is_no_such_device_is_refused(void **state)
{
	char name[64];
	int fd = memfd_create("small", MFD_ALLOW_SEALING);

	snprintf(name, sizeof(name), "/proc/%d/fd/%d", (int)getpid(), fd);
	refused("/dev/dax99.9", NULL, -ENOENT, "not there");
	refused("/dev/null", NULL, -EINVAL, "no devdax device");
	assert_int_equal(ftruncate(fd, 64 << 20), 0);
	refused(name, NULL, -EINVAL, "sealed");
	assert_int_equal(ftruncate(fd, 7 * CHUNK), 0);
	assert_int_equal(fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK), 0);
	refused(name, NULL, -EINVAL, "too small");
	refused(path, "node=0", -EINVAL, "not both");
	refused(path, "format=maybe", -EINVAL, "format");
	close(fd);
}

static void what_is_not_ours_is_not_taken(void **state)
{
	struct error e;
	struct rig r;

	strcpy((char *)device, "somebody's");
	refused(path, NULL, -EEXIST, "not Ebb's");
	assert_string_equal((char *)device, "somebody's");
	assert_int_equal(try_open(&r, path, "format=yes", &e), 0);
	backend_close(r.b);
	/* And what is, when it is damaged. */
	device[20] ^= 1;
	refused(path, NULL, -EBADMSG, "damaged");
	assert_int_equal(try_open(&r, path, "format=yes", &e), 0);
	backend_close(r.b);
	clear();
}

static void only_one_has_it(void **state)
{
	struct rig r;

	clear();
	open_device(&r);
	refused(path, NULL, -EBUSY, "in use");
	backend_close(r.b);
}

/* ---- content ---- */

static void fill_tagged(uint8_t *buf, uint32_t len, uint64_t seed)
{
	fill(buf, len, seed, 1000);
}

/* How often a page of such content is on the device. */
static unsigned int traces(uint64_t first, unsigned int n)
{
	uint8_t *want = buffer_new();
	unsigned int found = 0;

	for (unsigned int i = 0; i < n; i++) {
		fill_tagged(want, 4096, first + i);
		for (uint64_t at = CHUNK; at + 4096 <= device_bytes; at += 4096)
			found += memcmp(device + at, want, 4096) == 0;
	}
	free(want);
	return found;
}

static void content_is_on_the_device_and_wiped(void **state)
{
	uint8_t *buf = buffer_new();
	uint64_t h[20];
	struct rig r;

	clear();
	open_device(&r);
	r.s = rig_space(&r, &r.kept);
	r.c = rig_channel(&r);
	for (unsigned int i = 0; i < 20; i++) {
		fill_tagged(buf, 4096, 100 + i);
		assert_int_equal(do_store(r.c, r.s, 0, buf, 4096, &h[i]), 0);
	}
	assert_int_equal(traces(100, 20), 20);
	assert_in_range(kept_bytes(&r.kept), 1, 256 << 10);
	/* Freed, it is gone a moment later; so is what a VM leaves. */
	backend_free(r.c, r.s, h, 20);
	maintain_all(r.s);
	assert_int_equal(traces(100, 20), 0);
	for (unsigned int i = 0; i < 20; i++) {
		fill_tagged(buf, 4096, 100 + i);
		assert_int_equal(do_store(r.c, r.s, 0, buf, 4096, &h[i]), 0);
	}
	rig_close(&r);
	assert_int_equal(traces(100, 20), 0);
	free(buf);
}

/* ---- VMs of a daemon that was killed ---- */

struct vm {
	struct kept kept;
	pid_t keeper;
	uint64_t *seed, *handle; /* shared with the one that dies */
	unsigned int *n;
};

#define OBJECTS 40000

static struct backend_space *vm_space(struct rig *r, struct vm *v)
{
	struct ebb_space_params p = {.vm_name = "guest",
				     .ram_bytes = 1u << 30,
				     .unit_bytes = 4096,
				     .space_ctx = &v->kept};
	struct backend_space *s;

	keeper_name(&p, v->keeper);
	return backend_space_open(r->b, &p, &s) ? NULL : s;
}

static void vm_new(struct vm *v)
{
	void *p = mmap(NULL, (2 * OBJECTS + 1) * sizeof(uint64_t), PROT_READ | PROT_WRITE,
		       MAP_SHARED | MAP_ANONYMOUS, -1, 0);

	assert_ptr_not_equal(p, MAP_FAILED);
	*v = (struct vm){.kept = KEPT_NONE, .keeper = keeper_new()};
	v->kept.fd = memfd_create("store", MFD_CLOEXEC);
	v->seed = p;
	v->handle = v->seed + OBJECTS;
	v->n = (unsigned int *)(v->handle + OBJECTS);
}

static void vm_free(struct vm *v)
{
	kept_release(&v->kept);
	munmap(v->seed, (2 * OBJECTS + 1) * sizeof(uint64_t));
}

static void vm_store(struct rig *r, struct vm *v, struct backend_space *s, unsigned int most)
{
	uint8_t *buf = buffer_new();
	int err = 0;

	for (unsigned int i = 0; i < most && *v->n < OBJECTS && !err; i++) {
		uint64_t seed = (uint64_t)v->keeper << 32 | *v->n;

		fill_tagged(buf, 4096, seed);
		err = do_store(r->c, s, 0, buf, 4096, &v->handle[*v->n]);
		if (!err)
			v->seed[(*v->n)++] = seed;
	}
	assert_true(err == 0 || err == -ENOSPC);
	free(buf);
}

/* Returns how many are gone; none may be another's. */
static unsigned int vm_check(struct rig *r, struct vm *v, struct backend_space *s)
{
	uint8_t *buf = buffer_new(), *want = buffer_new();
	unsigned int gone = 0;

	for (unsigned int i = 0; i < *v->n; i++) {
		int err = do_load(r->c, s, v->handle[i], buf, 4096);

		if (err) {
			assert_true(err == -EIO || err == -EINVAL);
			gone++;
			continue;
		}
		fill_tagged(want, 4096, v->seed[i]);
		assert_memory_equal(buf, want, 4096);
	}
	free(buf);
	free(want);
	return gone;
}

/* A daemon stores `each` pages of every VM, and dies. */
static void daemon_that_dies(struct vm *v, unsigned int n, unsigned int each)
{
	int status;
	pid_t pid = fork();

	assert_true(pid >= 0);
	if (!pid) {
		struct rig r;

		open_device(&r);
		r.c = rig_channel(&r);
		for (unsigned int i = 0; i < n; i++) {
			struct backend_space *s = vm_space(&r, &v[i]);

			if (!s)
				_exit(1);
			vm_store(&r, &v[i], s, each);
		}
		_exit(0);
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_int_equal(status, 0);
}

/* While it has not come back, another VM gets none of what is its. */
static void chunks_wait_for_their_vm(void **state)
{
	struct backend_space *s[2];
	struct vm v[2];
	struct rig r;

	clear();
	vm_new(&v[0]);
	vm_new(&v[1]);
	daemon_that_dies(v, 1, 1500);
	assert_int_equal(*v[0].n, 1500);

	open_device(&r);
	r.c = rig_channel(&r);
	s[1] = vm_space(&r, &v[1]);
	assert_non_null(s[1]);
	vm_store(&r, &v[1], s[1], OBJECTS); /* up to the last chunk */
	assert_true(*v[1].n > 1500 && *v[1].n < device_bytes / 4096 - 1500);
	s[0] = vm_space(&r, &v[0]);
	assert_non_null(s[0]);
	assert_int_equal(vm_check(&r, &v[0], s[0]), 0);
	assert_int_equal(vm_check(&r, &v[1], s[1]), 0);
	/* Room again, as soon as one is gone. */
	backend_space_close(s[0]);
	*v[0].n = *v[1].n;
	vm_store(&r, &v[1], s[1], 1000);
	assert_int_equal(*v[1].n, *v[0].n + 1000);
	assert_int_equal(vm_check(&r, &v[1], s[1]), 0);
	backend_space_close(s[1]);
	backend_channel_close(r.c);
	backend_close(r.b);
	for (int i = 0; i < 2; i++) {
		keeper_end(v[i].keeper);
		vm_free(&v[i]);
	}
}

/* Those of a VM that ended while no daemon ran are found when they are needed. */
static void chunks_of_the_dead_are_found(void **state)
{
	struct backend_space *s;
	struct vm v[2];
	struct rig r;

	clear();
	vm_new(&v[0]);
	vm_new(&v[1]);
	daemon_that_dies(v, 1, 3000);
	keeper_end(v[0].keeper);
	open_device(&r);
	r.c = rig_channel(&r);
	s = vm_space(&r, &v[1]);
	assert_non_null(s);
	vm_store(&r, &v[1], s, OBJECTS);
	assert_true(*v[1].n > device_bytes / 4096 - 3000);
	assert_int_equal(vm_check(&r, &v[1], s), 0);
	backend_space_close(s);
	backend_channel_close(r.c);
	backend_close(r.b);
	keeper_end(v[1].keeper);
	vm_free(&v[0]);
	vm_free(&v[1]);
}

/* Where the device says whose a chunk is. */
static uint64_t *owner_of(unsigned int chunk)
{
	return (uint64_t *)(void *)(device + TABLE_OFFSET + chunk * 16u);
}

/* The device's table says otherwise: pages are gone, but none is another's, and nothing else. */
static void a_chunk_of_another_is_not_read(void **state)
{
	unsigned int chunk = 1, gone;
	struct backend_space *s;
	struct vm v;
	struct rig r;

	clear();
	vm_new(&v);
	daemon_that_dies(&v, 1, 2000);
	while (*owner_of(chunk) < 2)
		chunk++;
	*owner_of(chunk) ^= 4;
	open_device(&r);
	r.c = rig_channel(&r);
	s = vm_space(&r, &v);
	assert_non_null(s);
	gone = vm_check(&r, &v, s);
	assert_in_range(gone, 1, 1999);
	/* What is stored from now on is sound, and what was there stays. */
	vm_store(&r, &v, s, 1000);
	assert_int_equal(vm_check(&r, &v, s), gone);
	backend_space_close(s);
	backend_channel_close(r.c);
	backend_close(r.b);
	keeper_end(v.keeper);
	vm_free(&v);
}

/* After another boot of the machine nobody owns anything, and what was there is wiped. */
static void another_boot(void **state)
{
	uint64_t sum, owned = 0;
	struct vm v;
	struct rig r;

	clear();
	vm_new(&v);
	daemon_that_dies(&v, 1, 20);
	assert_int_equal(traces(v.seed[0], 20), 20);
	/* Magic number, checksum of the rest, id, boot_id, sizes. */
	device[32] ^= 1;
	sum = XXH3_64bits(device + 16, 72);
	memcpy(device + 8, &sum, sizeof(sum));
	open_device(&r);
	for (unsigned int i = 1; i < device_bytes / CHUNK; i++)
		owned += *owner_of(i) > 1;
	assert_int_equal(owned, 0);
	r.s = rig_space(&r, &r.kept);
	r.c = rig_channel(&r);
	maintain_all(r.s);
	rig_close(&r);
	assert_int_equal(traces(v.seed[0], 20), 0);
	keeper_end(v.keeper);
	vm_free(&v);
}

/* Formatted meanwhile: refused as a whole, in words of the log. */
static void another_device_is_told(void **state)
{
	struct vm v;
	struct rig r;

	clear();
	vm_new(&v);
	daemon_that_dies(&v, 1, 100);
	clear();
	open_device(&r);
	assert_null(vm_space(&r, &v));
	backend_close(r.b);
	keeper_end(v.keeper);
	vm_free(&v);
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(what_is_no_such_device_is_refused),
		cmocka_unit_test(what_is_not_ours_is_not_taken),
		cmocka_unit_test(only_one_has_it),
		cmocka_unit_test(content_is_on_the_device_and_wiped),
		cmocka_unit_test(chunks_wait_for_their_vm),
		cmocka_unit_test(chunks_of_the_dead_are_found),
		cmocka_unit_test(a_chunk_of_another_is_not_read),
		cmocka_unit_test(another_boot),
		cmocka_unit_test(another_device_is_told),
	};

	if (argc != 2)
		return 2;
	path = argv[1];
	map_device();
	return cmocka_run_group_tests(tests, NULL, NULL);
}
