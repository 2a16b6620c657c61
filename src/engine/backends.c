/* SPDX-License-Identifier: BSD-3-Clause */
/* backends.c: the instances of backends, and each VM's space in them. */
#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "base/log.h"
#include "engine/internal.h"
#include "sys/procinfo.h"

/* A backend that had no room is not asked again for so long. */
#define FULL_PAUSE_NS (200 * NS_PER_MS)

/* What a backend gets as space_ctx: which VM and tier its memory belongs to. */
struct space_ctx {
	struct vm *vm;
	unsigned int tier;
};

static int store_name(const struct space_ctx *sc, const char *name, char *out, size_t bytes)
{
	int n = snprintf(out, bytes, "space:%s:%s", sc->vm->eng->slots[sc->tier].name, name);

	return n < 0 || (size_t)n >= bytes ? -ENAMETOOLONG : 0;
}

static int env_mem_open(void *ctx, void *space_ctx, const char *name, uint64_t max_bytes,
			void **addr, int *found)
{
	struct space_ctx *sc = space_ctx;
	struct store_memory *s;
	char full[64];
	bool was_there;
	int r = store_name(sc, name, full, sizeof(full));

	(void)ctx;
	if (!r)
		r = vm_store_open(sc->vm, full, max_bytes, &s, &was_there);
	if (r)
		return r;
	*addr = s->addr;
	*found = was_there;
	return 0;
}

static int env_mem_trim(void *ctx, void *space_ctx, const char *name, uint64_t offset,
			uint64_t bytes)
{
	struct space_ctx *sc = space_ctx;
	char full[64];
	int r = store_name(sc, name, full, sizeof(full));

	(void)ctx;
	return r ? r : vm_store_punch(sc->vm, full, offset, bytes);
}

void backends_init(struct engine *eng)
{
	eng->backend_env = (struct backend_env){
		.ctx = eng, .mem_open = env_mem_open, .mem_trim = env_mem_trim};
}

void backends_free(struct engine *eng)
{
	for (unsigned int t = 1; t < PE_TIERS; t++)
		backend_close(atomic_exchange(&eng->slots[t].backend, NULL));
}

/* The slot of that name; 0 when there is none. Under engine.lock. */
unsigned int backends_find(struct engine *eng, const char *name)
{
	for (unsigned int t = 1; t < PE_TIERS; t++)
		if (atomic_load(&eng->slots[t].backend) && strcmp(eng->slots[t].name, name) == 0)
			return t;
	return 0;
}

struct backend *backends_use(struct engine *eng, unsigned int tier)
{
	struct backend_slot *slot = &eng->slots[tier];
	struct backend *be;

	/* Counted first: whoever takes the backend away looks at the count after that. */
	atomic_fetch_add(&slot->users, 1);
	be = atomic_load(&slot->backend);
	if (!be)
		atomic_fetch_sub(&slot->users, 1);
	return be;
}

void backends_unuse(struct engine *eng, unsigned int tier)
{
	atomic_fetch_sub(&eng->slots[tier].users, 1);
}

/* A key that is not there yet (all zeroes) is drawn. */
static int space_key(uint8_t key[SPACE_KEY_BYTES])
{
	static const uint8_t none[SPACE_KEY_BYTES];

	if (memcmp(key, none, SPACE_KEY_BYTES) != 0)
		return 0;
	return getrandom(key, SPACE_KEY_BYTES, 0) == SPACE_KEY_BYTES ? 0 : -EIO;
}

