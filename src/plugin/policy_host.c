/* SPDX-License-Identifier: BSD-3-Clause */
/* policy_host.c: the only way into a policy plugin: every call, checked and timed. */
#include "plugin/policy_host.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

#include "plugin/crashes.h"
#include "plugin/policy_private.h"

/*
 * Theory of operation
 *
 * An instance is one policy for one VM in one role. Every hook goes through here: it is not called
 * at all when the plugin does not have it or was put aside, it is timed, and what it returns is
 * cut to what is sane. policy_load.c reads the file and checks the descriptor; policy_services.c
 * is the other direction, what the policy may ask of the engine.
 *
 * Put aside: each hook has a budget of time of its own (the engine's services that it calls are
 * not counted). A call over budget may be the scheduler's doing, so an instance fails only when
 * OVERRUNS_MAX of the last 64 calls of one hook overran; on the fault path, where the budget is
 * far shorter than a time slice, those after the first count only if the hook itself used the CPU
 * for so long, or went to sleep. From then on every hook answers as the
 * null policy does, which is always safe, and policy_failed() says why; the instance is kept until
 * the engine detaches it. Nothing here can protect from a hook that never returns or that writes
 * where it should not: a daemon that crashed in a policy again and again comes back without it
 * (crashes.c).
 *
 * Threads: serial hooks are called by one thread at a time, which is the caller's job.
 * policy_prefetch_fault() runs in fault threads, several at once, beside a serial hook of the same
 * instance. What both sides touch is atomic: units, wants, the overrun windows, the failed state
 * and the histogram. Fault threads never write service_ns.
 *
 * Ownership: the instance borrows the engine's host table and the vm description, and owns what
 * the plugin made in attach() until detach().
 */

#define OVERRUNS_MAX	    8
#define SERIAL_BUDGET_NS    (50 * NS_PER_MS)
#define FAULT_BUDGET_NS	    (20 * NS_PER_US)
#define PREEMPTED_BUDGET_NS (200 * NS_PER_US)
/* More than this on one fault is no reading ahead any more. */
#define PREFETCH_UNITS_MAX 1024
#define STATS_MAX	   256

enum failed_state { WORKING, FAILING, FAILED };

static const struct {
	const char *name;
	uint64_t budget_ns; /* 0: not bounded */
} hooks[] = {
	[HOOK_ATTACH] = {"attach", 0},
	[HOOK_CONFIG] = {"config", 0},
	[HOOK_WANTS] = {"wants", SERIAL_BUDGET_NS},
	[HOOK_RESIZE] = {"on_resize", 0},
	[HOOK_PREFETCH_FAULT] = {"on_fault", FAULT_BUDGET_NS},
	[HOOK_RECLAIM_FAULT] = {"on_fault", SERIAL_BUDGET_NS},
	[HOOK_ACCESS] = {"on_access", SERIAL_BUDGET_NS},
	[HOOK_PICK] = {"pick_victims", SERIAL_BUDGET_NS},
	[HOOK_OUTCOME] = {"on_outcome", SERIAL_BUDGET_NS},
	[HOOK_TICK] = {"tick", SERIAL_BUDGET_NS},
	[HOOK_STATS] = {"stats", SERIAL_BUDGET_NS},
	[HOOK_SAVE] = {"save", 0},
	[HOOK_RESTORE] = {"restore", 0},
	[HOOK_LIMIT] = {"on_limit", SERIAL_BUDGET_NS},
};
static_assert(sizeof(hooks) / sizeof(hooks[0]) == POLICY_HOOKS, "every hook has a budget");

static bool working(const struct policy_instance *i)
{
	return atomic_load_explicit(&i->failed, memory_order_relaxed) == WORKING;
}

static void put_aside(struct policy_instance *i, const char *hook, const char *what)
{
	int expected = WORKING;

	/* Two threads may find fault at once; the first one writes the text. */
	if (!atomic_compare_exchange_strong(&i->failed, &expected, FAILING))
		return;
	snprintf(i->why, sizeof(i->why), "policy %s put aside: %s %s", i->policy->name, hook, what);
	atomic_store_explicit(&i->failed, FAILED, memory_order_release);
}

