/* SPDX-License-Identifier: BSD-3-Clause */
/* options.h: what `backend-add` may say to the SSD backend. */
#ifndef SSD_OPTIONS_H
#define SSD_OPTIONS_H

#include <stdbool.h>
#include <stdint.h>

#include "ebb/backend.h"

struct options {
	char path[512];
	uint64_t size;	       /* 0: all of a block device */
	uint64_t write_budget; /* bytes a day; 0: no bound */
	bool discard, encrypt, format, force;
};

extern const char *const options_help[];

void options_default(struct options *o);
/* 0; -EINVAL with a sentence in err. */
int options_set(struct options *o, const struct ebb_option *opt, char *err, uint64_t err_len);

#endif
