/* SPDX-License-Identifier: BSD-3-Clause */
/* table.h: figures by round, their medians and spread, as a table and as JSON. */
#ifndef BENCH_FAULT_TABLE_H
#define BENCH_FAULT_TABLE_H

#include <stdint.h>
#include <stdio.h>

#define TABLE_FIGURES 96
#define TABLE_ROUNDS  200

struct table_figure {
	char key[48]; /* in the JSON: "quiet.ebb.p50_us" */
	const char *what, *unit;
	unsigned int n;
	double value[TABLE_ROUNDS];
	unsigned int round[TABLE_ROUNDS];
};

/* Zeroed before use. What does not fit is dropped. */
struct table {
	unsigned int n;
	struct table_figure figure[TABLE_FIGURES];
};

/* One round's value. what and unit are constants, taken from the first call. */
void table_add(struct table *t, const char *key, const char *what, const char *unit,
	       unsigned int round, double value);
/* The quotient of two figures for each round that has both; b2 (may be NULL) is added to b. */
void table_ratio(struct table *t, const char *key, const char *what, const char *a, const char *b,
		 const char *b2);
/* The median, or NAN when there is none. */
double table_median(const struct table *t, const char *key);
void table_print(const struct table *t, FILE *out);
void table_json(const struct table *t, FILE *out);

/* The value at quantile q of n samples (which it sorts). */
double table_quantile(uint32_t *ns, uint32_t n, double q);

#endif
