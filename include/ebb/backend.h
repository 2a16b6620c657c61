/* SPDX-License-Identifier: BSD-3-Clause */
/* backend.h: the ABI between ebbd and a backend plugin (where evicted memory lives). */
#ifndef EBB_BACKEND_H
#define EBB_BACKEND_H

#include <stddef.h>
#include <stdint.h>

/*
 * Theory of operation
 *
 * A backend is a shared object in a plugin folder, backends/NAME.so. It exports one function,
 * ebb_backend_entry(), that returns its descriptor. ebbd copies the descriptor into a zeroed one
 * of its own, taking the smaller of the two sizes, so that either side may be older: a member that
 * the plugin does not have reads as zero, which always means "the default".
 *
 * Objects, outermost first:
 *   instance  one `backend-add`: a driver with its options. Many may exist of one driver.
 *   space     one VM's part of an instance. A handle is valid only in the space that minted it,
 *             so that no VM can ever reach the content of another.
 *   channel   one worker thread's way in. A channel is used by one thread at a time and needs no
 *             lock against other channels' submissions; the backend synchronises what it shares.
 *
 * Data moves in units: 4 KiB to 2 MiB, a power of two, the length given with every I/O. A store
 * mints a handle; the handle stays valid, and a load may be repeated, until it is freed. A load
 * never frees.
 *
 * Durability: a store's completion with result 0 is the promise after which ebbd drops the page
 * from guest RAM. A backend must not complete a store that it could still lose on its own.
 *
 * Errors are negative errno values:
 *   -ENOSPC  (store) no room; ebbd tries the next tier and stops asking for a while
 *   -EIO     (load) the content is lost for good; (store) this store failed, nothing was kept
 *   -EAGAIN  (submit) the channel is full; poll first
 *   -EINVAL  a handle that this space did not mint, or a length that does not fit it
 * A handle comes from memory that may have been damaged (it survives crashes), so a backend checks
 * every handle it is given and answers -EINVAL; it never follows it blindly. For the same reason a
 * backend whose content is out of its hands for a while keeps a checksum with it, and answers -EIO
 * rather than anything else than what was stored.
 *
 * Threads: open, close, space_* and configuration calls come from one thread. submit, poll and
 * free come from worker threads, one per channel; free may come at the same time for the same
 * space from several channels.
 */

#define EBB_BACKEND_ABI_MAJOR 1
#define EBB_BACKEND_ABI_MINOR 2

/* Handles fit into a page table entry. 0 is a valid handle. */
#define EBB_HANDLE_BITS 48
#define EBB_HANDLE_MASK ((UINT64_C(1) << EBB_HANDLE_BITS) - 1)

enum ebb_backend_cap {
	/* submit() completes every I/O before it returns, in microseconds, without blocking. */
	EBB_BACKEND_SYNC = 1 << 0,
	/* A handle's memory can be mapped and used in place. */
	EBB_BACKEND_MAPPABLE = 1 << 1,
	/* What is stored outlives ebbd without ebbd's help (a file, another host). */
	EBB_BACKEND_PERSISTENT = 1 << 2,
	/* I/O buffers must come from buffers announced by channel_open(). */
	EBB_BACKEND_REGISTERED_BUFFERS = 1 << 3,
	/* What is stored takes host RAM (its bytes count against what eviction saves). */
	EBB_BACKEND_IN_RAM = 1 << 4,
	/*
	 * Two processes cannot have the same instance open (a file that is locked, a lease): a
	 * successor opens it only after quiesce(). Without it, as early as it can. Since ABI 1.2.
	 */
	EBB_BACKEND_EXCLUSIVE = 1 << 5,
};

enum ebb_io_op {
	EBB_IO_STORE = 1,
	EBB_IO_LOAD = 2,
};

enum ebb_io_flag {
	EBB_IO_DEMAND = 1 << 0,	    /* a vCPU waits for it: goes ahead of everything else */
	EBB_IO_PREFETCH = 1 << 1,   /* nobody waits yet */
	EBB_IO_BACKGROUND = 1 << 2, /* demotion, compaction, drain */
	EBB_IO_NOCOMPRESS = 1 << 3, /* (store) did not compress the last time: do not try again */
};

/*
 * One I/O. ebbd owns the memory; it stays valid until the I/O comes back from poll() (or from
 * submit(), for a synchronous backend). The backend may use `priv` as it likes meanwhile.
 */
