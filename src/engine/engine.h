/* SPDX-License-Identifier: BSD-3-Clause */
/* engine.h: what attach, control and the daemon may ask of the engine. */
#ifndef ENGINE_ENGINE_H
#define ENGINE_ENGINE_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/error.h"
#include "base/hist.h"
#include "ebb/backend.h"
#include "ebb/policy.h"
#include "plugin/crashes.h"
#include "plugin/plugin.h"

/*
 * The engine owns the VMs: their page tables, userfaultfds and memfds, the threads that serve
 * their faults and take their memory back, the backends and the policies. All functions here are
 * thread-safe unless they say otherwise; those marked "long" may take seconds, take a struct
 * progress and belong on a thread of their own.
 */

#define VM_NAME_MAX	    64
#define STORE_NAME_MAX	    64
#define REGION_ID_MAX	    64
#define VM_REGIONS_MAX	    64 /* RAM blocks per VM */
#define VM_ATTACH_MAX	    16 /* processes that map one VM's RAM */
#define ENGINE_VMS_MAX	    1024
#define ENGINE_BACKENDS_MAX 15 /* bounded by the page table entry's tier field */

struct engine;
struct vm;
struct attachment; /* one process's mapping of a VM's RAM: a userfaultfd and its ranges */

/* Watches and stops a long operation. Zero-initialise. */
struct progress {
	_Atomic uint64_t done, total; /* bytes */
	_Atomic bool cancel;
};

enum engine_event_type {
	EVENT_VM_ATTACHED,
	EVENT_VM_DETACHED,
	EVENT_VM_LIMIT_EXCEEDED,
	EVENT_BACKEND_FULL,
	EVENT_BACKEND_FAILED,
	EVENT_PAGE_LOST,
	EVENT_POLICY_FAILED,
	EVENT_VM_SUSPENDED, /* eviction suspended or resumed: detail says why, "" when resumed */
};

struct engine_event {
	enum engine_event_type type;
	char vm[VM_NAME_MAX];	       /* "" when it is not about one VM */
	char subject[PLUGIN_NAME_MAX]; /* backend or policy */
	char detail[160];	       /* a sentence */
	uint64_t value;		       /* bytes over the limit; address of the lost page */
};

/*
 * The service manager's store of descriptors, which outlives the daemon. Any engine thread; put()
 * borrows fd. settle() returns when all that was put has arrived there; may block for a second.
 */
struct engine_fd_store {
	int (*put)(void *ctx, const char *name, int fd); /* NULL: there is none */
	void (*drop)(void *ctx, const char *name);
	int (*settle)(void *ctx);
	void *ctx;
	unsigned int max; /* descriptors that it takes */
};

struct engine_config {
	const struct plugin_path *plugins;
	unsigned int fault_threads; /* 0: as many as CPUs, at most 4 */
	unsigned int evict_threads; /* 0: half of the CPUs, at least 1, at most 4 */
	bool no_polling;	    /* fault threads sleep while a load is under way */
	uint32_t window_ms;	    /* access window of the tracker; 0: 2000 */
	uint32_t quarantine_ms;	    /* how long a page stays protected without the probe */
	bool allow_quarantine;	    /* evict without the folio probe (operator's choice) */
	bool no_probe;		    /* do not try to load the folio probe */
	bool thp_kept_whole;	    /* transparent huge pages are never split */
	bool lock_memory;	    /* mlockall(MCL_CURRENT | MCL_FUTURE | MCL_ONFAULT) */
	uint64_t host_budget_bytes; /* 0: none */
	struct crashes *crashes; /* plugins that daemons before crashed in; borrowed, NULL: none */
	bool start_held;	 /* background threads stand still until engine_go_on() */
	/* Holds the state of VMs whose clients keep nothing. */
	struct engine_fd_store fd_store;
	/* Called from any engine thread; must not block or call back into the engine. */
	void (*event)(void *ctx, const struct engine_event *ev);
	void *event_ctx;
};

