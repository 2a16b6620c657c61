/* SPDX-License-Identifier: BSD-3-Clause */
/* options.c: what `backend-add` may say to the SSD backend. */
#include "options.h"

#include <errno.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "values.h"

const char *const options_help[] = {
	"path: file (made if it is not there) or block device; only for this",
	"size: bytes to use; must be given for a file; a block device is used as a whole",
	"write-budget: bytes a day that may be written; 0 (default): no bound; can be changed",
	"discard: on (default) or off: tell the device what is free; can be changed",
	"encrypt: off (default) or on: AES-256-GCM with a key per VM",
	"format: yes: take over what is not Ebb's and not empty; its content is lost",
	"force: yes: take over what another machine has used and not closed",
	NULL,
};

void options_default(struct options *o)
{
	memset(o, 0, sizeof(*o));
	o->discard = true;
}

static int parse_switch(const char *text, const char *on, const char *off, bool *out)
{
	if (strcmp(text, on) == 0)
		*out = true;
	else if (strcmp(text, off) == 0)
		*out = false;
	else
		return -EINVAL;
	return 0;
}

int options_set(struct options *o, const struct ebb_option *opt, char *err, uint64_t err_len)
{
	int r = 0;

	if (strcmp(opt->name, "path") == 0) {
		if (opt->value[0] != '/' || strlen(opt->value) >= sizeof(o->path))
			r = -EINVAL;
		else
			snprintf(o->path, sizeof(o->path), "%s", opt->value);
	} else if (strcmp(opt->name, "size") == 0) {
		r = value_size(opt->value, &o->size);
	} else if (strcmp(opt->name, "write-budget") == 0) {
		r = value_size(opt->value, &o->write_budget);
	} else if (strcmp(opt->name, "discard") == 0) {
		r = parse_switch(opt->value, "on", "off", &o->discard);
	} else if (strcmp(opt->name, "encrypt") == 0) {
		r = parse_switch(opt->value, "on", "off", &o->encrypt);
	} else if (strcmp(opt->name, "format") == 0) {
		r = parse_switch(opt->value, "yes", "no", &o->format);
	} else if (strcmp(opt->name, "force") == 0) {
		r = parse_switch(opt->value, "yes", "no", &o->force);
	} else {
		snprintf(err, err_len, "unknown option '%.60s'", opt->name);
		return -EINVAL;
	}
	if (r)
		snprintf(err, err_len, "%s cannot be '%.60s'", opt->name, opt->value);
	return r ? -EINVAL : 0;
}