static void note_time(struct policy_instance *i, enum policy_hook hook, uint64_t ns)
{
	bool over = hooks[hook].budget_ns && ns > hooks[hook].budget_ns;
	uint64_t old = atomic_load_explicit(&i->recent[hook], memory_order_relaxed);
	uint64_t new;
	char what[96];

	/* The common case on the fault path writes nothing that fault threads share. */
	if (!over && !old)
		return;
	do {
		new = old << 1 | over;
	} while (!atomic_compare_exchange_weak_explicit(
		&i->recent[hook], &old, new, memory_order_relaxed, memory_order_relaxed));
	if (!over || __builtin_popcountll(new) < OVERRUNS_MAX)
		return;
	snprintf(what, sizeof(what),
		 "overran its budget of %llu us %d times in 64 calls, last with %llu us",
		 (unsigned long long)(hooks[hook].budget_ns / NS_PER_US), OVERRUNS_MAX,
		 (unsigned long long)(ns / NS_PER_US));
	put_aside(i, hooks[hook].name, what);
}

static uint64_t hook_begin(struct policy_instance *i, enum policy_hook hook)
{
	i->service_ns = 0;
	crash_mark_set(CRASH_POLICY, i->policy->name, hooks[hook].name);
	return clock_ns();
}

static void hook_end(struct policy_instance *i, enum policy_hook hook, uint64_t begin_ns)
{
	uint64_t ns = clock_ns() - begin_ns;

	crash_mark_set(CRASH_NONE, NULL, NULL);
	ns -= ns < i->service_ns ? ns : i->service_ns;
	hist_record(&i->time, ns);
	note_time(i, hook, ns);
}

/* What the calling thread did itself, however long it was kept from running. */
struct own_time {
	uint64_t cpu_ns;
	long sleeps, preemptions;
};

static struct own_time own_time(void)
{
	struct rusage u;

	getrusage(RUSAGE_THREAD, &u);
	return (struct own_time){
		.cpu_ns = clock_thread_cpu_ns(), .sleeps = u.ru_nvcsw, .preemptions = u.ru_nivcsw};
}

/* Two system calls: only for an instance that is under suspicion. */
static bool was_kept_waiting(const struct own_time *before)
{
	struct own_time now = own_time();
	uint64_t allowed_ns = FAULT_BUDGET_NS;

	/* To lose the CPU and come back to cold caches is charged to the thread, too. */
	if (now.preemptions != before->preemptions)
		allowed_ns = PREEMPTED_BUDGET_NS;
	return now.sleeps == before->sleeps && now.cpu_ns - before->cpu_ns <= allowed_ns;
}

/*
 * Cuts ranges to the VM and to units_max units in all; returns how many are left, packed to the
 * front. Counts those dropped (outside, empty, or beyond max) and those shortened.
 */
static uint32_t clip(struct policy_instance *i, struct ebb_range *out, uint32_t n, uint32_t max,
		     uint64_t units_max)
{
	uint64_t units = atomic_load_explicit(&i->units, memory_order_relaxed);
	uint64_t dropped = 0, clipped = 0;
	uint32_t kept = 0;

	if (n > max) {
		dropped += n - max;
		n = max;
	}
	for (uint32_t k = 0; k < n; k++) {
		struct ebb_range r = out[k];
		uint64_t room;

		if (!r.count || r.first >= units || !units_max) {
			dropped++;
			continue;
		}
		room = units - r.first < units_max ? units - r.first : units_max;
		if (r.count > room) {
			r.count = room;
			clipped++;
		}
		units_max -= r.count;
		out[kept++] = r;
	}
	if (dropped)
		atomic_fetch_add_explicit(&i->ranges_dropped, dropped, memory_order_relaxed);
	if (clipped)
		atomic_fetch_add_explicit(&i->ranges_clipped, clipped, memory_order_relaxed);
	return kept;
}

/* ---- making and ending instances ---- */

static void ask_wants(struct policy_instance *i)
{
	uint32_t wants = EBB_POLICY_WANT_FAULTS | EBB_POLICY_WANT_WINDOWS;
	const struct ebb_policy *d = &i->policy->desc;
	uint64_t begin;

	if (d->wants) {
		begin = hook_begin(i, HOOK_WANTS);
		wants = d->wants(i->data);
		hook_end(i, HOOK_WANTS, begin);
	}
	if (!d->on_fault)
		wants &= ~(uint32_t)EBB_POLICY_WANT_FAULTS;
	if (!d->on_access)
		wants &= ~(uint32_t)EBB_POLICY_WANT_WINDOWS;
	atomic_store_explicit(&i->wants, wants, memory_order_relaxed);
}

