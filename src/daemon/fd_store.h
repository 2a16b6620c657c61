/* SPDX-License-Identifier: BSD-3-Clause */
/* fd_store.h: what the service manager kept for us. */
#ifndef DAEMON_FD_STORE_H
#define DAEMON_FD_STORE_H

#include "engine/engine.h"

/* The manager's store as the engine uses it; without one, put is NULL. */
struct engine_fd_store fd_store(void);
/*
 * Takes in what a daemon before us had stored: each VM goes on. Once, at the start, before there
 * are threads that read the environment; the descriptors are closed behind it.
 */
void fd_store_restore(struct engine *eng);

#endif
