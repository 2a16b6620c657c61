/* SPDX-License-Identifier: BSD-3-Clause */
/* backend_host.c: the only way into a backend plugin: every call, checked both ways. */
#include "plugin/backend_host.h"

#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "plugin/crashes.h"

/*
 * Theory of operation
 *
 * A struct backend is one instance of a driver: our own copy of its descriptor (so a plugin
 * cannot change it under us, and an older, shorter one reads as zeroes where it ends), the table
 * of services that the plugin gets, and the opaque instance. Spaces and channels are thin shells
 * around the plugin's own, so that nobody outside this file can hand a plugin something foreign.
 *
 * What comes back from a plugin is not believed: counts are clamped to what was asked, an I/O that
 * was not in flight is dropped, a result that is neither 0 nor a negative errno becomes -EIO, and
 * so does a store whose handle does not fit into a page table entry. Each such breach is counted
 * and logged (rate-limited); the content of a store that was refused here is still in guest RAM.
 *
 * `reserved` of an I/O carries a mark while it is in flight. A plugin that gives one back twice,
 * or that completes at submit what it will give back again at poll, is caught by it.
 *
 * Threads: as include/ebb/backend.h says. Nothing here locks. submit, poll and free allocate
 * nothing; the log is reached from them only when a plugin breaks its contract.
 */

#define IN_FLIGHT 0x46696f45u

#define OPTIONS_MAX 64
#define KNOWN_CAPS                                                          \
	(EBB_BACKEND_SYNC | EBB_BACKEND_MAPPABLE | EBB_BACKEND_PERSISTENT | \
	 EBB_BACKEND_REGISTERED_BUFFERS | EBB_BACKEND_IN_RAM | EBB_BACKEND_EXCLUSIVE)

struct backend {
	struct ebb_backend desc;
	struct ebb_backend_host host;
	const struct backend_env *env; /* borrowed */
	void *library;		       /* owned; from dlopen() */
	void *instance;
	uint32_t caps;
	char name[PLUGIN_NAME_MAX], driver[PLUGIN_NAME_MAX];
	char description[160];
	struct log_limit log_limit;
};

struct backend_space {
	struct backend *b;
	void *space;
};

struct backend_channel {
	struct backend *b;
	void *channel;
	uint32_t in_flight;
};

/* ---- services for the plugin ---- */

static int host_mem_open(void *ctx, void *space_ctx, const char *name, uint64_t max_bytes,
			 void **addr, int *found)
{
	struct backend *b = ctx;

	if (!plugin_name_valid(name) || !max_bytes || max_bytes % 4096 || !addr || !found)
		return -EINVAL;
	if (!b->env->mem_open)
		return -ENOTSUP;
	return b->env->mem_open(b->env->ctx, space_ctx, name, max_bytes, addr, found);
}

static int host_mem_trim(void *ctx, void *space_ctx, const char *name, uint64_t offset,
			 uint64_t bytes)
{
	struct backend *b = ctx;

	if (!plugin_name_valid(name) || !bytes || offset % 4096 || bytes % 4096 ||
	    offset + bytes < offset)
		return -EINVAL;
	if (!b->env->mem_trim)
		return -ENOTSUP;
	return b->env->mem_trim(b->env->ctx, space_ctx, name, offset, bytes);
}

static void host_log(void *ctx, int level, const char *fmt, ...)
{
	struct backend *b = ctx;
	char text[512];
	va_list ap;

	if (level < LOG_ERROR || level > LOG_DEBUG)
		level = LOG_WARNING;
	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	log_limited(&b->log_limit, (enum log_level)level, "backend %s: %s", b->name, text);
}

static void breach(struct backend *b, const char *what)
{
	log_limited(&b->log_limit, LOG_ERROR, "backend %s breaks its contract: %s", b->name, what);
}

/* ---- opening ---- */

static int check_descriptor(const struct ebb_backend *d, const char *driver, struct error *e)
{
	const struct {
		const char *name;
		bool missing;
	} required[] = {
		{"open", !d->open},
		{"close", !d->close},
		{"space_open", !d->space_open},
		{"space_close", !d->space_close},
		{"channel_open", !d->channel_open},
		{"channel_close", !d->channel_close},
		{"submit", !d->submit},
		{"poll", !d->poll && !(d->caps & EBB_BACKEND_SYNC)},
		{"free", !d->free},
		{"usage", !d->usage},
	};

	if (!d->name || strcmp(d->name, driver) != 0)
		return error_set(e, EINVAL, ERROR_ARGUMENT, "backend %s calls itself '%.40s'",
				 driver, d->name ? d->name : "");
	for (size_t i = 0; i < sizeof(required) / sizeof(required[0]); i++)
		if (required[i].missing)
			return error_set(e, EINVAL, ERROR_ARGUMENT, "backend %s has no %s()",
					 driver, required[i].name);
	if (d->caps & ~(uint32_t)KNOWN_CAPS)
		return error_set(e, EINVAL, ERROR_UNSUPPORTED,
				 "backend %s has capabilities unknown here: 0x%x", driver,
				 d->caps & ~(uint32_t)KNOWN_CAPS);
	return 0;
}

