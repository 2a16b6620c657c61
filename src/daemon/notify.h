/* SPDX-License-Identifier: BSD-3-Clause */
/* notify.h: telling the service manager how we are. */
#ifndef DAEMON_NOTIFY_H
#define DAEMON_NOTIFY_H

#include <stdbool.h>
#include <stdint.h>

/* Sends e.g. "READY=1" to the manager; nothing when there is none. Never blocks. */
void notify_send(const char *state);
/*
 * The manager's store of descriptors, which outlives us: fd (borrowed) under name, which replaces
 * nothing; all of that name removed; wait until it has read what was sent to it. -errno; -EAGAIN
 * when it has much to read.
 */
int notify_fd_put(const char *name, int fd);
void notify_fd_drop(const char *name);
int notify_barrier(int timeout_ms);
/* How many descriptors the manager keeps for us; 0: none, or there is no manager. */
unsigned int notify_fds_max(void);
/* Microseconds after which the manager takes a silent daemon for hung; 0: it does not watch. */
uint64_t notify_watchdog_us(void);
/* True when stderr goes to the journal. */
bool notify_stderr_is_journal(void);

#endif
