/* SPDX-License-Identifier: BSD-3-Clause */
/* config.h: the daemon's configuration: command line over file over defaults. */
#ifndef DAEMON_CONFIG_H
#define DAEMON_CONFIG_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include "base/error.h"
#include "plugin/plugin.h"
#include "schema/schema.h"

struct config_list {
	char *items[PLUGIN_DIRS_MAX];
	int n;
};

struct config {
	char *file; /* NULL: none was read */
	bool file_given;
	int take_over; /* -1, or the socket to the daemon that this one replaces */
	/* The keys of config_keys.def; texts are owned. */
	char *runtime_dir, *socket_group, *metrics_listen;
	struct config_list plugin_dirs;
	uint64_t fault_threads, evict_threads, window_ms, quarantine_ms, host_budget;
	uint64_t log_level;
	bool poll_loads, thp_kept_whole, allow_quarantine, folio_probe, lock_memory;
	/* What the sections [backend], [policy] and [vm] say, as control/settings.h has it. */
	json_t *settings;
};

enum config_action { CONFIG_RUN, CONFIG_HELP, CONFIG_VERSION, CONFIG_MAN, CONFIG_SAMPLE };

/*
 * Reads the command line and the file. Gives a filled config (free it with config_free() in any
 * case). -EINVAL with the option, or the file and line, named.
 */
int config_read(struct config *c, const struct schema *schema, int argc, char **argv,
		enum config_action *action, struct error *e);
void config_free(struct config *c);

void config_write_help(FILE *out);
/* The list of keys for ebbd.conf(5), and the sample file. */
void config_write_mdoc(FILE *out);
void config_write_sample(FILE *out);

/* ---- config_file.c ---- */
/* The defaults. */
int config_init(struct config *c);
/* Sets one key; "no such key" is -ENOENT, a bad value -EINVAL. */
int config_set(struct config *c, const char *key, const char *value, struct error *e);
int config_read_file(struct config *c, const struct schema *schema, const char *path,
		     struct error *e);

#endif
