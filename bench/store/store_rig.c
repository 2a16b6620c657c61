/* SPDX-License-Identifier: BSD-3-Clause */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "store_rig.h"

static int mem_open(void *ctx, void *space_ctx, const char *name, uint64_t max_bytes, void **addr,
		    int *found)
{
	struct store_rig *rig = ctx;

	rig->fd = memfd_create(name, MFD_CLOEXEC);
	if (rig->fd < 0 || ftruncate(rig->fd, (off_t)max_bytes))
		return -errno;
	*addr = mmap(NULL, max_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, rig->fd, 0);
	*found = 0;
	return *addr == MAP_FAILED ? -errno : 0;
}

static int mem_trim(void *ctx, void *space_ctx, const char *name, uint64_t offset, uint64_t bytes)
{
	struct store_rig *rig = ctx;
	int mode = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE;

	return fallocate(rig->fd, mode, (off_t)offset, (off_t)bytes) ? -errno : 0;
}

void store_rig_open(struct store_rig *rig)
{
	const char *build = getenv("EBB_BUILD");
	struct plugin_path path = {{build ? build : "build"}, 1};
	struct ebb_space_params params = {
		.vm_name = "bench", .ram_bytes = 1u << 30, .unit_bytes = STORE_PAGE};
	struct error e;
	int r;

	rig->fd = -1;
	rig->env = (struct backend_env){rig, mem_open, mem_trim};
	if (backend_open(&path, &rig->env, "compressed", "compressed", NULL, 0, &rig->b, &e)) {
		fprintf(stderr, "%s (EBB_BUILD names the build folder)\n", e.desc);
		exit(1);
	}
	r = backend_space_open(rig->b, &params, &rig->s);
	if (r) {
		fprintf(stderr, "space: %s\n", strerror(-r));
		exit(1);
	}
}

void store_rig_close(struct store_rig *rig)
{
	backend_space_close(rig->s);
	backend_close(rig->b);
	close(rig->fd);
}

void store_rig_io(struct backend_channel *c, struct backend_space *s, uint32_t op, uint64_t *handle,
		  void *buf)
{
	struct ebb_io one, *p = &one;

	backend_io_prepare(&one, op, 0, s, *handle, buf, STORE_PAGE, 0);
	backend_submit(c, &p, 1);
	if (one.result) {
		fprintf(stderr, "%s: %s\n", op == EBB_IO_STORE ? "store" : "load",
			strerror(-one.result));
		exit(1);
	}
	*handle = one.handle;
}

void store_rig_pages(uint8_t *pages, uint32_t n)
{
	uint64_t recent[64] = {0}, state = 1;
	uint64_t *words = (uint64_t *)pages;

	for (uint64_t i = 0; i < (uint64_t)n * STORE_PAGE / 8; i++) {
		uint64_t draw;

		state = state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
		draw = state >> 33;
		if (draw % 100 < 25)
			recent[draw / 100 % 64] = state;
		words[i] = draw % 100 < 25   ? state
			   : draw % 100 < 60 ? recent[draw / 100 % 64]
					     : draw / 100 % 16;
	}
}