int engine_new(const struct engine_config *config, struct engine **out, struct error *e);
/*
 * Stops all threads. VMs that are still attached keep their memory as it is (faults wait). True
 * when a client keeps one's state: what belongs to that is not freed, for the process ends now.
 * Takes NULL.
 */
bool engine_free(struct engine *eng);

/* ---- attaching (used by src/attach) ---- */

struct attach_region {
	char id[REGION_ID_MAX];
	uint64_t host_addr; /* in the client, page_size-aligned */
	uint64_t size;	    /* bytes, a multiple of page_size */
	uint32_t page_size; /* 4096 or 2 MiB (1 GiB is refused) */
	int memfd;	    /* borrowed; the engine duplicates it */
	uint64_t memfd_offset;
	uint64_t guest_addr; /* UINT64_MAX: not given */
};

/* What the engine may ask of a client that said it can. Called from engine threads. */
struct attach_client_ops {
	/*
	 * Drop the client's page-table entries of these ranges (shared MADV_DONTNEED), keep the
	 * data. Returns 0 when done, -errno (-ETIMEDOUT, -ENOTCONN) when not. May block for up to
	 * a second; never called from the fault path.
	 */
	int (*zap)(void *client, const struct ebb_range *host_ranges_bytes, uint32_t n);
	/*
	 * Keep this piece of the VM's state for the daemon's successor: fd (borrowed) is read-only.
	 * With fd -1: let go of the piece of that name. Returns 0 when the client has confirmed,
	 * -errno when not; may block as zap does. NULL: the client keeps nothing.
	 */
	int (*keep)(void *client, const char *name, int fd, uint64_t bytes);
};

/* A piece of state that a client kept through the death of a daemon. */
struct attach_kept {
	char name[STORE_NAME_MAX];
	int fd; /* borrowed; only believed after its owner, mode and seals were checked */
};

/* What a fd store holds of one VM: see shelf.c. */
#define SHELF_PREFIX	 "ebb-" /* of the names there */
#define SHELF_ID_MAX	 24
#define SHELF_PIECES_MAX 256

struct attach_shelf {
	const char *id;
	const struct attach_kept *pieces;
	unsigned int n_pieces;
};

struct attach_request {
	char vm_name[VM_NAME_MAX];
	char uuid[40]; /* "" when not given */
	pid_t pid;     /* of the peer, from SO_PEERCRED */
	uid_t uid;
	int pidfd; /* consumed */
	int uffd;  /* consumed; UFFDIO_API not yet called */
	bool secondary;
	/*
	 * The client was attached to a daemon that died: uffd is the one of then (UFFDIO_API done,
	 * ranges registered), and kept is what that daemon had given it to hold.
	 */
	bool resume;
	const struct attach_kept *kept;
	unsigned int n_kept;
	const struct attach_shelf *shelf; /* all of it comes from there; NULL: from a client */
	const struct attach_region *regions;
	unsigned int n_regions;
	const struct attach_client_ops *ops; /* NULL: the client takes no requests */
	void *client;
};

/*
 * Takes RAM under management: checks every region and memfd, calls UFFDIO_API, registers the
 * ranges, finds out what is resident. Ownership of uffd and pidfd passes in any case. Errors leave
 * nothing behind. The attachment ends with engine_detach() or when the process exits (then the
 * pointer stays valid until engine_attachment_put()).
 */
int engine_attach(struct engine *eng, struct attach_request *req, struct attachment **out,
		  struct error *e);
/* What a name in the fd store means: id has SHELF_ID_MAX bytes, piece STORE_NAME_MAX. */
bool shelf_parse_name(const char *name, char *id, char *piece);
/*
 * Goes on with a VM from what lies in the fd store, without its client: what it had attached is
 * served until its process exits. Borrows the descriptors. What is of no use any more is removed
 * there (-ESRCH); what cannot be taken over just now stays for another try.
 */
