/* SPDX-License-Identifier: BSD-3-Clause */
/* ssd.c: a file or block device as a tier. The plugin's face. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ssd.h"

/*
 * Theory of operation
 *
 * What is evicted is appended to segments of 2 MiB, with direct I/O through io_uring, as it is (or
 * encrypted): a load is one read straight into the caller's buffer. The parts:
 *
 *   layout.h   what is on the device and what in the memory that outlives the daemon
 *   device.c   whose the device is; superblock and segment table
 *   space.c    one VM's map and segments; taking over what another daemon left
 *   handles.c  the table through which handles find their objects
 *   channel.c  one thread's ring: loads, completions
 *   write.c    stores, gathered into large writes
 *   proof.c    checksums and encryption
 *   keeper.c   the thread that leases segments, discards, keeps the write budget
 *   clean.c    moving objects together
 *
 * Nothing that is stored survives the machine: the map is memory. It does survive the daemon, in
 * whatever way that ends.
 *
 * Lock order: clean_lock, a space's alloc_lock, ssd.lock; a space's handle_lock is taken with none
 * of these held and nothing is taken under it. Loads take none of them.
 */

static void ssd_free(struct ssd *d)
{
	device_close(d);
	free(d->clean_in);
	free(d->clean_out);
	free(d->cleaning);
	pthread_mutex_destroy(&d->lock);
	pthread_mutex_destroy(&d->clean_lock);
	free(d);
}

static int ssd_open(const struct ebb_backend_host *host, const struct ebb_option *opts,
		    uint32_t n_opts, void **instance, char *err, uint64_t err_len)
{
	struct ssd *d = calloc(1, sizeof(*d));
	int r = 0;

	if (!d)
		return -ENOMEM;
	d->host = host;
	d->fd = -1;
	pthread_mutex_init(&d->lock, NULL);
	pthread_mutex_init(&d->clean_lock, NULL);
	options_default(&d->options);
	for (uint32_t i = 0; i < n_opts && !r; i++)
		r = options_set(&d->options, &opts[i], err, err_len);
	d->write_budget = d->options.write_budget;
	d->discard = d->options.discard;
	if (!r)
		r = device_open(d, err, err_len);
	if (!r)
		r = keeper_init(d);
	if (!r)
		r = keeper_start(d);
	if (r) {
		ssd_free(d);
		return r;
	}
	*instance = d;
	return 0;
}

static void ssd_close(void *instance)
{
	struct ssd *d = instance;

	keeper_stop(d);
	keeper_close(d);
	ssd_free(d);
}

/* ---- handing over ---- */

static int ssd_quiesce(void *instance)
{
	struct ssd *d = instance;

	keeper_stop(d);
	return device_let_go(d);
}

static int ssd_resume(void *instance)
{
	struct ssd *d = instance;
	int r = 0;

	/* The one that hands over has let go of the device; the successor never had. */
	if (d->fd < 0) {
		r = device_take_again(d);
		if (!r)
			r = keeper_start(d);
	}
	if (!r)
		atomic_store(&d->active, true);
	return r;
}

static int ssd_config(void *instance, const struct ebb_option *opt, char *err, uint64_t err_len)
{
	struct ssd *d = instance;
	struct options o = d->options;
	int r;

	if (strcmp(opt->name, "write-budget") != 0 && strcmp(opt->name, "discard") != 0)
		return -ENOTSUP;
	r = options_set(&o, opt, err, err_len);
	if (r)
		return r;
	if (strcmp(opt->name, "discard") == 0) {
		atomic_store(&d->discard, o.discard);
		return 0;
	}
	keeper_set_budget(d, o.write_budget);
	return 0;
}

static int ssd_space_open(void *instance, const struct ebb_space_params *params, void **space)
{
	struct space *sp;
	int r = space_open(instance, params, &sp);

	if (!r)
		*space = sp;
	return r;
}

static void ssd_space_close(void *space)
{
	space_close(space);
}

static int ssd_channel_open(void *instance, const struct ebb_channel_params *params, void **channel)
{
	struct channel *ch;
	int r = channel_open(instance, params, &ch);

	if (!r)
		*channel = ch;
	return r;
}

static void ssd_channel_close(void *channel)
{
	channel_close(channel);
}

static void ssd_free_handles(void *channel, void *space, const uint64_t *handles, uint32_t n)
{
	struct channel *ch = channel;

	for (uint32_t i = 0; i < n; i++)
		if (!object_free(space, handles[i]))
			count_add(ch, COUNT_BAD_HANDLE, 1);
}

static int compare(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return x < y ? -1 : x > y;
}

static int64_t ssd_retain(void *channel, void *space, const uint64_t *handles, uint64_t n)
{
	struct space *sp = space;
	uint64_t high = atomic_load(&sp->map->high);
	int64_t freed = 0;

	for (uint64_t i = 0; i < high; i++) {
		uint64_t p = atomic_load(&sp->places[i]), handle;

		if (!(p & PLACE_LIVE))
			continue;
		handle = handle_make((uint32_t)i, place_gen(p));
		if (!n || !bsearch(&handle, handles, n, sizeof(handle), compare))
			freed += object_free(sp, handle);
	}
	return freed;
}

