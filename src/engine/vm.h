/* SPDX-License-Identifier: BSD-3-Clause */
/* vm.h: what the engine's own files know of VMs, RAM blocks, mappings and attachments. */
#ifndef ENGINE_VM_H
#define ENGINE_VM_H

#include <jansson.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/stat.h>

#include "base/clock.h"
#include "engine/engine.h"
#include "engine/trace.h"
#include "model/page_table.h"
#include "plugin/backend_host.h"
#include "plugin/policy_host.h"

/*
 * Theory of operation
 *
 * A VM has RAM blocks; each is a range of one memfd with a page table of its own. A process that
 * maps the VM's RAM is an attachment: a userfaultfd and a mapping for each block (or part of one).
 * The first is the primary: pages are filled through its mappings only; the others are woken or
 * continued, so that a lying secondary can never be handed content. The daemon never maps guest
 * RAM itself: it reads with pread and fills with UFFDIO_COPY.
 *
 * Lifetime: blocks, mappings and attachments are published through atomic pointers and read by
 * fault and eviction threads without a lock. They are unpublished first, then engine_barrier()
 * waits until every engine thread has passed a point where it holds none, then they are freed. A
 * VM itself is reference counted on top of that, because jobs and control hold it longer.
 *
 * Lock order: engine.lock, vm.structure, vm.move_lock, vm.op_lock, vm.lock, vm.policy_lock,
 * block.pin_lock. None is held across a long operation except vm.policy_lock across policy hooks
 * and vm.move_lock across the I/O of one batch; none but pin_lock (a few comparisons) is ever taken
 * on the fault path.
 */

#define BLOCK_MAPPINGS_MAX 32
#define SPACE_KEY_BYTES	   32
#define BLOCK_PINS_MAX	   256
#define HUGE_RESERVE_MAX   16
#define VM_PEERS_MAX	   32
#define VM_STORES_MAX	   (VM_REGIONS_MAX + 17) /* page tables, backend spaces, the record */

enum vm_counter {
#define COUNTER(name, json, help) COUNTER_##name,
#include "engine/counters.def"
#undef COUNTER
	COUNTERS
};

enum block_kind {
	BLOCK_SHMEM,   /* 4 KiB pages of tmpfs; unit 4 KiB */
	BLOCK_THP,     /* tmpfs with transparent huge pages kept whole; unit 2 MiB */
	BLOCK_HUGETLB, /* hugetlbfs, 2 MiB; unit 2 MiB */
	BLOCK_MIXED,   /* tmpfs with transparent huge pages, or without: by extents of 2 MiB that
			  are split and made whole again; unit 4 KiB */
};

/* A piece of memory that outlives the daemon: a memfd and our mapping of it. */
struct store_memory {
	char name[STORE_NAME_MAX];
	int fd;
	bool kept; /* the client (or the service manager) holds a descriptor of it */
	void *addr;
	uint64_t bytes;
};

struct own_mapping;

/* Part of a block as one process maps it. */
struct mapping {
	struct attachment *att;
	char id[REGION_ID_MAX]; /* of a mapping beside the primary's first; "" for that */
	struct block *block;
	uint64_t host_addr;  /* of first_unit */
	uint64_t first_unit; /* within the block */
	uint64_t units;
};

struct pin {
	uint64_t first, count; /* units of the block */
	unsigned int nest;
};

struct block {
	struct vm *vm;
	char id[REGION_ID_MAX];
	enum block_kind kind;
	_Atomic bool minor; /* registered MINOR: see minor_wanted() */
	_Atomic uint64_t splits,
		max_splits;	    /* extents of 2 MiB registered apart from their neighbours */
	_Atomic uint64_t *split;    /* a bit for each; NULL unless THP or MIXED: see thp.c */
	pthread_mutex_t split_lock; /* MIXED: one change of how an extent is registered at a time */
	_Atomic uint8_t *whole;	    /* MIXED: a byte an extent, see thp_look() */
	uint64_t look_hand;	    /* the extent that it looks at next */
	_Atomic bool gone;	    /* being unplugged: no eviction any more */
	int memfd;
	dev_t dev;
	ino_t ino;
	uint64_t memfd_offset, bytes, guest_addr;
	unsigned int unit_shift;
	uint64_t units;
	uint64_t first_unit; /* in the VM's numbering */
	struct page_table table;
	char table_name[64];					/* of its surviving memory */
	_Atomic(struct mapping *) mappings[BLOCK_MAPPINGS_MAX]; /* [0]: the primary's */
	_Atomic unsigned int n_mappings;			/* slots used, some may be NULL */
	/* When each unit was evicted, in the VM's epochs: see demote.c. NULL until it matters. */
	_Atomic(_Atomic uint8_t *) ages;
	pthread_mutex_t pin_lock;
	struct pin pins[BLOCK_PINS_MAX];
	_Atomic unsigned int n_pins;
};

