/* SPDX-License-Identifier: BSD-3-Clause */
/* test_ssd.c: what can go wrong with a disk, and that nothing wrong ever comes back. PATH [SIZE] */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "backends/harness.h"
#include "layout.h"

#define SIZE_MIB 24
#define OBJECTS	 600

static const char *path;

/* Options beside path and size, up to two. */
static int open_with(struct rig *r, const char *one, const char *two, struct error *e)
{
	char opts[4][256];
	const char *list[4] = {opts[0], opts[1], opts[2], opts[3]};
	uint32_t n = 2;

	memset(r, 0, sizeof(*r));
	snprintf(opts[0], sizeof(opts[0]), "path=%s", path);
	snprintf(opts[1], sizeof(opts[1]), "size=%dM", SIZE_MIB);
	if (one)
		snprintf(opts[n++], sizeof(opts[0]), "%s", one);
	if (two)
		snprintf(opts[n++], sizeof(opts[0]), "%s", two);
	return rig_backend(r, "ssd", list, n, e);
}

/* A backend, a space with that key over memory that may be found, a channel. */
static int open_space(struct rig *r, int fd, const char *option, uint8_t key, pid_t keeper)
{
	struct ebb_space_params p = {.vm_name = "guest", .unit_bytes = 4096, .ram_bytes = 1u << 30};
	struct error e;
	int err;

	if (open_with(r, option, NULL, &e))
		fail_msg("%s", e.desc);
	r->kept.fd = fd;
	p.space_ctx = &r->kept;
	memset(p.key, key, sizeof(p.key));
	if (keeper)
		keeper_name(&p, keeper);
	err = backend_space_open(r->b, &p, &r->s);
	if (err) {
		backend_close(r->b);
		return err;
	}
	r->c = rig_channel(r);
	return 0;
}

static uint64_t stat_of(struct rig *r, const char *name)
{
	struct ebb_stat stats[64];
	int n = backend_stats(r->b, stats, 64);

	for (int i = 0; i < n; i++)
		if (strcmp(stats[i].name, name) == 0)
			return stats[i].value;
	fail_msg("no stat %s", name);
	return 0;
}

static void store(struct rig *r, uint64_t seed, uint64_t *handle)
{
	static uint8_t buf[4096] __attribute__((aligned(4096)));

	fill(buf, 4096, seed, 900);
	assert_int_equal(do_store(r->c, r->s, 0, buf, 4096, handle), 0);
}

/* 0: what was stored; else the error. Anything else than what was stored fails the test. */
static int load(struct rig *r, uint64_t seed, uint64_t handle)
{
	static uint8_t buf[4096] __attribute__((aligned(4096))), want[4096];
	int err = do_load(r->c, r->s, handle, buf, 4096);

	if (err)
		return err;
	fill(want, 4096, seed, 900);
	assert_memory_equal(buf, want, 4096);
	return 0;
}

/* ---- opening ---- */

static void expect_refused(const char *bad_path, const char *option, const char *sentence)
{
	const char *was = path;
	struct error e;
	struct rig r;

	path = bad_path;
	assert_true(open_with(&r, option, NULL, &e) < 0);
	path = was;
	if (!strstr(e.desc, sentence))
		fail_msg("'%s' does not say '%s'", e.desc, sentence);
}

static void bad_paths_are_refused(void **state)
{
	char name[300];

	expect_refused("/no/such/folder/disk", NULL, "No such file");
	expect_refused("/tmp", NULL, "neither a file nor a block device");
	expect_refused("/dev/null", NULL, "neither a file nor a block device");
	expect_refused("relative", NULL, "path cannot be");
	expect_refused(path, "encrypt=maybe", "encrypt cannot be");
	snprintf(name, sizeof(name), "%s/below", path);
	expect_refused(name, NULL, "Not a directory");
}

