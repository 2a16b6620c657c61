/* SPDX-License-Identifier: BSD-3-Clause */
/* main.c: ebb-sim: what a policy makes of a trace. */
#include <errno.h>
#include <jansson.h>
#include <libgen.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/size.h"
#include "sim/generate.h"
#include "sim/reference.h"
#include "sim/replay.h"

/*
 * Theory of operation
 *
 * `generate` writes a trace of a known kind (generate.c), `info` tells what is in one, `replay`
 * runs it (replay.c) under every limit, reclaimer and prefetcher that is named, in every
 * combination, and prints a row each, below those of the references (reference.c). Everything but
 * the time that policies take is the same each time: there is no clock and no thread in it.
 */

#define LIMITS_MAX   16
#define POLICIES_MAX 16
#define OPTIONS_MAX  16

struct policy_word {
	char *text; /* NAME[,OPTION=VALUE...], cut up */
	const char *name;
	struct ebb_policy_option opts[OPTIONS_MAX];
	uint32_t n;
	struct policy *policy;
};

struct sim {
	bool json;
	struct plugin_path path;
	char dirs[2][PATH_MAX];
	struct sequence sequence;
	struct replay_costs costs;
	struct policy_word reclaim[POLICIES_MAX], prefetch[POLICIES_MAX];
	unsigned int n_reclaim, n_prefetch;
	uint64_t limit[LIMITS_MAX]; /* units; 0: none */
	unsigned int n_limits;
	json_t *rows;
};

static const char usage[] =
	"usage: ebb-sim generate KIND file=PATH [name=value ...]\n"
	"       ebb-sim info file=PATH\n"
	"       ebb-sim [--json] replay file=PATH [limit=PERCENT%|BYTES|none ...]\n"
	"               [reclaim=POLICY[,OPTION=VALUE ...] ...] [prefetch=POLICY[,...] ...]\n"
	"               [name=value ...]\n"
	"\n"
	"A policy is the name of one in the plugin folder, or the path of a shared object.\n"
	"limit: of what is touched, or of bytes; default 50%. reclaim: default clock.\n"
	"prefetch: default null. All combinations are replayed.\n"
	"\n"
	"generate: units=32768 accesses=4000000 seed=1 alpha=0.99 (zipf) hot=10 hot-part=90\n"
	"  (hotspot, phase) stride=7 (strided) phases=4 (phase) threads=1 fill=1\n"
	"replay: access-ns=1000 fault-ns=15000 zero-ns=3000 minor-ns=2500 prefetch-ns=5000\n"
	"  window-ms=2000 seed=1 plugin-dir=DIR\n"
	"\n"
	"Kinds:\n";

static int fail(const struct error *e)
{
	fprintf(stderr, "ebb-sim: %s\n", e->desc);
	return 1;
}

/* The value of a word NAME=VALUE; NULL when it is another one. */
static char *value_of(char *word, const char *name)
{
	size_t len = strlen(name);

	return strncmp(word, name, len) == 0 && word[len] == '=' ? word + len + 1 : NULL;
}

static bool take_number(char *word, const char *name, uint64_t min, uint64_t max, uint64_t *out,
			int *bad)
{
	char *value = value_of(word, name), *end;
	uint64_t n;

	if (!value)
		return false;
	errno = 0;
	n = strtoull(value, &end, 10);
	if (*value < '0' || *value > '9' || *end || errno || n < min || n > max)
		*bad = 1;
	else
		*out = n;
	return true;
}

/* ---- generate, info ---- */

