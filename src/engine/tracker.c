/* SPDX-License-Identifier: BSD-3-Clause */
/* tracker.c: what policies may ask: what is resident, what was accessed. */
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/log.h"
#include "engine/internal.h"
#include "engine/thp.h"
#include "sys/pagemap.h"
#include "sys/procinfo.h"

/*
 * Theory of operation
 *
 * "Accessed" is the present bit of the VMM's own page table. Clearing it (a remote
 * process_madvise(MADV_PAGEOUT) where no swap can take the page; for hugetlb a request to the
 * client's helper) drops the page-table entry and keeps the page; the next access maps it again in
 * the kernel, without a round trip to us. Ranges are registered with WP, which turns fault-around
 * off, so what is present was touched. Units that a fault brought in are present from the start.
 *
 * Where blocks are registered MINOR, that next access does come to us. What those cost is bounded
 * (map_around() in fault.c) and charged to whoever looks: the windows, and policies that ask.
 *
 * Policy hooks and these calls run under vm.policy_lock, in evictor, keeper or job threads.
 */

#define CHUNK	     4096u /* units looked at at once: 16 MiB of small pages */
#define ZAPS	     128u
#define ZAP_PAUSE_NS (10 * NS_PER_S)
#define ZAPPER_UNITS 64u /* fewer are dropped faster than a client is asked */
/* CPU time that windows may take, of one CPU, and how much of it may be saved up. */
#define WINDOW_PERMILLE	 8
#define WINDOW_CREDIT_NS ((int64_t)(20 * NS_PER_MS))
#define WINDOW_DEBT_NS	 ((int64_t)(200 * NS_PER_MS))

static void set_bit(uint64_t *bitmap, uint64_t i)
{
	bitmap[i / 64] |= UINT64_C(1) << (i % 64);
}

static bool get_bit(const uint64_t *bitmap, uint64_t i)
{
	return bitmap[i / 64] >> (i % 64) & 1;
}

/* Calls fn(block, first unit in block, count, offset of it in [first, first + count)). */
typedef int (*part_fn)(struct block *b, uint64_t unit, uint64_t count, uint64_t at, void *arg);

static int for_each_part(struct vm *vm, uint64_t first, uint64_t count, part_fn fn, void *arg)
{
	int result = 0;

	for (unsigned int i = 0; i < atomic_load(&vm->n_blocks); i++) {
		struct block *b = atomic_load(&vm->blocks[i]);
		uint64_t lo, hi;
		int r;

		if (!b || atomic_load(&b->gone))
			continue;
		lo = first > b->first_unit ? first : b->first_unit;
		hi = first + count;
		if (hi > b->first_unit + b->units)
			hi = b->first_unit + b->units;
		if (lo >= hi)
			continue;
		r = fn(b, lo - b->first_unit, hi - lo, lo - first, arg);
		if (r)
			result = r;
	}
	return result;
}

struct state_query {
	uint64_t *bitmap;
	enum page_state state;
};

static int state_part(struct block *b, uint64_t unit, uint64_t count, uint64_t at, void *arg)
{
	struct state_query *q = arg;

	for (uint64_t i = 0; i < count; i++)
		if (page_entry_state(page_table_get(&b->table, unit + i)) == q->state)
			set_bit(q->bitmap, at + i);
	return 0;
}

static void by_state(struct vm *vm, uint64_t first, uint64_t count, uint64_t *bitmap,
		     enum page_state state)
{
	struct state_query q = {bitmap, state};

	memset(bitmap, 0, (count + 63) / 64 * 8);
	for_each_part(vm, first, count, state_part, &q);
}

static void host_resident(void *ctx, uint64_t first, uint64_t count, uint64_t *bitmap)
{
	by_state(ctx, first, count, bitmap, PE_RESIDENT);
}

static void host_evicted(void *ctx, uint64_t first, uint64_t count, uint64_t *bitmap)
{
	by_state(ctx, first, count, bitmap, PE_EVICTED);
}

/* The part of a block's units that a mapping covers. */
static bool clip(const struct mapping *m, uint64_t *unit, uint64_t *count)
{
	uint64_t lo = *unit > m->first_unit ? *unit : m->first_unit;
	uint64_t hi = *unit + *count, end = m->first_unit + m->units;

	if (hi > end)
		hi = end;
	if (lo >= hi)
		return false;
	*unit = lo;
	*count = hi - lo;
	return true;
}

