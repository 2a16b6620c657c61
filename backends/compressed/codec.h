/* SPDX-License-Identifier: BSD-3-Clause */
/* codec.h: the codecs, with all memory they need taken beforehand. */
#ifndef COMPRESSED_CODEC_H
#define COMPRESSED_CODEC_H

#include <stdint.h>

#include "layout.h"

#define LZ4_LEVEL_MIN  1 /* LZ4's "acceleration" */
#define LZ4_LEVEL_MAX  1000
#define ZSTD_LEVEL_MIN (-50)
#define ZSTD_LEVEL_MAX 12

struct codec; /* one thread's */

/* Takes all the memory that packing and unpacking will ever need. 0 or -errno. */
int codec_new(struct codec **out);
void codec_free(struct codec *c);

/*
 * Packs len bytes (at most PIECE_BYTES) into dst. Returns what it takes, or 0 when that would be
 * more than `room`. No allocation.
 */
uint32_t codec_pack(struct codec *c, enum coding coding, int level, const void *src, uint32_t len,
		    void *dst, uint32_t room);
/* Unpacks exactly len bytes, or -EIO. Safe against any content of src. No allocation. */
int codec_unpack(struct codec *c, enum coding coding, const void *src, uint32_t bytes, void *dst,
		 uint32_t len);

#endif
