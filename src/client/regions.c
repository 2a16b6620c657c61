/* SPDX-License-Identifier: BSD-3-Clause */
/* regions.c: the table of the process's guest RAM: what comes, what goes. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/fd.h"
#include "client/client.h"
#include "client/real.h"

#define UNMAP_WAIT_MS 5000
#define MAP_WAIT_MS   10000

/* ---- the table of regions; all with the lock held ---- */

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
		if (region_overlaps(&c->regions[i], m->addr, m->size)) {
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

int client_require(struct client *c)
{
	FD_OWNED fd = fd_connect_unix(c->socket_path);

	if (fd < 0)
		say("EBB_REQUIRE is set and no daemon answers at %s: %s", c->socket_path,
		    strerror(-fd));
	return fd < 0 ? fd : 0;
}

/*
 * A back end that is attached was given a descriptor without anything being brought back for it, as
 * the daemon serves its faults: in a mapping only when it is registered. So it gets the mapping
 * when the daemon has answered. (Not attached, it was waited for; without a daemon, this is not.)
 */
static void wait_registered(struct client *c, uint64_t addr)
{
	uint64_t until = clock_ns() + MAP_WAIT_MS * NS_PER_MS;
	bool waits = true;

	helper_wake(c);
	pthread_mutex_lock(&c->lock);
	while (waits && c->link == LINK_ATTACHED) {
		waits = false;
		for (unsigned int i = 0; i < CLIENT_REGIONS_MAX; i++)
			waits |= c->regions[i].addr == addr &&
				 (c->regions[i].state == REGION_NEW ||
				  c->regions[i].state == REGION_OFFERED);
		if (waits && client_wait(c, until) == -ETIMEDOUT) {
			say("the daemon does not answer: what is evicted is missing in a mapping");
			break;
		}
	}
	pthread_mutex_unlock(&c->lock);
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
	if (c->require && !atomic_load(&c->started) && client_require(c))
		_exit(1);
	copy = fcntl(fd, F_DUPFD_CLOEXEC, 3);
	if (copy < 0)
		return;
	/* A back end's seccomp filter need not allow readlink(), and the inode is enough. */
	if (!c->secondary)
		memfile_name(copy, m.name, sizeof(m.name));
	pthread_mutex_lock(&c->lock);
	add_region(c, &m, &f, copy);
	pthread_mutex_unlock(&c->lock);
	/* Smaller mappings of the same file that came before did not count until now. */
	if (again)
		client_scan(c);
	helper_start(c);
	if (c->secondary && !helper_is_self(c))
		wait_registered(c, m.addr);
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
		if (region_overlaps(&c->regions[i], m->addr, m->size))
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

void client_scan_early(struct client *c)
{
	bool found = false;

	client_scan(c);
	for (unsigned int i = 0; i < CLIENT_REGIONS_MAX; i++)
		found |= c->regions[i].state != REGION_FREE;
	if (!found)
		return;
	if (c->require && client_require(c))
		_exit(1);
	helper_start(c);
}

/* An attach that is under way may register the range yet: waits for its end. Lock held. */
void region_wait_offers(struct client *c, uint64_t until_ns)
{
	for (unsigned int i = 0; i < CLIENT_REGIONS_MAX; i++)
		while (c->taking_over ||
		       (c->regions[i].state == REGION_OFFERED && c->link == LINK_NONE))
			if (client_wait(c, until_ns) == -ETIMEDOUT)
				return;
}

/*
 * Takes one region back: 0 when the daemon has nothing to do with it any more, and the region is
 * LEAVING or was never known. With the lock held; it is released while waiting.
 */
int region_take_back(struct client *c, unsigned int region, bool discard, unsigned int ms)
{
	struct region *r = &c->regions[region];
	uint64_t serial = r->serial;
	struct op *op;
	int err;

	if (r->state == REGION_OFFERED || c->taking_over)
		region_wait_offers(c, clock_ns() + ms * NS_PER_MS);
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

		if (!region_overlaps(r, start, bytes))
			continue;
		whole = start <= r->addr && start + bytes >= r->addr + r->size;
		err = region_take_back(c, i, whole && !moved && may_discard(c, i), UNMAP_WAIT_MS);
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
