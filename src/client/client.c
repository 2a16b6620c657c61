/* SPDX-License-Identifier: BSD-3-Clause */
/* client.c: the process's guest RAM, as the hooks report it and the daemon is told of it. */
#include "client/client.h"

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/fd.h"
#include "base/size.h"
#include "client/real.h"

/*
 * Theory of operation
 *
 * Job. The library lives inside a VMM that knows nothing of it. It finds the guest's RAM (shared
 * mappings of memfds and of files on tmpfs or hugetlbfs), hands it with a userfaultfd to the
 * daemon, and tells the daemon whatever the VMM does to that RAM later.
 *
 * Parts. hooks.c stands in for the libc functions that matter, by LD_PRELOAD or, as a QEMU
 * plugin, by patching call tables (got.c). The hooks call the functions of this file in the VMM's
 * threads. They change the table of regions and, where the daemon has to know before the VMM may
 * go on, submit an op (ops.c) and wait for it. One helper thread (helper.c) does everything that
 * speaks to the daemon, and is made when the first region is found.
 *
 * Invariants.
 * - Without a daemon no call of the VMM fails or waits (EBB_REQUIRE is the operator's wish that
 *   it does). With one, a wait is bounded, except where going on would let somebody read zeroes
 *   instead of evicted content: before RAM's descriptor leaves the process.
 * - The userfaultfd stays open as long as a range is registered with it, daemon or not: when its
 *   last descriptor closes, vCPUs that wait for evicted pages read zeroes.
 * - The lock is never held across anything that can block on the daemon or on a guest page.
 * - Nothing here uses malloc or stdio streams; the hooks may run inside an allocator.
 * - No scheduler calls: QEMU's sandbox can forbid them.
 *
 * Ownership. The regions own a duplicate of their file each; the context owns the userfaultfd;
 * the helper owns the connection. There is one context because there is one process: the hooks
 * are called without one.
 *
 * What it does not do: see the daemon's side of the userfaultfd (it never reads it), keep guest
 * RAM off the VMM's own hands, or know what is evicted.
 */

#define UNMAP_WAIT_MS	 5000
#define DISCARD_WAIT_MS	 1000
#define FORK_WAIT_S	 30
#define EXIT_WAIT_S	 60
#define SHARE_TELL_NS	 (10 * NS_PER_S)
#define SHARE_GIVE_UP_NS (60 * NS_PER_S) /* the daemon lives and says that it cannot */
#define MIN_SIZE_DEFAULT (UINT64_C(64) << 20)

static void default_name(struct client *c)
{
	snprintf(c->name, sizeof(c->name), "%.48s-%d", program_invocation_short_name, (int)c->pid);
}

static bool env_is_set(const char *name)
{
	const char *v = getenv(name);

	return v && *v && strcmp(v, "0");
}

void client_init(struct client *c)
{
	const char *path = getenv("EBB_SOCKET"), *name = getenv("EBB_NAME");
	const char *min = getenv("EBB_MIN_SIZE");
	pthread_condattr_t attr;

	c->pid = getpid();
	c->sock = c->wake = c->uffd = -1;
	c->min_size = MIN_SIZE_DEFAULT;
	if (min && size_parse(min, &c->min_size))
		say("EBB_MIN_SIZE=%s is no size; using 64M", min);
	if (!path || !*path)
		path = "/run/ebb/attach.sock";
	if (snprintf(c->socket_path, sizeof(c->socket_path), "%s", path) >=
	    (int)sizeof(c->socket_path))
		say("EBB_SOCKET is longer than a unix socket's path can be");
	if (name && *name)
		snprintf(c->name, sizeof(c->name), "%s", name);
	else
		default_name(c);
	c->require = env_is_set("EBB_REQUIRE");
	c->secondary = env_is_set("EBB_SECONDARY");
	/* QEMU keeps its RAM from its children, and unmaps it only to give it up. */
	c->in_qemu = dlsym(RTLD_DEFAULT, "qemu_plugin_register_vcpu_init_cb") != NULL;
	pthread_mutex_init(&c->lock, NULL);
	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_cond_init(&c->changed, &attr);
	pthread_condattr_destroy(&attr);
}

/* ---- the table of regions; all with the lock held ---- */

static bool overlaps(const struct region *r, uint64_t addr, uint64_t bytes)
{
	return r->state != REGION_FREE && addr < r->addr + r->size && r->addr < addr + bytes;
}