static int run_generate(int n, char **words)
{
	struct generate_options o = {.units = 32768,
				     .accesses = 4000000,
				     .seed = 1,
				     .alpha = 0.99,
				     .stride = 7,
				     .phases = 4,
				     .hot = 10,
				     .hot_part = 90,
				     .threads = 1,
				     .fill = 1};
	uint64_t hot = o.hot, part = o.hot_part, threads = o.threads, fill = o.fill;
	const char *path = NULL, *kind = n ? words[0] : "";
	struct error e;
	int bad = 0;

	for (int k = 1; k < n && !bad; k++) {
		char *value, *end = NULL;

		if ((value = value_of(words[k], "file"))) {
			path = value;
		} else if ((value = value_of(words[k], "alpha"))) {
			o.alpha = strtod(value, &end);
			bad = *end || !(o.alpha >= 0 && o.alpha < 10);
		} else if (!take_number(words[k], "units", 1, UINT64_C(1) << 28, &o.units, &bad) &&
			   !take_number(words[k], "accesses", 1, UINT64_C(1) << 28, &o.accesses,
					&bad) &&
			   !take_number(words[k], "seed", 0, UINT64_MAX, &o.seed, &bad) &&
			   !take_number(words[k], "stride", 1, 1 << 20, &o.stride, &bad) &&
			   !take_number(words[k], "phases", 1, 1000, &o.phases, &bad) &&
			   !take_number(words[k], "hot", 1, 100, &hot, &bad) &&
			   !take_number(words[k], "hot-part", 0, 100, &part, &bad) &&
			   !take_number(words[k], "threads", 1, 1000, &threads, &bad) &&
			   !take_number(words[k], "fill", 0, 1, &fill, &bad)) {
			bad = 1;
		}
		if (bad)
			fprintf(stderr, "ebb-sim: %s: no such option, or a bad value\n", words[k]);
	}
	if (bad || !path) {
		if (!bad)
			fprintf(stderr, "ebb-sim: generate needs a kind and file=PATH\n");
		return 2;
	}
	o.hot = (uint32_t)hot;
	o.hot_part = (uint32_t)part;
	o.threads = (uint32_t)threads;
	o.fill = (uint32_t)fill;
	if (o.stride > o.units)
		o.stride = o.units;
	return generate(kind, path, &o, &e) ? fail(&e) : 0;
}

static int run_info(struct sim *sim)
{
	const struct sequence *s = &sim->sequence;
	char size[16];

	if (sim->json) {
		json_t *o =
			json_pack("{s:I, s:I, s:I, s:I, s:I, s:I}", "units", (json_int_t)s->units,
				  "unit-bytes", (json_int_t)s->unit_bytes, "touched-units",
				  (json_int_t)s->distinct, "accesses", (json_int_t)s->n, "windows",
				  (json_int_t)s->windows, "lost-faults", (json_int_t)s->lost);

		json_dumpf(o, stdout, JSON_INDENT(2));
		putchar('\n');
		json_decref(o);
		return 0;
	}
	printf("units %llu of %u bytes (%s), touched %llu\naccesses %llu, windows %llu, "
	       "faults lost in recording %llu\n",
	       (unsigned long long)s->units, s->unit_bytes,
	       size_format(s->units * s->unit_bytes, size), (unsigned long long)s->distinct,
	       (unsigned long long)s->n, (unsigned long long)s->windows,
	       (unsigned long long)s->lost);
	return 0;
}

/* ---- replay ---- */

static double part(uint64_t a, uint64_t b)
{
	return b ? (double)a / (double)b : 0;
}

/* A policy's own numbers. */
static json_t *stats_of(const struct replay_result *r, int role)
{
	json_t *o = json_object();

	for (uint32_t k = 0; k < r->n_stats[role]; k++)
		json_object_set_new(o, r->stats[role][k].name,
				    json_integer((json_int_t)r->stats[role][k].value));
	return o;
}

