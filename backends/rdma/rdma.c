/* SPDX-License-Identifier: BSD-3-Clause */
/* rdma.c: content in the memory of other hosts, over RDMA. The plugin's face. */
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "rdma.h"
#include "values.h"

/*
 * Theory of operation
 *
 * Content goes into memory that donors (ebb-donor on other hosts) lend, by one-sided WRITEs, and
 * comes back by READs; no program runs over there for it. The parts:
 *
 *   map.h      what outlives the daemon: handle -> donor, place, seal
 *   space.c    one VM's map, chunks and objects
 *   recover.c  taking over what another daemon left
 *   channel.c  the data path
 *   queue.c    making connections
 *   link.c     a donor and the thread that looks after it
 *   move.c     away from a donor that wants its memory back
 *   src/rdma   what is said between us and a donor
 *
 * A copy lives in a donor's memory and nowhere else, unless mirror=on puts two of it on two donors
 * before a store is acknowledged. A donor that is away is waited for; one that has lost what it
 * had, or that does not come back for `patience`, or that gives something else than it got, costs
 * -EIO.
 *
 * Threads: the engine's, one for each donor, the mover, and the keeper, which sees to it that I/O
 * that waits is looked at.
 */

#define KEEPER_MS	 100
#define FIRST_ATTEMPT_MS 6000
#define QUIESCE_MS	 10000
#define DEFAULT_KEY_FILE "/etc/ebb/rdma.key"

static const char *const option_help[] = {
	"donors: host:port of each, with commas between them (at most 15)",
	"key-file: the secret shared with the donors (default " DEFAULT_KEY_FILE ")",
	"mirror: on keeps everything on two donors; default off",
	"encrypt: on encrypts content; default on. It can be changed at any time; what is stored "
	"stays as it is",
	"patience: seconds that content is waited for while its donor is away; default 60. It can "
	"be changed at any time",
	"spin-us: microseconds that a demanded load is waited for by polling; default 20. It can be "
	"changed at any time",
	NULL,
};

static int refuse(char *err, uint64_t err_len, const char *fmt, const char *what)
{
	snprintf(err, err_len, fmt, what);
	return -EINVAL;
}

static int parse_switch(const char *text, bool *out)
{
	if (strcmp(text, "on") == 0 || strcmp(text, "true") == 0 || strcmp(text, "1") == 0)
		*out = true;
	else if (strcmp(text, "off") == 0 || strcmp(text, "false") == 0 || strcmp(text, "0") == 0)
		*out = false;
	else
		return -EINVAL;
	return 0;
}

/* Those that can be changed while in use. -ENOENT: it is none of them. */
static int set_changeable(struct rdma *inst, const struct ebb_option *o, char *err,
			  uint64_t err_len)
{
	uint64_t v;
	bool on;

	if (strcmp(o->name, "encrypt") == 0) {
		if (parse_switch(o->value, &on))
			return refuse(err, err_len, "encrypt '%.60s' is neither on nor off",
				      o->value);
		atomic_store(&inst->encrypt, on);
	} else if (strcmp(o->name, "patience") == 0) {
		if (value_number(o->value, 86400, &v))
			return refuse(err, err_len, "patience '%.60s' is no number of seconds",
				      o->value);
		atomic_store(&inst->patience_ns, v * NS_PER_S);
	} else if (strcmp(o->name, "spin-us") == 0) {
		if (value_number(o->value, 1000, &v))
			return refuse(err, err_len, "spin-us '%.60s' is no number up to 1000",
				      o->value);
		atomic_store(&inst->spin_ns, v * 1000);
	} else {
		return -ENOENT;
	}
	return 0;
}

