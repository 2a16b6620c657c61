/* SPDX-License-Identifier: BSD-3-Clause */
/* client.h: what the parts of the attach library share. */
#ifndef CLIENT_CLIENT_H
#define CLIENT_CLIENT_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "client/maps.h"

#define CLIENT_REGIONS_MAX 64
#define CLIENT_NAME_MAX	   64
#define CLIENT_OPS_MAX	   64
#define CLIENT_FD_MAX	   4096 /* own descriptors above that are not protected */
#define CLIENT_PATH_MAX	   108	/* what a unix socket's address takes */

/* A mapping of guest RAM. "Known to the daemon" means OFFERED, MANAGED and LEAVING. */
enum region_state {
	REGION_FREE,
	REGION_NEW,	/* not offered yet, or to be offered again */
	REGION_OFFERED, /* in an attach or region-add that is not answered yet */
	REGION_MANAGED, /* the daemon has registered it */
	REGION_LEAVING, /* its region-remove is under way */
	REGION_REFUSED, /* the daemon cannot take it; asked again when the mappings change */
	REGION_ASIDE,	/* the VMM uses its own userfaultfd on it */
};

struct region {
	enum region_state state;
	uint64_t addr, size, offset; /* bytes; offset in the file */
	uint32_t page_size;
	dev_t dev;
	ino_t ino;
	int fd;		   /* own duplicate of the file; closed with the region */
	bool named;	   /* the file has a name: its content outlives the process */
	bool dontfork;	   /* the VMM keeps it from its children */
	bool shared;	   /* its descriptor has left the process */
	pid_t peer;	   /* for whom, at last; 0: several, or not known */
	bool zapping;	   /* the helper drops page-table entries of it now */
	unsigned int pins; /* in place of "share", until unpin_ns */
	uint64_t unpin_ns;
	unsigned int busy; /* MADV_POPULATE_* calls under way */
	uint64_t since_ns; /* when it was mapped */
	uint64_t refused_until_ns;
	uint64_t serial; /* never used twice: tells an op whose region is gone */
	char id[CLIENT_NAME_MAX];
};

enum op_kind { OP_ADD, OP_REMOVE, OP_DISCARD, OP_SHARE, OP_PIN, OP_UNPIN, OP_DETACH };
enum op_state { OP_FREE, OP_QUEUED, OP_SENT, OP_DONE };

/* A message to the daemon; answers come in the order of sending. */
struct op {
	enum op_kind kind;
	enum op_state state;
	uint64_t seq;
	unsigned int region;   /* index, except for OP_DETACH */
	uint64_t serial;       /* of that region */
	uint64_t offset, size; /* OP_DISCARD: bytes in the region */
	uint64_t deadline_ns;  /* OP_DISCARD: until when the VMM waits */
	pid_t peer;	       /* OP_SHARE: who gets it; 0: not known */
	bool discard;	       /* OP_REMOVE: what is evicted may be dropped */
	bool unwatched;	       /* nobody waits for it: freed when answered */
	int result;	       /* 0, or -errno */
};

enum link_state {
	LINK_NONE,     /* no connection */
	LINK_ATTACHED, /* the daemon manages the OFFERED and MANAGED regions */
	LINK_ORPHANED, /* no connection, but the ranges are still registered with our uffd */
};

/* What the daemon wants zapped: one request at a time, in a thread of its own (zap.c). */
#define CLIENT_ZAP_MAX 512
enum zap_state { ZAP_IDLE, ZAP_WANTED, ZAP_THROUGH };
struct zap {
	enum zap_state state;
	uint64_t id; /* 0: whoever asked is gone */
	int result;
	bool started; /* the thread; set before the helper starts */
	pthread_cond_t wanted;
	unsigned int n;
	struct zap_range {
		uint64_t addr, bytes;
	} ranges[CLIENT_ZAP_MAX];
};

/* A piece of the daemon's state of this VM, for the next daemon (resume.c). */
#define CLIENT_KEPT_MAX 96 /* what a VM of CLIENT_REGIONS_MAX regions can have */
struct kept {
	char name[CLIENT_NAME_MAX];
	int fd;
};

struct client {
	/* Settings: written before the helper starts. */
	char socket_path[CLIENT_PATH_MAX];
	char name[CLIENT_NAME_MAX];
	uint64_t min_size;
	bool require, secondary, in_qemu;