static void what_is_not_ours_is_refused(void **state)
{
	const char *was = path;
	char name[300];
	struct error e;
	struct rig r;
	int fd;

	snprintf(name, sizeof(name), "%s.other", path);
	fd = open(name, O_RDWR | O_CREAT | O_EXCL, 0600);
	assert_true(fd >= 0);
	assert_int_equal(write(fd, "precious", 8), 8);
	assert_int_equal(ftruncate(fd, 8192), 0);
	expect_refused(name, NULL, "not empty and not Ebb's");
	/* Readable by others: it would hold guests' memory. */
	assert_int_equal(ftruncate(fd, 0), 0);
	assert_int_equal(fchmod(fd, 0640), 0);
	expect_refused(name, NULL, "mode 0600");
	assert_int_equal(fchmod(fd, 0600), 0);
	assert_int_equal(write(fd, "precious", 8), 8);
	path = name;
	assert_int_equal(open_with(&r, "format=yes", NULL, &e), 0);
	backend_close(r.b);
	/* From now on it is ours. */
	assert_int_equal(open_with(&r, NULL, NULL, &e), 0);
	backend_close(r.b);
	path = was;
	close(fd);
	unlink(name);
}

static void one_instance_at_a_time(void **state)
{
	struct error e;
	struct rig r;

	assert_int_equal(open_with(&r, NULL, NULL, &e), 0);
	expect_refused(path, NULL, "in use");
	backend_close(r.b);
	assert_int_equal(open_with(&r, NULL, NULL, &e), 0);
	backend_close(r.b);
}

static void a_damaged_superblock_is_refused(void **state)
{
	struct error e;
	struct rig r;
	int fd = open(path, O_RDWR);

	assert_int_equal(open_with(&r, NULL, NULL, &e), 0);
	backend_close(r.b);
	assert_int_equal(pwrite(fd, "x", 1, offsetof(struct super_block, n_segs)), 1);
	expect_refused(path, NULL, "superblock is damaged");
	expect_refused(path, "format=yes", "superblock is damaged");
	assert_int_equal(pwrite(fd, "\377\377", 2, offsetof(struct super_block, version)), 2);
	expect_refused(path, NULL, "another version");
	assert_int_equal(ftruncate(fd, 0), 0);
	close(fd);
}

/* ---- content ---- */

static uint64_t data_offset(int fd)
{
	struct super_block s;

	assert_int_equal(pread(fd, &s, sizeof(s), 0), sizeof(s));
	return s.data_offset;
}

/* Where on the disk an object is, by its map. */
static off_t place_of(struct rig *r, int fd, uint64_t handle)
{
	const uint64_t *places =
		(const uint64_t *)(const void *)((const char *)r->kept.addr + BLOCK_BYTES);
	uint64_t p = places[handle_index(handle)];

	assert_true(p & PLACE_LIVE);
	return (off_t)(data_offset(fd) + place_block(p) * BLOCK_BYTES);
}

static void exchange(int fd, off_t a, off_t b)
{
	char x[4096], y[4096];

	assert_int_equal(pread(fd, x, 4096, a), 4096);
	assert_int_equal(pread(fd, y, 4096, b), 4096);
	assert_int_equal(pwrite(fd, x, 4096, b), 4096);
	assert_int_equal(pwrite(fd, y, 4096, a), 4096);
	assert_int_equal(fdatasync(fd), 0);
}

