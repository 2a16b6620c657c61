/* SPDX-License-Identifier: BSD-3-Clause */
/* vm_json.h: a VM as query-vm shows it. */
#ifndef CONTROL_VM_JSON_H
#define CONTROL_VM_JSON_H

#include <jansson.h>

#include "engine/engine.h"

/* Gives an object with the members that proto/control.json declares for type vm. */
json_t *vm_to_json(const struct vm_info *vm);

#endif
