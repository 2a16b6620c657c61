/* SPDX-License-Identifier: BSD-3-Clause */
/* bench_recovery.c: how long faults wait after the daemon was killed. */
#include <err.h>
#include <getopt.h>
#include <math.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/size.h"
#include "fault/table.h"
#include "guest.h"
#include "vm.h"
#include "stress/daemon.h"

/*
 * For each size: a process with so much RAM and the attach library, all of it evicted by a daemon.
 * Then, again and again: SIGKILL the daemon; the guest reads an evicted page, and waits; start the
 * next daemon; the guest says when it went on. The daemon's log says how long the takeover itself
 * took. Beside it, in the same round: how long the same binary takes to start and print its
 * version, which is what the machine asks for a process at that moment.
 */

#define SIZES_MAX 16

struct options {
	uint64_t sizes[SIZES_MAX];
	unsigned int n_sizes, rounds;
	unsigned int parts[2], n_parts; /* one part of so many of each page is random */
	const char *json;
};

static void parse_sizes(struct options *o, char *list)
{
	for (char *s = strtok(list, ","); s; s = strtok(NULL, ",")) {
		if (o->n_sizes == SIZES_MAX || size_parse(s, &o->sizes[o->n_sizes++]))
			errx(2, "--sizes: %s", s);
	}
}

static void parse(int argc, char **argv, struct options *o)
{
	static const struct option names[] = {{"sizes", required_argument, NULL, 's'},
					      {"rounds", required_argument, NULL, 'r'},
					      {"json", required_argument, NULL, 'j'},
					      {"both-contents", no_argument, NULL, 'b'},
					      {0}};
	static char sizes[] = "128M,512M,1G,2G,4G";
	int c;

	*o = (struct options){.rounds = 7, .parts = {16, 2}, .n_parts = 1};
	while ((c = getopt_long(argc, argv, "", names, NULL)) != -1) {
		if (c == 's')
			parse_sizes(o, optarg);
		else if (c == 'r')
			o->rounds = (unsigned int)strtoul(optarg, NULL, 10);
		else if (c == 'j')
			o->json = optarg;
		else if (c == 'b')
			o->n_parts = 2;
		else
			errx(2, "usage: bench_recovery [--sizes 128M,4G] [--rounds N] "
				"[--both-contents] [--json FILE]");
	}
	if (!o->n_sizes)
		parse_sizes(o, sizes);
	if (!o->rounds || o->rounds > TABLE_ROUNDS)
		errx(2, "--rounds: 1 to %d", TABLE_ROUNDS);
}

/* The last figure that the daemon's log has between these words. */
static double log_figure(const struct daemon *d, const char *before)
{
	double value = NAN;
	char line[512];
	FILE *f = fopen(d->log, "re");

	while (f && fgets(line, sizeof(line), f)) {
		const char *p = strstr(line, before);

		if (p)
			value = strtod(p + strlen(before), NULL);
	}
	if (f)
		fclose(f);
	return value;
}

static double start_alone_ms(const struct daemon *d)
{
	uint64_t begin = clock_ns();
	pid_t pid = fork();

	if (pid < 0)
		err(1, "fork");
	if (pid == 0) {
		dup2(STDERR_FILENO, STDOUT_FILENO);
		if (!freopen("/dev/null", "we", stderr) || !freopen("/dev/null", "we", stdout))
			_exit(127);
		execl(d->binary, d->binary, "--version", NULL);
		_exit(127);
	}
	if (waitpid(pid, NULL, 0) != pid)
		err(1, "waitpid");
	return (double)(clock_ns() - begin) / 1e6;
}

static void add(struct table *t, const char *side, const char *key, const char *what,
		const char *unit, unsigned int round, double value)
{
	char full[48];

	snprintf(full, sizeof(full), "%s.%s", side, key);
	table_add(t, full, what, unit, round, value);
}

static void measure(struct table *t, const struct options *o, uint64_t bytes, unsigned int part)
{
	static const char *const args[] = {"--log-level", "info", "--config", "/dev/null", NULL};
	static struct daemon d;
	struct guest g;
	uint64_t pages = bytes / 4096, page = 0, evicted;
	char side[32];

	snprintf(side, sizeof(side), "%lluM/%u", (unsigned long long)(bytes >> 20), part);
	memset(&d, 0, sizeof(d));
	strcpy(d.log, "/tmp/ebb-recovery.XXXXXX");
	close(mkstemp(d.log));
	daemon_start(&d, args);
	guest_start(&g, "/proc/self/exe", d.attach, "vm", bytes, part);
	wait_vm(&d, "\"name\":\"vm\"");
	daemon_ask(&d, "{\"execute\":\"policy-set\",\"arguments\":"
		       "{\"vm\":\"vm\",\"role\":\"prefetch\",\"policy\":\"null\"}}");
	evicted = evict_all(&d, bytes);
	for (unsigned int i = 0; i < o->rounds; i++) {
		uint64_t resolved;

		/* One that is evicted: nobody touched it in this order. */
		page = (page + pages * 5 / 8 + 1) % pages;
		add(t, side, "stored_mib", "stored", "MiB", i,
		    (double)daemon_vm_number(&d, "vm", "stored-bytes") / 1048576);
		add(t, side, "evicted_mib", "evicted", "MiB", i, (double)evicted / 1048576);
		add(t, side, "alone_ms", "a process alone", "ms", i, start_alone_ms(&d));
		daemon_end(&d);
		guest_touch(&g, page);
		usleep(20000); /* it waits */
		daemon_begin(&d);
		resolved = guest_touched(&g);
		daemon_reach(&d);
		add(t, side, "resolved_ms", "start to first fault", "ms", i,
		    (double)(resolved - d.begun_ns) / 1e6);
		wait_vm(&d, "\"suspended\":\"\"");
		add(t, side, "takeover_ms", "of it, takeover", "ms", i,
		    log_figure(&d, "taken over in ") / 1e3);
		add(t, side, "takeover_cpu_ms", "takeover, CPU time", "ms", i,
		    log_figure(&d, " us, of CPU ") / 1e3);
		add(t, side, "settled_ms", "settling, beside faults", "ms", i,
		    log_figure(&d, "were settled in ") / 1e3);
		evicted = daemon_vm_number(&d, "vm", "evicted-bytes");
	}
	if (bytes <= UINT64_C(1) << 30 && guest_wrong(&g))
		errx(1, "wrong pages");
	guest_end(&g);
	daemon_stop(&d);
	unlink(d.log);
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
	for (unsigned int p = 0; p < o.n_parts; p++)
		for (unsigned int i = 0; i < o.n_sizes; i++)
			measure(&table, &o, o.sizes[i], o.parts[p]);
	table_print(&table, stdout);
	for (unsigned int i = 0; i < table.n; i++)
		if (isnan(table_median(&table, table.figure[i].key)))
			errx(1, "%s is missing", table.figure[i].key);
	if (o.json) {
		FILE *f = fopen(o.json, "we");

		if (!f)
			err(1, "%s", o.json);
		table_json(&table, f);
		fclose(f);
	}
	return 0;
}
