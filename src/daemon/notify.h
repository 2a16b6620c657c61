/* SPDX-License-Identifier: BSD-3-Clause */
/* notify.h: telling the service manager how we are. */
#ifndef DAEMON_NOTIFY_H
#define DAEMON_NOTIFY_H

#include <stdbool.h>
#include <stdint.h>

/* Sends e.g. "READY=1" to the manager; nothing when there is none. Never blocks. */
void notify_send(const char *state);
/* Microseconds after which the manager takes a silent daemon for hung; 0: it does not watch. */
uint64_t notify_watchdog_us(void);
/* True when stderr goes to the journal. */
bool notify_stderr_is_journal(void);

#endif
