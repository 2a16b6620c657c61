/* SPDX-License-Identifier: BSD-3-Clause */
/* zap.c: drops page-table entries for the daemon; the data stays in the file. */
#include <errno.h>
#include <inttypes.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>

#include "client/link.h"
#include "client/real.h"

/*
 * madvise(MADV_DONTNEED) on a registered range can raise an event, and then returns when the
 * daemon has read it; should the daemon die first, it returns when the next one reads it. The
 * helper has to look for that next one, so the call is made in a thread of its own, one request at
 * a time. While a range is being zapped its region is marked, and unmapping waits for that: what
 * is mapped in its place might not be shared memory, and would lose its content.
 */

/*
 * That thread is made by the VMM's thread that makes the helper, not by the helper at the first
 * request: making a thread allocates, and an allocator may keep its heap in the very RAM that is
 * managed. Giving memory back it would then have the helper wait for an answer that only the helper
 * can take, while whoever allocates waits for it.
 */

#define STACK_BYTES (64 << 10)

/* With the lock held. */
static struct region *region_at(struct client *c, const struct zap_range *range)
{
	for (unsigned int i = 0; i < CLIENT_REGIONS_MAX; i++) {
		struct region *r = &c->regions[i];

		if (r->state == REGION_MANAGED && range->addr >= r->addr &&
		    range->bytes <= r->size && range->addr - r->addr <= r->size - range->bytes)
			return r;
	}
	return NULL;
}

static int zap_one(struct client *c, const struct zap_range *range)
{
	struct region *r;
	int err;

	pthread_mutex_lock(&c->lock);
	r = region_at(c, range);
	if (r)
		r->zapping = true;
	pthread_mutex_unlock(&c->lock);
	if (!r)
		return -EINVAL;
	err = real.madvise((void *)(uintptr_t)range->addr, range->bytes, MADV_DONTNEED) ? -errno
											: 0;
	pthread_mutex_lock(&c->lock);
	r->zapping = false;
	pthread_cond_broadcast(&c->changed);
	pthread_mutex_unlock(&c->lock);
	return err;
}

static void *zap_main(void *arg)
{
	struct client *c = arg;
	struct zap *z = &c->zap;

	prctl(PR_SET_NAME, "ebb-attach-zap");
	for (;;) {
		int r = 0;

		pthread_mutex_lock(&c->lock);
		while (z->state != ZAP_WANTED)
			pthread_cond_wait(&z->wanted, &c->lock);
		pthread_mutex_unlock(&c->lock);
		for (unsigned int i = 0; i < z->n && !r; i++)
			r = zap_one(c, &z->ranges[i]);
		pthread_mutex_lock(&c->lock);
		z->result = r;
		z->state = ZAP_THROUGH;
		pthread_mutex_unlock(&c->lock);
		helper_wake(c);
	}
	return NULL;
}

/* {"ranges":[[address,bytes],...]} */
static int read_ranges(struct json_span line, struct zap *z)
{
	struct json_span arguments, ranges, range = {0};

	if (!json_member(line, "arguments", &arguments) ||
	    !json_member(arguments, "ranges", &ranges) || *ranges.p != '[')
		return -EINVAL;
	z->n = 0;
	while (json_next(ranges, &range)) {
		struct json_span at = {0};
		struct zap_range *to = &z->ranges[z->n];

		if (z->n++ == CLIENT_ZAP_MAX || !json_next(range, &at) || json_u64(at, &to->addr) ||
		    !json_next(range, &at) || json_u64(at, &to->bytes))
			return -EINVAL;
	}
	return 0;
}

void zap_start(struct client *c)
{
	pthread_attr_t attr;
	pthread_t thread;

	pthread_cond_init(&c->zap.wanted, NULL);
	pthread_attr_init(&attr);
	pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
	pthread_attr_setstacksize(&attr, STACK_BYTES);
	c->zap.started = !pthread_create(&thread, &attr, zap_main, c);
	pthread_attr_destroy(&attr);
}

int zap_begin(struct client *c, struct json_span line, uint64_t id)
{
	struct zap *z = &c->zap;
	int r;

	if (!z->started)
		return -ENOMEM;
	pthread_mutex_lock(&c->lock);
	r = z->state == ZAP_IDLE ? read_ranges(line, z) : -EBUSY;
	if (!r) {
		z->id = id;
		z->state = ZAP_WANTED;
		pthread_cond_signal(&z->wanted);
	}
	pthread_mutex_unlock(&c->lock);
	return r;
}

int zap_finish(struct client *c)
{
	struct zap *z = &c->zap;
	bool through;
	uint64_t id;
	int r;

	pthread_mutex_lock(&c->lock);
	through = z->state == ZAP_THROUGH;
	id = z->id;
	r = z->result;
	if (through)
		z->state = ZAP_IDLE;
	pthread_mutex_unlock(&c->lock);
	/* Asked by a daemon that is gone: there is nobody to tell. */
	if (!through || !id || c->link != LINK_ATTACHED)
		return 0;
	return serve_answer(c, id, r);
}
