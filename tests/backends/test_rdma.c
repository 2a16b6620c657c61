/* SPDX-License-Identifier: BSD-3-Clause */
/* test_rdma.c: the backend rdma and ebb-donor: what is away, wrong, full or lost.
 * By hand: test_backend_rdma [TEST [DEATHS]]. */
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "backends/donors.h"
#include "backends/harness.h"

#define MiB   (UINT64_C(1) << 20)
#define CHUNK (4 * MiB)

static struct donors donors;

struct object {
	uint64_t handle, seed;
	uint32_t len;
	int stored;
};

static int setup(void **state)
{
	donors_init(&donors);
	return 0;
}

static int teardown(void **state)
{
	donors_end(&donors);
	return 0;
}

static const char *stat_help(struct rig *r, const char *name, uint64_t *value)
{
	struct ebb_stat stats[32];
	int n = backend_stats(r->b, stats, 32);

	for (int i = 0; i < n; i++) {
		if (strcmp(stats[i].name, name) == 0) {
			*value = stats[i].value;
			return stats[i].help;
		}
	}
	fail_msg("no stat %s", name);
	return NULL;
}

static uint64_t stat(struct rig *r, const char *name)
{
	uint64_t v = 0;

	stat_help(r, name, &v);
	return v;
}

/* The backend over n donors; more options behind. */
static int open_backend(struct rig *r, unsigned int n, const char *key, const char *more,
			struct error *e)
{
	char list[64] = "donors=", key_file[96], one[64];
	const char *opts[4] = {list, key_file, more, NULL};

	for (unsigned int i = 0; i < n; i++) {
		snprintf(one, sizeof(one), "%s%s:%u", i ? "," : "", donors.address,
			 donors.donor[i].port);
		strcat(list, one);
	}
	snprintf(key_file, sizeof(key_file), "key-file=%s/%s", donors.dir, key);
	memset(r, 0, sizeof(*r));
	return rig_backend(r, "rdma", opts, more ? 3 : 2, e);
}

static void open_rig(struct rig *r, unsigned int n, const char *more)
{
	struct error e = {.desc = ""};

	if (open_backend(r, n, "key", more, &e))
		fail_msg("%s", e.desc);
	r->s = rig_space(r, &r->kept);
	r->c = rig_channel(r);
}

static void store_all(struct rig *r, struct object *o, unsigned int n)
{
	uint8_t *buf = buffer_new();

	for (unsigned int i = 0; i < n; i++) {
		o[i].len = 4096;
		o[i].seed = i + 1;
		fill(buf, o[i].len, o[i].seed, 1000);
		assert_int_equal(do_store(r->c, r->s, 0, buf, o[i].len, &o[i].handle), 0);
	}
	free(buf);
}

/* 0: right; 1: wrong bytes, which must never be; -errno. Asks again as the engine does. */
static int look(struct rig *r, const struct object *o, uint8_t *buf, uint8_t *want)
{
	int err;

	while ((err = do_load(r->c, r->s, o->handle, buf, o->len)) == -EAGAIN)
		;
	if (err)
		return err;
	fill(want, o->len, o->seed, 1000);
	return memcmp(buf, want, o->len) ? 1 : 0;
}

/* How many are there; the others must be -EIO. */
static unsigned int count_there(struct rig *r, const struct object *o, unsigned int n)
{
	uint8_t *buf = buffer_new(), *want = buffer_new();
	unsigned int there = 0;

	for (unsigned int i = 0; i < n; i++) {
		int err = look(r, &o[i], buf, want);

		if (err && err != -EIO)
			fail_msg("object %u: %d", i, err);
		there += !err;
	}
	free(buf);
	free(want);
	return there;
}

static void wait_for(struct rig *r, const char *name, uint64_t value)
{
	while (stat(r, name) != value)
		usleep(10000);
}

static void both_lend(void)
{
	while (!donor_number(&donors, 0, "lent-bytes") || !donor_number(&donors, 1, "lent-bytes"))
		usleep(10000);
}

/* ---- who is who ---- */

