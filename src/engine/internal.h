/* SPDX-License-Identifier: BSD-3-Clause */
/* internal.h: the engine's threads, backend slots and the calls between its files. */
#ifndef ENGINE_INTERNAL_H
#define ENGINE_INTERNAL_H

#include <jansson.h>

#include "base/fd.h"
#include "engine/vm.h"
#include "sys/features.h"
#include "sys/folio_probe.h"

#define UNIT_MAX_BYTES	  (UINT64_C(2) << 20)
#define FAULT_THREADS_MAX 16
#define EVICT_THREADS_MAX 8  /* as PE_CLAIM can tell apart */
#define EVICT_BATCH	  64 /* 4 KiB units at once: who writes to one waits for the others */
#define EVICT_BATCH_MAX	  256
#define EVICT_DEPTH	  2 /* batches at once, in an asynchronous tier */

/* ---- threads ---- */

/*
 * A thread that may hold pointers to blocks, mappings and attachments. It calls
 * engine_thread_pass() at the top of its loop, where it holds none.
 */
struct engine_thread {
	struct engine *eng;
	pthread_t thread;
	int wake_fd; /* eventfd */
	_Atomic uint64_t passed;
	_Atomic bool running;
	bool serves_faults; /* set before the start */
	_Atomic bool held;  /* stands still: see pause.c */
	struct engine_thread *next;
};

/* What stands still for a successor: see pause.c. */
struct engine_pause {
	pthread_mutex_t lock;
	pthread_cond_t changed;
	unsigned int inside; /* commands under way; under lock */
	bool closed;	     /* commands wait; under lock */
	_Atomic bool background, faults;
};

struct backend_slot {
	char name[PLUGIN_NAME_MAX], driver[PLUGIN_NAME_MAX];
	json_t *options; /* {name: value}, as it was added; under engine.lock */
	_Atomic(struct backend *) backend;
	_Atomic bool draining;
	_Atomic unsigned int users;	/* channels and spaces that are open in it */
	_Atomic uint64_t full_until_ns; /* after -ENOSPC: do not ask before */
	_Atomic uint64_t failures;
};

struct policy_slot {
	struct policy *policy;
	unsigned int instances;
	struct policy_slot *next;
};

struct record_block;
struct record_mapping;
struct demoter;
struct evictor;
struct fault_worker;
struct keeper;
struct prefetcher;
struct zapper;

struct engine {
	struct engine_config config;
	struct sys_features features; /* zap_scan and collapse_safe: once the probes are done */
	/* Shared by all evictors; NULL: see probe_reason, once the probes are done. */
	_Atomic(struct folio_probe *) probe;
	char probe_reason[160];
	struct {
		pthread_t thread;
		pthread_mutex_t lock;
		pthread_cond_t changed;
		_Atomic bool done;
		bool started;
	} probes;	      /* see probes.c */
	pthread_mutex_t lock; /* VM list, backend slots, policies, threads */
	struct vm *vms;
	unsigned int n_vms;
	struct backend_slot slots[PE_TIERS]; /* [0] is PE_TIER_FILL: unused */
	struct backend_env backend_env;
	struct policy_slot *policies;
	struct engine_thread *threads;
	_Atomic uint64_t epoch, serial;
	pthread_mutex_t barrier_lock;
	struct engine_pause pause;
	_Atomic unsigned int fds_stored; /* in the service manager's store: see shelf.c */
	_Atomic bool stop;
	_Atomic bool has_huge; /* a block of 2 MiB units has been seen: buffers are made for them */
	struct fault_worker *fault_workers[FAULT_THREADS_MAX];
	unsigned int n_fault_workers;
	struct evictor *evictors[EVICT_THREADS_MAX];
	unsigned int n_evictors;
	int evict_fd; /* eventfd (semaphore) that evictors sleep on */
	struct keeper *keeper;
	struct prefetcher *prefetcher;
	struct zapper *zapper;
	struct demoter *demoter;
	void *zeroes; /* UNIT_MAX_BYTES of them, read-only */
	struct log_limit *limits;
};

/* Before anything else of it; on an error, too, engine_thread_end() is due. 0 or -errno. */
int engine_thread_init(struct engine *eng, struct engine_thread *t);
int engine_thread_start(struct engine_thread *t, const char *name, void *(*main)(void *),
			void *arg);
