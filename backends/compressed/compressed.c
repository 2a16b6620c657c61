/* SPDX-License-Identifier: BSD-3-Clause */
/* compressed.c: the default tier: compressed in RAM. The plugin's face. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "store.h"
#include "values.h"

/*
 * Theory of operation
 *
 * Keeps what is evicted compressed (lz4 or zstd) in a memfd per space that outlives the daemon.
 * Every I/O is complete when submit() returns. The parts:
 *
 *   layout.h   what is in that memory, and what makes it consistent at any instant
 *   class.c    the sizes that slots come in
 *   slab.c     slots, slabs and the memory under them
 *   handles.c  the table through which handles find their objects, so that those can move
 *   object.c   store, load and free
 *   compact.c  moving objects together, giving memory back (maintain)
 *   recover.c  taking over what another daemon left at its death
 *   running.c  taking over what a living one hands over
 *   codec.c    lz4 and zstd, with their memory taken beforehand
 *   place.h    which memory it is; the backend numa is this store on a node or device of its own
 *   chunks.c   content in chunks of such a device
 *
 * Content that does not shrink by at least 1/32 is kept as it is. Lengths above 64 KiB are cut
 * into pieces of 64 KiB. max-bytes bounds what the memfds of all spaces of the instance take.
 *
 * Threads: see include/ebb/backend.h. Loads take no lock at all; stores and frees take the lock
 * of one size class and that of the handle table, each for a few dozen instructions, except that
 * a store which needs memory from the system asks for it under its class's lock.
 */

/* What options say, before it is taken over as a whole. */
struct settings {
	struct place place;
	int coding, level;
	bool has_level;
	uint64_t max_bytes;
};

static int refuse(char *err, uint64_t err_len, const char *fmt, const char *what)
{
	snprintf(err, err_len, fmt, what);
	return -EINVAL;
}

static int parse_option(struct settings *s, const struct ebb_option *o, char *err, uint64_t err_len)
{
	char *end;
	long v;

	if (strcmp(o->name, "codec") == 0) {
		if (strcmp(o->value, "lz4") == 0)
			s->coding = CODING_LZ4;
		else if (strcmp(o->value, "zstd") == 0)
			s->coding = CODING_ZSTD;
		else if (strcmp(o->value, "plain") == 0)
			s->coding = CODING_PLAIN;
		else
			return refuse(err, err_len, "codec '%.60s' is none of lz4, zstd and plain",
				      o->value);
	} else if (strcmp(o->name, "level") == 0) {
		errno = 0;
		v = strtol(o->value, &end, 10);
		if (errno || end == o->value || *end || v < ZSTD_LEVEL_MIN || v > LZ4_LEVEL_MAX)
			return refuse(err, err_len, "level '%.60s' is no such number", o->value);
		s->level = (int)v;
		s->has_level = true;
	} else if (strcmp(o->name, "max-bytes") == 0) {
		if (value_size(o->value, &s->max_bytes))
			return refuse(err, err_len, "max-bytes '%.60s' is no size", o->value);
	} else {
		int r = place_option(&s->place, o, err, err_len);

		return r == -ENOENT ? refuse(err, err_len, "unknown option '%.60s'", o->name) : r;
	}
	return 0;
}

/* Takes settings over; the level is the chosen codec's. */
static int apply(struct store *st, const struct settings *s, char *err, uint64_t err_len)
{
	if (s->has_level) {
		int min = s->coding == CODING_ZSTD ? ZSTD_LEVEL_MIN : LZ4_LEVEL_MIN;
		int max = s->coding == CODING_ZSTD ? ZSTD_LEVEL_MAX : LZ4_LEVEL_MAX;

		if (s->level < min || s->level > max) {
			snprintf(err, err_len, "level must be from %d to %d with %s", min, max,
				 s->coding == CODING_ZSTD ? "zstd" : "lz4");
			return -EINVAL;
		}
		atomic_store(s->coding == CODING_ZSTD ? &st->zstd_level : &st->lz4_level, s->level);
	}
	atomic_store(&st->coding, s->coding);
	atomic_store(&st->max_bytes, s->max_bytes);
	return 0;
}

