/* SPDX-License-Identifier: BSD-3-Clause */
/* policy_private.h: what the files of the policy wrapper share among themselves. */
#ifndef PLUGIN_POLICY_PRIVATE_H
#define PLUGIN_POLICY_PRIVATE_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/clock.h"
#include "base/hist.h"
#include "ebb/policy.h"
#include "plugin/plugin.h"

struct policy {
	void *handle;		/* of dlopen */
	struct ebb_policy desc; /* our copy, zero-filled behind what the plugin has */
	char name[PLUGIN_NAME_MAX];
	char file[256];
	char description[160];
};

enum policy_hook {
	HOOK_ATTACH,
	HOOK_CONFIG,
	HOOK_WANTS,
	HOOK_RESIZE,
	HOOK_PREFETCH_FAULT,
	HOOK_RECLAIM_FAULT,
	HOOK_ACCESS,
	HOOK_PICK,
	HOOK_OUTCOME,
	HOOK_TICK,
	HOOK_STATS,
	HOOK_SAVE,
	HOOK_RESTORE,
	HOOK_LIMIT,
	POLICY_HOOKS,
};

struct policy_instance {
	struct policy *policy;
	void *data; /* the plugin's */
	uint32_t role;
	const struct ebb_policy_host *host; /* the engine's table */
	struct ebb_policy_host services;    /* what the plugin sees; ctx is this instance */
	_Atomic uint64_t units;
	_Atomic uint32_t wants;
	uint64_t service_ns; /* spent in the engine's services within the serial hook under way */
	_Atomic uint64_t recent[POLICY_HOOKS]; /* one bit a call, newest lowest: 1 = overran */
	_Atomic uint64_t ranges_dropped, ranges_clipped;
	_Atomic int failed; /* enum failed_state */
	char why[160];	    /* written once, before failed says FAILED */
	struct hist time;
};

/*
 * True while the calling thread is inside on_fault of the prefetch role. Thread-local, as the crash
 * mark is: which services may be called is a property of the thread, and the plugin passes us
 * nothing that tells the fault threads from the serial one.
 */
extern _Thread_local bool policy_on_fault_path;

/* Fills i->services with checked and timed stand-ins for i->host's functions. */
void policy_services_init(struct policy_instance *i);

#endif
