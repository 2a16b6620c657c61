/* SPDX-License-Identifier: BSD-3-Clause */
/* watch_json.c: what a watch of a VM has found, as JSON. */
#include "control/watch_json.h"

/* In permille of a column, rounded up: a single hot page of many is not nothing. */
static json_t *part(uint64_t bytes, const struct watch_result *w)
{
	uint64_t permille = (bytes * 1000 * w->columns + w->ram_bytes - 1) / w->ram_bytes;

	return json_integer((json_int_t)(permille < 1000 ? permille : 1000));
}

static json_t *row_to_json(const struct watch_result *w, unsigned int window)
{
	json_t *hot = json_array(), *cold = json_array(), *evicted = json_array();

	for (unsigned int i = 0; i < w->columns; i++) {
		const struct watch_cell *c = &w->cells[window * w->columns + i];

		json_array_append_new(hot, part(c->hot, w));
		json_array_append_new(cold, part(c->cold, w));
		json_array_append_new(evicted, part(c->evicted, w));
	}
	/* since_ms counts back from the end, and from the beginning of a window. */
	return json_pack("{s:I, s:o, s:o, s:o}", "began-ms-ago",
			 (json_int_t)w->since_ms[w->windows - window - 1], "hot", hot, "cold", cold,
			 "evicted", evicted);
}

json_t *heatmap_to_json(const struct watch_result *w)
{
	json_t *blocks = json_array(), *rows = json_array();

	for (unsigned int i = 0; i < w->n_blocks; i++)
		json_array_append_new(blocks, json_pack("{s:s, s:I}", "name", w->blocks[i].name,
							"bytes", (json_int_t)w->blocks[i].bytes));
	for (unsigned int i = 0; i < w->windows; i++)
		json_array_append_new(rows, row_to_json(w, i));
	return json_pack("{s:I, s:i, s:o, s:o}", "ram-bytes", (json_int_t)w->ram_bytes, "columns",
			 (int)w->columns, "blocks", blocks, "rows", rows);
}

/* The first window, twice as many, twice as many again ... and all of them. */
json_t *wss_to_json(const struct watch_result *w)
{
	json_t *curve = json_array();

	for (unsigned int k = 1, last = 0; last < w->windows; last = k, k *= 2) {
		if (k > w->windows)
			k = w->windows;
		json_array_append_new(
			curve, json_pack("{s:I, s:I}", "within-ms", (json_int_t)w->since_ms[k - 1],
					 "accessed-bytes", (json_int_t)w->accessed[k - 1]));
	}
	return json_pack("{s:I, s:o}", "ram-bytes", (json_int_t)w->ram_bytes, "curve", curve);
}
