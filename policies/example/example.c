/* SPDX-License-Identifier: BSD-3-Clause */
/* example.c: a complete small policy to copy: first in, first out, and one unit ahead. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "ebb/policy.h"

/*
 * Theory of operation
 *
 * Reclaim: units are evicted in the order in which they were faulted in. A ring remembers the
 * last RING faults; when it has run dry and the VM is at its limit, a hand goes round the VM and
 * takes what is resident.
 *
 * Prefetch: on a fault, the next `ahead` units are asked for.
 *
 * It is not a good policy. It is a small one that shows every rule that a policy has to keep;
 * docs/policies.md goes through it step by step.
 */

#define RING  8192
#define CHUNK 1024

/* Everything hangs off the instance: a policy serves many VMs at once and has no globals. */
struct example {
	const struct ebb_policy_host *host;
	uint64_t units;
	uint64_t ring[RING];
	uint64_t in, out; /* entries ever put in and taken out; in - out are in the ring */
	uint64_t hand;
	uint64_t ahead; /* atomic: on_fault reads it in other threads */
	uint64_t picked;
};

static int example_attach(const struct ebb_policy_host *host, const struct ebb_policy_vm *vm,
			  uint32_t role, void **instance, char *err, uint64_t err_len)
{
	struct example *x = calloc(1, sizeof(*x));

	/* An errno is enough; a sentence in err would be shown instead of its text. */
	if (!x)
		return -ENOMEM;
	x->host = host;
	x->units = vm->units;
	x->ahead = 1;
	*instance = x;
	return 0;
}

static void example_detach(void *instance)
{
	free(instance);
}

static int example_on_resize(void *instance, uint64_t units)
{
	struct example *x = instance;

	x->units = units;
	if (x->hand >= units)
		x->hand = 0;
	return 0;
}

/* -ENOENT: no such option; -EINVAL: the value. The host turns both into a message. */
static int example_config(void *instance, const struct ebb_policy_option *opt, char *err,
			  uint64_t err_len)
{
	struct example *x = instance;
	char *end;
	uint64_t n;

	if (strcmp(opt->name, "ahead"))
		return -ENOENT;
	n = strtoull(opt->value, &end, 10);
	if (*end || end == opt->value || n > 16)
		return -EINVAL;
	__atomic_store_n(&x->ahead, n, __ATOMIC_RELAXED);
	return 0;
}

/*
 * One hook, two uses. As a prefetcher it runs in the thread that serves the fault: no lock, no
 * allocation, only the services marked fault-safe, and nothing that another fault thread could be
 * writing. As a reclaimer (max is 0) it is told later, from the same thread as the other hooks.
 */
static uint32_t example_on_fault(void *instance, const struct ebb_fault *fault,
				 struct ebb_range *out, uint32_t max)
{
	struct example *x = instance;

	if (max) {
		uint64_t ahead = __atomic_load_n(&x->ahead, __ATOMIC_RELAXED);

		/* Beyond the end or not evicted? The host cuts that off; do not worry. */
		out[0] = (struct ebb_range){fault->unit + 1, ahead};
		return ahead ? 1 : 0;
	}
	x->ring[x->in++ % RING] = fault->unit;
	if (x->in - x->out > RING)
		x->out = x->in - RING; /* the oldest was overwritten */
	return 0;
}

static int is_resident(const struct example *x, uint64_t unit)
{
	uint64_t bit = 0;

	x->host->resident(x->host->ctx, unit, 1, &bit);
	return bit & 1;
}

static uint32_t example_pick_victims(void *instance, uint64_t want, int urgent,
				     struct ebb_range *out, uint32_t max)
{
	struct example *x = instance;
	uint64_t bitmap[CHUNK / 64], walked = 0;
	uint32_t n = 0;

	/* What was loaded first goes first. It may be long gone: then it is no victim. */
	while (n < max && n < want && x->out < x->in) {
		uint64_t unit = x->ring[x->out++ % RING];

		if (is_resident(x, unit))
			out[n++] = (struct ebb_range){unit, 1};
	}
	/* urgent: the VM is at its limit, so naming nothing is not an answer. */
	while (urgent && n < max && n < want && walked < x->units) {
		uint64_t count = x->units - x->hand < CHUNK ? x->units - x->hand : CHUNK;

		/* Ask for many units at once: each call costs more than each unit. */
		x->host->resident(x->host->ctx, x->hand, count, bitmap);
		for (uint64_t k = 0; k < count && n < max && n < want; k++)
			if (bitmap[k / 64] >> (k % 64) & 1)
				out[n++] = (struct ebb_range){x->hand + k, 1};
		walked += count;
		x->hand = (x->hand + count) % x->units;
	}
	x->picked += n;
	return n;
}

static uint32_t example_stats(void *instance, struct ebb_policy_stat *out, uint32_t n)
{
	const struct example *x = instance;
	const struct ebb_policy_stat stats[] = {
		{"picked", "Units named as victims", x->picked, 1, 0},
		{EBB_POLICY_STAT_STATE_BYTES, "Memory held for this VM", sizeof(*x), 0, 0},
	};

	/* Fill what there is room for, return how many there are. */
	memcpy(out, stats, (n < 2 ? n : 2) * sizeof(stats[0]));
	return 2;
}

static const char *const example_options[] = {
	"ahead: how many units to fetch ahead on a fault (0-16), default 1",
	NULL,
};

/* The one symbol that the host looks up. size and abi come first, and from the header. */
__attribute__((visibility("default"))) const struct ebb_policy *ebb_policy_entry(void)
{
	static const struct ebb_policy policy = {
		.size = sizeof(policy),
		.abi_major = EBB_POLICY_ABI_MAJOR,
		.abi_minor = EBB_POLICY_ABI_MINOR,
		.roles = EBB_POLICY_RECLAIM | EBB_POLICY_PREFETCH,
		.name = "example",
		.description = "An example to copy: first in, first out, and one unit ahead",
		.option_help = example_options,
		.attach = example_attach,
		.detach = example_detach,
		.config = example_config,
		.on_resize = example_on_resize,
		.on_fault = example_on_fault,
		.pick_victims = example_pick_victims,
		.stats = example_stats,
	};

	return &policy;
}
