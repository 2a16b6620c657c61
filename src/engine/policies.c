/* SPDX-License-Identifier: BSD-3-Clause */
/* policies.c: loaded policies, and the instances that VMs have of them. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "engine/internal.h"

/* In place of a policy that daemons crashed in. */
#define STAND_IN "null"

static struct policy_slot *find(struct engine *eng, const char *name)
{
	for (struct policy_slot *s = eng->policies; s; s = s->next)
		if (strcmp(policy_name(s->policy), name) == 0)
			return s;
	return NULL;
}

/* Under engine.lock. */
static int load(struct engine *eng, const char *name, const char *file, struct policy_slot **out,
		struct error *e)
{
	struct policy_slot *s = calloc(1, sizeof(*s));
	int r;

	if (!s)
		return error_set(e, ENOMEM, ERROR_GENERIC, "out of memory");
	r = policy_load(eng->config.plugins, name, file, &s->policy, e);
	if (r) {
		free(s);
		return r;
	}
	s->next = eng->policies;
	eng->policies = s;
	*out = s;
	return 0;
}

int engine_policy_load(struct engine *eng, const char *name, const char *file, struct error *e)
{
	ENGINE_INSIDE(eng);
	struct policy_slot *s;
	int r;

	if (crashes_in_row(eng->config.crashes, CRASH_POLICY, name)) {
		char why[160];

		crashes_text(eng->config.crashes, CRASH_POLICY, name, why, sizeof(why));
		return error_set(e, EPERM, ERROR_GENERIC, "%s", why);
	}
	pthread_mutex_lock(&eng->lock);
	if (find(eng, name))
		r = error_set(e, EEXIST, ERROR_EXISTS, "policy %s is loaded already", name);
	else
		r = load(eng, name, file, &s, e);
	pthread_mutex_unlock(&eng->lock);
	return r;
}

void engine_policy_forgive(struct engine *eng, const char *name)
{
	crashes_forgive(eng->config.crashes, CRASH_POLICY, name);
}

int engine_policy_unload(struct engine *eng, const char *name, struct error *e)
{
	ENGINE_INSIDE(eng);
	struct policy_slot *s, **link;
	int r = 0;

	pthread_mutex_lock(&eng->lock);
	s = find(eng, name);
	if (!s) {
		r = error_set(e, ENOENT, ERROR_NOT_FOUND, "no policy %s is loaded", name);
	} else if (s->instances) {
		r = error_set(e, EBUSY, ERROR_BUSY, "policy %s is in use by %u VM roles", name,
			      s->instances);
	} else {
		for (link = &eng->policies; *link != s; link = &(*link)->next)
			;
		*link = s->next;
		policy_unload(s->policy);
		free(s);
	}
	pthread_mutex_unlock(&eng->lock);
	return r;
}

static void drop_instance(struct engine *eng, struct policy_instance *i)
{
	struct policy_slot *s;

	if (!i)
		return;
	pthread_mutex_lock(&eng->lock);
	s = find(eng, policy_name(policy_of(i)));
	policy_detach(i);
	if (s)
		s->instances--;
	pthread_mutex_unlock(&eng->lock);
}

static struct vm_policy *role_of(struct vm *vm, uint32_t role)
{
	return role == EBB_POLICY_RECLAIM ? &vm->reclaim : &vm->prefetch;
}

/*
 * Puts a new instance (or none) into a role; the old one ends when nobody can be in it. aside: why
 * it is not the one that was asked for, or "".
 */
static void replace(struct vm *vm, uint32_t role, struct policy_instance *i, const char *name,
		    const char *aside, json_t *options)
{
	struct vm_policy *p = role_of(vm, role);
	struct policy_instance *old;
	uint64_t limit = atomic_load(&vm->limit_bytes);

	/* A VM that is just being made has no limit yet: its maker may hold what comes before. */
	if (i && limit) {
		pthread_rwlock_rdlock(&vm->structure);
		pthread_mutex_lock(&vm->policy_lock);
		policy_on_limit(i, 0, limit);
		pthread_mutex_unlock(&vm->policy_lock);
		pthread_rwlock_unlock(&vm->structure);
	}
	pthread_mutex_lock(&vm->policy_lock);
	old = atomic_exchange(&p->instance, i);
	snprintf(p->name, sizeof(p->name), "%s", name);
	snprintf(p->aside, sizeof(p->aside), "%s", aside);
	json_decref(p->options);
	p->options = options;
	if (role == EBB_POLICY_RECLAIM)
		atomic_store(&vm->reclaim_wants_faults, i && policy_wants_faults(i));
	pthread_mutex_unlock(&vm->policy_lock);
	/* The prefetch hook runs on fault threads, without the lock. */
	if (old) {
		engine_barrier(vm->eng);
		drop_instance(vm->eng, old);
	}
}