struct attachment {
	struct vm *vm;	 /* a reference */
	uint64_t serial; /* never used again */
	int uffd, pidfd, pagemap_fd;
	pid_t pid;
	uid_t uid;
	bool secondary;
	bool stand_in;	   /* for the primary, in this process: see orphan.c */
	_Atomic bool dead; /* the process is gone, or detached */
	_Atomic unsigned int refs;
	_Atomic(struct mapping *) mappings[VM_REGIONS_MAX];
	_Atomic unsigned int n_mappings;
	pthread_mutex_t client_lock; /* around ops: the connection may go at any time */
	const struct attach_client_ops *ops;
	void *client;
	bool zaps;			  /* its client said that it serves this request */
	_Atomic uint64_t no_zap_until_ns; /* one was not answered */
	struct own_mapping *own;	  /* a stand-in's: see orphan.c */
};

/* A FIFO of recently evicted units, to tell refaults: see evict.c. */
struct recent_ring {
	uint64_t *units;
	uint64_t size, next;
	pthread_mutex_t lock;
};

/* Ranges that the prefetcher (on the fault path) or the zapper was asked for. */
#define PREFETCH_RING 1024u
struct prefetch_ring {
	_Atomic uint64_t head, tail;
	struct ebb_range slots[PREFETCH_RING];
	_Atomic bool ready[PREFETCH_RING]; /* the slot is written */
};

/*
 * Ranges that a policy wants brought back in bulk, behind those of the fault path. Made when the
 * first one is asked for.
 */
#define BULK_MIN 256u
#define BULK_MAX 65536u
struct bulk_queue {
	pthread_mutex_t lock;
	struct ebb_range *slots;
	uint64_t head, tail, size;
	bool drained; /* since the last one was taken: the policy may have more */
};

/* Faults that the reclaim policy is told of later; old ones are overwritten. */
#define FAULT_REFAULT (UINT32_C(1) << 31) /* in flags: soon after its eviction; ours */
#define FAULT_RING    1024u
/* Words of their own, because a slot may be overwritten while it is read: these are hints. */
struct fault_slot {
	_Atomic uint64_t unit, time_ns;
	_Atomic uint64_t flags_thread; /* flags in the upper half */
};
struct fault_ring {
	_Atomic uint64_t head;
	uint64_t tail; /* under policy_lock */
	struct fault_slot slots[FAULT_RING];
};

struct vm_policy {
	_Atomic(struct policy_instance *) instance;
	struct ebb_policy_host host;
	struct ebb_policy_vm self;
	char name[PLUGIN_NAME_MAX];
	json_t *options;   /* {name: value}, as it was given; under policy_lock */
	bool failure_told; /* under policy_lock */
	char aside[160];   /* why null stands in for what was asked for; "" */
	int saved_fd;	   /* its state, for a successor; -1: none */
};

/* A file of guest RAM, and how many regions of it the VM has. */
struct ram_file {
	dev_t dev;
	ino_t ino;
	unsigned int regions;
};

/* Access windows of a VM, chunk by chunk: see tracker_window(). The keeper's. */
struct window_pace {
	uint64_t *passed_ns; /* by chunk: when its last window ended; 0: never */
	uint64_t chunks, hand;
	uint64_t earned_ns; /* when credit was last given */
	int64_t credit_ns;
	uint64_t minor_ns; /* as counted then */
};

/* How far what is read ahead gets used; see prefetch.c. Advice: threads may meet here. */
struct trust {
	_Atomic uint64_t hits, wasted; /* the counters as they were at the last verdict */
	_Atomic bool given;
	_Atomic uint32_t runs;
};

#define RUN_WAITS 8u