void region_drop(struct client *c, struct region *r)
{
	client_drop_fd(c, r->fd);
	*r = (struct region){.fd = -1};
}

static bool file_is_ours(struct client *c, dev_t dev, ino_t ino)
{
	for (unsigned int i = 0; i < CLIENT_REGIONS_MAX; i++)
		if (region_is_file(&c->regions[i], dev, ino))
			return true;
	return false;
}

/* Any change of the mappings is a reason to ask again for what was refused. */
static void ask_again(struct client *c)
{
	for (unsigned int i = 0; i < CLIENT_REGIONS_MAX; i++)
		if (c->regions[i].state == REGION_REFUSED)
			c->regions[i].state = REGION_NEW;
	atomic_store(&c->mappings_changed, true);
}

/* Consumes fd. */
static void add_region(struct client *c, const struct mapping *m, const struct memfile *f, int fd)
{
	struct region *r = NULL;

	for (unsigned int i = CLIENT_REGIONS_MAX; i-- > 0;) {
		if (overlaps(&c->regions[i], m->addr, m->size)) {
			real.close(fd);
			return;
		}
		if (c->regions[i].state == REGION_FREE)
			r = &c->regions[i];
	}
	if (!r) {
		say("more than %d RAM blocks; %s is not managed", CLIENT_REGIONS_MAX, m->name);
		real.close(fd);
		return;
	}
	ask_again(c);
	*r = (struct region){
		.state = REGION_NEW,
		.addr = m->addr,
		.size = m->size,
		.offset = m->offset,
		.page_size = f->page_size,
		.dev = f->dev,
		.ino = f->ino,
		.fd = client_keep_fd(c, fd),
		.named = f->named,
		.dontfork = c->in_qemu,
		.serial = ++c->next_serial,
		.since_ns = clock_ns(),
	};
	snprintf(r->id, sizeof(r->id), "%s.%llu", *m->name ? m->name : "ram",
		 (unsigned long long)(r->serial - 1));
}

/* ---- mappings that come ---- */

/* EBB_REQUIRE: no guest RAM without a daemon. */
static void require_daemon(struct client *c)
{
	FD_OWNED fd = fd_connect_unix(c->socket_path);

	if (fd >= 0)
		return;
	say("EBB_REQUIRE is set and no daemon answers at %s: %s", c->socket_path, strerror(-fd));
	_exit(1);
}

void client_mapped(struct client *c, void *addr, size_t bytes, int prot, int flags, int fd,
		   off_t offset)
{
	int type = flags & MAP_TYPE, wanted = PROT_READ | PROT_WRITE, copy;
	struct memfile f;
	struct mapping m = {.addr = (uintptr_t)addr, .size = bytes, .offset = (uint64_t)offset};
	bool take, again;

	if ((type != MAP_SHARED && type != MAP_SHARED_VALIDATE) || fd < 0 ||
	    (prot & wanted) != wanted || memfile_check(fd, &f))
		return;
	m.size = (bytes + f.page_size - 1) / f.page_size * f.page_size;
	pthread_mutex_lock(&c->lock);
	take = m.size >= c->min_size || file_is_ours(c, f.dev, f.ino);
	again = take && !file_is_ours(c, f.dev, f.ino);
	pthread_mutex_unlock(&c->lock);
	if (!take)
		return;
	if (c->require && !atomic_load(&c->started))
		require_daemon(c);
	copy = fcntl(fd, F_DUPFD_CLOEXEC, 3);
	if (copy < 0)
		return;
	memfile_name(copy, m.name, sizeof(m.name));
	pthread_mutex_lock(&c->lock);
	add_region(c, &m, &f, copy);
	pthread_mutex_unlock(&c->lock);
	/* Smaller mappings of the same file that came before did not count until now. */
	if (again)
		client_scan(c);
	helper_start(c);
}

struct found {
	struct client *c;
	struct mapping m[CLIENT_REGIONS_MAX];
	unsigned int n;
	bool small;
};

static void on_mapping(void *ctx, const struct mapping *m)
{
	struct found *found = ctx;
	struct client *c = found->c;
	bool want;

	pthread_mutex_lock(&c->lock);
	want = found->small ? m->size < c->min_size && file_is_ours(c, m->dev, m->ino)
			    : m->size >= c->min_size;
	for (unsigned int i = 0; i < CLIENT_REGIONS_MAX; i++)
		if (overlaps(&c->regions[i], m->addr, m->size))
			want = false;
	pthread_mutex_unlock(&c->lock);
	if (want && found->n < CLIENT_REGIONS_MAX)
		found->m[found->n++] = *m;
}

