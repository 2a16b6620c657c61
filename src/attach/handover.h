/* SPDX-License-Identifier: BSD-3-Clause */
/* handover.h: the clients' connections, given to the daemon's successor. */
#ifndef ATTACH_HANDOVER_H
#define ATTACH_HANDOVER_H

#include "attach/attach.h"
#include "parcel/parcel.h"

/*
 * Lets all requests come to their end and begins no new one. -EBUSY when one has not ended after
 * timeout_ms: then all goes on. Any thread but the loop's, while the loop runs.
 */
int attach_hold(struct attach *at, uint32_t timeout_ms, struct error *e);
/* Goes on after that. */
void attach_release(struct attach *at);
/* Puts the socket ("attach-socket") and the connections into out. While held. */
void attach_export(struct attach *at, struct parcel *out);
/*
 * In the successor, whose engine has the attachments: goes on with the connections. Before the loop
 * runs. config->listener of attach_new() is the socket.
 */
void attach_adopt(struct attach *at, struct parcel *in);

#endif
