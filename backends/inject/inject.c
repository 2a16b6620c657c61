/* SPDX-License-Identifier: BSD-3-Clause */
/* inject.c: a backend that is slow, disorderly and unreliable on request, to test ebbd with. */
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

#include "ebb/backend.h"
#include "objects.h"
#include "options.h"
#include "system.h"

/*
 * Theory of operation
 *
 * Content is kept in memory as the example backend keeps it. An I/O gets a time at which it is due
 * when it is submitted; poll() gives back those that are due, and only then is its buffer read or
 * filled, so that a caller which reuses a buffer too early notices. The event descriptor is a
 * timerfd set to the next due time. Every fault that options.h names is drawn from the channel's
 * own random numbers, so a single thread with the same seed and timing fails alike.
 *
 * All options can be changed at any time with config(). When `stuck` goes back to 0, the timers of
 * all channels are set to now; that is the one thing that another thread does to a channel, and
 * timerfd_settime() is safe for it.
 */

struct instance {
	struct options options;
	pthread_mutex_t lock; /* the list of channels and n_channels */
	struct channel *channels;
	uint64_t n_channels;
	_Atomic uint64_t stores, loads, store_errors, load_errors, outside;
};

struct channel {
	struct instance *inst;
	struct channel *next; /* under inst->lock */
	int timer;	      /* owned */
	uint64_t random;
	const char *buffers; /* what was announced; nothing else may be used */
	uint64_t buffers_bytes;
	uint32_t depth, n;
	struct ebb_io *pending[]; /* priv[0]: when it is due */
};

/* xorshift64* (S. Vigna, An experimental exploration of Marsaglia's xorshift generators, 2016). */
static uint64_t draw(struct channel *ch)
{
	ch->random ^= ch->random >> 12;
	ch->random ^= ch->random << 25;
	ch->random ^= ch->random >> 27;
	return ch->random * UINT64_C(2685821657736338717) >> 11;
}

static int hit(struct channel *ch, inject_value *one_in)
{
	uint64_t n = atomic_load(one_in);

	return n && draw(ch) % n == 0;
}

static void set_timer(struct channel *ch, uint64_t when_ns)
{
	struct itimerspec t = {
		.it_value = {(time_t)(when_ns / 1000000000u), (long)(when_ns % 1000000000u)}};

	timerfd_settime(ch->timer, TFD_TIMER_ABSTIME, &t, NULL);
}

/* Sets the timer to the first due time, or to never. */
static void set_timer_next(struct channel *ch)
{
	uint64_t first = 0;

	for (uint32_t i = 0; i < ch->n; i++)
		if (!first || ch->pending[i]->priv[0] < first)
			first = ch->pending[i]->priv[0];
	set_timer(ch, first);
}

/* ---- instance ---- */

static int inject_open(const struct ebb_backend_host *host, const struct ebb_option *opts,
		       uint32_t n_opts, void **instance, char *err, uint64_t err_len)
{
	struct instance *inst = calloc(1, sizeof(*inst));
	int r = 0;

	if (!inst)
		return -ENOMEM;
	options_default(&inst->options);
	for (uint32_t i = 0; i < n_opts && !r; i++)
		r = options_set(&inst->options, &opts[i], err, err_len);
	if (r) {
		free(inst);
		return r;
	}
	pthread_mutex_init(&inst->lock, NULL);
	*instance = inst;
	return 0;
}

static void inject_close(void *instance)
{
	struct instance *inst = instance;

	pthread_mutex_destroy(&inst->lock);
	free(inst);
}

static int inject_config(void *instance, const struct ebb_option *opt, char *err, uint64_t err_len)
{
	struct instance *inst = instance;
	int r = options_set(&inst->options, opt, err, err_len);

	if (r)
		return r;
	pthread_mutex_lock(&inst->lock);
	for (struct channel *ch = inst->channels; ch; ch = ch->next)
		set_timer(ch, 1);
	pthread_mutex_unlock(&inst->lock);
	return 0;
}