static int add_donors(struct rdma *inst, const char *list, char *err, uint64_t err_len)
{
	char name[WIRE_NAME_BYTES];
	struct link *l;

	while (*list) {
		size_t len = strcspn(list, ",");
		int r;

		snprintf(name, sizeof(name), "%.*s", (int)len, list);
		pthread_mutex_lock(&inst->lock);
		r = len < sizeof(name) ? link_get(inst, name, true, &l) : -EINVAL;
		pthread_mutex_unlock(&inst->lock);
		if (r) {
			snprintf(err, err_len,
				 r == -ENODEV	? "donor '%s': there is no RDMA on this host"
				 : r == -EINVAL ? "donor '%s' is not host:port"
						: "donor '%s': too many donors, or no memory",
				 name);
			return r;
		}
		list += len + (list[len] == ',');
	}
	return 0;
}

static int parse_options(struct rdma *inst, const struct ebb_option *opts, uint32_t n_opts,
			 const char **donors, char *err, uint64_t err_len)
{
	const char *key_file = DEFAULT_KEY_FILE;

	for (uint32_t i = 0; i < n_opts; i++) {
		const struct ebb_option *o = &opts[i];
		int r = set_changeable(inst, o, err, err_len);

		if (!r)
			continue;
		if (r != -ENOENT)
			return r;
		if (strcmp(o->name, "donors") == 0)
			*donors = o->value;
		else if (strcmp(o->name, "key-file") == 0)
			key_file = o->value;
		else if (strcmp(o->name, "mirror") != 0)
			return refuse(err, err_len, "unknown option '%.60s'", o->name);
		else if (parse_switch(o->value, &inst->mirror))
			return refuse(err, err_len, "mirror '%.60s' is neither on nor off",
				      o->value);
	}
	if (!**donors)
		return refuse(err, err_len, "%s", "no donors are given");
	if (inst->mirror && !strchr(*donors, ','))
		return refuse(err, err_len, "%s", "mirror=on takes two donors or more");
	return wire_key_load(key_file, &inst->key, err, err_len);
}

/*
 * A donor that answers and is not ours is a mistake that the operator hears of at once. One that
 * cannot be reached is not: after a restart of both hosts it may come up later than we do.
 */
static int first_attempt(struct rdma *inst, char *err, uint64_t err_len)
{
	uint64_t end = now_ns() + FIRST_ATTEMPT_MS * NS_PER_MS;

	for (unsigned int i = 0; i < inst->n_links; i++) {
		struct link *l = inst->links[i];

		while (!atomic_load(&l->tried) && now_ns() < end)
			usleep(2000);
		if (atomic_load(&l->tried) && l->error == -EKEYREJECTED) {
			snprintf(err, err_len, "donor %s does not have our key (or is no donor)",
				 l->name);
			return -EKEYREJECTED;
		}
	}
	return 0;
}

static void *keeper_main(void *arg)
{
	struct rdma *inst = arg;

	while (!atomic_load(&inst->stop)) {
		usleep(KEEPER_MS * 1000);
		channels_kick(inst);
	}
	return NULL;
}

static void rdma_close(void *instance)
{
	struct rdma *inst = instance;

	atomic_store(&inst->stop, true);
	if (inst->keeper_runs)
		pthread_join(inst->keeper, NULL);
	if (inst->mover_runs)
		pthread_join(inst->mover, NULL);
	for (unsigned int i = 0; i < inst->n_links; i++)
		link_free(inst->links[i]);
	pthread_cond_destroy(&inst->unused);
	pthread_mutex_destroy(&inst->lock);
	explicit_bzero(&inst->key, sizeof(inst->key));
	free(inst);
}

/*
 * The CM library keeps each device open that it has ever used, and forgets about it when it is
 * unloaded together with us: then each backend that comes and goes would leave descriptors behind.
 */
static void stay_loaded(void)
{
	void *library = dlopen("librdmacm.so.1", RTLD_LAZY | RTLD_NOLOAD | RTLD_NODELETE);

	if (library)
		dlclose(library);
}

