/* SPDX-License-Identifier: BSD-3-Clause */
/* options.c: values of options, for all policies. */
#include "options.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int option_number(const char *value, uint64_t min, uint64_t max, uint64_t *out, char *err,
		  uint64_t err_len)
{
	static const char suffixes[] = "KMG";
	const char *suffix;
	char *end;
	unsigned long long n;

	errno = 0;
	n = strtoull(value, &end, 10);
	if (*end && (suffix = strchr(suffixes, *end))) {
		n = n > max ? max + 1 : n << 10 * (suffix - suffixes + 1);
		end++;
	}
	if (value[0] < '0' || value[0] > '9' || *end || errno || n < min || n > max) {
		snprintf(err, err_len, "it must be a number from %llu to %llu",
			 (unsigned long long)min, (unsigned long long)max);
		return -EINVAL;
	}
	*out = n;
	return 0;
}

int option_shared(const char *value, uint32_t min, uint32_t max, _Atomic uint32_t *out, char *err,
		  uint64_t err_len)
{
	uint64_t n;
	int r = option_number(value, min, max, &n, err, err_len);

	if (!r)
		set(*out, (uint32_t)n);
	return r;
}

int option_switch(const char *value, bool *out, char *err, uint64_t err_len)
{
	if (strcmp(value, "on") != 0 && strcmp(value, "off") != 0) {
		snprintf(err, err_len, "it must be on or off");
		return -EINVAL;
	}
	*out = value[1] == 'n';
	return 0;
}
