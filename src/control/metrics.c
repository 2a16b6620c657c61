/* SPDX-License-Identifier: BSD-3-Clause */
/* metrics.c: the engine's numbers, taken once and walked family by family. */
#include "control/metrics.h"

#include <errno.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

/*
 * One table for each kind of thing (VM, tier of a VM, backend, host) says which of its members are
 * metrics. Both formats and query-metrics come from the same walk. Names follow OpenMetrics: base
 * units, unit at the end of the name; the formats add _total to counters.
 */

const uint64_t metric_buckets_ns[] = {
	1000,
	2500,
	5000,
	10000,
	25000,
	50000,
	100000,
	250000,
	500000,
	1000000,
	2500000,
	5000000,
	10000000,
	25000000,
	50000000,
	100000000,
	250000000,
	500000000,
	1000000000,
	UINT64_C(2500000000),
	UINT64_C(10000000000),
};
const unsigned int metric_n_buckets = sizeof(metric_buckets_ns) / sizeof(metric_buckets_ns[0]);

struct column {
	const char *name, *unit, *help;
	enum metric_type type;
	size_t offset;
	unsigned int bytes; /* of the member: 1 (bool), 4 or 8 */
	double scale;	    /* value = member * scale */
};

#define COLUMN(n, u, t, s, m, h)                                                      \
	{                                                                             \
		.name = (n), .unit = (u), .help = (h), .type = (t), .scale = 1,       \
		.offset = offsetof(struct s, m), .bytes = sizeof(((struct s *)0)->m), \
	}
#define BYTES(n, s, m, h) COLUMN(n "_bytes", "bytes", METRIC_GAUGE, s, m, h)
#define GAUGE(n, s, m, h) COLUMN(n, "", METRIC_GAUGE, s, m, h)

static const struct column vm_columns[] = {
	BYTES("ebb_vm_ram", vm_info, ram_bytes, "Guest RAM"),
	BYTES("ebb_vm_resident", vm_info, resident_bytes, "Guest RAM in the host's memory"),
	BYTES("ebb_vm_evicted", vm_info, evicted_bytes,
	      "Guest RAM whose content is in a backend only"),
	BYTES("ebb_vm_zero", vm_info, zero_bytes, "Guest RAM that takes no memory"),
	BYTES("ebb_vm_pinned", vm_info, pinned_bytes, "Guest RAM held by declared DMA"),
	BYTES("ebb_vm_lost", vm_info, lost_bytes,
	      "Guest RAM whose content could not be brought back"),
	BYTES("ebb_vm_clean_copy", vm_info, clean_copy_bytes,
	      "Resident guest RAM with a good copy in a backend"),
	BYTES("ebb_vm_stored", vm_info, stored_bytes, "What evicted memory takes in all backends"),
	BYTES("ebb_vm_limit", vm_info, limit_bytes,
	      "Ceiling for resident memory, 0 when there is none"),
	BYTES("ebb_vm_floor", vm_info, floor_bytes, "Resident memory that reclaim leaves alone"),
	BYTES("ebb_vm_overhead", vm_info, overhead_bytes,
	      "Memory that the daemon takes for the VM"),
	BYTES("ebb_vm_table", vm_info, table_bytes, "Page table part of the overhead"),
	BYTES("ebb_vm_store_overhead", vm_info, store_overhead_bytes, "Store part of the overhead"),
	BYTES("ebb_vm_policy", vm_info, policy_bytes, "Policy and tracker part of the overhead"),
	GAUGE("ebb_vm_weight", vm_info, weight, "Share under pressure"),
	GAUGE("ebb_vm_regions", vm_info, regions, "RAM blocks"),
	GAUGE("ebb_vm_attachments", vm_info, attachments,
	      "Processes that map the RAM and have attached"),
};

/* From the declaration of the counters; their names still have to be made into metrics' names. */
static const struct column vm_counters[] = {
#define COUNTER(c_name, json, text) COLUMN(#c_name, "", METRIC_COUNTER, vm_info, c_name, text),
#include "engine/counters.def"
#undef COUNTER
};

static const struct column tier_columns[] = {
	BYTES("ebb_vm_tier_stored", vm_tier_info, stored_bytes,
	      "What a VM's evicted memory takes in one backend"),
	BYTES("ebb_vm_tier_units", vm_tier_info, units_bytes,
	      "Guest RAM of a VM stored in one backend"),
	BYTES("ebb_vm_tier_overhead", vm_tier_info, overhead_bytes,
	      "What one backend takes for a VM beside the content"),
	GAUGE("ebb_vm_tier_objects", vm_tier_info, objects, "Units of a VM stored in one backend"),
	BYTES("ebb_vm_tier_content", vm_tier_info, content_bytes,
	      "Content of a VM in one backend, as stored"),
	BYTES("ebb_vm_tier_high", vm_tier_info, high_bytes,
	      "Content above which some moves to a tier below, 0 when there is no mark"),
	BYTES("ebb_vm_tier_low", vm_tier_info, low_bytes,
	      "Content down to which some moves to a tier below"),
	COLUMN("ebb_vm_tier_moved_bytes", "bytes", METRIC_COUNTER, vm_tier_info, moved_bytes,
	       "Guest RAM moved from one backend to another"),
};