static int rdma_open(const struct ebb_backend_host *host, const struct ebb_option *opts,
		     uint32_t n_opts, void **instance, char *err, uint64_t err_len)
{
	struct rdma *inst = calloc(1, sizeof(*inst));
	const char *donors = "";
	int r = wire_init();

	if (!inst || r) {
		free(inst);
		return r ? r : -ENOMEM;
	}
	stay_loaded();
	inst->host = host;
	inst->encrypt = true;
	inst->patience_ns = 60 * NS_PER_S;
	inst->spin_ns = 20000;
	pthread_mutex_init(&inst->lock, NULL);
	pthread_cond_init(&inst->unused, NULL);
	r = parse_options(inst, opts, n_opts, &donors, err, err_len);
	if (!r)
		r = add_donors(inst, donors, err, err_len);
	if (!r)
		r = first_attempt(inst, err, err_len);
	if (!r) {
		r = -pthread_create(&inst->keeper, NULL, keeper_main, inst);
		inst->keeper_runs = !r;
	}
	if (!r) {
		r = -pthread_create(&inst->mover, NULL, mover_main, inst);
		inst->mover_runs = !r;
	}
	if (r) {
		rdma_close(inst);
		return r;
	}
	*instance = inst;
	return 0;
}

static int rdma_config(void *instance, const struct ebb_option *opt, char *err, uint64_t err_len)
{
	int r = set_changeable(instance, opt, err, err_len);

	return r == -ENOENT ? -ENOTSUP : r;
}

/*
 * A lease is one session's at a time: before a successor may claim ours, we are not connected any
 * more. All that it needs is in the map at any instant.
 */
static int rdma_quiesce(void *instance)
{
	struct rdma *inst = instance;
	uint64_t end = now_ns() + QUIESCE_MS * NS_PER_MS;

	atomic_store(&inst->quiet, true);
	for (unsigned int i = 0; i < inst->n_links; i++)
		link_kick(inst->links[i]);
	/* Nor is anything changed in the map from here on. */
	for (unsigned int i = 0; i < inst->n_links; i++) {
		while (!atomic_load(&inst->links[i]->idle) || atomic_load(&inst->moving)) {
			if (now_ns() >= end) {
				atomic_store(&inst->quiet, false);
				return -ETIMEDOUT;
			}
			usleep(1000);
		}
	}
	return 0;
}

static int rdma_resume(void *instance)
{
	struct rdma *inst = instance;

	atomic_store(&inst->quiet, false);
	for (unsigned int i = 0; i < inst->n_links; i++)
		link_kick(inst->links[i]);
	return 0;
}

/* ---- spaces, channels, I/O: as in the files that do it ---- */

static int rdma_space_open(void *instance, const struct ebb_space_params *params, void **space)
{
	struct space *sp;
	int r = space_open(instance, params, &sp);

	if (!r)
		*space = sp;
	return r;
}

static void rdma_space_close(void *space)
{
	space_close(space);
}

static int rdma_channel_open(void *instance, const struct ebb_channel_params *params,
			     void **channel)
{
	struct channel *ch;
	int r = channel_open(instance, params->queue_depth, &ch);

	if (!r)
		*channel = ch;
	return r;
}

static void rdma_channel_close(void *channel)
{
	channel_close(channel);
}

static int rdma_submit(void *channel, struct ebb_io **ios, uint32_t n)
{
	return channel_submit(channel, ios, n);
}

static int rdma_poll(void *channel, struct ebb_io **ios, uint32_t n)
{
	return channel_poll(channel, ios, n);
}

static int rdma_event_fd(void *channel)
{
	const struct channel *ch = channel;

	return ch->epoll_fd;
}

static void rdma_free(void *channel, void *space, const uint64_t *handles, uint32_t n)
{
	const struct channel *ch = channel;

	for (uint32_t i = 0; i < n; i++)
		if (object_free(space, handles[i]))
			count(ch->inst, COUNT_BAD_HANDLE, 1);
}

