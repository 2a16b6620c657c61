/* SPDX-License-Identifier: BSD-3-Clause */
/* request.h: words of the command line into a command's arguments. */
#ifndef CTL_REQUEST_H
#define CTL_REQUEST_H

#include <jansson.h>

#include "base/error.h"
#include "schema/schema.h"

/*
 * words: [VM] [name=value ...], also --name value and --name=value. Values are converted by the
 * schema's types: sizes with K, M, G, T; lists by comma; options.NAME=VALUE for an argument that is
 * an object, or NAME=VALUE when no argument is called so. Gives *args, checked.
 */
int request_args(const struct schema *s, const json_t *command, int n, char **words, json_t **args,
		 struct error *e);

#endif
