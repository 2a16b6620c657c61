/* SPDX-License-Identifier: BSD-3-Clause */
/* say.c: the library's few words to whoever started the VMM. */
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "client/client.h"

void say(const char *fmt, ...)
{
	static const char prefix[] = "ebb-attach: ";
	char line[512];
	size_t n = sizeof(prefix) - 1;
	int saved = errno, len;
	va_list ap;

	memcpy(line, prefix, n);
	va_start(ap, fmt);
	len = vsnprintf(line + n, sizeof(line) - n - 1, fmt, ap);
	va_end(ap);
	if (len > 0)
		n += (size_t)len < sizeof(line) - n - 1 ? (size_t)len : sizeof(line) - n - 2;
	line[n++] = '\n';
	/* A full or closed stderr must not matter to the VMM. */
	if (write(STDERR_FILENO, line, n) < 0)
		errno = saved;
	errno = saved;
}
