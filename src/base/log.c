/* SPDX-License-Identifier: BSD-3-Clause */
/* log.c: the daemon's log: lines on stderr, with journal priorities under systemd. */
#include "base/log.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"

#define LOG_LINES_PER_SECOND 5

static enum log_level max_level = LOG_INFO;
static bool with_priority;

void log_setup(enum log_level level, bool journal)
{
	max_level = level;
	with_priority = journal;
}

int log_level_parse(const char *text)
{
	static const char *const names[] = {"error", "warning", "info", "debug"};

	for (int i = 0; i < 4; i++)
		if (strcmp(text, names[i]) == 0)
			return i;
	return -1;
}

void log_writev(enum log_level level, const char *fmt, va_list ap)
{
	static const char *const prefix[] = {"<3>", "<4>", "<6>", "<7>"};
	static const char *const word[] = {"error: ", "warning: ", "", "debug: "};
	char line[1024];
	int n, m;

	if (level > max_level)
		return;
	n = snprintf(line, sizeof(line), "%s", with_priority ? prefix[level] : word[level]);
	m = vsnprintf(line + n, sizeof(line) - (size_t)n - 1, fmt, ap);
	if (m < 0)
		return;
	n += m;
	if (n > (int)sizeof(line) - 2)
		n = (int)sizeof(line) - 2;
	/* A text from a client must not be able to forge a second line. */
	for (int i = 0; i < n; i++)
		if ((unsigned char)line[i] < ' ')
			line[i] = ' ';
	line[n++] = '\n';
	if (write(STDERR_FILENO, line, (size_t)n) < 0)
		return; /* nowhere to say so */
}

void log_write(enum log_level level, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	log_writev(level, fmt, ap);
	va_end(ap);
}

bool log_limit_pass(struct log_limit *limit)
{
	unsigned long long now_s = clock_ns() / 1000000000ULL;

	if (__atomic_load_n(&limit->window_s, __ATOMIC_RELAXED) != now_s) {
		unsigned int dropped;

		__atomic_store_n(&limit->window_s, now_s, __ATOMIC_RELAXED);
		__atomic_store_n(&limit->lines, 0, __ATOMIC_RELAXED);
		dropped = __atomic_exchange_n(&limit->dropped, 0, __ATOMIC_RELAXED);
		if (dropped)
			log_warning("%u similar lines left out", dropped);
	}
	if (__atomic_fetch_add(&limit->lines, 1, __ATOMIC_RELAXED) < LOG_LINES_PER_SECOND)
		return true;
	__atomic_fetch_add(&limit->dropped, 1, __ATOMIC_RELAXED);
	return false;
}
