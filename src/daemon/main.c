/* SPDX-License-Identifier: BSD-3-Clause */
/* main.c: ebbd. */
#include <stdio.h>

#include "daemon/daemon.h"

int main(int argc, char **argv)
{
	struct schema *schema = NULL;
	struct config config = {0};
	enum config_action action;
	struct error e;
	int r;

	r = schema_new(&schema, &e);
	if (!r)
		r = config_read(&config, schema, argc, argv, &action, &e);
	if (!r) {
		switch (action) {
		case CONFIG_RUN:
			r = daemon_run(&config, schema, argc, argv, &e);
			break;
		case CONFIG_HELP:
			config_write_help(stdout);
			break;
		case CONFIG_VERSION:
			puts("ebbd " EBB_VERSION);
			break;
		case CONFIG_MAN:
			config_write_mdoc(stdout);
			break;
		case CONFIG_SAMPLE:
			config_write_sample(stdout);
			break;
		}
	}
	if (r)
		fprintf(stderr, "ebbd: %s\n", e.desc);
	config_free(&config);
	schema_free(schema);
	return r ? 1 : 0;
}
