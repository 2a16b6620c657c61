/* SPDX-License-Identifier: BSD-3-Clause */
/* heatmap.c: ebbctl heatmap and ebbctl wss: a VM's memory as pictures in the terminal. */
#include "ctl/heatmap.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "base/size.h"
#include "ctl/ctl.h"
#include "ctl/print.h"

/*
 * Theory of operation
 *
 * The daemon watches and counts (vm-heatmap, vm-wss); this only draws its answer. Each cell has a
 * letter, so that the picture can be read without colours too; on a terminal that has 256 of them
 * (not with NO_COLOR, or TERM=dumb) the letter stands on a colour.
 */

#define COLUMNS_PLAIN 64  /* where there is no terminal to ask */
#define COLUMNS_SVG   128 /* with the default number of windows well below the limit of cells */
#define COLUMNS_MAX   512
#define MARGIN	      10 /* left of a row */
#define BAR_WIDTH     40

const struct heat_look heat_looks[HEATS] = {
	[HEAT_UNTOUCHED] = {' ', 0, "#ffffff", "never touched"},
	[HEAT_COLD] = {'.', 25, "#5b8fc7", "cold"},
	[HEAT_EVICTED] = {'-', 240, "#9a9a9a", "evicted"},
	[HEAT_SOME] = {'+', 178, "#f2c14e", "hot, some of it"},
	[HEAT_MUCH] = {'*', 208, "#ee7f2d", "a quarter"},
	[HEAT_MOST] = {'#', 160, "#c8261b", "three quarters"},
};

static json_int_t cell(const json_t *row, const char *what, size_t column)
{
	return json_integer_value(json_array_get(json_object_get(row, what), column));
}

enum heat heat_of(const json_t *row, size_t column)
{
	json_int_t hot = cell(row, "hot", column), cold = cell(row, "cold", column);
	json_int_t evicted = cell(row, "evicted", column), untouched = 1000 - hot - cold - evicted;

	if (hot >= 750)
		return HEAT_MOST;
	if (hot >= 250)
		return HEAT_MUCH;
	if (hot > 0)
		return HEAT_SOME;
	if (untouched >= cold && untouched >= evicted)
		return HEAT_UNTOUCHED;
	return evicted >= cold ? HEAT_EVICTED : HEAT_COLD;
}

/* ---- in the terminal ---- */

static bool has_colours(void)
{
	const char *term = getenv("TERM");     /* NOLINT(concurrency-mt-unsafe) */
	const char *none = getenv("NO_COLOR"); /* NOLINT(concurrency-mt-unsafe) */

	return isatty(STDOUT_FILENO) && term && strcmp(term, "dumb") != 0 && !(none && *none);
}

static void put_cell(enum heat h, bool colours)
{
	if (colours && h != HEAT_UNTOUCHED)
		printf("\033[38;5;231;48;5;%um%c\033[0m", heat_looks[h].colour,
		       heat_looks[h].letter);
	else
		putchar(heat_looks[h].letter);
}

static double seconds(const json_t *object, const char *name)
{
	return (double)json_integer_value(json_object_get(object, name)) / 1000;
}

/* Under the map: where each RAM block begins. */
static void put_blocks(const json_t *map)
{
	json_int_t ram = json_integer_value(json_object_get(map, "ram-bytes")), at = 0;
	json_int_t columns = json_integer_value(json_object_get(map, "columns"));
	json_t *block;
	size_t i;

	json_array_foreach(json_object_get(map, "blocks"), i, block) {
		json_int_t bytes = json_integer_value(json_object_get(block, "bytes"));
		char *name = print_value(NULL, json_object_get(block, "name")), size[16];
		/* In double: only where to put a mark. */
		double column = ram ? (double)at / (double)ram * (double)columns : 0;

		printf("%*s^ %s, %s\n", MARGIN + (int)column, "", name ? name : "",
		       size_format((uint64_t)bytes, size));
		free(name);
		at += bytes;
	}
}

static int draw_map(const json_t *map, void *arg)
{
	json_int_t ram = json_integer_value(json_object_get(map, "ram-bytes"));
	json_int_t columns = json_integer_value(json_object_get(map, "columns"));
	bool colours = has_colours();
	char a[16], b[16];
	json_t *row;
	size_t i;

	(void)arg;
	printf("%s of RAM from left to right, a column is %s; time goes down, in seconds\n",
	       size_format((uint64_t)ram, a),
	       size_format(columns ? (uint64_t)(ram / columns) : 0, b));
	json_array_foreach(json_object_get(map, "rows"), i, row) {
		printf("%*.1f |", MARGIN - 2, -seconds(row, "began-ms-ago"));
		for (json_int_t c = 0; c < columns; c++)
			put_cell(heat_of(row, (size_t)c), colours);
		printf("|\n");
	}
	put_blocks(map);
	printf("%*s", MARGIN, "");
	for (int h = HEATS - 1; h > HEAT_UNTOUCHED; h--) {
		put_cell(h, colours);
		printf(" %s  ", heat_looks[h].name);
	}
	printf("(blank) %s\n", heat_looks[HEAT_UNTOUCHED].name);
	return CTL_OK;
}

