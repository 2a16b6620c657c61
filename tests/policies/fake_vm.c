/* SPDX-License-Identifier: BSD-3-Clause */
/* fake_vm.c: a VM made of arrays, for tests of policies: residency, accesses, a limit, a clock. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <cmocka.h>

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "fake_vm.h"

#define HIT_NS	     200
#define FAULT_NS     15000
#define RANGES_MAX   256
#define PREFETCH_MAX 64

/* ---- the host table ---- */

static void fill(struct fake_vm *v, uint64_t first, uint64_t count, uint64_t *bitmap,
		 const uint8_t *what, uint8_t value)
{
	assert_true(count > 0 && first < v->units && count <= v->units - first);
	memset(bitmap, 0, (count + 63) / 64 * 8);
	for (uint64_t k = 0; k < count; k++)
		if (what[first + k] == value)
			bitmap[k / 64] |= UINT64_C(1) << (k % 64);
}

static void host_resident(void *ctx, uint64_t first, uint64_t count, uint64_t *bitmap)
{
	struct fake_vm *v = ctx;

	fill(v, first, count, bitmap, v->state, FAKE_RESIDENT);
}

static void host_evicted(void *ctx, uint64_t first, uint64_t count, uint64_t *bitmap)
{
	struct fake_vm *v = ctx;

	fill(v, first, count, bitmap, v->state, FAKE_EVICTED);
}

static int host_clear(void *ctx, const struct ebb_range *ranges, uint32_t n)
{
	struct fake_vm *v = ctx;

	if (!v->tracker)
		return -ENOTSUP;
	v->clear_calls++;
	for (uint32_t r = 0; r < n; r++) {
		assert_true(ranges[r].first + ranges[r].count <= v->units);
		if (ranges[r].first < v->untracked)
			return -ENOTSUP;
		memset(v->accessed + ranges[r].first, 0, ranges[r].count);
		v->cleared_ranges++;
		for (uint64_t u = ranges[r].first; u < ranges[r].first + ranges[r].count; u++)
			v->cleared_units += v->state[u] == FAKE_RESIDENT;
	}
	return 0;
}

static int host_accessed(void *ctx, uint64_t first, uint64_t count, uint64_t *bitmap)
{
	struct fake_vm *v = ctx;

	fill(v, first, count, bitmap, v->accessed, 1);
	if (!v->tracker)
		memset(bitmap, 0xff, (count + 63) / 64 * 8);
	return v->tracker ? 0 : -ENOTSUP;
}

static uint32_t host_blocks(void *ctx, struct ebb_block *out, uint32_t n)
{
	struct fake_vm *v = ctx;

	memcpy(out, v->block, (n < v->blocks ? n : v->blocks) * sizeof(*out));
	return v->blocks;
}

static uint64_t host_now(void *ctx)
{
	struct fake_vm *v = ctx;

	return v->now_ns;
}

static uint32_t host_prefetch(void *ctx, const struct ebb_range *ranges, uint32_t n)
{
	struct fake_vm *v = ctx;

	for (uint32_t r = 0; r < n; r++) {
		assert_true(ranges[r].first + ranges[r].count <= v->units);
		if (v->bulk_room && !--v->bulk_room) {
			v->bulk_room = 1;
			return r;
		}
		for (uint64_t u = ranges[r].first; u < ranges[r].first + ranges[r].count; u++) {
			if (v->bulk_asked < 64)
				v->bulk_order[v->bulk_asked] = u;
			v->bulk_asked++;
			if (v->state[u] != FAKE_EVICTED)
				continue;
			fake_vm_set(v, u, FAKE_RESIDENT);
			v->accessed[u] = 0;
		}
	}
	return n;
}

static int host_pressure(void *ctx, struct ebb_pressure *out)
{
	const struct fake_vm *v = ctx;

	*out = v->pressure;
	out->time_ns = v->now_ns;
	return 0;
}

static void host_log(void *ctx, int level, const char *fmt, ...)
{
	struct fake_vm *v = ctx;
	va_list ap;

	v->logged++;
	va_start(ap, fmt);
	vsnprintf(v->last_log, sizeof(v->last_log), fmt, ap);
	va_end(ap);
}