/* One pass; false when mappings went away meanwhile, so that what was read may be stale. */
static bool scan_once(struct client *c, bool small)
{
	struct found found = {.c = c, .small = small};
	uint64_t unmaps = atomic_load(&c->unmaps);
	bool fresh = true;

	if (maps_scan(on_mapping, &found))
		return true;
	for (unsigned int i = 0; i < found.n; i++) {
		struct memfile f;
		int fd = memfile_open(&found.m[i]);

		if (fd < 0 && !small && found.m[i].name[0] && strncmp(found.m[i].name, "zero", 4))
			say("%s is mapped, but its file cannot be opened: not managed",
			    found.m[i].name);
		if (fd < 0)
			continue;
		if (memfile_check(fd, &f)) {
			real.close(fd);
			continue;
		}
		pthread_mutex_lock(&c->lock);
		fresh = atomic_load(&c->unmaps) == unmaps;
		if (fresh)
			add_region(c, &found.m[i], &f, fd);
		else
			real.close(fd);
		pthread_mutex_unlock(&c->lock);
		if (!fresh)
			break;
	}
	return fresh;
}

void client_scan(struct client *c)
{
	for (int tries = 0; tries < 10 && !scan_once(c, false); tries++)
		;
	for (int tries = 0; tries < 10 && !scan_once(c, true); tries++)
		;
}

/* ---- mappings that go ---- */

/* A region with a name, or that others or we ourselves map as well, is not ours to forget. */
static bool may_discard(struct client *c, unsigned int region)
{
	const struct region *r = &c->regions[region];

	if (!c->in_qemu || c->secondary || r->named || r->shared)
		return false;
	for (unsigned int i = 0; i < CLIENT_REGIONS_MAX; i++)
		if (i != region && region_is_file(&c->regions[i], r->dev, r->ino))
			return false;
	return true;
}

/* An attach that is under way may register the range yet: waits for its end. Lock held. */
static void wait_for_offer(struct client *c, uint64_t until_ns)
{
	for (unsigned int i = 0; i < CLIENT_REGIONS_MAX; i++)
		while (c->regions[i].state == REGION_OFFERED && c->link == LINK_NONE)
			if (client_wait(c, until_ns) == -ETIMEDOUT)
				return;
}

/*
 * Takes one region back: 0 when the daemon has nothing to do with it any more, and the region is
 * LEAVING or was never known. With the lock held; it is released while waiting.
 */
static int take_back(struct client *c, unsigned int region, bool discard, unsigned int ms)
{
	struct region *r = &c->regions[region];
	uint64_t serial = r->serial;
	struct op *op;
	int err;

	if (r->state == REGION_OFFERED)
		wait_for_offer(c, clock_ns() + ms * NS_PER_MS);
	if (r->serial != serial || !region_known(r))
		return 0;
	op = op_submit(c, OP_REMOVE, region);
	if (!op)
		return -ENOTCONN;
	r->state = REGION_LEAVING;
	op->discard = discard;
	err = op_wait(c, op, ms);
	/* Timed out before it was sent: nothing has changed. Else the answer will tell. */
	if (err == -ETIMEDOUT && op->state == OP_FREE && r->serial == serial)
		r->state = REGION_MANAGED;
	return err;
}

/*
 * The helper's zap of a range that is unmapped under it could hit what is mapped there next.
 * It ends when the daemon has read the event that it raises, so this is short.
 */
static void wait_for_zap(struct client *c, struct region *r)
{
	uint64_t until = clock_ns() + UNMAP_WAIT_MS * NS_PER_MS;

	while (r->zapping && client_wait(c, until) != -ETIMEDOUT)
		;
}

void client_before_unmap(struct client *c, void *addr, size_t bytes, bool moved)
{
	uint64_t start = (uintptr_t)addr;

	atomic_fetch_add(&c->unmaps, 1);
	if (!atomic_load_explicit(&c->started, memory_order_acquire) || helper_is_self(c))
		return;
	pthread_mutex_lock(&c->lock);
	for (unsigned int i = 0; i < CLIENT_REGIONS_MAX; i++) {
		struct region *r = &c->regions[i];
		uint64_t serial = r->serial;
		bool whole;
		int err;

		if (!overlaps(r, start, bytes))
			continue;
		whole = start <= r->addr && start + bytes >= r->addr + r->size;
		err = take_back(c, i, whole && !moved && may_discard(c, i), UNMAP_WAIT_MS);
		if (err)
			say("unmapping %s: the daemon did not answer (%s)", r->id, strerror(-err));
		wait_for_zap(c, r);
		if (r->serial == serial)
			region_drop(c, r);
		ask_again(c);
		helper_wake(c);
	}
	pthread_mutex_unlock(&c->lock);
}

