/* SPDX-License-Identifier: BSD-3-Clause */
/* test_policy_samples.c: what released versions' policies saved, frozen, is restored by today's. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include <err.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "fake_vm.h"
#include "recovery/sample.h"

/*
 * A policy sees a VM of 512 units live for a while, and saves; a sample has its state, how the VM's
 * units stood then (a letter each: enum fake_state, a capital one when it was accessed), and what a
 * policy of that version named when it was given such a VM and the state. Today's must save the
 * same again, and name the same.
 *
 *	test_policy_samples -w FOLDER	makes the samples of today's policies
 */

#define UNITS	  512u
#define LIMIT	  300u
#define ASK	  16u
#define STATE_MAX (1u << 20)

static const char *folder;

static const struct saver {
	const char *name;
	uint32_t role;
	bool names; /* victims, that is */
} savers[] = {
	{"clock", EBB_POLICY_RECLAIM, true},	     {"age", EBB_POLICY_RECLAIM, true},
	{"pressure", EBB_POLICY_RECLAIM, true},	     {"temperature", EBB_POLICY_RECLAIM, true},
	{"correlation", EBB_POLICY_PREFETCH, false}, {"elastic", EBB_POLICY_PREFETCH, false},
	{"replay", EBB_POLICY_PREFETCH, false},
};
#define SAVERS (sizeof(savers) / sizeof(savers[0]))

static struct policy_instance *attach(const struct saver *s, struct policy *p, struct fake_vm *v)
{
	struct policy_instance **at = s->role == EBB_POLICY_RECLAIM ? &v->reclaim : &v->prefetch;
	struct error e = {0};

	if (policy_attach(p, &v->host, &v->vm, s->role, NULL, 0, at, &e))
		errx(1, "%s: %s", s->name, e.desc);
	return *at;
}

/* Some units hot, some cold, some evicted and asked for again, in an order that repeats. */
static void live(const struct saver *s, struct fake_vm *v)
{
	uint64_t rng = 4711;

	if (s->role == EBB_POLICY_RECLAIM) {
		v->limit = LIMIT;
		v->headroom = 16;
	}
	for (unsigned int t = 0; t < 6000; t++) {
		uint64_t u = t % 2 ? fake_random(&rng) % 64 : t / 2 % 400;

		if (s->role == EBB_POLICY_PREFETCH && v->resident >= LIMIT)
			for (uint64_t k = 0; k < UNITS; k++)
				if (v->state[k] == FAKE_RESIDENT && k != u)
					fake_vm_set(v, k, FAKE_EVICTED);
		fake_vm_touch(v, u);
		if (s->role == EBB_POLICY_RECLAIM && t % 500 == 499)
			fake_vm_window(v, UINT64_C(2000000000));
	}
}

static uint32_t name_victims(const struct saver *s, struct policy_instance *i,
			     struct ebb_range *out)
{
	return s->names ? policy_pick_victims(i, ASK, true, out, ASK) : 0;
}

static void file_name(char *out, size_t room, const struct saver *s, uint32_t version)
{
	snprintf(out, room, "policy-%s-%u.json", s->name, version);
}

/* ---- a policy that was restored, or will be ---- */

struct frozen {
	json_t *json;
	struct policy *p;
	struct fake_vm v;
	struct policy_instance *i;
	uint8_t *state;
	size_t bytes;
	uint32_t version;
};

/* json: a sample; taken over. */
static void frozen_open(struct frozen *f, const struct saver *s, json_t *json)
{
	const json_t *state;
	const char *letters;
	int fd = memfd_create("state", MFD_CLOEXEC);

	f->json = json;
	f->version = (uint32_t)json_integer_value(json_object_get(f->json, "version"));
	state = json_object_get(f->json, "state");
	f->bytes = sample_bytes(state);
	f->state = malloc(f->bytes);
	assert_int_equal(ftruncate(fd, (off_t)f->bytes), 0);
	sample_to_file(state, fd);
	assert_int_equal(pread(fd, f->state, f->bytes, 0), f->bytes);
	close(fd);
	f->p = fake_load(".", s->name);
	fake_vm_init(&f->v, UNITS);
	letters = json_string_value(json_object_get(f->json, "units"));
	assert_int_equal(strlen(letters), UNITS);
	for (unsigned int u = 0; u < UNITS; u++)
		fake_vm_set(&f->v, u, (enum fake_state)((letters[u] | 0x20) - 'a'));
	for (unsigned int u = 0; u < UNITS; u++)
		f->v.accessed[u] = !(letters[u] & 0x20);
	f->i = attach(s, f->p, &f->v);
}

static void frozen_close(struct frozen *f)
{
	fake_vm_free(&f->v);
	policy_unload(f->p);
	json_decref(f->json);
	free(f->state);
}

/* ---- making them ---- */

static json_t *memory_of(const void *buf, size_t bytes)
{
	int fd = memfd_create("state", MFD_CLOEXEC);
	json_t *j;

	if (fd < 0 || ftruncate(fd, (off_t)bytes) || pwrite(fd, buf, bytes, 0) != (ssize_t)bytes)
		err(1, "memfd");
	j = sample_of_file(fd, bytes);
	close(fd);
	return j;
}

