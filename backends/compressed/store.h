/* SPDX-License-Identifier: BSD-3-Clause */
/* store.h: the running state of the compressed store, shared by its files. */
#ifndef COMPRESSED_STORE_H
#define COMPRESSED_STORE_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "bits.h"
#include "class.h"
#include "codec.h"
#include "ebb/backend.h"
#include "layout.h"
#include "place.h"

#ifndef MADV_POPULATE_WRITE /* Linux 5.14; a C library may be older */
#define MADV_POPULATE_WRITE 23
#endif

#define MEM_NAME "store" /* the one memfd of a space */
#define NONE	 UINT32_MAX

/* Of every store, wherever its memory is. */
#define STORE_OPTION_CODEC \
	"codec: lz4 (default), zstd or plain; what is stored stays as it is when it is changed"
#define STORE_OPTION_LEVEL \
	"level: lz4: acceleration, 1 (default) to 1000; zstd: level, -50 to 12, default 1"
#define STORE_OPTION_MAX_BYTES \
	"max-bytes: memory that all VMs together may take here; 0 (default): no bound"

/* How full a slab is, in parts; slabs are taken from the fullest part first. */
#define FULLNESS 8u

/* What a slab is doing; changed under the lock of its class. */
enum slab_state {
	SLAB_IDLE = 0,	/* not in use, or about to be given back by whoever emptied it */
	SLAB_OPEN = 1,	/* slots may be taken and released */
	SLAB_APART = 2, /* in nobody's list: slots are only released; belongs to maintain() */
};

/* A slab in use, as the running daemon knows it. */
struct slab {
	uint64_t used[SLOTS_MAX / 64];
	uint64_t backed; /* pages that have memory */
	uint32_t prev, next;
	uint16_t live;
	uint8_t list; /* fullness list it is in; FULLNESS: none */
};

/* One size class of a space. Everything under its lock. */
struct class_state {
	pthread_mutex_t lock;
	uint32_t first[FULLNESS];
	uint32_t slabs;
	uint64_t slots_used;
	uint64_t taken; /* slots ever taken: tells maintain() whether the space is at rest */
	uint64_t objects, logical_bytes, content_bytes;
} __attribute__((aligned(64)));

/* One page of the handle table. Under table_lock. */
struct table_page {
	uint16_t used;
	uint16_t free;	/* 1 + first free entry that was used before; 0: none */
	uint16_t fresh; /* entries from here on were never used */
	uint16_t backed;
};

/* Empty slabs kept with their memory for the next one who needs a slab. Under pool_lock. */
#define RESERVE_MAX 8u
struct slab_reserve {
	uint32_t slab[RESERVE_MAX];
	uint32_t n;
};

enum compact_phase { COMPACT_REST, COMPACT_SWEEP, COMPACT_GRACE, COMPACT_GIVE_BACK };

/* Under maintain_lock. */
struct compaction {
	enum compact_phase phase;
	uint32_t slabs;	     /* chain of slabs set apart, by slab->next */
	uint32_t page;	     /* of the handle table, next to sweep */
	uint64_t retired;    /* epoch after which nobody reads from them */
	uint64_t given_back; /* bytes, in this cycle */
	uint64_t last_taken;
};

struct store;

/* A part of the content of a space whose content is on a device; as long as a chunk of that. */
struct part {
	_Atomic uint32_t chunk; /* 1 + its number; 0: the part has none */
	uint32_t slabs;		/* that are in use in it; under pool_lock */
};

/*
 * Lock order: maintain_lock, a class's lock, pool_lock. table_lock is taken with none of them
 * held but maintain_lock, and nothing is taken under it. settle_lock comes before all of these, and
 * doom_lock is taken alone or under it.
 */
struct space {
	struct store *store;
	void *host_ctx;
	struct space *next; /* under store->lock */

	uint8_t *base;
	struct store_header *header;
	_Atomic uint8_t *slab_class; /* class + 1 */
	_Atomic uint64_t *table;
	_Atomic uint32_t *sums; /* see object.c */
	uint64_t table_offset, sums_offset, class_offset, small_offset, large_offset, chunks_offset,
		running_offset, total_bytes;
	uint64_t n_handles;
	uint32_t n_small, n_large;