/* ---- discards ---- */

/* [from, from + bytes) of region i, in bytes from its start. With the lock held. */
static struct op *submit_discard(struct client *c, unsigned int i, uint64_t from, uint64_t bytes)
{
	uint32_t page = c->regions[i].page_size;
	uint64_t start = (from + page - 1) / page * page, end = (from + bytes) / page * page;
	struct op *op;

	/* A part of a page that was cleared is a write, not a discard. */
	if (start >= end || !region_known(&c->regions[i]))
		return NULL;
	while (!(op = op_submit(c, OP_DISCARD, i)) && c->link == LINK_ATTACHED)
		if (client_wait(c, clock_ns() + DISCARD_WAIT_MS * NS_PER_MS) == -ETIMEDOUT)
			return NULL;
	if (op) {
		op->offset = start;
		op->size = end - start;
	}
	return op;
}

static void await_discards(struct client *c, struct op **ops, unsigned int n)
{
	for (unsigned int i = 0; i < n; i++)
		op_wait(c, ops[i], DISCARD_WAIT_MS);
}

void client_discarded(struct client *c, void *addr, size_t bytes)
{
	uint64_t start = (uintptr_t)addr, end = start + bytes;
	struct op *ops[CLIENT_REGIONS_MAX], *op;
	unsigned int n = 0;

	if (!atomic_load_explicit(&c->started, memory_order_acquire))
		return;
	pthread_mutex_lock(&c->lock);
	for (unsigned int i = 0; i < CLIENT_REGIONS_MAX; i++) {
		struct region *r = &c->regions[i];
		uint64_t from, to;

		if (!overlaps(r, start, bytes))
			continue;
		from = start > r->addr ? start - r->addr : 0;
		to = end < r->addr + r->size ? end - r->addr : r->size;
		op = submit_discard(c, i, from, to - from);
		if (op)
			ops[n++] = op;
	}
	await_discards(c, ops, n);
	pthread_mutex_unlock(&c->lock);
}

void client_punched(struct client *c, int fd, off_t offset, off_t bytes)
{
	uint64_t start = (uint64_t)offset, end = start + (uint64_t)bytes;
	struct op *ops[CLIENT_REGIONS_MAX], *op;
	unsigned int n = 0;
	struct stat st;

	if (!atomic_load_explicit(&c->started, memory_order_acquire) || fstat(fd, &st))
		return;
	pthread_mutex_lock(&c->lock);
	for (unsigned int i = 0; i < CLIENT_REGIONS_MAX; i++) {
		struct region *r = &c->regions[i];
		uint64_t from, to;

		if (!region_is_file(r, st.st_dev, st.st_ino) || start >= r->offset + r->size ||
		    end <= r->offset)
			continue;
		from = start > r->offset ? start - r->offset : 0;
		to = end < r->offset + r->size ? end - r->offset : r->size;
		op = submit_discard(c, i, from, to - from);
		if (op)
			ops[n++] = op;
	}
	await_discards(c, ops, n);
	pthread_mutex_unlock(&c->lock);
}

void client_populating(struct client *c, void *addr, size_t bytes, int by)
{
	if (!atomic_load_explicit(&c->started, memory_order_acquire))
		return;
	pthread_mutex_lock(&c->lock);
	for (unsigned int i = 0; i < CLIENT_REGIONS_MAX; i++) {
		struct region *r = &c->regions[i];

		if (!overlaps(r, (uintptr_t)addr, bytes))
			continue;
		if (by > 0)
			r->busy++;
		else if (r->busy)
			r->busy--;
		r->since_ns = clock_ns();
	}
	pthread_mutex_unlock(&c->lock);
	helper_wake(c);
}

void client_dontfork(struct client *c, void *addr, size_t bytes, bool on)
{
	uint64_t start = (uintptr_t)addr;

	if (!atomic_load_explicit(&c->started, memory_order_acquire))
		return;
	pthread_mutex_lock(&c->lock);
	for (unsigned int i = 0; i < CLIENT_REGIONS_MAX; i++) {
		struct region *r = &c->regions[i];

		if (!overlaps(r, start, bytes))
			continue;
		r->dontfork = on && start <= r->addr && start + bytes >= r->addr + r->size;
	}
	pthread_mutex_unlock(&c->lock);
}

