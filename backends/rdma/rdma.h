/* SPDX-License-Identifier: BSD-3-Clause */
/* rdma.h: the running state of the backend, shared by its files. */
#ifndef RDMA_RDMA_H
#define RDMA_RDMA_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include <rdma/rdma_cma.h>

#include "ebb/backend.h"
#include "map.h"
#include "system.h"

#define NONE	  UINT32_MAX
#define NS_PER_MS UINT64_C(1000000)
#define NS_PER_S  UINT64_C(1000000000)

#define SEGMENTS	32u /* pieces in flight per channel, each with a buffer of PIECE_BYTES */
#define SEGMENTS_DEMAND 8u  /* of them only for what somebody waits for */

enum counter {
	COUNT_STORES,
	COUNT_LOADS,
	COUNT_RETRIES,
	COUNT_REFUSED,
	COUNT_OTHER_COPY,
	COUNT_WRONG,
	COUNT_LOST,
	COUNT_BAD_HANDLE,
	COUNT_CONNECTED,
	COUNT_BROKEN,
	COUNT_CHUNKS_LOST,
	COUNT_MOVED,
	COUNTERS
};

/*
 * Lock order: rdma.lock, channel.lock, space.lock. Nothing that waits for the network is done
 * under any of them.
 */

/* An instance. */
struct rdma {
	const struct ebb_backend_host *host;
	struct wire_key key;
	bool mirror;
	_Atomic bool encrypt;
	_Atomic uint64_t patience_ns, spin_ns;
	pthread_mutex_t lock;
	pthread_cond_t unused; /* a space or channel lost a reference */
	struct link *links[DONORS_MAX];
	_Atomic unsigned int n_links;
	struct space *spaces;	  /* under lock */
	struct channel *channels; /* under lock */
	pthread_t keeper, mover;
	bool keeper_runs, mover_runs;
	_Atomic bool moving; /* the mover is at work */
	_Atomic bool stop;
	_Atomic bool quiet; /* handed over: no connection to any donor */
	_Atomic uint64_t count[COUNTERS];
};

/* A donor. */
struct link {
	struct rdma *inst;
	unsigned int index;
	char name[WIRE_NAME_BYTES], host[WIRE_NAME_BYTES], port[8];
	pthread_t thread;
	bool runs;
	int wake_fd;
	_Atomic bool placing;	  /* new content may go there */
	_Atomic bool up;	  /* connected and authenticated */
	_Atomic bool hopeful;	  /* may come up at once: nobody has found it away */
	_Atomic bool broken;	  /* this session is to end */
	_Atomic bool idle;	  /* there is no session */
	_Atomic bool tried;	  /* the first attempt is over, with `error` */
	_Atomic uint64_t down_ns; /* since when it has not been up; while it is not */
	_Atomic uint64_t recall;  /* chunks that the donor wants back */
	_Atomic uint64_t room;	  /* chunks that it would yet lend, to whomever asks first */
	int error;

	/* The rest is the thread's. */
	struct rdma_event_channel *events;
	struct rdma_cm_id *id;
	struct ibv_pd *pd;
	struct ibv_comp_channel *comp;
	struct ibv_cq *cq;
	struct ibv_mr *mr;
	struct wire_message *buffers;
	struct wire_key key;
	uint64_t session, last_message;
	uint32_t last_queue;
	bool complained;

	pthread_mutex_t drops_lock;
	struct wire_lease *drops; /* leases that nobody needs any more */
	uint32_t n_drops, drops_room;
};

/* A space's part at one donor, by its index in map_header.donors. */
struct share {
	struct link *link; /* NULL: not in use */
	_Atomic bool open; /* claimed in this session: addresses and keys of chunks are good */
	/* Under space.lock: */
	uint32_t pool, n_pool;		 /* list of chunks without an order */
	uint32_t first[PIECE_ORDER + 1]; /* lists of chunks with room */
	uint32_t n_chunks;
	uint64_t full_until_ns;
};

enum chunk_state {
	CHUNK_FREE = 0,	   /* an unused row of the table */
	CHUNK_POOL = 1,	   /* lent to us, empty, without an order */
	CHUNK_OPEN = 2,	   /* has an order; slots are taken and given back */
	CHUNK_LEAVING = 3, /* empty, and on its way back to the donor */
	CHUNK_LOST = 4,	   /* the donor does not have it; only counts who is still in it */
};

struct chunk {
	_Atomic uint8_t state; /* enum chunk_state; set under space.lock */
	uint8_t donor, order;
	bool listed;
	_Atomic bool vacating; /* takes nothing new, and what is in it is being moved away */
	uint16_t used;
	uint32_t prev, next; /* in the pool or a list of its share */
	uint32_t number, rkey;
	uint64_t addr;
	uint64_t slots[SLOTS_MAX / 64]; /* taken */
	uint64_t held[SLOTS_MAX / 64];	/* of them: free once the session has ended */
};