struct ebb_io {
	uint32_t op;	       /* enum ebb_io_op */
	uint32_t flags;	       /* enum ebb_io_flag; unknown bits are ignored */
	void *space;	       /* from space_open() */
	uint64_t handle;       /* load: in. store: out, at most EBB_HANDLE_BITS bits */
	void *buf;	       /* page-aligned; store: read only; load: filled */
	uint32_t len;	       /* bytes, a power of two, 4096 to 2 MiB */
	int32_t result;	       /* out: 0 or -errno */
	uint32_t stored_bytes; /* out, store: bytes that this object takes, overhead included */
	uint32_t reserved;
	uint64_t priv[2]; /* the backend's, from submit() to completion */
	uint64_t user;	  /* ebbd's */
	/*
	 * What the content belongs to: a number that no other unit of the VM ever has, the same at
	 * the store and at each load. A backend that checks its content binds it to this, so that a
	 * handle which got to another unit is noticed: -EIO. Since ABI 1.2.
	 */
	uint64_t owner;
};

struct ebb_option {
	const char *name;  /* kebab-case */
	const char *value; /* text; sizes may carry K, M, G, T */
};

/* What an instance or a space takes and holds. */
struct ebb_usage {
	uint64_t size;
	uint64_t objects;	  /* live handles */
	uint64_t logical_bytes;	  /* what the objects held in guest RAM */
	uint64_t stored_bytes;	  /* what their content takes in the backend, without overhead */
	uint64_t footprint_bytes; /* all that the backend holds for them: memory or disk taken */
	uint64_t overhead_bytes;  /* footprint that is not content: metadata, fragmentation */
	uint64_t capacity_bytes;  /* 0: bounded only by the host */
};

struct ebb_stat {
	const char *name; /* kebab-case, static */
	const char *help; /* one line, static */
	uint64_t value;
	uint32_t counter; /* 1: only ever grows; 0: a gauge */
	uint32_t reserved;
};

/*
 * What ebbd gives to a backend. The table outlives the instance. Every function may be called
 * from any thread, unless it says otherwise.
 */
struct ebb_backend_host {
	uint64_t size;
	uint16_t abi_major, abi_minor;
	uint32_t reserved;
	void *ctx; /* first argument of every call below */

	/*
	 * Memory that survives the daemon. Makes (or, after a restart, finds again) the memfd
	 * `name` of this space, `max_bytes` long and sparse, and maps it. The content starts as
	 * zeroes, or as the last daemon left it: *found says which. Nothing in it may be a pointer,
	 * and all of it must be checked when found. max_bytes is a bound on address space, not on
	 * memory: give pages back with mem_trim(). Found memory may be longer than max_bytes (the
	 * VM had more RAM then) and is never cut; space_open() may call again with more, and the
	 * mapping of before is then gone.
	 * Returns 0 and *addr, or -errno. Not from the data path.
	 */
	int (*mem_open)(void *ctx, void *space_ctx, const char *name, uint64_t max_bytes,
			void **addr, int *found);
	/* Gives the pages of [offset, offset + bytes) back to the system; they read as zeroes. */
	int (*mem_trim)(void *ctx, void *space_ctx, const char *name, uint64_t offset,
			uint64_t bytes);

	/* level: 0 error, 1 warning, 2 info, 3 debug. Rate-limited. Not from the data path. */
	void (*log)(void *ctx, int level, const char *fmt, ...)
		__attribute__((format(printf, 3, 4)));
};

struct ebb_space_params {
	uint64_t size;
	const char *vm_name;
	uint64_t ram_bytes;  /* the VM's RAM at the time; may grow later */
	uint32_t unit_bytes; /* the smallest unit that will be stored */
	uint32_t reserved;
	void *space_ctx; /* second argument of mem_open() and mem_trim() */
	/*
	 * This space's secret, for encryption and checksums: random, of no other space, and the
	 * same again when the space's memory is found again.
	 */
	uint8_t key[32];
	/* Since ABI 1.2: the process that keeps this space's memory, and when it began (field 22 of
	 * /proc/PID/stat). Once it is gone nobody can come back for the content. 0: not known. */
	uint64_t keeper_start;
	uint32_t keeper_pid;
	uint32_t reserved2;
};

/* All I/O buffers that a worker will use, for backends that register them. */
struct ebb_channel_params {
	uint64_t size;
	void *buffers; /* page-aligned */
	uint64_t buffers_bytes;
	uint32_t queue_depth; /* I/Os in flight at most */
	uint32_t reserved;
};

