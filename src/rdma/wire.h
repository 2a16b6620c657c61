/* SPDX-License-Identifier: BSD-3-Clause */
/* wire.h: what a donor of memory and its clients say to each other. */
#ifndef RDMA_WIRE_H
#define RDMA_WIRE_H

#include <assert.h>
#include <stddef.h>
#include <stdint.h>

/*
 * Theory of operation
 *
 * A client (the backend rdma) has one control connection to each donor, and one more reliable
 * connection for each of its channels. On the latter there are only one-sided READs and WRITEs;
 * everything else is said on the control connection, in messages of at most WIRE_MESSAGE_MAX
 * bytes, strictly one request and one answer at a time.
 *
 * Who is who. Both know a secret key, and prove it before anything else:
 *
 *   client -> donor   connect: 32 random bytes
 *   donor  -> client  accept: 32 random bytes, HMAC(key, "donor", both)
 *   both              session key = HMAC(key, "session", both)
 *
 * Every message carries a MAC under the session key over its direction, number and content, so the
 * first one proves the client, and nobody in between can change, repeat or add one. A connection of
 * a channel is asked for with a MAC under the same key over its number, which counts up. What is
 * lent becomes reachable only then: the donor registers memory for one session's connections.
 * The READs and WRITEs themselves have no such protection; what they carry is sealed by the client.
 *
 * What is lent. A donor lends chunks of WIRE_CHUNK_BYTES. Each belongs to a lease, which a client
 * names by 16 random bytes (one lease for each VM). A lease outlives its session by a time that the
 * donor sets, so that a client that lost its connection, or its successor, finds everything there.
 * Claiming a lease ends the session that had it before: two never write into the same memory.
 *
 * All hosts are little-endian.
 */

#define WIRE_MAGIC	 0x52626245u /* "EbbR" */
#define WIRE_VERSION	 1u
#define WIRE_MESSAGE_MAX 4096u
#define WIRE_CHUNK_BYTES (4u << 20)
#define WIRE_NONCE_BYTES 32u
#define WIRE_MAC_BYTES	 32u
#define WIRE_LEASE_BYTES 16u
#define WIRE_NAME_BYTES	 64u
#define WIRE_KEY_MIN	 32u /* bytes in a key file */

struct wire_key {
	uint8_t bytes[32];
};

enum wire_kind { WIRE_CONTROL = 1, WIRE_QUEUE = 2 };

/* Private data of a connection request: 56 bytes at most. */
struct wire_connect {
	uint32_t magic;
	uint16_t version;
	uint16_t kind; /* enum wire_kind */
};

struct wire_control {
	struct wire_connect connect;
	uint8_t nonce[WIRE_NONCE_BYTES];
};

struct wire_queue {
	struct wire_connect connect;
	uint64_t session;
	uint32_t number; /* higher than that of any queue of the session before */
	uint32_t reserved;
	uint8_t mac[WIRE_MAC_BYTES];
};
static_assert(sizeof(struct wire_queue) == 56, "what RDMA CM takes with a request");

/* Private data of the donor's answer to WIRE_CONTROL. */
struct wire_challenge {
	struct wire_connect connect;
	uint8_t nonce[WIRE_NONCE_BYTES];
	uint8_t proof[WIRE_MAC_BYTES];
};

enum wire_type {
	WIRE_HELLO = 1, /* wire_hello -> wire_welcome */
	WIRE_CLAIM = 2, /* wire_lease: the lease is mine; makes it when there is none (status 1).
			   Answer: chunks of it, those from `arg` on */
	WIRE_GET = 3,	/* wire_lease: up to `arg` more chunks. -ENOSPC when there is none */
	WIRE_PUT = 4,	/* wire_lease, then `count` numbers of chunks (uint32_t) to give back */
	WIRE_DROP = 5,	/* wire_lease: all of it back */
	WIRE_PING = 6,	/* -> wire_pong */
};

struct wire_header {
	uint32_t magic;
	uint16_t type; /* enum wire_type; of an answer the request's */
	uint16_t body_bytes;
	uint64_t number; /* 1, 2, 3...; of an answer the request's */
	int32_t status;	 /* of an answer: 0, 1 or -errno */
	uint32_t count;	 /* of the list in the body */
	uint64_t arg;
};

struct wire_hello {
	char name[WIRE_NAME_BYTES]; /* for the donor's log and status only */
};

struct wire_welcome {
	uint64_t session;
	uint64_t boot; /* one life of the donor */
	uint32_t chunk_bytes;
	uint32_t reserved;
};

struct wire_lease {
	uint8_t id[WIRE_LEASE_BYTES];
};

struct wire_chunk {
	uint64_t addr;
	uint32_t rkey;
	uint32_t number; /* the donor's name for it */
};

struct wire_pong {
	uint64_t free_chunks;
	uint64_t recall; /* so many chunks the donor wants back from this client */
};

#define WIRE_BODY_MAX	(WIRE_MESSAGE_MAX - sizeof(struct wire_header) - WIRE_MAC_BYTES)
#define WIRE_CHUNKS_MAX (WIRE_BODY_MAX / sizeof(struct wire_chunk))

/* One message as it is sent: header, body, and the MAC right behind the body. */
struct wire_message {
	struct wire_header header;
	uint8_t rest[WIRE_MESSAGE_MAX - sizeof(struct wire_header)];
};
static_assert(sizeof(struct wire_message) == WIRE_MESSAGE_MAX, "a buffer holds the longest");

enum wire_direction { WIRE_TO_DONOR = 'd', WIRE_TO_CLIENT = 'c' };

/* Call once before anything else. 0 or -EIO. */
int wire_init(void);
void wire_random(void *out, size_t bytes);

/*
 * Reads a key: a file that only its owner can read, WIRE_KEY_MIN bytes or more, white space at its
 * end not counted. 0, or -errno with a sentence in err.
 */
int wire_key_load(const char *path, struct wire_key *out, char *err, size_t err_len);

void wire_proof(const struct wire_key *key, const uint8_t client[WIRE_NONCE_BYTES],
		const uint8_t donor[WIRE_NONCE_BYTES], uint8_t proof[WIRE_MAC_BYTES]);
void wire_session_key(const struct wire_key *key, const uint8_t client[WIRE_NONCE_BYTES],
		      const uint8_t donor[WIRE_NONCE_BYTES], struct wire_key *session);
/* Compares in constant time: 0 when equal. */
int wire_differ(const uint8_t *a, const uint8_t *b, size_t bytes);

void wire_queue_mac(const struct wire_key *session, const struct wire_queue *q,
		    uint8_t mac[WIRE_MAC_BYTES]);

/* Puts the MAC behind the body; header.body_bytes is set. Returns the bytes to send. */
uint32_t wire_message_close(const struct wire_key *session, enum wire_direction to,
			    struct wire_message *m);
/* Checks magic, lengths and MAC of what came, `bytes` long. 0 or -EBADMSG. */
int wire_message_open(const struct wire_key *session, enum wire_direction to,
		      const struct wire_message *m, uint32_t bytes);

#endif