int engine_restore(struct engine *eng, const struct attach_shelf *from, struct error *e);
/* The name under which the VM is known (as long as the attachment is held). */
const char *engine_attachment_vm(const struct attachment *a);
/* The connection is gone: no more requests through ops. The VM lives on while its process does. */
void engine_attachment_put(struct attachment *a);

int engine_region_add(struct attachment *a, const struct attach_region *region, struct error *e);
/* Brings back what is evicted of the region (unless discard), then unregisters it. Long. */
int engine_region_remove(struct attachment *a, const char *id, bool discard, struct progress *p,
			 struct error *e);
/*
 * [offset, offset + bytes) of region id now reads as zero; stored content is freed. deadline_ns: 0,
 * or (CLOCK_MONOTONIC) until when the client waits, having dropped resident pages itself: what is
 * there then was written later and stays, and an evicted unit that is reached too late stays too
 * (-ETIMEDOUT).
 */
int engine_discard(struct attachment *a, const char *id, uint64_t offset, uint64_t bytes,
		   uint64_t deadline_ns, struct error *e);
/* Long-lived DMA begins/ends on a range; pin brings it back first. Pins nest. */
int engine_pin(struct attachment *a, const char *id, uint64_t offset, uint64_t bytes,
	       struct error *e);
int engine_unpin(struct attachment *a, const char *id, uint64_t offset, uint64_t bytes,
		 struct error *e);
/*
 * The region's memfd is about to leave the process, for process `peer` (0: not known). Unless that
 * one is attached already, all of the VM is brought back and nothing is evicted any more until it
 * attaches (as a secondary) or is gone: it would read zeroes over holes. Long.
 */
int engine_share(struct attachment *a, const char *id, pid_t peer, struct progress *p,
		 struct error *e);
/*
 * Clean detach of this attachment: for the primary, everything evicted is brought back, then all
 * is unregistered and the VM is forgotten; -ENOSPC when it would not fit. Long.
 */
int engine_detach(struct attachment *a, struct progress *p, struct error *e);

/* ---- VMs by name (used by src/control) ---- */

struct vm_tier_info {
	char backend[PLUGIN_NAME_MAX];
	uint64_t stored_bytes; /* taken in this tier */
	uint64_t units_bytes;  /* what that was in guest RAM */
	uint64_t overhead_bytes;
	uint64_t objects;	/* units stored */
	uint64_t content_bytes; /* their content as stored: what the marks are compared with */
	uint64_t high_bytes;	/* above this some moves down; 0: no mark */
	uint64_t low_bytes;	/* ... until this */
	uint64_t moved_bytes;	/* guest RAM moved to another tier, ever */
};

struct vm_info {
	char name[VM_NAME_MAX];
	char uuid[40];
	pid_t pid;
	unsigned int regions, attachments;
	uint64_t ram_bytes, resident_bytes, evicted_bytes, zero_bytes;
	uint64_t pinned_bytes, lost_bytes, clean_copy_bytes;
	uint64_t stored_bytes; /* sum over tiers */
	struct vm_tier_info tiers[ENGINE_BACKENDS_MAX];
	unsigned int n_tiers;
	uint64_t limit_bytes, floor_bytes;
	uint32_t weight;
	char granularity[16]; /* "4K", "2M", "mixed" */
	char memory_kind[24]; /* "shmem", "shmem-thp", "hugetlb", "mixed" */
	char reclaim_policy[PLUGIN_NAME_MAX], prefetch_policy[PLUGIN_NAME_MAX];
	char tracker[16];	  /* "zap-scan", "helper-zap", "none" */
	char io_guard[16];	  /* "probe", "quarantine", "none" */
	char suspended[160];	  /* why eviction is suspended; "" when it is not */
	char policy_failure[200]; /* why a policy of the VM does nothing; "": all work */
	uint64_t overhead_bytes;  /* page table + store overhead + policy and tracker state */
	uint64_t table_bytes, store_overhead_bytes, policy_bytes;
#define COUNTER(name, json, help) uint64_t name;
#include "engine/counters.def"
#undef COUNTER
	struct hist fault_latency; /* ns, message read to resolved */
};

