/* SPDX-License-Identifier: BSD-3-Clause */
/* policy_load.c: loading a policy's file and checking its descriptor. */
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "plugin/crashes.h"
#include "plugin/policy_host.h"
#include "plugin/policy_private.h"

#define ROLES_KNOWN ((uint32_t)(EBB_POLICY_RECLAIM | EBB_POLICY_PREFETCH))

static int check_roles(const struct ebb_policy *d, const char *what, struct error *e)
{
	if (!d->roles)
		return error_set(e, EINVAL, ERROR_ARGUMENT, "%s has no role", what);
	if (d->roles & ~ROLES_KNOWN)
		return error_set(e, EINVAL, ERROR_ARGUMENT, "%s has roles that are not known: %#x",
				 what, d->roles & ~ROLES_KNOWN);
	return 0;
}

static int check_callbacks(const struct ebb_policy *d, const char *what, struct error *e)
{
	const struct {
		bool needed, there;
		const char *name;
	} callbacks[] = {
		{true, d->attach, "attach"},
		{true, d->detach, "detach"},
		{d->roles & EBB_POLICY_RECLAIM, d->pick_victims, "pick_victims"},
		{d->roles & EBB_POLICY_PREFETCH, d->on_fault, "on_fault"},
		/* State that nobody can read back is a mistake of its author. */
		{d->save, d->restore, "restore"},
		{d->restore, d->save, "save"},
	};

	for (size_t c = 0; c < sizeof(callbacks) / sizeof(callbacks[0]); c++)
		if (callbacks[c].needed && !callbacks[c].there)
			return error_set(e, EINVAL, ERROR_ARGUMENT,
					 "%s lacks the callback %s that its roles need", what,
					 callbacks[c].name);
	return 0;
}

static int read_descriptor(struct policy *p, const struct ebb_policy *(*entry)(void),
			   struct error *e)
{
	const struct ebb_policy *theirs = entry();
	char what[PLUGIN_NAME_MAX + 16];
	int r;

	snprintf(what, sizeof(what), "policy %s", p->name);
	if (!theirs)
		return error_set(e, EINVAL, ERROR_ARGUMENT, "%s gives no descriptor", what);
	r = plugin_copy_descriptor(&p->desc, sizeof(p->desc), theirs, EBB_POLICY_ABI_MAJOR, what,
				   e);
	if (!r)
		r = check_roles(&p->desc, what, e);
	if (!r)
		r = check_callbacks(&p->desc, what, e);
	if (r)
		return r;
	snprintf(p->description, sizeof(p->description), "%s",
		 p->desc.description ? p->desc.description : "");
	return 0;
}

static int run_load(struct policy *p, struct error *e)
{
	CRASH_MARK(CRASH_POLICY, p->name, "load");
	char err[256] = "";
	int r = p->desc.load ? p->desc.load(err, sizeof(err)) : 0;

	err[sizeof(err) - 1] = '\0';
	if (!r)
		return 0;
	if (r > 0)
		r = -EINVAL;
	return error_set(e, -r, ERROR_GENERIC, "policy %s refused to load: %s", p->name,
			 err[0] ? err : error_text(r));
}

int policy_load(const struct plugin_path *path, const char *name, const char *file,
		struct policy **out, struct error *e)
{
	struct policy *p;
	Dl_info info;
	void *sym;
	int r;

	if (!plugin_name_valid(name))
		return error_set(e, EINVAL, ERROR_ARGUMENT, "not a name for a policy");
	p = calloc(1, sizeof(*p));
	if (!p)
		return error_set(e, ENOMEM, ERROR_GENERIC, "policy %s: out of memory", name);
	snprintf(p->name, sizeof(p->name), "%s", name);
	r = plugin_open(path, "policies", name, file, EBB_POLICY_ENTRY, &p->handle, &sym, e);
	if (r)
		goto out_free;
	if (dladdr(sym, &info) && info.dli_fname)
		snprintf(p->file, sizeof(p->file), "%s", info.dli_fname);
	r = read_descriptor(p, (const struct ebb_policy *(*)(void))sym, e);
	if (!r)
		r = run_load(p, e);
	if (r)
		goto out_close;
	*out = p;
	return 0;
out_close:
	dlclose(p->handle);
out_free:
	free(p);
	return r;
}

void policy_unload(struct policy *p)
{
	if (!p)
		return;
	crash_mark_set(CRASH_POLICY, p->name, "unload");
	if (p->desc.unload)
		p->desc.unload();
	crash_mark_set(CRASH_NONE, NULL, NULL);
	dlclose(p->handle);
	free(p);
}

const char *policy_name(const struct policy *p)
{
	return p->name;
}

const char *policy_file(const struct policy *p)
{
	return p->file;
}

const char *policy_description(const struct policy *p)
{
	return p->description;
}

uint32_t policy_roles(const struct policy *p)
{
	return p->desc.roles;
}

const char *const *policy_option_help(const struct policy *p)
{
	return p->desc.option_help;
}