static int open_space(struct backend *be, struct vm *vm, unsigned int tier)
{
	struct ebb_space_params params = {.size = sizeof(params), .vm_name = vm->name};
	struct backend_space *space;
	struct space_ctx *sc = malloc(sizeof(*sc));
	int r;

	if (!sc)
		return -ENOMEM;
	*sc = (struct space_ctx){vm, tier};
	params.unit_bytes = 4096;
	params.ram_bytes = vm->space_ram_bytes[tier]; /* what it was opened with, if it was */
	for (unsigned int i = 0; i < atomic_load(&vm->n_blocks) && !vm->space_ram_bytes[tier];
	     i++) {
		struct block *b = atomic_load(&vm->blocks[i]);

		params.ram_bytes += b ? b->bytes : 0;
	}
	params.space_ctx = sc;
	if (space_key(vm->space_key[tier])) {
		free(sc);
		return -EIO;
	}
	memcpy(params.key, vm->space_key[tier], sizeof(params.key));
	if (procinfo_start(vm->keeper_pid, &params.keeper_start) == 0)
		params.keeper_pid = (uint32_t)vm->keeper_pid;
	r = backend_space_open(be, &params, &space);
	explicit_bzero(params.key, sizeof(params.key));
	if (r) {
		explicit_bzero(vm->space_key[tier], SPACE_KEY_BYTES);
		free(sc);
		return r;
	}
	vm->space_ctx[tier] = sc;
	vm->space_ram_bytes[tier] = params.ram_bytes;
	atomic_store(&vm->spaces[tier], space);
	return 0;
}

int backends_space(struct vm *vm, unsigned int tier)
{
	struct backend *be;
	int r;

	/* Whoever drains it sets this first, and takes vm.lock before it looks at the VM. */
	if (atomic_load(&vm->eng->slots[tier].draining))
		return -EBUSY;
	if (atomic_load(&vm->spaces[tier]))
		return 0;
	be = backends_use(vm->eng, tier);
	if (!be)
		return -ENOENT;
	r = open_space(be, vm, tier);
	if (r)
		backends_unuse(vm->eng, tier);
	return r;
}

/* A space that vm.spaces does not name any more. */
static void close_space(struct vm *vm, unsigned int tier, struct backend_space *space)
{
	char prefix[64];
	size_t len;

	if (!space)
		return;
	backend_space_close(space);
	backends_unuse(vm->eng, tier);
	free(vm->space_ctx[tier]);
	vm->space_ctx[tier] = NULL;
	vm->space_ram_bytes[tier] = 0;
	explicit_bzero(vm->space_key[tier],
		       SPACE_KEY_BYTES); /* never again: see ebb_space_params */
	len = (size_t)snprintf(prefix, sizeof(prefix), "space:%s:", vm->eng->slots[tier].name);
	for (unsigned int i = vm->n_stores; i-- > 0;)
		if (strncmp(vm->stores[i].name, prefix, len) == 0)
			vm_store_close(vm, vm->stores[i].name);
}

void backends_close_spaces(struct vm *vm)
{
	for (unsigned int t = 1; t < PE_TIERS; t++)
		close_space(vm, t, atomic_exchange(&vm->spaces[t], NULL));
}

int backends_default_tiers(struct engine *eng, struct vm *vm)
{
	unsigned int t = backends_find(eng, "compressed");
	int r;

	if (t && atomic_load(&eng->slots[t].draining))
		t = 0;
	for (unsigned int i = 1; i < PE_TIERS && !t; i++)
		if (atomic_load(&eng->slots[i].backend) && !atomic_load(&eng->slots[i].draining))
			t = i;
	if (!t)
		return 0; /* nothing can be stored; zero pages still can be taken */
	r = backends_space(vm, t);
	if (r)
		return r == -EBUSY || r == -ENOENT ? 0 : r; /* it was removed just now */
	vm->tiers[0] = t;
	vm->n_tiers = 1;
	vm_tiers_changed(vm);
	return 0;
}

void backends_note_full(struct engine *eng, unsigned int tier, const char *vm)
{
	struct backend_slot *slot = &eng->slots[tier];
	uint64_t now = clock_ns(), was = atomic_exchange(&slot->full_until_ns, now + FULL_PAUSE_NS);

	demoter_kick(eng);
	if (now > was + 10 * NS_PER_S)
		engine_emit(eng, EVENT_BACKEND_FULL, vm, slot->name, 0, "backend %s has no room",
			    slot->name);
}

/* The first tier that has no backend; PE_TIERS when all have. */
static unsigned int free_tier(struct engine *eng)
{
	unsigned int t;

	for (t = 1; t < PE_TIERS; t++)
		if (!atomic_load(&eng->slots[t].backend) && !atomic_load(&eng->slots[t].draining))
			break;
	return t;
}

static json_t *options_json(const struct ebb_option *opts, uint32_t n)
{
	json_t *j = json_object();

	for (uint32_t i = 0; i < n; i++)
		json_object_set_new(j, opts[i].name, json_string(opts[i].value));
	return j;
}

