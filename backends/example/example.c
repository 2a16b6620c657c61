/* SPDX-License-Identifier: BSD-3-Clause */
/* example.c: a backend to copy: small, complete and asynchronous. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "ebb/backend.h"
#include "objects.h"

/*
 * Theory of operation
 *
 * Content is kept uncompressed in the daemon's own memory (objects.c), so it saves nothing and
 * does not outlive the daemon; what it shows is the shape of a backend whose I/O takes time.
 *
 *   submit   puts I/Os into the channel's rings and makes its eventfd readable
 *   poll     takes them out, does the work, gives them back; what a vCPU waits for before all else
 *
 * A backend for a device would start the I/O in submit() and collect what has ended in poll().
 *
 * A channel is one thread's, so its rings need no lock; what all channels share, the objects of a
 * space, has one. Ownership: the instance belongs to ebbd from open() to close(), and so on for
 * spaces and channels; an I/O belongs to us from submit() to poll().
 */

struct example {
	const struct ebb_backend_host *host;
	uint64_t max_bytes; /* of each space; 0: no bound */
};

struct ring {
	uint32_t head, n; /* first I/O, how many */
	struct ebb_io **ios;
};

struct channel {
	int event;	/* owned; readable while a ring is not empty */
	uint32_t depth; /* room in each ring */
	struct ring demand, rest;
	struct ebb_io *ios[];
};

/* ---- the instance ---- */

static int example_open(const struct ebb_backend_host *host, const struct ebb_option *opts,
			uint32_t n_opts, void **instance, char *err, uint64_t err_len)
{
	struct example *ex = calloc(1, sizeof(*ex));

	if (!ex)
		return -ENOMEM;
	ex->host = host;
	for (uint32_t i = 0; i < n_opts; i++) {
		char *end = NULL;

		if (strcmp(opts[i].name, "max-bytes") == 0)
			ex->max_bytes = strtoull(opts[i].value, &end, 10);
		if (!end || *end || end == opts[i].value) {
			snprintf(err, err_len, "option '%s' is unknown or has no number",
				 opts[i].name);
			free(ex);
			return -EINVAL;
		}
	}
	*instance = ex;
	return 0;
}

static void example_close(void *instance)
{
	free(instance);
}

/* ---- spaces ---- */

static int example_space_open(void *instance, const struct ebb_space_params *params, void **space)
{
	const struct example *ex = instance;
	struct objects *o = malloc(sizeof(*o));
	int r;

	if (!o)
		return -ENOMEM;
	r = objects_init(o, ex->max_bytes);
	if (r) {
		free(o);
		return r;
	}
	*space = o;
	return 0;
}

static void example_space_close(void *space)
{
	objects_destroy(space);
	free(space);
}

/* ---- channels ---- */

static int example_channel_open(void *instance, const struct ebb_channel_params *params,
				void **channel)
{
	/* All that the data path needs is taken here. */
	struct channel *ch =
		calloc(1, sizeof(*ch) + 2 * (size_t)params->queue_depth * sizeof(ch->ios[0]));

	if (!ch)
		return -ENOMEM;
	ch->depth = params->queue_depth;
	ch->demand.ios = ch->ios;
	ch->rest.ios = ch->ios + ch->depth;
	ch->event = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (ch->event < 0) {
		int r = -errno;

		free(ch);
		return r;
	}
	*channel = ch;
	return 0;
}

static void example_channel_close(void *channel)
{
	struct channel *ch = channel;

	close(ch->event);
	free(ch);
}

static int example_event_fd(void *channel)
{
	const struct channel *ch = channel;

	return ch->event;
}

/* ---- I/O ---- */

static int example_submit(void *channel, struct ebb_io **ios, uint32_t n)
{
	struct channel *ch = channel;
	uint32_t taken = 0;

	for (; taken < n && ch->demand.n + ch->rest.n < ch->depth; taken++) {
		struct ring *r = ios[taken]->flags & EBB_IO_DEMAND ? &ch->demand : &ch->rest;

		r->ios[(r->head + r->n++) % ch->depth] = ios[taken];
	}
	if (taken)
		eventfd_write(ch->event, 1);
	return (int)taken;
}

static void complete(struct ebb_io *io)
{
	struct objects *o = io->space;

	if (io->op == EBB_IO_STORE) {
		io->result = objects_put(o, io->buf, io->len, &io->handle);
		io->stored_bytes = io->len + (uint32_t)sizeof(struct object);
	} else if (io->op == EBB_IO_LOAD) {
		io->result = objects_get(o, io->handle, io->buf, io->len);
	} else {
		io->result = -EINVAL;
	}
}

static int example_poll(void *channel, struct ebb_io **ios, uint32_t n)
{
	struct channel *ch = channel;
	uint32_t done = 0;
	eventfd_t ignored;

	for (; done < n && ch->demand.n + ch->rest.n; done++) {
		struct ring *r = ch->demand.n ? &ch->demand : &ch->rest;

		ios[done] = r->ios[r->head];
		r->head = (r->head + 1) % ch->depth;
		r->n--;
		complete(ios[done]);
	}
	if (!ch->demand.n && !ch->rest.n)
		eventfd_read(ch->event, &ignored);
	return (int)done;
}

static void example_free(void *channel, void *space, const uint64_t *handles, uint32_t n)
{
	for (uint32_t i = 0; i < n; i++)
		objects_drop(space, handles[i]);
}

/* ---- figures ---- */

static void example_usage(void *instance, void *space, struct ebb_usage *out)
{
	/* Of a single space only: a real backend keeps sums for the instance as well. */
	if (space)
		objects_usage(space, out);
}

__attribute__((visibility("default"))) const struct ebb_backend *ebb_backend_entry(void)
{
	static const char *const option_help[] = {
		"max-bytes: what one VM may store; 0 (default): no bound",
		NULL,
	};
	static const struct ebb_backend backend = {
		.size = sizeof(backend),
		.abi_major = EBB_BACKEND_ABI_MAJOR,
		.abi_minor = EBB_BACKEND_ABI_MINOR,
		.caps = EBB_BACKEND_IN_RAM,
		.name = "example",
		.description = "Keeps content as it is in RAM; to read and to copy",
		.option_help = option_help,
		.open = example_open,
		.close = example_close,
		.space_open = example_space_open,
		.space_close = example_space_close,
		.channel_open = example_channel_open,
		.channel_close = example_channel_close,
		.submit = example_submit,
		.poll = example_poll,
		.event_fd = example_event_fd,
		.free = example_free,
		.usage = example_usage,
	};

	return &backend;
}
