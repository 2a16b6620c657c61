/* SPDX-License-Identifier: BSD-3-Clause */
/* log.h: the daemon's log: lines on stderr, with journal priorities under systemd. */
#ifndef BASE_LOG_H
#define BASE_LOG_H

#include <stdarg.h>
#include <stdbool.h>

/*
 * The log is the one thing of the process that is global: stderr is. Only the top layers (daemon,
 * attach, control, and the engine's slow paths) log; lower layers return errors. Never from the
 * fault path. Whatever a guest or a client can trigger goes through log_limited().
 */
enum log_level { LOG_ERROR = 0, LOG_WARNING = 1, LOG_INFO = 2, LOG_DEBUG = 3 };

/* Lines up to `level` are written; journal adds the <N> prefix that systemd reads. */
void log_setup(enum log_level level, bool journal);
/* Parses "error", "warning", "info" or "debug"; -1 when it is none of them. */
int log_level_parse(const char *text);

void log_write(enum log_level level, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
void log_writev(enum log_level level, const char *fmt, va_list ap)
	__attribute__((format(printf, 2, 0)));

/* A bucket of a few lines a second; one for each thing that may repeat. Zero-initialise. */
struct log_limit {
	unsigned long long window_s;
	unsigned int lines, dropped;
};
/* True when a line may be written now; counts the dropped ones and says so when it opens again. */
bool log_limit_pass(struct log_limit *limit);

#define log_limited(limit, level, ...)                   \
	do {                                             \
		if (log_limit_pass(limit))               \
			log_write((level), __VA_ARGS__); \
	} while (0)

#define log_error(...)	 log_write(LOG_ERROR, __VA_ARGS__)
#define log_warning(...) log_write(LOG_WARNING, __VA_ARGS__)
#define log_info(...)	 log_write(LOG_INFO, __VA_ARGS__)
#define log_debug(...)	 log_write(LOG_DEBUG, __VA_ARGS__)

#endif