static int screen_columns(void)
{
	struct winsize w;

	if (ioctl(STDOUT_FILENO, TIOCGWINSZ, &w) || w.ws_col < MARGIN + 10)
		return COLUMNS_PLAIN;
	return w.ws_col - MARGIN - 2 < COLUMNS_MAX ? w.ws_col - MARGIN - 2 : COLUMNS_MAX;
}

/* ---- to a file ---- */

struct picture {
	const char *file, *vm;
};

/* The picture appears whole under its name, or not at all. */
static int write_svg(const json_t *map, void *arg)
{
	const struct picture *p = arg;
	char part[4096];
	FILE *f;
	int err = 0;

	if (snprintf(part, sizeof(part), "%s.part", p->file) >= (int)sizeof(part)) {
		fprintf(stderr, "ebbctl: %s: the name is too long\n", p->file);
		return CTL_FAILED;
	}
	f = fopen(part, "we");
	if (!f) {
		fprintf(stderr, "ebbctl: %s: %s\n", part, error_text(-errno));
		return CTL_FAILED;
	}
	svg_heatmap(p->vm, map, f);
	if (ferror(f))
		err = EIO;
	if (fclose(f) && !err)
		err = errno;
	if (!err && rename(part, p->file))
		err = errno;
	if (!err)
		return CTL_OK;
	unlink(part);
	fprintf(stderr, "ebbctl: %s: %s\n", p->file, error_text(-err));
	return CTL_FAILED;
}

/* ---- commands ---- */

static bool names_columns(int n, char **words)
{
	for (int i = 0; i < n; i++)
		if (strstr(words[i], "columns"))
			return true;
	return false;
}

int run_heatmap(struct ctl *ctl, int n, char **words)
{
	char **rest = calloc((size_t)n + 2, sizeof(*rest)), columns[32];
	struct picture picture = {.file = NULL, .vm = ""};
	json_t *answer;
	int used = 0, r;

	if (!rest)
		return CTL_FAILED;
	for (int i = 0; i < n; i++) {
		if (strncmp(words[i], "--svg=", 6) == 0) {
			picture.file = words[i] + 6;
		} else if (strcmp(words[i], "--svg") == 0 && i + 1 < n) {
			picture.file = words[++i];
		} else {
			if (!used)
				picture.vm = words[i];
			rest[used++] = words[i];
		}
	}
	if (picture.file && (ctl->json || !*picture.file)) {
		fprintf(stderr, "ebbctl: --svg needs a file, and is not for --json\n");
		free(rest);
		return CTL_USAGE;
	}
	if (!ctl->json && !names_columns(used, rest)) {
		snprintf(columns, sizeof(columns), "columns=%d",
			 picture.file ? COLUMNS_SVG : screen_columns());
		rest[used++] = columns;
	}
	r = run_call(ctl, "vm-heatmap", used, rest, &answer);
	if (!r)
		r = run_show(ctl, "vm-heatmap", answer, picture.file ? write_svg : draw_map,
			     &picture);
	free(rest);
	return r;
}

static int draw_wss(const json_t *value, void *arg)
{
	json_int_t ram = json_integer_value(json_object_get(value, "ram-bytes"));
	char size[16];
	json_t *point;
	size_t i;

	(void)arg;
	printf("%s of RAM\n%10s %12s %8s\n", size_format((uint64_t)ram, size), "WITHIN", "ACCESSED",
	       "OF RAM");
	json_array_foreach(json_object_get(value, "curve"), i, point) {
		json_int_t bytes = json_integer_value(json_object_get(point, "accessed-bytes"));
		double part = ram ? (double)bytes / (double)ram : 0;
		char bar[BAR_WIDTH + 1] = "";

		memset(bar, '#', (size_t)(part * BAR_WIDTH + 0.5));
		printf("%8.1f s %12s %7.1f%% |%-*s|\n", seconds(point, "within-ms"),
		       size_format((uint64_t)bytes, size), part * 100, BAR_WIDTH, bar);
	}
	return CTL_OK;
}

int run_wss(struct ctl *ctl, int n, char **words)
{
	json_t *answer;
	int r = run_call(ctl, "vm-wss", n, words, &answer);

	return r ? r : run_show(ctl, "vm-wss", answer, draw_wss, NULL);
}
