/* SPDX-License-Identifier: BSD-3-Clause */
/* stage.h: the stages of a hand-over between two daemons, and their messages. */
#ifndef DAEMON_STAGE_H
#define DAEMON_STAGE_H

#include "base/error.h"
#include "parcel/parcel.h"

/*
 * One stream socket, one parcel a stage, in this order; docs/upgrade.md has what is in them.
 *
 *   successor -> old  hello     who it is, which versions of the state it reads
 *   old -> successor  prepare   backends and policies to open
 *   successor -> old  ready     all that takes time is done
 *   old -> successor  state     the VMs (their faults wait from here on)
 *   successor -> old  taken     all of it was understood
 *   old -> successor  commit    the old one touches nothing any more
 *   successor -> old  serving   faults are served
 *
 * Instead of its stage the successor may send "failed" with a sentence. Until commit the old daemon
 * can go on as if nothing had been; after it the old one only ends.
 *
 * The state has a version; compat is the oldest version whose readers understand it. Members that
 * a reader does not know are left alone, missing ones mean the default.
 */
#ifndef STATE_VERSION
#define STATE_VERSION 1
#endif
#ifndef STATE_COMPAT
#define STATE_COMPAT 1
#endif
/* The oldest version that is read here. */
#ifndef STATE_OLDEST
#define STATE_OLDEST 1
#endif

/* The successor's patience with the old daemon, which may wait for commands under way. */
#define STAGE_READY_MS 60000
/* The VMs wait meanwhile. */
#define STAGE_TAKEN_MS	 5000
#define STAGE_SERVING_MS 20000

/* An empty parcel of that stage. 0 or -ENOMEM. */
int stage_new(struct parcel *p, const char *stage);
/* Sends one, and frees it in any case. 0 or -errno with e filled. */
int stage_send(int sock, struct parcel *p, uint32_t timeout_ms, struct error *e);
/* Sends one that has nothing but its name. */
int stage_say(int sock, const char *stage, struct error *e);
/*
 * Receives that stage. -EPIPE: the other side has ended; -ETIMEDOUT; -ECANCELED: it says that it
 * failed (its sentence is in e); -EPROTO: it said something else.
 */
int stage_expect(int sock, const char *stage, uint32_t timeout_ms, struct parcel *p,
		 struct error *e);
/* Whether the state in a body can be read here. */
int stage_check_version(const json_t *body, struct error *e);
/* Whether who says that hello can read our state. */
int stage_check_reader(const json_t *hello, struct error *e);

#endif