static void a_wrong_key_is_told(void **state)
{
	struct error e = {.desc = ""};
	struct rig r;

	donor_start(&donors, 0, 16 * MiB);
	assert_int_equal(open_backend(&r, 1, "other", NULL, &e), -EKEYREJECTED);
	assert_non_null(strstr(e.desc, "does not have our key"));
	assert_int_equal(open_backend(&r, 1, "none", NULL, &e), -ENOENT);
	assert_non_null(strstr(e.desc, "key file"));
	/* And nothing was lent for it. */
	assert_int_equal(donor_number(&donors, 0, "lent-bytes"), 0);
}

static void options_are_checked(void **state)
{
	static const char *const wrong[] = {"mirror=on", "mirror=maybe", "patience=-1", "spin-us=x",
					    "encrypt=2"};
	struct error e;
	struct rig r;

	for (unsigned int i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++)
		assert_int_equal(open_backend(&r, 1, "key", wrong[i], &e), -EINVAL);
}

/* ---- room ---- */

static void a_full_donor_refuses(void **state)
{
	enum { N = 4000 };
	struct object *o = calloc(N, sizeof(*o));
	uint8_t *buf = buffer_new();
	unsigned int n = 0;
	struct rig r;

	donor_start(&donors, 0, 2 * CHUNK);
	open_rig(&r, 1, NULL);
	for (; n < N; n++) {
		int err;

		o[n].len = 4096;
		o[n].seed = n + 1;
		fill(buf, 4096, o[n].seed, 1000);
		err = do_store(r.c, r.s, 0, buf, 4096, &o[n].handle);
		if (err) {
			assert_int_equal(err, -ENOSPC);
			break;
		}
	}
	assert_int_equal(n, 2 * CHUNK / 4096);
	assert_int_equal(donor_number(&donors, 0, "lent-bytes"), 2 * CHUNK);
	assert_int_equal(count_there(&r, o, n), n);
	/* What is freed is room again. */
	backend_free(r.c, r.s, &o[7].handle, 1);
	assert_int_equal(do_store(r.c, r.s, 0, buf, 4096, &o[7].handle), 0);
	rig_close(&r);
	/* All of it is given back, and is zeroes again. */
	while (donor_number(&donors, 0, "lent-bytes"))
		usleep(10000);
	for (uint64_t at = 0; at < 2 * CHUNK; at += 4096) {
		donor_read(&donors, 0, at, buf, 4096);
		for (unsigned int i = 0; i < 4096; i += 8)
			assert_int_equal(buf[i], 0);
	}
	free(buf);
	free(o);
}

static void content_is_spread(void **state)
{
	enum { N = 200 };
	struct object *o = calloc(N, sizeof(*o));
	unsigned int there;
	struct rig r;

	donor_start(&donors, 0, 32 * MiB);
	donor_start(&donors, 1, 32 * MiB);
	open_rig(&r, 2, NULL);
	/* The first one to lend gets all until the other does. */
	store_all(&r, o, N);
	both_lend();
	store_all(&r, o, N);
	assert_int_equal(count_there(&r, o, N), N);
	donor_stop(&donors, 1, SIGKILL);
	donor_start(&donors, 1, 32 * MiB);
	/* It does not have any more what it had: at once, not after the patience. */
	there = count_there(&r, o, N);
	assert_int_equal(stat(&r, "lost"), N - there);
	assert_in_range(there, N / 8, N - N / 8);
	/* And it is used again. */
	store_all(&r, o, N);
	assert_int_equal(count_there(&r, o, N), N);
	rig_close(&r);
	free(o);
}

/* ---- donors that go ---- */

static void a_dead_donor_costs_what_it_had(void **state)
{
	struct object o[40];
	unsigned int there;
	struct rig r;

	donor_start(&donors, 0, 32 * MiB);
	donor_start(&donors, 1, 32 * MiB);
	open_rig(&r, 2, "patience=1");
	store_all(&r, o, 40);
	both_lend();
	store_all(&r, o, 40);
	donor_stop(&donors, 0, SIGKILL);
	there = count_there(&r, o, 40);
	assert_in_range(there, 1, 39);
	assert_int_equal(stat(&r, "lost"), 40 - there);
	/* The other one takes all that comes. */
	store_all(&r, o, 40);
	assert_int_equal(count_there(&r, o, 40), 40);
	rig_close(&r);
}

