/* SPDX-License-Identifier: BSD-3-Clause */
/* daemon.h: the daemon, put together. */
#ifndef DAEMON_DAEMON_H
#define DAEMON_DAEMON_H

#include "base/error.h"
#include "daemon/config.h"

/*
 * Runs until told to stop (SIGTERM, SIGINT, quit). argv is looked at again on SIGHUP. Returns 0 or
 * -errno with e filled when it could not start.
 */
int daemon_run(struct config *config, const struct schema *schema, int argc, char **argv,
	       struct error *e);

#endif
