/* SPDX-License-Identifier: BSD-3-Clause */
/* fake_engine.h: an engine that only takes notes, for tests of the attach socket. */
#ifndef TESTS_ATTACH_FAKE_ENGINE_H
#define TESTS_ATTACH_FAKE_ENGINE_H

#include <stdio.h>

#include "engine/engine.h"

/*
 * Each call is written as a line to `log`. What it does beyond that is asked for by names:
 *   VM "slow..."     attaching takes 300 ms
 *   VM "taken"       the name is taken
 *   region "slow..." removing it lasts until it is cancelled, at most 30 s
 *   region "zap..."  pin asks the client for a zap and answers with its result
 */
struct engine *fake_engine_new(FILE *log);
void fake_engine_free(struct engine *eng);
/* Attachments that were not put back yet. */
int fake_engine_held(const struct engine *eng);

#endif