static int check_options(const struct ebb_option *opts, uint32_t n_opts, struct error *e)
{
	if (n_opts > OPTIONS_MAX)
		return error_set(e, E2BIG, ERROR_LIMIT, "more than %d options", OPTIONS_MAX);
	for (uint32_t i = 0; i < n_opts; i++) {
		if (!opts[i].name || !opts[i].value)
			return error_set(e, EINVAL, ERROR_ARGUMENT, "option %u is incomplete", i);
		for (uint32_t j = 0; j < i; j++)
			if (strcmp(opts[i].name, opts[j].name) == 0)
				return error_set(e, EINVAL, ERROR_ARGUMENT,
						 "option '%s' is given twice", opts[i].name);
	}
	return 0;
}

/* What a child process tries before we do it ourselves; see plugin_probe(). */
struct trial {
	struct backend *b;
	const struct ebb_backend *(*entry)(void);
	const struct ebb_option *opts;
	uint32_t n_opts;
};

static void try_out(void *arg)
{
	struct trial *t = arg;
	struct backend *b = t->b;
	char why[256];
	struct error e;

	if (plugin_copy_descriptor(&b->desc, sizeof(b->desc), t->entry(), EBB_BACKEND_ABI_MAJOR, "",
				   &e) ||
	    !b->desc.open || !b->desc.close || (b->desc.caps & EBB_BACKEND_PERSISTENT))
		return; /* what is elsewhere is not touched by way of trial */
	if (!b->desc.open(&b->host, t->opts, t->n_opts, &b->instance, why, sizeof(why)))
		b->desc.close(b->instance);
}

static int load(struct backend *b, const struct plugin_path *path, const char *driver,
		const struct ebb_option *opts, uint32_t n_opts, struct error *e)
{
	struct trial trial = {.b = b, .opts = opts, .n_opts = n_opts};
	char what[PLUGIN_NAME_MAX + 16];
	void *sym;
	int r;

	r = plugin_open(path, "backends", driver, NULL, EBB_BACKEND_ENTRY, &b->library, &sym, e);
	if (r)
		return r;
	memcpy(&trial.entry, &sym, sizeof(trial.entry));
	snprintf(what, sizeof(what), "backend %s", driver);
	r = plugin_probe(try_out, &trial, what, e);
	if (!r)
		r = plugin_copy_descriptor(&b->desc, sizeof(b->desc), trial.entry(),
					   EBB_BACKEND_ABI_MAJOR, what, e);
	if (!r)
		r = check_descriptor(&b->desc, driver, e);
	return r;
}

int backend_open(const struct plugin_path *path, const struct backend_env *env, const char *name,
		 const char *driver, const struct ebb_option *opts, uint32_t n_opts,
		 struct backend **out, struct error *e)
{
	char why[256] = "";
	struct backend *b;
	int r;

	if (!plugin_name_valid(name))
		return error_set(e, EINVAL, ERROR_ARGUMENT, "'%.40s' cannot name a backend",
				 name ? name : "");
	r = check_options(opts, n_opts, e);
	if (r)
		return r;
	b = calloc(1, sizeof(*b));
	if (!b)
		return error_set(e, ENOMEM, ERROR_GENERIC, "out of memory");
	b->env = env;
	snprintf(b->name, sizeof(b->name), "%s", name);
	b->host = (struct ebb_backend_host){
		.size = sizeof(b->host),
		.abi_major = EBB_BACKEND_ABI_MAJOR,
		.abi_minor = EBB_BACKEND_ABI_MINOR,
		.ctx = b,
		.mem_open = host_mem_open,
		.mem_trim = host_mem_trim,
		.log = host_log,
	};
	r = load(b, path, driver, opts, n_opts, e);
	if (r)
		goto fail;
	snprintf(b->driver, sizeof(b->driver), "%s", driver);
	snprintf(b->description, sizeof(b->description), "%s",
		 b->desc.description ? b->desc.description : "");
	b->caps = b->desc.caps;
	crash_mark_set(CRASH_BACKEND, b->name, "open");
	r = b->desc.open(&b->host, opts, n_opts, &b->instance, why, sizeof(why));
	crash_mark_set(CRASH_NONE, NULL, NULL);
	if (r) {
		why[sizeof(why) - 1] = '\0';
		if (r > 0)
			r = -EIO;
		error_set(e, -r, r == -EINVAL ? ERROR_ARGUMENT : ERROR_GENERIC, "backend %s: %s",
			  name, why[0] ? why : error_text(r));
		goto fail;
	}
	*out = b;
	return 0;
fail:
	if (b->library)
		dlclose(b->library);
	free(b);
	return r;
}