/*
 * Called by the thread itself: it holds no pointer to engine objects now. True when it was held for
 * a successor meanwhile: then backends may have come, and it should look again.
 */
bool engine_thread_pass(struct engine_thread *t);
/* Stands still as long as it must. True if it did. */
bool engine_thread_hold(struct engine_thread *t);
/* Told to stop (engine.stop is set), joined, unlinked; also where it was never started. */
void engine_thread_end(struct engine_thread *t);
void engine_thread_wake(struct engine_thread *t);
/*
 * How the calling thread shares CPUs: its nice value, and how long it wants to run at a time (from
 * Linux 6.12 on; the shorter, the sooner it runs). Without the right to, all works as well, later.
 */
void engine_thread_schedule(int nice, uint64_t slice_ns);
/*
 * Returns when every engine thread has passed once since the call: what was unpublished before it
 * is in nobody's hands. Not from an engine thread.
 */
void engine_barrier(struct engine *eng);
void engine_emit(struct engine *eng, enum engine_event_type type, const char *vm,
		 const char *subject, uint64_t value, const char *fmt, ...)
	__attribute__((format(printf, 6, 7)));
/*
 * False while a VM is attaching, which may come to nothing, and when its process is gone and only
 * back ends hold its RAM: nothing can be done to it by its name.
 */
static inline bool vm_is_named(const struct vm *vm)
{
	return !atomic_load(&vm->attaching) && !atomic_load(&vm->orphaned);
}
/* Around everything that is asked for from outside and changes VMs, backends or policies. */
void engine_enter(struct engine *eng);
void engine_leave(struct engine *eng);
static inline void engine_left(struct engine **eng)
{
	engine_leave(*eng);
}
/* The rest of the function is inside. */
#define ENGINE_INSIDE(eng)                                                           \
	struct engine *engine_inside __attribute__((cleanup(engine_left), unused)) = \
		(engine_enter(eng), (eng))
/* A reference to the VM of that name, or NULL. */
struct vm *engine_vm_get(struct engine *eng, const char *name);
/* References to all VMs (at most max); returns how many. */
unsigned int engine_vms_get(struct engine *eng, struct vm **out, unsigned int max);
/* Wakes an evictor to look at this VM. Any thread; cheap when it was told already. */
void engine_kick(struct vm *vm);

/* ---- probes.c ---- */

/* Starts finding out what takes time. 0 or -errno. */
int probes_start(struct engine *eng);
/* Returns when all is known. Not with engine.lock held, nor on a fault's way. */
void probes_wait(struct engine *eng);
/* Waits for the thread's end; before any VM is freed behind its back. */
void probes_end(struct engine *eng);
/* The VM is in the list: what the probes say of it counts from now on, or once they are done. */
void probes_apply(struct vm *vm);
static inline bool probes_done(struct engine *eng)
{
	return atomic_load(&eng->probes.done);
}
/* A tracker can see what the VM touches. */
static inline bool vm_has_tracker(struct vm *vm)
{
	return vm->has_pagemap && probes_done(vm->eng) && vm->eng->features.zap_scan;
}

/* ---- unit.c: what is done to one unit in all mappings ---- */

/* The state of a unit whose page is in place: PINNED in a pinned range, else RESIDENT. */
enum page_state unit_settled(struct block *b, uint64_t unit);
void unit_wake(struct block *b, uint64_t unit);
/* Wakes (or continues) the waiters of every mapping but the primary. */
void unit_wake_others(struct block *b, uint64_t unit);
/* Lifts write protection everywhere and wakes; the caller owns the unit in UNPROTECTING. */
void unit_unprotect(struct block *b, uint64_t unit);
/* Write-protects [unit, unit + n) everywhere. 0, or -errno (then some may be protected). */
int unit_protect_run(struct block *b, uint64_t unit, uint64_t n);
/*
 * Puts content into place; the caller owns the unit in LOADING. data NULL: zeroes. *partial: in,
 * an earlier fill of this unit was cut off; out, when this one failed: it was cut off.
 * Returns 0; 1 when a page was there already and was left alone (zeroes only); or
 *   -EAGAIN  try again later       -ENOMEM  no memory (or huge page) to put it into
 *   -ESRCH   the VM is gone        others   the range is not there any more
 */
