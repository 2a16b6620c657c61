/* SPDX-License-Identifier: BSD-3-Clause */
/* watch_json.h: what a watch of a VM has found, as JSON. */
#ifndef CONTROL_WATCH_JSON_H
#define CONTROL_WATCH_JSON_H

#include <jansson.h>

#include "engine/engine.h"

/* The answers of vm-heatmap and vm-wss. */
json_t *heatmap_to_json(const struct watch_result *w);
json_t *wss_to_json(const struct watch_result *w);

#endif
