/* SPDX-License-Identifier: BSD-3-Clause */
/* donors.h: donors of RDMA memory for tests, as processes of their own. */
#ifndef TESTS_BACKENDS_DONORS_H
#define TESTS_BACKENDS_DONORS_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#define DONORS 3

struct test_donor {
	pid_t pid; /* 0: not running */
	unsigned int port;
	uint64_t bytes;
	char dir[80];
};

struct donors {
	char dir[64]; /* of the keys and the donors' sockets */
	char address[48];
	struct test_donor donor[DONORS];
};

/* The address to use for RDMA here; NULL: there is none (EBB_RDMA_ADDR is not set). */
const char *rdma_address(void);

/* A folder with a key and another one that nobody has. No donor runs yet. */
void donors_init(struct donors *d);
/* Ends all of them, removes the folder. */
void donors_end(struct donors *d);

/* Starts number i, which lends so many bytes, and waits until it listens. */
void donor_start(struct donors *d, unsigned int i, uint64_t bytes);
void donor_stop(struct donors *d, unsigned int i, int signal);
/* A number of its status, e.g. "lent-bytes". */
uint64_t donor_number(const struct donors *d, unsigned int i, const char *name);
/* Asks it to lend so much from now on. */
void donor_lend(const struct donors *d, unsigned int i, uint64_t bytes);

/* Where the lent memory is in its process, and reaching into it behind its back. */
uint64_t donor_memory(const struct donors *d, unsigned int i);
void donor_read(const struct donors *d, unsigned int i, uint64_t offset, void *buf, uint64_t bytes);
void donor_write(const struct donors *d, unsigned int i, uint64_t offset, const void *buf,
		 uint64_t bytes);

#endif