int unit_fill(struct block *b, uint64_t unit, const void *data, bool *partial);
/* The same for content of n units of 4 KiB, at once: how many, from the first on, are in place. */
unsigned int unit_fill_run(struct block *b, uint64_t unit, const void *data, unsigned int n);
/* Marks the unit unreadable for the guest; the caller owns it in LOADING, and sets LOST. */
void unit_poison(struct block *b, uint64_t unit);
/* True when the page cache has a page for the unit. tmpfs only: hugetlbfs cannot tell. */
bool unit_in_cache(struct block *b, uint64_t unit);
/*
 * UNPROTECTING -> settled: lifts protection, leaves the state, wakes. keep: the entry's flags and
 * copy to keep (state bits ignored).
 */
void unit_cancel(struct block *b, uint64_t unit, uint64_t keep);

/* ---- loader.c: bringing content back, in any thread ---- */

struct loader {
	struct engine *eng;
	_Atomic(struct backend_channel *) channels[PE_TIERS];
	void *buffers; /* UNIT_MAX_BYTES twice, then what the owner asked for: all I/O is in it */
	uint64_t buffers_bytes;
	bool large;		      /* all of them have their memory */
	uint64_t freed[PE_TIERS][64]; /* handles to free, by tier, gathered */
	unsigned int n_freed[PE_TIERS];
	struct backend_space *freed_space[PE_TIERS];
	/* Is given what completes on a channel while loader_read() waits there for its own. */
	void (*completed)(void *ctx, struct ebb_io *io);
	void *completed_ctx;
};

/*
 * more_bytes: buffers of the owner's own, behind the loader's two (loader_more()). There is memory
 * only for what units of 4 KiB need: the start of the loader's two buffers, and what the owner asks
 * for (loader_populate()). All of them get theirs by the first loader_make_large(), called by the
 * owner's thread now and then, that comes when there are huge units; until then the first touch
 * brings it.
 */
int loader_open(struct engine *eng, struct loader *ld, uint32_t queue_depth, uint64_t more_bytes);
void loader_make_large(struct loader *ld);
/* Memory for a part of the buffers now, rather than at the first touch. */
void loader_populate(void *at, uint64_t bytes);
static inline void *loader_more(const struct loader *ld)
{
	return (char *)ld->buffers + 2 * UNIT_MAX_BYTES;
}
/*
 * For a single operation off the fault path. A balloon that is inflated asks for one such per
 * page, and few touch the buffers: zeroing those first would cost more than all the rest.
 */
int loader_open_brief(struct engine *eng, struct loader *ld);
void loader_close(struct loader *ld);
/* Opens channels to backends that came, closes those of backends that go. The owner's thread. */
void loader_refresh(struct loader *ld, uint32_t queue_depth);
/* The channel to a tier, NULL when there is none. */
struct backend_channel *loader_channel(struct loader *ld, unsigned int tier);
/* Reads a stored unit into buf and waits for it. 0, -EIO, -EINVAL, -EAGAIN. Blocks on slow tiers.
 */
int loader_read(struct loader *ld, struct block *b, uint64_t unit, uint64_t entry, void *buf,
		uint32_t io_flags);
/* Gives the handle of what was a unit of b back: in batches, when units are small. */
void loader_free_handle(struct loader *ld, struct block *b, unsigned int tier, uint64_t handle);
void loader_flush_frees(struct loader *ld);
/* Fills buf with the pattern of a FILL entry. */
void loader_fill_pattern(void *buf, uint64_t bytes, uint32_t pattern);

/*
 * Brings one evicted unit back and waits: EVICTED -> LOADING -> in place. prefetch: mark it as
 * such. Returns 0 when it was loaded, 1 when there was nothing to do (not evicted), -EBUSY when
 * somebody else works on it, or what unit_fill() says; -EIO when its content is lost.
 */
int loader_bring_back(struct loader *ld, struct block *b, uint64_t unit, bool prefetch);
/*
 * Trying once more after that error changes nothing: the content is lost (and poisoned), or its
 * range is unmapped or truncated. After anything else the content is still in its backend and must
 * not be left behind.
 */