/* Fills *out for the VM; -ENOENT. The struct is large: allocate it. */
int engine_vm_info(struct engine *eng, const char *name, struct vm_info *out, struct error *e);
/* Names of all VMs, in the order of attaching; returns how many (at most max are filled). */
unsigned int engine_vm_names(struct engine *eng, char (*names)[VM_NAME_MAX], unsigned int max);

/* A change of settings; only what `set` names. */
enum vm_setting {
	VM_SET_LIMIT = 1 << 0,
	VM_SET_FLOOR = 1 << 1,
	VM_SET_WEIGHT = 1 << 2,
	VM_SET_TIERS = 1 << 3,
	VM_SET_GRANULARITY = 1 << 4, /* "4K", "2M" or "auto" */
	VM_SET_HIGH = 1 << 5,	     /* tier_high, of the first n_high tiers; none of the others */
	VM_SET_LOW = 1 << 6,	     /* tier_low, only with VM_SET_HIGH; default: 7/8 of it */
};
struct vm_settings {
	unsigned int set;
	uint64_t limit_bytes, floor_bytes; /* limit 0: none */
	uint32_t weight;		   /* 1 to 10000 */
	char tiers[ENGINE_BACKENDS_MAX][PLUGIN_NAME_MAX];
	unsigned int n_tiers;
	uint64_t tier_high[ENGINE_BACKENDS_MAX], tier_low[ENGINE_BACKENDS_MAX]; /* bytes; 0: none */
	unsigned int n_high, n_low;
	char granularity[8];
};
/*
 * All or nothing. Lowering a limit returns at once; eviction follows. Naming the tiers takes the
 * marks away that are not given with them.
 */
int engine_vm_set(struct engine *eng, const char *name, const struct vm_settings *s,
		  struct error *e);
/* Evicts about `bytes`. Long. *reclaimed is written in any case. -ECANCELED when cancelled. */
int engine_vm_reclaim(struct engine *eng, const char *name, uint64_t bytes, struct progress *p,
		      uint64_t *reclaimed, struct error *e);
/* Brings back all that is evicted, as far as the limit allows. Long. */
int engine_vm_prefetch(struct engine *eng, const char *name, struct progress *p, uint64_t *fetched,
		       struct error *e);
struct trace_request {
	int fd; /* borrowed: an empty file */
	uint64_t seconds, window_ms, max_bytes;
};
struct trace_result {
	uint64_t faults, windows, lost, bytes;
	bool full; /* max_bytes were reached before the time was over */
};
/* Records what the VM touches (trace/trace.h). Long. What is there when it is cancelled is whole.
 */
int engine_vm_trace(struct engine *eng, const char *name, const struct trace_request *req,
		    struct progress *p, struct trace_result *out, struct error *e);
#define WATCH_WINDOWS_MAX 3600u
#define WATCH_COLUMNS_MAX 512u
#define WATCH_CELLS_MAX	  16384u
struct watch_request {
	uint64_t window_ms;
	unsigned int windows; /* 1 to WATCH_WINDOWS_MAX */
	unsigned int columns; /* 0 to WATCH_COLUMNS_MAX, and at most WATCH_CELLS_MAX cells */
};
static inline bool watch_request_fits(const struct watch_request *r)
{
	return r->window_ms && r->windows && r->windows <= WATCH_WINDOWS_MAX &&
	       r->columns <= WATCH_COLUMNS_MAX && r->windows * r->columns <= WATCH_CELLS_MAX;
}
/* Bytes of one stretch of RAM at the end of one window; what is left was never touched. */
struct watch_cell {
	uint64_t hot;	  /* resident, and accessed in the window */
	uint64_t cold;	  /* resident, and not */
	uint64_t evicted; /* in a backend, or lost */
};
struct watch_block {
	char name[REGION_ID_MAX];
	uint64_t bytes;
};
/* In the order of unit numbers, RAM blocks one behind the other. */
struct watch_result {
	uint64_t ram_bytes;
	unsigned int windows, columns, n_blocks;
	struct watch_block *blocks;
	struct watch_cell *cells; /* [windows][columns] */
	/*
	 * [windows]; the k-th: how long ago the k + 1 last windows began, when the last one had
	 * ended, and the bytes that were accessed since.
	 */
	uint64_t *since_ms, *accessed;
};
/*
 * Watches for so many windows which part of the VM's RAM is in use. Long. *out is written in any
 * case, and belongs to the caller (engine_watch_free()). -ENOTSUP: the VM has no tracker.
 */
