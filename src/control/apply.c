/* SPDX-License-Identifier: BSD-3-Clause */
/* apply.c: checked arguments of the commands that change something, given to the engine. */
#include "control/apply.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "control/options.h"

static const char *text(const json_t *args, const char *name)
{
	return json_string_value(json_object_get(args, name));
}

static int tiers_from_json(const json_t *list, struct vm_settings *s, struct error *e)
{
	json_t *item;
	size_t i;

	if (json_array_size(list) > ENGINE_BACKENDS_MAX)
		return error_set(e, EINVAL, ERROR_ARGUMENT, "more than %d tiers",
				 ENGINE_BACKENDS_MAX);
	json_array_foreach(list, i, item) {
		const char *name = json_string_value(item);

		if (strlen(name) >= PLUGIN_NAME_MAX)
			return error_set(e, EINVAL, ERROR_ARGUMENT, "tier '%.60s': name too long",
					 name);
		memcpy(s->tiers[i], name, strlen(name) + 1);
	}
	s->n_tiers = (unsigned int)i;
	s->set |= VM_SET_TIERS;
	return 0;
}

/* The schema has seen to it that they are sizes, and not too many. */
static unsigned int marks_from_json(const json_t *list, uint64_t *marks)
{
	json_t *item;
	size_t i;

	json_array_foreach(list, i, item)
		marks[i] = (uint64_t)json_integer_value(item);
	return (unsigned int)i;
}

int apply_vm_set(struct engine *eng, const char *vm, const json_t *args, struct error *e)
{
	const json_t *value;
	struct vm_settings s;
	int r;

	memset(&s, 0, sizeof(s));
	if ((value = json_object_get(args, "limit"))) {
		s.limit_bytes = (uint64_t)json_integer_value(value);
		s.set |= VM_SET_LIMIT;
	}
	if ((value = json_object_get(args, "floor"))) {
		s.floor_bytes = (uint64_t)json_integer_value(value);
		s.set |= VM_SET_FLOOR;
	}
	if ((value = json_object_get(args, "weight"))) {
		s.weight = (uint32_t)json_integer_value(value);
		s.set |= VM_SET_WEIGHT;
	}
	if ((value = json_object_get(args, "granularity"))) {
		snprintf(s.granularity, sizeof(s.granularity), "%s", json_string_value(value));
		s.set |= VM_SET_GRANULARITY;
	}
	if ((value = json_object_get(args, "tiers"))) {
		r = tiers_from_json(value, &s, e);
		if (r)
			return r;
	}
	if ((value = json_object_get(args, "tier-high"))) {
		s.n_high = marks_from_json(value, s.tier_high);
		s.set |= VM_SET_HIGH;
	}
	if ((value = json_object_get(args, "tier-low"))) {
		s.n_low = marks_from_json(value, s.tier_low);
		s.set |= VM_SET_LOW;
	}
	return engine_vm_set(eng, vm, &s, e);
}

uint32_t apply_role(const json_t *args)
{
	return strcmp(text(args, "role"), "prefetch") == 0 ? EBB_POLICY_PREFETCH
							   : EBB_POLICY_RECLAIM;
}

int apply_policy_set(struct engine *eng, const char *vm, const json_t *args, struct error *e)
{
	struct option_list opts;
	int r = options_from_json(json_object_get(args, "options"), &opts, e);

	if (!r)
		r = engine_policy_set(eng, vm, apply_role(args), text(args, "policy"), opts.policy,
				      opts.n, e);
	options_free(&opts);
	return r;
}

int apply_policy_load(struct engine *eng, const json_t *args, struct error *e)
{
	return engine_policy_load(eng, text(args, "name"), text(args, "file"), e);
}

int apply_backend_add(struct engine *eng, const json_t *args, struct error *e)
{
	struct option_list opts;
	int r = options_from_json(json_object_get(args, "options"), &opts, e);

	if (!r)
		r = engine_backend_add(eng, text(args, "name"), text(args, "driver"), opts.backend,
				       opts.n, e);
	options_free(&opts);
	return r;
}
