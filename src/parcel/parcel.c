/* SPDX-License-Identifier: BSD-3-Clause */
/* parcel.c: JSON together with descriptors, sent from one daemon to the next. */
#include "parcel/parcel.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "base/clock.h"
#include "base/fd.h"

/*
 * On the wire: a header, the text of the body, then one byte for every batch of descriptors, which
 * come with it. Both ends are daemons of one user on one host: host byte order.
 */

#define MAGIC	    UINT64_C(0x6c65637261706245) /* "Ebparcel" */
#define BATCH	    FD_MESSAGE_MAX
#define CHUNK_BYTES (UINT64_C(64) << 10)

struct header {
	uint64_t magic, body_bytes;
	uint32_t n_fds, reserved;
};

void parcel_free(struct parcel *p)
{
	for (unsigned int i = 0; p->owned && i < p->n_fds; i++)
		fd_close(&p->fds[i]);
	json_decref(p->body);
	free(p->fds);
	*p = (struct parcel){0};
}

json_t *parcel_add_fd(struct parcel *p, int fd)
{
	if (p->n_fds == p->room) {
		unsigned int room = p->room ? 2 * p->room : 64;
		int *fds = realloc(p->fds, room * sizeof(*fds));

		if (!fds)
			return NULL;
		p->fds = fds;
		p->room = room;
	}
	p->fds[p->n_fds] = fd;
	return json_integer(p->n_fds++);
}

int parcel_take_fd(struct parcel *p, const json_t *index)
{
	json_int_t i = json_is_integer(index) ? json_integer_value(index) : -1;

	if (i < 0 || i >= (json_int_t)p->n_fds)
		return -1;
	return fd_take(&p->fds[i]);
}

/* Waits until the socket is ready for `events`. */
static int wait_for(int sock, short events, uint64_t end_ns)
{
	struct pollfd pfd = {.fd = sock, .events = events};

	for (;;) {
		uint64_t now = clock_ns();
		int r = now >= end_ns ? 0 : poll(&pfd, 1, (int)((end_ns - now) / NS_PER_MS) + 1);

		if (r > 0)
			return 0;
		if (!r)
			return -ETIMEDOUT;
		if (errno != EINTR)
			return -errno;
	}
}

static int send_all(int sock, const void *data, uint64_t bytes, const int *fds, unsigned int n_fds,
		    uint64_t end_ns)
{
	const char *p = data;

	while (bytes) {
		uint64_t n = bytes < CHUNK_BYTES ? bytes : CHUNK_BYTES;
		int r = wait_for(sock, POLLOUT, end_ns);

		if (!r)
			r = fd_send(sock, p, n, fds, (int)n_fds);
		if (r)
			return r == -EAGAIN ? -ETIMEDOUT : r;
		n_fds = 0;
		p += n;
		bytes -= n;
	}
	return 0;
}

int parcel_send(int sock, const struct parcel *p, uint32_t timeout_ms)
{
	uint64_t end_ns = clock_ns() + timeout_ms * NS_PER_MS;
	char *text = json_dumps(p->body, JSON_COMPACT);
	struct header h = {.magic = MAGIC, .n_fds = p->n_fds};
	struct timeval most = {(time_t)(timeout_ms / 1000),
			       (suseconds_t)(timeout_ms % 1000) * 1000 + 1};
	int r;

	if (!text)
		return -ENOMEM;
	/* A send that has begun must not wait for ever for one who takes nothing more. */
	setsockopt(sock, SOL_SOCKET, SO_SNDTIMEO, &most, sizeof(most));
	h.body_bytes = strlen(text);
	r = send_all(sock, &h, sizeof(h), NULL, 0, end_ns);
	if (!r)
		r = send_all(sock, text, h.body_bytes, NULL, 0, end_ns);
	for (unsigned int i = 0; i < p->n_fds && !r; i += BATCH)
		r = send_all(sock, "", 1, p->fds + i, p->n_fds - i < BATCH ? p->n_fds - i : BATCH,
			     end_ns);
	free(text);
	return r;
}

static int receive_all(int sock, void *data, uint64_t bytes, uint64_t end_ns)
{
	char *p = data;

	while (bytes) {
		int no_fds = 0, r = wait_for(sock, POLLIN, end_ns);
		ssize_t n = r ? r : fd_recv(sock, p, bytes, NULL, &no_fds);

		if (n < 0)
			return (int)n;
		if (!n)
			return -EPIPE;
		p += n;
		bytes -= (uint64_t)n;
	}
	return 0;
}

static int receive_fds(int sock, struct parcel *p, uint32_t n_fds, uint64_t end_ns)
{
	p->fds = calloc(n_fds ? n_fds : 1, sizeof(*p->fds));
	if (!p->fds)
		return -ENOMEM;
	p->room = n_fds;
	while (p->n_fds < n_fds) {
		int n = (int)(n_fds - p->n_fds < BATCH ? n_fds - p->n_fds : BATCH), got = n;
		int r = wait_for(sock, POLLIN, end_ns);
		char byte;
		ssize_t bytes = r ? r : fd_recv(sock, &byte, 1, p->fds + p->n_fds, &got);

		if (bytes < 0)
			return (int)bytes;
		p->n_fds += (unsigned int)got;
		if (!bytes)
			return -EPIPE;
		if (got != n)
			return -EBADMSG;
	}
	return 0;
}

int parcel_receive(int sock, struct parcel *p, uint32_t timeout_ms)
{
	uint64_t end_ns = clock_ns() + timeout_ms * NS_PER_MS;
	char *text = NULL;
	struct header h;
	int r;

	*p = (struct parcel){.owned = true};
	r = receive_all(sock, &h, sizeof(h), end_ns);
	if (!r && (h.magic != MAGIC || h.body_bytes > PARCEL_BYTES_MAX || h.n_fds > PARCEL_FDS_MAX))
		r = -EBADMSG;
	if (!r) {
		text = malloc(h.body_bytes + 1);
		r = text ? receive_all(sock, text, h.body_bytes, end_ns) : -ENOMEM;
	}
	if (!r) {
		p->body = json_loadb(text, h.body_bytes, JSON_REJECT_DUPLICATES, NULL);
		if (!json_is_object(p->body))
			r = -EBADMSG;
	}
	free(text);
	if (!r)
		r = receive_fds(sock, p, h.n_fds, end_ns);
	if (r)
		parcel_free(p);
	return r;
}