int engine_backend_add(struct engine *eng, const char *name, const char *driver,
		       const struct ebb_option *opts, uint32_t n_opts, struct error *e)
{
	ENGINE_INSIDE(eng);

	return backends_add_at(eng, 0, name, driver, opts, n_opts, e);
}

int backends_add_at(struct engine *eng, unsigned int tier, const char *name, const char *driver,
		    const struct ebb_option *opts, uint32_t n_opts, struct error *e)
{
	struct backend *be;
	unsigned int t, crashed;
	char why[160];
	int r;

	if (!plugin_name_valid(name))
		return error_set(e, EINVAL, ERROR_ARGUMENT, "'%s' is no valid backend name", name);
	crashed = crashes_in_row(eng->config.crashes, CRASH_BACKEND, name);
	if (crashed)
		crashes_text(eng->config.crashes, CRASH_BACKEND, name, why, sizeof(why));
	if (crashed >= CRASHES_REFUSED)
		return error_set(e, EPERM, ERROR_GENERIC,
				 "%s; it is not opened, and what it holds waits", why);
	r = backend_open(eng->config.plugins, &eng->backend_env, name, driver, opts, n_opts, &be,
			 e);
	if (r)
		return r;
	pthread_mutex_lock(&eng->lock);
	t = tier && tier < PE_TIERS && !atomic_load(&eng->slots[tier].backend) ? tier
									       : free_tier(eng);
	if (backends_find(eng, name))
		r = error_set(e, EEXIST, ERROR_EXISTS, "there is a backend %s already", name);
	else if (t == PE_TIERS || (tier && t != tier))
		r = error_set(e, ENOSPC, ERROR_LIMIT, "no more than %d backends",
			      ENGINE_BACKENDS_MAX);
	if (r) {
		pthread_mutex_unlock(&eng->lock);
		backend_close(be);
		return r;
	}
	snprintf(eng->slots[t].name, sizeof(eng->slots[t].name), "%s", name);
	snprintf(eng->slots[t].driver, sizeof(eng->slots[t].driver), "%s", driver);
	json_decref(eng->slots[t].options);
	eng->slots[t].options = options_json(opts, n_opts);
	/* One that was put aside is read from, for what it holds; nothing more is stored in it. */
	atomic_store(&eng->slots[t].full_until_ns, crashed ? UINT64_MAX : 0);
	atomic_store(&eng->slots[t].failures, 0);
	atomic_store(&eng->slots[t].backend, be);
	pthread_mutex_unlock(&eng->lock);
	/* Every thread opens its channel as it passes. */
	engine_barrier(eng);
	log_info("backend %s (%s) added", name, driver);
	if (crashed)
		engine_emit(eng, EVENT_BACKEND_FAILED, "", name, 0, "%s; it is only read from",
			    why);
	return 0;
}

/*
 * What is evicted to this tier goes to the VM's other tiers, as far as they take it: those below it
 * first. 0 or -ECANCELED.
 */
static int move_away(struct mover *m, struct block *b, unsigned int tier, struct progress *p)
{
	unsigned int tiers[ENGINE_BACKENDS_MAX], to[ENGINE_BACKENDS_MAX], n_to = 0, n, at = 0;
	uint64_t units[MOVE_BATCH], unit = 0;

	n = vm_chain(b->vm, tiers);
	while (at < n && tiers[at] != tier)
		at++;
	for (unsigned int i = at + 1; i < n; i++)
		to[n_to++] = tiers[i];
	for (unsigned int i = 0; i < at; i++)
		to[n_to++] = tiers[i];
	while (n_to && unit < b->units && demote_allowed(b->vm)) {
		unsigned int k = 0;

		if (atomic_load(&p->cancel))
			return -ECANCELED;
		for (; unit < b->units && k < mover_batch(b); unit++) {
			uint64_t e = page_table_get(&b->table, unit);

			if (page_entry_state(e) == PE_EVICTED && page_entry_tier(e) == tier)
				units[k++] = unit;
		}
		if (k)
			k = mover_move(m, b, units, k, tier, to, n_to);
		atomic_fetch_add(&p->done, k * block_unit_bytes(b));
	}
	return 0;
}

