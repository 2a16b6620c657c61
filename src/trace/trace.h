/* SPDX-License-Identifier: BSD-3-Clause */
/* trace.h: a file of what a VM touched: written by the daemon, replayed by ebb-sim. */
#ifndef TRACE_TRACE_H
#define TRACE_TRACE_H

#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"

/*
 * The format, version 1
 *
 * A header of 64 bytes, little-endian: "EBBTRACE", u32 version, u32 header bytes, u64 units of the
 * VM, u32 bytes of a unit, u32 flags (0), 32 bytes of zeroes. Then records. Each begins with one
 * number; its lowest three bits say what the record is, the rest (`arg`) belongs to it. Numbers are
 * LEB128: seven bits a byte, lowest first, the top bit set in all but the last. d is a unit as its
 * distance from the unit before (of ACCESS and FAULT; 0 at first), zigzag: 0, -1, 1, -2, ...
 *
 *   0 END     arg: records before this one. 8 bytes follow: FNV-1a of all bytes between the header
 *             and this record, u64 little-endian. Nothing comes behind it.
 *   1 ACCESS  arg: d << 1 | write. One access.
 *   2 TIME    arg: microseconds that passed since the TIME before
 *   3 THREAD  arg: the thread of the accesses and faults that follow (0: not known)
 *   4 FAULT   arg: d << 4 | enum ebb_fault_flag. An access that faulted in the VM it is from.
 *   5 WINDOW  arg: runs of units. Then as many pairs of numbers: units left out since the end of
 *             the run before, units of this run less one. All that was touched since the WINDOW
 *             before, in no order; those of ACCESS and FAULT in between are among them.
 *   6 LOST    arg: faults that are missing here, because they came too fast
 *
 * A file without END was cut off and is refused, as is everything else that cannot be.
 */
#define TRACE_VERSION	1
#define TRACE_UNITS_MAX (UINT64_C(1) << 32)

enum trace_kind {
	TRACE_END,
	TRACE_ACCESS,
	TRACE_TIME,
	TRACE_THREAD,
	TRACE_FAULT,
	TRACE_WINDOW,
	TRACE_LOST,
};

/* ---- writing ---- */

struct trace_writer {
	int fd; /* borrowed */
	uint64_t units, previous, records, sum, bytes, max_bytes;
	bool full; /* max_bytes are reached: nothing more is written but the end */
	int failed;
	uint32_t thread;
	uint32_t used;
	uint8_t buf[65536];
};

/* Writes the header. max_bytes bounds the file (0: no bound). 0 or -errno. */
int trace_begin(struct trace_writer *w, int fd, uint64_t units, uint32_t unit_bytes,
		uint64_t max_bytes);
void trace_access(struct trace_writer *w, uint64_t unit, uint32_t thread, bool write);
void trace_fault(struct trace_writer *w, uint64_t unit, uint32_t thread, uint32_t flags);
void trace_time(struct trace_writer *w, uint64_t us);
void trace_lost(struct trace_writer *w, uint64_t faults);
/* A bitmap of all units. */
void trace_window(struct trace_writer *w, const uint64_t *touched);
/* Writes the end. 0, or the first error that there was. */
int trace_finish(struct trace_writer *w);

/* ---- reading ---- */

struct trace {
	uint64_t units;
	uint32_t unit_bytes;
	uint8_t *data;
	uint64_t bytes, at; /* of the records */
	uint64_t records;   /* read so far */
	uint64_t previous;
	uint32_t thread;
	/* Of the WINDOW that was read last: what trace_window_run() has not given yet. */
	uint64_t runs, run_end;
};

struct trace_record {
	enum trace_kind kind;
	uint64_t unit;	 /* ACCESS, FAULT */
	uint32_t flags;	 /* of these: enum ebb_fault_flag */
	uint32_t thread; /* of these */
	uint64_t value;	 /* TIME, LOST, WINDOW: arg */
};

/* Reads a whole file and checks it. Gives what trace_close() frees. 0 or -errno with e filled. */
int trace_open(struct trace *t, const char *path, struct error *e);
void trace_close(struct trace *t);
/* The next record. False at the end. */
bool trace_next(struct trace *t, struct trace_record *out);
/* The next run of the WINDOW that was read last. False when there is none left. */
bool trace_window_run(struct trace *t, uint64_t *first, uint64_t *count);

#endif
