/* SPDX-License-Identifier: BSD-3-Clause */
/* config.c: the command line, and the docs of the configuration. */
#include "daemon/config.h"

#include <errno.h>
#include <getopt.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/log.h"

struct key_doc {
	const char *name, *type, *standard, *help;
};

static const struct key_doc docs[] = {
#define KEY(member, key, kind, standard_text, help_text) {key, #kind, standard_text, help_text},
#include "daemon/config_keys.def"
#undef KEY
};
#define N_DOCS (sizeof(docs) / sizeof(docs[0]))

static const char help[] =
	"usage: ebbd [--config FILE] [--runtime-dir DIR] [--plugin-dir DIR]... [--log-level LEVEL]\n"
	"\n"
	"Keeps the memory of this host's VMs where it is needed. Stays in the foreground.\n"
	"\n"
	"  --config FILE      configuration; default: " EBB_CONFIG_FILE ", if there is one\n"
	"  --runtime-dir DIR  folder of the sockets; default: /run/ebb\n"
	"  --plugin-dir DIR   folder with backends/ and policies/, before the usual ones\n"
	"  --log-level LEVEL  error, warning, info or debug\n"
	"  --version\n"
	"  --help\n";

void config_write_help(FILE *out)
{
	fputs(help, out);
}

static const char *value_word(const struct key_doc *d)
{
	if (strcmp(d->type, "NUMBER") == 0)
		return "number";
	if (strcmp(d->type, "SIZE") == 0)
		return "size";
	if (strcmp(d->type, "FLAG") == 0)
		return "yes|no";
	return strcmp(d->type, "LEVEL") == 0 ? "level" : "text";
}

void config_write_mdoc(FILE *out)
{
	fprintf(out, ".Bl -tag -width Ds\n");
	for (size_t i = 0; i < N_DOCS; i++) {
		char text[400];

		fprintf(out, ".It Cm %s No = Ar %s\n", docs[i].name, value_word(&docs[i]));
		snprintf(text, sizeof(text), "%s.", docs[i].help);
		schema_mdoc_text(text, out);
		if (*docs[i].standard)
			fprintf(out, "Default: %s.\n", docs[i].standard);
	}
	fprintf(out, ".El\n");
}

void config_write_sample(FILE *out)
{
	fprintf(out, "# Sample of ebbd.conf(5). Every key may be left out.\n\n");
	for (size_t i = 0; i < N_DOCS; i++) {
		fprintf(out, "# %s.\n", docs[i].help);
		if (*docs[i].standard)
			fprintf(out, "# Default: %s.\n", docs[i].standard);
		fprintf(out, "#%s = \n\n", docs[i].name);
	}
	fprintf(out, "# Backends beside the one called \"compressed\", which is always there.\n"
		     "# Keys other than driver are the driver's options.\n"
		     "#[backend strong]\n#driver = compressed\n#codec = zstd\n\n"
		     "# Settings of a VM; [vm *] is for every VM.\n"
		     "#[vm guest1]\n#limit = 2G\n#floor = 256M\n#weight = 100\n"
		     "#tiers = compressed\n#reclaim-policy = clock\n"
		     "#prefetch-policy = sequential\n\n"
		     "# A policy from somewhere else than the plugin folders.\n"
		     "#[policy mine]\n#file = /opt/policies/mine.so\n");
}

enum {
	OPT_CONFIG = 256,
	OPT_RUNTIME,
	OPT_PLUGIN,
	OPT_LEVEL,
	OPT_TAKE_OVER,
	OPT_HELP,
	OPT_VERSION,
	OPT_MAN,
	OPT_SAMPLE
};

static const struct option options[] = {
	{"config", required_argument, NULL, OPT_CONFIG},
	{"runtime-dir", required_argument, NULL, OPT_RUNTIME},
	{"plugin-dir", required_argument, NULL, OPT_PLUGIN},
	{"log-level", required_argument, NULL, OPT_LEVEL},
	{"help", no_argument, NULL, OPT_HELP},
	{"version", no_argument, NULL, OPT_VERSION},
	/* Given by the daemon that this one replaces. */
	{"take-over", required_argument, NULL, OPT_TAKE_OVER},
	/* For scripts/gen-docs. */
	{"dump-config-mdoc", no_argument, NULL, OPT_MAN},
	{"dump-config-sample", no_argument, NULL, OPT_SAMPLE},
	{NULL, 0, NULL, 0},
};

/* Called twice: for the file's name first, and for what goes over the file afterwards. */
static int walk_options(struct config *c, int argc, char **argv, bool first,
			enum config_action *action, struct error *e)
{
	int opt, r = 0;

	optind = 1;
	opterr = 0;
	/* NOLINTNEXTLINE(concurrency-mt-unsafe): on SIGHUP it is the loop's thread alone, too */
	while (!r && (opt = getopt_long(argc, argv, ":", options, NULL)) != -1) {
		switch (opt) {
		case OPT_CONFIG:
			if (!first)
				break;
			free(c->file);
			c->file = strdup(optarg);
			c->file_given = true;
			break;
		case OPT_RUNTIME:
		case OPT_PLUGIN:
		case OPT_LEVEL:
			if (first == (opt == OPT_PLUGIN)) /* folders of the command line first */
				r = config_set(c,
					       opt == OPT_RUNTIME  ? "runtime-dir"
					       : opt == OPT_PLUGIN ? "plugin-dir"
								   : "log-level",
					       optarg, e);
			break;
		case OPT_TAKE_OVER:
			c->take_over = (int)strtol(optarg, NULL, 10);
			break;
		case OPT_HELP:
			*action = CONFIG_HELP;
			break;
		case OPT_VERSION:
			*action = CONFIG_VERSION;
			break;
		case OPT_MAN:
			*action = CONFIG_MAN;
			break;
		case OPT_SAMPLE:
			*action = CONFIG_SAMPLE;
			break;
		case ':':
			return error_set(e, EINVAL, ERROR_ARGUMENT, "option %s needs a value",
					 argv[optind - 1]);
		default:
			return error_set(e, EINVAL, ERROR_ARGUMENT, "option %s is not known",
					 argv[optind - 1]);
		}
	}
	if (!r && optind < argc)
		return error_set(e, EINVAL, ERROR_ARGUMENT, "'%s': there is nothing to be named",
				 argv[optind]);
	return r;
}

int config_read(struct config *c, const struct schema *schema, int argc, char **argv,
		enum config_action *action, struct error *e)
{
	int r;

	*action = CONFIG_RUN;
	if (config_init(c))
		return error_set(e, ENOMEM, ERROR_GENERIC, "no memory");
	r = walk_options(c, argc, argv, true, action, e);
	if (r || *action != CONFIG_RUN)
		return r;
	if (!c->file_given && access(EBB_CONFIG_FILE, F_OK) == 0)
		c->file = strdup(EBB_CONFIG_FILE);
	if (c->file)
		r = config_read_file(c, schema, c->file, e);
	return r ? r : walk_options(c, argc, argv, false, action, e);
}
