/* SPDX-License-Identifier: BSD-3-Clause */
/* apply.h: checked arguments of the commands that change something, given to the engine. */
#ifndef CONTROL_APPLY_H
#define CONTROL_APPLY_H

#include <jansson.h>

#include "base/error.h"
#include "engine/engine.h"

/* Arguments as the schema checked them; from a request, the settings file or the configuration. */
int apply_vm_set(struct engine *eng, const char *vm, const json_t *args, struct error *e);
int apply_policy_set(struct engine *eng, const char *vm, const json_t *args, struct error *e);
int apply_policy_load(struct engine *eng, const json_t *args, struct error *e);
int apply_backend_add(struct engine *eng, const json_t *args, struct error *e);
/* EBB_POLICY_RECLAIM or EBB_POLICY_PREFETCH for the argument role. */
uint32_t apply_role(const json_t *args);

#endif
