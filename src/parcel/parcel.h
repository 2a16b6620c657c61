/* SPDX-License-Identifier: BSD-3-Clause */
/* parcel.h: JSON together with descriptors, sent from one daemon to the next. */
#ifndef PARCEL_PARCEL_H
#define PARCEL_PARCEL_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"

/*
 * A parcel is a JSON object whose members name descriptors by their index in a list that goes with
 * it. Who makes one lends the descriptors; who receives one owns those that it has not taken out.
 * Zero-initialise; parcel_free() in any case.
 */
struct parcel {
	json_t *body;
	int *fds; /* -1: taken out */
	unsigned int n_fds, room;
	bool owned; /* received */
};

/* Text of a JSON body, and descriptors, that are believed to be one. */
#define PARCEL_BYTES_MAX (UINT64_C(256) << 20)
#define PARCEL_FDS_MAX	 65536u

void parcel_free(struct parcel *p);
/* Adds a descriptor (borrowed until the parcel is sent). Its index, NULL when out of memory. */
json_t *parcel_add_fd(struct parcel *p, int fd);
/* The descriptor of that index, now the caller's; -1 when there is none (any more). */
int parcel_take_fd(struct parcel *p, const json_t *index);
/*
 * Sends body and descriptors over a stream socket. What the other side does not take within
 * timeout_ms makes it -ETIMEDOUT. 0 or -errno.
 */
int parcel_send(int sock, const struct parcel *p, uint32_t timeout_ms);
/*
 * Receives one, whole, within timeout_ms. 0, -EPIPE at the end of the stream, -ETIMEDOUT,
 * -EBADMSG when it is none, or another -errno; then *p is empty.
 */
int parcel_receive(int sock, struct parcel *p, uint32_t timeout_ms);

#endif
