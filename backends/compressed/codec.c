/* SPDX-License-Identifier: BSD-3-Clause */
/* codec.c: the codecs, with all memory they need taken beforehand. */
#define ZSTD_STATIC_LINKING_ONLY /* static contexts, the frame format without magic number */
#include "codec.h"

#include <errno.h>
#include <lz4.h>
#include <stdlib.h>
#include <zstd.h>

/*
 * A context that zstd manages itself grows and shrinks as it likes; one in memory of ours cannot,
 * so it is made large enough for every level that may be set.
 */
struct codec {
	void *lz4;
	void *zstd_memory;
	ZSTD_CCtx *zstd_pack;
	ZSTD_DCtx *zstd_unpack;
	int zstd_level;
};

static size_t zstd_memory_bytes(void)
{
	size_t most = 0;

	for (int level = ZSTD_LEVEL_MIN; level <= ZSTD_LEVEL_MAX; level++) {
		for (unsigned int order = 0; order <= PIECE_ORDER; order++) {
			ZSTD_compressionParameters p =
				ZSTD_getCParams(level, PAGE_BYTES << order, 0);
			size_t n = ZSTD_estimateCCtxSize_usingCParams(p);

			if (!ZSTD_isError(n) && n > most)
				most = n;
		}
	}
	return most;
}

static int zstd_init(struct codec *c)
{
	size_t bytes = zstd_memory_bytes();

	/* Untouched memory costs nothing: with lz4 this stays virtual. */
	c->zstd_memory = malloc(bytes);
	if (!c->zstd_memory)
		return -ENOMEM;
	c->zstd_pack = ZSTD_initStaticCCtx(c->zstd_memory, bytes);
	c->zstd_unpack = ZSTD_createDCtx();
	if (!c->zstd_pack || !c->zstd_unpack)
		return -ENOMEM;
	/* The length is in the page table: neither magic number nor content size is needed. */
	if (ZSTD_isError(
		    ZSTD_CCtx_setParameter(c->zstd_pack, ZSTD_c_format, ZSTD_f_zstd1_magicless)) ||
	    ZSTD_isError(ZSTD_CCtx_setParameter(c->zstd_pack, ZSTD_c_contentSizeFlag, 0)) ||
	    ZSTD_isError(
		    ZSTD_DCtx_setParameter(c->zstd_unpack, ZSTD_d_format, ZSTD_f_zstd1_magicless)))
		return -ENOTSUP;
	c->zstd_level = INT32_MIN;
	return 0;
}

int codec_new(struct codec **out)
{
	struct codec *c = calloc(1, sizeof(*c));
	int r;

	if (!c)
		return -ENOMEM;
	c->lz4 = malloc((size_t)LZ4_sizeofState());
	r = c->lz4 ? zstd_init(c) : -ENOMEM;
	if (r) {
		codec_free(c);
		return r;
	}
	*out = c;
	return 0;
}

void codec_free(struct codec *c)
{
	if (!c)
		return;
	ZSTD_freeDCtx(c->zstd_unpack);
	free(c->zstd_memory); /* holds the packing context */
	free(c->lz4);
	free(c);
}

static uint32_t zstd_pack(struct codec *c, int level, const void *src, uint32_t len, void *dst,
			  uint32_t room)
{
	size_t n;

	if (level != c->zstd_level) {
		if (ZSTD_isError(
			    ZSTD_CCtx_setParameter(c->zstd_pack, ZSTD_c_compressionLevel, level)))
			return 0;
		c->zstd_level = level;
	}
	n = ZSTD_compress2(c->zstd_pack, dst, room, src, len);
	return ZSTD_isError(n) ? 0 : (uint32_t)n;
}

uint32_t codec_pack(struct codec *c, enum coding coding, int level, const void *src, uint32_t len,
		    void *dst, uint32_t room)
{
	int n;

	if (coding == CODING_ZSTD)
		return zstd_pack(c, level, src, len, dst, room);
	n = LZ4_compress_fast_extState(c->lz4, src, dst, (int)len, (int)room, level);
	return n > 0 ? (uint32_t)n : 0;
}

int codec_unpack(struct codec *c, enum coding coding, const void *src, uint32_t bytes, void *dst,
		 uint32_t len)
{
	if (coding == CODING_ZSTD) {
		size_t n = ZSTD_decompressDCtx(c->zstd_unpack, dst, len, src, bytes);

		return !ZSTD_isError(n) && n == len ? 0 : -EIO;
	}
	return LZ4_decompress_safe(src, dst, (int)bytes, (int)len) == (int)len ? 0 : -EIO;
}