/* Overwritten, exchanged, replaced by what was there before, cut off: an error, never content. */
static void changed_behind_our_back(const char *option)
{
	int fd = open(path, O_RDWR);
	uint64_t h[8], again;
	char old[4096];
	struct stat st;
	struct rig r;
	off_t at;

	assert_int_equal(open_space(&r, -1, option, 1, 0), 0);
	for (uint64_t i = 0; i < 8; i++)
		store(&r, i, &h[i]);
	assert_int_equal(load(&r, 0, h[0]), 0);
	/* One bit. */
	at = place_of(&r, fd, h[0]);
	assert_int_equal(pread(fd, old, 4096, at), 4096);
	old[2000] ^= 1;
	assert_int_equal(pwrite(fd, old, 4096, at), 4096);
	assert_int_equal(fdatasync(fd), 0);
	assert_int_equal(load(&r, 0, h[0]), -EIO);
	assert_int_equal(stat_of(&r, "corrupt"), 1);
	/* Another object's content, which is good by itself. */
	exchange(fd, place_of(&r, fd, h[1]), place_of(&r, fd, h[2]));
	assert_int_equal(load(&r, 1, h[1]), -EIO);
	assert_int_equal(load(&r, 2, h[2]), -EIO);
	exchange(fd, place_of(&r, fd, h[1]), place_of(&r, fd, h[2]));
	assert_int_equal(load(&r, 1, h[1]), 0);
	/* An older content under the same handle index. */
	at = place_of(&r, fd, h[3]);
	assert_int_equal(pread(fd, old, 4096, at), 4096);
	backend_free(r.c, r.s, &h[3], 1);
	store(&r, 33, &again);
	assert_int_equal(handle_index(again), handle_index(h[3]));
	at = place_of(&r, fd, again);
	assert_int_equal(pwrite(fd, old, 4096, at), 4096);
	assert_int_equal(fdatasync(fd), 0);
	assert_int_equal(load(&r, 33, again), -EIO);
	/* The file ends there now; then it is long again, with zeroes. */
	assert_int_equal(fstat(fd, &st), 0);
	assert_int_equal(ftruncate(fd, 4096), 0);
	assert_int_equal(load(&r, 4, h[4]), -EIO);
	assert_int_equal(stat_of(&r, "load-errors"), 1);
	assert_int_equal(ftruncate(fd, st.st_size), 0);
	assert_int_equal(load(&r, 5, h[5]), -EIO);
	rig_close(&r);
	assert_int_equal(ftruncate(fd, 0), 0);
	close(fd);
}

static void changed_behind_our_back_plain(void **state)
{
	changed_behind_our_back(NULL);
}

static void changed_behind_our_back_encrypted(void **state)
{
	changed_behind_our_back("encrypt=on");
}

static bool on_disk(int fd, const void *text, size_t bytes, off_t at)
{
	char block[4096];

	assert_int_equal(pread(fd, block, 4096, at), 4096);
	return memmem(block, 4096, text, bytes) != NULL;
}

static void encrypted_is_encrypted(void **state)
{
	static uint8_t buf[4096] __attribute__((aligned(4096)));

	for (int encrypt = 0; encrypt < 2; encrypt++) {
		int fd = open(path, O_RDWR);
		struct ebb_io io, *list;
		uint64_t h;
		struct rig r;

		assert_int_equal(open_space(&r, -1, encrypt ? "encrypt=on" : NULL, 1, 0), 0);
		memcpy(buf + 1000, "a secret of the guest", 21);
		assert_int_equal(do_store(r.c, r.s, 0, buf, 4096, &h), 0);
		assert_int_equal(on_disk(fd, "a secret of the guest", 21, place_of(&r, fd, h)),
				 !encrypt);
		assert_int_equal(backend_matches(r.c, r.s, h, 0, buf, 4096), 1);
		/* The right handle for the wrong unit of the guest. */
		backend_io_prepare(&io, EBB_IO_LOAD, EBB_IO_DEMAND, r.s, h, buf, 4096, 0);
		io.owner = 1;
		list = &io;
		assert_int_equal(backend_submit(r.c, &list, 1), 1);
		assert_int_equal(wait_some(r.c, &list, 1), 1);
		assert_int_equal(io.result, -EIO);
		memset(buf, 0, sizeof(buf));
		memcpy(buf + 1000, "a secret of the guest", 21);
		assert_int_equal(backend_matches(r.c, r.s, h, 1, buf, 4096), 0);
		buf[4095]++;
		assert_int_equal(backend_matches(r.c, r.s, h, 0, buf, 4096), 0);
		buf[4095]--;
		assert_int_equal(backend_matches(r.c, r.s, h + 1, 0, buf, 4096), 0);
		rig_close(&r);
		close(fd);
	}
}