/* The columns of a row, in print and in JSON. */
static void add_row(struct sim *sim, uint64_t limit, const char *reclaim, const char *prefetch,
		    const struct replay_result *r, const struct reference *ref)
{
	json_t *o = json_pack(
		"{s:I, s:s, s:s, s:I, s:I, s:I, s:f, s:f, s:f}", "limit-units", (json_int_t)limit,
		"reclaim", reclaim, "prefetch", prefetch, "accesses", (json_int_t)r->accesses,
		"first-touches", (json_int_t)r->first, "misses", (json_int_t)r->misses, "hit-rate",
		1 - part(r->misses + r->first, r->accesses), "misses-to-lru",
		part(r->misses, ref->lru), "misses-to-optimum", part(r->misses, ref->opt));

	json_object_set_new(o, "misses-to-fixed", json_real(part(r->misses, ref->fixed)));
	if (*prefetch) {
		json_t *more = json_pack(
			"{s:I, s:I, s:I, s:I, s:I, s:I, s:f, s:f, s:f, s:I, s:I, s:I, s:I, s:f, "
			"s:f, s:I, s:s}",
			"refaults", (json_int_t)r->refaults, "evictions", (json_int_t)r->evictions,
			"prefetched", (json_int_t)r->prefetched, "prefetch-used",
			(json_int_t)r->used, "prefetch-unused", (json_int_t)r->unused,
			"prefetch-late", (json_int_t)r->late, "accuracy",
			part(r->used, r->used + r->unused), "coverage",
			part(r->used, r->used + r->misses), "timeliness",
			part(r->used, r->used + r->late), "cleared-units", (json_int_t)r->cleared,
			"minor-faults", (json_int_t)r->minor, "named-in-vain",
			(json_int_t)r->named_in_vain, "swept", (json_int_t)r->swept, "saved",
			r->saved, "slowdown", r->slowdown, "state-bytes",
			(json_int_t)r->state_bytes, "failed", r->failed);

		json_object_update(o, more);
		json_decref(more);
		json_object_set_new(o, "reclaim-stats", stats_of(r, 0));
		json_object_set_new(o, "prefetch-stats", stats_of(r, 1));
	}
	json_array_append_new(sim->rows, o);
}

static void print_rows(const struct sim *sim)
{
	json_t *o;
	size_t k;

	printf("%10s  %-22s %-14s %9s %8s %6s %6s %9s %6s %6s %6s %6s %6s\n", "limit", "reclaim",
	       "prefetch", "misses", "hit-rate", "to-lru", "to-opt", "refaults", "saved", "slower",
	       "accur", "cover", "timely");
	json_array_foreach(sim->rows, k, o) {
		printf("%10lld  %-22s %-14s %9lld %8.4f %6.3f %6.3f",
		       (long long)json_integer_value(json_object_get(o, "limit-units")),
		       json_string_value(json_object_get(o, "reclaim")),
		       json_string_value(json_object_get(o, "prefetch")),
		       (long long)json_integer_value(json_object_get(o, "misses")),
		       json_real_value(json_object_get(o, "hit-rate")),
		       json_real_value(json_object_get(o, "misses-to-lru")),
		       json_real_value(json_object_get(o, "misses-to-optimum")));
		if (json_object_get(o, "saved"))
			printf(" %9lld %6.3f %6.3f %6.3f %6.3f %6.3f",
			       (long long)json_integer_value(json_object_get(o, "refaults")),
			       json_real_value(json_object_get(o, "saved")),
			       json_real_value(json_object_get(o, "slowdown")),
			       json_real_value(json_object_get(o, "accuracy")),
			       json_real_value(json_object_get(o, "coverage")),
			       json_real_value(json_object_get(o, "timeliness")));
		putchar('\n');
		if (json_object_get(o, "failed") &&
		    *json_string_value(json_object_get(o, "failed")))
			printf("            %s\n", json_string_value(json_object_get(o, "failed")));
	}
}

static void add_reference(struct sim *sim, uint64_t limit, const char *name, uint64_t misses,
			  const struct reference *ref)
{
	const struct replay_result r = {
		.accesses = sim->sequence.n, .first = ref->first, .misses = misses};

	add_row(sim, limit, name, "", &r, ref);
}

static int replay_one(struct sim *sim, uint64_t limit, const struct policy_word *reclaim,
		      const struct policy_word *prefetch, const struct reference *ref,
		      struct error *e)
{
	const struct replay_setup setup = {.sequence = &sim->sequence,
					   .costs = sim->costs,
					   .limit_units = limit,
					   .reclaim = reclaim->policy,
					   .prefetch = prefetch->policy,
					   .reclaim_opts = reclaim->opts,
					   .n_reclaim_opts = reclaim->n,
					   .prefetch_opts = prefetch->opts,
					   .n_prefetch_opts = prefetch->n};
	struct replay_result result;
	char name[2][64];
	int r = replay_run(&setup, &result, e);

	if (r)
		return r;
	for (int k = 0; k < 2; k++) {
		const struct policy_word *w = k ? prefetch : reclaim;

		snprintf(name[k], sizeof(name[k]), "%s", policy_name(w->policy));
		for (uint32_t i = 0; i < w->n; i++)
			snprintf(name[k] + strlen(name[k]), sizeof(name[k]) - strlen(name[k]),
				 ",%s=%s", w->opts[i].name, w->opts[i].value);
	}
	add_row(sim, limit, name[0], name[1], &result, ref);
	return 0;
}