static const struct column backend_columns[] = {
	GAUGE("ebb_backend_objects", backend_info, usage.objects, "Units stored"),
	BYTES("ebb_backend_logical", backend_info, usage.logical_bytes,
	      "What the units were in guest RAM"),
	BYTES("ebb_backend_stored", backend_info, usage.stored_bytes, "What their content takes"),
	BYTES("ebb_backend_footprint", backend_info, usage.footprint_bytes,
	      "All that the backend holds for them"),
	BYTES("ebb_backend_overhead", backend_info, usage.overhead_bytes,
	      "Footprint that is not content"),
	BYTES("ebb_backend_capacity", backend_info, usage.capacity_bytes,
	      "Room, 0 when bounded only by the host"),
	GAUGE("ebb_backend_vms", backend_info, vms, "VMs that have the backend among their tiers"),
};

static const struct column host_columns[] = {
	GAUGE("ebb_vms", host_info, vms, "VMs attached"),
	BYTES("ebb_ram", host_info, ram_bytes, "Guest RAM of all VMs"),
	BYTES("ebb_resident", host_info, resident_bytes,
	      "Guest RAM of all VMs in the host's memory"),
	BYTES("ebb_stored", host_info, stored_bytes, "What evicted memory takes in the backends"),
	BYTES("ebb_overhead", host_info, overhead_bytes,
	      "Memory that the daemon takes for its own work"),
	BYTES("ebb_budget", host_info, budget_bytes,
	      "Host budget for all VMs, 0 when there is none"),
	BYTES("ebb_host_memory", host_info, host_total_bytes, "Memory of the host"),
	BYTES("ebb_host_available", host_info, host_available_bytes,
	      "Memory of the host that could be had"),
	GAUGE("ebb_fault_threads", host_info, fault_threads, "Threads that serve faults"),
	GAUGE("ebb_evict_threads", host_info, evict_threads, "Threads that take memory back"),
	GAUGE("ebb_folio_probe", host_info, probe, "1 when the folio probe is loaded"),
};

#define N(table) (sizeof(table) / sizeof((table)[0]))

struct snapshot {
	struct vm_info *vms;
	unsigned int n_vms;
	struct backend_info *backends;
	unsigned int n_backends;
	struct host_info host;
};

static double column_value(const struct column *c, const void *object)
{
	const char *p = (const char *)object + c->offset;
	uint64_t v8;
	uint32_t v4;
	bool v1;

	if (c->bytes == 8) {
		memcpy(&v8, p, 8);
		return (double)v8 * c->scale;
	}
	if (c->bytes == 4) {
		memcpy(&v4, p, 4);
		return (double)v4 * c->scale;
	}
	memcpy(&v1, p, 1);
	return v1;
}

static void begin(const struct metric_sink *sink, const struct column *c)
{
	sink->family(sink->ctx, c->name, c->type, c->unit, c->help);
}

static void put(const struct metric_sink *sink, const struct column *c, const void *object,
		const struct metric_label *labels, unsigned int n)
{
	sink->sample(sink->ctx, labels, n, column_value(c, object), c->scale == 1);
}

static void walk_vm_column(const struct snapshot *s, const struct column *c,
			   const struct metric_sink *sink)
{
	begin(sink, c);
	for (unsigned int i = 0; i < s->n_vms; i++) {
		struct metric_label label = {"vm", s->vms[i].name};

		put(sink, c, &s->vms[i], &label, 1);
	}
}

/* "faults" -> ebb_vm_faults; "scan_cpu_ns" -> ebb_vm_scan_cpu_seconds. */
static void walk_vm_counter(const struct snapshot *s, const struct column *c,
			    const struct metric_sink *sink)
{
	size_t n = strlen(c->name);
	struct column named = *c;
	char name[80];

	if (n > 3 && strcmp(c->name + n - 3, "_ns") == 0) {
		snprintf(name, sizeof(name), "ebb_vm_%.*s_seconds", (int)n - 3, c->name);
		named.unit = "seconds";
		named.scale = 1e-9;
	} else {
		snprintf(name, sizeof(name), "ebb_vm_%s", c->name);
	}
	named.name = name;
	walk_vm_column(s, &named, sink);
}

static void walk_tiers(const struct snapshot *s, const struct metric_sink *sink)
{
	for (size_t c = 0; c < N(tier_columns); c++) {
		begin(sink, &tier_columns[c]);
		for (unsigned int i = 0; i < s->n_vms; i++)
			for (unsigned int t = 0; t < s->vms[i].n_tiers; t++) {
				const struct vm_tier_info *tier = &s->vms[i].tiers[t];
				struct metric_label labels[] = {{"vm", s->vms[i].name},
								{"backend", tier->backend}};

				put(sink, &tier_columns[c], tier, labels, 2);
			}
	}
}

