/* SPDX-License-Identifier: BSD-3-Clause */
/* guest.h: the VM of the benchmark: a process of its own, with the attach library in it. */
#ifndef BENCH_RECOVERY_GUEST_H
#define BENCH_RECOVERY_GUEST_H

#include <stdint.h>
#include <stdio.h>
#include <sys/types.h>

struct guest {
	pid_t pid;
	FILE *to, *from;
};

/*
 * Starts one with `bytes` of RAM, filled: each page has its number and random bytes in one part of
 * `part`, the rest of it compresses to nothing. It attaches as `name` to the socket.
 */
void guest_start(struct guest *g, const char *self, const char *socket, const char *name,
		 uint64_t bytes, unsigned int part);
void guest_end(struct guest *g);
/* Has it read a page; the answer comes once the page is there. */
void guest_touch(struct guest *g, uint64_t page);
/* When (CLOCK_MONOTONIC) the page was there. Ends the program when it has the wrong content. */
uint64_t guest_touched(struct guest *g);
/*
 * From now on two threads of it touch memory all the time: one its RAM, page after page in an order
 * that is no order, the other memory that is no VM's.
 */
void guest_go(struct guest *g);
struct guest_longest {
	uint64_t ram_ns, other_ns; /* the longest touch since the last time */
	uint64_t touches;	   /* of RAM, in all */
};
struct guest_longest guest_longest(struct guest *g);
/* How many pages do not have their content. */
uint64_t guest_wrong(struct guest *g);

/* What runs in the process of its own. Its arguments are those that guest_start() makes. */
int guest_main(char **args);

#endif
