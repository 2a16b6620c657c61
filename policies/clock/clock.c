/* SPDX-License-Identifier: BSD-3-Clause */
/* clock.c: the default reclaimer: a two-handed clock over what is resident. */
#include "clock.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/*
 * Theory of operation
 *
 * Two hands go round the units of the VM. The front hand makes the host forget that the units it
 * passes were accessed; the back hand follows at a distance, asks who was accessed since, and
 * names the others. The way between the hands is the time in which a page can prove that it is in
 * use. (The two-handed clock is that of 4.3BSD: McKusick et al., The Design and Implementation of
 * the 4.3BSD UNIX Operating System, chapter 5.)
 *
 * - hands.c has the hands. They move only when victims are asked for, so the cost is in proportion
 *   to the demand. The distance is a part of what is resident, a quarter to begin with, and adapts
 *   so that the back hand finds neither nearly all nor nearly nothing in use.
 * - A unit found in use time and again is cleared ever less often, because each clearing costs the
 *   guest a fault. It is also forgiven one idle round.
 * - Urgent: whatever happens, something is named as long as anything is resident. First what the
 *   back hand finds, however short its chance was, then the sweep: in the order of addresses, the
 *   less often seen in use the sooner.
 * - Memory without a tracker: only the sweep. Where all is so, a fault makes a unit young (second
 *   chance).
 * - idle.c has proactive reclaim, which is off by default: units idle for idle-age go though no
 *   limit asks for it. Only this needs access windows.
 *
 * Invariants: the spans cover [back hand, front hand) without a gap or an overlap, and lead is
 * their length; the back hand examines only units that are CLEARED. A unit that goes (discarded,
 * evicted by another way) keeps the mark until the back hand comes by and drops it. State is one
 * byte per unit (0.024 % of RAM with 4 KiB units) and a fixed 4.5 KiB.
 *
 * Threads: all hooks are serial; there is no lock. Owns its state only.
 */

#define CHANCE_MS_DEFAULT   50
#define IDLE_AGE_S_DEFAULT  120
#define DISTANCE_DEFAULT    250 /* permille */
#define RETRY_TRACKER_CALLS 64
#define NS_PER_MS	    UINT64_C(1000000)
#define NS_PER_S	    UINT64_C(1000000000)

static const char *const option_help[] = {
	"distance: how far the hands are apart, in percent of what is resident (1-90), or auto",
	"chance-ms: the least time a page gets to prove that it is in use (0-60000), default 50",
	"back-off: on or off: look at steadily hot units ever less often (default on)",
	"proactive: on or off: evict what is idle although no limit asks for it (default off)",
	"idle-age: seconds without an access after which a unit is idle (1-86400), default 120",
	NULL,
};

static int clock_attach(const struct ebb_policy_host *host, const struct ebb_policy_vm *vm,
			uint32_t role, void **instance, char *err, uint64_t err_len)
{
	struct clock *c = calloc(1, sizeof(*c));

	if (!c)
		return -ENOMEM;
	c->allocated = vm->units ? vm->units : 1;
	c->state = calloc(c->allocated, 1);
	if (!c->state) {
		snprintf(err, err_len, "no memory for %llu bytes of state",
			 (unsigned long long)c->allocated);
		free(c);
		return -ENOMEM;
	}
	c->host = host;
	c->units = vm->units;
	c->random = vm->seed | 1;
	hands_place(c, vm->seed);
	c->distance_permille = DISTANCE_DEFAULT;
	c->chance_ns = CHANCE_MS_DEFAULT * NS_PER_MS;
	c->idle_age_ns = IDLE_AGE_S_DEFAULT * NS_PER_S;
	c->back_off = true;
	*instance = c;
	return 0;
}

static void clock_detach(void *instance)
{
	struct clock *c = instance;

	free(c->state);
	free(c);
}

static int clock_on_resize(void *instance, uint64_t units)
{
	struct clock *c = instance;
	uint8_t *state;

	if (units > c->allocated) {
		state = realloc(c->state, units);
		if (!state)
			return -ENOMEM;
		memset(state + c->allocated, 0, units - c->allocated);
		c->state = state;
		c->allocated = units;
	}
	if (units < c->units) {
		hands_reset(c);
		memset(c->state, 0, c->allocated);
		c->idle_units = 0;
		c->idle_hand = 0;
	}
	c->units = units;
	return 0;
}

/* ---- options ---- */

static int parse_number(const char *value, uint64_t min, uint64_t max, uint64_t *out, char *err,
			uint64_t err_len)
{
	char *end;
	unsigned long long n;

	errno = 0;
	n = strtoull(value, &end, 10);
	if (value[0] < '0' || value[0] > '9' || *end || errno || n < min || n > max) {
		snprintf(err, err_len, "it must be a number from %llu to %llu",
			 (unsigned long long)min, (unsigned long long)max);
		return -EINVAL;
	}
	*out = n;
	return 0;
}