static int load_policies(struct sim *sim, struct policy_word *words, unsigned int n,
			 struct error *e)
{
	int r = 0;

	for (unsigned int k = 0; k < n && !r; k++) {
		bool file = strchr(words[k].name, '/') != NULL;
		char name[PLUGIN_NAME_MAX], *dot;

		snprintf(name, sizeof(name), "%s",
			 file ? strrchr(words[k].name, '/') + 1 : words[k].name);
		dot = strrchr(name, '.');
		if (file && dot)
			*dot = '\0';
		r = policy_load(&sim->path, name, file ? words[k].name : NULL, &words[k].policy, e);
	}
	return r;
}

static int run_replay(struct sim *sim)
{
	struct reference ref;
	struct error e;
	int r = load_policies(sim, sim->reclaim, sim->n_reclaim, &e);

	if (!r)
		r = load_policies(sim, sim->prefetch, sim->n_prefetch, &e);
	sim->rows = json_array();
	for (unsigned int l = 0; l < sim->n_limits && !r; l++) {
		uint64_t room = sim->limit[l] ? sim->limit[l] : sim->sequence.distinct;

		if (reference_run(&sim->sequence, room, &ref)) {
			r = error_set(&e, ENOMEM, ERROR_GENERIC, "out of memory");
			break;
		}
		add_reference(sim, sim->limit[l], "(lru)", ref.lru, &ref);
		add_reference(sim, sim->limit[l], "(fixed set)", ref.fixed, &ref);
		add_reference(sim, sim->limit[l], "(optimum)", ref.opt, &ref);
		for (unsigned int a = 0; a < sim->n_reclaim && !r; a++)
			for (unsigned int b = 0; b < sim->n_prefetch && !r; b++)
				r = replay_one(sim, sim->limit[l], &sim->reclaim[a],
					       &sim->prefetch[b], &ref, &e);
	}
	if (r) {
		fail(&e);
	} else if (sim->json) {
		json_dumpf(sim->rows, stdout, JSON_INDENT(1) | JSON_REAL_PRECISION(6));
		putchar('\n');
	} else {
		print_rows(sim);
	}
	json_decref(sim->rows);
	for (unsigned int k = 0; k < sim->n_reclaim; k++)
		policy_unload(sim->reclaim[k].policy);
	for (unsigned int k = 0; k < sim->n_prefetch; k++)
		policy_unload(sim->prefetch[k].policy);
	return r ? 1 : 0;
}

/* ---- the command line ---- */

static bool take_policy(char *value, struct policy_word *list, unsigned int *n)
{
	struct policy_word *w = &list[*n];
	char *rest;

	if (*n == POLICIES_MAX)
		return false;
	*w = (struct policy_word){.text = value};
	w->name = strtok_r(value, ",", &rest);
	for (char *opt; w->name && (opt = strtok_r(NULL, ",", &rest));) {
		char *equals = strchr(opt, '=');

		if (!equals || w->n == OPTIONS_MAX)
			return false;
		*equals = '\0';
		w->opts[w->n++] = (struct ebb_policy_option){opt, equals + 1};
	}
	++*n;
	return w->name != NULL;
}

/* After the trace is read: percents are of what it touches. */
static bool take_limit(struct sim *sim, const char *value)
{
	const struct sequence *s = &sim->sequence;
	char *end;
	uint64_t n;

	if (sim->n_limits == LIMITS_MAX)
		return false;
	if (strcmp(value, "none") == 0) {
		sim->limit[sim->n_limits++] = 0;
		return true;
	}
	n = strtoull(value, &end, 10);
	if (end != value && strcmp(end, "%") == 0)
		n = s->distinct * n / 100;
	else if (size_parse(value, &n) == 0)
		n /= s->unit_bytes;
	else
		return false;
	if (!n || n > s->units)
		return false;
	sim->limit[sim->n_limits++] = n;
	return true;
}