/* ---- figures ---- */

static void ssd_usage(void *instance, void *space, struct ebb_usage *out)
{
	struct ssd *d = instance;

	if (space) {
		space_usage(space, out);
		return;
	}
	pthread_mutex_lock(&d->lock);
	for (struct space *sp = d->spaces; sp; sp = sp->next)
		space_usage(sp, out);
	pthread_mutex_unlock(&d->lock);
	out->capacity_bytes = (uint64_t)d->n_segs * SEGMENT_BYTES;
}

uint64_t ssd_count(struct ssd *d, enum count what)
{
	uint64_t sum = atomic_load(&d->count[what]);

	for (struct channel *ch = d->channels; ch; ch = ch->next)
		sum += atomic_load_explicit(&ch->count[what], memory_order_relaxed);
	return sum;
}

static int ssd_stats(void *instance, struct ebb_stat *out, uint32_t n)
{
	static const struct {
		const char *name, *help;
	} texts[COUNTS] = {
		[COUNT_STORES] = {"stores", "Stores asked for"},
		[COUNT_LOADS] = {"loads", "Loads asked for"},
		[COUNT_FULL] = {"full", "Stores refused for want of room or budget"},
		[COUNT_OVER_BUDGET] = {"over-budget", "Segments refused by the write budget"},
		[COUNT_STORE_ERRORS] = {"store-errors", "Writes that the device failed"},
		[COUNT_LOAD_ERRORS] = {"load-errors", "Loads that the device failed or cut short"},
		[COUNT_CORRUPT] = {"corrupt", "Loads of content that is not what was stored"},
		[COUNT_REREAD] = {"reread", "Reads repeated after an error or a wrong checksum"},
		[COUNT_BAD_HANDLE] = {"bad-handles", "Handles refused: not live or not ours"},
		[COUNT_WRITES] = {"writes", "Writes to the device"},
		[COUNT_WRITTEN] = {"written-bytes", "Bytes written, cleaning included"},
		[COUNT_READ] = {"read-bytes", "Bytes loaded"},
		[COUNT_CLEANED] = {"cleaned-segments", "Segments emptied by cleaning"},
		[COUNT_MOVED] = {"moved-bytes", "Bytes moved by cleaning"},
		[COUNT_DISCARDED] = {"discarded-bytes", "Bytes that the device was told are free"},
		[COUNT_HELD_BACK] = {"held-back", "Times that other I/O waited for demand loads"},
	};
	struct ssd *d = instance;
	struct ebb_stat more[] = {
		{"free-bytes", "Bytes in free segments", d->n_free * (uint64_t)SEGMENT_BYTES, 0, 0},
		{"absent-bytes", "Bytes held for VMs that have not come back yet",
		 d->n_absent * (uint64_t)SEGMENT_BYTES, 0, 0},
		{"budget-left-bytes", "What the write budget allows now; 0 without one", 0, 0, 0},
	};
	const uint32_t n_more = sizeof(more) / sizeof(more[0]);

	pthread_mutex_lock(&d->lock);
	for (uint32_t i = 0; i < COUNTS && i < n; i++)
		out[i] = (struct ebb_stat){.name = texts[i].name,
					   .help = texts[i].help,
					   .value = ssd_count(d, i),
					   .counter = 1};
	if (atomic_load(&d->write_budget) && d->budget_left > 0)
		more[2].value = (uint64_t)d->budget_left;
	pthread_mutex_unlock(&d->lock);
	for (uint32_t i = 0; i < n_more && COUNTS + i < n; i++)
		out[COUNTS + i] = more[i];
	return (int)(COUNTS + n_more);
}

static int ssd_maintain(void *space, uint32_t budget_us)
{
	return keeper_maintain(space, budget_us);
}

__attribute__((visibility("default"))) const struct ebb_backend *ebb_backend_entry(void)
{
	static const struct ebb_backend backend = {
		.size = sizeof(backend),
		.abi_major = EBB_BACKEND_ABI_MAJOR,
		.abi_minor = EBB_BACKEND_ABI_MINOR,
		.caps = EBB_BACKEND_PERSISTENT | EBB_BACKEND_REGISTERED_BUFFERS |
			EBB_BACKEND_EXCLUSIVE,
		.name = "ssd",
		.description = "A file or block device, by direct I/O",
		.option_help = options_help,
		.open = ssd_open,
		.close = ssd_close,
		.space_open = ssd_space_open,
		.space_close = ssd_space_close,
		.channel_open = ssd_channel_open,
		.channel_close = ssd_channel_close,
		.submit = channel_submit,
		.poll = channel_poll,
		.event_fd = channel_event_fd,
		.free = ssd_free_handles,
		.retain = ssd_retain,
		.usage = ssd_usage,
		.stats = ssd_stats,
		.maintain = ssd_maintain,
		.config = ssd_config,
		.quiesce = ssd_quiesce,
		.resume = ssd_resume,
		.matches = channel_matches,
	};

	return &backend;
}
