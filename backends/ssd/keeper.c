/* SPDX-License-Identifier: BSD-3-Clause */
/* keeper.c: the thread that leases segments, cleans, discards and keeps the write budget. */
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "ssd.h"
#include "system.h"

/*
 * Theory of operation
 *
 * Everything that waits for the device and is nobody's I/O happens in this one thread, so that
 * stores never wait for more than a segment that is ready:
 *
 *   lease    a segment's owner is written into the table before the space gets the segment, a few
 *            ahead of need. When there is none to lease, stores are refused until there is
 *   clean    when few segments are free; and, asked by maintain(), nearly empty ones at idle times
 *   discard  segments that have been free for a second or two
 *   absent   segments of spaces whose keeper has died while no daemon ran are freed
 *   budget   what is leased counts as written, in whole segments. It is a bucket that holds one
 *            day's bytes and fills evenly over a day; its level is in the superblock, so that a
 *            restart gives nothing for free
 *
 * A pass holds clean_lock, which keeps spaces from being closed under it.
 */

#define TICK_NS	    UINT64_C(1000000000)
#define DAY_NS	    (UINT64_C(86400) * TICK_NS)
#define DISCARD_MAX 64u /* segments in a pass */
#define CLEAN_MAX   8u	/* segments in a pass */
#define MOST_LOW    (SEGMENT_BLOCKS * 3 / 4)
#define MOST_LAST   (SEGMENT_BLOCKS * 15 / 16)
#define MOST_IDLE   (SEGMENT_BLOCKS / 4)

/* ---- the write budget; under lock ---- */

static void budget_fill(struct ssd *d)
{
	uint64_t budget = atomic_load(&d->write_budget), now = now_ns();
	double more = (double)(now - d->budget_at_ns) / (double)DAY_NS * (double)budget;

	d->budget_at_ns = now;
	d->budget_left += more;
	if (d->budget_left > (double)budget)
		d->budget_left = (double)budget;
}

static bool budget_take(struct ssd *d)
{
	if (!atomic_load(&d->write_budget))
		return true;
	budget_fill(d);
	if (d->budget_left < (double)SEGMENT_BYTES)
		return false;
	d->budget_left -= (double)SEGMENT_BYTES;
	return true;
}

static void budget_load(struct ssd *d)
{
	uint64_t now = (uint64_t)time(NULL), then = d->super->budget_at_s;
	double day = now > then ? (double)(now - then) / 86400 : 0;

	d->budget_at_ns = now_ns();
	d->budget_left = (double)d->super->budget_left + day * (double)d->options.write_budget;
	budget_fill(d);
}

static void budget_save(struct ssd *d)
{
	pthread_mutex_lock(&d->lock);
	d->super->budget_left = d->budget_left > 0 ? (uint64_t)d->budget_left : 0;
	d->super->budget_at_s = (uint64_t)time(NULL);
	pthread_mutex_unlock(&d->lock);
	if (!atomic_load(&d->write_budget))
		d->super->budget_at_s = 0; /* none so far: the first one begins full */
	else
		device_write_super(d);
}

void keeper_set_budget(struct ssd *d, uint64_t bytes_a_day)
{
	pthread_mutex_lock(&d->lock);
	budget_fill(d);
	/* What is used up stays used up: only the rest grows with the budget. */
	d->budget_left += (double)bytes_a_day - (double)atomic_load(&d->write_budget);
	atomic_store(&d->write_budget, bytes_a_day);
	pthread_mutex_unlock(&d->lock);
	keeper_kick(d);
}

/* ---- leases ---- */

int keeper_lease(struct ssd *d, struct space *sp, bool spare, uint32_t *seg)
{
	_Atomic uint32_t *rmap = calloc(SEGMENT_BLOCKS, sizeof(*rmap));
	struct segment *s;
	int64_t i = -1;
	int r = 0;

	if (!rmap)
		return -ENOMEM;
	pthread_mutex_lock(&d->lock);
	if (d->n_free <= (spare ? 0 : CLEAN_SPARE))
		r = -ENOSPC;
	else if (!budget_take(d))
		r = -EDQUOT;
	else if ((i = bits_lowest_absent(&d->used)) < 0 || i >= d->n_segs)
		r = -ENOSPC;
	if (!r) {
		s = &d->segs[i];
		bits_add(&d->used, (uint64_t)i);
		d->n_free--;
		s->space = sp;
		s->rmap = rmap;
		s->state = SEG_READY;
		d->table[i] = (struct table_entry){sp->id, sp->pid, sp->pid_start};
		d->table_dirty[(uint64_t)i / TABLE_PER_BLOCK] = 1;
		atomic_fetch_add(&sp->segments, 1);
		*seg = (uint32_t)i;
	}
	pthread_mutex_unlock(&d->lock);
	if (r)
		free((void *)rmap);
	return r;
}