static int parse_switch(const char *value, bool *out, char *err, uint64_t err_len)
{
	if (strcmp(value, "on") && strcmp(value, "off")) {
		snprintf(err, err_len, "it must be on or off");
		return -EINVAL;
	}
	*out = value[1] == 'n';
	return 0;
}

static int config_distance(struct clock *c, const char *value, char *err, uint64_t err_len)
{
	uint64_t n = 0;
	int r = strcmp(value, "auto") ? parse_number(value, 1, 90, &n, err, err_len) : 0;

	if (r)
		return r;
	c->distance_percent = (uint32_t)n;
	return 0;
}

static int clock_config(void *instance, const struct ebb_policy_option *opt, char *err,
			uint64_t err_len)
{
	struct clock *c = instance;
	uint64_t n;
	int r;

	if (strcmp(opt->name, "distance") == 0)
		return config_distance(c, opt->value, err, err_len);
	if (strcmp(opt->name, "back-off") == 0)
		return parse_switch(opt->value, &c->back_off, err, err_len);
	if (strcmp(opt->name, "chance-ms") == 0) {
		r = parse_number(opt->value, 0, 60000, &n, err, err_len);
		if (!r)
			c->chance_ns = n * NS_PER_MS;
		return r;
	}
	if (strcmp(opt->name, "idle-age") == 0) {
		r = parse_number(opt->value, 1, 86400, &n, err, err_len);
		if (!r)
			c->idle_age_ns = n * NS_PER_S;
		return r;
	}
	if (strcmp(opt->name, "proactive") == 0) {
		r = parse_switch(opt->value, &c->proactive, err, err_len);
		if (!r && !c->proactive)
			idle_reset(c);
		return r;
	}
	return -ENOENT;
}

/* ---- what happens to units ---- */

static uint32_t clock_on_fault(void *instance, const struct ebb_fault *fault, struct ebb_range *out,
			       uint32_t max)
{
	struct clock *c = instance;
	uint8_t *s;

	if (fault->unit >= c->units)
		return 0;
	idle_forget(c, fault->unit);
	s = &c->state[fault->unit];
	/* Without a tracker, a fault is the only sign of life there is. */
	if (c->blind && !(*s & STATE_LEVEL))
		*s |= 1;
	return 0;
}

static void clock_on_access(void *instance, const struct ebb_access_window *window)
{
	struct clock *c = instance;

	if (c->proactive)
		idle_window(c, window);
}

static void clock_on_outcome(void *instance, uint32_t outcome, const uint64_t *units, uint32_t n)
{
	struct clock *c = instance;

	if (outcome != EBB_OUTCOME_REFAULT && outcome != EBB_OUTCOME_CANCELLED)
		return;
	for (uint32_t k = 0; k < n; k++) {
		uint8_t *s;

		if (units[k] >= c->units)
			continue;
		s = &c->state[units[k]];
		if (outcome == EBB_OUTCOME_REFAULT) {
			c->refaults++;
			*s = (uint8_t)((*s & ~STATE_LEVEL) | LEVEL_REFAULT);
		} else if (!(*s & STATE_LEVEL)) {
			*s |= 1;
		}
	}
}

static uint32_t clock_pick_victims(void *instance, uint64_t want, int urgent, struct ebb_range *out,
				   uint32_t max)
{
	struct clock *c = instance;
	struct pick p = {.out = out, .max = max, .want = want};

	if (!c->units || !out || !max)
		return 0;
	if (want > c->units)
		p.want = c->units;
	idle_pick(c, &p);
	if (p.found == p.want)
		goto done; /* what is idle costs no look at anything else */
	if (c->blind && ++c->blind_calls % RETRY_TRACKER_CALLS == 0)
		c->blind = false; /* it may have a tracker by now */
	if (!c->blind) {
		hands_back(c, &p, urgent);
		hands_front(c, 4 * p.want + CHUNK_UNITS / 4);
	}
	if (p.found < p.want && p.n < max && (c->blind || urgent)) {
		uint64_t before = p.found;

		hands_sweep(c, &p);
		c->urgent_picks += p.found - before;
	}
done:
	pick_done(c, &p);
	c->picked += p.found;
	return p.n;
}

static uint64_t clock_tick(void *instance, uint64_t now_ns)
{
	struct clock *c = instance;

	/* Exactly what is there: more wanted than idle would be taken from what is merely cold. */
	return c->proactive ? idle_count(c) : 0;
}

static uint32_t clock_wants(void *instance)
{
	const struct clock *c = instance;

	return EBB_POLICY_WANT_FAULTS | (c->proactive ? EBB_POLICY_WANT_WINDOWS : 0);
}