static void walk_vms(const struct snapshot *s, const struct metric_sink *sink)
{
	for (size_t c = 0; c < N(vm_columns); c++)
		walk_vm_column(s, &vm_columns[c], sink);
	for (size_t c = 0; c < N(vm_counters); c++)
		walk_vm_counter(s, &vm_counters[c], sink);
	walk_tiers(s, sink);
	sink->family(sink->ctx, "ebb_vm_suspended", METRIC_GAUGE, "",
		     "1 when nothing of the VM may be evicted at the moment");
	for (unsigned int i = 0; i < s->n_vms; i++) {
		struct metric_label label = {"vm", s->vms[i].name};

		sink->sample(sink->ctx, &label, 1, s->vms[i].suspended[0] != '\0', true);
	}
	sink->family(sink->ctx, "ebb_vm_fault_latency_seconds", METRIC_HISTOGRAM, "seconds",
		     "From a fault's message read to the fault resolved");
	for (unsigned int i = 0; i < s->n_vms; i++) {
		struct metric_label label = {"vm", s->vms[i].name};

		sink->histogram(sink->ctx, &label, 1, &s->vms[i].fault_latency);
	}
}

static void walk_backends(const struct snapshot *s, const struct metric_sink *sink)
{
	for (size_t c = 0; c < N(backend_columns); c++) {
		begin(sink, &backend_columns[c]);
		for (unsigned int i = 0; i < s->n_backends; i++) {
			struct metric_label labels[] = {{"backend", s->backends[i].name},
							{"driver", s->backends[i].driver}};

			put(sink, &backend_columns[c], &s->backends[i], labels, 2);
		}
	}
	/* The drivers' own numbers have names that nobody declared: the name is a label. */
	for (int counter = 0; counter < 2; counter++) {
		sink->family(sink->ctx, counter ? "ebb_backend_events" : "ebb_backend_stat",
			     counter ? METRIC_COUNTER : METRIC_GAUGE, "",
			     counter ? "The driver's own counters" : "The driver's own gauges");
		for (unsigned int i = 0; i < s->n_backends; i++)
			for (unsigned int k = 0; k < s->backends[i].n_stats; k++) {
				const struct ebb_stat *st = &s->backends[i].stats[k];
				struct metric_label labels[] = {{"backend", s->backends[i].name},
								{"driver", s->backends[i].driver},
								{"stat", st->name}};

				if (!!st->counter == counter)
					sink->sample(sink->ctx, labels, 3, (double)st->value, true);
			}
	}
}

/*
 * Faults are recorded while the histogram is copied: its count may be behind its buckets, and a
 * reader of cumulative buckets takes that for an error.
 */
static void settle(struct hist *h)
{
	uint64_t count = 0;

	for (unsigned int i = 0; i < HIST_BUCKETS; i++)
		count += h->bucket[i];
	h->count = count;
}

static int take(struct engine *eng, struct snapshot *s, struct error *e)
{
	char(*names)[VM_NAME_MAX] = calloc(ENGINE_VMS_MAX, sizeof(*names));
	unsigned int n;

	s->backends = calloc(ENGINE_BACKENDS_MAX, sizeof(*s->backends));
	if (!names || !s->backends) {
		free(names);
		return error_set(e, ENOMEM, ERROR_GENERIC, "no memory for metrics");
	}
	n = engine_vm_names(eng, names, ENGINE_VMS_MAX);
	if (n > ENGINE_VMS_MAX)
		n = ENGINE_VMS_MAX;
	s->vms = calloc(n ? n : 1, sizeof(*s->vms));
	if (!s->vms) {
		free(names);
		return error_set(e, ENOMEM, ERROR_GENERIC, "no memory for metrics");
	}
	for (unsigned int i = 0; i < n; i++)
		if (engine_vm_info(eng, names[i], &s->vms[s->n_vms], e) ==
		    0) /* else it has just gone */
			settle(&s->vms[s->n_vms++].fault_latency);
	free(names);
	s->n_backends = engine_backend_info(eng, s->backends, ENGINE_BACKENDS_MAX);
	if (s->n_backends > ENGINE_BACKENDS_MAX)
		s->n_backends = ENGINE_BACKENDS_MAX;
	engine_host_info(eng, &s->host);
	return 0;
}

int metrics_walk(struct engine *eng, const struct metric_sink *sink, struct error *e)
{
	static const struct metric_label version = {"version", EBB_VERSION};
	struct snapshot s;
	int r;

	memset(&s, 0, sizeof(s));
	r = take(eng, &s, e);
	if (!r) {
		sink->family(sink->ctx, "ebb_build", METRIC_INFO, "", "Version of the daemon");
		sink->sample(sink->ctx, &version, 1, 1, true);
		for (size_t c = 0; c < N(host_columns); c++) {
			begin(sink, &host_columns[c]);
			put(sink, &host_columns[c], &s.host, NULL, 0);
		}
		walk_backends(&s, sink);
		walk_vms(&s, sink);
	}
	free(s.vms);
	free(s.backends);
	return r;
}
