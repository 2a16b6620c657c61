/* SPDX-License-Identifier: BSD-3-Clause */
/* system.c: processes and sentences of errors, for all backends. */
#include "system.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

int fail(char *err, uint64_t err_len, int r, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(err, err_len, fmt, ap);
	va_end(ap);
	return r;
}

bool process_gone(uint32_t pid, uint32_t start)
{
	char path[40], text[1024], *p;
	unsigned long long began = 0;
	FILE *f;

	if (!pid)
		return false;
	snprintf(path, sizeof(path), "/proc/%u/stat", pid);
	f = fopen(path, "re");
	if (!f)
		return errno == ENOENT;
	p = fgets(text, sizeof(text), f);
	fclose(f);
	/* Field 22, counted behind the name, which may hold anything. */
	p = p ? strrchr(text, ')') : NULL;
	for (int field = 2; p && field < 22; field++)
		p = strchr(p + 1, ' ');
	if (!p || sscanf(p, " %llu", &began) != 1)
		return false;
	return (uint32_t)began != start;
}