static int inject_space_open(void *instance, const struct ebb_space_params *params, void **space)
{
	struct instance *inst = instance;
	struct objects *o = malloc(sizeof(*o));

	if (!o)
		return -ENOMEM;
	if (objects_init(o, atomic_load(&inst->options.max_bytes))) {
		free(o);
		return -ENOMEM;
	}
	*space = o;
	return 0;
}

static void inject_space_close(void *space)
{
	objects_destroy(space);
	free(space);
}

/* ---- channels ---- */

static int inject_channel_open(void *instance, const struct ebb_channel_params *params,
			       void **channel)
{
	struct instance *inst = instance;
	struct channel *ch = calloc(1, sizeof(*ch) + params->queue_depth * sizeof(ch->pending[0]));

	if (!ch)
		return -ENOMEM;
	ch->inst = inst;
	ch->depth = params->queue_depth;
	ch->buffers = params->buffers;
	ch->buffers_bytes = params->buffers_bytes;
	ch->timer = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
	if (ch->timer < 0) {
		int r = -errno;

		free(ch);
		return r;
	}
	pthread_mutex_lock(&inst->lock);
	ch->random = (atomic_load(&inst->options.seed) + ++inst->n_channels) *
			     UINT64_C(0x9e3779b97f4a7c15) |
		     1;
	ch->next = inst->channels;
	inst->channels = ch;
	pthread_mutex_unlock(&inst->lock);
	*channel = ch;
	return 0;
}

static void inject_channel_close(void *channel)
{
	struct channel *ch = channel;

	pthread_mutex_lock(&ch->inst->lock);
	for (struct channel **p = &ch->inst->channels; *p; p = &(*p)->next) {
		if (*p == ch) {
			*p = ch->next;
			break;
		}
	}
	pthread_mutex_unlock(&ch->inst->lock);
	close(ch->timer);
	free(ch);
}

static int inject_event_fd(void *channel)
{
	const struct channel *ch = channel;

	return ch->timer;
}

/* ---- I/O ---- */

static int inject_submit(void *channel, struct ebb_io **ios, uint32_t n)
{
	struct channel *ch = channel;
	struct options *o = &ch->inst->options;
	uint32_t taken = 0;
	uint64_t now = now_ns();

	if (!n || hit(ch, &o->again))
		return 0;
	if (n > 1 && hit(ch, &o->partial))
		n = 1 + (uint32_t)(draw(ch) % (n - 1));
	for (; taken < n && ch->n < ch->depth; taken++) {
		uint64_t random = atomic_load(&o->delay_random_us);
		uint64_t us = atomic_load(&o->delay_us) + (random ? draw(ch) % random : 0);

		ios[taken]->priv[0] = now + us * 1000;
		ch->pending[ch->n++] = ios[taken];
	}
	if (taken && !atomic_load(&o->stuck))
		set_timer_next(ch);
	return (int)taken;
}

/* As for a backend that has registered the channel's buffers with a device. */
static int is_outside(const struct channel *ch, const struct ebb_io *io)
{
	uint64_t at = (uint64_t)((const char *)io->buf - ch->buffers);

	return at > ch->buffers_bytes || io->len > ch->buffers_bytes - at;
}

static void complete(struct channel *ch, struct ebb_io *io)
{
	struct instance *inst = ch->inst;
	struct options *o = &inst->options;

	if (is_outside(ch, io))
		atomic_fetch_add(&inst->outside, 1);
	if (io->op == EBB_IO_STORE) {
		atomic_fetch_add(&inst->stores, 1);
		if (hit(ch, &o->store_error)) {
			atomic_fetch_add(&inst->store_errors, 1);
			io->result = -(int)atomic_load(&o->store_errno);
			return;
		}
		io->result = objects_put(io->space, io->buf, io->len, &io->handle);
		io->stored_bytes = io->len + (uint32_t)sizeof(struct object);
	} else if (io->op == EBB_IO_LOAD) {
		atomic_fetch_add(&inst->loads, 1);
		if (hit(ch, &o->load_error)) {
			atomic_fetch_add(&inst->load_errors, 1);
			io->result = -(int)atomic_load(&o->load_errno);
			return;
		}
		io->result = objects_get(io->space, io->handle, io->buf, io->len);
	} else {
		io->result = -EINVAL;
	}
}

