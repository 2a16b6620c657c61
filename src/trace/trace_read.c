/* SPDX-License-Identifier: BSD-3-Clause */
/* trace_read.c: reading a trace: checked as a whole before anything of it is used. */
#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "trace/trace.h"
#include "trace/trace_private.h"

#define FILE_MAX (UINT64_C(4) << 30)

/* False when there is no whole number left, or one that does not fit. */
static bool get_number(struct trace *t, uint64_t *out)
{
	uint64_t n = 0;

	for (unsigned int shift = 0; shift < 64 && t->at < t->bytes; shift += 7) {
		uint8_t byte = t->data[t->at++];

		if (shift == 63 && byte > 1)
			return false;
		n |= (uint64_t)(byte & 0x7f) << shift;
		if (!(byte & 0x80)) {
			*out = n;
			return true;
		}
	}
	return false;
}

static bool get_unit(struct trace *t, uint64_t zigzag, uint64_t *unit)
{
	uint64_t d = (zigzag >> 1) ^ -(zigzag & 1);

	t->previous += d;
	*unit = t->previous;
	return t->previous < t->units;
}

/* One record; false when it cannot be. */
static bool get_record(struct trace *t, struct trace_record *out)
{
	uint64_t n, arg;

	while (t->runs) {
		uint64_t first, count;

		if (!trace_window_run(t, &first, &count))
			return false;
	}
	if (!get_number(t, &n))
		return false;
	arg = n >> 3;
	*out = (struct trace_record){.kind = (enum trace_kind)(n & 7), .value = arg};
	switch (out->kind) {
	case TRACE_ACCESS:
		out->flags = arg & 1;
		out->thread = t->thread;
		return get_unit(t, arg >> 1, &out->unit);
	case TRACE_FAULT:
		out->flags = arg & 15;
		out->thread = t->thread;
		return get_unit(t, arg >> 4, &out->unit);
	case TRACE_THREAD:
		t->thread = (uint32_t)arg;
		return arg <= UINT32_MAX;
	case TRACE_WINDOW:
		t->runs = arg;
		t->run_end = 0;
		return arg <= t->units;
	case TRACE_END:
	case TRACE_TIME:
	case TRACE_LOST:
		return true;
	}
	return false;
}

bool trace_window_run(struct trace *t, uint64_t *first, uint64_t *count)
{
	uint64_t gap, more;

	if (!t->runs)
		return false;
	if (!get_number(t, &gap) || !get_number(t, &more) || gap >= t->units - t->run_end ||
	    more >= t->units - t->run_end - gap)
		return false;
	*first = t->run_end + gap;
	*count = more + 1;
	t->run_end = *first + *count;
	t->runs--;
	return true;
}

static void rewind_trace(struct trace *t)
{
	t->at = 0;
	t->records = 0;
	t->previous = 0;
	t->thread = 0;
	t->runs = 0;
}

bool trace_next(struct trace *t, struct trace_record *out)
{
	if (!get_record(t, out) || out->kind == TRACE_END)
		return false;
	t->records++;
	return true;
}

/* Goes through all of it once. */
static int check_records(struct trace *t, const char *path, struct error *e)
{
	struct trace_record r;
	uint64_t sum, end;

	for (;;) {
		/* A window's runs are checked with the record that comes after it. */
		uint64_t before = t->at;

		if (!get_record(t, &r)) {
			if (t->at >= t->bytes)
				return error_set(e, EINVAL, ERROR_ARGUMENT, "%s was cut off", path);
			return error_set(e, EINVAL, ERROR_ARGUMENT,
					 "%s: no record can be what is at byte %llu", path,
					 (unsigned long long)before + sizeof(struct trace_header));
		}
		if (r.kind == TRACE_END)
			break;
		t->records++;
	}
	/* Where END began: it holds no runs, so it is as long as its number. */
	end = t->at;
	do
		end--;
	while (end && t->data[end - 1] & 0x80);
	if (t->bytes - t->at != sizeof(sum) || r.value != t->records)
		return error_set(e, EINVAL, ERROR_ARGUMENT, "%s: its end is not where it should be",
				 path);
	memcpy(&sum, t->data + t->at, sizeof(sum));
	if (le64toh(sum) != trace_sum(TRACE_SUM_START, t->data, end))
		return error_set(e, EINVAL, ERROR_ARGUMENT, "%s: its checksum is wrong", path);
	return 0;
}

static int check_header(struct trace *t, const struct trace_header *h, const char *path,
			struct error *e)
{
	static const uint8_t zeroes[32];

	if (memcmp(h->magic, TRACE_MAGIC, sizeof(h->magic)) != 0)
		return error_set(e, EINVAL, ERROR_ARGUMENT, "%s is no trace", path);
	if (le32toh(h->version) != TRACE_VERSION || le32toh(h->header_bytes) != sizeof(*h) ||
	    h->flags || memcmp(h->zeroes, zeroes, sizeof(zeroes)) != 0)
		return error_set(e, EINVAL, ERROR_ARGUMENT,
				 "%s is a trace of version %u; this program reads version %d", path,
				 le32toh(h->version), TRACE_VERSION);
	t->units = le64toh(h->units);
	t->unit_bytes = le32toh(h->unit_bytes);
	if (!t->units || t->units > TRACE_UNITS_MAX || t->unit_bytes < 4096 ||
	    (t->unit_bytes & (t->unit_bytes - 1)))
		return error_set(e, EINVAL, ERROR_ARGUMENT, "%s: no VM can be of that size", path);
	return 0;
}

static int read_all(int fd, void *buf, uint64_t bytes)
{
	char *p = buf;

	while (bytes) {
		ssize_t n = read(fd, p, bytes);

		if (n < 0 && errno != EINTR)
			return -errno;
		if (n == 0)
			return -EIO;
		if (n > 0) {
			p += n;
			bytes -= (uint64_t)n;
		}
	}
	return 0;
}

int trace_open(struct trace *t, const char *path, struct error *e)
{
	struct trace_header h;
	struct stat st;
	int fd = open(path, O_RDONLY | O_CLOEXEC), r;

	memset(t, 0, sizeof(*t));
	if (fd < 0)
		return error_set(e, errno, ERROR_GENERIC, "%s: %s", path, error_text(errno));
	if (fstat(fd, &st) || !S_ISREG(st.st_mode) || (uint64_t)st.st_size < sizeof(h) ||
	    (uint64_t)st.st_size > FILE_MAX) {
		close(fd);
		return error_set(e, EINVAL, ERROR_ARGUMENT, "%s is no trace", path);
	}
	t->bytes = (uint64_t)st.st_size - sizeof(h);
	t->data = malloc(t->bytes + 1);
	r = t->data ? read_all(fd, &h, sizeof(h)) : -ENOMEM;
	if (!r)
		r = read_all(fd, t->data, t->bytes);
	close(fd);
	if (r)
		error_set(e, -r, ERROR_GENERIC, "%s: %s", path, error_text(r));
	else
		r = check_header(t, &h, path, e);
	if (!r)
		r = check_records(t, path, e);
	if (r)
		trace_close(t);
	else
		rewind_trace(t);
	return r;
}

void trace_close(struct trace *t)
{
	free(t->data);
	t->data = NULL;
}
