/* SPDX-License-Identifier: BSD-3-Clause */
/* svg.c: a heat map as an SVG picture. */
#include <string.h>

#include "base/size.h"
#include "ctl/heatmap.h"

#define CELL_WIDTH  6
#define CELL_HEIGHT 12
#define LEFT	    70
#define TOP	    50
#define BELOW	    70
#define LEGEND_STEP 130
#define WIDTH_MIN   (HEATS * LEGEND_STEP)

/* Text that came from a VMM: nothing of it may be markup, or what XML does not allow. */
static void put_text(const char *text, FILE *out)
{
	for (const unsigned char *p = (const unsigned char *)text; *p; p++) {
		if (strchr("<>&\"'", *p))
			fprintf(out, "&#%u;", *p);
		else
			fputc(*p < ' ' || *p == 0x7f ? '?' : *p, out);
	}
}

static void put_row(const json_t *row, size_t columns, size_t y, FILE *out)
{
	for (size_t c = 0, n; c < columns; c += n) {
		enum heat h = heat_of(row, c);

		for (n = 1; c + n < columns && heat_of(row, c + n) == h;)
			n++;
		if (h != HEAT_UNTOUCHED)
			fprintf(out,
				"<rect x=\"%zu\" y=\"%zu\" width=\"%zu\" height=\"%d\" "
				"fill=\"%s\"/>\n",
				LEFT + c * CELL_WIDTH, y, n * CELL_WIDTH, CELL_HEIGHT,
				heat_looks[h].rgb);
	}
}

static void put_blocks(const json_t *map, size_t columns, size_t y, FILE *out)
{
	double ram = (double)json_integer_value(json_object_get(map, "ram-bytes")), at = 0;
	json_t *block;
	char size[16];
	size_t i;

	json_array_foreach(json_object_get(map, "blocks"), i, block) {
		json_int_t bytes = json_integer_value(json_object_get(block, "bytes"));
		double x = LEFT + (ram > 0 ? at / ram : 0) * (double)(columns * CELL_WIDTH);

		fprintf(out, "<path d=\"M%.1f %zuv8\" stroke=\"#000\"/>\n", x, y);
		/* Blocks that are too small for a text have the mark alone. */
		if ((double)bytes / ram * (double)(columns * CELL_WIDTH) > 60 || i == 0) {
			fprintf(out, "<text x=\"%.1f\" y=\"%zu\">", x + 3, y + 12);
			put_text(json_string_value(json_object_get(block, "name")), out);
			fprintf(out, ", %s</text>\n", size_format((uint64_t)bytes, size));
		}
		at += (double)bytes;
	}
}

static void put_legend(size_t y, FILE *out)
{
	for (unsigned int h = 0; h < HEATS; h++) {
		unsigned int x = LEFT + h * LEGEND_STEP;

		fprintf(out,
			"<rect x=\"%u\" y=\"%zu\" width=\"12\" height=\"12\" fill=\"%s\" "
			"stroke=\"#888\"/>\n<text x=\"%u\" y=\"%zu\">%s</text>\n",
			x, y, heat_looks[h].rgb, x + 17, y + 10, heat_looks[h].name);
	}
}

void svg_heatmap(const char *vm, const json_t *map, FILE *out)
{
	size_t columns = (size_t)json_integer_value(json_object_get(map, "columns")), i;
	const json_t *rows = json_object_get(map, "rows");
	size_t map_width = columns * CELL_WIDTH, bottom = TOP + json_array_size(rows) * CELL_HEIGHT;
	size_t width = LEFT + (map_width > WIDTH_MIN ? map_width : WIDTH_MIN) + 20;
	/* Every so many rows a time, so that the texts do not touch. */
	size_t step = json_array_size(rows) > 20 ? 5 : 2;
	char size[16];
	json_t *row;

	fprintf(out,
		"<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"%zu\" height=\"%zu\" "
		"font-family=\"sans-serif\" font-size=\"11\">\n"
		"<rect width=\"100%%\" height=\"100%%\" fill=\"#fff\"/>\n"
		"<text x=\"%d\" y=\"20\" font-size=\"15\">",
		width, bottom + BELOW, LEFT);
	put_text(vm, out);
	fprintf(out,
		": %s of RAM</text>\n<text x=\"%d\" y=\"38\">Time in seconds goes down.</text>\n",
		size_format((uint64_t)json_integer_value(json_object_get(map, "ram-bytes")), size),
		LEFT);
	json_array_foreach(rows, i, row) {
		size_t y = TOP + i * CELL_HEIGHT;

		if (i % step == 0)
			fprintf(out, "<text x=\"%d\" y=\"%zu\" text-anchor=\"end\">%.1f</text>\n",
				LEFT - 6, y + 10,
				-(double)json_integer_value(json_object_get(row, "began-ms-ago")) /
					1000);
		put_row(row, columns, y, out);
	}
	fprintf(out,
		"<rect x=\"%d\" y=\"%d\" width=\"%zu\" height=\"%zu\" fill=\"none\" "
		"stroke=\"#000\"/>\n",
		LEFT, TOP, map_width, bottom - TOP);
	put_blocks(map, columns, bottom, out);
	put_legend(bottom + 35, out);
	fprintf(out, "</svg>\n");
}