void backend_close(struct backend *b)
{
	if (!b)
		return;
	b->desc.close(b->instance);
	dlclose(b->library);
	free(b);
}

const char *backend_name(const struct backend *b)
{
	return b->name;
}

const char *backend_driver(const struct backend *b)
{
	return b->driver;
}

const char *backend_description(const struct backend *b)
{
	return b->description;
}

uint32_t backend_caps(const struct backend *b)
{
	return b->caps;
}

/* ---- spaces and channels ---- */

int backend_space_open(struct backend *b, const struct ebb_space_params *params,
		       struct backend_space **out)
{
	CRASH_MARK(CRASH_BACKEND, b->name, "space_open");
	struct ebb_space_params p = *params;
	struct backend_space *s = calloc(1, sizeof(*s));
	int r;

	if (!s)
		return -ENOMEM;
	s->b = b;
	p.size = sizeof(p);
	r = b->desc.space_open(b->instance, &p, &s->space);
	if (r) {
		free(s);
		return r < 0 ? r : -EIO;
	}
	*out = s;
	return 0;
}

void backend_space_close(struct backend_space *s)
{
	if (!s)
		return;
	crash_mark_set(CRASH_BACKEND, s->b->name, "space_close");
	s->b->desc.space_close(s->space);
	crash_mark_set(CRASH_NONE, NULL, NULL);
	free(s);
}

struct backend *backend_of(const struct backend_space *s)
{
	return s->b;
}

int backend_channel_open(struct backend *b, void *buffers, uint64_t buffers_bytes,
			 uint32_t queue_depth, struct backend_channel **out)
{
	CRASH_MARK(CRASH_BACKEND, b->name, "channel_open");
	struct ebb_channel_params p = {.size = sizeof(p),
				       .buffers = buffers,
				       .buffers_bytes = buffers_bytes,
				       .queue_depth = queue_depth};
	struct backend_channel *c;
	int r;

	if (!queue_depth)
		return -EINVAL;
	c = calloc(1, sizeof(*c));
	if (!c)
		return -ENOMEM;
	c->b = b;
	r = b->desc.channel_open(b->instance, &p, &c->channel);
	if (r) {
		free(c);
		return r < 0 ? r : -EIO;
	}
	*out = c;
	return 0;
}

void backend_channel_close(struct backend_channel *c)
{
	if (!c)
		return;
	crash_mark_set(CRASH_BACKEND, c->b->name, "channel_close");
	c->b->desc.channel_close(c->channel);
	crash_mark_set(CRASH_NONE, NULL, NULL);
	free(c);
}

/* ---- the data path ---- */

void backend_io_prepare(struct ebb_io *io, uint32_t op, uint32_t flags, struct backend_space *s,
			uint64_t handle, void *buf, uint32_t len, uint64_t user)
{
	*io = (struct ebb_io){.op = op,
			      .flags = flags,
			      .space = s->space,
			      .handle = handle,
			      .buf = buf,
			      .len = len,
			      .user = user};
}

/* What a completed I/O says, made believable. */
static void check_completion(struct backend *b, struct ebb_io *io)
{
	io->reserved = 0;
	if (io->result > 0 || io->result < -4095) {
		breach(b, "a result that is no errno");
		io->result = -EIO;
	}
	if (io->result == 0 && io->op == EBB_IO_STORE && (io->handle & ~EBB_HANDLE_MASK)) {
		breach(b, "a handle of more than 48 bits");
		io->result = -EIO;
	}
}

int backend_submit(struct backend_channel *c, struct ebb_io **ios, uint32_t n)
{
	CRASH_MARK(CRASH_BACKEND, c->b->name, "submit");
	struct backend *b = c->b;
	int taken;

	for (uint32_t i = 0; i < n; i++) {
		ios[i]->reserved = IN_FLIGHT;
		ios[i]->result = -EIO; /* for a plugin that forgets to set it */
	}
	taken = b->desc.submit(c->channel, ios, n);
	if (taken < 0 || (uint32_t)taken > n) {
		breach(b, "submit took more than it was given");
		taken = taken < 0 ? 0 : (int)n;
	}
	for (uint32_t i = (uint32_t)taken; i < n; i++)
		ios[i]->reserved = 0;
	if (b->caps & EBB_BACKEND_SYNC) {
		for (int i = 0; i < taken; i++)
			check_completion(b, ios[i]);
	} else {
		c->in_flight += (uint32_t)taken;
	}
	return taken;
}