bool loader_is_over(int r);
/*
 * Prefetches at most `most` units from `unit` on, as far as they are evicted, those of 4 KiB with
 * few calls. Without RUN_WAIT it is for units of 4 KiB, up to the first in a slow tier. Returns how
 * many units need not be tried again, at least 1; *brought: how many of them are in place now.
 */
#define LOADER_RUN 16u /* a fault on one of them waits for all */
enum run_how {
	RUN_WAIT = 1 << 0,	  /* slow tiers too, nothing else of this loader being in flight */
	RUN_TRUSTED = 1 << 1,	  /* whether they are used is not looked at (units of 4 KiB only) */
	RUN_UNMAP_ABOVE = 1 << 2, /* unmapped, all but the first, which comes into place last */
	RUN_UNMAP_BELOW = 1 << 3, /* the same with the last of them */
};
unsigned int loader_bring_back_run(struct loader *ld, struct block *b, uint64_t unit, uint64_t most,
				   unsigned int how, unsigned int *brought);
/*
 * The content is in `data` (NULL: zero) and the caller owns the unit in LOADING with `entry` from
 * before: puts it into place, leaves the state, accounts. write: the copy is stale right away.
 */
int loader_place(struct loader *ld, struct block *b, uint64_t unit, uint64_t entry,
		 const void *data, bool write, bool prefetch);
/* The content of an owned LOADING unit is gone: poison, LOST, count, report. */
void loader_lost(struct loader *ld, struct block *b, uint64_t unit, uint64_t entry);

/* ---- fault.c ---- */
/* There are blocks of 2 MiB units from now on: every worker gets memory for them, soon. */
void fault_expect_huge(struct engine *eng);
int fault_worker_new(struct engine *eng, unsigned int index, struct fault_worker **out);
void fault_worker_free(struct fault_worker *w);
/* Every worker watches this uffd from now on / no more. */
int fault_watch(struct engine *eng, struct attachment *att);
void fault_unwatch(struct engine *eng, struct attachment *att);

/* ---- evict.c, reclaim.c ---- */
struct evict_batch;
int evictor_new(struct engine *eng, unsigned int index, struct evictor **out);
void evictor_free(struct evictor *e);
struct evict_context;
int evict_context_new(struct engine *eng, unsigned int index, struct evict_context **out);
void evict_context_free(struct evict_context *c);
void evict_context_refresh(struct evict_context *c);
struct loader *evict_context_loader(struct evict_context *c);
/*
 * Tries to evict units (VM-wide numbers); returns the bytes that were freed. Outcomes are told to
 * the reclaim policy.
 */
uint64_t evict_units(struct evict_context *c, struct vm *vm, const uint64_t *units, unsigned int n);
/* One round of work on a VM: what its limit, reclaim jobs and policy ask for. True: more to do. */
bool reclaim_round(struct evict_context *c, struct vm *vm);
/* The resident bytes that eviction aims at; UINT64_MAX without a limit. */
uint64_t reclaim_target(const struct vm *vm);
/* Above this, faults wake an evictor; UINT64_MAX without a limit. */
uint64_t reclaim_begin(const struct vm *vm);
/* How far faults may go over the limit. */
uint64_t reclaim_bound(uint64_t limit);
/* More than one evictor may work on it. */
bool reclaim_wants_more(const struct vm *vm);
/* Nothing can be evicted now, so waiting for room would be in vain. */
bool reclaim_helpless(const struct vm *vm);
/* Wakes faults that were parked, when there is room again. */
void reclaim_unpark(struct vm *vm);

/* ---- run_wait.c: faults of a run wait for room to read ahead. Any thread. ---- */
/* What was asked for with a fault found no room, from this unit on. */
void run_wait_short(struct vm *vm, uint64_t vm_unit);
/* True when a fault on this evicted unit has to wait: it is woken later, and faults again. */
bool run_wait_hold(struct vm *vm, uint64_t vm_unit);
/* Some wait. */
bool run_wait_some(const struct vm *vm);
/* Some waited, and need not any more: they are to be woken now. */
bool run_wait_ended(struct vm *vm);

