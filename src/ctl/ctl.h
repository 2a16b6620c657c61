/* SPDX-License-Identifier: BSD-3-Clause */
/* ctl.h: what the files of ebbctl share. */
#ifndef CTL_CTL_H
#define CTL_CTL_H

#include <stdbool.h>

#include "ctl/connection.h"
#include "schema/schema.h"

enum ctl_exit { CTL_OK = 0, CTL_FAILED = 1, CTL_USAGE = 2 };

struct ctl {
	struct schema *schema;
	const char *socket;
	bool json;
};

/* Says why on stderr, and returns CTL_FAILED. */
int ctl_fail(const struct error *e);

/* One command of the control socket, with its words. */
int run_command(struct ctl *ctl, const char *name, int n, char **words);
/* Prints events until it is stopped. */
int run_watch(struct ctl *ctl);
/* The live table; once: printed once, for scripts. */
int run_top(struct ctl *ctl, int n, char **words);

/* Since the last time it was asked: Ctrl-C was pressed. Installs the handler when first called. */
void interrupt_catch(void);
bool interrupt_taken(void);

#endif