/* ---- the descriptor, the process, the userfaultfd: what takes RAM out of the daemon's sight ----
 */

/*
 * Until the daemon has answered, whoever gets the descriptor would read zeroes where content is
 * evicted. So this waits as long as the daemon lives, and through its death until it is back.
 */
static void share_region(struct client *c, unsigned int i)
{
	uint64_t start = clock_ns(), serial = c->regions[i].serial;
	bool told = false;

	while (c->regions[i].serial == serial && region_known(&c->regions[i])) {
		enum op_kind kind = c->no_share ? OP_PIN : OP_SHARE;
		struct op *op = op_submit(c, kind, i);
		uint64_t waited;
		int r = -ENOTCONN;

		if (op) {
			op->size = c->regions[i].size;
			r = op_wait(c, op, 0);
		}
		if (!r)
			return;
		if (r == -EOPNOTSUPP && kind == OP_SHARE)
			continue;
		waited = clock_ns() - start;
		if (!told && waited > SHARE_TELL_NS)
			say("%s is to be shared: waiting for the daemon to bring it back (%s)",
			    c->regions[i].id, strerror(-r));
		told = told || waited > SHARE_TELL_NS;
		if (r != -ENOTCONN && waited > SHARE_GIVE_UP_NS) {
			say("%s is shared though the daemon could not bring it back",
			    c->regions[i].id);
			return;
		}
		client_wait(c, clock_ns() + 100 * NS_PER_MS);
	}
}

void client_before_share(struct client *c, int fd)
{
	struct stat st;

	if (!atomic_load_explicit(&c->started, memory_order_acquire) || helper_is_self(c) ||
	    fstat(fd, &st))
		return;
	pthread_mutex_lock(&c->lock);
	for (unsigned int i = 0; i < CLIENT_REGIONS_MAX; i++) {
		struct region *r = &c->regions[i];

		if (!region_is_file(r, st.st_dev, st.st_ino))
			continue;
		/* Sent again each time: the next one to get it may be another process. */
		r->shared = true;
		share_region(c, i);
	}
	pthread_mutex_unlock(&c->lock);
}

void client_step_aside(struct client *c, uint64_t addr, uint64_t bytes)
{
	if (!atomic_load_explicit(&c->started, memory_order_acquire))
		return;
	pthread_mutex_lock(&c->lock);
	for (unsigned int i = 0; i < CLIENT_REGIONS_MAX; i++) {
		struct region *r = &c->regions[i];
		int err;

		if (!overlaps(r, addr, bytes) || r->state == REGION_ASIDE)
			continue;
		err = take_back(c, i, false, FORK_WAIT_S * 1000);
		if (err)
			say("%s: the VMM wants its own userfaultfd, the daemon did not let go (%s)",
			    r->id, strerror(-err));
		else if (overlaps(r, addr, bytes))
			r->state = REGION_ASIDE;
	}
	pthread_mutex_unlock(&c->lock);
}

void client_step_back(struct client *c, uint64_t addr, uint64_t bytes)
{
	if (!atomic_load_explicit(&c->started, memory_order_acquire))
		return;
	pthread_mutex_lock(&c->lock);
	for (unsigned int i = 0; i < CLIENT_REGIONS_MAX; i++) {
		struct region *r = &c->regions[i];

		if (!overlaps(r, addr, bytes) || r->state != REGION_ASIDE)
			continue;
		r->state = REGION_NEW;
		r->since_ns = clock_ns();
	}
	pthread_mutex_unlock(&c->lock);
	helper_wake(c);
}

/* With the lock held. */
static int detach_locked(struct client *c, unsigned int seconds)
{
	uint64_t until = clock_ns() + seconds * NS_PER_S;

	wait_for_offer(c, until);
	while (c->link != LINK_NONE && clock_ns() < until) {
		struct op *op = op_submit(c, OP_DETACH, 0);
		int r = -ENOTCONN;

		if (op)
			r = op_wait(c, op, (unsigned int)((until - clock_ns()) / NS_PER_MS) + 1);
		if (r)
			client_wait(c, clock_ns() + 100 * NS_PER_MS);
	}
	return c->link == LINK_NONE ? 0 : -ETIMEDOUT;
}

