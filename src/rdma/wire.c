/* SPDX-License-Identifier: BSD-3-Clause */
/* wire.c: what a donor of memory and its clients say to each other: keys and MACs. */
#include "rdma/wire.h"

#include <errno.h>
#include <fcntl.h>
#include <sodium.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static_assert(WIRE_MAC_BYTES == crypto_auth_hmacsha256_BYTES, "MACs are HMAC-SHA-256");
static_assert(sizeof(struct wire_key) == crypto_auth_hmacsha256_KEYBYTES, "with its keys");

#define KEY_FILE_MAX 4096

int wire_init(void)
{
	return sodium_init() < 0 ? -EIO : 0;
}

void wire_random(void *out, size_t bytes)
{
	randombytes_buf(out, bytes);
}

int wire_differ(const uint8_t *a, const uint8_t *b, size_t bytes)
{
	return sodium_memcmp(a, b, bytes);
}

static int key_from(int fd, const char *path, struct wire_key *out, char *err, size_t err_len)
{
	uint8_t text[KEY_FILE_MAX];
	struct stat st;
	ssize_t n;

	if (fstat(fd, &st) || !S_ISREG(st.st_mode) || (st.st_mode & 077) ||
	    (st.st_uid != geteuid() && st.st_uid != 0)) {
		snprintf(err, err_len, "key file %s must be a file that only its owner can read",
			 path);
		return -EACCES;
	}
	n = read(fd, text, sizeof(text));
	while (n > 0 && (text[n - 1] == '\n' || text[n - 1] == '\r' || text[n - 1] == ' '))
		n--;
	if (n < (ssize_t)WIRE_KEY_MIN || n == KEY_FILE_MAX) {
		snprintf(err, err_len, "key file %s must hold %u to %d bytes", path, WIRE_KEY_MIN,
			 KEY_FILE_MAX - 1);
		explicit_bzero(text, sizeof(text));
		return -EINVAL;
	}
	crypto_generichash(out->bytes, sizeof(out->bytes), text, (unsigned long long)n, NULL, 0);
	explicit_bzero(text, sizeof(text));
	return 0;
}

int wire_key_load(const char *path, struct wire_key *out, char *err, size_t err_len)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW), r;

	if (fd < 0) {
		r = -errno;
		snprintf(err, err_len, "key file %s: %s", path, strerror(-r));
		return r;
	}
	r = key_from(fd, path, out, err, err_len);
	close(fd);
	return r;
}

struct mac {
	crypto_auth_hmacsha256_state state;
};

static void mac_begin(struct mac *m, const struct wire_key *key, const char *label)
{
	crypto_auth_hmacsha256_init(&m->state, key->bytes, sizeof(key->bytes));
	/* With its zero: no label is the beginning of another one with what follows it. */
	crypto_auth_hmacsha256_update(&m->state, (const uint8_t *)label, strlen(label) + 1);
}

static void mac_add(struct mac *m, const void *data, size_t bytes)
{
	crypto_auth_hmacsha256_update(&m->state, data, bytes);
}

static void mac_end(struct mac *m, uint8_t out[WIRE_MAC_BYTES])
{
	crypto_auth_hmacsha256_final(&m->state, out);
	explicit_bzero(m, sizeof(*m));
}

static void of_nonces(const struct wire_key *key, const char *label, const uint8_t *client,
		      const uint8_t *donor, uint8_t out[WIRE_MAC_BYTES])
{
	struct mac m;

	mac_begin(&m, key, label);
	mac_add(&m, client, WIRE_NONCE_BYTES);
	mac_add(&m, donor, WIRE_NONCE_BYTES);
	mac_end(&m, out);
}

void wire_proof(const struct wire_key *key, const uint8_t client[WIRE_NONCE_BYTES],
		const uint8_t donor[WIRE_NONCE_BYTES], uint8_t proof[WIRE_MAC_BYTES])
{
	of_nonces(key, "ebb 1 donor", client, donor, proof);
}

void wire_session_key(const struct wire_key *key, const uint8_t client[WIRE_NONCE_BYTES],
		      const uint8_t donor[WIRE_NONCE_BYTES], struct wire_key *session)
{
	of_nonces(key, "ebb 1 session", client, donor, session->bytes);
}

void wire_queue_mac(const struct wire_key *session, const struct wire_queue *q,
		    uint8_t mac[WIRE_MAC_BYTES])
{
	struct mac m;

	mac_begin(&m, session, "ebb 1 queue");
	mac_add(&m, q, offsetof(struct wire_queue, mac));
	mac_end(&m, mac);
}

static void message_mac(const struct wire_key *session, enum wire_direction to,
			const struct wire_message *message, uint8_t mac[WIRE_MAC_BYTES])
{
	struct mac m;

	mac_begin(&m, session, to == WIRE_TO_DONOR ? "ebb 1 to donor" : "ebb 1 to client");
	mac_add(&m, message, sizeof(message->header) + message->header.body_bytes);
	mac_end(&m, mac);
}

uint32_t wire_message_close(const struct wire_key *session, enum wire_direction to,
			    struct wire_message *m)
{
	m->header.magic = WIRE_MAGIC;
	assert(m->header.body_bytes <= WIRE_BODY_MAX);
	message_mac(session, to, m, m->rest + m->header.body_bytes);
	return (uint32_t)sizeof(m->header) + m->header.body_bytes + WIRE_MAC_BYTES;
}

int wire_message_open(const struct wire_key *session, enum wire_direction to,
		      const struct wire_message *m, uint32_t bytes)
{
	uint8_t mac[WIRE_MAC_BYTES];

	if (bytes < sizeof(m->header) + WIRE_MAC_BYTES || m->header.magic != WIRE_MAGIC ||
	    bytes != sizeof(m->header) + m->header.body_bytes + WIRE_MAC_BYTES)
		return -EBADMSG;
	message_mac(session, to, m, mac);
	return wire_differ(mac, m->rest + m->header.body_bytes, sizeof(mac)) ? -EBADMSG : 0;
}