static uint32_t clock_stats(void *instance, struct ebb_policy_stat *out, uint32_t n)
{
	const struct clock *c = instance;
	const struct ebb_policy_stat stats[] = {
		{"scanned", "Units examined by the back hand", c->scanned, 1, 0},
		{"cleared", "Units whose accesses the front hand made forgotten", c->cleared, 1, 0},
		{"backed-off", "Units not cleared because they are steadily hot", c->backed_off, 1,
		 0},
		{"kept-hot", "Units examined and found in use", c->kept_hot, 1, 0},
		{"picked", "Units named as victims", c->picked, 1, 0},
		{"urgent-picks", "Victims taken by the sweep, for want of cold ones",
		 c->urgent_picks, 1, 0},
		{"idle-picks", "Victims that were idle for idle-age", c->idle_picks, 1, 0},
		{"refaults", "Victims that came back soon", c->refaults, 1, 0},
		{"idle-units", "Units idle for idle-age at present", c->idle_units, 0, 0},
		{"outstanding", "Units between the hands", c->outstanding, 0, 0},
		{"distance-permille", "Distance of the hands, of what is resident",
		 c->distance_percent ? c->distance_percent * 10 : c->distance_permille, 0, 0},
		{"blind", "1 while the VM has no tracker", c->blind, 0, 0},
		{EBB_POLICY_STAT_STATE_BYTES, "Memory held for this VM", sizeof(*c) + c->allocated,
		 0, 0},
	};
	const uint32_t have = sizeof(stats) / sizeof(stats[0]);

	memcpy(out, stats, (n < have ? n : have) * sizeof(stats[0]));
	return have;
}

/* ---- for a successor ---- */

#define SAVE_MAGIC 0x4b434c43u /* "CLCK" */

struct saved {
	uint32_t magic, distance_permille;
	uint64_t units;
};

/* How hot each unit was, and how long idle; what is between the hands is not worth the trouble. */
static int64_t clock_save(void *instance, void *buf, uint64_t max)
{
	const struct clock *c = instance;
	const struct saved h = {.magic = SAVE_MAGIC,
				.distance_permille = (uint32_t)c->distance_permille,
				.units = c->units};
	uint8_t *state = (uint8_t *)buf + sizeof(h);

	if (sizeof(h) + c->units > max)
		return -ENOSPC;
	memcpy(buf, &h, sizeof(h));
	for (uint64_t u = 0; u < c->units; u++)
		state[u] = c->state[u] & (uint8_t)~STATE_CLEARED;
	return (int64_t)(sizeof(h) + c->units);
}

static int clock_restore(void *instance, const void *buf, uint64_t bytes)
{
	const uint8_t *state = (const uint8_t *)buf + sizeof(struct saved);
	struct clock *c = instance;
	struct saved h;

	if (bytes < sizeof(h))
		return -EINVAL;
	memcpy(&h, buf, sizeof(h));
	if (h.magic != SAVE_MAGIC || h.units != c->units || bytes != sizeof(h) + h.units ||
	    !h.distance_permille || h.distance_permille > 1000)
		return -EINVAL;
	/* No state that this code does not make: a level beyond the highest would be for ever. */
	for (uint64_t u = 0; u < h.units; u++)
		if ((state[u] & STATE_CLEARED) || (state[u] & STATE_LEVEL) > LEVEL_MAX ||
		    state[u] / AGE_STEP > AGE_STEPS)
			return -EINVAL;
	memcpy(c->state, state, h.units);
	c->idle_units = 0;
	for (uint64_t u = 0; u < h.units; u++)
		c->idle_units += (c->state[u] & STATE_IDLE) != 0;
	c->distance_permille = h.distance_permille;
	hands_reset(c);
	hands_place(c, c->random);
	return 0;
}

__attribute__((visibility("default"))) const struct ebb_policy *ebb_policy_entry(void)
{
	static const struct ebb_policy policy = {
		.size = sizeof(policy),
		.abi_major = EBB_POLICY_ABI_MAJOR,
		.abi_minor = EBB_POLICY_ABI_MINOR,
		.roles = EBB_POLICY_RECLAIM,
		.name = "clock",
		.description = "Two-handed clock with back-off from steadily hot memory",
		.option_help = option_help,
		.attach = clock_attach,
		.detach = clock_detach,
		.config = clock_config,
		.on_resize = clock_on_resize,
		.on_fault = clock_on_fault,
		.on_access = clock_on_access,
		.pick_victims = clock_pick_victims,
		.on_outcome = clock_on_outcome,
		.tick = clock_tick,
		.stats = clock_stats,
		.save = clock_save,
		.restore = clock_restore,
		.state_version = 1,
		.wants = clock_wants,
	};

	return &policy;
}