/* ---- move.c: from one tier to another, in any thread ---- */
struct mover;
int mover_new(struct engine *eng, struct mover **out);
void mover_free(struct mover *m);
/* Channels follow the backends, handles go back. The owner's thread. */
void mover_refresh(struct mover *m);
struct loader *mover_loader(struct mover *m);
/* Units (numbers in the block) at once; of 2 MiB each: one. */
#define MOVE_BATCH 64u
unsigned int mover_batch(const struct block *b);
/*
 * Moves units that are evicted to tier `from` into the first of `to` that takes each. What cannot
 * be moved (it was wanted, no tier took it) stays as it is. Returns how many were moved.
 */
unsigned int mover_move(struct mover *m, struct block *b, const uint64_t *units, unsigned int n,
			unsigned int from, const unsigned int *to, unsigned int n_to);

/* ---- demote.c ---- */
int demoter_new(struct engine *eng, struct demoter **out);
void demoter_free(struct demoter *d);
/* Something was stored, or a tier is full: is there anything to move down? Any thread; cheap. */
void demoter_kick(struct engine *eng);
/*
 * Whether something of the VM may be stored in another tier now. From outside the engine's threads:
 * to be asked after vm_chain(), whose tiers may be used then.
 */
bool demote_allowed(const struct vm *vm);
/* The unit is evicted from now on. */
void demote_note(struct block *b, uint64_t unit);
/* From where a tier is thought full when it says how much room it has, and until when. */
uint64_t demote_high(uint64_t capacity_bytes);
uint64_t demote_low(uint64_t high_bytes);

/* ---- huge_reserve.c ---- */
/* Takes reservations up to what the VM's headroom asks for; as far as the pool has pages. */
void huge_reserve_fill(struct vm *vm);
/* Gives one back to the pool, for a fill that follows at once; false when there is none. */
bool huge_reserve_release(struct vm *vm);
uint64_t huge_reserve_bytes(const struct vm *vm);
/* Takes what is missing, when something of the VM is evicted and it is below its target. */
void huge_reserve_renew(struct vm *vm);
/* For a successor: the i-th one's descriptor, lent, or -1; and one that was handed over (consumed).
 */
int huge_reserve_fd(const struct vm *vm, unsigned int i);
void huge_reserve_inherit(struct vm *vm, int fd);
void huge_reserve_drop(struct vm *vm);

/* ---- tracker.c: the host table that policies see ---- */
void tracker_host_init(struct vm *vm, struct vm_policy *p);
/* Which units are in the page tables of some process of the VM: were accessed. 0 or -errno. */
int tracker_present(struct block *b, uint64_t unit, uint64_t count, uint64_t *bitmap);
/* Makes the accesses of these units (4096 at most) forgotten, for a recording. Under policy_lock.
 */
void tracker_forget_chunk(struct block *b, uint64_t unit, uint64_t count);
/* Ends what access windows are due, for a VM whose policy wants them. Often; by the keeper. */
void tracker_window(struct vm *vm);
/*
 * Drops the page-table entries of these units in every process, by its own client if it can. Under
 * policy_lock, or apart from it.
 */
void tracker_zap(struct vm *vm, const struct ebb_range *ranges, unsigned int n, bool apart);

/* ---- zapper.c: drops page-table entries while others go on ---- */
int zapper_new(struct engine *eng, struct zapper **out);
void zapper_free(struct zapper *z);
/* False: it is not taken, do it yourself. Never blocks. */
bool zapper_push(struct vm *vm, const struct ebb_range *range);

/* ---- prefetch.c ---- */
/* The unit came back in small pages: to be made one huge page. Fault-safe, may be dropped. */
void collapse_push(struct vm *vm, uint64_t vm_unit);
/* False when it is full. Any thread, never blocks; one thread pops. */
bool ring_push(struct prefetch_ring *r, const struct ebb_range *range);
bool ring_pop(struct prefetch_ring *r, struct ebb_range *out);
int prefetcher_new(struct engine *eng, struct prefetcher **out);
void prefetcher_free(struct prefetcher *p);
void engine_prefetch_kick(struct engine *eng);
/*
 * From a fault worker, with its loader: what a policy asked for after a fault on `unit`, which is
 * in place. The first range at once where it lies next to the unit, the rest later. Never blocks;
 * drops what does not fit.
 */
