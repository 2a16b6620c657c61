/* SPDX-License-Identifier: BSD-3-Clause */
/* size.h: sizes in text. */
#ifndef BASE_SIZE_H
#define BASE_SIZE_H

#include <stdint.h>

/*
 * Parses a count of bytes: digits with an optional K, M, G or T (powers of 1024, an optional "iB"
 * or "B" behind it). Returns 0, -EINVAL when the text is no size, -ERANGE when it does not fit.
 */
int size_parse(const char *text, uint64_t *bytes);

/* Writes e.g. "1.5 GiB" into buf (at least 16 bytes) and returns it. */
const char *size_format(uint64_t bytes, char *buf);

#endif