/* A device that fails writes, told by a limit on the file's size: the store fails, and is retried
 * elsewhere; what was stored before stays good. */
static void failed_writes_fail_the_store(void **state)
{
	static uint8_t buf[4096] __attribute__((aligned(4096)));
	struct rlimit was, limit;
	uint64_t h, other;
	struct rig r;

	signal(SIGXFSZ, SIG_IGN);
	assert_int_equal(open_space(&r, -1, NULL, 1, 0), 0);
	store(&r, 1, &h);
	assert_int_equal(getrlimit(RLIMIT_FSIZE, &was), 0);
	limit = was;
	limit.rlim_cur = 1u << 20;
	assert_int_equal(setrlimit(RLIMIT_FSIZE, &limit), 0);
	assert_int_equal(do_store(r.c, r.s, 0, buf, 4096, &other), -EIO);
	assert_int_equal(stat_of(&r, "store-errors"), 1);
	assert_int_equal(load(&r, 1, h), 0);
	assert_int_equal(setrlimit(RLIMIT_FSIZE, &was), 0);
	store(&r, 2, &other);
	assert_int_equal(load(&r, 2, other), 0);
	rig_close(&r);
}

/* ---- room ---- */

/* Fills it with pages; returns how many it took. */
static uint32_t fill_up(struct rig *r, uint64_t *h, uint32_t max)
{
	static uint8_t buf[4096] __attribute__((aligned(4096)));

	for (uint32_t i = 0; i < max; i++) {
		int err;

		fill(buf, 4096, i, 900);
		err = do_store(r->c, r->s, 0, buf, 4096, &h[i]);
		if (err) {
			assert_int_equal(err, -ENOSPC);
			return i;
		}
	}
	return max;
}

/* Full is an error; and what is freed here and there is room again, by cleaning. */
static void full_and_cleaned(void **state)
{
	enum { MAX = SIZE_MIB * 256 };
	static uint64_t h[MAX];
	uint32_t n, again;
	uint64_t random = 3;
	struct rig r;

	assert_int_equal(open_space(&r, -1, NULL, 1, 0), 0);
	n = fill_up(&r, h, MAX);
	assert_in_range(n, MAX / 2, MAX - 1);
	assert_true(stat_of(&r, "full") > 0);
	for (uint32_t i = 0; i < n; i++) {
		if (next_random(&random) % 4) {
			backend_free(r.c, r.s, &h[i], 1);
			h[i] = UINT64_MAX;
		}
	}
	/* None of the segments is empty: only by moving can there be room. */
	again = 0;
	for (int tries = 0; tries < 2000 && again < n / 2; tries++) {
		static uint64_t more[MAX];
		uint32_t got = fill_up(&r, more + again, n / 2 - again);

		for (uint32_t i = 0; i < got; i++)
			assert_int_equal(load(&r, i, more[again + i]), 0);
		again += got;
		if (again < n / 2)
			backend_maintain(r.s, 2000);
	}
	assert_int_equal(again, n / 2);
	assert_true(stat_of(&r, "cleaned-segments") > 0);
	for (uint32_t i = 0; i < n; i++)
		if (h[i] != UINT64_MAX)
			assert_int_equal(load(&r, i, h[i]), 0);
	rig_close(&r);
}