void prefetch_asked(struct loader *ld, struct block *b, uint64_t unit, struct ebb_range *asks,
		    uint32_t n);
/* Behind all that. False when the queue is full. Not from the fault path: it allocates. */
bool bulk_push(struct vm *vm, const struct ebb_range *range);

/* ---- keeper.c: exits, ticks, maintenance, foreign mappings ---- */
int keeper_new(struct engine *eng, struct keeper **out);
/* No VM ends on its own any more. While the other threads still run: it waits for them. */
void keeper_end_reaper(struct keeper *k);
void keeper_free(struct keeper *k);
/* The next round is to come at once: a VM has something to hand over. */
void keeper_hurry(struct keeper *k);
int keeper_watch_exit(struct keeper *k, struct attachment *att);
void keeper_unwatch_exit(struct keeper *k, struct attachment *att);
/* Looks for foreign mappings of the VM's RAM now and suspends or resumes eviction. */
void keeper_check_foreign(struct vm *vm);

/* ---- regions.c ---- */
/* How much of the block is covered by pins. */
uint64_t block_pinned_bytes(struct block *b);

/* ---- attachment.c ---- */
/* One more RAM block of the primary: checked, registered, published. Under vm.lock. */
int attachment_add_block(struct attachment *att, const struct attach_region *reg, struct error *e);
/* The same for a block that a record tells of: with its table, registered again, not repaired. */
int attachment_adopt_block(struct attachment *att, const struct attach_region *reg,
			   const struct record_block *rb, struct block **out, struct error *e);
/* A mapping that a record tells of: registered again. Under vm.lock. */
int attachment_adopt_mapping(struct attachment *att, const struct record_mapping *rm,
			     struct error *e);
/* A new RAM block, or one more mapping of one that is there. No eviction is under way. Under
 * vm.lock. */
int attachment_add_any(struct attachment *att, const struct attach_region *reg, struct error *e);
/* A region that comes later: a new RAM block, or one more mapping of one that is there. */
int attachment_add_region(struct attachment *att, const struct attach_region *reg, struct error *e);
/*
 * Takes a mapping beside the primary's first out of service: it is being unmapped, or everything is
 * resident and eviction suspended. False when there is none of that id.
 */
bool attachment_drop_mapping(struct attachment *att, const char *id);
/* True while it has a mapping in service. */
bool attachment_maps(const struct attachment *att);
/* Puts a new VM, with the files of a request, into the engine's list, which takes a reference. */
int attachment_link_vm(struct vm *vm, const struct attach_request *req, struct error *e);
/* A reference to the attachment with that serial number, if it is still in service. */
struct attachment *attachment_by_serial(struct engine *eng, uint64_t serial);
/*
 * The same things as another daemon had them, without a call that would change them: an attachment
 * (uffd and pidfd are consumed), a RAM block with its table, a mapping.
 */
int attachment_inherit(struct vm *vm, int uffd, int pidfd, pid_t pid, uid_t uid, uint64_t serial,
		       bool secondary, struct attachment **out, struct error *e);
int attachment_inherit_block(struct vm *vm, const struct attach_region *reg,
			     const struct record_block *rb, struct block **out, struct error *e);
int attachment_inherit_mapping(struct attachment *att, const char *block,
			       const struct record_mapping *rm, bool primary, struct error *e);
/* Serves the faults of an inherited attachment, those that wait already too. */
void attachment_serve(struct attachment *att);
/* An inherited VM may be evicted from, as far as this host allows. */
void attachment_may_evict(struct vm *vm);
/* The process is gone: the attachment, or with the primary the whole VM, is taken out. */
void attachment_exited(struct engine *eng, uint64_t serial);
/* The same when filling has found the primary's memory gone. From no engine thread. */
void vm_primary_gone(struct vm *vm);
/*
 * Somebody else may put pages into the cache of the VM's RAM: from now on the guest's first access
 * to such a one comes to us.
 */
