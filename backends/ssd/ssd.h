/* SPDX-License-Identifier: BSD-3-Clause */
/* ssd.h: the running state of the SSD backend, shared by its files. */
#ifndef SSD_SSD_H
#define SSD_SSD_H

#include <liburing.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "bits.h"
#include "ebb/backend.h"
#include "layout.h"
#include "options.h"
#include "proof.h"

#define NONE	     UINT32_MAX
#define READY_MAX    16u /* segments leased ahead for one space */
#define CLEAN_SPARE  2u	 /* free segments that only cleaning may take */
#define WRITES_MAX   32u /* merged writes of a channel, waiting or in flight */
#define WRITE_PIECES 64u /* separate buffers in one write */
#define MERGE_BLOCKS 256u
#define STAGE_BYTES  SEGMENT_BYTES
#define REPORTED     3u /* kinds of failures that the log tells of */
#define READ_TRIES   3u
#define OUT_MAX	     8u /* of a channel at the device: writes, and reads that nobody waits for */

/* Completions say what they are in the low bits of user_data: loads have none. */
#define USER_WRITE UINT64_C(1)
#define USER_NOP   UINT64_C(2)

/* IOPRIO_CLASS_BE in the upper bits, the level below: what a vCPU waits for, and the rest. */
#define IO_PRIORITY_HIGH (2u << 13)
#define IO_PRIORITY_LOW	 (2u << 13 | 7u)

/*
 * What a segment is doing. Every change is made under ssd.lock, except SEG_OPEN -> SEG_SEALED,
 * which is made by whoever fills it, under its space's alloc_lock.
 */
enum seg_state {
	SEG_FREE,   /* nobody's; only the keeper takes it out of here */
	SEG_READY,  /* leased to a space, on the device too; nothing in it yet */
	SEG_OPEN,   /* being filled */
	SEG_SEALED, /* full, or given up: objects only go from here */
	SEG_ABSENT, /* holds objects of a space that has not come back yet */
};

struct segment {
	_Atomic uint32_t live;	/* blocks of live objects */
	_Atomic uint32_t refs;	/* I/O in flight on it */
	_Atomic uint8_t state;	/* enum seg_state */
	uint8_t dirty;		/* (free) written since it was last discarded */
	uint8_t rested;		/* (free) ticks of the keeper since it became so */
	uint8_t stuck;		/* cleaning could not move its objects */
	struct space *space;	/* whose it is; NULL: nobody's, or absent */
	_Atomic uint32_t *rmap; /* owned; index + 1 of the object that begins at a block */
};

enum count {
	COUNT_STORES,
	COUNT_LOADS,
	COUNT_FULL,
	COUNT_OVER_BUDGET,
	COUNT_STORE_ERRORS,
	COUNT_LOAD_ERRORS,
	COUNT_CORRUPT,
	COUNT_REREAD,
	COUNT_BAD_HANDLE,
	COUNT_WRITES,
	COUNT_WRITTEN,
	COUNT_READ,
	COUNT_CLEANED,
	COUNT_MOVED,
	COUNT_DISCARDED,
	COUNT_HELD_BACK,
	COUNTS
};

/* One VM's part. */
struct space {
	struct ssd *ssd;
	void *host_ctx;
	struct space *next; /* under ssd.lock */
	uint64_t id;	    /* not 0; in the segment table for what is ours */
	uint64_t ram_bytes;
	uint32_t pid, pid_start; /* who keeps our map; 0: not known */
	struct proof_key key;

	/* In the memory that outlives the daemon. */
	struct map_header *map;
	_Atomic uint64_t *places;
	struct object_sum *sums;
	uint64_t *nonces;
	uint64_t n_handles, map_bytes;

	pthread_mutex_t handle_lock;
	struct bits taken;
	void *taken_memory;
	_Atomic uint64_t objects, blocks;

	pthread_mutex_t alloc_lock; /* before ssd.lock */
	uint32_t open_seg, clean_seg;
	uint32_t open_fill, clean_fill; /* blocks */
	uint32_t ready[READY_MAX];
	uint32_t n_ready;
	uint32_t ahead;	     /* how many to have ready */
	_Atomic int denied;  /* -ENOSPC: the keeper had no segment to lease the last time */
	_Atomic bool wanted; /* the keeper has been asked */
	_Atomic uint32_t segments;
	_Atomic bool idle_asked; /* maintain() wants sparse segments cleaned */
	_Atomic bool idle_more;
	_Atomic bool thinned; /* something was freed since idle-time work last looked */
};

/* Stores that lie side by side in a segment, written at once. */
struct write {
	struct write *next;
	struct space *space;
	uint32_t seg, block, blocks;
	struct ebb_io *first, *last; /* linked by priv[1] */
	uint32_t n_iov;
	struct iovec iov[WRITE_PIECES];
};