/* Brings back everything of a VM that is in this tier; returns 0 or -errno. */
static int drain_block(struct loader *ld, struct block *b, unsigned int tier, struct progress *p)
{
	for (uint64_t u = 0; u < b->units; u++) {
		uint64_t e = page_table_get(&b->table, u);
		int r = 0;

		if (atomic_load(&p->cancel))
			return -ECANCELED;
		if (atomic_load(&b->vm->dead))
			return 0;
		if (page_entry_tier(e) != tier)
			continue;
		if (page_entry_state(e) == PE_RESIDENT || page_entry_state(e) == PE_PINNED) {
			/* A clean copy: forget it. */
			if (!page_table_cas(&b->table, u, &e,
					    page_entry_bare(page_entry_state(e)))) {
				u--; /* once more */
				continue;
			}
			if (!(e & PE_COPY))
				continue;
			atomic_fetch_sub(&b->vm->copies, (int64_t)block_unit_bytes(b));
			atomic_fetch_sub(&b->vm->tier_units[tier], (int64_t)block_unit_bytes(b));
			loader_free_handle(ld, b, tier, page_entry_handle(e));
			continue;
		}
		r = loader_bring_back(ld, b, u, false);
		if (r == -EBUSY || r == -EAGAIN || r == -ENOMEM) {
			usleep(1000);
			u--; /* once more */
			continue;
		}
		if (r == 1) {
			u--; /* somebody brought it back: is a copy left? */
			continue;
		}
		if (r < 0 && r != -EIO && r != -ESRCH)
			return r;
		atomic_fetch_add(&p->done, block_unit_bytes(b));
	}
	return 0;
}

static int drain_vm(struct engine *eng, struct vm *vm, unsigned int tier, struct progress *p)
{
	struct mover *m;
	int r = mover_new(eng, &m);

	if (r)
		return r;
	/* Whoever gives the VM this tier has done so by now, or sees that it is drained. */
	pthread_mutex_lock(&vm->lock);
	pthread_mutex_unlock(&vm->lock);
	pthread_rwlock_rdlock(&vm->structure);
	/* Another removal's move into this tier is through now, or sees it as well. */
	pthread_mutex_lock(&vm->move_lock);
	pthread_mutex_unlock(&vm->move_lock);
	for (unsigned int i = 0; i < atomic_load(&vm->n_blocks) && !r; i++) {
		struct block *b = atomic_load(&vm->blocks[i]);

		if (b)
			r = move_away(m, b, tier, p);
		if (b && !r)
			r = drain_block(mover_loader(m), b, tier, p);
	}
	loader_flush_frees(mover_loader(m));
	pthread_rwlock_unlock(&vm->structure);
	mover_free(m);
	return r;
}

/* Takes it off the VM's list. Only now: a removal that is given up leaves the VM its tier. */
static void drop_tier(struct vm *vm, unsigned int tier)
{
	for (unsigned int i = 0; i < vm->n_tiers; i++) {
		if (vm->tiers[i] != tier)
			continue;
		memmove(&vm->tiers[i], &vm->tiers[i + 1],
			(vm->n_tiers - i - 1) * sizeof(vm->tiers[0]));
		vm->n_tiers--;
	}
	atomic_store(&vm->tier_high[tier], 0);
	atomic_store(&vm->tier_low[tier], 0);
	vm_tiers_changed(vm);
}

/*
 * Takes a backend that holds nothing any more away from everybody, and closes it: unpublished, then
 * no thread is in its spaces or has handles to give back, then they go, and when the last channel
 * is closed the backend does.
 */