static void a_mirror_loses_nothing(void **state)
{
	struct object o[40];
	uint8_t *buf = buffer_new();
	uint64_t handle;
	struct rig r;

	donor_start(&donors, 0, 32 * MiB);
	donor_start(&donors, 1, 32 * MiB);
	open_rig(&r, 2, "mirror=on");
	store_all(&r, o, 40);
	donor_stop(&donors, 0, SIGKILL);
	assert_int_equal(count_there(&r, o, 40), 40);
	assert_true(stat(&r, "second-copy-loads") > 0);
	/* Nothing is promised that only one would have. */
	wait_for(&r, "donors-up", 1);
	fill(buf, 4096, 1, 1000);
	assert_int_equal(do_store(r.c, r.s, 0, buf, 4096, &handle), -ENOSPC);
	free(buf);
	rig_close(&r);
}

/* As when the network is gone: nothing is answered, and nobody is told. */
static void a_silent_donor_comes_back(void **state)
{
	struct object o[30];
	uint8_t *buf = buffer_new();
	struct rig r;

	donor_start(&donors, 0, 32 * MiB);
	open_rig(&r, 1, NULL);
	store_all(&r, o, 30);
	kill(donors.donor[0].pid, SIGSTOP);
	wait_for(&r, "donors-up", 0);
	assert_int_equal(do_load(r.c, r.s, o[0].handle, buf, 4096), -EAGAIN);
	assert_int_equal(do_store(r.c, r.s, 0, buf, 4096, &o[29].handle), -ENOSPC);
	kill(donors.donor[0].pid, SIGCONT);
	assert_int_equal(count_there(&r, o, 29), 29);
	assert_true(stat(&r, "disconnects") > 0);
	store_all(&r, o, 30);
	assert_int_equal(count_there(&r, o, 30), 30);
	free(buf);
	rig_close(&r);
}

/* A daemon hands over to another one, which fails; then to one that does not. */
static void handed_over(void **state)
{
	struct object o[30];
	uint8_t *buf = buffer_new();
	struct rig old, new;
	struct error e;

	donor_start(&donors, 0, 32 * MiB);
	open_rig(&old, 1, NULL);
	store_all(&old, o, 30);
	assert_int_equal(backend_quiesce(old.b), 0);
	for (int attempt = 0; attempt < 2; attempt++) {
		assert_int_equal(open_backend(&new, 1, "key", NULL, &e), 0);
		new.kept.fd = dup(old.kept.fd);
		new.s = rig_space(&new, &new.kept);
		new.c = rig_channel(&new);
		wait_for(&new, "donors-up", 1);
		if (attempt)
			break;
		/* It goes without a trace; nothing is given up by that. */
		assert_int_equal(backend_quiesce(new.b), 0);
		assert_int_equal(backend_resume(old.b), 0);
		assert_int_equal(count_there(&old, o, 30), 30);
		store_all(&old, o, 30);
		assert_int_equal(backend_quiesce(old.b), 0);
		assert_int_equal(backend_resume(new.b), 0);
		backend_channel_close(new.c);
		assert_int_equal(backend_quiesce(new.b), 0);
	}
	assert_int_equal(backend_resume(new.b), 0);
	assert_int_equal(count_there(&new, o, 30), 30);
	store_all(&new, o, 30);
	assert_int_equal(count_there(&new, o, 30), 30);
	free(buf);
	rig_close(&new);
}

/* ---- donors that want their memory back ---- */

/* Until it has all but so much back; what is there is looked at all the while. */
static void wait_lent(struct rig *r, unsigned int i, uint64_t bytes, const struct object *o,
		      unsigned int n)
{
	while (donor_number(&donors, i, "lent-bytes") > bytes)
		assert_int_equal(count_there(r, o, n), n);
}

