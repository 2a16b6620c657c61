/* SPDX-License-Identifier: BSD-3-Clause */
/* harness.c: what a backend needs around it, made for tests. */
#include "backends/harness.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "sys/procinfo.h"

static int env_mem_open(void *ctx, void *space_ctx, const char *name, uint64_t max_bytes,
			void **addr, int *found)
{
	struct kept *k = space_ctx;
	struct stat st;

	*found = k->fd >= 0;
	if (k->fd < 0)
		k->fd = memfd_create(name, MFD_CLOEXEC);
	if (k->addr)
		munmap(k->addr, k->bytes);
	k->addr = NULL;
	/* Found memory may be longer than what is asked for now, and is never cut. */
	if (k->fd < 0 || fstat(k->fd, &st) ||
	    ((uint64_t)st.st_size < max_bytes && ftruncate(k->fd, (off_t)max_bytes)))
		return -errno;
	k->addr = mmap(NULL, max_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, k->fd, 0);
	if (k->addr == MAP_FAILED) {
		k->addr = NULL;
		return -errno;
	}
	k->bytes = max_bytes;
	*addr = k->addr;
	return 0;
}

static int env_mem_trim(void *ctx, void *space_ctx, const char *name, uint64_t offset,
			uint64_t bytes)
{
	struct kept *k = space_ctx;

	if (k->fail_trims) {
		k->fail_trims--;
		return -ENOMEM;
	}
	if (fallocate(k->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)offset,
		      (off_t)bytes))
		return -errno;
	return 0;
}

uint64_t kept_bytes(const struct kept *k)
{
	struct stat st;

	if (k->fd < 0)
		return 0;
	assert_int_equal(fstat(k->fd, &st), 0);
	return (uint64_t)st.st_blocks * 512;
}

void kept_release(struct kept *k)
{
	if (k->addr)
		munmap(k->addr, k->bytes);
	if (k->fd >= 0)
		close(k->fd);
	*k = (struct kept)KEPT_NONE;
}

int rig_backend(struct rig *r, const char *driver, const char *const *opts, uint32_t n_opts,
		struct error *e)
{
	struct ebb_option parsed[16];
	char text[16][256];
	const char *build = getenv("EBB_BUILD");

	if (!r->path.n_dirs) {
		snprintf(r->dir, sizeof(r->dir), "%s", build ? build : "build");
		r->path = (struct plugin_path){{r->dir}, 1};
	}
	r->env = (struct backend_env){NULL, env_mem_open, env_mem_trim};
	r->kept = (struct kept)KEPT_NONE;
	assert_true(n_opts <= 16);
	for (uint32_t i = 0; i < n_opts; i++) {
		char *value;

		snprintf(text[i], sizeof(text[i]), "%s", opts[i]);
		value = strchr(text[i], '=');
		assert_non_null(value);
		*value++ = '\0';
		parsed[i] = (struct ebb_option){text[i], value};
	}
	return backend_open(&r->path, &r->env, "test", driver, parsed, n_opts, &r->b, e);
}

struct backend_space *rig_space(struct rig *r, struct kept *kept)
{
	struct ebb_space_params p = {
		.vm_name = "guest", .ram_bytes = 1u << 30, .unit_bytes = 4096, .space_ctx = kept};
	struct backend_space *s;

	assert_int_equal(backend_space_open(r->b, &p, &s), 0);
	return s;
}

struct backend_channel *rig_channel(struct rig *r)
{
	struct backend_channel *c;

	assert_int_equal(backend_channel_open(r->b, NULL, 0, 64, &c), 0);
	return c;
}

void rig_open(struct rig *r, const char *driver, const char *const *opts, uint32_t n_opts)
{
	struct error e = {.desc = ""};
	int err;

	memset(r, 0, sizeof(*r));
	err = rig_backend(r, driver, opts, n_opts, &e);
	if (err)
		fail_msg("%s: %s", driver, e.desc);
	r->s = rig_space(r, &r->kept);
	r->c = rig_channel(r);
}

void rig_close(struct rig *r)
{
	backend_channel_close(r->c);
	backend_space_close(r->s);
	backend_close(r->b);
	kept_release(&r->kept);
}

pid_t keeper_new(void)
{
	pid_t pid = fork();

	assert_true(pid >= 0);
	if (!pid) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		for (;;)
			pause();
	}
	return pid;
}

void keeper_end(pid_t pid)
{
	assert_int_equal(kill(pid, SIGKILL), 0);
	assert_int_equal(waitpid(pid, NULL, 0), pid);
}

void keeper_name(struct ebb_space_params *p, pid_t pid)
{
	p->keeper_pid = (uint32_t)pid;
	assert_int_equal(procinfo_start(pid, &p->keeper_start), 0);
}