struct space {
	struct rdma *inst;
	void *host_ctx;
	struct space *next; /* under inst->lock */
	unsigned int refs;  /* under inst->lock: threads that work on it */
	struct map_header *header;
	_Atomic uint64_t *words; /* of chunks */
	struct entry *entries;
	uint64_t n_entries, n_chunks, map_bytes;
	struct seal seal;
	_Atomic uint64_t next_count; /* below header->counts */
	_Atomic bool active; /* I/O has come: what is lent may change, nobody else has the map */
	_Atomic bool closing;
	struct share shares[DONORS_MAX];

	pthread_mutex_t lock;
	struct chunk *chunks;	/* sparse */
	uint32_t *free_entries; /* sparse: next free one + 1 */
	uint32_t first_entry;	/* + 1 */
	uint32_t first_chunk;	/* free row + 1, linked by chunk.next */
	unsigned int turn;	/* which donor is next */
	bool moving;		/* pieces of it are being moved: no chunk goes back */
	uint64_t objects, logical_bytes, pieces;
};

#define IO_MOVE 100u /* an op of I/O that only we ourselves submit: a struct piece_move */

/* A copy of a piece that is moved. */
struct piece_move {
	struct ebb_io io; /* first */
	uint32_t index;	  /* of its entry */
	unsigned int copy;
	uint64_t head, from; /* the entry's, when it was decided */
	uint64_t to;	     /* where it was written; 0: nowhere */
};

/* A piece in flight. */
struct segment {
	struct op *op;
	uint32_t i;	 /* which piece of the object */
	uint8_t pending; /* copies, as bits */
	uint8_t failed;
	uint8_t link[COPIES];
	uint64_t at[COPIES];
	uint64_t count;
	uint8_t tag[SEAL_TAG_BYTES];
	struct segment *next; /* free ones */
};

/* An I/O that was taken. */
struct op {
	struct ebb_io *io;
	struct space *space;
	uint32_t todo; /* pieces that are not in flight, as bits */
	uint32_t in_flight;
	uint8_t order;
	bool encrypted;
	int result;
	uint64_t start_ns;
	uint32_t entries[PIECES_MAX];
	uint8_t bad[PIECES_MAX]; /* copies that were wrong, as bits */
	struct op *prev, *next;
};

struct op_list {
	struct op *first, *last;
};

/* One channel's connection to one donor. */
struct queue {
	struct link *link;
	struct rdma_cm_id *id;
	struct ibv_comp_channel *comp;
	struct ibv_cq *cq;
	struct ibv_mr *mr;
	uint32_t outstanding;
	unsigned int events; /* to acknowledge */
	bool armed, dead;
};

struct channel {
	struct rdma *inst;
	struct channel *next; /* under inst->lock */
	unsigned int refs;    /* under inst->lock */
	pthread_mutex_t lock; /* everything below */
	bool closed;
	struct queue *queues[DONORS_MAX];
	int event_fd, epoll_fd;
	_Atomic bool signalled;
	_Atomic uint32_t waiting; /* I/Os that nothing of is in flight for */
	uint8_t *buffers;	  /* SEGMENTS * PIECE_BYTES */
	struct segment segments[SEGMENTS];
	struct segment *free_segments;
	uint32_t n_free_segments;
	uint32_t depth, n_ops, demand_loads;
	struct op *ops; /* depth of them */
	struct op_list free_ops, demand, background;
	struct ebb_io **done; /* ring of depth */
	uint32_t done_head, n_done;
	uint64_t load_ns; /* what a load takes, smoothed */
};

static inline void count(struct rdma *inst, enum counter c, uint64_t n)
{
	atomic_fetch_add_explicit(&inst->count[c], n, memory_order_relaxed);
}

/* ---- space.c ---- */

int space_open(struct rdma *inst, const struct ebb_space_params *params, struct space **out);
void space_close(struct space *sp);
void space_usage(struct space *sp, struct ebb_usage *out);
/* A reference keeps a space from being closed. NULL: the end of the list. */
struct space *space_next(struct rdma *inst, struct space *after);
void space_put(struct space *sp);

/* n entries, not live. -ENOSPC. */
int entries_take(struct space *sp, uint32_t *out, uint32_t n);
void entries_put(struct space *sp, const uint32_t *list, uint32_t n);
/* What the next life of entry `index` has as its generation. */
uint16_t entry_next_gen(const struct space *sp, uint32_t index);
uint16_t entry_first_gen(const struct space *sp, uint32_t index);
/* A count for a seal, never given out before. */
uint64_t count_take(struct space *sp);

/*
 * A slot of an order at a donor that is among `links` (bits) and not share `avoid`. 0; -EAGAIN when
 * there may be one soon; -ENOSPC.
 */
int slot_take(struct space *sp, unsigned int order, uint32_t links, uint32_t avoid, uint64_t *at);
/* The same for a copy of a piece that moves away from `from`: packed closer at the same donor when
 * no other has room. */