	/* Written by the helper alone, without the lock. */
	const char *dial_path; /* the way to socket_path from the helper's working folder */
	uint64_t retry_ns, backoff_ns;
	bool one_by_one;       /* an attach with all regions was refused: offer one */
	unsigned int next_one; /* where to look for that one */
	pid_t released_by;     /* the daemon process that let us go; not asked again */
	pid_t lost_by;	       /* the one whose connection broke: it may still have our RAM */
	uint64_t told_ns;      /* when it was said that nobody takes over */
	bool ever_attached;
	char last_error[320]; /* told once */

	_Atomic bool started;	       /* the helper runs in this process */
	_Atomic bool finished;	       /* the process is about to exit or exec */
	_Atomic bool mappings_changed; /* since the helper looked */
	_Atomic uint64_t unmaps; /* counts what takes mappings away, so that a scan can tell */
	int wake;		 /* eventfd */
	int watch;		 /* inotify on the socket's folder, or -1; the helper's */
	bool watching;		 /* it has the folder */
	pthread_t helper;
	pid_t pid; /* that the above is about */

	_Atomic uint64_t own_fds[CLIENT_FD_MAX / 64]; /* bits */

	/*
	 * The only lock; it guards what follows. Never held across a system call that can block
	 * on the daemon or on a fault.
	 */
	pthread_mutex_t lock;
	pthread_cond_t changed; /* an op or a region changed its state, or the link its own */
	enum link_state link;
	int sock;     /* changed by the helper only */
	bool sending; /* the helper is; nobody else may then */
	int uffd;     /* our duplicate, for as long as anything is registered with it */
	struct region regions[CLIENT_REGIONS_MAX];
	struct op ops[CLIENT_OPS_MAX];
	struct zap zap;
	struct kept kept[CLIENT_KEPT_MAX]; /* changed by the helper only */
	unsigned int n_kept;
	bool taking_over; /* an attach with all of the above is under way */
	uint64_t next_seq;
	uint64_t next_serial;
	bool fork_locked; /* a fork() in progress holds the lock */
	bool no_share;	  /* the daemon does not know "share" */
};

/* ---- client.c ---- */

/* Settings from the environment. Once, from the constructor. */
void client_init(struct client *c);
/*
 * Descriptors of the library's own, which the VMM has no business closing: keep() marks one and
 * returns it, drop() closes it (-1 is taken). Any thread.
 */
int client_keep_fd(struct client *c, int fd);
void client_drop_fd(struct client *c, int fd);
bool client_owns_fd(struct client *c, int fd);

/* ---- regions.c, discard.c, leave.c: what the hooks report ---- */

/* The VMM mapped a file. Never fails, never waits (but see EBB_REQUIRE). */
void client_mapped(struct client *c, void *addr, size_t bytes, int prot, int flags, int fd,
		   off_t offset);
/* EBB_REQUIRE: 0 when a daemon answers, else -errno, and it was said. */
int client_require(struct client *c);
/*
 * [addr, addr + bytes) is about to be unmapped or replaced: takes regions in it back from the
 * daemon. moved: its content is still wanted. Waits, at most some seconds.
 */
void client_before_unmap(struct client *c, void *addr, size_t bytes, bool moved);
/* A range, by address or in a file, has just been punched by the VMM. Waits at most a second. */
void client_discarded(struct client *c, void *addr, size_t bytes);
void client_punched(struct client *c, int fd, off_t offset, off_t bytes);
/* Populating starts (+1) and ends (-1): attaching waits for its end. */
void client_populating(struct client *c, void *addr, size_t bytes, int by);
/* MADV_DONTFORK (true) or MADV_DOFORK on a range. */
void client_dontfork(struct client *c, void *addr, size_t bytes, bool on);
/* fd is about to leave the process: what is evicted of its file comes back first. Waits. */
void client_before_share(struct client *c, int fd, pid_t peer);
/* The VMM registers (or has unregistered) a range with a userfaultfd of its own. Waits. */
void client_step_aside(struct client *c, uint64_t addr, uint64_t bytes);
void client_step_back(struct client *c, uint64_t addr, uint64_t bytes);
/* Everything comes back and is unregistered (exec, fork). 0, or -ETIMEDOUT. */
int client_detach(struct client *c, unsigned int seconds);
/* Looks through the process's mappings for RAM that was mapped before we could see it. */
void client_scan(struct client *c);
/* The same when the library is loaded: what an allocator mapped for the loader or for us. */
void client_scan_early(struct client *c);
/* At exit: files with a name get their content back. */
void client_exit(struct client *c);
/* Around fork(). */
void client_fork_prepare(struct client *c);
void client_fork_parent(struct client *c);
void client_fork_child(struct client *c);

