/* SPDX-License-Identifier: BSD-3-Clause */
/* proof.c: what shows that content is what was stored: a keyed checksum, or a cipher's tag. */
#include "proof.h"

#include <assert.h>
#include <errno.h>
#include <sodium.h>
#include <string.h>
#include <xxhash.h>

/*
 * Theory of operation
 *
 * Without encryption every object has a 128-bit XXH3 sum, under a secret made from the space's key,
 * bound to space, handle and length. It lies in the map, not beside the content, so a block of
 * another object, an older content of the same block, or the content of another VM does not fit.
 * It runs at the speed of memory, also over 2 MiB. It finds what goes wrong by itself; who can
 * write to the device and is clever is kept out only by encryption.
 *
 * With encryption the tag of the cipher takes the sum's place (backends/common/seal.c). The count
 * that it wants is the space's nonce counter, its place a hash of handle and owner.
 */

static const char context[crypto_kdf_CONTEXTBYTES] = {'E', 'b', 'b', 'S', 's', 'd', '0', '1'};

static_assert(SEAL_TAG_BYTES == sizeof(struct object_sum), "tag and sum share their place");
static_assert(PROOF_SECRET_BYTES >= XXH3_SECRET_SIZE_MIN, "long enough");

int proof_key_init(struct proof_key *k, const uint8_t key[32], uint64_t space_id, bool encrypt)
{
	uint8_t check[crypto_kdf_BYTES_MIN];
	int r;

	memset(k, 0, sizeof(*k));
	k->encrypt = encrypt;
	k->space_id = space_id;
	r = seal_init(&k->seal, key);
	if (r)
		return r;
	for (unsigned int i = 0; i < PROOF_SECRET_BYTES / 64; i++)
		crypto_kdf_derive_from_key(k->secret + (size_t)i * 64, 64, 1 + i, context, key);
	crypto_kdf_derive_from_key(check, sizeof(check), 100, context, key);
	memcpy(&k->check, check, sizeof(k->check));
	return 0;
}

void proof_key_clear(struct proof_key *k)
{
	seal_wipe(&k->seal);
	explicit_bzero(k, sizeof(*k));
}

struct object_sum proof_sum(const struct proof_key *k, struct object_id id, const void *data,
			    uint32_t len)
{
	/* The sum of the content, then of that with what it belongs to: both under the secret. */
	XXH128_hash_t h = XXH3_128bits_withSecret(data, len, k->secret, PROOF_SECRET_BYTES);
	uint64_t bound[6] = {h.low64, h.high64, k->space_id, id.handle, id.owner, len};

	h = XXH3_128bits_withSecret(bound, sizeof(bound), k->secret, PROOF_SECRET_BYTES);
	return (struct object_sum){{h.low64, h.high64}};
}

/* The count alone makes it unique; the rest says what it belongs to, in 32 bits. */
static struct seal_id id_of(struct object_id id, uint64_t nonce)
{
	return (struct seal_id){.count = nonce, .place = (uint32_t)XXH3_64bits(&id, sizeof(id))};
}

struct object_sum proof_encrypt(const struct proof_key *k, struct object_id id, uint64_t nonce,
				const void *data, uint32_t len, void *out)
{
	struct object_sum tag;

	seal_close(&k->seal, true, id_of(id, nonce), data, len, out, (uint8_t *)&tag);
	return tag;
}

int proof_decrypt(const struct proof_key *k, struct object_id id, uint64_t nonce, void *data,
		  uint32_t len, struct object_sum tag)
{
	return seal_open(&k->seal, true, id_of(id, nonce), data, len, (const uint8_t *)&tag, data)
		       ? -EIO
		       : 0;
}
