/* SPDX-License-Identifier: BSD-3-Clause */
/* test_death.c: a store survives a daemon killed at any instruction. [DRIVER [OPTION=VALUE...]] */
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "backends/harness.h"

#define OBJECTS 1500

static const char *driver = "compressed";
static const char *const *options;
static uint32_t n_options;
static pid_t keeper; /* of the memory that outlives the daemons */

/* What the daemon had promised about an object, in memory that outlives it. */
enum promise { NOTHING, STORING, STORED, FREEING };
struct object {
	_Atomic int promise;
	uint64_t handle, seed;
	uint32_t len;
};

/*
 * Behind the objects: how many more the store may have, because a daemon died after it had stored
 * one and before it knew the handle. Nobody can free those, so they stay from death to death.
 */
#define ORPHANS OBJECTS

static struct object *journal_new(void)
{
	void *p = mmap(NULL, (OBJECTS + 1) * sizeof(struct object), PROT_READ | PROT_WRITE,
		       MAP_SHARED | MAP_ANONYMOUS, -1, 0);

	assert_ptr_not_equal(p, MAP_FAILED);
	return p;
}

/* Opens a backend over memory that may be found; the VM's RAM as given. */
static int open_over(struct rig *r, int fd, uint64_t ram_bytes)
{
	struct ebb_space_params p = {
		.vm_name = "guest", .unit_bytes = 4096, .ram_bytes = ram_bytes};
	struct error e;

	memset(r, 0, sizeof(*r));
	if (rig_backend(r, driver, options, n_options, &e))
		fail_msg("%s", e.desc);
	r->kept.fd = fd;
	p.space_ctx = &r->kept;
	if (keeper)
		keeper_name(&p, keeper);
	if (backend_space_open(r->b, &p, &r->s)) {
		backend_close(r->b);
		return -1;
	}
	r->c = rig_channel(r);
	return 0;
}

/* ---- killed in the middle of work ---- */

static void *maintain_on(void *space)
{
	for (;;)
		backend_maintain(space, 300);
	return NULL;
}

/* The daemon that is going to die: works at random and writes down what it has promised. */
static void victim(int fd, struct object *o, uint64_t seed)
{
	uint8_t *buf = buffer_new();
	pthread_t thread;
	struct rig r;

	if (open_over(&r, fd, 1u << 30))
		_exit(1);
	pthread_create(&thread, NULL, maintain_on, r.s);
	for (uint64_t state = seed;;) {
		struct object *x = &o[next_random(&state) % OBJECTS];
		uint64_t draw = next_random(&state);

		if (x->promise == NOTHING) {
			x->len = draw % 32 ? 4096 : 4096u << (draw >> 8) % 10;
			x->seed = draw | 1;
			fill(buf, x->len, x->seed, guest_permille(x->seed));
			x->promise = STORING;
			switch (do_store(r.c, r.s, 0, buf, x->len, &x->handle)) {
			case 0:
				x->promise = STORED;
				break;
			case -ENOSPC:
				x->promise = NOTHING;
				break;
			default:
				_exit(2);
			}
		} else {
			/* Freed in runs, so that slabs empty and objects move. */
			for (int i = 0; i < 20 && x + i < o + OBJECTS; i++) {
				if (x[i].promise != STORED)
					continue;
				x[i].promise = FREEING;
				backend_free(r.c, r.s, &x[i].handle, 1);
				x[i].promise = NOTHING;
			}
		}
	}
}

static int read_back(struct rig *r, const struct object *x, uint8_t *buf, uint8_t *want)
{
	int err = do_load(r->c, r->s, x->handle, buf, x->len);

	if (err)
		return err;
	fill(want, x->len, x->seed, guest_permille(x->seed));
	return memcmp(buf, want, x->len) ? 1 : 0;
}