static int unknown_option(const struct policy *p, const char *name, struct error *e)
{
	char known[256] = "";
	size_t used = 0;

	for (const char *const *help = p->desc.option_help; help && *help; help++) {
		int len = (int)strcspn(*help, ":");

		if (used + (size_t)len + 3 > sizeof(known))
			break;
		used += (size_t)snprintf(known + used, sizeof(known) - used, "%s%.*s",
					 used ? ", " : "", len, *help);
	}
	return error_set(e, ENOENT, ERROR_ARGUMENT, "policy %s has no option '%.64s'; it has: %s",
			 p->name, name, used ? known : "none");
}

static int config_one(struct policy_instance *i, const struct ebb_policy_option *opt,
		      struct error *e)
{
	const struct policy *p = i->policy;
	char err[256] = "";
	uint64_t begin;
	int r;

	if (!opt->name || !opt->value)
		return error_set(e, EINVAL, ERROR_ARGUMENT,
				 "policy %s: an option needs a name and a value", p->name);
	if (!p->desc.config)
		return unknown_option(p, opt->name, e);
	begin = hook_begin(i, HOOK_CONFIG);
	r = p->desc.config(i->data, opt, err, sizeof(err));
	hook_end(i, HOOK_CONFIG, begin);
	err[sizeof(err) - 1] = '\0';
	if (!r)
		return 0;
	if (r == -ENOENT)
		return unknown_option(p, opt->name, e);
	return error_set(e, r < 0 ? -r : EINVAL, ERROR_ARGUMENT,
			 "policy %s: option '%.64s' cannot be '%.64s': %s", p->name, opt->name,
			 opt->value, err[0] ? err : error_text(r < 0 ? r : EINVAL));
}

static int start(struct policy_instance *i, const struct ebb_policy_vm *vm, struct error *e)
{
	const struct policy *p = i->policy;
	char err[256] = "";
	uint64_t begin = hook_begin(i, HOOK_ATTACH);
	int r = p->desc.attach(&i->services, vm, i->role, &i->data, err, sizeof(err));

	hook_end(i, HOOK_ATTACH, begin);
	err[sizeof(err) - 1] = '\0';
	if (!r)
		return 0;
	return error_set(e, r < 0 ? -r : EINVAL, ERROR_GENERIC, "policy %s cannot serve VM %s: %s",
			 p->name, vm->name, err[0] ? err : error_text(r < 0 ? r : EINVAL));
}

int policy_attach(struct policy *p, const struct ebb_policy_host *host,
		  const struct ebb_policy_vm *vm, uint32_t role,
		  const struct ebb_policy_option *opts, uint32_t n_opts,
		  struct policy_instance **out, struct error *e)
{
	struct policy_instance *i;
	int r;

	if (role != EBB_POLICY_RECLAIM && role != EBB_POLICY_PREFETCH)
		return error_set(e, EINVAL, ERROR_ARGUMENT, "%#x is not one role", role);
	if (!(p->desc.roles & role))
		return error_set(e, EINVAL, ERROR_ARGUMENT, "policy %s does not have the role %s",
				 p->name, role == EBB_POLICY_RECLAIM ? "reclaim" : "prefetch");
	i = calloc(1, sizeof(*i));
	if (!i)
		return error_set(e, ENOMEM, ERROR_GENERIC, "policy %s: out of memory", p->name);
	i->policy = p;
	i->role = role;
	i->host = host;
	atomic_init(&i->units, vm->units);
	policy_services_init(i);
	r = start(i, vm, e);
	if (r) {
		free(i);
		return r;
	}
	for (uint32_t k = 0; k < n_opts; k++) {
		r = config_one(i, &opts[k], e);
		if (r) {
			policy_detach(i);
			return r;
		}
	}
	ask_wants(i);
	*out = i;
	return 0;
}

void policy_detach(struct policy_instance *i)
{
	if (!i)
		return;
	crash_mark_set(CRASH_POLICY, i->policy->name, "detach");
	i->policy->desc.detach(i->data);
	crash_mark_set(CRASH_NONE, NULL, NULL);
	free(i);
}

struct policy *policy_of(const struct policy_instance *i)
{
	return i->policy;
}

