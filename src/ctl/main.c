/* SPDX-License-Identifier: BSD-3-Clause */
/* main.c: ebbctl. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ctl/ctl.h"

/*
 * Theory of operation
 *
 * ebbctl knows the control socket's commands from the same declaration as the daemon
 * (proto/control.json): it converts words by the declared types, shows answers by them, and has the
 * help from there. One connection, one command; a long one is given a job name, so that its
 * progress can be told from others' and Ctrl-C can cancel it.
 */

#define DEFAULT_SOCKET "/run/ebb/control.sock"

static void help_all(const struct schema *s, FILE *out)
{
	json_t *c;
	size_t i;

	fprintf(out,
		"usage: ebbctl [--socket PATH] [--json] COMMAND [VM] [name=value ...]\n"
		"\n"
		"  --socket PATH  control socket; default: EBB_CONTROL, then " DEFAULT_SOCKET "\n"
		"  --json         print the daemon's answer as it is\n"
		"\n"
		"Commands:\n"
		"  %-20s %s\n"
		"  %-20s %s\n"
		"  %-20s %s\n"
		"  %-20s %s\n"
		"  %-20s %s\n"
		"  %-20s %s\n",
		"help [COMMAND]", "This help, or that of one command", "top [--once]",
		"Live table of the VMs", "watch", "Events, as they come", "trace",
		"The same as vm-trace", "heatmap [--svg FILE]",
		"vm-heatmap, drawn in the terminal or to a file", "wss", "vm-wss, drawn");
	json_array_foreach(json_object_get(schema_root(s), "commands"), i, c) {
		if (strcmp(schema_text(c, "name"), "qmp_capabilities") != 0)
			fprintf(out, "  %-20s %s\n", schema_text(c, "name"),
				schema_text(c, "summary"));
	}
}

static int help_one(const struct schema *s, const char *name)
{
	const json_t *c = schema_command(s, name);
	json_t *arg;
	char *usage;
	size_t i;

	if (!c) {
		fprintf(stderr, "ebbctl: there is no command '%s'\n", name);
		return CTL_USAGE;
	}
	usage = schema_usage(c);
	printf("usage: ebbctl %s\n\n%s.", usage ? usage : name, schema_text(c, "summary"));
	free(usage);
	if (*schema_text(c, "help"))
		printf(" %s", schema_text(c, "help"));
	printf("\n\n");
	json_array_foreach(json_object_get(c, "arguments"), i, arg) {
		printf("  %-22s %s%s\n", schema_text(arg, "name"), schema_text(arg, "help"),
		       schema_flag(arg, "optional") ? " (optional)" : "");
	}
	printf("\nReturns: %s\n", schema_text(json_object_get(c, "returns"), "help"));
	return CTL_OK;
}

static int run(struct ctl *ctl, int n, char **words)
{
	const char *command = words[0];

	if (strcmp(command, "help") == 0) {
		if (n > 1)
			return help_one(ctl->schema, words[1]);
		help_all(ctl->schema, stdout);
		return CTL_OK;
	}
	if (strcmp(command, "top") == 0)
		return run_top(ctl, n - 1, words + 1);
	if (strcmp(command, "watch") == 0)
		return run_watch(ctl);
	if (strcmp(command, "heatmap") == 0)
		return run_heatmap(ctl, n - 1, words + 1);
	if (strcmp(command, "wss") == 0)
		return run_wss(ctl, n - 1, words + 1);
	/* For scripts/gen-docs. */
	if (strcmp(command, "dump-docs") == 0 && n == 2) {
		if (strcmp(words[1], "mdoc") == 0)
			schema_write_mdoc(ctl->schema, stdout);
		else
			schema_write_markdown(ctl->schema, stdout);
		return CTL_OK;
	}
	if (strcmp(command, "trace") == 0)
		command = "vm-trace";
	return run_command(ctl, command, n - 1, words + 1);
}

/* Takes the options before the command; returns where it is, or -1. */
static int take_options(struct ctl *ctl, int argc, char **argv, int *done)
{
	int i = 1;

	for (; i < argc && strncmp(argv[i], "--", 2) == 0; i++) {
		if (strcmp(argv[i], "--json") == 0) {
			ctl->json = true;
		} else if (strcmp(argv[i], "--socket") == 0 && i + 1 < argc) {
			ctl->socket = argv[++i];
		} else if (strncmp(argv[i], "--socket=", 9) == 0) {
			ctl->socket = argv[i] + 9;
		} else if (strcmp(argv[i], "--help") == 0) {
			help_all(ctl->schema, stdout);
			*done = 1;
			return i;
		} else if (strcmp(argv[i], "--version") == 0) {
			puts("ebbctl " EBB_VERSION);
			*done = 1;
			return i;
		} else {
			fprintf(stderr, "ebbctl: option %s is not known, or needs a value\n",
				argv[i]);
			return -1;
		}
	}
	return i;
}

int main(int argc, char **argv)
{
	struct ctl ctl = {.socket = getenv("EBB_CONTROL")}; /* NOLINT(concurrency-mt-unsafe) */
	struct error e;
	int first, done = 0, r;

	if (!ctl.socket || !*ctl.socket)
		ctl.socket = DEFAULT_SOCKET;
	if (schema_new(&ctl.schema, &e))
		return ctl_fail(&e);
	first = take_options(&ctl, argc, argv, &done);
	if (first < 0) {
		r = CTL_USAGE;
	} else if (done) {
		r = CTL_OK;
	} else if (first == argc) {
		help_all(ctl.schema, stderr);
		r = CTL_USAGE;
	} else {
		r = run(&ctl, argc - first, argv + first);
	}
	schema_free(ctl.schema);
	return r;
}
