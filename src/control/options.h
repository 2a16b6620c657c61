/* SPDX-License-Identifier: BSD-3-Clause */
/* options.h: a JSON object of options as the text pairs that plugins take. */
#ifndef CONTROL_OPTIONS_H
#define CONTROL_OPTIONS_H

#include <jansson.h>
#include <stdint.h>

#include "base/error.h"
#include "ebb/backend.h"
#include "ebb/policy.h"

#define OPTIONS_MAX 64

struct option_list {
	uint32_t n;
	struct ebb_option backend[OPTIONS_MAX];
	struct ebb_policy_option policy[OPTIONS_MAX]; /* the same pairs */
	char *values[OPTIONS_MAX];		      /* owned */
};

/*
 * Numbers and booleans become text, lists are joined by commas. Borrows the names from object
 * (NULL: no options), which must outlive the list. Free with options_free() in any case.
 */
int options_from_json(const json_t *object, struct option_list *out, struct error *e);
void options_free(struct option_list *list);

#endif