static int present_part(struct block *b, uint64_t unit, uint64_t count, uint64_t at, void *arg)
{
	uint64_t *bitmap = arg, chunk[CHUNK / 64];
	int result = -ENOTSUP;

	for (unsigned int i = 0; i < atomic_load(&b->n_mappings); i++) {
		struct mapping *m = atomic_load(&b->mappings[i]);
		uint64_t u = unit, n = count;

		if (!m || atomic_load(&m->att->dead) || m->att->pagemap_fd < 0 || !clip(m, &u, &n))
			continue;
		while (n) {
			uint64_t step = n < CHUNK ? n : CHUNK, addr = mapping_addr(m, u);

			if (pagemap_present(m->att->pagemap_fd, addr,
					    addr + (step << b->unit_shift), block_unit_bytes(b),
					    chunk))
				break;
			result = 0;
			for (uint64_t k = 0; k < step; k++)
				if (get_bit(chunk, k))
					set_bit(bitmap, at + (u - unit) + k);
			u += step;
			n -= step;
		}
	}
	return result;
}

static int host_accessed(void *ctx, uint64_t first, uint64_t count, uint64_t *bitmap)
{
	struct vm *vm = ctx;

	memset(bitmap, 0, (count + 63) / 64 * 8);
	if (!vm_has_tracker(vm))
		return -ENOTSUP;
	vm_trace_add_touched(vm, first, count, bitmap);
	return for_each_part(vm, first, count, present_part, bitmap);
}

int tracker_present(struct block *b, uint64_t unit, uint64_t count, uint64_t *bitmap)
{
	memset(bitmap, 0, (count + 63) / 64 * 8);
	return present_part(b, unit, count, 0, bitmap);
}

/*
 * Ranges to be dropped from the page tables of one process, gathered: a request to a client's
 * helper is a round trip, and one for many ranges costs what one for a single one does.
 */
struct zap_batch {
	struct attachment *att;
	bool by_client; /* where it can: there is time */
	bool huge;
	struct iovec v[ZAPS];
	unsigned int n;
	int result;
	bool recording; /* it is a recording that makes accesses forgotten, not the policy */
	bool apart;	/* not under policy_lock */
};

/* A client that did not answer is not asked again for a while: policy hooks wait for it. */
static int ask_client(struct attachment *att, const struct zap_batch *z)
{
	struct ebb_range ranges[ZAPS];
	int r = -ENOTSUP;

	if (clock_ns() < atomic_load(&att->no_zap_until_ns))
		return -ENOTSUP;
	for (unsigned int i = 0; i < z->n; i++)
		ranges[i] =
			(struct ebb_range){(uint64_t)(uintptr_t)z->v[i].iov_base, z->v[i].iov_len};
	pthread_mutex_lock(&att->client_lock);
	if (att->ops && att->ops->zap)
		r = att->ops->zap(att->client, ranges, z->n);
	pthread_mutex_unlock(&att->client_lock);
	if (r && r != -EAGAIN) /* that is: an upgrade is under way */
		atomic_store(&att->no_zap_until_ns, clock_ns() + ZAP_PAUSE_NS);
	return r;
}

static void flush_zaps(struct zap_batch *z)
{
	int r;

	if (!z->n)
		return;
	r = z->huge || z->by_client ? ask_client(z->att, z) : -ENOTSUP;
	if (r && !z->huge)
		r = pageout_zap(z->att->pidfd, z->v, z->n);
	if (r)
		z->result = r;
	z->n = 0;
}

/* apart: the calling thread has not got the policy_lock. */
static void tell_used(struct vm *vm, const uint64_t *used, uint32_t n, bool apart)
{
	struct policy_instance *p;

	if (apart)
		pthread_mutex_lock(&vm->policy_lock);
	p = atomic_load(&vm->prefetch.instance);
	if (p && n)
		policy_on_outcome(p, EBB_OUTCOME_USED, used, n);
	if (apart)
		pthread_mutex_unlock(&vm->policy_lock);
}

/*
 * What was prefetched and touched since would look untouched from here on: it is told now, once.
 * The present bit is the only sign of a first use.
 */
