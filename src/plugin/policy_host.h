/* SPDX-License-Identifier: BSD-3-Clause */
/* policy_host.h: the only way into a policy plugin: every call, checked and timed. */
#ifndef PLUGIN_POLICY_HOST_H
#define PLUGIN_POLICY_HOST_H

#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"
#include "base/hist.h"
#include "ebb/policy.h"
#include "plugin/plugin.h"

struct policy;		/* a loaded file */
struct policy_instance; /* one VM, one role */

/* Loads policies/<name>.so on path, or `file`. Gives *out. 0 or -errno with e filled. */
int policy_load(const struct plugin_path *path, const char *name, const char *file,
		struct policy **out, struct error *e);
/* No instance is left. NULL is fine. */
void policy_unload(struct policy *p);
const char *policy_name(const struct policy *p);
const char *policy_file(const struct policy *p);
const char *policy_description(const struct policy *p);
uint32_t policy_roles(const struct policy *p);
const char *const *policy_option_help(const struct policy *p);

/*
 * Makes an instance and configures it; all options are applied or the instance is not made. host
 * and vm must outlive it.
 */
int policy_attach(struct policy *p, const struct ebb_policy_host *host,
		  const struct ebb_policy_vm *vm, uint32_t role,
		  const struct ebb_policy_option *opts, uint32_t n_opts,
		  struct policy_instance **out, struct error *e);
void policy_detach(struct policy_instance *i);
struct policy *policy_of(const struct policy_instance *i);

/*
 * Hooks. Serial ones (all but policy_prefetch_fault) are called by one thread at a time: the
 * caller's job. Output ranges are clipped to the VM's units; absurd ones are dropped and counted.
 * An instance that overran its budget too often answers as the null policy does;
 * policy_failed() then tells why.
 */
int policy_config(struct policy_instance *i, const struct ebb_policy_option *opt, struct error *e);
void policy_on_resize(struct policy_instance *i, uint64_t units);
/* Fault path: bounded, no allocation. At most max ranges. */
uint32_t policy_prefetch_fault(struct policy_instance *i, const struct ebb_fault *f,
			       struct ebb_range *out, uint32_t max);
void policy_reclaim_fault(struct policy_instance *i, const struct ebb_fault *f);
bool policy_wants_faults(const struct policy_instance *i);
bool policy_wants_windows(const struct policy_instance *i);
bool policy_wants_evictions(const struct policy_instance *i);
void policy_on_limit(struct policy_instance *i, uint64_t old_bytes, uint64_t new_bytes);
void policy_on_access(struct policy_instance *i, const struct ebb_access_window *w);
uint32_t policy_pick_victims(struct policy_instance *i, uint64_t want, bool urgent,
			     struct ebb_range *out, uint32_t max);
void policy_on_outcome(struct policy_instance *i, uint32_t outcome, const uint64_t *units,
		       uint32_t n);
uint64_t policy_tick(struct policy_instance *i, uint64_t now_ns);
uint32_t policy_stats(struct policy_instance *i, struct ebb_policy_stat *out, uint32_t n);
int64_t policy_save(struct policy_instance *i, void *buf, uint64_t max);
int policy_restore(struct policy_instance *i, const void *buf, uint64_t bytes, uint32_t version);
uint32_t policy_state_version(const struct policy_instance *i);
/* Memory held for this instance: the wrapper's own, and what the policy reports. A serial hook. */
uint64_t policy_state_bytes(struct policy_instance *i);

/* NULL, or why this instance is put aside (static or instance-owned text). */
const char *policy_failed(const struct policy_instance *i);
/* Time spent in hooks, nanoseconds per call. */
const struct hist *policy_hook_time(const struct policy_instance *i);

#endif