static int64_t rdma_retain(void *channel, void *space, const uint64_t *handles, uint64_t n)
{
	return object_retain(space, handles, n);
}

/* ---- figures ---- */

static void rdma_usage(void *instance, void *space, struct ebb_usage *out)
{
	struct rdma *inst = instance;

	out->capacity_bytes = capacity_bytes(inst);
	if (space) {
		space_usage(space, out);
		return;
	}
	pthread_mutex_lock(&inst->lock);
	for (struct space *sp = inst->spaces; sp; sp = sp->next)
		space_usage(sp, out);
	pthread_mutex_unlock(&inst->lock);
}

static int rdma_stats(void *instance, struct ebb_stat *out, uint32_t n)
{
	static const struct {
		const char *name, *help;
	} texts[COUNTERS] = {
		[COUNT_STORES] = {"stores", "Stores asked for"},
		[COUNT_LOADS] = {"loads", "Loads asked for"},
		[COUNT_RETRIES] = {"retries", "Pieces done again after their connection broke"},
		[COUNT_REFUSED] = {"refused", "Stores refused for want of room or of donors"},
		[COUNT_OTHER_COPY] = {"second-copy-loads", "Pieces loaded from their second copy"},
		[COUNT_WRONG] = {"wrong", "Pieces that a donor gave back other than they were"},
		[COUNT_LOST] = {"lost", "Loads of content that is gone for good"},
		[COUNT_BAD_HANDLE] = {"bad-handles", "Handles refused: not live or not ours"},
		[COUNT_CONNECTED] = {"connects", "Connections made to donors"},
		[COUNT_BROKEN] = {"disconnects", "Connections to donors that broke"},
		[COUNT_CHUNKS_LOST] = {"chunks-lost", "Chunks of 4 MiB that donors have lost"},
		[COUNT_MOVED] = {"moved", "Pieces moved since their donor wanted memory back"},
	};
	struct rdma *inst = instance;
	uint64_t recall = 0;
	uint32_t have = 0, up = 0;

	for (; have < COUNTERS && have < n; have++)
		out[have] = (struct ebb_stat){.name = texts[have].name,
					      .help = texts[have].help,
					      .value = atomic_load(&inst->count[have]),
					      .counter = 1};
	for (unsigned int i = 0; i < inst->n_links; i++) {
		up += atomic_load(&inst->links[i]->up);
		recall += atomic_load(&inst->links[i]->recall);
	}
	if (have < n)
		out[have++] = (struct ebb_stat){
			.name = "donors-up", .help = "Donors that are connected", .value = up};
	if (have < n)
		out[have] =
			(struct ebb_stat){.name = "recalled-bytes",
					  .help = "Memory that donors want back and have not yet",
					  .value = recall * WIRE_CHUNK_BYTES};
	return COUNTERS + 2;
}

__attribute__((visibility("default"))) const struct ebb_backend *ebb_backend_entry(void)
{
	static const struct ebb_backend backend = {
		.size = sizeof(backend),
		.abi_major = EBB_BACKEND_ABI_MAJOR,
		.abi_minor = EBB_BACKEND_ABI_MINOR,
		.caps = EBB_BACKEND_PERSISTENT | EBB_BACKEND_EXCLUSIVE,
		.name = "rdma",
		.description = "In the memory of other hosts, over RDMA",
		.option_help = option_help,
		.open = rdma_open,
		.close = rdma_close,
		.space_open = rdma_space_open,
		.space_close = rdma_space_close,
		.channel_open = rdma_channel_open,
		.channel_close = rdma_channel_close,
		.submit = rdma_submit,
		.poll = rdma_poll,
		.event_fd = rdma_event_fd,
		.free = rdma_free,
		.retain = rdma_retain,
		.quiesce = rdma_quiesce,
		.resume = rdma_resume,
		.usage = rdma_usage,
		.stats = rdma_stats,
		.config = rdma_config,
	};

	return &backend;
}