static void taken_back_to_another_donor(void **state)
{
	enum { N = 400 };
	struct object *o = calloc(N, sizeof(*o));
	struct rig r;

	donor_start(&donors, 0, 32 * MiB);
	donor_start(&donors, 1, 32 * MiB);
	open_rig(&r, 2, NULL);
	store_all(&r, o, 8);
	both_lend();
	store_all(&r, o, N);
	donor_lend(&donors, 0, 0);
	wait_lent(&r, 0, 0, o, N);
	assert_int_equal(donor_number(&donors, 0, "limit-bytes"), 0);
	assert_true(stat(&r, "moved") >= N / 2 - 8);
	/* What it had is not there any more: nothing depends on it. */
	donor_stop(&donors, 0, SIGKILL);
	assert_int_equal(count_there(&r, o, N), N);
	/* Objects that were moved end as others do. */
	for (unsigned int i = 0; i < N; i++)
		backend_free(r.c, r.s, &o[i].handle, 1);
	assert_int_equal(stat(&r, "bad-handles"), 0);
	assert_int_equal(stat(&r, "wrong"), 0);
	rig_close(&r);
	free(o);
}

/* There is no other: what is left in half-empty chunks goes into fewer. */
static void taken_back_and_packed(void **state)
{
	enum { LEN = 65536, N = 3 * CHUNK / LEN };
	struct object *o = calloc(N, sizeof(*o));
	uint8_t *buf = buffer_new();
	struct rig r;
	unsigned int n = 0;

	donor_start(&donors, 0, 32 * MiB);
	open_rig(&r, 1, NULL);
	for (unsigned int i = 0; i < N; i++) {
		o[i] = (struct object){.len = LEN, .seed = i + 1};
		fill(buf, LEN, o[i].seed, 1000);
		assert_int_equal(do_store(r.c, r.s, 0, buf, LEN, &o[i].handle), 0);
	}
	free(buf);
	for (unsigned int i = 0; i < N; i++) {
		if (i % 3)
			backend_free(r.c, r.s, &o[i].handle, 1);
		else
			o[n++] = o[i];
	}
	donor_lend(&donors, 0, 2 * CHUNK);
	wait_lent(&r, 0, 2 * CHUNK, o, n);
	assert_true(stat(&r, "moved") > 0);
	assert_int_equal(count_there(&r, o, n), n);
	rig_close(&r);
	free(o);
}

/* Two copies stay on two donors. */
static void taken_back_from_a_mirror(void **state)
{
	enum { N = 100 };
	struct object *o = calloc(N, sizeof(*o));
	struct rig r;

	for (unsigned int i = 0; i < 3; i++)
		donor_start(&donors, i, 32 * MiB);
	open_rig(&r, 3, "mirror=on");
	wait_for(&r, "donors-up", 3);
	store_all(&r, o, N);
	donor_lend(&donors, 0, 0);
	wait_lent(&r, 0, 0, o, N);
	donor_stop(&donors, 1, SIGKILL);
	assert_int_equal(count_there(&r, o, N), N);
	rig_close(&r);
	free(o);
}

/* ---- donors that lie ---- */

/* Where in the donor's memory the content of the n-th object is, found by trying. */
static void find_pages(uint64_t *at, unsigned int n)
{
	uint8_t *page = buffer_new();
	unsigned int found = 0;

	for (uint64_t offset = 0; offset < 16 * MiB && found < n; offset += 4096) {
		bool any = false;

		donor_read(&donors, 0, offset, page, 4096);
		for (unsigned int i = 0; i < 4096; i++)
			any = any || page[i];
		if (any)
			at[found++] = offset;
	}
	assert_int_equal(found, n);
	free(page);
}