void fake_vm_init(struct fake_vm *v, uint64_t units)
{
	memset(v, 0, sizeof(*v));
	v->host = (struct ebb_policy_host){
		.size = sizeof(v->host),
		.abi_major = EBB_POLICY_ABI_MAJOR,
		.abi_minor = EBB_POLICY_ABI_MINOR,
		.ctx = v,
		.resident = host_resident,
		.evicted = host_evicted,
		.clear_accessed = host_clear,
		.accessed = host_accessed,
		.blocks = host_blocks,
		.now_ns = host_now,
		.log = host_log,
		.prefetch = host_prefetch,
		.pressure = host_pressure,
	};
	v->vm = (struct ebb_policy_vm){.size = sizeof(v->vm),
				       .name = "fake",
				       .units = units,
				       .seed = 1,
				       .window_ns = UINT64_C(2000000000)};
	v->block[0] = (struct ebb_block){
		.first_unit = 0, .units = units, .unit_bytes = 4096, .guest_addr = 0};
	v->blocks = 1;
	v->now_ns = UINT64_C(1000000000);
	v->tracker = true;
	fake_vm_grow(v, units);
}

void fake_vm_grow(struct fake_vm *v, uint64_t units)
{
	uint8_t **arrays[] = {&v->state, &v->accessed, &v->window};

	for (size_t a = 0; a < 3; a++) {
		*arrays[a] = realloc(*arrays[a], units);
		assert_non_null(*arrays[a]);
		memset(*arrays[a] + v->units, 0, units - v->units);
	}
	v->units = units;
}

void fake_vm_free(struct fake_vm *v)
{
	policy_detach(v->reclaim);
	policy_detach(v->prefetch);
	free(v->state);
	free(v->accessed);
	free(v->window);
}

/* ---- the engine's part ---- */

void fake_vm_set(struct fake_vm *v, uint64_t unit, enum fake_state state)
{
	bool was = v->state[unit] == FAKE_RESIDENT || v->state[unit] == FAKE_PINNED;
	bool is = state == FAKE_RESIDENT || state == FAKE_PINNED;

	v->resident += is;
	v->resident -= was;
	v->state[unit] = (uint8_t)state;
}

uint64_t fake_vm_reclaim(struct fake_vm *v, uint64_t want, bool urgent)
{
	struct ebb_range out[RANGES_MAX];
	uint64_t gone = 0;
	uint32_t n = policy_pick_victims(v->reclaim, want, urgent, out, RANGES_MAX);

	for (uint32_t r = 0; r < n; r++) {
		assert_true(out[r].count > 0 && out[r].first + out[r].count <= v->units);
		for (uint64_t u = out[r].first; u < out[r].first + out[r].count; u++) {
			if (v->state[u] != FAKE_RESIDENT) {
				v->bad_victims++;
				continue;
			}
			fake_vm_set(v, u, FAKE_EVICTED);
			policy_on_outcome(v->reclaim, EBB_OUTCOME_EVICTED, &u, 1);
			if (v->prefetch && policy_wants_evictions(v->prefetch))
				policy_on_outcome(v->prefetch, EBB_OUTCOME_EVICTED, &u, 1);
			gone++;
		}
	}
	v->evictions += gone;
	if (urgent) {
		v->urgent_calls++;
		v->urgent_empty += !gone && v->resident;
	}
	return gone;
}

static void make_room(struct fake_vm *v)
{
	uint64_t room = v->limit - v->resident;

	if (!v->limit || room >= v->headroom)
		return;
	fake_vm_reclaim(v, v->headroom - room, false);
	if (v->resident == v->limit)
		fake_vm_reclaim(v, v->headroom, true);
}

static void load(struct fake_vm *v, uint64_t unit, bool accessed)
{
	fake_vm_set(v, unit, FAKE_RESIDENT);
	v->accessed[unit] = accessed;
	make_room(v);
}

bool fake_vm_touch(struct fake_vm *v, uint64_t unit)
{
	struct ebb_range out[PREFETCH_MAX];
	struct ebb_fault f = {.unit = unit, .time_ns = v->now_ns};
	uint32_t n;

	v->window[unit] = 1;
	if (v->state[unit] == FAKE_RESIDENT || v->state[unit] == FAKE_PINNED) {
		v->accessed[unit] = 1;
		v->hits++;
		v->now_ns += HIT_NS;
		return true;
	}
	f.flags = v->state[unit] == FAKE_EVICTED ? EBB_FAULT_LOADED : EBB_FAULT_ZERO;
	v->faults++;
	v->now_ns += FAULT_NS;
	if (v->reclaim)
		policy_reclaim_fault(v->reclaim, &f);
	load(v, unit, true);
	n = v->prefetch ? policy_prefetch_fault(v->prefetch, &f, out, PREFETCH_MAX) : 0;
	for (uint32_t r = 0; r < n; r++)
		for (uint64_t u = out[r].first; u < out[r].first + out[r].count; u++)
			if (v->state[u] == FAKE_EVICTED) {
				v->prefetched++;
				load(v, u, false);
			}
	return false;
}