/* Runs that found no room to read ahead; see run_wait.c. */
struct run_wait {
	_Atomic uint64_t next[RUN_WAITS]; /* the units that their next faults will be on */
	_Atomic uint64_t hand;
	_Atomic uint64_t since_ns;	/* when the first of those that wait began to; 0: none */
	_Atomic int64_t from_bytes;	/* what was resident then */
	_Atomic uint64_t not_before_ns; /* no waiting until then */
};

struct vm {
	struct engine *eng;
	struct vm *next;
	_Atomic unsigned int refs;
	char name[VM_NAME_MAX];
	char uuid[40];
	uid_t uid;
	pthread_mutex_t lock; /* structure and settings */
	/*
	 * Held for reading by threads outside the engine (jobs, control) while they hold blocks or
	 * mappings, for writing by whoever takes one away, after the barrier.
	 */
	pthread_rwlock_t structure;
	_Atomic bool dead;	/* being taken down */
	_Atomic bool restoring; /* detach: nothing may be evicted any more */
	_Atomic bool attaching; /* not yet known by its name: it may come to nothing */
	_Atomic bool orphaned;	/* no longer known by its name: see orphan.c */
	bool over;		/* nobody joins any more; under lock */
	struct ram_file files[VM_REGIONS_MAX]; /* of no other VM; under engine.lock */
	unsigned int n_files;
	_Atomic(struct block *) blocks[VM_REGIONS_MAX];
	_Atomic unsigned int n_blocks; /* slots used; never reused while the VM lives */
	_Atomic uint64_t units;
	_Atomic(struct attachment *) attachments[VM_ATTACH_MAX];

	/* Settings. */
	_Atomic uint64_t limit_bytes, floor_bytes;
	_Atomic uint32_t weight;
	char granularity[8];
	unsigned int tiers[ENGINE_BACKENDS_MAX]; /* backend slots, in order; under lock */
	unsigned int n_tiers;
	/* For who does not take the lock: the first of them, or 0, and whether there are more. */
	_Atomic unsigned int top_tier;
	_Atomic bool chained;
	/* By backend slot: bytes stored there above which some move down, and until when; 0: none.
	 */
	_Atomic uint64_t tier_high[PE_TIERS], tier_low[PE_TIERS];
	_Atomic(struct backend_space *) spaces[PE_TIERS];
	uint64_t space_ram_bytes[PE_TIERS]; /* what each was opened with */
	void *space_ctx[PE_TIERS];	    /* what the backend knows the space by; ours */
	/* Secrets of the spaces: random, kept in the record, so that a successor has them. */
	uint8_t space_key[PE_TIERS][SPACE_KEY_BYTES];
	pid_t keeper_pid; /* the primary's, whose death ends the VM */

	/* Accounting, bytes. */
	_Atomic int64_t resident, evicted, zero, lost, copies;
	_Atomic int64_t tier_units[PE_TIERS];
	_Atomic uint64_t moved_out[PE_TIERS]; /* out of each, to another; of guest RAM */
	_Atomic uint64_t evicted_ever;	      /* bytes */
	_Atomic uint64_t counter[COUNTERS];
	_Atomic uint64_t minor_paid_ns; /* until when MINOR faults have used their share up */
	struct hist fault_latency;
	struct recent_ring recent;
	_Atomic int huge_reserve[HUGE_RESERVE_MAX]; /* see huge_reserve.c */

	/* Reclaim. */
	_Atomic bool kicked;	       /* an evictor was told to look */
	_Atomic bool parked;	       /* faults wait for room */
	_Atomic int64_t reclaim_left;  /* bytes that a vm-reclaim still wants */
	_Atomic uint64_t reclaim_idle; /* rounds in a row that freed nothing though they had to */
	_Atomic uint64_t reclaim_dry;  /* those in which nothing could be evicted, see note_dry() */
	_Atomic uint64_t reclaim_lost; /* units that the guest took back since then */
	_Atomic int64_t proactive_left; /* units that the policy's tick asked for */
	_Atomic uint64_t last_limit_event_ns, limit_set_ns;
	_Atomic unsigned int evictors; /* threads at work on this VM */

