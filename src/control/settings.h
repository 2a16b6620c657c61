/* SPDX-License-Identifier: BSD-3-Clause */
/* settings.h: what operators changed at run time, kept over the daemon's death. */
#ifndef CONTROL_SETTINGS_H
#define CONTROL_SETTINGS_H

#include <jansson.h>

#include "base/error.h"
#include "engine/engine.h"
#include "schema/schema.h"

struct settings;

/*
 * A tree of settings, as the file and the configuration have it:
 *   {"version": 1,
 *    "backends": {NAME: backend-add's arguments}, "backends-removed": [NAME, ...],
 *    "policies": {NAME: policy-load's arguments},
 *    "vms": {NAME: {"settings": vm-set's arguments without vm,
 *                   "reclaim": policy-set's arguments without vm, "prefetch": the same}}}
 * Every member may be missing. The VM "*" stands for every VM (configuration only).
 */

/* Checks every part against the schema; where names the file in the error's text. */
int settings_check(const struct schema *s, const json_t *tree, const char *where, struct error *e);

/*
 * path is where changes are kept. A file that is there is read; one that cannot be understood is
 * moved aside with a warning. schema is borrowed.
 */
int settings_new(const struct schema *schema, const char *path, struct settings **out,
		 struct error *e);
void settings_free(struct settings *s);
/* The configuration's tree, checked; what was changed at run time goes before it. Consumes it. */
void settings_set_base(struct settings *s, json_t *tree);

/* Opens backends and loads policies. What fails is logged: the daemon must come up for its VMs. */
void settings_apply_start(const struct settings *s, struct engine *eng);
/* Gives a VM its settings and policies; what fails is logged. s may be NULL. */
void settings_apply_vm(const struct settings *s, struct engine *eng, const char *vm);

/*
 * A command was carried out: keep it. args are the command's. s may be NULL: nothing is kept.
 * -errno when it could not be written; the text says that the change itself is in effect.
 */
int settings_vm_set(struct settings *s, const json_t *args, struct error *e);
int settings_policy_set(struct settings *s, const json_t *args, struct error *e);
int settings_policy_load(struct settings *s, const json_t *args, struct error *e);
int settings_policy_unload(struct settings *s, const char *name, struct error *e);
int settings_backend_add(struct settings *s, const json_t *args, struct error *e);
int settings_backend_remove(struct settings *s, const char *name, struct error *e);

#endif