void fake_vm_window(struct fake_vm *v, uint64_t window_ns)
{
	uint64_t words = (v->units + 63) / 64;
	uint64_t *watched = calloc(words, 8), *accessed = calloc(words, 8);
	struct ebb_access_window w = {.size = sizeof(w),
				      .count = v->units,
				      .watched = watched,
				      .accessed = accessed,
				      .window_ns = window_ns};

	assert_true(watched && accessed);
	fill(v, 0, v->units, watched, v->state, FAKE_RESIDENT);
	fill(v, 0, v->units, accessed, v->window, 1);
	memset(v->window, 0, v->units);
	if (v->windows_clear)
		memset(v->accessed, 0, v->units);
	policy_on_access(v->reclaim, &w);
	v->now_ns += window_ns;
	free(watched);
	free(accessed);
}

uint64_t fake_stat(struct policy_instance *i, const char *name)
{
	struct ebb_policy_stat stats[32];
	uint32_t n = policy_stats(i, stats, 32);

	for (uint32_t k = 0; k < n && k < 32; k++)
		if (strcmp(stats[k].name, name) == 0)
			return stats[k].value;
	fail_msg("no stat %s", name);
	return 0;
}

struct policy *fake_load(const char *sub, const char *name)
{
	const char *build = getenv("EBB_BUILD");
	char dir[4096];
	struct plugin_path path = {.dirs = {dir}, .n_dirs = 1};
	struct policy *p = NULL;
	struct error e = {0};

	snprintf(dir, sizeof(dir), "%s/%s", build ? build : ".", sub);
	if (policy_load(&path, name, NULL, &p, &e))
		fail_msg("%s", e.desc);
	return p;
}

/* ---- access patterns ---- */

uint64_t fake_random(uint64_t *rng)
{
	*rng ^= *rng << 13;
	*rng ^= *rng >> 7;
	*rng ^= *rng << 17;
	return *rng;
}

void zipf_init(struct zipf *z, uint64_t n, double alpha, uint64_t *rng)
{
	double sum = 0;

	z->n = n;
	z->cdf = calloc(n, sizeof(*z->cdf));
	z->place = calloc(n, sizeof(*z->place));
	assert_true(z->cdf && z->place);
	for (uint64_t k = 0; k < n; k++) {
		sum += 1 / pow((double)k + 1, alpha);
		z->cdf[k] = sum;
		z->place[k] = k;
	}
	for (uint64_t k = 0; k < n; k++)
		z->cdf[k] /= sum;
	for (uint64_t k = n - 1; k > 0; k--) {
		uint64_t other = fake_random(rng) % (k + 1), was = z->place[k];

		z->place[k] = z->place[other];
		z->place[other] = was;
	}
}

uint64_t zipf_next(const struct zipf *z, uint64_t *rng)
{
	double at = (double)(fake_random(rng) >> 11) / (double)(UINT64_C(1) << 53);
	uint64_t low = 0, high = z->n - 1;

	while (low < high) {
		uint64_t middle = (low + high) / 2;

		if (z->cdf[middle] < at)
			low = middle + 1;
		else
			high = middle;
	}
	return z->place[low];
}

void zipf_free(struct zipf *z)
{
	free(z->cdf);
	free(z->place);
}

void lru_init(struct lru *l, uint64_t units, uint64_t limit)
{
	*l = (struct lru){.units = units, .limit = limit};
	l->next = calloc(units + 1, sizeof(*l->next));
	l->prev = calloc(units + 1, sizeof(*l->prev));
	l->in = calloc(units, sizeof(*l->in));
	assert_true(l->next && l->prev && l->in);
	l->next[units] = units;
	l->prev[units] = units;
}

static void lru_unlink(struct lru *l, uint64_t unit)
{
	l->next[l->prev[unit]] = l->next[unit];
	l->prev[l->next[unit]] = l->prev[unit];
	l->in[unit] = false;
	l->resident--;
}

bool lru_touch(struct lru *l, uint64_t unit)
{
	bool hit = l->in[unit];

	if (hit)
		lru_unlink(l, unit);
	else if (l->resident == l->limit)
		lru_unlink(l, l->prev[l->units]);
	l->next[unit] = l->next[l->units];
	l->prev[unit] = l->units;
	l->prev[l->next[unit]] = unit;
	l->next[l->units] = unit;
	l->in[unit] = true;
	l->resident++;
	l->hits += hit;
	l->faults += !hit;
	return hit;
}

void lru_free(struct lru *l)
{
	free(l->next);
	free(l->prev);
	free(l->in);
}
