/* SPDX-License-Identifier: BSD-3-Clause */
/* metrics.h: the engine's numbers for OpenMetrics and query-metrics. */
#ifndef CONTROL_METRICS_H
#define CONTROL_METRICS_H

#include <jansson.h>
#include <stdbool.h>
#include <stdio.h>

#include "base/error.h"
#include "engine/engine.h"

enum metric_type { METRIC_GAUGE, METRIC_COUNTER, METRIC_HISTOGRAM, METRIC_INFO };

struct metric_label {
	const char *name, *value;
};
#define METRIC_LABELS_MAX 4

/* Takes a walk over all metrics: family() once, then sample() or histogram() for each of it. */
struct metric_sink {
	void *ctx;
	/* name without _total; unit "" when it has none. */
	void (*family)(void *ctx, const char *name, enum metric_type type, const char *unit,
		       const char *help);
	void (*sample)(void *ctx, const struct metric_label *labels, unsigned int n, double value,
		       bool integer);
	/* Values of h are nanoseconds; they go out as seconds. */
	void (*histogram)(void *ctx, const struct metric_label *labels, unsigned int n,
			  const struct hist *h);
};

/* Takes the engine's numbers once and walks them. -ENOMEM. */
int metrics_walk(struct engine *eng, const struct metric_sink *sink, struct error *e);

/* Upper edges of the latency buckets, nanoseconds. */
extern const uint64_t metric_buckets_ns[];
extern const unsigned int metric_n_buckets;

/* The older text format of Prometheus (which also has no # UNIT), or OpenMetrics 1.0. */
enum metrics_format { METRICS_PROMETHEUS, METRICS_OPENMETRICS };
int metrics_text(struct engine *eng, enum metrics_format format, FILE *out, struct error *e);
/* query-metrics. */
int metrics_json(struct engine *eng, json_t **out, struct error *e);

#endif