	/* Content on a device: all of them, and the device. NULL: content is at base. See chunks.c.
	 */
	struct part *parts;
	struct place_device device;
	struct chunk_owner owner;
	bool parts_sound; /* under pool_lock: what is kept of them and the device's table agree */

	struct slab *slabs;
	_Atomic uint8_t *slab_state; /* enum slab_state */
	struct class_state classes[CLASSES_MAX];

	pthread_mutex_t table_lock;
	struct table_page *pages;
	struct bits full_pages;

	pthread_mutex_t pool_lock;
	struct bits small_used, large_used;
	struct slab_reserve small_reserve, large_reserve;
	_Atomic uint64_t slabs_open;

	pthread_mutex_t maintain_lock;
	struct compaction compact;

	_Atomic bool unsettled;	     /* taken over, not all is on the books: see recover.c */
	pthread_mutex_t settle_lock; /* whoever settles */
	pthread_mutex_t doom_lock;   /* around dooming and the end of it */

	_Atomic uint64_t mem_bytes; /* of the memfd that have memory */
	bool left_room;		    /* for what running_leave() writes */
	bool disturber;		    /* recovered while the daemon before was still there */
};

enum channel_counter {
	COUNT_STORES,
	COUNT_LOADS,
	COUNT_PLAIN,
	COUNT_FULL,
	COUNT_BAD_HANDLE,
	COUNT_CORRUPT,
	COUNT_MOVED,
	COUNT_RELEASED,
	COUNT_CYCLES,
	COUNTERS
};

/*
 * A channel says when it may be reading objects: `epoch` is 0, or the store's epoch at the time
 * it began. Memory that objects were moved out of is given back when every channel is at 0 or has
 * begun since (epoch-based reclamation, K. Fraser, Practical lock-freedom, 2004, 5.2.3).
 */
struct channel {
	_Atomic uint64_t epoch __attribute__((aligned(64)));
	_Atomic uint64_t count[COUNTERS]; /* written by the channel's thread alone */
	struct store *store;
	struct channel *next; /* under store->lock */
	struct codec *codec;
	uint8_t scratch[PIECE_BYTES] __attribute__((aligned(64)));
};

/* An instance. */
struct store {
	const struct ebb_backend_host *host;
	struct place place;
	_Atomic int coding, lz4_level, zstd_level;
	_Atomic uint64_t max_bytes;	  /* 0: none */
	_Atomic uint64_t mem_bytes;	  /* of all spaces */
	_Atomic uint64_t epoch;		  /* from 1 */
	_Atomic uint64_t count[COUNTERS]; /* of closed channels and of maintenance */
	_Atomic uint32_t n_spaces_ever;
	uint32_t seed;
	pthread_mutex_t lock; /* the two lists */
	struct space *spaces;
	struct channel *channels;
	struct class_table classes;
};

/* What all VMs together may take; 0: no bound but the host's. */
static inline uint64_t store_capacity(const struct store *st)
{
	uint64_t most = atomic_load(&st->max_bytes);
	struct place_device d = place_device(&st->place);

	return most || !d.shift ? most : (uint64_t)(d.n_chunks - 1) << d.shift;
}

static inline void channel_count(struct channel *ch, enum channel_counter what)
{
	uint64_t n = atomic_load_explicit(&ch->count[what], memory_order_relaxed);

	atomic_store_explicit(&ch->count[what], n + 1, memory_order_relaxed);
}

/* A mutex that spins a little before it sleeps: the sections under it are short. */
void store_lock_init(pthread_mutex_t *lock);

/* ---- space.c ---- */

int space_open(struct store *st, const struct ebb_space_params *params, struct space **out);
void space_close(struct space *sp);
void space_usage(struct space *sp, struct ebb_usage *out);
/* How far offsets reach for a VM of so much RAM, and where then everything is. */
uint64_t space_span(uint64_t ram_bytes);
void space_lay_out(struct space *sp, uint64_t span);
/*
 * Gives [offset, offset + bytes) of the space memory now, rather than at the first touch, where
 * having none left would be a SIGBUS. -ENOSPC at max-bytes or when the system has none.
 */
int space_populate(struct space *sp, uint64_t offset, uint64_t bytes);
/* Takes it away again; `had` is how much of it had memory. */
int space_trim(struct space *sp, uint64_t offset, uint64_t bytes, uint64_t had);
/* Throws the running state away and makes it anew; nobody is in the space. 0 or -errno. */
int space_recover_again(struct space *sp);