int slot_take_for_move(struct space *sp, const struct piece_move *m, uint32_t links, uint64_t *at);
void slot_put(struct space *sp, uint64_t at);
/* The same for one that a write may still be under way to. */
void slot_hold(struct space *sp, uint64_t at);

/* Makes pieces 0 to n-1 one live object; their places, counts and tags are in the entries. */
uint64_t object_commit(struct space *sp, const struct op *op);
/* Resolves a handle: entries and flags of the op. 0 or -EINVAL. */
int object_find(struct space *sp, uint64_t handle, struct op *op);
int object_free(struct space *sp, uint64_t handle);
int64_t object_retain(struct space *sp, const uint64_t *handles, uint64_t n);

/* What the donor lends to us in this session; n_lent chunks. Others of ours are lost. Returns those
 * that are not ours in `strange` (room for n_lent), and how many. */
uint32_t share_claimed(struct space *sp, unsigned int share, const struct wire_chunk *lent,
		       uint32_t n_lent, uint32_t *strange);
/* Chunks that we were given. Returns how many could be noted, from the front. */
uint32_t share_given(struct space *sp, unsigned int share, const struct wire_chunk *lent,
		     uint32_t n);
/* True when the share should have more chunks. */
bool share_wants(struct space *sp, unsigned int share);
/* Numbers of up to n chunks that may go back now, which then belong to the caller. */
uint32_t share_leaving(struct space *sp, unsigned int share, uint32_t *rows, uint32_t *numbers,
		       uint32_t n);
/* Marks up to n chunks with content as vacating, the emptiest ones. Returns how many. */
uint32_t share_vacate(struct space *sp, unsigned int share, uint64_t n);
/* Those that are not empty by now are as others again. */
void share_vacate_end(struct space *sp, unsigned int share);
/* While it is set no chunk goes back to its donor. */
void space_moving(struct space *sp, bool on);
/* Up to n copies that lie in vacating chunks, from entry *next on, which moves on. */
uint32_t moves_find(struct space *sp, uint32_t *next, struct piece_move *out, uint32_t n);
/* From now on the copy is at m->to. False: it was freed or replaced meanwhile. m->from is not
 * free yet. */
bool move_commit(struct space *sp, const struct piece_move *m);
/* They are back. */
void share_left(struct space *sp, const uint32_t *rows, uint32_t n);

uint32_t chunk_take_row(struct space *sp);
void chunk_give_row(struct space *sp, uint32_t row);
void chunk_list(struct space *sp, uint32_t row);
void chunk_unlist(struct space *sp, uint32_t row);

/* What the donors of an instance have for it, with what it has already; 0: not known. */
uint64_t capacity_bytes(struct rdma *inst);

/* ---- move.c ---- */

void *mover_main(void *inst);

/* ---- recover.c ---- */

/* Makes the running state anew from a map that another daemon left. 0 or -EBADMSG. */
int recover(struct space *sp);

/* ---- channel.c ---- */

int channel_open(struct rdma *inst, uint32_t depth, struct channel **out);
void channel_close(struct channel *ch);
struct channel *channel_next(struct rdma *inst, struct channel *after);
void channel_put(struct channel *ch);
int channel_submit(struct channel *ch, struct ebb_io **ios, uint32_t n);
int channel_poll(struct channel *ch, struct ebb_io **ios, uint32_t n);
/* Waits until nothing that is in flight on any channel is at one of these places. Whoever names
 * them no more does so before. */
void channels_leave(struct rdma *inst, const uint64_t *places, uint32_t n);
/* Makes the channel's descriptor readable, so that its thread looks. */
void channel_kick(struct channel *ch);
/* Kicks all that have something waiting. */
void channels_kick(struct rdma *inst);
/* Gives a connected queue to its channel. False when the channel is closed. */
bool channel_attach(struct channel *ch, struct queue *q);
/* Takes a link's queues away from all channels and ends them; their I/O is done again. */
void channels_detach(struct link *l);

/* ---- queue.c: connections ---- */

/* Connects with a private message; waits at most timeout_ms. The answer's private data into
 * `answer`. On failure the id is gone. 0 or -errno. */
int connect_id(struct link *l, struct rdma_cm_id *id, const void *hello, uint8_t hello_bytes,
	       void *answer, uint32_t answer_bytes);
int resolve_id(struct link *l, struct rdma_cm_id **out);
struct queue *queue_new(struct link *l, struct channel *ch);
void queue_free(struct queue *q);
/* Looks at connection events that are there. */
void link_events(struct link *l);

/* ---- link.c ---- */

/* The link of that name, made if there is none. Under inst->lock. */
int link_get(struct rdma *inst, const char *name, bool placing, struct link **out);
void link_free(struct link *l);
void link_kick(struct link *l);
void link_break(struct link *l);
/* Remembers to give a lease back. */
void link_drop(struct link *l, const struct wire_lease *lease);

#endif
