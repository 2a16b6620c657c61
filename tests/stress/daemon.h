/* SPDX-License-Identifier: BSD-3-Clause */
/* daemon.h: a real ebbd of its own for a test: start, ask, stop. */
#ifndef TESTS_STRESS_DAEMON_H
#define TESTS_STRESS_DAEMON_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#define DAEMON_ARGS_MAX 32

struct daemon {
	char binary[512];
	const char *argv[DAEMON_ARGS_MAX];
	char dir[64]; /* its runtime folder, removed by daemon_stop() */
	char attach[128], control[128];
	char log[64];	   /* a file that gets its log; "": that goes where ours does */
	uint64_t begun_ns; /* CLOCK_MONOTONIC just before it was made */
	pid_t pid;
	int fd; /* of the control connection */
	char answer[262144];
};

/* Starts EBB_BUILD/ebbd (args: more arguments, NULL-terminated, or NULL). Exits the test on
 * failure. */
void daemon_start(struct daemon *d, const char *const *args);
/* The steps of daemon_replace(): SIGKILL; another process; wait until that answers. */
void daemon_end(struct daemon *d);
void daemon_begin(struct daemon *d);
void daemon_reach(struct daemon *d);
/* Another control connection to the same daemon, for another thread; close(out->fd) ends it. */
void daemon_connect(const struct daemon *d, struct daemon *out);
/* Kills it (SIGKILL) and starts another on the same folder. */
void daemon_replace(struct daemon *d);
/* The same for one that dies by itself: waits for its end and gives its wait status; the next. */
int daemon_reap(struct daemon *d);
void daemon_next(struct daemon *d);
/*
 * Has it replaced by another process of the same binary, as an upgrade does: d->pid is that one's
 * then. Returns for how long no fault was served, in microseconds. Exits the test when it fails.
 */
uint64_t daemon_upgrade(struct daemon *d);
/* The same where it may be refused, because something is out of reach: false, and it goes on. */
bool daemon_try_upgrade(struct daemon *d, uint64_t *paused_us);
/* Like daemon_ask(), for one that may die: false when it did. */
bool daemon_try(struct daemon *d, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
/* Sends one command line and returns the answer's text ({"return": ...} or {"error": ...}). */
const char *daemon_ask(struct daemon *d, const char *fmt, ...)
	__attribute__((format(printf, 2, 3)));
/* The number of member `name` of the VM's query-vm; exits the test when it is not there. */
uint64_t daemon_vm_number(struct daemon *d, const char *vm, const char *name);
/* Descriptors that the daemon has open. */
unsigned int daemon_fds(const struct daemon *d);
/* Ends it by SIGTERM and waits; exits the test unless it ended with status 0. */
void daemon_stop(struct daemon *d);
/* Removes the folder of one that has ended otherwise. */
void daemon_remove(struct daemon *d);
/* Kills it. */
void daemon_kill(struct daemon *d);

#endif