static void note_uses(struct block *b, uint64_t unit, uint64_t count, bool apart)
{
	struct vm *vm = b->vm;
	uint64_t present[CHUNK / 64], used[64];
	uint32_t n = 0;
	bool looked = false;

	if (atomic_load(&vm->counter[COUNTER_prefetched]) <=
	    atomic_load(&vm->counter[COUNTER_prefetch_hits]) +
		    atomic_load(&vm->counter[COUNTER_prefetch_wasted]) +
		    atomic_load(&vm->counter[COUNTER_prefetch_trusted]))
		return;
	for (uint64_t i = 0; i < count; i++) {
		uint64_t at = i % CHUNK, e = page_table_get(&b->table, unit + i);

		if (!at)
			looked = false;
		if (!(e & PE_PREFETCHED) || page_entry_state(e) != PE_RESIDENT)
			continue;
		if (!looked) {
			uint64_t first = unit + i - at, left = count - (i - at);

			memset(present, 0, sizeof(present));
			present_part(b, first, left < CHUNK ? left : CHUNK, 0, present);
			looked = true;
		}
		if (!get_bit(present, at) ||
		    !page_table_cas(&b->table, unit + i, &e, e & ~PE_PREFETCHED))
			continue;
		vm_count(vm, COUNTER_prefetch_hits);
		used[n++] = b->first_unit + unit + i;
		if (n == 64)
			tell_used(vm, used, n, apart);
		n %= 64;
	}
	if (n)
		tell_used(vm, used, n, apart);
}

/* Drops the page-table entries of the given units of one block in every process. */
static int zap_part(struct block *b, uint64_t unit, uint64_t count, uint64_t at, void *arg)
{
	struct zap_batch *z = arg;

	(void)at;
	if (b->kind == BLOCK_MIXED)
		thp_grow(b, &unit, &count);
	note_uses(b, unit, count, z->apart);
	vm_trace_forget(b, unit, count, z->recording);
	for (unsigned int i = 0; i < atomic_load(&b->n_mappings); i++) {
		struct mapping *m = atomic_load(&b->mappings[i]);
		uint64_t u = unit, n = count;

		if (!m || atomic_load(&m->att->dead) || !clip(m, &u, &n))
			continue;
		if (z->n == ZAPS || z->att != m->att || z->huge != (b->kind == BLOCK_HUGETLB))
			flush_zaps(z);
		z->att = m->att;
		z->huge = b->kind == BLOCK_HUGETLB;
		z->v[z->n++] =
			(struct iovec){(void *)(uintptr_t)mapping_addr(m, u), n << b->unit_shift};
		vm_add(b->vm, COUNTER_units_cleared, n);
	}
	return 0;
}

static uint64_t cpu_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
	return (uint64_t)t.tv_sec * NS_PER_S + (uint64_t)t.tv_nsec;
}

void tracker_zap(struct vm *vm, const struct ebb_range *ranges, unsigned int n, bool apart)
{
	struct zap_batch z = {.by_client = true, .apart = apart};
	uint64_t start = cpu_ns();

	for (unsigned int i = 0; i < n; i++)
		for_each_part(vm, ranges[i].first, ranges[i].count, zap_part, &z);
	flush_zaps(&z);
	vm_add(vm, COUNTER_scan_cpu_ns, cpu_ns() - start);
}

/* Not a block of small pages, or a process whose client does not zap. */
static int needs_host(struct block *b, uint64_t unit, uint64_t count, uint64_t at, void *arg)
{
	bool *needs = arg;

	(void)unit;
	(void)count;
	(void)at;
	*needs |= !block_is_small(b);
	for (unsigned int i = 0; i < atomic_load(&b->n_mappings); i++) {
		struct mapping *m = atomic_load(&b->mappings[i]);

		*needs |= m && !atomic_load(&m->att->dead) &&
			  (!m->att->zaps || clock_ns() < atomic_load(&m->att->no_zap_until_ns));
	}
	return 0;
}

/*
 * A client drops the entries of a whole range for a tenth of what it costs from here: a remote
 * MADV_PAGEOUT flushes the TLBs for every page that was written to. But it has to be asked, which
 * takes several wake-ups; so the zapper asks, and an eviction does not wait for it.
 */
static bool leave_to_zapper(struct vm *vm, const struct ebb_range *ranges, uint32_t n)
{
	uint64_t units = 0;
	bool needs = false;

	for (uint32_t i = 0; i < n && !needs; i++) {
		units += ranges[i].count;
		for_each_part(vm, ranges[i].first, ranges[i].count, needs_host, &needs);
	}
	if (needs || units < ZAPPER_UNITS)
		return false;
	for (uint32_t i = 0; i < n; i++)
		if (!zapper_push(vm, &ranges[i]))
			tracker_zap(vm, &ranges[i], 1, false);
	return true;
}

