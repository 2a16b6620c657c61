/* SPDX-License-Identifier: BSD-3-Clause */
/* slow_file.h: a file whose reads wait until they are told to go on, for I/O that is in flight. */
#ifndef TESTS_ENGINE_SLOW_FILE_H
#define TESTS_ENGINE_SLOW_FILE_H

struct slow_file;

/*
 * One file of a FUSE file system of this process's own, in a mount namespace of its own, so that
 * nothing of it stays. It is open for O_DIRECT. NULL when there can be none here. Once a process.
 */
struct slow_file *slow_file_new(void);
/* Its descriptor; it is 1 MiB long, and all of it is 'D'. */
int slow_file_fd(const struct slow_file *f);
/* How many reads wait. */
unsigned int slow_file_waiting(const struct slow_file *f);
/* Lets those that wait be answered, in a moment. */
void slow_file_go_on(struct slow_file *f);
/* No read may wait. */
void slow_file_free(struct slow_file *f);

#endif