static void the_write_budget_holds(void **state)
{
	enum { MAX = SIZE_MIB * 256 };
	static uint64_t h[MAX];
	struct ebb_option more = {"write-budget", "1G"};
	struct error e;
	uint32_t n;
	struct rig r;

	assert_int_equal(open_space(&r, -1, "write-budget=8M", 1, 0), 0);
	n = fill_up(&r, h, MAX);
	assert_int_equal(n, 4 * 512);
	assert_true(stat_of(&r, "over-budget") > 0);
	for (uint32_t i = 0; i < n; i += 37)
		assert_int_equal(load(&r, i, h[i]), 0);
	/* A restart gives nothing for free. */
	rig_close(&r);
	assert_int_equal(open_space(&r, -1, "write-budget=8M", 1, 0), 0);
	assert_int_equal(fill_up(&r, h, MAX), 0);
	assert_int_equal(backend_config(r.b, &more, &e), 0);
	for (int i = 0; i < 2000 && !fill_up(&r, h, 1); i++)
		usleep(1000);
	assert_int_equal(load(&r, 0, h[0]), 0);
	more = (struct ebb_option){"path", "/tmp/x"};
	assert_int_equal(backend_config(r.b, &more, &e), -ENOTSUP);
	rig_close(&r);
}

/* ---- from daemon to daemon ---- */

/* Leaves n objects (seeds from `first`), with a daemon that ends without closing. */
static int leave(uint64_t *h, uint32_t n, uint64_t first, const char *option, pid_t keeper)
{
	int fd = memfd_create("map", MFD_CLOEXEC), status;
	pid_t pid;

	/* Nothing in it yet, as from a new VM. */
	pid = fork();
	if (!pid) {
		struct rig r;

		if (open_space(&r, fd, option, 1, keeper))
			_exit(1);
		for (uint32_t i = 0; i < n; i++)
			store(&r, first + i, &h[i]);
		_exit(0);
	}
	waitpid(pid, &status, 0);
	assert_int_equal(status, 0);
	return fd;
}

static uint64_t *shared(void)
{
	void *p = mmap(NULL, OBJECTS * sizeof(uint64_t), PROT_READ | PROT_WRITE,
		       MAP_SHARED | MAP_ANONYMOUS, -1, 0);

	assert_ptr_not_equal(p, MAP_FAILED);
	return p;
}

static void the_next_daemon_has_it(const char *option)
{
	uint64_t *h = shared(), *theirs = shared();
	pid_t keeper = keeper_new();
	int fd = leave(h, OBJECTS, 0, option, keeper);
	int other = leave(theirs, OBJECTS, OBJECTS, option, keeper);
	struct rig r;

	/* Neither comes before the other, and neither may take what the absent one has. */
	for (int turn = 0; turn < 2; turn++) {
		uint64_t *have = turn ? theirs : h, more;

		assert_int_equal(open_space(&r, turn ? other : fd, option, 1, keeper), 0);
		for (uint32_t i = 0; i < OBJECTS; i++)
			assert_int_equal(load(&r, i + (turn ? OBJECTS : 0), have[i]), 0);
		for (uint64_t i = 0; i < 600; i++)
			store(&r, 77 + i, &more);
		if (!turn)
			assert_true(stat_of(&r, "absent-bytes") >= OBJECTS * UINT64_C(4096));
		rig_close(&r);
	}
	munmap(h, OBJECTS * sizeof(*h));
	munmap(theirs, OBJECTS * sizeof(*h));
	keeper_end(keeper);
}

static void the_next_daemon_has_it_plain(void **state)
{
	the_next_daemon_has_it(NULL);
}

static void the_next_daemon_has_it_encrypted(void **state)
{
	the_next_daemon_has_it("encrypt=on");
}