/* The next pending I/O that is due, what is demanded before the rest, or -1. */
static int64_t pick(struct channel *ch, uint64_t now)
{
	uint64_t from = ch->n && atomic_load(&ch->inst->options.reorder) ? draw(ch) % ch->n : 0;
	int64_t first = -1;

	for (uint32_t i = 0; i < ch->n; i++) {
		uint32_t at = (uint32_t)((from + i) % ch->n);

		if (ch->pending[at]->priv[0] > now)
			continue;
		if (ch->pending[at]->flags & EBB_IO_DEMAND)
			return at;
		if (first < 0)
			first = at;
	}
	return first;
}

static int inject_poll(void *channel, struct ebb_io **ios, uint32_t n)
{
	struct channel *ch = channel;
	uint32_t done = 0;
	uint64_t now = now_ns();

	/* In this order, so that a release of stuck I/Os in between is not lost. */
	set_timer(ch, 0);
	if (atomic_load(&ch->inst->options.stuck))
		return 0;
	if (n > 1 && hit(ch, &ch->inst->options.few))
		n = 1;
	while (done < n) {
		int64_t at = pick(ch, now);

		if (at < 0)
			break;
		ios[done] = ch->pending[at];
		memmove(&ch->pending[at], &ch->pending[at + 1],
			(size_t)(ch->n - (uint32_t)at - 1) * sizeof(ch->pending[0]));
		ch->n--;
		complete(ch, ios[done++]);
	}
	if (ch->n)
		set_timer_next(ch);
	return (int)done;
}

static void inject_free(void *channel, void *space, const uint64_t *handles, uint32_t n)
{
	for (uint32_t i = 0; i < n; i++)
		objects_drop(space, handles[i]);
}

/* ---- figures ---- */

static void inject_usage(void *instance, void *space, struct ebb_usage *out)
{
	if (space)
		objects_usage(space, out);
}

static int inject_stats(void *instance, struct ebb_stat *out, uint32_t n)
{
	struct instance *inst = instance;
	const struct ebb_stat stats[] = {
		{"stores", "Stores that were due", inst->stores, 1, 0},
		{"loads", "Loads that were due", inst->loads, 1, 0},
		{"store-errors", "Stores made to fail", inst->store_errors, 1, 0},
		{"load-errors", "Loads made to fail", inst->load_errors, 1, 0},
		{"outside", "I/Os whose buffer was not announced with the channel", inst->outside,
		 1, 0},
	};
	uint32_t have = sizeof(stats) / sizeof(stats[0]);

	memcpy(out, stats, (n < have ? n : have) * sizeof(stats[0]));
	return (int)have;
}

__attribute__((visibility("default"))) const struct ebb_backend *ebb_backend_entry(void)
{
	static const struct ebb_backend backend = {
		.size = sizeof(backend),
		.abi_major = EBB_BACKEND_ABI_MAJOR,
		.abi_minor = EBB_BACKEND_ABI_MINOR,
		.caps = EBB_BACKEND_IN_RAM,
		.name = "inject",
		.description = "Slow, disorderly and failing on request; for tests",
		.option_help = options_help,
		.open = inject_open,
		.close = inject_close,
		.space_open = inject_space_open,
		.space_close = inject_space_close,
		.channel_open = inject_channel_open,
		.channel_close = inject_channel_close,
		.submit = inject_submit,
		.poll = inject_poll,
		.event_fd = inject_event_fd,
		.free = inject_free,
		.usage = inject_usage,
		.stats = inject_stats,
		.config = inject_config,
	};

	return &backend;
}
