/* SPDX-License-Identifier: BSD-3-Clause */
/* ebb.c: a daemon of its own and a VM attached to it. */
#include "ebb.h"

#include <err.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"

#define VM "bench"

static void must(struct ebb *e, const char *what)
{
	if (strncmp(e->daemon.answer, "{\"error\"", 8) == 0)
		errx(1, "%s: %.300s", what, e->daemon.answer);
}

int ebb_start(struct ebb *e, const struct guest_content *c, enum native_kind kind, uint64_t bytes)
{
	static const char *const args[] = {"--log-level", "warning", NULL};
	int r = native_ram_make(&e->mem, "ram", bytes, kind);

	if (r)
		return r;
	e->ram = (struct guest_ram){
		.at = e->mem.addr, .pages = bytes / GUEST_PAGE, .unit_bytes = e->mem.page_bytes};
	guest_fill(c, &e->ram);
	daemon_start(&e->daemon, args);
	if (native_open(e->daemon.attach, &e->client))
		errx(1, "cannot connect to the daemon");
	if (native_attach(e->client, VM, &e->mem, 1, NATIVE_SERVE_ZAP))
		errx(1, "cannot attach: %s", native_error(e->client));
	return 0;
}

uint64_t ebb_number(struct ebb *e, const char *name)
{
	return daemon_vm_number(&e->daemon, VM, name);
}

uint64_t ebb_cpu_ns(const struct ebb *e)
{
	clockid_t clock;
	struct timespec t;

	if (clock_getcpuclockid(e->daemon.pid, &clock) || clock_gettime(clock, &t))
		errx(1, "the daemon is gone");
	return (uint64_t)t.tv_sec * NS_PER_S + (uint64_t)t.tv_nsec;
}

uint64_t ebb_reclaim(struct ebb *e)
{
	uint64_t evicted = 0;

	/* Some of it may be busy at the first try. */
	for (int i = 0; i < 5 && !guest_stop; i++) {
		uint64_t resident = ebb_number(e, "resident-bytes"), was = evicted;

		if (resident) {
			daemon_ask(&e->daemon,
				   "{\"execute\":\"vm-reclaim\",\"arguments\":"
				   "{\"vm\":\"" VM "\",\"bytes\":%llu}}",
				   (unsigned long long)resident);
			must(e, "vm-reclaim");
		}
		evicted = ebb_number(e, "evicted-bytes");
		if (!resident || evicted == was)
			break;
	}
	return evicted;
}

void ebb_limit(struct ebb *e, uint64_t bytes)
{
	daemon_ask(&e->daemon,
		   "{\"execute\":\"vm-set\",\"arguments\":{\"vm\":\"" VM "\",\"limit\":%llu}}",
		   (unsigned long long)bytes);
	must(e, "vm-set");
	for (int i = 0; bytes && ebb_number(e, "resident-bytes") > bytes && !guest_stop; i++) {
		if (i == 1200)
			errx(1, "the daemon does not come down to the limit");
		usleep(50000);
	}
}

void ebb_prefetch_policy(struct ebb *e, const char *name)
{
	daemon_ask(&e->daemon,
		   "{\"execute\":\"policy-set\",\"arguments\":"
		   "{\"vm\":\"" VM "\",\"role\":\"prefetch\",\"policy\":\"%s\"}}",
		   name);
	must(e, "policy-set");
}

void ebb_overhead(struct ebb *e, struct ebb_overhead *out)
{
	double ram = (double)ebb_number(e, "ram-bytes");
	uint64_t stored = ebb_number(e, "stored-bytes");

	out->table_percent = 100.0 * (double)ebb_number(e, "table-bytes") / ram;
	out->policy_percent = 100.0 * (double)ebb_number(e, "policy-bytes") / ram;
	out->store_percent =
		stored ? 100.0 * (double)ebb_number(e, "store-overhead-bytes") / (double)stored : 0;
}

void ebb_counters(struct ebb *e, struct ebb_counters *out)
{
	out->faults = ebb_number(e, "faults");
	out->parked = ebb_number(e, "faults-parked");
	out->evictions = ebb_number(e, "evictions");
	out->evict_cpu_ns = ebb_number(e, "evict-cpu-ns");
}

uint64_t ebb_stop(struct ebb *e, const struct guest_content *c)
{
	uint64_t wrong;

	if (native_detach(e->client))
		errx(1, "cannot detach: %s", native_error(e->client));
	native_close(e->client, true);
	daemon_stop(&e->daemon);
	/* A run that was stopped early has nothing to say. */
	wrong = guest_stop ? 0 : guest_wrong_pages(c, &e->ram);
	native_ram_free(&e->mem);
	return wrong;
}
