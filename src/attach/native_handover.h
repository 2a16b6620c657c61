/* SPDX-License-Identifier: BSD-3-Clause */
/* native_handover.h: a connection of the native dialect, for a daemon's successor. */
#ifndef ATTACH_NATIVE_HANDOVER_H
#define ATTACH_NATIVE_HANDOVER_H

#include <jansson.h>
#include <stdbool.h>

struct conn;

/* Nobody waits for the client any more, until that is given up again. */
void native_hold(struct conn *c, bool hold);
/* What a successor must know of a connection at rest; NULL when it has not attached. */
json_t *native_export(struct conn *c);
/* Makes a new connection what that says. 0 or -errno. */
int native_inherit(struct conn *c, const json_t *j);

#endif
