/* SPDX-License-Identifier: BSD-3-Clause */
/* sample.c: memory that a released version left behind, as a text file. */
#include "recovery/sample.h"

#include <err.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

#define LINE	  64u  /* what is zero is left out in lines of so many bytes */
#define PIECE_MAX 512u /* of one entry of "data" */
#define BUFFER	  (64u << 10)

static bool is_zero(const unsigned char *p, size_t bytes)
{
	while (bytes && !*p)
		p++, bytes--;
	return !bytes;
}

static void add_piece(json_t *data, uint64_t at, const unsigned char *p, size_t bytes)
{
	char hex[2 * PIECE_MAX + 1];

	for (size_t i = 0; i < bytes; i++)
		snprintf(hex + 2 * i, 3, "%02x", p[i]);
	json_array_append_new(data, json_pack("[I, s]", (json_int_t)at, hex));
}

/* The lines of buf that are not zero. */
static void add_lines(json_t *data, uint64_t at, const unsigned char *buf, size_t bytes)
{
	for (size_t i = 0, n; i < bytes; i += n) {
		n = 0;
		while (i + n < bytes && n < PIECE_MAX && !is_zero(buf + i + n, LINE))
			n += LINE;
		if (n)
			add_piece(data, at + i, buf + i, n);
		else
			n = LINE;
	}
}

json_t *sample_of_file(int fd, uint64_t bytes)
{
	static unsigned char buf[BUFFER];
	json_t *data = json_array();
	off_t at = 0;

	while ((at = lseek(fd, at, SEEK_DATA)) >= 0 && (uint64_t)at < bytes) {
		off_t stop = lseek(fd, at, SEEK_HOLE);

		while (at < stop) {
			size_t n = stop - at < (off_t)BUFFER ? (size_t)(stop - at) : BUFFER;
			ssize_t got;

			/* Whole lines, also where the file ends within one. */
			memset(buf, 0, sizeof(buf));
			got = pread(fd, buf, n, at);
			if (got <= 0)
				err(1, "cannot read what is to be a sample");
			add_lines(data, (uint64_t)at, buf, ((size_t)got + LINE - 1) / LINE * LINE);
			at += got;
		}
	}
	return json_pack("{s:I, s:o}", "bytes", (json_int_t)bytes, "data", data);
}

uint64_t sample_bytes(const json_t *memory)
{
	return (uint64_t)json_integer_value(json_object_get(memory, "bytes"));
}

static size_t from_hex(const char *hex, unsigned char *out)
{
	size_t n = 0;
	unsigned int byte;

	while (n < PIECE_MAX && sscanf(hex + 2 * n, "%2x", &byte) == 1)
		out[n++] = (unsigned char)byte;
	return n;
}

void sample_to_file(const json_t *memory, int fd)
{
	const json_t *data = json_object_get(memory, "data");
	unsigned char piece[PIECE_MAX];
	json_t *item;
	size_t i;

	if (!json_is_array(data))
		errx(1, "a sample has no data");
	json_array_foreach(data, i, item) {
		const char *hex = json_string_value(json_array_get(item, 1));
		off_t at = (off_t)json_integer_value(json_array_get(item, 0));
		size_t n = from_hex(hex ? hex : "", piece),
		       room = sample_bytes(memory) - (size_t)at;

		if (n > room)
			n = room;
		if (!n || pwrite(fd, piece, n, at) != (ssize_t)n)
			err(1, "a piece of a sample at %lld", (long long)at);
	}
}

json_t *sample_read(const char *folder, const char *name)
{
	json_error_t why;
	char path[512];
	json_t *j;

	snprintf(path, sizeof(path), "%s/%s", folder, name);
	j = json_load_file(path, 0, &why);
	if (!j)
		errx(1, "%s: %s", path, why.text);
	return j;
}

void sample_write(const char *folder, const char *name, const json_t *sample)
{
	char path[512];

	snprintf(path, sizeof(path), "%s/%s", folder, name);
	if (!sample || json_dump_file(sample, path, JSON_INDENT(1)))
		err(1, "cannot write %s", path);
	printf("%s\n", path);
}
