/* SPDX-License-Identifier: BSD-3-Clause */
/* metrics_text.c: metrics as text for Prometheus and OpenMetrics, and as JSON. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "control/metrics.h"

struct writer {
	FILE *out;
	enum metrics_format format;
	const char *name;
	char name_buf[96];
	enum metric_type type;
};

static const char *type_name(enum metric_type type)
{
	static const char *const names[] = {"gauge", "counter", "histogram", "info"};

	return names[type];
}

/* What samples of the family are called: the metric's name and the suffix of its type. */
static const char *sample_suffix(enum metric_type type)
{
	return type == METRIC_COUNTER ? "_total" : type == METRIC_INFO ? "_info" : "";
}

static void text_family(void *ctx, const char *name, enum metric_type type, const char *unit,
			const char *help)
{
	struct writer *w = ctx;
	bool open = w->format == METRICS_OPENMETRICS;
	/* The older format declares the sample's name, OpenMetrics the family's. */
	const char *suffix = open ? "" : sample_suffix(type);
	const char *word = !open && type == METRIC_INFO ? "gauge" : type_name(type);

	snprintf(w->name_buf, sizeof(w->name_buf), "%s", name);
	w->type = type;
	fprintf(w->out, "# TYPE %s%s %s\n", name, suffix, word);
	if (open && *unit)
		fprintf(w->out, "# UNIT %s %s\n", name, unit);
	fprintf(w->out, "# HELP %s%s %s.\n", name, suffix, help);
}

/* A label's value may come from a client: a VM's name. */
static void write_escaped(const char *text, FILE *out)
{
	for (; *text; text++) {
		if (*text == '\\' || *text == '"')
			fputc('\\', out);
		if (*text == '\n')
			fputs("\\n", out);
		else
			fputc(*text, out);
	}
}

static void write_labels(const struct metric_label *labels, unsigned int n, const char *le,
			 FILE *out)
{
	if (!n && !le)
		return;
	fputc('{', out);
	for (unsigned int i = 0; i < n; i++) {
		fprintf(out, "%s%s=\"", i ? "," : "", labels[i].name);
		write_escaped(labels[i].value, out);
		fputc('"', out);
	}
	if (le)
		fprintf(out, "%sle=\"%s\"", n ? "," : "", le);
	fputc('}', out);
}

static void text_sample(void *ctx, const struct metric_label *labels, unsigned int n, double value,
			bool integer)
{
	struct writer *w = ctx;

	fprintf(w->out, "%s%s", w->name_buf, sample_suffix(w->type));
	write_labels(labels, n, NULL, w->out);
	fprintf(w->out, integer ? " %.0f\n" : " %.9g\n", value);
}

static void text_histogram(void *ctx, const struct metric_label *labels, unsigned int n,
			   const struct hist *h)
{
	struct writer *w = ctx;
	char le[32];

	for (unsigned int i = 0; i < metric_n_buckets; i++) {
		snprintf(le, sizeof(le), "%.9g", (double)metric_buckets_ns[i] / 1e9);
		fprintf(w->out, "%s_bucket", w->name_buf);
		write_labels(labels, n, le, w->out);
		fprintf(w->out, " %llu\n",
			(unsigned long long)hist_count_le(h, metric_buckets_ns[i]));
	}
	fprintf(w->out, "%s_bucket", w->name_buf);
	write_labels(labels, n, "+Inf", w->out);
	fprintf(w->out, " %llu\n%s_count", (unsigned long long)h->count, w->name_buf);
	write_labels(labels, n, NULL, w->out);
	fprintf(w->out, " %llu\n%s_sum", (unsigned long long)h->count, w->name_buf);
	write_labels(labels, n, NULL, w->out);
	fprintf(w->out, " %.9g\n", (double)h->sum / 1e9);
}

int metrics_text(struct engine *eng, enum metrics_format format, FILE *out, struct error *e)
{
	struct writer w = {.out = out, .format = format};
	const struct metric_sink sink = {&w, text_family, text_sample, text_histogram};
	int r = metrics_walk(eng, &sink, e);

	/* The end mark of OpenMetrics is a plain comment in the older format. */
	fputs("# EOF\n", out);
	return r;
}

struct json_writer {
	json_t *list, *samples;
};

static void json_family(void *ctx, const char *name, enum metric_type type, const char *unit,
			const char *help)
{
	struct json_writer *w = ctx;

	w->samples = json_array();
	json_array_append_new(w->list, json_pack("{s:s, s:s, s:s, s:s, s:o}", "name", name, "type",
						 type_name(type), "unit", unit, "help", help,
						 "samples", w->samples));
}

static json_t *labels_json(const struct metric_label *labels, unsigned int n)
{
	json_t *o = json_object();

	for (unsigned int i = 0; i < n; i++)
		json_object_set_new(o, labels[i].name, json_string(labels[i].value));
	return o;
}

static void json_sample(void *ctx, const struct metric_label *labels, unsigned int n, double value,
			bool integer)
{
	struct json_writer *w = ctx;

	json_array_append_new(
		w->samples,
		json_pack("{s:o, s:o}", "labels", labels_json(labels, n), "value",
			  integer ? json_integer((json_int_t)value) : json_real(value)));
}

static void json_histogram(void *ctx, const struct metric_label *labels, unsigned int n,
			   const struct hist *h)
{
	struct json_writer *w = ctx;
	json_t *buckets = json_array();

	for (unsigned int i = 0; i < metric_n_buckets; i++)
		json_array_append_new(
			buckets,
			json_pack("{s:f, s:I}", "le", (double)metric_buckets_ns[i] / 1e9, "count",
				  (json_int_t)hist_count_le(h, metric_buckets_ns[i])));
	json_array_append_new(w->samples,
			      json_pack("{s:o, s:I, s:f, s:o}", "labels", labels_json(labels, n),
					"count", (json_int_t)h->count, "sum", (double)h->sum / 1e9,
					"buckets", buckets));
}

int metrics_json(struct engine *eng, json_t **out, struct error *e)
{
	struct json_writer w = {json_array(), NULL};
	const struct metric_sink sink = {&w, json_family, json_sample, json_histogram};
	int r = metrics_walk(eng, &sink, e);

	if (r)
		json_decref(w.list);
	else
		*out = w.list;
	return r;
}