/* ---- handles.c ---- */

void handles_init(struct space *sp);
/* A free index and the generation for it. -ENOSPC. */
int handle_take(struct space *sp, uint32_t *index, uint32_t *gen);
/* The entry of index was made free (entry_free()) by the caller. */
void handle_release(struct space *sp, uint32_t index);
/* True when page `page` of the table has a used entry. */
bool handle_page_used(struct space *sp, uint32_t page);
/* Gives back the memory of pages of the table without a used entry. Returns how many bytes. */
uint64_t handle_pages_trim(struct space *sp, uint32_t *page, uint32_t n);
uint32_t handle_first_gen(const struct space *sp, uint32_t index);
/* Sets the bit of the handle's entry in `named`, which has `entries`; not if it is an older one's.
 */
void handle_mark(const struct space *sp, uint64_t handle, uint8_t *named, uint64_t entries);

/* ---- slab.c ---- */

void slab_init(struct space *sp);

struct slot {
	uint32_t slab, slot;
};
/* What a slot's object adds to the sums of its class. */
struct slot_sums {
	uint32_t objects, logical_bytes, content_bytes;
};
/* A slot of a class. -ENOSPC. */
int slot_take(struct space *sp, unsigned int class, const struct slot_sums *sums, struct slot *out);
void slot_release(struct space *sp, struct slot at, const struct slot_sums *sums);

/* Where the byte at an offset of the slabs is; NULL when that has no memory. */
static inline uint8_t *content_at(const struct space *sp, uint64_t offset)
{
	uint64_t at = offset - sp->small_offset;
	uint32_t chunk;

	if (!sp->parts)
		return sp->base + offset;
	chunk = atomic_load_explicit(&sp->parts[at >> sp->device.shift].chunk,
				     memory_order_relaxed);
	if (!chunk)
		return NULL;
	return sp->device.base + ((uint64_t)(chunk - 1) << sp->device.shift) +
	       (at & ((UINT64_C(1) << sp->device.shift) - 1));
}

/* Where a slot is; NULL when there can be no such slot. *bytes: its size. */
static inline uint8_t *slot_at(const struct space *sp, uint32_t slab, uint32_t slot,
			       uint32_t *bytes)
{
	const struct class_shape *shape;
	unsigned int class;
	uint64_t offset;
	uint8_t *p;

	if (slab >= sp->n_small + sp->n_large)
		return NULL;
	class = atomic_load_explicit(&sp->slab_class[slab], memory_order_relaxed);
	if (class == 0 || class > sp->store->classes.n)
		return NULL;
	shape = &sp->store->classes.shape[class - 1];
	if (slot >= shape->slots || shape->large != (slab >= sp->n_small))
		return NULL;
	offset = slab < sp->n_small
			 ? sp->small_offset + (uint64_t)slab * SMALL_STRIDE
			 : sp->large_offset + (uint64_t)(slab - sp->n_small) * LARGE_STRIDE;
	p = content_at(sp, offset);
	if (!p)
		return NULL;
	*bytes = shape->slot_bytes;
	return p + (uint64_t)slot * shape->slot_bytes;
}

uint64_t slab_offset(const struct space *sp, uint32_t slab);
/* The pages of a slab that a slot lies in. */
uint64_t slot_pages(const struct class_shape *shape, uint32_t slot);
/* The pages of a slab that its live slots lie in. Under its class's lock, or set apart. */
uint64_t slab_pages_needed(const struct class_shape *shape, const struct slab *s);
/* Puts an open slab into the list that it belongs to, or takes it out. Under its class's lock. */
void slab_list(struct space *sp, unsigned int class, uint32_t slab);
void slab_unlist(struct space *sp, unsigned int class, uint32_t slab);
/* Gives an empty, idle slab in no list back to the pool; trim: without keeping its memory. */
void slab_give_back(struct space *sp, uint32_t slab, bool trim);
/* Trims what the reserve holds. Returns bytes. */
uint64_t slab_reserve_trim(struct space *sp);

/* ---- object.c ---- */

int object_store(struct channel *ch, struct space *sp, const struct ebb_io *io, uint64_t *handle,
		 uint32_t *stored_bytes);