int policies_give(struct vm *vm, uint32_t role, const char *name,
		  const struct ebb_policy_option *opts, uint32_t n_opts, struct error *e)
{
	struct engine *eng = vm->eng;
	struct vm_policy *p = role_of(vm, role);
	struct policy_instance *i;
	struct policy_slot *s;
	char aside[sizeof(p->aside)] = "";
	json_t *options;
	int r = 0;

	if (crashes_in_row(eng->config.crashes, CRASH_POLICY, name)) {
		crashes_text(eng->config.crashes, CRASH_POLICY, name, aside, sizeof(aside));
		engine_emit(eng, EVENT_POLICY_FAILED, vm->name, name, 0, "%s", aside);
		name = STAND_IN;
		n_opts = 0;
	}
	/* They stay as they are for the VM's life: instances keep pointers to them. */
	pthread_mutex_lock(&vm->policy_lock);
	if (!p->host.ctx)
		tracker_host_init(vm, p);
	p->self.units = atomic_load(&vm->units);
	pthread_mutex_unlock(&vm->policy_lock);

	pthread_mutex_lock(&eng->lock);
	s = find(eng, name);
	if (!s)
		r = load(eng, name, NULL, &s, e);
	if (!r)
		r = policy_attach(s->policy, &p->host, &p->self, role, opts, n_opts, &i, e);
	if (!r)
		s->instances++;
	pthread_mutex_unlock(&eng->lock);
	if (r)
		return r;
	options = json_object();
	for (uint32_t k = 0; k < n_opts; k++)
		json_object_set_new(options, opts[k].name, json_string(opts[k].value));
	replace(vm, role, i, name, aside, options);
	return 0;
}

int engine_policy_set(struct engine *eng, const char *vm_name, uint32_t role, const char *policy,
		      const struct ebb_policy_option *opts, uint32_t n_opts, struct error *e)
{
	ENGINE_INSIDE(eng);
	struct vm *vm = engine_vm_get(eng, vm_name);
	int r;

	if (!vm)
		return error_set(e, ENOENT, ERROR_NOT_FOUND, "no VM %s", vm_name);
	if (role != EBB_POLICY_RECLAIM && role != EBB_POLICY_PREFETCH)
		r = error_set(e, EINVAL, ERROR_ARGUMENT, "a role is reclaim or prefetch");
	else
		r = policies_give(vm, role, policy, opts, n_opts, e);
	vm_put(vm);
	return r;
}

void policies_default(struct engine *eng, struct vm *vm)
{
	struct error e;

	(void)eng;
	/* Without its policy a VM is still served: the engine's own sweep keeps its limit. */
	if (policies_give(vm, EBB_POLICY_RECLAIM, "clock", NULL, 0, &e))
		log_warning("VM %s runs without a reclaim policy: %s", vm->name, e.desc);
	if (policies_give(vm, EBB_POLICY_PREFETCH, "sequential", NULL, 0, &e))
		log_warning("VM %s runs without a prefetch policy: %s", vm->name, e.desc);
}

void policies_detach(struct vm *vm)
{
	drop_instance(vm->eng, atomic_exchange(&vm->reclaim.instance, NULL));
	drop_instance(vm->eng, atomic_exchange(&vm->prefetch.instance, NULL));
}

void policies_resize(struct vm *vm)
{
	uint64_t units = atomic_load(&vm->units);

	pthread_mutex_lock(&vm->policy_lock);
	if (atomic_load(&vm->reclaim.instance))
		policy_on_resize(atomic_load(&vm->reclaim.instance), units);
	if (atomic_load(&vm->prefetch.instance))
		policy_on_resize(atomic_load(&vm->prefetch.instance), units);
	pthread_mutex_unlock(&vm->policy_lock);
}

void policies_limit(struct vm *vm, uint64_t old_bytes, uint64_t new_bytes)
{
	/* Hooks may ask about blocks, and this is no engine thread. */
	pthread_rwlock_rdlock(&vm->structure);
	pthread_mutex_lock(&vm->policy_lock);
	if (atomic_load(&vm->reclaim.instance))
		policy_on_limit(atomic_load(&vm->reclaim.instance), old_bytes, new_bytes);
	if (atomic_load(&vm->prefetch.instance))
		policy_on_limit(atomic_load(&vm->prefetch.instance), old_bytes, new_bytes);
	pthread_mutex_unlock(&vm->policy_lock);
	pthread_rwlock_unlock(&vm->structure);
}

void policies_tick_prefetch(struct vm *vm)
{
	pthread_mutex_lock(&vm->policy_lock);
	if (atomic_load(&vm->prefetch.instance))
		policy_tick(atomic_load(&vm->prefetch.instance), clock_ns());
	pthread_mutex_unlock(&vm->policy_lock);
}

void policies_free(struct engine *eng)
{
	while (eng->policies) {
		struct policy_slot *s = eng->policies;

		eng->policies = s->next;
		policy_unload(s->policy);
		free(s);
	}
}

unsigned int engine_policy_info(struct engine *eng, struct policy_info *out, unsigned int max)
{
	unsigned int n = 0;

	pthread_mutex_lock(&eng->lock);
	for (struct policy_slot *s = eng->policies; s; s = s->next) {
		struct policy_info *i = &out[n];

		if (n++ >= max)
			continue;
		memset(i, 0, sizeof(*i));
		snprintf(i->name, sizeof(i->name), "%s", policy_name(s->policy));
		snprintf(i->file, sizeof(i->file), "%s", policy_file(s->policy));
		snprintf(i->description, sizeof(i->description), "%s",
			 policy_description(s->policy));
		i->roles = policy_roles(s->policy);
		i->instances = s->instances;
	}
	pthread_mutex_unlock(&eng->lock);
	return n;
}

int engine_policy_stats(struct engine *eng, const char *vm_name, uint32_t role,
			struct ebb_policy_stat *out, uint32_t n)
{
	struct vm *vm = engine_vm_get(eng, vm_name);
	struct policy_instance *i;
	int r = -ENOENT;

	if (!vm)
		return -ENOENT;
	pthread_mutex_lock(&vm->policy_lock);
	i = atomic_load(&role_of(vm, role)->instance);
	if (i)
		r = (int)policy_stats(i, out, n);
	pthread_mutex_unlock(&vm->policy_lock);
	vm_put(vm);
	return r;
}