static int host_clear_accessed(void *ctx, const struct ebb_range *ranges, uint32_t n)
{
	struct vm *vm = ctx;
	struct zap_batch z = {.n = 0};
	uint64_t start = cpu_ns();

	if (!vm_has_tracker(vm))
		return -ENOTSUP;
	if (leave_to_zapper(vm, ranges, n))
		return 0;
	for (uint32_t i = 0; i < n; i++)
		for_each_part(vm, ranges[i].first, ranges[i].count, zap_part, &z);
	flush_zaps(&z);
	vm_add(vm, COUNTER_scan_cpu_ns, cpu_ns() - start);
	return z.result;
}

static uint32_t host_blocks(void *ctx, struct ebb_block *out, uint32_t max)
{
	struct vm *vm = ctx;
	uint32_t n = 0;

	for (unsigned int i = 0; i < atomic_load(&vm->n_blocks); i++) {
		struct block *b = atomic_load(&vm->blocks[i]);

		if (!b)
			continue;
		if (n < max)
			out[n] = (struct ebb_block){.first_unit = b->first_unit,
						    .units = b->units,
						    .unit_bytes = (uint32_t)block_unit_bytes(b),
						    .gone = atomic_load(&b->gone),
						    .guest_addr = b->guest_addr};
		n++;
	}
	return n;
}

static uint64_t host_now(void *ctx)
{
	(void)ctx;
	return clock_ns();
}

static uint32_t host_prefetch(void *ctx, const struct ebb_range *ranges, uint32_t n)
{
	uint32_t taken = 0;

	while (taken < n && bulk_push(ctx, &ranges[taken]))
		taken++;
	return taken;
}

static int host_pressure(void *ctx, struct ebb_pressure *out)
{
	struct vm *vm = ctx;
	struct attachment *att = atomic_load(&vm->attachments[0]);
	uint64_t some_us;

	out->time_ns = clock_ns();
	out->faults = atomic_load(&vm->counter[COUNTER_faults]);
	out->refaults = atomic_load(&vm->counter[COUNTER_refaults]);
	out->stall_ns = atomic_load(&vm->counter[COUNTER_load_wait_ns]);
	out->look_cost_ns = atomic_load(&vm->counter[COUNTER_minor_cpu_ns]);
	out->known = 0;
	if (att && !atomic_load(&att->dead) && procinfo_memory_pressure(att->pid, &some_us) == 0) {
		out->psi_some_ns = some_us * NS_PER_US;
		out->known |= EBB_PRESSURE_PSI;
	}
	return 0;
}

static void host_log(void *ctx, int level, const char *fmt, ...)
{
	static struct log_limit limit;
	struct vm *vm = ctx;
	char line[256];
	va_list ap;

	if (level < LOG_ERROR || level > LOG_DEBUG)
		level = LOG_DEBUG;
	va_start(ap, fmt);
	vsnprintf(line, sizeof(line), fmt, ap);
	va_end(ap);
	log_limited(&limit, (enum log_level)level, "policy of VM %s: %s", vm->name, line);
}

void tracker_host_init(struct vm *vm, struct vm_policy *p)
{
	p->host = (struct ebb_policy_host){
		.size = sizeof(p->host),
		.abi_major = EBB_POLICY_ABI_MAJOR,
		.abi_minor = EBB_POLICY_ABI_MINOR,
		.ctx = vm,
		.resident = host_resident,
		.evicted = host_evicted,
		.clear_accessed = host_clear_accessed,
		.accessed = host_accessed,
		.blocks = host_blocks,
		.now_ns = host_now,
		.log = host_log,
		.prefetch = host_prefetch,
		.pressure = host_pressure,
	};
	p->self = (struct ebb_policy_vm){
		.size = sizeof(p->self),
		.name = vm->name,
		.units = atomic_load(&vm->units),
		.seed = clock_ns(),
		.window_ns = vm->eng->config.window_ms * NS_PER_MS,
	};
}

