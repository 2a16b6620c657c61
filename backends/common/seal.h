/* SPDX-License-Identifier: BSD-3-Clause */
/* seal.h: content that leaves this host's RAM comes back as it was, or not at all. */
#ifndef BACKENDS_SEAL_H
#define BACKENDS_SEAL_H

#include <stdbool.h>
#include <stdint.h>

#define SEAL_TAG_BYTES 16u

/* The keys of one space; wipe with seal_wipe(). Used by any thread, never changed after init. */
struct seal {
	uint8_t encrypt_key[32], tag_key[32];
};

/*
 * What makes a piece of content the one and only: `count` is given out once under a key, ever
 * (also across crashes), `place` is which object it is, `owner` whose (ebb_io.owner). A piece opens
 * only with the same three, so content that is swapped with another's, or an older one, is refused.
 */
struct seal_id {
	uint64_t count, owner;
	uint32_t place;
};

/* key: the VM's secret. 0, or -EIO when the library cannot be used. */
int seal_init(struct seal *s, const uint8_t key[32]);
void seal_wipe(struct seal *s);

/*
 * Copies len bytes from `in` to `out` (apart from each other), encrypted or as they are, and makes
 * the tag: a Poly1305 that nobody without the key can make. No allocation, cannot fail.
 */
void seal_close(const struct seal *s, bool encrypt, struct seal_id id, const void *in, uint32_t len,
		void *out, uint8_t tag[SEAL_TAG_BYTES]);
/*
 * The way back. 0, or -EBADMSG when it is not what was sealed: `out` is then unspecified, but never
 * holds anything that was not verified.
 */
int seal_open(const struct seal *s, bool encrypt, struct seal_id id, const void *in, uint32_t len,
	      const uint8_t tag[SEAL_TAG_BYTES], void *out);
/* Verifies without copying. */
int seal_check(const struct seal *s, bool encrypt, struct seal_id id, const void *in, uint32_t len,
	       const uint8_t tag[SEAL_TAG_BYTES]);

#endif
