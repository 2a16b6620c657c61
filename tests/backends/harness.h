/* SPDX-License-Identifier: BSD-3-Clause */
/* harness.h: what a backend needs around it, made for tests. */
#ifndef TESTS_BACKENDS_HARNESS_H
#define TESTS_BACKENDS_HARNESS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <setjmp.h>
#include <stdarg.h>
#include <cmocka.h>

#include <sys/types.h>

#include "plugin/backend_host.h"

#define UNIT_MAX (2u << 20)

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SANITIZED 1
#elif defined(__has_feature)
#define SANITIZED (__has_feature(address_sanitizer) || __has_feature(thread_sanitizer))
#else
#define SANITIZED 0
#endif

/* One space's memory that outlives the backend; pass its address as space_ctx. */
struct kept {
	int fd; /* -1: not made yet */
	void *addr;
	uint64_t bytes;
	uint64_t fail_trims; /* so many mem_trim() calls fail */
};
#define KEPT_NONE        \
	{                \
		.fd = -1 \
	}

/* What the memfd really takes, bytes. */
uint64_t kept_bytes(const struct kept *k);
/* Unmaps and closes. */
void kept_release(struct kept *k);

/* A backend with one space and one channel. */
struct rig {
	struct plugin_path path;
	struct backend_env env;
	char dir[512];
	struct backend *b;
	struct backend_space *s;
	struct backend_channel *c;
	struct kept kept;
};

/* opts: "name=value" strings. Asserts that all opens. */
void rig_open(struct rig *r, const char *driver, const char *const *opts, uint32_t n_opts);
void rig_close(struct rig *r);
/* Of another rig's backend: a second space, or a channel for a thread. */
struct backend_space *rig_space(struct rig *r, struct kept *kept);
struct backend_channel *rig_channel(struct rig *r);
/* The backend alone; error sentence into e. */
int rig_backend(struct rig *r, const char *driver, const char *const *opts, uint32_t n_opts,
		struct error *e);

/* A process that keeps memory: does nothing until keeper_end() ends it. */
pid_t keeper_new(void);
void keeper_end(pid_t pid);
/* Names it as the keeper of a space. */
void keeper_name(struct ebb_space_params *p, pid_t pid);

/* One I/O to its end; returns its result. */
int do_store(struct backend_channel *c, struct backend_space *s, uint32_t flags, const void *buf,
	     uint32_t len, uint64_t *handle);
int do_load(struct backend_channel *c, struct backend_space *s, uint64_t handle, void *buf,
	    uint32_t len);
/* Waits for and takes up to n completions (at least one). */
uint32_t wait_some(struct backend_channel *c, struct ebb_io **ios, uint32_t n);
/* maintain() until there is no more to do. */
void maintain_all(struct backend_space *s);

/* A page-aligned buffer of UNIT_MAX bytes; free() it. */
void *buffer_new(void);

uint64_t next_random(uint64_t *state);
/*
 * Fills len bytes so that `seed` alone determines them. Each page compresses to about `permille`
 * of its size; 0: zeroes.
 */
void fill(void *buf, uint32_t len, uint64_t seed, unsigned int permille);
/* A size mix as found in guests: much text-like, some nearly empty, some incompressible. */
unsigned int guest_permille(uint64_t seed);

#define HERD_MAX 60000

/* A population of objects, each made from its seed alone. */
struct herd {
	struct rig *r;
	uint64_t handle[HERD_MAX], seed[HERD_MAX]; /* seed 0: not there */
	uint32_t n, len;
	unsigned int permille; /* 0: as in guests */
	uint64_t state;
	uint8_t *buf, *want;
};

/* permille: how well objects compress; 0: as in guests. free it with herd_free(). */
struct herd *herd_new(struct rig *r, uint32_t n, uint32_t len, unsigned int permille);
void herd_free(struct herd *h);
/* Fills buf with what an object of that seed holds. */
void herd_fill(const struct herd *h, void *buf, uint64_t seed);
/* Stores object i anew (drop it before, if it is there). 0 or -errno. */
int herd_store(struct herd *h, uint32_t i);
void herd_drop(struct herd *h, uint32_t i);
/* Every step-th object that is there holds what was stored. */
void herd_check(struct herd *h, uint32_t step);

#endif