static int window_part(struct block *b, uint64_t unit, uint64_t count, uint64_t at, void *arg)
{
	struct vm *vm = b->vm;
	const uint64_t *window_ns = arg;
	uint64_t watched[CHUNK / 64], accessed[CHUNK / 64], run = 0;
	struct zap_batch z = {.n = 0};
	struct ebb_access_window w = {.size = sizeof(w),
				      .first = b->first_unit + unit,
				      .count = count,
				      .watched = watched,
				      .accessed = accessed,
				      .window_ns = *window_ns};

	(void)at;
	host_resident(vm, w.first, count, watched);
	if (host_accessed(vm, w.first, count, accessed))
		return -ENOTSUP;
	policy_on_access(atomic_load(&vm->reclaim.instance), &w);
	/* What was touched is cleared for the next window, a run at a time. */
	for (uint64_t i = 0; i <= count; i++) {
		if (i < count && get_bit(accessed, i) && get_bit(watched, i)) {
			run++;
			continue;
		}
		if (run)
			zap_part(b, unit + i - run, run, 0, &z);
		run = 0;
	}
	flush_zaps(&z);
	return 0;
}

void tracker_forget_chunk(struct block *b, uint64_t unit, uint64_t count)
{
	struct zap_batch z = {.recording = true};
	uint64_t present[CHUNK / 64], run = 0;

	if (tracker_present(b, unit, count, present))
		return;
	for (uint64_t i = 0; i <= count; i++) {
		if (i < count && get_bit(present, i)) {
			run++;
			continue;
		}
		if (run)
			zap_part(b, unit + i - run, run, 0, &z);
		run = 0;
	}
	flush_zaps(&z);
}

static bool pace_room(struct window_pace *p, uint64_t chunks)
{
	uint64_t *longer;

	if (chunks <= p->chunks)
		return true;
	longer = realloc(p->passed_ns, chunks * sizeof(*longer));
	if (!longer)
		return false;
	memset(longer + p->chunks, 0, (chunks - p->chunks) * sizeof(*longer));
	p->passed_ns = longer;
	p->chunks = chunks;
	return true;
}

/*
 * What time has allowed since the last call, so much of it at most. Where what was cleared comes
 * back through a fault that we serve, the windows pay for that too.
 */
static void pace_earn(struct vm *vm, struct window_pace *p, uint64_t now)
{
	uint64_t minor = atomic_load(&vm->counter[COUNTER_minor_cpu_ns]);

	p->credit_ns -= (int64_t)(minor - p->minor_ns);
	p->minor_ns = minor;
	if (p->credit_ns < -WINDOW_DEBT_NS)
		p->credit_ns = -WINDOW_DEBT_NS;
	p->credit_ns += (int64_t)((now - p->earned_ns) / 1000 * WINDOW_PERMILLE);
	if (!p->earned_ns || p->credit_ns > WINDOW_CREDIT_NS)
		p->credit_ns = WINDOW_CREDIT_NS;
	p->earned_ns = now;
}

/* Ends the window of the chunk at the hand; false when that is not due, or nobody wants it. */
static bool window_chunk(struct vm *vm, struct window_pace *p)
{
	struct policy_instance *i = atomic_load(&vm->reclaim.instance);
	uint64_t window_ns = vm->eng->config.window_ms * NS_PER_MS, units = atomic_load(&vm->units);
	uint64_t first, passed, now = clock_ns(), cpu = cpu_ns();

	if (!i || !policy_wants_windows(i) || !pace_room(p, (units + CHUNK - 1) / CHUNK))
		return false;
	if (p->hand * CHUNK >= units)
		p->hand = 0;
	first = p->hand * CHUNK;
	passed = p->passed_ns[p->hand];
	if (first >= units || (passed && now - passed < window_ns))
		return false;
	if (passed)
		window_ns = now - passed;
	for_each_part(vm, first, units - first < CHUNK ? units - first : CHUNK, window_part,
		      &window_ns);
	p->passed_ns[p->hand++] = now;
	if (p->hand * CHUNK >= units)
		vm_count(vm, COUNTER_scans);
	cpu = cpu_ns() - cpu;
	p->credit_ns -= (int64_t)cpu;
	vm_add(vm, COUNTER_scan_cpu_ns, cpu);
	return true;
}

/*
 * A hand goes round the VM's memory, a chunk at a time: one whose last window ended long enough ago
 * has its next one ended, as long as there is CPU time for it. So what the windows take is bounded
 * whatever the VM's size and however much of it is in use; where that does not suffice, windows get
 * longer, and the policy is told how long they were.
 */
void tracker_window(struct vm *vm)
{
	struct window_pace *p = &vm->windows;
	bool more = vm_has_tracker(vm);

	pace_earn(vm, p, clock_ns());
	while (more && p->credit_ns > 0) {
		pthread_mutex_lock(&vm->policy_lock);
		more = window_chunk(vm, p);
		pthread_mutex_unlock(&vm->policy_lock);
	}
}