	/* Processes that were given the RAM's memfd and have not attached; under lock. */
	_Atomic unsigned int joining; /* secondaries that are attaching or leaving */
	pid_t peers[VM_PEERS_MAX];
	unsigned int n_peers;
	/* Why nothing may be evicted, as bits; 0: go on. */
	_Atomic uint32_t suspended;

	/* Demotion, see demote.c. */
	pthread_mutex_t move_lock; /* one batch of moves between tiers at a time */
	_Atomic uint8_t epoch;	   /* the age of what is evicted now */
	struct {
		uint64_t evicted_ever, not_before_ns;
		unsigned int epochs; /* since ages were bounded */
	} demotion;		     /* the demoter's own */

	pthread_mutex_t policy_lock; /* serialises policy hooks */
	struct window_pace windows;
	struct vm_policy reclaim, prefetch;
	_Atomic bool reclaim_wants_faults;
	struct prefetch_ring prefetch_ring, collapse_ring, zap_ring;
	struct run_wait run_wait;
	struct bulk_queue bulk;
	struct ebb_range ahead;	 /* what is left of one from prefetch_ring; the prefetcher's own */
	uint64_t ahead_waits_ns; /* since when there has been no room for it; 0: there is */
	struct trust trust;
	_Atomic bool prefetch_waits;	  /* an evictor that has made room wakes the prefetcher */
	_Atomic(struct vm_trace *) trace; /* a recording under way; set and cleared by its job */
	pthread_mutex_t op_lock;	  /* guards: */
	struct loader *op_loader;	  /* of discards; made by the first */
	struct fault_ring fault_ring;
	uint64_t sweep_hand; /* under policy_lock */
	bool has_pagemap;    /* what its process has mapped can be seen: see vm_has_tracker() */

	/* Written under lock and stores_lock, read under either. */
	struct store_memory stores[VM_STORES_MAX];
	unsigned int n_stores;
	pthread_mutex_t stores_lock;
	char unkeep[VM_STORES_MAX][STORE_NAME_MAX]; /* gone, but the client still holds them */
	unsigned int n_unkeep;
	unsigned int stores_to_come; /* that are about to be made; under lock */
	unsigned int tables_made;
	bool keep; /* somebody holds the stores: they must be in its hands before they matter */
	struct shelf *shelf; /* who: the service manager; NULL: the client. Set once */
};

/* Bits of vm.suspended. */
enum suspend_reason {
	SUSPEND_NO_GUARD = 1 << 0, /* no folio probe and no quarantine allowed */
	SUSPEND_FOREIGN = 1 << 1,  /* RAM is mapped by a process that is not attached */
	SUSPEND_LOCKED = 1 << 2,   /* the VMM has locked or pinned memory and there is no probe */
	SUSPEND_SHARED = 1 << 3,   /* RAM is being handed to another process */
	SUSPEND_KEEPING = 1 << 7,  /* nobody has confirmed yet that it holds the VM's state */
	SUSPEND_TWICE = 1 << 5,	   /* transparent huge pages that two processes map */
	SUSPEND_NEW = 1 << 6,	   /* nobody has looked for foreign mappings yet */
	SUSPEND_COLLAPSE = 1 << 4, /* this kernel fills holes when it collapses huge pages */
	SUSPEND_PROBING = 1 << 8,  /* the daemon is finding out how to guard against I/O */
	SUSPEND_ORPHANED = 1 << 9, /* the VM is over, processes still map its RAM */
};

/* Reasons that go away by themselves in a moment. */
#define SUSPEND_PASSING (SUSPEND_KEEPING | SUSPEND_NEW | SUSPEND_PROBING)

static inline void vm_count(struct vm *vm, enum vm_counter c)
{
	atomic_fetch_add_explicit(&vm->counter[c], 1, memory_order_relaxed);
}

static inline void vm_add(struct vm *vm, enum vm_counter c, uint64_t n)
{
	atomic_fetch_add_explicit(&vm->counter[c], n, memory_order_relaxed);
}

static inline uint64_t block_unit_bytes(const struct block *b)
{
	return UINT64_C(1) << b->unit_shift;
}

/* Extents of 2 MiB, and the one that a unit is in, for blocks that have them (THP, MIXED). */
#define EXTENT_BYTES (UINT64_C(2) << 20)
#define EXTENT_UNITS 512u /* of a MIXED block */