int client_detach(struct client *c, unsigned int seconds)
{
	int r;

	if (!atomic_load_explicit(&c->started, memory_order_acquire) || helper_is_self(c) ||
	    getpid() != c->pid)
		return 0;
	pthread_mutex_lock(&c->lock);
	r = detach_locked(c, seconds);
	pthread_mutex_unlock(&c->lock);
	return r;
}

void client_exit(struct client *c)
{
	bool named = false;

	if (!atomic_load_explicit(&c->started, memory_order_acquire) || getpid() != c->pid)
		return;
	pthread_mutex_lock(&c->lock);
	for (unsigned int i = 0; i < CLIENT_REGIONS_MAX; i++)
		named |= c->regions[i].named && region_known(&c->regions[i]);
	atomic_store(&c->finished, true);
	if (named && c->link == LINK_ATTACHED && detach_locked(c, EXIT_WAIT_S))
		say("the daemon did not bring back what it had of this VM's files");
	pthread_mutex_unlock(&c->lock);
}

static _Atomic uint64_t *fd_word(struct client *c, int fd, uint64_t *bit)
{
	if (fd < 0 || fd >= CLIENT_FD_MAX)
		return NULL;
	*bit = UINT64_C(1) << (fd % 64);
	return &c->own_fds[fd / 64];
}

int client_keep_fd(struct client *c, int fd)
{
	uint64_t bit;
	_Atomic uint64_t *word = fd_word(c, fd, &bit);

	if (word)
		atomic_fetch_or(word, bit);
	return fd;
}

void client_drop_fd(struct client *c, int fd)
{
	uint64_t bit;
	_Atomic uint64_t *word = fd_word(c, fd, &bit);

	if (word)
		atomic_fetch_and(word, ~bit);
	if (fd >= 0)
		real.close(fd);
}

bool client_owns_fd(struct client *c, int fd)
{
	uint64_t bit;
	_Atomic uint64_t *word = fd_word(c, fd, &bit);

	return word && (atomic_load_explicit(word, memory_order_relaxed) & bit);
}

/* ---- fork ---- */

/*
 * A child's copy of the mapping is not registered with any userfaultfd, so the child would read
 * zeroes over what is evicted, and by that make them the guest's. Either the child gets no copy
 * (MADV_DONTFORK, which QEMU sets itself), or everything comes back first.
 */
void client_fork_prepare(struct client *c)
{
	bool inherits = false;

	if (!atomic_load_explicit(&c->started, memory_order_acquire))
		return;
	pthread_mutex_lock(&c->lock);
	c->fork_locked = true;
	for (unsigned int i = 0; i < CLIENT_REGIONS_MAX; i++)
		inherits |= region_known(&c->regions[i]) && !c->regions[i].dontfork;
	if (!inherits || !detach_locked(c, FORK_WAIT_S))
		return;
	for (unsigned int i = 0; i < CLIENT_REGIONS_MAX; i++) {
		struct region *r = &c->regions[i];

		if (!region_known(r))
			continue;
		r->dontfork = true;
		real.madvise((void *)(uintptr_t)r->addr, r->size, MADV_DONTFORK);
	}
	say("the daemon did not let go before a fork: the child gets no guest RAM");
}

void client_fork_parent(struct client *c)
{
	if (!c->fork_locked)
		return;
	c->fork_locked = false;
	pthread_mutex_unlock(&c->lock);
}

void client_fork_child(struct client *c)
{
	bool any = false;

	if (!c->fork_locked)
		return;
	c->fork_locked = false;
	/* The parent's connection is not the child's; its userfaultfd is about the parent. */
	client_drop_fd(c, c->sock);
	client_drop_fd(c, c->wake);
	client_drop_fd(c, c->uffd);
	c->sock = c->wake = c->uffd = -1;
	c->link = LINK_NONE;
	c->pid = getpid();
	c->retry_ns = c->backoff_ns = 0;
	memset(c->ops, 0, sizeof(c->ops));
	pthread_mutex_init(&c->lock, NULL);
	atomic_store(&c->started, false);
	for (unsigned int i = 0; i < CLIENT_REGIONS_MAX; i++) {
		struct region *r = &c->regions[i];

		if (r->state == REGION_FREE)
			continue;
		if (r->dontfork) {
			region_drop(c, r);
			continue;
		}
		r->state = REGION_NEW;
		r->zapping = false;
		r->busy = 0;
		r->since_ns = clock_ns();
		any = true;
	}
	if (any)
		helper_start(c);
}
