/* SPDX-License-Identifier: BSD-3-Clause */
/* blocks.c: a prefetcher's own list of the VM's RAM blocks, for use on the fault path. */
#include "blocks.h"

#include "options.h"

void blocks_read(struct blocks *b, const struct ebb_policy_host *host)
{
	struct ebb_block list[BLOCKS_MAX];
	uint32_t n = host->blocks(host->ctx, list, BLOCKS_MAX), kept = 0;

	for (uint32_t k = 0; k < n && k < BLOCKS_MAX; k++) {
		if (list[k].gone)
			continue;
		set(b->block[kept].first, list[k].first_unit);
		set(b->block[kept].end, list[k].first_unit + list[k].units);
		set(b->block[kept].unit_bytes, list[k].unit_bytes);
		kept++;
	}
	set(b->n, kept);
}

bool blocks_find(const struct blocks *b, uint64_t unit, struct bounds *out)
{
	uint32_t n = get(b->n);

	for (uint32_t k = 0; k < n; k++) {
		out->first = get(b->block[k].first);
		out->end = get(b->block[k].end);
		out->unit_bytes = get(b->block[k].unit_bytes);
		if (unit >= out->first && unit < out->end && out->unit_bytes)
			return true;
	}
	return false;
}