int policy_config(struct policy_instance *i, const struct ebb_policy_option *opt, struct error *e)
{
	int r;

	if (!working(i))
		return error_set(e, EIO, ERROR_GENERIC, "policy %s was put aside", i->policy->name);
	r = config_one(i, opt, e);
	if (!r)
		ask_wants(i);
	return r;
}

/* ---- hooks ---- */

void policy_on_resize(struct policy_instance *i, uint64_t units)
{
	const struct ebb_policy *d = &i->policy->desc;
	uint64_t begin;
	int r;

	/* The plugin may name new units at once, but must not be asked about them before. */
	if (working(i) && d->on_resize) {
		begin = hook_begin(i, HOOK_RESIZE);
		r = d->on_resize(i->data, units);
		hook_end(i, HOOK_RESIZE, begin);
		if (r)
			put_aside(i, "on_resize", error_text(r));
	}
	atomic_store_explicit(&i->units, units, memory_order_relaxed);
}

uint32_t policy_prefetch_fault(struct policy_instance *i, const struct ebb_fault *f,
			       struct ebb_range *out, uint32_t max)
{
	struct own_time before = {0};
	uint64_t begin, ns;
	bool suspect;
	uint32_t n;

	if (!max || !policy_wants_faults(i))
		return 0;
	suspect = atomic_load_explicit(&i->recent[HOOK_PREFETCH_FAULT], memory_order_relaxed);
	if (suspect)
		before = own_time();
	begin = clock_ns();
	policy_on_fault_path = true;
	crash_mark_set(CRASH_POLICY, i->policy->name, "on_fault");
	n = i->policy->desc.on_fault(i->data, f, out, max);
	crash_mark_set(CRASH_NONE, NULL, NULL);
	policy_on_fault_path = false;
	ns = clock_ns() - begin;
	hist_record(&i->time, ns);
	if (suspect && ns > FAULT_BUDGET_NS && was_kept_waiting(&before))
		ns = FAULT_BUDGET_NS;
	note_time(i, HOOK_PREFETCH_FAULT, ns);
	return clip(i, out, n, max, PREFETCH_UNITS_MAX);
}

void policy_reclaim_fault(struct policy_instance *i, const struct ebb_fault *f)
{
	uint64_t begin;

	if (!policy_wants_faults(i))
		return;
	begin = hook_begin(i, HOOK_RECLAIM_FAULT);
	i->policy->desc.on_fault(i->data, f, NULL, 0);
	hook_end(i, HOOK_RECLAIM_FAULT, begin);
}

bool policy_wants_faults(const struct policy_instance *i)
{
	return working(i) &&
	       atomic_load_explicit(&i->wants, memory_order_relaxed) & EBB_POLICY_WANT_FAULTS;
}

bool policy_wants_windows(const struct policy_instance *i)
{
	return working(i) &&
	       atomic_load_explicit(&i->wants, memory_order_relaxed) & EBB_POLICY_WANT_WINDOWS;
}

bool policy_wants_evictions(const struct policy_instance *i)
{
	return working(i) &&
	       atomic_load_explicit(&i->wants, memory_order_relaxed) & EBB_POLICY_WANT_EVICTIONS;
}

void policy_on_limit(struct policy_instance *i, uint64_t old_bytes, uint64_t new_bytes)
{
	const struct ebb_limit limit = {
		.size = sizeof(limit), .old_bytes = old_bytes, .new_bytes = new_bytes};
	uint64_t begin;

	if (!working(i) || !i->policy->desc.on_limit)
		return;
	begin = hook_begin(i, HOOK_LIMIT);
	i->policy->desc.on_limit(i->data, &limit);
	hook_end(i, HOOK_LIMIT, begin);
}

void policy_on_access(struct policy_instance *i, const struct ebb_access_window *w)
{
	uint64_t begin;

	if (!policy_wants_windows(i))
		return;
	begin = hook_begin(i, HOOK_ACCESS);
	i->policy->desc.on_access(i->data, w);
	hook_end(i, HOOK_ACCESS, begin);
}

uint32_t policy_pick_victims(struct policy_instance *i, uint64_t want, bool urgent,
			     struct ebb_range *out, uint32_t max)
{
	uint64_t begin;
	uint32_t n;

	if (!working(i) || !i->policy->desc.pick_victims || !want || !max)
		return 0;
	begin = hook_begin(i, HOOK_PICK);
	n = i->policy->desc.pick_victims(i->data, want, urgent, out, max);
	hook_end(i, HOOK_PICK, begin);
	/* "About want": a whole extent may be named for a part of it, all of the VM may not. */
	return clip(i, out, n, max, want > UINT64_MAX / 2 ? UINT64_MAX : 2 * want);
}

