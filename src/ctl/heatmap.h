/* SPDX-License-Identifier: BSD-3-Clause */
/* heatmap.h: what the two ways of drawing a heat map share. */
#ifndef CTL_HEATMAP_H
#define CTL_HEATMAP_H

#include <jansson.h>
#include <stdio.h>

/* What a cell mostly is; steps of heat by how much of it was accessed. */
enum heat { HEAT_UNTOUCHED, HEAT_COLD, HEAT_EVICTED, HEAT_SOME, HEAT_MUCH, HEAT_MOST, HEATS };

struct heat_look {
	char letter;
	unsigned int colour; /* of the 256 of a terminal */
	const char *rgb;     /* the same, for SVG */
	const char *name;
};
extern const struct heat_look heat_looks[HEATS];

/* A cell of a row of vm-heatmap's answer. */
enum heat heat_of(const json_t *row, size_t column);

/* Writes vm-heatmap's answer as an SVG picture. */
void svg_heatmap(const char *vm, const json_t *map, FILE *out);

#endif