static inline uint64_t block_extents(const struct block *b)
{
	return b->bytes / EXTENT_BYTES;
}

static inline uint64_t block_extent_of(const struct block *b, uint64_t unit)
{
	return (unit << b->unit_shift) / EXTENT_BYTES;
}

/* Its units are pages of 4 KiB. */
static inline bool block_is_small(const struct block *b)
{
	return b->kind == BLOCK_SHMEM || b->kind == BLOCK_MIXED;
}

/* Offset of a unit in the block's memfd. */
static inline uint64_t block_file_offset(const struct block *b, uint64_t unit)
{
	return b->memfd_offset + (unit << b->unit_shift);
}

/* The unit's number for what is stored of it: no other unit of the VM ever has it. Never 0. */
static inline uint64_t unit_owner(const struct block *b, uint64_t unit)
{
	return b->first_unit + unit + 1;
}

static inline bool mapping_covers(const struct mapping *m, uint64_t unit)
{
	return unit >= m->first_unit && unit - m->first_unit < m->units;
}

static inline uint64_t mapping_addr(const struct mapping *m, uint64_t unit)
{
	return m->host_addr + ((unit - m->first_unit) << m->block->unit_shift);
}

/* The block of a VM-wide unit number and its number within; NULL in gaps. Any engine thread. */
struct block *vm_block_of(struct vm *vm, uint64_t vm_unit, uint64_t *unit);
/* The mapping of an attachment that holds a host address; NULL when there is none. */
struct mapping *attachment_find(struct attachment *att, uint64_t addr, uint64_t *unit);

/* Closes the memfd and frees; NULL is fine. */
void block_free(struct block *b);
/* The order of its tiers was changed. Under vm.lock, or before anybody knows the VM. */
void vm_tiers_changed(struct vm *vm);
/* The backend slots that it stores in, in order; returns how many. */
unsigned int vm_chain(struct vm *vm, unsigned int tiers[ENGINE_BACKENDS_MAX]);
/* The refault ring follows the VM's size. */
void vm_resize_recent(struct vm *vm);

struct vm *vm_new(struct engine *eng, const char *name, const char *uuid, uid_t uid);
void vm_ref(struct vm *vm);
/* Frees the VM with the last reference: no thread may know it any more. */
void vm_put(struct vm *vm);

/* Finds or makes surviving memory of the VM. 0 and *out, or -errno. Under vm.lock. */
int vm_store_open(struct vm *vm, const char *name, uint64_t bytes, struct store_memory **out,
		  bool *found);
/*
 * Takes over a piece that a client kept (fd borrowed): only a memfd that a daemon of this user
 * made. -EPERM when it is not. What is in it is checked by whoever uses it. Under vm.lock.
 */
int vm_store_adopt(struct vm *vm, const char *name, int fd);
/* Whether a file is such a memfd, and what else fstat() says. */
bool vm_store_is_ours(int fd, struct stat *st);
/* A piece as a living daemon had it; consumes fd. 0 or -errno. */
int vm_store_inherit(struct vm *vm, const char *name, int fd, uint64_t bytes, bool kept);
/*
 * Gives bytes of a piece back to the host; they read as zeroes. 0 or -errno. Needs no lock, but a
 * piece that nobody closes meanwhile: a backend's own stay while its space is open.
 */
int vm_store_punch(struct vm *vm, const char *name, uint64_t offset, uint64_t bytes);
void vm_store_close(struct vm *vm, const char *name);
/* All of them: the VM is dead. */
void vm_drop_stores(struct vm *vm);

/* Why eviction is suspended, as a sentence; "" when it is not. */
void vm_suspended_text(uint32_t reasons, char *buf, size_t bytes);
/*
 * A process was given the RAM (expected), or need not be waited for any more; 0 stands for one that
 * is not known. Sets and clears SUSPEND_SHARED. -ENOSPC: too many.
 */
int vm_expect_peer(struct vm *vm, pid_t pid);
void vm_forget_peer(struct vm *vm, pid_t pid);
/* Those that have exited are not waited for. */
void vm_check_peers(struct vm *vm);

/* Sets or clears a reason; raises EVENT_VM_SUSPENDED when the whole changes. */
void vm_suspend(struct vm *vm, enum suspend_reason reason, bool on);

#endif
