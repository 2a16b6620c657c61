/* SPDX-License-Identifier: BSD-3-Clause */
/* print.h: answers for people. */
#ifndef CTL_PRINT_H
#define CTL_PRINT_H

#include <jansson.h>
#include <stdio.h>

#include "schema/schema.h"

/* Prints what a command returned: a table for a list, name and value for an object. */
void print_return(const struct schema *s, const json_t *command, const json_t *value, FILE *out);
/* One value of a member as text: sizes with units. Gives a string that the caller frees. */
char *print_value(const json_t *decl, const json_t *value);

#endif