void attachment_watch_cache(struct vm *vm);
/* What the engine asks of a userfaultfd. */
uint64_t attachment_features(const struct engine *eng);
/* Takes mappings that nobody can find any more away: a barrier, then they go. */
void attachment_free_mappings(struct vm *vm, struct mapping **gone, unsigned int n);
void attachment_unref(struct attachment *att);
/* Wakes whoever waits in its ranges: they fault again. */
void attachment_wake(struct attachment *att);
/* A secondary goes while its process lives on; nothing of the VM is evicted now. */
void attachment_leave(struct attachment *att);
/* Takes a block out of its VM; nothing of it is evicted and it is not registered any more. */
void block_retire(struct loader *ld, struct block *b);
/*
 * Takes the VM out of all lists and watches; its memory goes with the last reference. The RAM is
 * left as it is: registered if it was.
 */
void vm_remove(struct vm *vm);
/*
 * The engine ends with the VM attached: drops its references, leaves the RAM as it is. True when
 * its client keeps its state: then backends must not be closed.
 */
bool vm_abandon(struct vm *vm);

/* ---- orphan.c ---- */
/*
 * The primary's process is gone and others still map the VM's RAM: gives the blocks a mapping of
 * our own in place of the primary's, and drops the VM's reference to that. Under no lock; from no
 * engine thread. 0, or -errno: nothing has changed.
 */
int orphan_adopt(struct vm *vm, struct attachment *primary);
/* The same for an orphan of another daemon, whose stand-in stays behind. */
int orphan_inherit(struct vm *vm);
/* The mappings that orphan_adopt() made. */
void orphan_unmap(struct attachment *stand_in);

/* ---- keep.c ---- */
/* Offers what the client does not hold yet; nothing is evicted while there is any. May block 1 s.
 */
void keep_round(struct vm *vm);
/* The same for a VM on a shelf, whose attachment is held; its client is told of nothing before. */
void keep_on_shelf(struct vm *vm, struct attachment *att);

/* ---- longops.c ---- */
/*
 * Brings every evicted unit of a block back, or, for discard, forgets them. Waits for units that
 * somebody works on; on success nothing of the block is evicted. The caller has seen to it that no
 * eviction begins.
 */
int restore_block(struct loader *ld, struct block *b, bool discard, struct progress *p);
/*
 * A block is about to be let go of, and what is LOST of it must not read as zeroes then: it is a
 * memory error in every mapping, also in those that have not met it yet; or, where the kernel has
 * no such thing, this refuses. Under vm.structure.
 */
int longops_let_go_lost(struct block *b, struct error *e);

/* ---- backends.c, policies.c ---- */
void backends_init(struct engine *eng);
void backends_free(struct engine *eng); /* no VM is left */
unsigned int backends_find(struct engine *eng, const char *name);
/* engine_backend_add(), in that tier (0: any that is free). */
int backends_add_at(struct engine *eng, unsigned int tier, const char *name, const char *driver,
		    const struct ebb_option *opts, uint32_t n_opts, struct error *e);
int backends_default_tiers(struct engine *eng, struct vm *vm);
/* The backend of a tier, which stays open until backends_unuse(); NULL when there is none. */
struct backend *backends_use(struct engine *eng, unsigned int tier);
void backends_unuse(struct engine *eng, unsigned int tier);
/* Makes sure that the VM has a space in a tier. Under vm.lock. */
int backends_space(struct vm *vm, unsigned int tier);
/* Nobody is in them any more: with the last reference, or under vm.structure and vm.lock. */
void backends_close_spaces(struct vm *vm);
void backends_note_full(struct engine *eng, unsigned int tier, const char *vm);
int policies_give(struct vm *vm, uint32_t role, const char *name,
		  const struct ebb_policy_option *opts, uint32_t n_opts, struct error *e);
void policies_default(struct engine *eng, struct vm *vm);
void policies_detach(struct vm *vm);
void policies_resize(struct vm *vm);
/* The VM's limit was changed. */
void policies_limit(struct vm *vm, uint64_t old_bytes, uint64_t new_bytes);
void policies_tick_prefetch(struct vm *vm);
/* The smallest unit of the VM's blocks. */
uint32_t vm_unit_bytes(struct vm *vm);
void policies_free(struct engine *eng);

#endif