/* The table, with the lock held. */
static inline bool region_is_file(const struct region *r, dev_t dev, ino_t ino)
{
	return r->state != REGION_FREE && r->dev == dev && r->ino == ino;
}
static inline bool region_known(const struct region *r)
{
	return r->state == REGION_OFFERED || r->state == REGION_MANAGED ||
	       r->state == REGION_LEAVING;
}
static inline bool region_overlaps(const struct region *r, uint64_t addr, uint64_t bytes)
{
	return r->state != REGION_FREE && addr < r->addr + r->size && r->addr < addr + bytes;
}
/* Forgets a region and closes its descriptor. */
void region_drop(struct client *c, struct region *r);
/* An attach that is under way may register a range yet: waits for its end. Releases the lock. */
void region_wait_offers(struct client *c, uint64_t until_ns);
/*
 * Takes one region back: 0 when the daemon has nothing to do with it any more, and the region is
 * LEAVING or was never known. Releases the lock while waiting.
 */
int region_take_back(struct client *c, unsigned int region, bool discard, unsigned int ms);
/* The op's region; NULL when it is gone, or for OP_DETACH. */
struct region *op_region(struct client *c, const struct op *op);

/* ---- ops.c: messages to the daemon ---- */

/*
 * Queues a message. Returns it, for the caller to fill in and to start, or NULL when there is no
 * connection or no room. With the lock held.
 */
struct op *op_submit(struct client *c, enum op_kind kind, unsigned int region);
/* Sends it, or has the helper do so. With the lock held; does not block. */
void op_start(struct client *c, struct op *op);
/*
 * Starts it if it was not, and waits for the answer (0: for as long as the connection lives) and
 * gives the op back. Returns its result, -ETIMEDOUT or -ENOTCONN. With the lock held; it is
 * released while waiting.
 */
int op_wait(struct client *c, struct op *op, unsigned int ms);
/* The first queued op, or the one whose answer is due; NULL. With the lock held. */
struct op *op_first(struct client *c, enum op_state state);
/* Ends an op. With the lock held. */
void op_done(struct client *c, struct op *op, int result);
/* Ends all ops. With the lock held. */
void op_fail_all(struct client *c, int result);
/* Waits until something changed or `until_ns` (CLOCK_MONOTONIC). Lock held, released meanwhile. */
int client_wait(struct client *c, uint64_t until_ns);

/* ---- helper.c: the thread ---- */

/* Starts the helper unless it runs. Any thread; never waits for the helper. */
void helper_start(struct client *c);
void helper_wake(struct client *c);
/* True in the helper itself, whose own calls the hooks let through. */
static inline bool helper_is_self(struct client *c)
{
	return atomic_load_explicit(&c->started, memory_order_acquire) &&
	       pthread_equal(pthread_self(), c->helper);
}

/* ---- message.c ---- */

/*
 * Puts the attach message into buf (no newline) and its descriptors into fds, for the regions
 * marked in `chosen`; *n_fds counts the uffd as well, which goes first. resume: with what is kept,
 * whose descriptors go last. Returns the length or -EMSGSIZE. With the lock held.
 */
int message_attach(const struct client *c, const bool *chosen, int uffd, bool resume, char *buf,
		   size_t bytes, int *fds, int *n_fds);
/* The same for one op; fds has room for one. */
int message_op(const struct client *c, const struct op *op, char *buf, size_t bytes, int *fds,
	       int *n_fds);

/* ---- uffd.c ---- */

/* A userfaultfd of this process, UFFDIO_API not called. -EPERM when it takes the device. */
int uffd_new(void);
/* The same from an open userfaultfd device. */
int uffd_from_device(int device);
/* Is the page at addr registered with uffd? Changes nothing. */
bool uffd_registered(int uffd, uint64_t addr, uint32_t page_size);

/* ---- say.c ---- */

/* One line on stderr, in one write(). Not for anything that can repeat without bound. */
void say(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

/* ---- got.c ---- */

struct got_hook {
	const char *symbol;
	void *function;
};
/*
 * Makes every object of the process but this one, libc and the loader call the hooks. Returns
 * how many places were changed.
 */
unsigned int got_patch(const struct got_hook *hooks, unsigned int n);

/* ---- hooks.c ---- */

/* The library's one context. */
extern struct client the_client;
/* Makes the process's calls visible when the library was not preloaded. */
void hooks_install(void);

#endif