static int store_open(const struct ebb_backend_host *host, const struct ebb_option *opts,
		      uint32_t n_opts, void **instance, char *err, uint64_t err_len)
{
	struct settings s = {.coding = CODING_LZ4};
	struct store *st;
	int r = 0;

	for (uint32_t i = 0; i < n_opts && !r; i++)
		r = parse_option(&s, &opts[i], err, err_len);
	if (!r)
		r = place_open(&s.place, err, err_len);
	if (r)
		return r;
	st = calloc(1, sizeof(*st));
	if (!st) {
		place_close(&s.place);
		return -ENOMEM;
	}
	st->host = host;
	st->place = s.place;
	st->lz4_level = 1;
	st->zstd_level = 1;
	st->epoch = 1;
	r = apply(st, &s, err, err_len);
	if (!r && getrandom(&st->seed, sizeof(st->seed), 0) != sizeof(st->seed))
		r = -EIO;
	if (r) {
		place_close(&st->place);
		free(st);
		return r;
	}
	pthread_mutex_init(&st->lock, NULL);
	class_table_init(&st->classes);
	*instance = st;
	return 0;
}

static void store_close(void *instance)
{
	struct store *st = instance;

	pthread_mutex_destroy(&st->lock);
	place_close(&st->place);
	free(st);
}

static int store_config(void *instance, const struct ebb_option *opt, char *err, uint64_t err_len)
{
	struct store *st = instance;
	struct settings s = {.coding = atomic_load(&st->coding),
			     .max_bytes = atomic_load(&st->max_bytes)};
	int r;

	if (place_option(&s.place, opt, err, err_len) != -ENOENT)
		return -ENOTSUP;
	r = parse_option(&s, opt, err, err_len);
	return r ? r : apply(st, &s, err, err_len);
}

static int store_space_open(void *instance, const struct ebb_space_params *params, void **space)
{
	struct space *sp;
	int r = space_open(instance, params, &sp);

	if (!r)
		*space = sp;
	return r;
}

static void store_space_close(void *space)
{
	space_close(space);
}

/* ---- channels ---- */

static int store_channel_open(void *instance, const struct ebb_channel_params *params,
			      void **channel)
{
	struct store *st = instance;
	struct channel *ch = aligned_alloc(64, (sizeof(*ch) + 63) / 64 * 64);
	int r;

	if (!ch)
		return -ENOMEM;
	memset(ch, 0, sizeof(*ch));
	r = codec_new(&ch->codec);
	if (r) {
		free(ch);
		return r;
	}
	ch->store = st;
	pthread_mutex_lock(&st->lock);
	ch->next = st->channels;
	st->channels = ch;
	pthread_mutex_unlock(&st->lock);
	*channel = ch;
	return 0;
}

static void store_channel_close(void *channel)
{
	struct channel *ch = channel;
	struct store *st = ch->store;

	pthread_mutex_lock(&st->lock);
	for (struct channel **p = &st->channels; *p; p = &(*p)->next) {
		if (*p == ch) {
			*p = ch->next;
			break;
		}
	}
	for (unsigned int i = 0; i < COUNTERS; i++)
		atomic_fetch_add(&st->count[i], ch->count[i]);
	pthread_mutex_unlock(&st->lock);
	codec_free(ch->codec);
	free(ch);
}

static void do_io(struct channel *ch, struct ebb_io *io)
{
	uint64_t handle = 0;
	uint32_t stored_bytes = 0;

	switch (io->op) {
	case EBB_IO_STORE:
		channel_count(ch, COUNT_STORES);
		io->result = object_store(ch, io->space, io, &handle, &stored_bytes);
		if (io->result == -ENOSPC)
			channel_count(ch, COUNT_FULL);
		if (!io->result) {
			io->handle = handle;
			io->stored_bytes = stored_bytes;
		}
		break;
	case EBB_IO_LOAD:
		channel_count(ch, COUNT_LOADS);
		io->result = object_load(ch, io->space, io);
		break;
	default:
		io->result = -EINVAL;
	}
}

static int store_submit(void *channel, struct ebb_io **ios, uint32_t n)
{
	struct channel *ch = channel;

	channel_enter(ch);
	for (uint32_t i = 0; i < n; i++)
		do_io(ch, ios[i]);
	channel_leave(ch);
	return (int)n;
}

static int store_poll(void *channel, struct ebb_io **ios, uint32_t n)
{
	return 0; /* all was complete at submit */
}

