/* SPDX-License-Identifier: BSD-3-Clause */
/* options.c: what goes wrong, and how often. */
#include "options.h"

#include <errno.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "values.h"

enum kind { NUMBER, RATE, ERRNO };

static const struct {
	const char *name;
	enum kind kind;
	size_t at;
} fields[] = {
	{"delay-us", NUMBER, offsetof(struct options, delay_us)},
	{"delay-random-us", NUMBER, offsetof(struct options, delay_random_us)},
	{"store-error", RATE, offsetof(struct options, store_error)},
	{"load-error", RATE, offsetof(struct options, load_error)},
	{"store-errno", ERRNO, offsetof(struct options, store_errno)},
	{"load-errno", ERRNO, offsetof(struct options, load_errno)},
	{"again", RATE, offsetof(struct options, again)},
	{"partial", RATE, offsetof(struct options, partial)},
	{"few", RATE, offsetof(struct options, few)},
	{"reorder", NUMBER, offsetof(struct options, reorder)},
	{"stuck", NUMBER, offsetof(struct options, stuck)},
	{"max-bytes", NUMBER, offsetof(struct options, max_bytes)},
	{"seed", NUMBER, offsetof(struct options, seed)},
};

const char *const options_help[] = {
	"delay-us: how long each I/O takes",
	"delay-random-us: and up to so much longer, at random",
	"store-error: 1/N: one in N stores fails",
	"store-errno: EIO (default), ENOSPC, EINVAL, ENOMEM or ETIMEDOUT",
	"load-error: 1/N: one in N loads fails; the content is kept",
	"load-errno: as store-errno",
	"again: 1/N: one in N submits takes nothing",
	"partial: 1/N: one in N submits takes only a part",
	"few: 1/N: one in N polls gives a single completion",
	"reorder: 1: completions come in random order",
	"stuck: 1: nothing completes until it is set to 0",
	"max-bytes: what one VM may store",
	"seed: of the random numbers",
	NULL,
};

static const struct {
	const char *name;
	int code;
} errnos[] = {
	{"EIO", EIO},	    {"ENOSPC", ENOSPC},	      {"EINVAL", EINVAL},
	{"ENOMEM", ENOMEM}, {"ETIMEDOUT", ETIMEDOUT},
};

void options_default(struct options *o)
{
	memset(o, 0, sizeof(*o));
	o->store_errno = EIO;
	o->load_errno = EIO;
	o->seed = 1;
}

static int parse(enum kind kind, const char *text, uint64_t *out)
{
	switch (kind) {
	case RATE:
		if (strcmp(text, "0") == 0)
			break;
		if (strncmp(text, "1/", 2) != 0)
			return -EINVAL;
		text += 2;
		break;
	case ERRNO:
		for (size_t i = 0; i < sizeof(errnos) / sizeof(errnos[0]); i++) {
			if (strcmp(errnos[i].name, text) == 0) {
				*out = (uint64_t)errnos[i].code;
				return 0;
			}
		}
		return -EINVAL;
	case NUMBER:
		break;
	}
	return value_number(text, UINT64_MAX, out);
}

int options_set(struct options *o, const struct ebb_option *opt, char *err, uint64_t err_len)
{
	for (size_t i = 0; i < sizeof(fields) / sizeof(fields[0]); i++) {
		uint64_t v;

		if (strcmp(fields[i].name, opt->name) != 0)
			continue;
		if (parse(fields[i].kind, opt->value, &v)) {
			snprintf(err, err_len, "%s cannot be '%.60s'", opt->name, opt->value);
			return -EINVAL;
		}
		atomic_store((inject_value *)((char *)o + fields[i].at), v);
		return 0;
	}
	snprintf(err, err_len, "unknown option '%.60s'", opt->name);
	return -EINVAL;
}