static void lies(const char *encrypt, bool readable)
{
	enum { N = 8 };
	uint8_t *a = buffer_new(), *b = buffer_new(), *want = buffer_new();
	struct object o[N];
	uint64_t at[N];
	struct rig r;

	donor_start(&donors, 0, 16 * MiB);
	open_rig(&r, 1, encrypt);
	store_all(&r, o, N);
	find_pages(at, N);
	/* Encrypted or not is what was asked for. */
	donor_read(&donors, 0, at[0], a, 4096);
	fill(want, 4096, o[0].seed, 1000);
	assert_int_equal(memcmp(a, want, 4096) == 0, readable);
	/* One bit, two pages the other way round, zeroes. */
	a[1234] ^= 1;
	donor_write(&donors, 0, at[0], a, 4096);
	donor_read(&donors, 0, at[1], a, 4096);
	donor_read(&donors, 0, at[2], b, 4096);
	donor_write(&donors, 0, at[1], b, 4096);
	donor_write(&donors, 0, at[2], a, 4096);
	memset(a, 0, 4096);
	donor_write(&donors, 0, at[3], a, 4096);
	assert_int_equal(count_there(&r, o, N), N - 4);
	assert_int_equal(stat(&r, "wrong"), 4);
	/* What was there before in the same place is another thing, too. */
	donor_read(&donors, 0, at[7], b, 4096);
	backend_free(r.c, r.s, &o[7].handle, 1);
	o[7].seed = 1000;
	fill(a, 4096, o[7].seed, 1000);
	assert_int_equal(do_store(r.c, r.s, 0, a, 4096, &o[7].handle), 0);
	assert_int_equal(look(&r, &o[7], a, want), 0);
	donor_write(&donors, 0, at[7], b, 4096);
	assert_int_equal(look(&r, &o[7], a, want), -EIO);
	rig_close(&r);
	free(a);
	free(b);
	free(want);
}

static void a_liar_is_found_out(void **state)
{
	lies(NULL, false);
}

static void a_liar_is_found_out_without_encryption(void **state)
{
	lies("encrypt=off", true);
}

static void a_mirror_survives_a_liar(void **state)
{
	struct object o[8];
	uint64_t at[8];
	uint8_t *a = buffer_new();
	struct rig r;

	donor_start(&donors, 0, 16 * MiB);
	donor_start(&donors, 1, 16 * MiB);
	open_rig(&r, 2, "mirror=on");
	store_all(&r, o, 8);
	find_pages(at, 8);
	memset(a, 0x55, 4096);
	for (unsigned int i = 0; i < 8; i++)
		donor_write(&donors, 0, at[i], a, 4096);
	assert_int_equal(count_there(&r, o, 8), 8);
	assert_true(stat(&r, "wrong") > 0);
	free(a);
	rig_close(&r);
}

/* ---- daemons that are killed ---- */

#define OBJECTS 200

enum promise { NOTHING, STORING, STORED, FREEING };

/* The daemon that is going to die: works at random and writes down what it has promised. */
static void victim(int fd, struct object *o, uint64_t seed)
{
	uint8_t *buf = buffer_new();
	struct error e;
	struct rig r;

	if (open_backend(&r, 2, "key", NULL, &e))
		_exit(1);
	r.kept.fd = fd;
	r.s = rig_space(&r, &r.kept);
	r.c = rig_channel(&r);
	for (uint64_t random = seed;;) {
		struct object *x = &o[next_random(&random) % OBJECTS];
		uint64_t draw = next_random(&random);

		if (x->stored == NOTHING) {
			x->len = draw % 16 ? 4096 : 4096u << (draw >> 8) % 8;
			x->seed = draw | 1;
			fill(buf, x->len, x->seed, 1000);
			__atomic_store_n(&x->stored, STORING, __ATOMIC_SEQ_CST);
			/* Where the network is slow its donors may not be connected yet. */
			while (do_store(r.c, r.s, 0, buf, x->len, &x->handle))
				usleep(10000);
			__atomic_store_n(&x->stored, STORED, __ATOMIC_SEQ_CST);
		} else if (draw % 2) {
			__atomic_store_n(&x->stored, FREEING, __ATOMIC_SEQ_CST);
			backend_free(r.c, r.s, &x->handle, 1);
			__atomic_store_n(&x->stored, NOTHING, __ATOMIC_SEQ_CST);
		}
	}
}

