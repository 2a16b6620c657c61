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

int place_ready(const struct place *p, char *err, uint64_t err_len)
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
