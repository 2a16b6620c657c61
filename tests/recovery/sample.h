/* SPDX-License-Identifier: BSD-3-Clause */
/* sample.h: memory that a released version left behind, as a text file. */
#ifndef TESTS_RECOVERY_SAMPLE_H
#define TESTS_RECOVERY_SAMPLE_H

#include <jansson.h>
#include <stdint.h>

/*
 * Memory is an object: {"bytes": length, "data": [[offset, "hexadecimal"], ...]}; what is not named
 * is zero. Whoever cannot read or write a sample ends the test.
 */

/* The content of a file, its first `bytes` bytes. */
json_t *sample_of_file(int fd, uint64_t bytes);
/* Writes that content into a file, which is long enough. */
void sample_to_file(const json_t *memory, int fd);
uint64_t sample_bytes(const json_t *memory);

json_t *sample_read(const char *folder, const char *name);
void sample_write(const char *folder, const char *name, const json_t *sample);

#endif