int backend_poll(struct backend_channel *c, struct ebb_io **ios, uint32_t n)
{
	CRASH_MARK(CRASH_BACKEND, c->b->name, "poll");
	struct backend *b = c->b;
	int got, kept = 0;

	if (b->caps & EBB_BACKEND_SYNC)
		return 0;
	/* Also with nothing in flight: what made the descriptor readable is then still there to be
	 * taken, and who waits for the descriptor would find it so for ever. */
	if (n > c->in_flight)
		n = c->in_flight;
	got = b->desc.poll(c->channel, ios, n);
	if (got < 0 || (uint32_t)got > n) {
		breach(b, "poll gave more than it was asked for");
		got = got < 0 ? 0 : (int)n;
	}
	for (int i = 0; i < got; i++) {
		if (ios[i]->reserved != IN_FLIGHT) {
			breach(b, "an I/O completed that was not in flight");
			continue;
		}
		check_completion(b, ios[i]);
		ios[kept++] = ios[i];
	}
	c->in_flight -= (uint32_t)kept;
	return kept;
}

int backend_event_fd(struct backend_channel *c)
{
	return c->b->desc.event_fd ? c->b->desc.event_fd(c->channel) : -1;
}

void backend_free(struct backend_channel *c, struct backend_space *s, const uint64_t *handles,
		  uint32_t n)
{
	CRASH_MARK(CRASH_BACKEND, c->b->name, "free");
	if (n)
		c->b->desc.free(c->channel, s->space, handles, n);
}

int64_t backend_retain(struct backend_channel *c, struct backend_space *s, const uint64_t *handles,
		       uint64_t n)
{
	CRASH_MARK(CRASH_BACKEND, c->b->name, "retain");
	return c->b->desc.retain ? c->b->desc.retain(c->channel, s->space, handles, n) : -ENOTSUP;
}

int backend_matches(struct backend_channel *c, struct backend_space *s, uint64_t handle,
		    uint64_t owner, const void *buf, uint32_t len)
{
	int r = c->b->desc.matches
			? c->b->desc.matches(c->channel, s->space, handle, owner, buf, len)
			: -ENOTSUP;

	/* Whatever is not a clear yes is none. */
	return r == 1 || r == -ENOTSUP ? r : 0;
}

/* ---- looking after it ---- */

void backend_usage(struct backend *b, struct backend_space *s, struct ebb_usage *out)
{
	CRASH_MARK(CRASH_BACKEND, b->name, "usage");
	memset(out, 0, sizeof(*out));
	out->size = sizeof(*out);
	b->desc.usage(b->instance, s ? s->space : NULL, out);
}

int backend_stats(struct backend *b, struct ebb_stat *out, uint32_t n)
{
	CRASH_MARK(CRASH_BACKEND, b->name, "stats");
	int have, kept = 0;

	if (!b->desc.stats)
		return 0;
	memset(out, 0, n * sizeof(*out));
	have = b->desc.stats(b->instance, out, n);
	if (have < 0)
		return 0;
	if ((uint32_t)have > n)
		have = (int)n;
	for (int i = 0; i < have; i++)
		if (out[i].name && out[i].help)
			out[kept++] = out[i];
	return kept;
}

bool backend_maintain(struct backend_space *s, uint32_t budget_us)
{
	CRASH_MARK(CRASH_BACKEND, s->b->name, "maintain");
	return s->b->desc.maintain && s->b->desc.maintain(s->space, budget_us) > 0;
}

int backend_quiesce(struct backend *b)
{
	CRASH_MARK(CRASH_BACKEND, b->name, "quiesce");
	int r = b->desc.quiesce ? b->desc.quiesce(b->instance) : 0;

	return r > 0 ? -EIO : r;
}

int backend_resume(struct backend *b)
{
	CRASH_MARK(CRASH_BACKEND, b->name, "resume");
	int r = b->desc.resume ? b->desc.resume(b->instance) : 0;

	return r > 0 ? -EIO : r;
}

int backend_config(struct backend *b, const struct ebb_option *opt, struct error *e)
{
	CRASH_MARK(CRASH_BACKEND, b->name, "config");
	char why[256] = "";
	int r;

	if (!opt->name || !opt->value)
		return error_set(e, EINVAL, ERROR_ARGUMENT, "the option is incomplete");
	r = b->desc.config ? b->desc.config(b->instance, opt, why, sizeof(why)) : -ENOTSUP;
	if (!r)
		return 0;
	why[sizeof(why) - 1] = '\0';
	if (r > 0)
		r = -EIO;
	if (!why[0])
		snprintf(why, sizeof(why), "option '%s' cannot be changed while it is in use",
			 opt->name);
	return error_set(e, -r, r == -ENOTSUP ? ERROR_UNSUPPORTED : ERROR_ARGUMENT,
			 "backend %s: %s", b->name, why);
}
