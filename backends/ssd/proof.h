/* SPDX-License-Identifier: BSD-3-Clause */
/* proof.h: what shows that content is what was stored: a keyed checksum, or a cipher's tag. */
#ifndef SSD_PROOF_H
#define SSD_PROOF_H

#include <stdbool.h>
#include <stdint.h>

#include "layout.h"
#include "seal.h"

/* XXH3 takes a secret of at least 136 bytes. */
#define PROOF_SECRET_BYTES 192

/* Of one space; made from the space's key. */
struct proof_key {
	bool encrypt;
	uint64_t check; /* tells a wrong key, and nothing else about it */
	uint64_t space_id;
	struct seal seal;
	uint8_t secret[PROOF_SECRET_BYTES];
};

/* What content belongs to: its handle, and ebbd's number of the unit (ebb_io.owner). */
struct object_id {
	uint64_t handle, owner;
};

int proof_key_init(struct proof_key *k, const uint8_t key[32], uint64_t space_id, bool encrypt);
void proof_key_clear(struct proof_key *k);

/* The keyed checksum of an object's content. */
struct object_sum proof_sum(const struct proof_key *k, struct object_id id, const void *data,
			    uint32_t len);
static inline bool proof_equal(struct object_sum a, struct object_sum b)
{
	return a.w[0] == b.w[0] && a.w[1] == b.w[1];
}

/* Encrypts into out; gives the tag. A nonce must never come twice with one key. */
struct object_sum proof_encrypt(const struct proof_key *k, struct object_id id, uint64_t nonce,
				const void *data, uint32_t len, void *out);
/* Decrypts in place; -EIO when it is not what was encrypted for this object. */
int proof_decrypt(const struct proof_key *k, struct object_id id, uint64_t nonce, void *data,
		  uint32_t len, struct object_sum tag);

#endif
