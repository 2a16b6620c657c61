/* SPDX-License-Identifier: BSD-3-Clause */
/* bench_rdma.c: a fault on memory at a donor, beside a bare READ and a bare fault. */
#include <err.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "fault/bare.h"
#include "fault/ebb.h"
#include "fault/guest.h"

/*
 * Usage: bench_rdma DONORS KEY-FILE READ [ROUNDS [FAULTS [MIB]]]
 *
 * In each round, in changing order: READ, a command that prints what a bare READ of 4 KiB takes, in
 * microseconds (bench/rdma/bare-read); FAULTS faults that a process beside us serves from its
 * memory, and does nothing else; FAULTS faults at random on a VM of MIB whose memory is at the
 * donors. A ratio is that of one round's medians: the fault to the READ plus the bare fault. What
 * is printed is the median of the rounds and their range.
 */
#define ROUNDS_MAX 100

enum figure { READ, BARE, FAR, RATIO, FIGURES };

struct bench {
	const char *read;
	uint32_t faults, *ns;
	struct guest_content *content;
	struct bare *bare;
	struct ebb ebb;
	double figure[FIGURES][ROUNDS_MAX]; /* microseconds */
};

static int by_size(const void *a, const void *b)
{
	uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;

	return x < y ? -1 : x > y;
}

static int by_value(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return x < y ? -1 : x > y;
}

static double median_us(struct bench *be)
{
	qsort(be->ns, be->faults, sizeof(*be->ns), by_size);
	return (double)be->ns[be->faults / 2] / 1000;
}

static double bare_read(struct bench *be)
{
	FILE *f = popen(be->read, "r");
	double us;

	if (!f || fscanf(f, "%lf", &us) != 1 || pclose(f))
		errx(1, "'%s' gives no figure", be->read);
	return us;
}

static double bare_fault(struct bench *be)
{
	if (bare_round(be->bare, be->faults, be->ns))
		errx(1, "the bare faults went wrong");
	return median_us(be);
}

static double far_fault(struct bench *be)
{
	uint64_t before;

	ebb_reclaim(&be->ebb);
	before = ebb_number(&be->ebb, "faults");
	if (guest_touch(&be->ebb.ram, 0, be->faults, be->ns))
		errx(1, "a page came back wrong");
	if (ebb_number(&be->ebb, "faults") < before + be->faults)
		errx(1, "not all of it was at the donors");
	return median_us(be);
}

static void run(struct bench *be, unsigned int rounds)
{
	for (unsigned int r = 0; r < rounds; r++) {
		for (unsigned int i = 0; i < 3; i++) {
			unsigned int k = (i + r) % 3;

			be->figure[k][r] = k == READ   ? bare_read(be)
					   : k == BARE ? bare_fault(be)
						       : far_fault(be);
		}
		be->figure[RATIO][r] =
			be->figure[FAR][r] / (be->figure[READ][r] + be->figure[BARE][r]);
	}
}

static void print(struct bench *be, unsigned int rounds)
{
	static const char *const names[FIGURES] = {"bare READ, us", "bare fault, us",
						   "fault at a donor, us",
						   "ratio of it to both together"};

	for (unsigned int k = 0; k < FIGURES; k++) {
		qsort(be->figure[k], rounds, sizeof(double), by_value);
		printf("%-30s %8.2f (%.2f to %.2f)\n", names[k], be->figure[k][rounds / 2],
		       be->figure[k][0], be->figure[k][rounds - 1]);
	}
}

static void begin(struct bench *be, const char *donors, const char *key, uint64_t bytes)
{
	struct daemon *d = &be->ebb.daemon;

	be->ns = calloc(be->faults, sizeof(*be->ns));
	if (!be->ns || guest_content_new(&be->content) ||
	    bare_new(NATIVE_SHMEM, be->faults, &be->bare) ||
	    ebb_start(&be->ebb, be->content, NATIVE_SHMEM, bytes))
		errx(1, "no memory, or no userfaultfd");
	daemon_ask(
		d,
		"{\"execute\":\"backend-add\",\"arguments\":{\"name\":\"far\",\"driver\":\"rdma\","
		"\"options\":{\"donors\":\"%s\",\"key-file\":\"%s\"}}}",
		donors, key);
	if (strstr(d->answer, "\"return\""))
		daemon_ask(d, "{\"execute\":\"vm-set\",\"arguments\":{\"vm\":\"bench\","
			      "\"tiers\":[\"far\"]}}");
	if (!strstr(d->answer, "\"return\""))
		errx(1, "%.300s", d->answer);
	ebb_prefetch_policy(&be->ebb, "null");
	/* All that there will be is connected and lent. */
	ebb_reclaim(&be->ebb);
}

static uint32_t number(int argc, char **argv, int i, uint32_t otherwise, uint32_t most)
{
	unsigned long n = argc > i ? strtoul(argv[i], NULL, 10) : otherwise;

	if (!n || n > most)
		errx(2, "%s is not between 1 and %u", argv[i], most);
	return (uint32_t)n;
}

int main(int argc, char **argv)
{
	static struct bench be;
	uint32_t rounds, mib;

	if (argc < 4)
		errx(2, "usage: bench_rdma DONORS KEY-FILE READ [ROUNDS [FAULTS [MIB]]]");
	be.read = argv[3];
	rounds = number(argc, argv, 4, 7, ROUNDS_MAX);
	be.faults = number(argc, argv, 5, 500, 1u << 20);
	mib = number(argc, argv, 6, 16, 1u << 20);
	if ((uint64_t)mib << 20 < (uint64_t)be.faults * GUEST_PAGE)
		errx(2, "%u MiB are too few for %u faults", mib, be.faults);
	begin(&be, argv[1], argv[2], (uint64_t)mib << 20);
	run(&be, rounds);
	print(&be, rounds);
	bare_free(be.bare);
	if (ebb_stop(&be.ebb, be.content))
		errx(1, "pages came back wrong");
	guest_content_free(be.content);
	free(be.ns);
	return 0;
}