uint32_t wait_some(struct backend_channel *c, struct ebb_io **ios, uint32_t n)
{
	struct pollfd p = {.fd = backend_event_fd(c), .events = POLLIN};
	int got;

	while ((got = backend_poll(c, ios, n)) == 0) {
		/* A lost wakeup shows here, as a test that runs into its time limit. */
		if (p.fd >= 0)
			poll(&p, 1, -1);
	}
	return (uint32_t)got;
}

static int run(struct backend_channel *c, struct backend_space *s, struct ebb_io *io)
{
	struct ebb_io *one = io, *back;

	while (backend_submit(c, &one, 1) == 0)
		;
	if (!(backend_caps(backend_of(s)) & EBB_BACKEND_SYNC)) {
		assert_int_equal(wait_some(c, &back, 1), 1);
		assert_ptr_equal(back, io);
	}
	return io->result;
}

int do_store(struct backend_channel *c, struct backend_space *s, uint32_t flags, const void *buf,
	     uint32_t len, uint64_t *handle)
{
	struct ebb_io io;

	backend_io_prepare(&io, EBB_IO_STORE, flags, s, 0, (void *)buf, len, 0);
	if (run(c, s, &io))
		return io.result;
	assert_true(io.handle <= EBB_HANDLE_MASK);
	assert_true(io.stored_bytes > 0);
	*handle = io.handle;
	return 0;
}

int do_load(struct backend_channel *c, struct backend_space *s, uint64_t handle, void *buf,
	    uint32_t len)
{
	struct ebb_io io;

	backend_io_prepare(&io, EBB_IO_LOAD, EBB_IO_DEMAND, s, handle, buf, len, 0);
	return run(c, s, &io);
}

void maintain_all(struct backend_space *s)
{
	/* The second call sees that nothing happened since the first: the space is at rest. */
	for (int i = 0; i < 3; i++)
		while (backend_maintain(s, 1000))
			;
}

void *buffer_new(void)
{
	void *p = aligned_alloc(4096, UNIT_MAX);

	assert_non_null(p);
	return p;
}

uint64_t next_random(uint64_t *state)
{
	uint64_t z = *state += UINT64_C(0x9e3779b97f4a7c15);

	z = (z ^ z >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
	z = (z ^ z >> 27) * UINT64_C(0x94d049bb133111eb);
	return z ^ z >> 31;
}

void fill(void *buf, uint32_t len, uint64_t seed, unsigned int permille)
{
	uint64_t state = seed, *words = buf;

	for (uint32_t page = 0; page < len / 4096; page++, words += 512) {
		uint32_t noise = 512 * permille / 1000;
		uint64_t same = next_random(&state);

		if (!permille)
			same = 0;
		for (uint32_t i = 0; i < 512; i++)
			words[i] = i < noise ? next_random(&state) : same;
	}
}

unsigned int guest_permille(uint64_t seed)
{
	uint64_t state = seed ^ 0x5eed, draw = next_random(&state) % 100;

	if (draw < 10)
		return 1000; /* encrypted, packed */
	if (draw < 25)
		return 5 + next_random(&state) % 50;
	/* The sum of two is not flat: most near the middle. */
	return 60 + next_random(&state) % 300 + next_random(&state) % 300;
}

struct herd *herd_new(struct rig *r, uint32_t n, uint32_t len, unsigned int permille)
{
	struct herd *h = calloc(1, sizeof(*h));

	assert_true(n <= HERD_MAX);
	*h = (struct herd){.r = r,
			   .n = n,
			   .len = len,
			   .permille = permille,
			   .state = n + len,
			   .buf = buffer_new(),
			   .want = buffer_new()};
	return h;
}

void herd_free(struct herd *h)
{
	free(h->buf);
	free(h->want);
	free(h);
}

void herd_fill(const struct herd *h, void *buf, uint64_t seed)
{
	fill(buf, h->len, seed, h->permille ? h->permille : guest_permille(seed));
}

int herd_store(struct herd *h, uint32_t i)
{
	uint64_t seed = next_random(&h->state) | 1;
	int r;

	herd_fill(h, h->buf, seed);
	r = do_store(h->r->c, h->r->s, 0, h->buf, h->len, &h->handle[i]);
	h->seed[i] = r ? 0 : seed;
	return r;
}

void herd_drop(struct herd *h, uint32_t i)
{
	if (h->seed[i])
		backend_free(h->r->c, h->r->s, &h->handle[i], 1);
	h->seed[i] = 0;
}

void herd_check(struct herd *h, uint32_t step)
{
	for (uint32_t i = 0; i < h->n; i += step) {
		if (!h->seed[i])
			continue;
		assert_int_equal(do_load(h->r->c, h->r->s, h->handle[i], h->buf, h->len), 0);
		herd_fill(h, h->want, h->seed[i]);
		assert_memory_equal(h->buf, h->want, h->len);
	}
}
