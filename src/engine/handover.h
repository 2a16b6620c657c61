/* SPDX-License-Identifier: BSD-3-Clause */
/* handover.h: all VMs of a living daemon, given to its successor. */
#ifndef ENGINE_HANDOVER_H
#define ENGINE_HANDOVER_H

#include "engine/engine.h"
#include "parcel/parcel.h"

/*
 * In the old daemon, in this order; whatever fails, handover_resume() (if quiesced) and
 * engine_go_on() make it go on as before:
 *
 *   handover_plugins()        for the successor to prepare itself
 *   engine_pause_commands()   nothing is asked for from outside any more
 *   engine_pause_background()
 *   handover_save_policies()  the VMs' faults are still served
 *   engine_pause_faults()     from here on they wait
 *   handover_quiesce(), handover_export()
 *
 * In the successor, an engine that was made with start_held:
 *
 *   handover_open_plugins(false)  ahead; then, when the state is here:
 *   handover_open_plugins(true), handover_import()   changes nothing that the old one has
 *   handover_take()               the old one is gone: serves the VMs' faults
 *   handover_settle()             policies and eviction
 */

/* -EBUSY after timeout_ms while a command is under way. */
int engine_pause_commands(struct engine *eng, uint32_t timeout_ms, struct error *e);
void engine_pause_background(struct engine *eng);
void engine_pause_faults(struct engine *eng);
void engine_go_on(struct engine *eng);

/* {"backends":[...],"policies":[...]}; NULL when out of memory. */
json_t *handover_plugins(struct engine *eng);
/* Opens the backends that two daemons may have open at once, and policies; or the other backends.
 */
int handover_open_plugins(struct engine *eng, const json_t *plugins, bool exclusive,
			  struct error *e);
/* Puts the policies' state into out->body; what cannot be saved is left out. */
void handover_save_policies(struct engine *eng, struct parcel *out);
/* Closes what that made. */
void handover_saved_drop(struct engine *eng);
int handover_quiesce(struct engine *eng, struct error *e);
void handover_resume(struct engine *eng);
/* Puts all VMs into out. */
int handover_export(struct engine *eng, struct parcel *out, struct error *e);

/* On failure the engine is of no use, and nothing of it may be freed: the process must end. */
int handover_import(struct engine *eng, struct parcel *in, struct error *e);
void handover_take(struct engine *eng);
void handover_settle(struct engine *eng, struct parcel *in);

/*
 * The attachment of that serial number, for its connection, which came along: what engine_attach()
 * gave. ops may be NULL. NULL when there is none.
 */
struct attachment *handover_attachment(struct engine *eng, uint64_t serial,
				       const struct attach_client_ops *ops, void *client);
/* The serial number of an attachment, as long as it is held. */
uint64_t handover_serial(const struct attachment *a);

#endif
