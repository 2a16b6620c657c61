/* SPDX-License-Identifier: BSD-3-Clause */
/* trace_write.c: writing a trace. */
#include <endian.h>
#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "trace/trace.h"
#include "trace/trace_private.h"

#define NUMBER_MAX 10 /* bytes of the longest */
#define END_MAX	   (2 * NUMBER_MAX)

static void flush(struct trace_writer *w)
{
	uint32_t done = 0;

	while (done < w->used && !w->failed) {
		ssize_t n = write(w->fd, w->buf + done, w->used - done);

		if (n >= 0)
			done += (uint32_t)n;
		else if (errno != EINTR)
			w->failed = -errno;
	}
	w->used = 0;
}

static void put(struct trace_writer *w, const void *data, uint32_t bytes)
{
	if (w->used + bytes > sizeof(w->buf))
		flush(w);
	memcpy(w->buf + w->used, data, bytes);
	w->used += bytes;
	w->bytes += bytes;
}

static void put_number(struct trace_writer *w, uint64_t n, bool summed)
{
	uint8_t bytes[NUMBER_MAX];
	uint32_t len = 0;

	do {
		bytes[len++] = (uint8_t)((n & 0x7f) | (n > 0x7f ? 0x80 : 0));
		n >>= 7;
	} while (n);
	if (summed)
		w->sum = trace_sum(w->sum, bytes, len);
	put(w, bytes, len);
}

/* False when there is no room for a record of so many numbers and the end. */
static bool record(struct trace_writer *w, enum trace_kind kind, uint64_t arg, uint64_t numbers)
{
	if (w->failed || w->full)
		return false;
	if (w->max_bytes && w->bytes + numbers * NUMBER_MAX + END_MAX > w->max_bytes) {
		w->full = true;
		return false;
	}
	w->records++;
	put_number(w, arg << 3 | kind, true);
	return true;
}

static uint64_t distance(struct trace_writer *w, uint64_t unit)
{
	int64_t d = (int64_t)(unit - w->previous);

	w->previous = unit;
	return (uint64_t)d << 1 ^ (d < 0 ? ~UINT64_C(0) : 0);
}

int trace_begin(struct trace_writer *w, int fd, uint64_t units, uint32_t unit_bytes,
		uint64_t max_bytes)
{
	struct trace_header h = {.version = htole32(TRACE_VERSION),
				 .header_bytes = htole32(sizeof(h)),
				 .units = htole64(units),
				 .unit_bytes = htole32(unit_bytes)};

	if (!units || units > TRACE_UNITS_MAX)
		return -EINVAL;
	memset(w, 0, sizeof(*w));
	memcpy(h.magic, TRACE_MAGIC, sizeof(h.magic));
	w->fd = fd;
	w->units = units;
	w->max_bytes = max_bytes;
	w->sum = TRACE_SUM_START;
	put(w, &h, sizeof(h));
	flush(w);
	return w->failed;
}

static void set_thread(struct trace_writer *w, uint32_t thread)
{
	if (thread != w->thread && record(w, TRACE_THREAD, thread, 1))
		w->thread = thread;
}

void trace_access(struct trace_writer *w, uint64_t unit, uint32_t thread, bool write)
{
	uint64_t before = w->previous;

	if (unit >= w->units)
		return;
	set_thread(w, thread);
	if (!record(w, TRACE_ACCESS, distance(w, unit) << 1 | write, 1))
		w->previous = before;
}

void trace_fault(struct trace_writer *w, uint64_t unit, uint32_t thread, uint32_t flags)
{
	uint64_t before = w->previous;

	if (unit >= w->units)
		return;
	set_thread(w, thread);
	if (!record(w, TRACE_FAULT, distance(w, unit) << 4 | (flags & 15), 1))
		w->previous = before;
}

void trace_time(struct trace_writer *w, uint64_t us)
{
	if (us)
		record(w, TRACE_TIME, us, 1);
}

void trace_lost(struct trace_writer *w, uint64_t faults)
{
	if (faults)
		record(w, TRACE_LOST, faults, 1);
}

/* The first unit from `unit` on whose bit is `value`; units when there is none. */
static uint64_t next_bit(const struct trace_writer *w, const uint64_t *bits, uint64_t unit,
			 bool value)
{
	while (unit < w->units) {
		uint64_t word = (value ? bits[unit / 64] : ~bits[unit / 64]) >> (unit % 64);

		if (word) {
			unit += (uint64_t)__builtin_ctzll(word);
			break;
		}
		unit = (unit / 64 + 1) * 64;
	}
	return unit < w->units ? unit : w->units;
}

void trace_window(struct trace_writer *w, const uint64_t *touched)
{
	uint64_t runs = 0, end = 0;

	for (uint64_t u = next_bit(w, touched, 0, true); u < w->units;
	     u = next_bit(w, touched, next_bit(w, touched, u, false), true))
		runs++;
	if (!record(w, TRACE_WINDOW, runs, 1 + 2 * runs))
		return;
	for (uint64_t u = next_bit(w, touched, 0, true); u < w->units;) {
		uint64_t stop = next_bit(w, touched, u, false);

		put_number(w, u - end, true);
		put_number(w, stop - u - 1, true);
		end = stop;
		u = next_bit(w, touched, stop, true);
	}
}

int trace_finish(struct trace_writer *w)
{
	uint64_t sum = htole64(w->sum);

	if (w->failed)
		return w->failed;
	put_number(w, w->records << 3 | TRACE_END, false);
	put(w, &sum, sizeof(sum));
	flush(w);
	return w->failed;
}