static bool take_word(struct sim *sim, char *word)
{
	uint64_t ms = sim->costs.window_ns / NS_PER_MS;
	char *value;
	int bad = 0;

	if ((value = value_of(word, "reclaim")))
		return take_policy(value, sim->reclaim, &sim->n_reclaim);
	if ((value = value_of(word, "prefetch")))
		return take_policy(value, sim->prefetch, &sim->n_prefetch);
	if ((value = value_of(word, "limit")))
		return take_limit(sim, value);
	if ((value = value_of(word, "plugin-dir"))) {
		sim->path.dirs[0] = value;
		sim->path.n_dirs = 1;
		return true;
	}
	if (value_of(word, "file"))
		return true;
	if (take_number(word, "window-ms", 1, 3600000, &ms, &bad)) {
		sim->costs.window_ns = ms * NS_PER_MS;
		return !bad;
	}
	return (take_number(word, "access-ns", 1, NS_PER_S, &sim->costs.access_ns, &bad) ||
		take_number(word, "fault-ns", 0, NS_PER_S, &sim->costs.fault_ns, &bad) ||
		take_number(word, "zero-ns", 0, NS_PER_S, &sim->costs.zero_ns, &bad) ||
		take_number(word, "minor-ns", 0, NS_PER_S, &sim->costs.minor_ns, &bad) ||
		take_number(word, "prefetch-ns", 1, NS_PER_S, &sim->costs.prefetch_ns, &bad) ||
		take_number(word, "seed", 0, UINT64_MAX, &sim->costs.seed, &bad)) &&
	       !bad;
}

/* Beside this program (a build tree), else where the daemon's plugins are installed. */
static void find_plugins(struct sim *sim)
{
	ssize_t n = readlink("/proc/self/exe", sim->dirs[0], PATH_MAX - 1);

	if (n > 0) {
		sim->dirs[0][n] = '\0';
		sim->path.dirs[sim->path.n_dirs++] = dirname(sim->dirs[0]);
	}
	sim->path.dirs[sim->path.n_dirs++] = EBB_PLUGIN_DIR;
}

static int on_trace(struct sim *sim, bool replay, int n, char **words)
{
	static char clock[] = "reclaim=clock", null[] = "prefetch=null", half[] = "limit=50%";
	const char *path = NULL;
	struct error e;
	int r = 0;

	for (int k = 0; k < n; k++)
		if (value_of(words[k], "file"))
			path = value_of(words[k], "file");
	if (!path) {
		fprintf(stderr, "ebb-sim: file=PATH is missing\n");
		return 2;
	}
	if (sequence_read(&sim->sequence, path, &e))
		return fail(&e);
	find_plugins(sim);
	for (int k = 0; k < n && !r; k++)
		if (!take_word(sim, words[k])) {
			fprintf(stderr, "ebb-sim: %s: no such option, or a bad value\n", words[k]);
			r = 2;
		}
	if (!sim->n_reclaim)
		take_word(sim, clock);
	if (!sim->n_prefetch)
		take_word(sim, null);
	if (!sim->n_limits)
		take_word(sim, half);
	if (!r)
		r = replay ? run_replay(sim) : run_info(sim);
	sequence_free(&sim->sequence);
	return r;
}

int main(int argc, char **argv)
{
	struct sim *sim = calloc(1, sizeof(*sim));
	int first = 1, r = 2;

	if (!sim)
		return 1;
	sim->costs = (struct replay_costs){.access_ns = 1000,
					   .fault_ns = 15000,
					   .zero_ns = 3000,
					   .minor_ns = 2500,
					   .prefetch_ns = 5000,
					   .window_ns = 2 * NS_PER_S,
					   .seed = 1};
	if (argc > 1 && strcmp(argv[1], "--json") == 0) {
		sim->json = true;
		first = 2;
	}
	if (first < argc && strcmp(argv[first], "generate") == 0) {
		r = run_generate(argc - first - 1, argv + first + 1);
	} else if (first < argc &&
		   (strcmp(argv[first], "replay") == 0 || strcmp(argv[first], "info") == 0)) {
		r = on_trace(sim, argv[first][0] == 'r', argc - first - 1, argv + first + 1);
	} else {
		bool help = first < argc && strcmp(argv[first], "--help") == 0;

		fputs(usage, help ? stdout : stderr);
		for (const char *const *k = generate_kinds; *k; k++)
			fprintf(help ? stdout : stderr, "  %s\n", *k);
		r = help ? 0 : 2;
	}
	free(sim);
	return r;
}
