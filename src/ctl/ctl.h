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
/*
 * The same in two steps. run_call(): gives the whole answer, when it returns CTL_OK. run_show():
 * prints it, or the error that it is, by show (with arg) in place of a table, and consumes it.
 */
typedef int (*run_show_fn)(const json_t *value, void *arg);
int run_call(struct ctl *ctl, const char *name, int n, char **words, json_t **answer);
int run_show(struct ctl *ctl, const char *name, json_t *answer, run_show_fn show, void *arg);
/* vm-heatmap and vm-wss, drawn. */
int run_heatmap(struct ctl *ctl, int n, char **words);
int run_wss(struct ctl *ctl, int n, char **words);
/* Prints events until it is stopped. */
int run_watch(struct ctl *ctl);
/* The live table; once: printed once, for scripts. */
int run_top(struct ctl *ctl, int n, char **words);

/* Since the last time it was asked: Ctrl-C was pressed. Installs the handler when first called. */
void interrupt_catch(void);
bool interrupt_taken(void);

#endif
