/* SPDX-License-Identifier: BSD-3-Clause */
/* bench_upgrade.c: how long a guest's thread waits while the daemon is replaced. */
#include <err.h>
#include <getopt.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/size.h"
#include "fault/table.h"
#include "guest.h"
#include "stress/daemon.h"
#include "vm.h"

/*
 * A process with so much RAM, nearly all of it evicted, and a limit that keeps it so. One thread of
 * it reads evicted pages all the time, another one memory that nobody takes: the longest that this
 * one waits is what the machine does to a thread without us. Then the daemon is replaced again and
 * again; for each time: the longest wait of both threads, and what is left of the first when the
 * second is taken off. The same once more without replacing anything.
 */

struct options {
	uint64_t size;
	unsigned int rounds;
	const char *json;
};

static void parse(int argc, char **argv, struct options *o)
{
	static const struct option names[] = {{"size", required_argument, NULL, 's'},
					      {"rounds", required_argument, NULL, 'r'},
					      {"json", required_argument, NULL, 'j'},
					      {0}};
	int c;

	*o = (struct options){.size = UINT64_C(4) << 30, .rounds = 100};
	while ((c = getopt_long(argc, argv, "", names, NULL)) != -1) {
		if (c == 's' && !size_parse(optarg, &o->size))
			continue;
		if (c == 'r')
			o->rounds = (unsigned int)strtoul(optarg, NULL, 10);
		else if (c == 'j')
			o->json = optarg;
		else
			errx(2, "usage: bench_upgrade [--size 4G] [--rounds N] [--json FILE]");
	}
	if (!o->rounds || o->rounds > TABLE_ROUNDS)
		errx(2, "--rounds: 1 to %d", TABLE_ROUNDS);
}

static void add(struct table *t, const char *side, const char *key, const char *what,
		unsigned int round, double value)
{
	char full[48];

	snprintf(full, sizeof(full), "%s.%s", side, key);
	table_add(t, full, what, "ms", round, value);
}

static void note(struct table *t, const char *side, unsigned int round, struct guest_longest l)
{
	double ram = (double)l.ram_ns / 1e6, other = (double)l.other_ns / 1e6;

	add(t, side, "fault_ms", "longest wait for evicted memory", round, ram);
	add(t, side, "noise_ms", "longest wait for other memory", round, other);
	add(t, side, "left_ms", "the one less the other", round, ram > other ? ram - other : 0);
}

static void measure(struct table *t, const struct options *o)
{
	static const char *const args[] = {"--log-level", "warning", "--config", "/dev/null", NULL};
	static struct daemon d;
	struct guest g;

	memset(&d, 0, sizeof(d));
	daemon_start(&d, args);
	guest_start(&g, "/proc/self/exe", d.attach, "vm", o->size, 16);
	wait_vm(&d, "\"name\":\"vm\"");
	daemon_ask(&d, "{\"execute\":\"policy-set\",\"arguments\":"
		       "{\"vm\":\"vm\",\"role\":\"prefetch\",\"policy\":\"null\"}}");
	printf("%.0f MiB of %.0f MiB are evicted\n", (double)evict_all(&d, o->size) / 1048576,
	       (double)o->size / 1048576);
	daemon_ask(&d, "{\"execute\":\"vm-set\",\"arguments\":{\"vm\":\"vm\",\"limit\":%llu}}",
		   (unsigned long long)(o->size / 32 + (UINT64_C(8) << 20)));
	guest_go(&g);
	for (unsigned int i = 0; i < o->rounds; i++) {
		uint64_t begin, took;

		usleep(50000);
		guest_longest(&g);
		begin = clock_ns();
		add(t, "upgrade", "paused_ms", "no fault is served", i,
		    (double)daemon_upgrade(&d) / 1e3);
		took = clock_ns() - begin;
		note(t, "upgrade", i, guest_longest(&g));
		add(t, "upgrade", "all_ms", "the whole upgrade", i, (double)took / 1e6);
		/* As long without. */
		usleep((useconds_t)(took / NS_PER_US));
		note(t, "none", i, guest_longest(&g));
	}
	if (daemon_vm_number(&d, "vm", "evicted-bytes") < o->size / 2)
		errx(1, "the memory is not evicted any more");
	guest_end(&g);
	daemon_stop(&d);
}

static int by_value(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

/* The worst and the best say something here, and are not to be lost in quartiles. */
static void print_spread(const struct table *t)
{
	for (unsigned int i = 0; i < t->n; i++) {
		const struct table_figure *f = &t->figure[i];
		double v[TABLE_ROUNDS];

		memcpy(v, f->value, f->n * sizeof(*v));
		qsort(v, f->n, sizeof(*v), by_value);
		printf("%-20s %-34s median %8.2f  worst %8.2f %s\n", f->key, f->what, v[f->n / 2],
		       v[f->n - 1], f->unit);
	}
}

int main(int argc, char **argv)
{
	static struct table table;
	struct options o;

	if (argc > 1 && strcmp(argv[1], "--guest") == 0)
		return guest_main(argv + 2);
	if (geteuid() || access("/dev/userfaultfd", R_OK)) {
		puts("skipped: needs root and /dev/userfaultfd; scripts/check runs it as root");
		return 77;
	}
	parse(argc, argv, &o);
	measure(&table, &o);
	print_spread(&table);
	if (isnan(table_median(&table, "upgrade.fault_ms")))
		errx(1, "a figure is missing");
	if (o.json) {
		FILE *f = fopen(o.json, "we");

		if (!f)
			err(1, "%s", o.json);
		table_json(&table, f);
		fclose(f);
	}
	return 0;
}