struct channel {
	struct ssd *ssd;
	struct channel *next; /* under ssd.lock */
	struct io_uring ring;
	bool fixed; /* [buffers, + buffers_bytes) is registered */
	char *buffers;
	uint64_t buffers_bytes;
	uint32_t depth, in_flight;
	uint32_t writes_out; /* writes at the device */
	uint32_t reads_out;  /* reads at the device that nobody waits for */
	bool kicked;	     /* a NOP is on its way that makes the ring readable */
	struct write *idle, *waiting, **waiting_end;
	struct write writes[WRITES_MAX];
	struct ebb_io *later, *later_last; /* such reads that wait; linked by priv[1] */
	struct ebb_io *done, *done_last;   /* complete, not given back yet; linked by priv[1] */
	char *stage; /* STAGE_BYTES for ciphertext, and behind it a segment's bytes to work in */
	uint32_t stage_used, stage_writes;
	_Atomic uint64_t count[COUNTS]; /* written by the channel's thread alone */
};

/* An instance. */
struct ssd {
	const struct ebb_backend_host *host;
	struct options options; /* but for the two below, as opened */
	_Atomic uint64_t write_budget;
	_Atomic bool discard;

	int fd; /* O_DIRECT; locked */
	bool is_block;
	struct super_block *super; /* a page; the keeper's, after open */
	struct table_entry *table; /* page-aligned; under lock */
	uint8_t *table_dirty;	   /* by block of the table; under lock */
	struct segment *segs;
	uint32_t n_segs;
	uint64_t data_offset;

	pthread_mutex_t lock; /* lists, segment states, the table */
	struct space *spaces;
	struct channel *channels;
	struct bits used; /* segments that are not free */
	void *used_memory;
	_Atomic uint32_t n_free, n_absent;
	_Atomic uint64_t count[COUNTS]; /* of closed channels and of the keeper */
	_Atomic uint32_t demand;	/* loads that a vCPU waits for, in all channels */

	pthread_t keeper;
	pthread_cond_t wake, worked;
	bool started;
	_Atomic bool active;	    /* this is the daemon in charge: something was asked of it */
	bool kicked, stop;	    /* under lock */
	uint64_t passes;	    /* under lock */
	pthread_mutex_t clean_lock; /* a space does not go while it is cleaned; before all others */
	char *clean_in, *clean_out;
	struct cleaning *cleaning;
	double budget_left; /* under lock */
	uint64_t budget_at_ns;
	uint64_t reported[REPORTED]; /* failures that the log tells of; the keeper's */
	uint64_t orphans_at_ns;	     /* when to look for them next; the keeper's */
};

static inline void count_add(struct channel *ch, enum count what, uint64_t n)
{
	uint64_t was = atomic_load_explicit(&ch->count[what], memory_order_relaxed);

	atomic_store_explicit(&ch->count[what], was + n, memory_order_relaxed);
}

/* I/Os are linked by their second private word. */
static inline struct ebb_io *io_next(const struct ebb_io *io)
{
	return (struct ebb_io *)(uintptr_t)io->priv[1];
}

static inline void io_append(struct ebb_io **first, struct ebb_io **last, struct ebb_io *io)
{
	io->priv[1] = 0;
	if (*first)
		(*last)->priv[1] = (uint64_t)(uintptr_t)io;
	else
		*first = io;
	*last = io;
}

static inline void io_prepend(struct ebb_io **first, struct ebb_io **last, struct ebb_io *io)
{
	io->priv[1] = (uint64_t)(uintptr_t)*first;
	if (!*first)
		*last = io;
	*first = io;
}

static inline uint64_t seg_offset(const struct ssd *d, uint32_t seg)
{
	return d->data_offset + (uint64_t)seg * SEGMENT_BYTES;
}

/* ---- ssd.c ---- */

/* A count of all channels, open or closed. Under lock. */
uint64_t ssd_count(struct ssd *d, enum count what);

/* ---- device.c ---- */

/* Memory for a set of numbers below n, as sparse as its use. 0 or -errno. */
int sparse_bits_init(struct bits *b, uint64_t n, void **memory);
void sparse_bits_destroy(struct bits *b, void *memory);

/* Lets go of the file or device, all channels included, for another process; and takes it again. */
int device_let_go(struct ssd *d);
int device_take_again(struct ssd *d);

/* Opens, locks and reads (or formats) the file or block device that the options name. */
int device_open(struct ssd *d, char *err, uint64_t err_len);
void device_close(struct ssd *d);
/* Writes the superblock. The keeper's, or alone. */
int device_write_super(struct ssd *d);
/* Writes the dirty blocks of the table. The keeper's, or alone; takes lock. */
int device_write_table(struct ssd *d);
/* Tells the device that [seg, seg + n) holds nothing any more. */
int device_discard(struct ssd *d, uint32_t seg, uint32_t n);

