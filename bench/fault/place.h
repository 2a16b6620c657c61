/* SPDX-License-Identifier: BSD-3-Clause */
/* place.h: on which CPU a handler runs, beside the thread that it serves. */
#ifndef BENCH_FAULT_PLACE_H
#define BENCH_FAULT_PLACE_H

#include <sys/types.h>

/*
 * A handler that is woken on the CPU of the thread that waits for it costs two context switches;
 * on another, idle CPU two wake-ups from idle, which in a virtual machine can be five times as
 * much. The scheduler takes an idle CPU where there is one, so that what else the machine does
 * decides which of the two is measured, unless both are bound.
 */
enum place {
	PLACE_SAME,  /* both on one CPU */
	PLACE_OTHER, /* each on one of its own */
	PLACE_ANY,   /* as the scheduler likes */
	PLACES,
};

/* The first that this machine has: with one CPU there is only PLACE_ANY. */
enum place place_first(void);
const char *place_name(enum place p);
/* Binds the calling thread. */
void place_guest(enum place p);
/* Binds the threads of a process whose name is `thread` (NULL: all of them). */
void place_handler(enum place p, pid_t pid, const char *thread);

#endif
