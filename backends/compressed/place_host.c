/* SPDX-License-Identifier: BSD-3-Clause */
/* place_host.c: content in any of this host's memory, as the system likes. */
#include <errno.h>

#include "place.h"
#include "store.h"

const char place_backend_name[] = "compressed";
const char place_backend_description[] = "Compressed in host RAM (lz4 or zstd)";
const uint32_t place_backend_caps = EBB_BACKEND_SYNC | EBB_BACKEND_IN_RAM;
const char *const place_option_help[] = {STORE_OPTION_CODEC, STORE_OPTION_LEVEL,
					 STORE_OPTION_MAX_BYTES, NULL};

int place_option(struct place *p, const struct ebb_option *o, char *err, uint64_t err_len)
{
	return -ENOENT;
}

int place_open(struct place *p, char *err, uint64_t err_len)
{
	return 0;
}

void place_close(struct place *p)
{
}

int place_quiesce(struct place *p)
{
	return 0;
}

int place_resume(struct place *p)
{
	return 0;
}

int place_bind(const struct place *p, void *addr, uint64_t bytes)
{
	return 0;
}

int place_take(struct place *p, uint64_t bytes)
{
	return 0;
}

/* No device, so nobody asks for chunks. */
struct place_device place_device(const struct place *p)
{
	return (struct place_device){0};
}

void place_owner_enter(struct place *p, struct chunk_owner *o)
{
}

void place_owner_leave(struct place *p, struct chunk_owner *o)
{
}

int place_chunk_take(struct place *p, const struct chunk_owner *o, uint32_t *chunk)
{
	return -ENOSPC;
}

void place_chunk_give(struct place *p, uint32_t chunk, int wipe_now)
{
}

int place_chunk_is(const struct place *p, uint32_t chunk, uint64_t owner_id)
{
	return 0;
}

int place_maintain(struct place *p)
{
	return 0;
}
