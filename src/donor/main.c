/* SPDX-License-Identifier: BSD-3-Clause */
/* main.c: ebb-donor. */
#include <stdio.h>
#include <stdlib.h>

#include "donor/donor.h"

int main(int argc, char **argv)
{
	enum donor_action action = DONOR_RUN;
	struct donor_options options;
	char question[64] = "";
	struct error e;
	int r = donor_options_read(&options, argc, argv, &action, question, sizeof(question), &e);

	if (!r) {
		switch (action) {
		case DONOR_RUN:
			log_setup(options.log_level, getenv("JOURNAL_STREAM") != NULL);
			r = donor_run(&options, &e);
			break;
		case DONOR_ASK:
			return status_ask(&options, question);
		case DONOR_HELP:
			donor_options_help();
			break;
		case DONOR_VERSION:
			puts("ebb-donor " EBB_VERSION);
			break;
		}
	}
	if (r)
		fprintf(stderr, "ebb-donor: %s\n", e.desc);
	return r ? 1 : 0;
}
