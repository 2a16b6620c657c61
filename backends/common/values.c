/* SPDX-License-Identifier: BSD-3-Clause */
/* values.c: values of options, for all backends. */
#include "values.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* The digits that text begins with; *end is behind them. strtoull() takes signs and blanks, too. */
static int digits(const char *text, char **end, uint64_t *out)
{
	if (*text < '0' || *text > '9')
		return -EINVAL;
	errno = 0;
	*out = strtoull(text, end, 10);
	return errno ? -ERANGE : 0;
}

int value_number(const char *text, uint64_t max, uint64_t *out)
{
	uint64_t v;
	char *end;
	int r = digits(text, &end, &v);

	if (r || *end || v > max)
		return -EINVAL;
	*out = v;
	return 0;
}

int value_size(const char *text, uint64_t *out)
{
	static const char units[] = "KMGT";
	unsigned int shift = 0;
	const char *unit;
	uint64_t v;
	char *end;
	int r = digits(text, &end, &v);

	if (r)
		return r;
	unit = *end ? strchr(units, *end) : NULL;
	if (unit) {
		shift = 10 * (unsigned int)(unit - units + 1);
		end++;
	}
	if (*end || (shift && v >> (64 - shift)))
		return -EINVAL;
	*out = v << shift;
	return 0;
}
