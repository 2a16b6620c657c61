/* SPDX-License-Identifier: BSD-3-Clause */
/* values.h: values of options, for all backends. */
#ifndef COMMON_VALUES_H
#define COMMON_VALUES_H

#include <stdint.h>

/* Each: 0, or -EINVAL or -ERANGE with nothing written. */

/* Decimal, at most max. */
int value_number(const char *text, uint64_t max, uint64_t *out);
/* Bytes: decimal, with an optional K, M, G or T (powers of 1024). */
int value_size(const char *text, uint64_t *out);

#endif