static void take_away(struct engine *eng, unsigned int t, struct vm **vms, unsigned int n)
{
	struct backend *be = atomic_exchange(&eng->slots[t].backend, NULL);
	struct backend_space *gone[ENGINE_VMS_MAX];

	for (unsigned int i = 0; i < n; i++) {
		pthread_mutex_lock(&vms[i]->op_lock);
		if (vms[i]->op_loader)
			loader_refresh(vms[i]->op_loader, 1);
		pthread_mutex_unlock(&vms[i]->op_lock);
		pthread_mutex_lock(&vms[i]->lock);
		drop_tier(vms[i], t);
		gone[i] = atomic_exchange(&vms[i]->spaces[t], NULL);
		pthread_mutex_unlock(&vms[i]->lock);
	}
	/* Twice: a thread may have looked at the slot before, and pass only now. */
	engine_barrier(eng);
	engine_barrier(eng);
	for (unsigned int i = 0; i < n; i++) {
		pthread_rwlock_wrlock(&vms[i]->structure);
		pthread_mutex_lock(&vms[i]->lock);
		close_space(vms[i], t, gone[i]);
		pthread_mutex_unlock(&vms[i]->lock);
		pthread_rwlock_unlock(&vms[i]->structure);
	}
	/* Jobs, and VMs that are just going. */
	while (atomic_load(&eng->slots[t].users))
		usleep(1000);
	/* Whoever lists the backends holds the lock. */
	pthread_mutex_lock(&eng->lock);
	pthread_mutex_unlock(&eng->lock);
	backend_close(be);
}

int engine_backend_remove(struct engine *eng, const char *name, struct progress *p, struct error *e)
{
	ENGINE_INSIDE(eng);
	struct vm **vms = calloc(ENGINE_VMS_MAX, sizeof(*vms));
	unsigned int t, n;
	int r = 0;

	if (!vms)
		return error_set(e, ENOMEM, ERROR_GENERIC, "out of memory");
	pthread_mutex_lock(&eng->lock);
	t = backends_find(eng, name);
	if (t && atomic_load(&eng->slots[t].draining))
		r = error_set(e, EBUSY, ERROR_BUSY, "backend %s is being removed already", name);
	else if (!t)
		r = error_set(e, ENOENT, ERROR_NOT_FOUND, "no backend %s", name);
	else
		atomic_store(&eng->slots[t].draining, true);
	pthread_mutex_unlock(&eng->lock);
	if (r) {
		free(vms);
		return r;
	}
	/* From here on nothing new is stored in it; what is on its way arrives before the pass. */
	engine_barrier(eng);
	n = engine_vms_get(eng, vms, ENGINE_VMS_MAX);
	for (unsigned int i = 0; i < n; i++)
		atomic_fetch_add(&p->total, (uint64_t)atomic_load(&vms[i]->tier_units[t]));
	for (unsigned int i = 0; i < n && !r; i++) {
		r = drain_vm(eng, vms[i], t, p);
		if (r)
			error_set(e, -r, r == -ECANCELED ? ERROR_CANCELLED : ERROR_GENERIC,
				  "VM %s: %s", vms[i]->name, error_text(r));
	}
	if (!r) {
		take_away(eng, t, vms, n);
		log_info("backend %s removed", name);
	}
	atomic_store(&eng->slots[t].draining, false);
	for (unsigned int i = 0; i < n; i++)
		vm_put(vms[i]);
	free(vms);
	return r;
}

unsigned int engine_backend_info(struct engine *eng, struct backend_info *out, unsigned int max)
{
	unsigned int n = 0;

	pthread_mutex_lock(&eng->lock);
	for (unsigned int t = 1; t < PE_TIERS; t++) {
		struct backend_slot *slot = &eng->slots[t];
		struct backend *be = atomic_load(&slot->backend);
		struct backend_info *i = &out[n];

		if (!be)
			continue;
		if (n++ >= max)
			continue;
		memset(i, 0, sizeof(*i));
		snprintf(i->name, sizeof(i->name), "%s", slot->name);
		snprintf(i->driver, sizeof(i->driver), "%s", slot->driver);
		snprintf(i->description, sizeof(i->description), "%s", backend_description(be));
		i->caps = backend_caps(be);
		backend_usage(be, NULL, &i->usage);
		i->n_stats = (unsigned int)backend_stats(be, i->stats, 32);
		if (i->n_stats > 32)
			i->n_stats = 32;
		for (struct vm *vm = eng->vms; vm; vm = vm->next)
			i->vms += atomic_load(&vm->spaces[t]) != NULL;
		snprintf(i->state, sizeof(i->state), "%s",
			 atomic_load(&slot->draining)			   ? "draining"
			 : atomic_load(&slot->full_until_ns) == UINT64_MAX ? "aside"
			 : clock_ns() < atomic_load(&slot->full_until_ns)  ? "full"
									   : "ready");
	}
	pthread_mutex_unlock(&eng->lock);
	return n;
}