/* A VM that ended while no daemon ran leaves nothing behind; one that lives keeps its own. */
static void who_is_gone_holds_nothing(void **state)
{
	uint64_t *h = shared(), more;
	pid_t gone = keeper_new(), lives = keeper_new();
	int a = leave(h, OBJECTS, 0, NULL, gone), b = leave(h, OBJECTS, 0, NULL, lives);
	uint64_t held;
	struct rig r;

	keeper_end(gone);
	close(a);
	assert_int_equal(open_space(&r, -1, NULL, 1, 0), 0);
	held = stat_of(&r, "absent-bytes");
	store(&r, 1, &more);
	for (int i = 0; i < 10000 && stat_of(&r, "absent-bytes") == held; i++)
		usleep(1000);
	assert_true(stat_of(&r, "absent-bytes") < held);
	assert_true(stat_of(&r, "absent-bytes") >= OBJECTS * UINT64_C(4096));
	rig_close(&r);
	assert_int_equal(open_space(&r, b, NULL, 1, lives), 0);
	for (uint32_t i = 0; i < OBJECTS; i++)
		assert_int_equal(load(&r, i, h[i]), 0);
	rig_close(&r);
	keeper_end(lives);
	munmap(h, OBJECTS * sizeof(*h));
}

static void a_wrong_key_is_refused(void **state)
{
	for (int encrypt = 0; encrypt < 2; encrypt++) {
		const char *option = encrypt ? "encrypt=on" : NULL;
		uint64_t *h = shared();
		pid_t keeper = keeper_new();
		int fd = leave(h, 10, 0, option, keeper);
		struct rig r;

		assert_int_equal(open_space(&r, dup(fd), option, 2, keeper), -EKEYREJECTED);
		kept_release(&r.kept);
		/* And nothing was spoilt by the attempt. */
		assert_int_equal(open_space(&r, fd, option, 1, keeper), 0);
		for (uint32_t i = 0; i < 10; i++)
			assert_int_equal(load(&r, i, h[i]), 0);
		rig_close(&r);
		munmap(h, OBJECTS * sizeof(*h));
		keeper_end(keeper);
	}
}

static void another_disk_is_refused(void **state)
{
	uint64_t *h = shared();
	pid_t keeper = keeper_new();
	int fd = leave(h, 10, 0, NULL, keeper), disk = open(path, O_RDWR);
	struct rig r;

	/* As if made anew, or exchanged. */
	assert_int_equal(ftruncate(disk, 0), 0);
	assert_int_equal(open_space(&r, fd, NULL, 1, keeper), -EBADMSG);
	kept_release(&r.kept);
	close(disk);
	munmap(h, OBJECTS * sizeof(*h));
	keeper_end(keeper);
}

/* No nonce comes twice, whatever happened between. */
static void nonces_are_used_once(void **state)
{
	enum { N = 500 };
	static uint64_t seen[4 * N];
	uint64_t *h = shared();
	pid_t keeper = keeper_new();
	int fd = memfd_create("map", MFD_CLOEXEC);
	uint32_t n = 0;

	for (int life = 0; life < 4; life++) {
		pid_t pid = fork();
		int status;
		struct rig r;

		if (!pid) {
			if (open_space(&r, fd, "encrypt=on", 1, keeper))
				_exit(1);
			for (uint32_t i = 0; i < N; i++) {
				if (life)
					backend_free(r.c, r.s, &h[i], 1);
				store(&r, i, &h[i]);
			}
			for (uint32_t i = 0; i < N; i++) {
				const struct map_header *map = r.kept.addr;
				const char *at = (const char *)r.kept.addr + BLOCK_BYTES;

				/* Behind places and sums. */
				at += map->n_handles * 24 + (uint64_t)handle_index(h[i]) * 8;
				memcpy(&h[N + i], at, 8);
			}
			_exit(0);
		}
		assert_int_equal(waitpid(pid, &status, 0), pid);
		assert_int_equal(status, 0);
		for (uint32_t i = 0; i < N; i++) {
			for (uint32_t k = 0; k < n; k++)
				assert_int_not_equal(seen[k], h[N + i]);
			seen[n++] = h[N + i];
		}
	}
	close(fd);
	munmap(h, OBJECTS * sizeof(*h));
	keeper_end(keeper);
}