struct ebb_backend {
	uint64_t size; /* sizeof(struct ebb_backend) as the plugin knew it */
	uint16_t abi_major, abi_minor;
	uint32_t caps;			/* enum ebb_backend_cap */
	const char *name;		/* the driver's name, as in its file name */
	const char *description;	/* one line */
	const char *const *option_help; /* "name: help" lines, NULL-terminated; may be NULL */

	/*
	 * An instance. opts is n_opts long and lives for the call only; an unknown option is an
	 * error. On failure returns -errno and puts a sentence into err (err_len bytes).
	 */
	int (*open)(const struct ebb_backend_host *host, const struct ebb_option *opts,
		    uint32_t n_opts, void **instance, char *err, uint64_t err_len);
	void (*close)(void *instance); /* no space is open */

	int (*space_open)(void *instance, const struct ebb_space_params *params, void **space);
	/* Gives up all that the space holds; its handles are dead. */
	void (*space_close)(void *space);

	int (*channel_open)(void *instance, const struct ebb_channel_params *params,
			    void **channel);
	void (*channel_close)(void *channel); /* nothing is in flight */

	/*
	 * Starts up to n I/Os. Returns how many were taken, from the front; 0 when the channel is
	 * full. Never blocks. With EBB_BACKEND_SYNC the taken ones are complete on return, with
	 * `result` set, and are not given back by poll().
	 */
	int (*submit)(void *channel, struct ebb_io **ios, uint32_t n);
	/*
	 * Takes up to n completed I/Os, in any order. Never blocks. Returns how many. Comes with n
	 * 0 when nothing is in flight and the descriptor may be readable all the same.
	 */
	int (*poll)(void *channel, struct ebb_io **ios, uint32_t n);
	/*
	 * A descriptor that is readable while poll() has something to give, and not for long after
	 * a poll() that left nothing; -1: poll often.
	 */
	int (*event_fd)(void *channel);

	/*
	 * Frees n handles of a space. A handle that is not live is ignored and counted. No load
	 * of these handles is in flight. Never blocks for I/O.
	 */
	void (*free)(void *channel, void *space, const uint64_t *handles, uint32_t n);

	/* Of one space, or of the whole instance when space is NULL. */
	void (*usage)(void *instance, void *space, struct ebb_usage *out);
	/* Fills at most n stats of the instance; returns how many there are. May be NULL. */
	int (*stats)(void *instance, struct ebb_stat *out, uint32_t n);

	/*
	 * Idle-time work on a space, for about budget_us microseconds: compaction, trimming.
	 * Returns 1 when there is more to do. May be NULL. May run beside I/O on the space.
	 */
	int (*maintain)(void *space, uint32_t budget_us);

	/* A new value for an option that can change while in use; -ENOTSUP otherwise. */
	int (*config)(void *instance, const struct ebb_option *opt, char *err, uint64_t err_len);

	/*
	 * After the space's memory was found again: frees every object whose handle is not among
	 * the n given ones (ascending): stores that nobody had noted yet, frees that never came.
	 * Comes before any store to the space; loads and frees may be under way, as pages that
	 * the VM waits for are brought back before it. Returns how many were freed or -errno. May
	 * be NULL. Since ABI 1.1.
	 */
	int64_t (*retain)(void *channel, void *space, const uint64_t *handles, uint64_t n);

	/*
	 * A living daemon hands over to its successor (upgrade). quiesce(): no I/O is in flight and
	 * none comes any more; leave in the spaces' memory what makes opening them again quick, and
	 * (EBB_BACKEND_EXCLUSIVE) let go of what a second process needs to open the instance.
	 * After it comes either the end of the process, without close(), or resume(), when the
	 * successor failed: be as before. The successor opens instance and spaces; its spaces find
	 * their memory; it must change nothing there or on the device before its own resume(),
	 * because until then the old daemon may go on. 0 or -errno: quiesce: no hand-over then;
	 * resume: the instance is of no use. Both may be NULL: nothing to do. Since ABI 1.2.
	 */
	int (*quiesce)(void *instance);
	int (*resume)(void *instance);

	/*
	 * Whether the object of this handle and owner holds exactly these bytes, told without I/O:
	 * 1 or 0; -ENOTSUP. A wrong 1 loses content, so it must be as good as impossible: a
	 * cryptographic tag, or a keyed checksum of 128 bits. May be NULL. Since ABI 1.2.
	 */
	int (*matches)(void *channel, void *space, uint64_t handle, uint64_t owner, const void *buf,
		       uint32_t len);
};

/* The one symbol that a backend exports. */
const struct ebb_backend *ebb_backend_entry(void);
#define EBB_BACKEND_ENTRY "ebb_backend_entry"

#endif
