/* SPDX-License-Identifier: BSD-3-Clause */
/* lock.h: one daemon for one runtime folder. */
#ifndef DAEMON_LOCK_H
#define DAEMON_LOCK_H

#include "base/error.h"

/*
 * Takes the lock file in dir, and writes our pid into it. Gives a descriptor: the lock is held
 * until it is closed. -EBUSY when another daemon has it.
 */
int lock_take(const char *dir, struct error *e);

#endif