int engine_vm_watch(struct engine *eng, const char *name, const struct watch_request *req,
		    struct progress *p, struct watch_result *out, struct error *e);
void engine_watch_free(struct watch_result *out);
/* Detaches a VM on the operator's word, as engine_detach() does. Long. */
int engine_vm_detach(struct engine *eng, const char *name, struct progress *p, struct error *e);

/* ---- backends and policies ---- */

struct backend_info {
	char name[PLUGIN_NAME_MAX], driver[PLUGIN_NAME_MAX];
	char description[160];
	uint32_t caps; /* enum ebb_backend_cap */
	struct ebb_usage usage;
	struct ebb_stat stats[32];
	unsigned int n_stats;
	unsigned int vms;
	char state[16]; /* "ready", "draining", "full", "failed" */
};
int engine_backend_add(struct engine *eng, const char *name, const char *driver,
		       const struct ebb_option *opts, uint32_t n_opts, struct error *e);
/* Moves everything it holds elsewhere (or back into RAM), then closes it. Long. */
int engine_backend_remove(struct engine *eng, const char *name, struct progress *p,
			  struct error *e);
unsigned int engine_backend_info(struct engine *eng, struct backend_info *out, unsigned int max);

struct policy_info {
	char name[PLUGIN_NAME_MAX], file[256], description[160];
	uint32_t roles;
	unsigned int instances;
};
int engine_policy_load(struct engine *eng, const char *name, const char *file, struct error *e);
int engine_policy_unload(struct engine *eng, const char *name, struct error *e);
unsigned int engine_policy_info(struct engine *eng, struct policy_info *out, unsigned int max);
/* Gives the VM a policy in one role; loads a shipped one by name. Replaces the one before. */
int engine_policy_set(struct engine *eng, const char *vm, uint32_t role, const char *policy,
		      const struct ebb_policy_option *opts, uint32_t n_opts, struct error *e);
/* The operator wants the policy although it was put aside for crashes of daemons before. */
void engine_policy_forgive(struct engine *eng, const char *name);
/* Stats of a VM's policy in a role; returns how many. -ENOENT without one. */
int engine_policy_stats(struct engine *eng, const char *vm, uint32_t role,
			struct ebb_policy_stat *out, uint32_t n);

/* ---- the host ---- */

struct host_info {
	unsigned int vms;
	uint64_t ram_bytes, resident_bytes, stored_bytes, overhead_bytes;
	uint64_t budget_bytes;
	uint64_t host_total_bytes, host_available_bytes;
	unsigned int fault_threads, evict_threads;
	uint64_t uffd_features;	 /* as the kernel reports them */
	bool probe;		 /* the folio probe is loaded */
	char probe_reason[160];	 /* why not */
	bool zap_scan;		 /* remote zap + present scan works here */
	bool collapse_safe;	 /* collapse over holes does not fill them with zeroes */
	bool poison;		 /* UFFDIO_POISON */
	bool userfaultfd_device; /* can be lent to unprivileged clients */
};
void engine_host_info(struct engine *eng, struct host_info *out);

#endif
