/* SPDX-License-Identifier: BSD-3-Clause */
/* place_node.c: content on one NUMA node, or on a devdax device: CXL memory, or any other that is
 * far away.
 */
#include <errno.h>
#include <numa.h>
#include <numaif.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "dax.h"
#include "place.h"
#include "store.h"
#include "system.h"

/*
 * Theory of operation
 *
 * With `device` all is dax.c's. Otherwise:
 *
 * A store whose slabs are bound to a node (MPOL_BIND). The policy is the memfd's, so it holds for
 * whatever process maps it. Header and tables stay in near memory: each load looks into them.
 *
 * A node that is bound to and full makes the kernel kill a process rather than fail the call that
 * asks for memory. So what is taken is counted beforehand: bytes are granted in steps of what the
 * node has free less a sixteenth of its size, STEP at most, so that several threads that have just
 * looked do not together take what there is.
 */

#define STEP	(INT64_C(32) << 20)
#define FULL_NS (200 * UINT64_C(1000000))

const char place_backend_name[] = "numa";
const char place_backend_description[] =
	"On another NUMA node or a devdax device (CXL memory), plain or compressed";
/*
 * Not IN_RAM: near memory is what eviction saves, and this is none. EXCLUSIVE because of the
 * device's lock.
 */
const uint32_t place_backend_caps = EBB_BACKEND_SYNC | EBB_BACKEND_EXCLUSIVE;
const char *const place_option_help[] = {
	"node: the number of the NUMA node; it must have memory",
	"device: instead of a node, a devdax device (/dev/dax0.0)",
	"format: yes: take a device that is not empty and not Ebb's",
	STORE_OPTION_CODEC,
	STORE_OPTION_LEVEL,
	STORE_OPTION_MAX_BYTES,
	NULL,
};

static int node_option(struct place *p, const char *value, char *err, uint64_t err_len)
{
	unsigned long v;
	char *end;

	v = strtoul(value, &end, 10);
	if (*value < '0' || *value > '9' || *end || v > (unsigned long)numa_max_possible_node()) {
		snprintf(err, err_len, "node '%.60s' is no number of a node", value);
		return -EINVAL;
	}
	p->node = (unsigned int)v;
	p->has_node = 1;
	return 0;
}

int place_option(struct place *p, const struct ebb_option *o, char *err, uint64_t err_len)
{
	if (strcmp(o->name, "node") == 0)
		return node_option(p, o->value, err, err_len);
	if (strcmp(o->name, "device") == 0) {
		p->device_path = o->value;
		return 0;
	}
	if (strcmp(o->name, "format") != 0)
		return -ENOENT;
	if (strcmp(o->value, "yes") != 0 && strcmp(o->value, "no") != 0) {
		snprintf(err, err_len, "format '%.60s' is neither yes nor no", o->value);
		return -EINVAL;
	}
	p->format = o->value[0] == 'y';
	return 0;
}

int place_open(struct place *p, char *err, uint64_t err_len)
{
	const char *path = p->device_path;

	p->device_path = NULL; /* not ours any longer */
	if (!p->has_node == !path) {
		snprintf(err, err_len, "%s",
			 path ? "give either node or device, not both"
			      : "the option node (or device) is missing");
		return -EINVAL;
	}
	if (path)
		return dax_open(path, p->format, &p->dax, err, err_len);
	if (p->format) {
		snprintf(err, err_len, "format is for a device");
		return -EINVAL;
	}
	if (numa_available() < 0 || !numa_bitmask_isbitset(numa_all_nodes_ptr, p->node)) {
		snprintf(err, err_len, "there is no node %u with memory for us here", p->node);
		return -ENODEV;
	}
	return 0;
}

void place_close(struct place *p)
{
	dax_close(p->dax);
}

int place_quiesce(struct place *p)
{
	return p->dax ? dax_quiesce(p->dax) : 0;
}

int place_resume(struct place *p)
{
	return p->dax ? dax_resume(p->dax) : 0;
}

int place_bind(const struct place *p, void *addr, uint64_t bytes)
{
	struct bitmask *mask;
	int r;

	if (p->dax)
		return 0;
	mask = numa_allocate_nodemask();
	if (!mask)
		return -ENOMEM;
	numa_bitmask_setbit(mask, p->node);
	r = mbind(addr, bytes, MPOL_BIND, mask->maskp, mask->size + 1, 0) ? -errno : 0;
	numa_free_nodemask(mask);
	return r;
}

int place_take(struct place *p, uint64_t bytes)
{
	long long size, free_bytes;
	int64_t grant;

	if (p->dax)
		return 0; /* it has a chunk for it */
	if (atomic_fetch_sub(&p->room, (int64_t)bytes) >= (int64_t)bytes)
		return 0;
	atomic_fetch_add(&p->room, (int64_t)bytes);
	if (now_ns() < atomic_load(&p->full_until_ns))
		return -ENOSPC;
	size = numa_node_size64((int)p->node, &free_bytes);
	grant = size > 0 ? free_bytes - size / 16 : 0;
	grant = grant / 2 < STEP ? grant / 2 : STEP;
	if (grant < (int64_t)bytes) {
		atomic_store(&p->full_until_ns, now_ns() + FULL_NS);
		return -ENOSPC;
	}
	atomic_store(&p->room, grant - (int64_t)bytes);
	return 0;
}

/* ---- a device's chunks ---- */

struct place_device place_device(const struct place *p)
{
	return p->dax ? dax_device(p->dax) : (struct place_device){0};
}

void place_owner_enter(struct place *p, struct chunk_owner *o)
{
	dax_owner_enter(p->dax, o);
}

void place_owner_leave(struct place *p, struct chunk_owner *o)
{
	dax_owner_leave(p->dax, o);
}

int place_chunk_take(struct place *p, const struct chunk_owner *o, uint32_t *chunk)
{
	return dax_take(p->dax, o, chunk);
}

void place_chunk_give(struct place *p, uint32_t chunk, int wipe_now)
{
	dax_give(p->dax, chunk, wipe_now);
}

int place_chunk_is(const struct place *p, uint32_t chunk, uint64_t owner_id)
{
	return dax_is(p->dax, chunk, owner_id);
}

int place_maintain(struct place *p)
{
	return p->dax ? dax_maintain(p->dax) : 0;
}
