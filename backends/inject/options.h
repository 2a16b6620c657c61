/* SPDX-License-Identifier: BSD-3-Clause */
/* options.h: what goes wrong, and how often. */
#ifndef INJECT_OPTIONS_H
#define INJECT_OPTIONS_H

#include <stdatomic.h>
#include <stdint.h>

#include "ebb/backend.h"

/* A value that config() may change while channels run. */
typedef _Atomic uint64_t inject_value;

struct options {
	inject_value delay_us, delay_random_us;
	inject_value store_error, load_error; /* one in so many; 0: never */
	inject_value store_errno, load_errno;
	inject_value again, partial; /* submit: one in so many takes nothing, or not all */
	inject_value few;	     /* poll: one in so many gives a single one */
	inject_value reorder;	     /* 1: completions come in random order */
	inject_value stuck;	     /* 1: nothing completes until it is 0 again */
	inject_value max_bytes, seed;
};

extern const char *const options_help[];

void options_default(struct options *o);
/* 0, or -EINVAL and a sentence. */
int options_set(struct options *o, const struct ebb_option *opt, char *err, uint64_t err_len);

#endif
