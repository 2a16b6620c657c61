/* SPDX-License-Identifier: BSD-3-Clause */
/* fake_engine.h: an engine without memory, for tests of what stands on engine/engine.h. */
#ifndef TESTS_CONTROL_FAKE_ENGINE_H
#define TESTS_CONTROL_FAKE_ENGINE_H

#include "engine/engine.h"

/*
 * VMs are names with numbers. A VM appears by fake_engine_attach() or by a backend of the driver
 * "fake-attach" whose instance name becomes the VM's; the driver "fake-event", like
 * unloading a policy of that name, emits one event of each type; "fake-fail" does not open. Every
 * VM begins with 256 MiB resident. Long operations move 1 MiB a millisecond (vm-prefetch: slowly
 * enough to be cancelled).
 */
int fake_engine_attach(struct engine *eng, const char *name);
void fake_engine_emit(struct engine *eng, const struct engine_event *ev);

#endif
