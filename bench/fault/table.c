/* SPDX-License-Identifier: BSD-3-Clause */
/* table.c: figures by round, their medians and spread, as a table and as JSON. */
#include "table.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static struct table_figure *find(const struct table *t, const char *key)
{
	for (unsigned int i = 0; i < t->n; i++)
		if (strcmp(t->figure[i].key, key) == 0)
			return (struct table_figure *)&t->figure[i];
	return NULL;
}

void table_add(struct table *t, const char *key, const char *what, const char *unit,
	       unsigned int round, double value)
{
	struct table_figure *f = find(t, key);

	if (!f) {
		if (t->n == TABLE_FIGURES)
			return;
		f = &t->figure[t->n++];
		snprintf(f->key, sizeof(f->key), "%s", key);
		f->what = what;
		f->unit = unit;
	}
	if (f->n == TABLE_ROUNDS)
		return;
	f->round[f->n] = round;
	f->value[f->n++] = value;
}

static double value_of(const struct table_figure *f, unsigned int round)
{
	for (unsigned int i = 0; f && i < f->n; i++)
		if (f->round[i] == round)
			return f->value[i];
	return NAN;
}

void table_ratio(struct table *t, const char *key, const char *what, const char *a, const char *b,
		 const char *b2)
{
	struct table_figure *fa = find(t, a), *fb = find(t, b), *fb2 = b2 ? find(t, b2) : NULL;

	for (unsigned int i = 0; fa && fb && i < fa->n; i++) {
		double d = value_of(fb, fa->round[i]) + (b2 ? value_of(fb2, fa->round[i]) : 0);

		if (!isnan(d) && d > 0)
			table_add(t, key, what, "x", fa->round[i], fa->value[i] / d);
	}
}

static int by_value(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

static void sorted(const struct table_figure *f, double *out)
{
	memcpy(out, f->value, f->n * sizeof(*out));
	qsort(out, f->n, sizeof(*out), by_value);
}

static double middle(const double *v, unsigned int n)
{
	return n % 2 ? v[n / 2] : (v[n / 2 - 1] + v[n / 2]) / 2;
}

double table_median(const struct table *t, const char *key)
{
	struct table_figure *f = find(t, key);
	double v[TABLE_ROUNDS];

	if (!f || !f->n)
		return NAN;
	sorted(f, v);
	return middle(v, f->n);
}

void table_print(const struct table *t, FILE *out)
{
	fprintf(out, "%-44s %10s %23s %-4s %s\n", "", "median", "min to max", "", "rounds");
	for (unsigned int i = 0; i < t->n; i++) {
		const struct table_figure *f = &t->figure[i];
		double v[TABLE_ROUNDS];
		int digits;

		sorted(f, v);
		digits = v[f->n - 1] >= 1000 ? 0 : v[f->n - 1] >= 100 ? 1 : v[f->n - 1] < 1 ? 3 : 2;
		fprintf(out, "%-44s %10.*f %10.*f to %9.*f %-4s %u\n", f->what, digits,
			middle(v, f->n), digits, v[0], digits, v[f->n - 1], f->unit, f->n);
	}
}

void table_json(const struct table *t, FILE *out)
{
	fprintf(out, "{");
	for (unsigned int i = 0; i < t->n; i++) {
		const struct table_figure *f = &t->figure[i];
		double v[TABLE_ROUNDS];

		sorted(f, v);
		fprintf(out, "%s\n  \"%s\": {\"unit\": \"%s\", \"median\": %.6g, \"min\": %.6g, ",
			i ? "," : "", f->key, f->unit, middle(v, f->n), v[0]);
		fprintf(out, "\"max\": %.6g, \"rounds\": [", v[f->n - 1]);
		for (unsigned int k = 0; k < f->n; k++)
			fprintf(out, "%s%.6g", k ? ", " : "", f->value[k]);
		fprintf(out, "]}");
	}
	fprintf(out, "\n}\n");
}

static int by_ns(const void *a, const void *b)
{
	uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;

	return (x > y) - (x < y);
}

double table_quantile(uint32_t *ns, uint32_t n, double q)
{
	uint32_t at = (uint32_t)(q * n);

	if (!n)
		return NAN;
	qsort(ns, n, sizeof(*ns), by_ns);
	return ns[at < n ? at : n - 1];
}