static void lease_for(struct ssd *d, struct space *sp)
{
	uint32_t got[READY_MAX] = {0}, n = 0, want;
	int r = 0;

	atomic_store(&sp->wanted, false);
	pthread_mutex_lock(&sp->alloc_lock);
	want = sp->ahead > sp->n_ready ? sp->ahead - sp->n_ready : 0;
	pthread_mutex_unlock(&sp->alloc_lock);
	while (n < want && !r) {
		r = keeper_lease(d, sp, false, &got[n]);
		n += !r;
	}
	if (r == -EDQUOT)
		atomic_fetch_add(&d->count[COUNT_OVER_BUDGET], 1);
	if (n) {
		int written = device_write_table(d);

		if (written) {
			/* Not ours after a crash: then not now either. */
			r = written;
			pthread_mutex_lock(&d->lock);
			for (uint32_t i = 0; i < n; i++)
				seg_free(d, got[i]);
			pthread_mutex_unlock(&d->lock);
			n = 0;
		} else {
			budget_save(d);
		}
	}
	pthread_mutex_lock(&sp->alloc_lock);
	for (uint32_t i = 0; i < n; i++)
		sp->ready[sp->n_ready++] = got[i];
	atomic_store(&sp->denied, sp->n_ready || !r ? 0 : r == -EIO ? -EIO : -ENOSPC);
	pthread_mutex_unlock(&sp->alloc_lock);
}

static struct space *first_space(struct ssd *d)
{
	struct space *sp;

	pthread_mutex_lock(&d->lock);
	sp = d->spaces;
	pthread_mutex_unlock(&d->lock);
	return sp;
}

static void lease_round(struct ssd *d)
{
	for (struct space *sp = first_space(d); sp; sp = sp->next)
		if (atomic_load(&sp->wanted) || atomic_load(&sp->denied))
			lease_for(d, sp);
}

/* ---- cleaning ---- */

static uint32_t free_low(const struct ssd *d)
{
	uint32_t low = d->n_segs / 16;

	return low > CLEAN_SPARE + 2 ? low : CLEAN_SPARE + 2;
}

/* When few segments are free; true when that gave some. */
static bool clean_for_room(struct ssd *d)
{
	bool any = false;

	for (uint32_t i = 0; i < CLEAN_MAX && atomic_load(&d->n_free) < free_low(d); i++) {
		bool last = atomic_load(&d->n_free) <= CLEAN_SPARE;

		if (clean_one(d, NULL, last ? MOST_LAST : MOST_LOW) != 1)
			break;
		any = true;
	}
	return any;
}

static void clean_idle(struct ssd *d)
{
	for (struct space *sp = first_space(d); sp; sp = sp->next) {
		if (!atomic_exchange(&sp->idle_asked, false))
			continue;
		atomic_store(&sp->idle_more, clean_one(d, sp, MOST_IDLE) == 1);
	}
}

int keeper_maintain(struct space *sp, uint32_t budget_us)
{
	struct ssd *d = sp->ssd;
	uint64_t passes, end = now_ns() + (uint64_t)budget_us * 1000;
	struct timespec t = {(time_t)(end / TICK_NS), (long)(end % TICK_NS)};
	bool more;

	if (!atomic_load(&d->active) ||
	    (!atomic_load(&sp->idle_more) && !atomic_exchange(&sp->thinned, false)))
		return 0;
	pthread_mutex_lock(&d->lock);
	atomic_store(&sp->idle_more, true); /* until a pass has looked */
	atomic_store(&sp->idle_asked, true);
	d->kicked = true;
	passes = d->passes;
	pthread_cond_signal(&d->wake);
	/* The pass that is under way may have looked at this space already: wait for the next. */
	while (d->passes < passes + 2 && atomic_load(&sp->idle_asked))
		if (pthread_cond_timedwait(&d->worked, &d->lock, &t))
			break;
	more = atomic_load(&sp->idle_more);
	pthread_mutex_unlock(&d->lock);
	return more;
}

/* ---- once a second ---- */

static void discard_rested(struct ssd *d)
{
	uint32_t left = DISCARD_MAX;

	for (uint32_t i = 0; i < d->n_segs && left; i++) {
		struct segment *s = &d->segs[i];
		uint32_t n = 0;

		/* Nobody but this thread takes segments out of SEG_FREE. */
		while (i + n < d->n_segs && n < left && s[n].state == SEG_FREE && s[n].dirty &&
		       s[n].rested >= 1)
			s[n++].dirty = 0;
		if (n) {
			if (device_discard(d, i, n) == 0)
				atomic_fetch_add(&d->count[COUNT_DISCARDED],
						 n * (uint64_t)SEGMENT_BYTES);
			left -= n;
			i += n - 1;
		} else if (s->state == SEG_FREE && s->dirty) {
			s->rested++;
		}
	}
}