/* The next one. Exit status 0, or which check failed. */
static void successor(int fd, struct object *o)
{
	uint8_t *buf = buffer_new(), *want = buffer_new();
	uint64_t handles[OBJECTS], n = 0;
	struct ebb_usage u;
	struct error e;
	struct rig r;

	if (open_backend(&r, 2, "key", NULL, &e))
		_exit(10);
	r.kept.fd = fd;
	r.s = rig_space(&r, &r.kept);
	r.c = rig_channel(&r);
	for (int i = 0; i < OBJECTS; i++) {
		if (o[i].stored == STORED)
			handles[n++] = o[i].handle;
		else
			o[i].stored = NOTHING;
	}
	for (uint64_t i = 1; i < n; i++) /* ascending */
		for (uint64_t k = i; k && handles[k - 1] > handles[k]; k--) {
			uint64_t swap = handles[k];

			handles[k] = handles[k - 1];
			handles[k - 1] = swap;
		}
	if (backend_retain(r.c, r.s, handles, n) < 0)
		_exit(11);
	for (int i = 0; i < OBJECTS; i++)
		if (o[i].stored == STORED && look(&r, &o[i], buf, want))
			_exit(12);
	backend_usage(r.b, r.s, &u);
	if (u.objects != n)
		_exit(13);
	_exit(0); /* without closing: the next one takes over from here */
}

static bool has_begun(const struct object *o)
{
	for (int i = 0; i < OBJECTS; i++)
		if (__atomic_load_n(&o[i].stored, __ATOMIC_SEQ_CST) == STORED)
			return true;
	return false;
}

static int deaths = 5;

static void killed_again_and_again(void **state)
{
	struct object *o = mmap(NULL, OBJECTS * sizeof(*o), PROT_READ | PROT_WRITE,
				MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	int fd = memfd_create("map", MFD_CLOEXEC), status;
	uint64_t random = 4711;

	donor_start(&donors, 0, 64 * MiB);
	donor_start(&donors, 1, 64 * MiB);
	for (int death = 0; death < deaths; death++) {
		uint64_t seed = next_random(&random);
		pid_t pid = fork();

		assert_true(pid >= 0);
		if (!pid)
			victim(fd, o, seed);
		while (!has_begun(o) && waitpid(pid, &status, WNOHANG) == 0)
			usleep(10000);
		/* At any time after it has begun. */
		for (int i = 0; i < 20; i++)
			usleep(20000 + (unsigned int)(next_random(&random) % 20000));
		kill(pid, SIGKILL);
		assert_int_equal(waitpid(pid, &status, 0), pid);
		assert_true(WIFSIGNALED(status));
		pid = fork();
		if (!pid)
			successor(fd, o);
		assert_int_equal(waitpid(pid, &status, 0), pid);
		if (!WIFEXITED(status) || WEXITSTATUS(status))
			fail_msg("death %d: check %d", death, WEXITSTATUS(status));
	}
	close(fd);
	munmap(o, OBJECTS * sizeof(*o));
}

int main(int argc, char **argv)
{
	/* First: a process that has used RDMA leaves its children a device of its own. */
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(killed_again_and_again, setup, teardown),
		cmocka_unit_test_setup_teardown(options_are_checked, setup, teardown),
		cmocka_unit_test_setup_teardown(a_wrong_key_is_told, setup, teardown),
		cmocka_unit_test_setup_teardown(a_full_donor_refuses, setup, teardown),
		cmocka_unit_test_setup_teardown(content_is_spread, setup, teardown),
		cmocka_unit_test_setup_teardown(a_dead_donor_costs_what_it_had, setup, teardown),
		cmocka_unit_test_setup_teardown(a_mirror_loses_nothing, setup, teardown),
		cmocka_unit_test_setup_teardown(a_silent_donor_comes_back, setup, teardown),
		cmocka_unit_test_setup_teardown(handed_over, setup, teardown),
		cmocka_unit_test_setup_teardown(taken_back_to_another_donor, setup, teardown),
		cmocka_unit_test_setup_teardown(taken_back_and_packed, setup, teardown),
		cmocka_unit_test_setup_teardown(taken_back_from_a_mirror, setup, teardown),
		cmocka_unit_test_setup_teardown(a_liar_is_found_out, setup, teardown),
		cmocka_unit_test_setup_teardown(a_liar_is_found_out_without_encryption, setup,
						teardown),
		cmocka_unit_test_setup_teardown(a_mirror_survives_a_liar, setup, teardown),
	};

	if (!rdma_address()) {
		puts("skipped: no RDMA here (EBB_RDMA_ADDR); runs in the lab");
		return 77;
	}
	if (argc > 1)
		cmocka_set_test_filter(argv[1]);
	if (argc > 2)
		deaths = atoi(argv[2]);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
