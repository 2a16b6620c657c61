/* SPDX-License-Identifier: BSD-3-Clause */
/* stats.h: the numbers that plugins keep themselves, as type stat of proto/control.json. */
#ifndef CONTROL_STATS_H
#define CONTROL_STATS_H

#include <jansson.h>
#include <stdint.h>

#include "ebb/backend.h"
#include "ebb/policy.h"

static inline json_t *stat_to_json(const char *name, const char *help, uint64_t value,
				   uint32_t counter)
{
	return json_pack("{s:s, s:I, s:s, s:s}", "name", name ? name : "", "value",
			 (json_int_t)value, "kind", counter ? "counter" : "gauge", "help",
			 help ? help : "");
}

static inline json_t *policy_stats_to_json(const struct ebb_policy_stat *stats, int n)
{
	json_t *list = json_array();

	for (int i = 0; i < n; i++)
		json_array_append_new(list, stat_to_json(stats[i].name, stats[i].help,
							 stats[i].value, stats[i].counter));
	return list;
}

static inline json_t *backend_stats_to_json(const struct ebb_stat *stats, unsigned int n)
{
	json_t *list = json_array();

	for (unsigned int i = 0; i < n; i++)
		json_array_append_new(list, stat_to_json(stats[i].name, stats[i].help,
							 stats[i].value, stats[i].counter));
	return list;
}

#endif
