/* SPDX-License-Identifier: BSD-3-Clause */
/* seal.c: content that leaves this host's RAM comes back as it was, or not at all. */
#include "seal.h"

#include <errno.h>
#include <sodium.h>
#include <string.h>

/*
 * Theory of operation
 *
 * Both ways are ChaCha20-Poly1305 of RFC 8439: encrypted content is its ciphertext, plain content
 * its additional data. ChaCha20 makes the one-time key of each tag from key and nonce, so a tag
 * tells nothing about another one. The nonce is count and place, all 96 bits; the owner goes into
 * the tag, too (as additional data, or where the content is that, as a text that is not kept). The
 * two ways have keys of their own, derived from the VM's with keyed BLAKE2b, so that one nonce may
 * serve each of them.
 *
 * A keyed tag also for plain content, not a checksum: what stores it may be another host, and bit
 * rot is not the only way in which content can come back wrong.
 */

static const char context[crypto_kdf_CONTEXTBYTES] = {'E', 'b', 'b', 'S', 'e', 'a', 'l', '1'};

_Static_assert(SEAL_TAG_BYTES == crypto_aead_chacha20poly1305_ietf_ABYTES, "a tag is Poly1305's");
_Static_assert(sizeof(((struct seal *)0)->tag_key) == crypto_aead_chacha20poly1305_ietf_KEYBYTES,
	       "a key is ChaCha20's");
_Static_assert(crypto_kdf_KEYBYTES == 32, "keys are derived from 32 bytes");

int seal_init(struct seal *s, const uint8_t key[32])
{
	if (sodium_init() < 0)
		return -EIO;
	crypto_kdf_derive_from_key(s->encrypt_key, sizeof(s->encrypt_key), 1, context, key);
	crypto_kdf_derive_from_key(s->tag_key, sizeof(s->tag_key), 2, context, key);
	return 0;
}

void seal_wipe(struct seal *s)
{
	explicit_bzero(s, sizeof(*s));
}

struct nonce {
	uint8_t bytes[crypto_aead_chacha20poly1305_ietf_NPUBBYTES];
};

static struct nonce nonce_of(struct seal_id id)
{
	struct nonce n;

	_Static_assert(sizeof(n.bytes) == sizeof(id.count) + sizeof(id.place), "all of it");
	memcpy(n.bytes, &id.count, sizeof(id.count));
	memcpy(n.bytes + sizeof(id.count), &id.place, sizeof(id.place));
	return n;
}

/* The tag of plain content. */
static void plain_tag(const struct seal *s, struct seal_id id, const void *in, uint32_t len,
		      uint8_t tag[SEAL_TAG_BYTES])
{
	struct nonce n = nonce_of(id);
	uint8_t owner[sizeof(id.owner)];

	crypto_aead_chacha20poly1305_ietf_encrypt_detached(
		owner, tag, NULL, (const uint8_t *)&id.owner, sizeof(id.owner), in, len, NULL,
		n.bytes, s->tag_key);
}

void seal_close(const struct seal *s, bool encrypt, struct seal_id id, const void *in, uint32_t len,
		void *out, uint8_t tag[SEAL_TAG_BYTES])
{
	struct nonce n = nonce_of(id);

	if (encrypt) {
		crypto_aead_chacha20poly1305_ietf_encrypt_detached(
			out, tag, NULL, in, len, (const uint8_t *)&id.owner, sizeof(id.owner), NULL,
			n.bytes, s->encrypt_key);
		return;
	}
	/* First the copy: the tag is of what goes out, also if `in` changes meanwhile. */
	memcpy(out, in, len);
	plain_tag(s, id, out, len, tag);
}

/* out NULL: verifies only. */
static int decrypt(const struct seal *s, struct seal_id id, const void *in, uint32_t len,
		   const uint8_t tag[SEAL_TAG_BYTES], void *out)
{
	struct nonce n = nonce_of(id);

	return crypto_aead_chacha20poly1305_ietf_decrypt_detached(
		       out, NULL, in, len, tag, (const uint8_t *)&id.owner, sizeof(id.owner),
		       n.bytes, s->encrypt_key)
		       ? -EBADMSG
		       : 0;
}

int seal_check(const struct seal *s, bool encrypt, struct seal_id id, const void *in, uint32_t len,
	       const uint8_t tag[SEAL_TAG_BYTES])
{
	uint8_t right[SEAL_TAG_BYTES];

	if (encrypt)
		return decrypt(s, id, in, len, tag, NULL);
	plain_tag(s, id, in, len, right);
	return sodium_memcmp(right, tag, sizeof(right)) ? -EBADMSG : 0;
}

int seal_open(const struct seal *s, bool encrypt, struct seal_id id, const void *in, uint32_t len,
	      const uint8_t tag[SEAL_TAG_BYTES], void *out)
{
	int r;

	if (encrypt)
		return decrypt(s, id, in, len, tag, out);
	r = seal_check(s, false, id, in, len, tag);
	if (!r)
		memcpy(out, in, len);
	return r;
}
