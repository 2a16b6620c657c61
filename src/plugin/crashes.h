/* SPDX-License-Identifier: BSD-3-Clause */
/* crashes.h: which plugin a daemon crashed in, for the daemons after it. */
#ifndef PLUGIN_CRASHES_H
#define PLUGIN_CRASHES_H

#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"

enum crash_kind { CRASH_NONE, CRASH_POLICY, CRASH_BACKEND };

/* So many in a row, and a policy is not used, a backend gets nothing more to store... */
#define CRASHES_ASIDE 2
/* ...and so many, and a backend is not opened. */
#define CRASHES_REFUSED 4
/* A daemon that had served for so long before it crashed begins a new row. */
#define CRASHES_APART_S 600

/* What the calling thread runs of a plugin. */
struct crash_mark {
	enum crash_kind kind;
	const char *name, *hook;
};
/* For the signal handler, which knows nothing but its thread. */
extern _Thread_local struct crash_mark crash_mark;

static inline struct crash_mark crash_mark_set(enum crash_kind kind, const char *name,
					       const char *hook)
{
	struct crash_mark before = crash_mark;

	crash_mark = (struct crash_mark){kind, name, hook};
	return before;
}

static inline void crash_mark_restore(struct crash_mark *before)
{
	crash_mark = *before;
}

/* From here to the end of the block the thread is in that hook of that plugin. */
#define CRASH_MARK(kind, name, hook)                                                          \
	struct crash_mark crash_before __attribute__((cleanup(crash_mark_restore), unused)) = \
		crash_mark_set(kind, name, hook)

struct crashes;

/*
 * Reads what the daemon before left in `folder`, counts, and has deadly signals noted there from
 * now on: of one folder per process. 0, or -errno with e filled. Before there are plugins.
 */
int crashes_open(const char *folder, struct crashes **out, struct error *e);
/* forget: the daemon ends as it should, and the next one begins with a clean slate. NULL is fine.
 */
void crashes_close(struct crashes *c, bool forget);
/* How many daemons in a row crashed in that plugin, if enough to put it aside; else 0. Any thread.
 */
unsigned int crashes_in_row(struct crashes *c, enum crash_kind kind, const char *name);
/* A sentence on that. */
void crashes_text(struct crashes *c, enum crash_kind kind, const char *name, char *buf,
		  uint64_t bytes);
/* The operator wants it all the same. Any thread. */
void crashes_forgive(struct crashes *c, enum crash_kind kind, const char *name);

#endif