/* The table of the device still says whose they were; those whose VM has ended are free. */
static void free_orphans(struct ssd *d)
{
	uint64_t owner = 0, freed = 0, now = now_ns();
	bool gone = false;

	if (!atomic_load(&d->n_absent) || now < d->orphans_at_ns)
		return;
	d->orphans_at_ns = now + (atomic_load(&d->n_free) < free_low(d) ? TICK_NS / 10 : TICK_NS);

	for (uint32_t i = 0; i < d->n_segs && atomic_load(&d->n_absent); i++) {
		struct table_entry t;

		pthread_mutex_lock(&d->lock);
		t = d->table[i];
		if (d->segs[i].state != SEG_ABSENT)
			t.owner = 0;
		pthread_mutex_unlock(&d->lock);
		if (!t.owner)
			continue;
		if (t.owner != owner) {
			owner = t.owner;
			gone = process_gone(t.pid, t.pid_start);
		}
		if (!gone)
			continue;
		pthread_mutex_lock(&d->lock);
		if (d->segs[i].state == SEG_ABSENT) {
			seg_free(d, i);
			d->n_absent--;
			freed++;
		}
		pthread_mutex_unlock(&d->lock);
	}
	if (freed)
		d->host->log(d->host->ctx, 2, "freed %llu segments of VMs that have ended",
			     (unsigned long long)freed);
}

/* Says what the device has failed since it was last said; the data path cannot. */
static void report(struct ssd *d)
{
	static const enum count what[REPORTED] = {COUNT_LOAD_ERRORS, COUNT_CORRUPT,
						  COUNT_STORE_ERRORS};
	uint64_t more[REPORTED];
	bool any = false;

	pthread_mutex_lock(&d->lock);
	for (unsigned int i = 0; i < REPORTED; i++) {
		uint64_t sum = ssd_count(d, what[i]);

		more[i] = sum - d->reported[i];
		d->reported[i] = sum;
		any = any || more[i];
	}
	pthread_mutex_unlock(&d->lock);
	if (any)
		d->host->log(d->host->ctx, 0,
			     "%s: %llu reads failed, %llu brought something else than was written, "
			     "%llu writes failed",
			     d->options.path, (unsigned long long)more[0],
			     (unsigned long long)more[1], (unsigned long long)more[2]);
}

static void tick(struct ssd *d)
{
	report(d);
	if (atomic_load(&d->discard))
		discard_rested(d);
	device_write_table(d);
}

/* ---- the thread ---- */

static void pass(struct ssd *d, bool ticked)
{
	/* Not before something is asked: until then the daemon before us may come back. */
	if (!atomic_load(&d->active))
		return;
	pthread_mutex_lock(&d->clean_lock);
	free_orphans(d);
	lease_round(d);
	if (clean_for_room(d))
		lease_round(d);
	clean_idle(d);
	if (ticked)
		tick(d);
	pthread_mutex_unlock(&d->clean_lock);
}

static void *keeper_main(void *arg)
{
	struct ssd *d = arg;
	uint64_t next = now_ns() + TICK_NS;

	pthread_mutex_lock(&d->lock);
	while (!d->stop) {
		struct timespec t = {(time_t)(next / TICK_NS), (long)(next % TICK_NS)};
		bool ticked;

		while (!d->kicked && !d->stop &&
		       pthread_cond_timedwait(&d->wake, &d->lock, &t) == 0)
			;
		d->kicked = false;
		pthread_mutex_unlock(&d->lock);
		ticked = now_ns() >= next;
		pass(d, ticked);
		if (ticked)
			next = now_ns() + TICK_NS;
		pthread_mutex_lock(&d->lock);
		d->passes++;
		pthread_cond_broadcast(&d->worked);
	}
	pthread_mutex_unlock(&d->lock);
	return NULL;
}

void keeper_kick(struct ssd *d)
{
	atomic_store(&d->active, true);
	pthread_mutex_lock(&d->lock);
	d->kicked = true;
	pthread_cond_signal(&d->wake);
	pthread_mutex_unlock(&d->lock);
}

int keeper_init(struct ssd *d)
{
	pthread_condattr_t attr;

	d->clean_in = aligned_alloc(BLOCK_BYTES, SEGMENT_BYTES);
	d->clean_out = aligned_alloc(BLOCK_BYTES, SEGMENT_BYTES);
	d->cleaning = clean_new();
	if (!d->clean_in || !d->clean_out || !d->cleaning)
		return -ENOMEM;
	budget_load(d);
	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_cond_init(&d->wake, &attr);
	pthread_cond_init(&d->worked, &attr);
	pthread_condattr_destroy(&attr);
	return 0;
}

int keeper_start(struct ssd *d)
{
	sigset_t all, old;
	int r;

	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	r = -pthread_create(&d->keeper, NULL, keeper_main, d);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	if (r)
		return r;
	d->started = true;
	pthread_setname_np(d->keeper, "ebb-ssd");
	return 0;
}

void keeper_stop(struct ssd *d)
{
	if (!d->started)
		return;
	pthread_mutex_lock(&d->lock);
	d->stop = true;
	pthread_cond_signal(&d->wake);
	pthread_mutex_unlock(&d->lock);
	pthread_join(d->keeper, NULL);
	d->started = false;
	d->stop = false;
}

void keeper_close(struct ssd *d)
{
	/* In good order: what is free is free for the next one, and the budget is known. */
	device_write_table(d);
	d->super->closed = !atomic_load(&d->n_absent);
	budget_save(d);
	device_write_super(d);
}