/* The next daemon: all that was promised is there. Exit status 0, or which check failed. */
static void successor(int fd, struct object *o)
{
	uint8_t *buf = buffer_new(), *want = buffer_new();
	uint64_t objects = 0, logical = 0;
	unsigned int storing = 0;
	struct ebb_usage u;
	struct rig r;

	if (open_over(&r, fd, 1u << 30))
		_exit(10);
	for (int i = 0; i < OBJECTS; i++) {
		int err;

		switch (atomic_load(&o[i].promise)) {
		case STORED:
		case FREEING:
			err = read_back(&r, &o[i], buf, want);
			if (o[i].promise == STORED ? err != 0 : (err != 0 && err != -EINVAL))
				_exit(11);
			o[i].promise = err ? NOTHING : STORED;
			objects += !err;
			logical += err ? 0 : o[i].len;
			break;
		case STORING:
			storing++;
			o[i].promise = NOTHING;
			break;
		default:
			break;
		}
	}
	backend_usage(r.b, r.s, &u);
	if (u.objects < objects || u.objects > objects + storing + o[ORPHANS].seed)
		_exit(12);
	o[ORPHANS].seed = u.objects - objects;
	if (u.objects == objects && u.logical_bytes != logical)
		_exit(13);
	if (u.footprint_bytes < kept_bytes(&r.kept))
		_exit(14);
	/* And it can be worked with. */
	for (int i = 0; i < OBJECTS; i += 3) {
		if (o[i].promise != STORED)
			continue;
		o[i].promise = FREEING;
		backend_free(r.c, r.s, &o[i].handle, 1);
		o[i].promise = NOTHING;
		if (do_load(r.c, r.s, o[i].handle, buf, o[i].len) != -EINVAL)
			_exit(15);
	}
	maintain_all(r.s);
	for (int i = 0; i < OBJECTS; i++)
		if (o[i].promise == STORED && read_back(&r, &o[i], buf, want))
			_exit(16);
	_exit(0); /* without closing: the next one takes over from here */
}