/* ---- space.c ---- */

int space_open(struct ssd *d, const struct ebb_space_params *params, struct space **out);
void space_close(struct space *sp);
void space_usage(struct space *sp, struct ebb_usage *out);

/* ---- handles.c ---- */

int handles_init(struct space *sp);
void handles_destroy(struct space *sp);
/* A free handle, nothing live under it yet. -ENOSPC. */
int handle_take(struct space *sp, uint64_t *handle);
/* Takes back one under which nothing became live, or whose entry was made free. */
void handle_release(struct space *sp, uint32_t index);
uint32_t handle_first_gen(const struct space *sp, uint32_t index);
/* Frees a live object; false when the handle is not live. */
bool object_free(struct space *sp, uint64_t handle);

/* ---- segments, in space.c ---- */

/* n blocks, side by side, for stores; the segment gets a reference. -ENOSPC, -EAGAIN: soon. */
int seg_alloc(struct space *sp, uint32_t blocks, uint32_t *seg, uint32_t *block);
/* False when a place that an entry names cannot be: the map was damaged. */
bool place_is_ours(const struct space *sp, uint64_t p);
/* Nothing more is put into *seg, which becomes NONE; it goes when it is empty. */
void seg_seal(struct ssd *d, uint32_t *seg);
/* It is nobody's from now on. Under lock. */
void seg_free(struct ssd *d, uint32_t seg);
void seg_ref(struct ssd *d, uint32_t seg);
/* Gives a reference back; the segment goes when it is sealed, empty and at rest. */
void seg_unref(struct ssd *d, uint32_t seg);
/* An object has left. */
void seg_less(struct ssd *d, uint32_t seg, uint32_t blocks);
/* Nothing more is put into it. */
void seg_give_up(struct space *sp, uint32_t seg);

/* ---- write.c ---- */

/* Takes stores from ios, as many as fit now; *taken of them. The rest is asked again. */
uint32_t writes_take(struct channel *ch, struct ebb_io **ios, uint32_t n);
/*
 * The sums of the plain stores that were taken, each before its write is looked at again. So it can
 * come after they were sent, and the disk does not wait for it.
 */
void writes_sum(struct ebb_io *const *ios, uint32_t n);
/* Hands waiting writes to the ring, as far as demand loads allow. */
void writes_issue(struct channel *ch);
/* The device has ended a write with this result. */
void write_ended(struct channel *ch, struct write *w, int res);
/* Completes its stores; res: bytes written, or -errno. */
void write_done(struct channel *ch, struct write *w, int res);

/* ---- channel.c ---- */

/* The next entry of the ring. */
struct io_uring_sqe *channel_sqe(struct channel *ch);

int channel_open(struct ssd *d, const struct ebb_channel_params *params, struct channel **out);
void channel_close(struct channel *ch);
int channel_submit(void *channel, struct ebb_io **ios, uint32_t n);
int channel_poll(void *channel, struct ebb_io **ios, uint32_t n);
int channel_event_fd(void *channel);
int channel_matches(void *channel, void *space, uint64_t handle, uint64_t owner, const void *buf,
		    uint32_t len);
/* It counts as in flight; poll() gives it back. */
void channel_complete(struct channel *ch, struct ebb_io *io, int result);
/* True when one more may go to the device beside so many of its kind that are there already. */
bool channel_may_issue(struct channel *ch, uint32_t out);
/* True when [buf, buf + len) is registered with the ring. */
bool channel_is_fixed(const struct channel *ch, const void *buf, uint64_t len);

/* ---- keeper.c ---- */

int keeper_init(struct ssd *d);
int keeper_start(struct ssd *d);
/* Ends the thread; what it knows stays. */
void keeper_stop(struct ssd *d);
/* The thread has ended, and the instance is being closed for good: says so on the device. */
void keeper_close(struct ssd *d);
void keeper_kick(struct ssd *d);
/* Idle-time work on a space: asks the keeper, waits for up to budget_us. 1: more to do. */
int keeper_maintain(struct space *sp, uint32_t budget_us);
/*
 * Takes a free segment for a space, in memory only: device_write_table() must follow before it is
 * used. spare: also one of the last, which are kept for cleaning. -ENOSPC, -EDQUOT, -ENOMEM.
 */
int keeper_lease(struct ssd *d, struct space *sp, bool spare, uint32_t *seg);
void keeper_set_budget(struct ssd *d, uint64_t bytes_a_day);

/* ---- clean.c ---- */

/* What cleaning works with; free() it. */
struct cleaning *clean_new(void);
/* Moves what lives in the sparsest segment (live blocks at most `most`) of one space, or of any.
 * 1: one was emptied; 0: there is none; -errno. */
int clean_one(struct ssd *d, struct space *only, uint32_t most);

#endif