static void store_free(void *channel, void *space, const uint64_t *handles, uint32_t n)
{
	struct channel *ch = channel;

	channel_enter(ch);
	for (uint32_t i = 0; i < n; i++)
		object_free(ch, space, handles[i]);
	channel_leave(ch);
}

static int64_t store_retain(void *channel, void *space, const uint64_t *handles, uint64_t n)
{
	struct channel *ch = channel;
	int64_t freed;

	channel_enter(ch);
	freed = object_retain(ch, space, handles, n);
	channel_leave(ch);
	return freed;
}

/* ---- figures ---- */

static void store_usage(void *instance, void *space, struct ebb_usage *out)
{
	struct store *st = instance;

	if (space) {
		space_usage(space, out);
		return;
	}
	pthread_mutex_lock(&st->lock);
	for (struct space *sp = st->spaces; sp; sp = sp->next)
		space_usage(sp, out);
	pthread_mutex_unlock(&st->lock);
	out->capacity_bytes = store_capacity(st);
}

static int store_stats(void *instance, struct ebb_stat *out, uint32_t n)
{
	static const struct {
		const char *name, *help;
	} texts[COUNTERS] = {
		[COUNT_STORES] = {"stores", "Stores asked for"},
		[COUNT_LOADS] = {"loads", "Loads asked for"},
		[COUNT_PLAIN] = {"stored-plain", "Objects and pieces kept uncompressed"},
		[COUNT_FULL] = {"full", "Stores refused for want of room"},
		[COUNT_BAD_HANDLE] = {"bad-handles", "Handles refused: not live or not ours"},
		[COUNT_CORRUPT] = {"corrupt", "Loads of content that was damaged"},
		[COUNT_MOVED] = {"compaction-moved", "Objects moved by compaction"},
		[COUNT_RELEASED] = {"compaction-released", "Bytes given back by compaction"},
		[COUNT_CYCLES] = {"compaction-cycles", "Sweeps of compaction"},
	};
	struct store *st = instance;
	uint32_t i;

	pthread_mutex_lock(&st->lock);
	for (i = 0; i < COUNTERS && i < n; i++) {
		uint64_t value = atomic_load(&st->count[i]);

		for (struct channel *ch = st->channels; ch; ch = ch->next)
			value += atomic_load_explicit(&ch->count[i], memory_order_relaxed);
		out[i] = (struct ebb_stat){
			.name = texts[i].name, .help = texts[i].help, .value = value, .counter = 1};
	}
	pthread_mutex_unlock(&st->lock);
	return COUNTERS;
}

static int store_quiesce(void *instance)
{
	struct store *st = instance;
	int r = 0;

	pthread_mutex_lock(&st->lock);
	for (struct space *sp = st->spaces; sp && !r; sp = sp->next) {
		r = recover_settle(sp);
		if (!r)
			r = running_leave(sp);
	}
	pthread_mutex_unlock(&st->lock);
	return r ? r : place_quiesce(&st->place);
}

static int store_resume(void *instance)
{
	struct store *st = instance;
	int r = place_resume(&st->place);

	pthread_mutex_lock(&st->lock);
	for (struct space *sp = st->spaces; sp && !r; sp = sp->next)
		r = running_resume(sp);
	pthread_mutex_unlock(&st->lock);
	return r;
}

static int store_maintain(void *space, uint32_t budget_us)
{
	struct space *sp = space;
	int more = compact(sp, budget_us);

	return place_maintain(&sp->store->place) || more;
}

__attribute__((visibility("default"))) const struct ebb_backend *ebb_backend_entry(void)
{
	static struct ebb_backend backend = {
		.size = sizeof(backend),
		.abi_major = EBB_BACKEND_ABI_MAJOR,
		.abi_minor = EBB_BACKEND_ABI_MINOR,
		.name = place_backend_name,
		.description = place_backend_description,
		.option_help = place_option_help,
		.open = store_open,
		.close = store_close,
		.space_open = store_space_open,
		.space_close = store_space_close,
		.channel_open = store_channel_open,
		.channel_close = store_channel_close,
		.submit = store_submit,
		.poll = store_poll,
		.free = store_free,
		.retain = store_retain,
		.usage = store_usage,
		.stats = store_stats,
		.maintain = store_maintain,
		.config = store_config,
		.quiesce = store_quiesce,
		.resume = store_resume,
	};

	backend.caps = place_backend_caps;
	return &backend;
}