static int in_child(void (*body)(int fd, struct object *o, uint64_t seed), int fd, struct object *o,
		    uint64_t seed, unsigned int kill_after_us)
{
	pid_t pid = fork();
	int status;

	assert_true(pid >= 0);
	if (!pid)
		body(fd, o, seed);
	if (kill_after_us) {
		usleep(kill_after_us);
		kill(pid, SIGKILL);
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	if (kill_after_us)
		return WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL ? 0 : 1;
	return WIFEXITED(status) ? WEXITSTATUS(status) : 99;
}

static void successor_body(int fd, struct object *o, uint64_t seed)
{
	successor(fd, o);
}

static void killed_again_and_again(void **state)
{
	uint64_t random = 42;

	for (int life = 0; life < 4; life++) {
		struct object *o = journal_new();
		int fd = memfd_create("store", MFD_CLOEXEC);
		struct stat st;

		keeper = keeper_new();
		/* Each daemon takes over what the one before had taken over. */
		for (int death = 0; death < 8; death++) {
			unsigned int us = 15000 + (unsigned int)(next_random(&random) % 40000);

			if (n_options) /* it has a disk to wait for */
				us *= 4;
			int r;

			assert_int_equal(in_child(victim, fd, o, next_random(&random), us), 0);
			r = in_child(successor_body, fd, o, 0, 0);
			if (r)
				fail_msg("life %d, death %d: check %d", life, death, r);
		}
		assert_int_equal(fstat(fd, &st), 0);
		munmap(o, (OBJECTS + 1) * sizeof(*o));
		close(fd);
		/* What the next life finds of this one on a disk is nobody's any more. */
		keeper_end(keeper);
		keeper = 0;
	}
}

/* ---- taken over in good order ---- */

/* Leaves n objects in a memfd, with a daemon that ends without closing. */
static int leave_objects(struct object *o, uint32_t n)
{
	int fd = memfd_create("store", MFD_CLOEXEC), status;
	pid_t pid = fork();

	if (!pid) {
		uint8_t *buf = buffer_new();
		struct rig r;

		if (open_over(&r, fd, UINT64_C(8) << 30))
			_exit(1);
		for (uint32_t i = 0; i < n; i++) {
			o[i].len = 4096u << i % 10;
			o[i].seed = i + 1;
			fill(buf, o[i].len, o[i].seed, guest_permille(o[i].seed));
			if (do_store(r.c, r.s, 0, buf, o[i].len, &o[i].handle))
				_exit(2);
			o[i].promise = STORED;
		}
		_exit(0);
	}
	waitpid(pid, &status, 0);
	assert_int_equal(status, 0);
	return fd;
}

static void more_or_less_ram_than_before(void **state)
{
	static const uint64_t ram[] = {UINT64_C(1) << 20, UINT64_C(8) << 30, UINT64_C(64) << 30};
	uint8_t *buf = buffer_new(), *want = buffer_new();
	struct object *o = journal_new();

	for (int i = 0; i < 3; i++) {
		int fd = leave_objects(o, 100);
		struct ebb_usage u;
		struct rig r;

		assert_int_equal(open_over(&r, fd, ram[i]), 0);
		for (int j = 0; j < 100; j++) {
			assert_int_equal(read_back(&r, &o[j], buf, want), 0);
			backend_free(r.c, r.s, &o[j].handle, 1);
		}
		backend_usage(r.b, r.s, &u);
		assert_int_equal(u.objects, 0);
		assert_int_equal(u.stored_bytes, 0);
		maintain_all(r.s);
		assert_in_range(kept_bytes(&r.kept), 0, 128u << 10);
		rig_close(&r);
	}
	munmap(o, (OBJECTS + 1) * sizeof(*o));
	free(buf);
	free(want);
}

static int by_value(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return x < y ? -1 : x > y;
}

/* Opens what is in fd, frees objects [from, to), and dies before anything else happens. */
static void free_and_die(int fd, struct object *o, unsigned int from, unsigned int to)
{
	int status;
	pid_t pid = fork();

	assert_true(pid >= 0);
	if (pid == 0) {
		struct rig r;

		if (open_over(&r, fd, UINT64_C(8) << 30))
			_exit(1);
		for (unsigned int i = from; i < to; i++)
			backend_free(r.c, r.s, &o[i].handle, 1);
		_exit(0);
	}
	waitpid(pid, &status, 0);
	assert_int_equal(status, 0);
}

/* Guests' faults, which load and free, come before anybody asks for the rest of the recovery. */
static void faults_come_first(void **state)
{
	uint8_t *buf = buffer_new(), *want = buffer_new();
	struct object *o = journal_new();
	int fd = leave_objects(o, 100);
	uint64_t kept[100];
	struct ebb_usage u = {0};
	struct rig r;

	free_and_die(fd, o, 90, 100);
	assert_int_equal(open_over(&r, fd, UINT64_C(8) << 30), 0);
	for (int i = 0; i < 90; i++) {
		kept[i] = o[i].handle;
		assert_int_equal(read_back(&r, &o[i], buf, want), 0);
		if (i >= 30)
			continue;
		backend_free(r.c, r.s, &o[i].handle, 1);
		backend_free(r.c, r.s, &o[i].handle, 1); /* refused */
		assert_int_equal(do_load(r.c, r.s, o[i].handle, buf, o[i].len), -EINVAL);
	}
	for (int i = 90; i < 100; i++)
		assert_int_equal(do_load(r.c, r.s, o[i].handle, buf, o[i].len), -EINVAL);
	/* 30 are freed already, and nobody names the last ten. */
	qsort(kept, 80, sizeof(*kept), by_value);
	assert_int_equal(backend_retain(r.c, r.s, kept, 80), 10);
	backend_usage(r.b, r.s, &u);
	assert_int_equal(u.objects, 50);
	for (int i = 30; i < 80; i++)
		assert_int_equal(read_back(&r, &o[i], buf, want), 0);
	/* What was freed is used again, and spoils nothing. */
	for (int i = 0; i < 30; i++) {
		fill(buf, o[i].len, 1000 + (uint64_t)i, 500);
		o[i].seed = 1000 + (uint64_t)i;
		assert_int_equal(do_store(r.c, r.s, 0, buf, o[i].len, &o[i].handle), 0);
	}
	for (int i = 30; i < 80; i++)
		assert_int_equal(read_back(&r, &o[i], buf, want), 0);
	for (int i = 0; i < 80; i++)
		backend_free(r.c, r.s, &o[i].handle, 1);
	memset(&u, 0, sizeof(u));
	backend_usage(r.b, r.s, &u);
	assert_int_equal(u.objects, 0);
	assert_int_equal(u.stored_bytes, 0);
	maintain_all(r.s);
	assert_in_range(kept_bytes(&r.kept), 0, 128u << 10);
	rig_close(&r);
	munmap(o, (OBJECTS + 1) * sizeof(*o));
	free(buf);
	free(want);
}

/* Memory that nothing accounts for is given back. */
static void strays_are_trimmed(void **state)
{
	struct object *o = journal_new();
	int fd = leave_objects(o, 50);
	struct ebb_usage u;
	struct stat st;
	struct rig r;

	assert_int_equal(fstat(fd, &st), 0);
	/* In the middle of nowhere of the slabs, and in the last page. */
	for (int i = 1; i < 200; i++)
		assert_int_equal(pwrite(fd, "stray", 5, st.st_size - 4096 * i * 37), 5);
	assert_int_equal(open_over(&r, fd, UINT64_C(8) << 30), 0);
	backend_usage(r.b, r.s, &u);
	assert_true(kept_bytes(&r.kept) <= u.footprint_bytes);
	assert_true(kept_bytes(&r.kept) + (1u << 20) > u.footprint_bytes);
	rig_close(&r);
	munmap(o, (OBJECTS + 1) * sizeof(*o));
}

/* ---- damaged ---- */

static void another_header_is_refused(void **state)
{
	struct object *o = journal_new();
	int fd = leave_objects(o, 10);
	uint8_t header[64], wrong[64];
	struct rig r;

	assert_int_equal(pread(fd, header, sizeof(header), 0), sizeof(header));
	/* Magic number, version, class table, number of handles, numbers of slabs, total. */
	for (int at = 0; at < 40; at += 4) {
		memcpy(wrong, header, sizeof(header));
		wrong[at] ^= 0x41;
		assert_int_equal(pwrite(fd, wrong, sizeof(wrong), 0), sizeof(wrong));
		assert_int_equal(open_over(&r, dup(fd), UINT64_C(8) << 30), -1);
		kept_release(&r.kept);
	}
	assert_int_equal(pwrite(fd, header, sizeof(header), 0), sizeof(header));
	assert_int_equal(open_over(&r, fd, UINT64_C(8) << 30), 0);
	rig_close(&r);
	munmap(o, (OBJECTS + 1) * sizeof(*o));
}

/* Offsets of the first `n` pages that hold something. */
static uint32_t data_pages(int fd, off_t *pages, uint32_t max)
{
	uint32_t n = 0;
	off_t at = 0;

	while (n < max && (at = lseek(fd, at, SEEK_DATA)) >= 0) {
		pages[n++] = at;
		at += 4096;
	}
	return n;
}

/* Random damage anywhere: errors are fine; a crash, a hang or other content is not. */
static void damage_costs_errors_only(void **state)
{
	static off_t pages[20000];
	uint8_t *buf = buffer_new(), *want = buffer_new();
	struct object *o = journal_new();
	uint64_t random = 7;

	for (int round = 0; round < 30; round++) {
		int fd = leave_objects(o, 60);
		uint32_t n = data_pages(fd, pages, 20000);
		struct rig r;

		for (int i = 0; i < 1 << (round % 10); i++) {
			/* Half of it into the first pages: classes and the table of handles. */
			uint64_t page = next_random(&random) % (round % 2 ? n : 6);
			uint64_t word = next_random(&random);

			if (page == 0 && round % 3)
				continue;
			assert_int_equal(
				pwrite(fd, &word, 8, pages[page] + (off_t)(word >> 32) % 512 * 8),
				8);
		}
		if (open_over(&r, fd, UINT64_C(8) << 30)) {
			kept_release(&r.kept);
			continue;
		}
		for (int i = 0; i < 60; i++) {
			int err = read_back(&r, &o[i], buf, want);

			assert_true(err == 0 || err == -EINVAL || err == -EIO);
		}
		/* Damage while it runs. */
		for (int i = 0; i < 1 << (round % 8); i++) {
			uint64_t word = next_random(&random);

			assert_int_equal(
				pwrite(fd, &word, 8,
				       pages[1 + word % (n - 1)] + (off_t)(word >> 32) % 512 * 8),
				8);
		}
		for (int i = 0; i < 60; i++) {
			assert_int_not_equal(read_back(&r, &o[i], buf, want), 1);
			if (i % 2)
				backend_free(r.c, r.s, &o[i].handle, 1);
			fill(buf, 4096, (uint64_t)i, 500);
			do_store(r.c, r.s, 0, buf, 4096, &o[i].handle);
		}
		for (int i = 0; i < 100; i++)
			backend_maintain(r.s, 1000);
		rig_close(&r);
	}
	munmap(o, (OBJECTS + 1) * sizeof(*o));
	free(buf);
	free(want);
}

static int load_for(struct rig *r, const struct object *x, uint64_t owner, void *buf)
{
	struct ebb_io io, *list = &io;

	backend_io_prepare(&io, EBB_IO_LOAD, EBB_IO_DEMAND, r->s, x->handle, buf, x->len, 0);
	io.owner = owner;
	assert_int_equal(backend_submit(r->c, &list, 1), 1);
	return io.result;
}

/* A handle that got to another unit. */
static void handles_that_lead_elsewhere(void **state)
{
	uint8_t *buf = buffer_new(), *want = buffer_new();
	struct object *o = journal_new();
	int fd = leave_objects(o, 60);
	struct rig r;

	assert_int_equal(open_over(&r, fd, UINT64_C(8) << 30), 0);
	for (int i = 0; i < 60; i++) {
		assert_int_equal(load_for(&r, &o[i], 0, buf), 0); /* what the test stores for */
		assert_int_equal(load_for(&r, &o[i], 1, buf), -EIO);
		assert_int_equal(load_for(&r, &o[i], UINT64_MAX, buf), -EIO);
		assert_int_equal(read_back(&r, &o[i], buf, want), 0);
	}
	rig_close(&r);
	munmap(o, (OBJECTS + 1) * sizeof(*o));
	free(buf);
	free(want);
}

int main(int argc, char **argv)
{
	const struct CMUnitTest compressed[] = {
		cmocka_unit_test(more_or_less_ram_than_before),
		cmocka_unit_test(faults_come_first),
		cmocka_unit_test(strays_are_trimmed),
		cmocka_unit_test(killed_again_and_again),
		cmocka_unit_test(another_header_is_refused),
		cmocka_unit_test(damage_costs_errors_only),
		cmocka_unit_test(handles_that_lead_elsewhere),
	};
	const struct CMUnitTest any[] = {
		cmocka_unit_test(killed_again_and_again),
	};

	if (argc < 2)
		return cmocka_run_group_tests(compressed, NULL, NULL);
	driver = argv[1];
	options = (const char *const *)argv + 2;
	n_options = (uint32_t)argc - 2;
	return cmocka_run_group_tests(any, NULL, NULL);
}
