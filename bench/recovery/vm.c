/* SPDX-License-Identifier: BSD-3-Clause */
/* vm.c: the benchmark's VM as its daemon sees it. */
#include "vm.h"

#include <err.h>
#include <string.h>
#include <unistd.h>

uint64_t evict_all(struct daemon *d, uint64_t bytes)
{
	uint64_t evicted = 0, was;

	/* Some of it may be busy at the first try. */
	for (int dry = 0; dry < 5 && evicted < bytes; dry += evicted <= was) {
		was = evicted;
		daemon_ask(
			d,
			"{\"execute\":\"vm-reclaim\",\"arguments\":{\"vm\":\"vm\",\"bytes\":%llu}}",
			(unsigned long long)bytes);
		evicted = daemon_vm_number(d, "vm", "evicted-bytes");
	}
	return evicted;
}

void wait_vm(struct daemon *d, const char *until)
{
	for (int i = 0; i < 60000; i++) {
		daemon_ask(d, "{\"execute\":\"query-vms\"}");
		if (strstr(d->answer, until))
			return;
		usleep(1000);
	}
	errx(1, "the VM does not come: %.300s", d->answer);
}