int object_load(struct channel *ch, struct space *sp, const struct ebb_io *io);
int object_free(struct channel *ch, struct space *sp, uint64_t handle);
/* Frees all objects but those of the n handles; alone with the space. */
int64_t object_retain(struct channel *ch, struct space *sp, const uint64_t *handles, uint64_t n);
/* Releases slot and entry of a doomed entry; nobody else knows of it. */
void object_forget(struct space *sp, uint32_t index, uint64_t entry);
/* What the object of a live entry adds to the sums, and how many bytes of its slot it takes. */
bool object_sums(const struct space *sp, uint64_t entry, struct slot_sums *sums,
		 uint32_t *slot_used);

/* ---- recover.c ---- */

/* Takes the sizes of a space from the header that another daemon left. -EBADMSG when it is none. */
int recover_geometry(struct space *sp);
/* Makes the running state of such a space anew, as far as loads need it. */
int recover(struct space *sp);
/* The rest of it, unless that is done. Beside loads and frees. 0 or -ENOMEM. */
int recover_settle(struct space *sp);

/* ---- running.c ---- */

/* How much room the running state takes behind the slabs. The sizes are laid out. */
uint64_t running_bytes(const struct space *sp);
/* Points the space at it. 0 or -EINVAL. */
int running_map(struct space *sp);
/*
 * Memory for that of the first `need` slabs of a kind, or pages of the handle table, where the
 * first `had` have it already; before it is first written. 0 or -ENOSPC. Under pool_lock,
 * table_lock.
 */
int running_need_slabs(struct space *sp, bool large, uint32_t had, uint32_t need);
int running_need_table(struct space *sp, uint32_t had, uint32_t need);
/* The same for so many of each, in a space that has nothing of it. */
int running_need(struct space *sp, uint32_t small, uint32_t large, uint32_t table_pages);
/* All of it reads as zeroes again. */
int running_clear(struct space *sp);
/* Leaves all of it for a successor. Nobody is in the space. 0 or -ENOSPC. */
int running_leave(struct space *sp);
/* Takes it from there, changing nothing. False: there is none that can be used. */
bool running_adopt(struct space *sp);
/* About to change what the old daemon, should it go on, believes to know. */
void running_disturb(struct space *sp);
/* The hand-over is over: the space is in use again, by the one who calls. */
int running_resume(struct space *sp);

/* ---- chunks.c ---- */

/* Room in the space's memory for so much content; 0 where the place is no device. */
uint64_t chunks_bytes(const struct store *st, uint64_t content_bytes);
/* The sizes are laid out; the memory is mapped; found: another daemon left it. 0 or -errno. */
int chunks_open(struct space *sp, const struct ebb_space_params *params, bool found);
/* Reads what another daemon left, checking it, and counts no slab as used. */
int chunks_load(struct space *sp);
/* Counts slabs from the sets of those in use. */
void chunks_recount(struct space *sp);
/* Gives up everything; or just leaves it. */
void chunks_close(struct space *sp, bool give_up);
/* All of these do nothing without a device. Under pool_lock, or alone with the space. */
/* The slab is about to be used. -ENOSPC when there is no memory for it. */
int chunks_need(struct space *sp, uint32_t slab);
/* An unused slab of a part that has memory, or NONE. */
uint32_t chunks_spare_slab(struct space *sp, bool large);
/* It is in use, and no longer is. */
void chunks_slab_used(struct space *sp, uint32_t slab);
void chunks_slab_unused(struct space *sp, uint32_t slab);
/* Gives back what no slab in use needs: of the part of a slab, or of all. */
void chunks_trim(struct space *sp, uint32_t slab);
void chunks_trim_all(struct space *sp);

/* ---- compact.c ---- */

int compact(struct space *sp, uint32_t budget_us);

/* ---- compressed.c ---- */

/* Announces that the channel may read objects from here on, until channel_leave(). */
static inline void channel_enter(struct channel *ch)
{
	uint64_t e = atomic_load(&ch->store->epoch);

	atomic_store(&ch->epoch, e);
}

static inline void channel_leave(struct channel *ch)
{
	atomic_store_explicit(&ch->epoch, 0, memory_order_release);
}

/* Nobody reads what was unreachable before epoch `retired` began. Takes store->lock. */
bool store_quiescent(struct store *st, uint64_t retired);

#endif