/* A living daemon hands over; the successor fails, or goes on. */
static void handed_over(void **state)
{
	uint64_t *h = shared();
	pid_t keeper = keeper_new(), pid;
	int fd = memfd_create("map", MFD_CLOEXEC), status;
	struct rig r;

	assert_int_equal(open_space(&r, fd, NULL, 1, keeper), 0);
	for (uint32_t i = 0; i < 100; i++)
		store(&r, i, &h[i]);
	for (int fails = 1; fails >= 0; fails--) {
		assert_int_equal(backend_quiesce(r.b), 0);
		pid = fork();
		if (!pid) {
			struct rig next;

			if (open_space(&next, fd, NULL, 1, keeper))
				_exit(1);
			if (fails)
				_exit(0);
			if (backend_resume(next.b))
				_exit(2);
			for (uint32_t i = 0; i < 200; i++)
				if (load(&next, i, h[i]))
					_exit(3);
			_exit(0);
		}
		assert_int_equal(waitpid(pid, &status, 0), pid);
		assert_int_equal(status, 0);
		if (!fails)
			break;
		assert_int_equal(backend_resume(r.b), 0);
		for (uint32_t i = 100; i < 200; i++)
			store(&r, i, &h[i]);
		for (uint32_t i = 0; i < 200; i++)
			assert_int_equal(load(&r, i, h[i]), 0);
	}
	/* It has ended as well, so that all can be closed here. */
	assert_int_equal(backend_resume(r.b), 0);
	for (uint32_t i = 0; i < 200; i++)
		assert_int_equal(load(&r, i, h[i]), 0);
	rig_close(&r);
	munmap(h, OBJECTS * sizeof(*h));
	keeper_end(keeper);
}

static pid_t parent;

/* A check that fails in a child ends that child. */
static int only_the_parent_goes_on(void **state)
{
	if (getpid() != parent)
		_exit(99);
	return 0;
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_teardown(bad_paths_are_refused, only_the_parent_goes_on),
		cmocka_unit_test_teardown(what_is_not_ours_is_refused, only_the_parent_goes_on),
		cmocka_unit_test_teardown(one_instance_at_a_time, only_the_parent_goes_on),
		cmocka_unit_test_teardown(a_damaged_superblock_is_refused, only_the_parent_goes_on),
		cmocka_unit_test_teardown(changed_behind_our_back_plain, only_the_parent_goes_on),
		cmocka_unit_test_teardown(changed_behind_our_back_encrypted,
					  only_the_parent_goes_on),
		cmocka_unit_test_teardown(encrypted_is_encrypted, only_the_parent_goes_on),
		cmocka_unit_test_teardown(failed_writes_fail_the_store, only_the_parent_goes_on),
		cmocka_unit_test_teardown(full_and_cleaned, only_the_parent_goes_on),
		cmocka_unit_test_teardown(the_write_budget_holds, only_the_parent_goes_on),
		cmocka_unit_test_teardown(the_next_daemon_has_it_plain, only_the_parent_goes_on),
		cmocka_unit_test_teardown(the_next_daemon_has_it_encrypted,
					  only_the_parent_goes_on),
		cmocka_unit_test_teardown(who_is_gone_holds_nothing, only_the_parent_goes_on),
		cmocka_unit_test_teardown(a_wrong_key_is_refused, only_the_parent_goes_on),
		cmocka_unit_test_teardown(another_disk_is_refused, only_the_parent_goes_on),
		cmocka_unit_test_teardown(nonces_are_used_once, only_the_parent_goes_on),
		cmocka_unit_test_teardown(handed_over, only_the_parent_goes_on),
	};

	if (argc != 2) {
		fprintf(stderr, "usage: %s PATH\n", argv[0]);
		return 2;
	}
	path = argv[1];
	parent = getpid();
	return cmocka_run_group_tests(tests, NULL, NULL);
}