static void make_sample(const struct saver *s)
{
	struct policy *p = fake_load(".", s->name);
	struct ebb_range named[ASK];
	struct frozen f;
	char letters[UNITS + 1] = "", name[64];
	uint8_t *buf = malloc(STATE_MAX);
	json_t *victims = json_array(), *sample;
	struct policy_instance *i;
	struct fake_vm v;
	int64_t n;

	fake_vm_init(&v, UNITS);
	i = attach(s, p, &v);
	live(s, &v);
	n = policy_save(i, buf, STATE_MAX);
	if (n <= 0)
		errx(1, "%s saves nothing", s->name);
	for (unsigned int u = 0; u < UNITS; u++)
		letters[u] = (char)((v.accessed[u] ? 'A' : 'a') + v.state[u]);
	file_name(name, sizeof(name), s, policy_state_version(i));
	sample = json_pack("{s:i, s:s, s:o, s:o}", "version", (int)policy_state_version(i), "units",
			   letters, "state", memory_of(buf, (size_t)n), "victims", victims);
	fake_vm_free(&v);
	policy_unload(p);
	free(buf);
	/* What is not saved (where a hand is) begins anew. */
	frozen_open(&f, s, json_incref(sample));
	if (policy_restore(f.i, f.state, f.bytes, f.version))
		errx(1, "%s does not restore what it saved", s->name);
	for (uint32_t k = 0, of = name_victims(s, f.i, named); k < of; k++)
		json_array_append_new(victims, json_pack("[I, I]", (json_int_t)named[k].first,
							 (json_int_t)named[k].count));
	frozen_close(&f);
	sample_write(folder, name, sample);
	json_decref(sample);
}

/* ---- reading them ---- */

static json_t *sample_of(const struct saver *s)
{
	char name[64];

	file_name(name, sizeof(name), s, 1);
	return sample_read(folder, name);
}

static void is_restored(void **state)
{
	uint8_t *again = malloc(STATE_MAX);
	struct ebb_range named[ASK];
	struct frozen f;

	for (size_t k = 0; k < SAVERS; k++) {
		const json_t *victims;
		uint32_t n;

		frozen_open(&f, &savers[k], sample_of(&savers[k]));
		if (policy_restore(f.i, f.state, f.bytes, f.version))
			fail_msg("%s does not restore its state", savers[k].name);
		assert_int_equal(policy_save(f.i, again, STATE_MAX), f.bytes);
		if (memcmp(again, f.state, f.bytes))
			fail_msg("%s: what was restored is not what was saved", savers[k].name);
		victims = json_object_get(f.json, "victims");
		n = name_victims(&savers[k], f.i, named);
		if (n != json_array_size(victims))
			fail_msg("%s names %u ranges, not %zu", savers[k].name, n,
				 json_array_size(victims));
		for (uint32_t i = 0; i < n; i++) {
			const json_t *r = json_array_get(victims, i);

			json_int_t first = json_integer_value(json_array_get(r, 0)),
				   count = json_integer_value(json_array_get(r, 1));

			if ((json_int_t)named[i].first != first ||
			    (json_int_t)named[i].count != count)
				fail_msg("%s names %u units from %u, not %d from %d",
					 savers[k].name, (unsigned int)named[i].count,
					 (unsigned int)named[i].first, (int)count, (int)first);
		}
		assert_null(policy_failed(f.i));
		frozen_close(&f);
	}
	free(again);
}

/* Refused, and the policy goes on cold. */
static void expect_cold(const struct saver *s, const void *state, size_t bytes, uint32_t version,
			const char *what)
{
	struct frozen f;
	uint8_t *cold = malloc(STATE_MAX), *after = malloc(STATE_MAX);
	int64_t n;

	frozen_open(&f, s, sample_of(s));
	n = policy_save(f.i, cold, STATE_MAX);
	if (!policy_restore(f.i, state, bytes, version))
		fail_msg("%s takes a state of %s", s->name, what);
	assert_int_equal(policy_save(f.i, after, STATE_MAX), n);
	if (memcmp(cold, after, (size_t)n))
		fail_msg("%s has made use of a state of %s", s->name, what);
	assert_null(policy_failed(f.i));
	frozen_close(&f);
	free(cold);
	free(after);
}

static void others_are_refused(void **state)
{
	for (size_t k = 0; k < SAVERS; k++) {
		const struct saver *s = &savers[k];
		struct frozen f;

		frozen_open(&f, s, sample_of(s));
		expect_cold(s, f.state, f.bytes, f.version + 1, "another version");
		expect_cold(s, f.state, f.bytes - 1, f.version, "another length");
		/* Correlation's log may hold anything: it has no mark that could be wrong. */
		f.state[0] ^= 0x40;
		if (strcmp(s->name, "correlation"))
			expect_cold(s, f.state, f.bytes, f.version, "another kind");
		frozen_close(&f);
	}
}

/* Every policy that can save is in the list. */
static void the_list_is_complete(void **state)
{
	static const char *const others[] = {"null", "sequential", "trend", "example"};

	for (size_t k = 0; k < sizeof(others) / sizeof(others[0]); k++) {
		struct saver s = {others[k], 0, false};
		struct policy *p = fake_load(".", s.name);
		uint8_t buf[4096];
		struct fake_vm v;

		fake_vm_init(&v, UNITS);
		s.role = policy_roles(p) & EBB_POLICY_RECLAIM ? EBB_POLICY_RECLAIM
							      : EBB_POLICY_PREFETCH;
		if (policy_save(attach(&s, p, &v), buf, sizeof(buf)) > 0)
			fail_msg("%s saves, and has no sample", s.name);
		fake_vm_free(&v);
		policy_unload(p);
	}
}

int main(int argc, char **argv)
{
	static const struct CMUnitTest tests[] = {
		cmocka_unit_test(is_restored),
		cmocka_unit_test(others_are_refused),
		cmocka_unit_test(the_list_is_complete),
	};

	if (argc == 3 && strcmp(argv[1], "-w") == 0) {
		folder = argv[2];
		for (size_t k = 0; k < SAVERS; k++)
			make_sample(&savers[k]);
		return 0;
	}
	if (argc != 2)
		errx(2, "usage: test_policy_samples [-w] FOLDER");
	folder = argv[1];
	return cmocka_run_group_tests(tests, NULL, NULL);
}