void policy_on_outcome(struct policy_instance *i, uint32_t outcome, const uint64_t *units,
		       uint32_t n)
{
	uint64_t begin;

	if (!working(i) || !i->policy->desc.on_outcome || !n)
		return;
	begin = hook_begin(i, HOOK_OUTCOME);
	i->policy->desc.on_outcome(i->data, outcome, units, n);
	hook_end(i, HOOK_OUTCOME, begin);
}

uint64_t policy_tick(struct policy_instance *i, uint64_t now_ns)
{
	uint64_t units = atomic_load_explicit(&i->units, memory_order_relaxed);
	uint64_t begin, n;

	if (!working(i) || !i->policy->desc.tick)
		return 0;
	begin = hook_begin(i, HOOK_TICK);
	n = i->policy->desc.tick(i->data, now_ns);
	hook_end(i, HOOK_TICK, begin);
	return n < units ? n : units;
}

uint32_t policy_stats(struct policy_instance *i, struct ebb_policy_stat *out, uint32_t n)
{
	const struct ebb_policy_stat ours[] = {
		{"ranges-dropped",
		 "Ranges named outside of the VM, empty, or beyond the room given",
		 atomic_load(&i->ranges_dropped), 1, 0},
		{"ranges-clipped", "Ranges named that were cut to the VM or to what was asked for",
		 atomic_load(&i->ranges_clipped), 1, 0},
	};
	uint32_t theirs = 0, named = 0;
	uint64_t begin;

	/* A plugin that claims more than it filled in must not make us follow stray pointers. */
	if (n)
		memset(out, 0, n * sizeof(*out));
	if (working(i) && i->policy->desc.stats) {
		begin = hook_begin(i, HOOK_STATS);
		theirs = i->policy->desc.stats(i->data, out, n);
		hook_end(i, HOOK_STATS, begin);
	}
	if (theirs > STATS_MAX)
		theirs = STATS_MAX;
	/* One without a name would break those who print it. */
	for (uint32_t k = 0; k < theirs && k < n; k++)
		if (out[k].name) {
			out[named] = out[k];
			if (!out[named].help)
				out[named].help = "";
			named++;
		}
	for (uint32_t k = 0; k < sizeof(ours) / sizeof(ours[0]); k++, named++)
		if (named < n)
			out[named] = ours[k];
	return named + (theirs > n ? theirs - n : 0);
}

int64_t policy_save(struct policy_instance *i, void *buf, uint64_t max)
{
	uint64_t begin;
	int64_t n;

	if (!working(i) || !i->policy->desc.save)
		return 0;
	begin = hook_begin(i, HOOK_SAVE);
	n = i->policy->desc.save(i->data, buf, max);
	hook_end(i, HOOK_SAVE, begin);
	return n > 0 && (uint64_t)n > max ? -EOVERFLOW : n;
}

int policy_restore(struct policy_instance *i, const void *buf, uint64_t bytes, uint32_t version)
{
	uint64_t begin;
	int r;

	if (!working(i) || !i->policy->desc.restore)
		return -ENOTSUP;
	if (version != i->policy->desc.state_version)
		return -EPROTO;
	begin = hook_begin(i, HOOK_RESTORE);
	r = i->policy->desc.restore(i->data, buf, bytes);
	hook_end(i, HOOK_RESTORE, begin);
	return r > 0 ? -EINVAL : r;
}

uint32_t policy_state_version(const struct policy_instance *i)
{
	return i->policy->desc.state_version;
}

uint64_t policy_state_bytes(struct policy_instance *i)
{
	struct ebb_policy_stat stats[64];
	uint32_t n = policy_stats(i, stats, 64);
	uint64_t bytes = sizeof(*i);

	for (uint32_t k = 0; k < n && k < 64; k++)
		if (strcmp(stats[k].name, EBB_POLICY_STAT_STATE_BYTES) == 0)
			bytes += stats[k].value;
	return bytes;
}

const char *policy_failed(const struct policy_instance *i)
{
	return atomic_load_explicit(&i->failed, memory_order_acquire) == FAILED ? i->why : NULL;
}

const struct hist *policy_hook_time(const struct policy_instance *i)
{
	return &i->time;
}
