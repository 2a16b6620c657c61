/* SPDX-License-Identifier: BSD-3-Clause */
/* test_donors.c: a VM whose memory is at donors: one dies, one wants its memory back. */
#include <err.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "attach/native.h"
#include "backends/donors.h"
#include "backends/harness.h"
#include "stress/daemon.h"

#define MiB   (UINT64_C(1) << 20)
#define PAGE  4096u
#define PAGES 300u

struct vm {
	struct donors donors;
	struct daemon d;
	struct native *client;
	struct native_ram ram;
	char log[64], *was; /* was: what its pages must hold */
};

static sigjmp_buf bus;

static void on_bus(int sig)
{
	siglongjmp(bus, sig);
}

static void command(struct vm *v, const char *text)
{
	daemon_ask(&v->d, "%s", text);
	if (!strstr(v->d.answer, "\"return\""))
		fail_msg("%s: %.300s", text, v->d.answer);
}

static void write_all(struct vm *v, uint64_t seed)
{
	for (uint64_t i = 0; i < PAGES * PAGE / 8; i++)
		((uint64_t *)v->ram.addr)[i] = next_random(&seed);
	memcpy(v->was, v->ram.addr, PAGES * (size_t)PAGE);
}

static void evict_all(struct vm *v)
{
	while (daemon_vm_number(&v->d, "far", "resident-bytes"))
		command(v, "{\"execute\":\"vm-reclaim\",\"arguments\":{\"vm\":\"far\","
			   "\"bytes\":1073741824}}");
}

static char *page(const struct vm *v, unsigned int i)
{
	return (char *)v->ram.addr + i * (size_t)PAGE;
}

/* 1: the page gives a memory error; 0: it is as it was. Anything else ends the test. */
static int lost_or_right(struct vm *v, unsigned int i)
{
	struct sigaction sa = {.sa_handler = on_bus};

	sigaction(SIGBUS, &sa, NULL);
	if (sigsetjmp(bus, 1))
		return 1;
	assert_memory_equal(page(v, i), v->was + i * (size_t)PAGE, PAGE);
	return 0;
}

static void vm_start(struct vm *v, unsigned int n_donors, const char *more, const char *tiers)
{
	char list[128] = "";

	memset(v, 0, sizeof(*v));
	donors_init(&v->donors);
	for (unsigned int i = 0; i < n_donors; i++) {
		size_t n = strlen(list);

		donor_start(&v->donors, i, 16 * MiB);
		snprintf(list + n, sizeof(list) - n, "%s%s:%u", n ? "," : "", v->donors.address,
			 v->donors.donor[i].port);
	}
	assert_true(snprintf(v->d.log, sizeof(v->d.log), "%s.log", v->donors.dir) <
		    (int)sizeof(v->d.log));
	daemon_start(&v->d, NULL);
	daemon_ask(
		&v->d,
		"{\"execute\":\"backend-add\",\"arguments\":{\"name\":\"far\",\"driver\":\"rdma\","
		"\"options\":{\"donors\":\"%s\",\"key-file\":\"%s/key\"%s}}}",
		list, v->donors.dir, more);
	assert_non_null(strstr(v->d.answer, "\"return\""));
	v->was = malloc(PAGES * (size_t)PAGE);
	assert_non_null(v->was);
	assert_int_equal(native_ram_make(&v->ram, "ram", PAGES * (size_t)PAGE, NATIVE_SHMEM), 0);
	assert_int_equal(native_open(v->d.attach, &v->client), 0);
	assert_int_equal(native_attach(v->client, "far", &v->ram, 1, NATIVE_SERVE_ZAP), 0);
	daemon_ask(&v->d, "{\"execute\":\"vm-set\",\"arguments\":{\"vm\":\"far\",\"tiers\":[%s]}}",
		   tiers);
	assert_non_null(strstr(v->d.answer, "\"return\""));
}

static void vm_end(struct vm *v)
{
	native_detach(v->client);
	native_close(v->client, true);
	native_ram_free(&v->ram);
	daemon_stop(&v->d);
	unlink(v->d.log);
	donors_end(&v->donors);
	free(v->was);
}

/* Which pages a donor has, found by their content: as[i] is set. */
static unsigned int find_pages(struct vm *v, unsigned int donor, bool *has)
{
	char *lent = malloc(16 * MiB);
	unsigned int n = 0;

	assert_non_null(lent);
	donor_read(&v->donors, donor, 0, lent, 16 * MiB);
	for (unsigned int i = 0; i < PAGES; i++) {
		has[i] = false;
		for (uint64_t at = 0; at < 16 * MiB && !has[i]; at += PAGE)
			has[i] = memcmp(lent + at, v->was + i * (size_t)PAGE, PAGE) == 0;
		n += has[i];
	}
	free(lent);
	return n;
}

static bool in_log(const struct vm *v, const char *word)
{
	char line[512];
	bool found = false;
	FILE *f = fopen(v->d.log, "r");

	assert_non_null(f);
	while (!found && fgets(line, sizeof(line), f))
		found = strstr(line, word);
	fclose(f);
	return found;
}

static void wait_lent(const struct vm *v, unsigned int donor)
{
	while (!donor_number(&v->donors, donor, "lent-bytes"))
		usleep(10000);
}

/* Its pages are memory errors, those and no others; and when it is back it is used again. */
static void a_dead_donor_costs_its_pages_alone(void **state)
{
	bool first[PAGES], second[PAGES];
	unsigned int n;
	struct vm v;

	/* As it is, so that it can be found in the donors' memory. */
	vm_start(&v, 2, ",\"patience\":\"1\",\"encrypt\":\"off\"", "\"far\"");
	/* The first donor to lend gets all until the other does. */
	write_all(&v, 1);
	evict_all(&v);
	wait_lent(&v, 0);
	wait_lent(&v, 1);
	write_all(&v, 2);
	evict_all(&v);
	n = find_pages(&v, 0, first);
	assert_int_equal(n + find_pages(&v, 1, second), PAGES);
	assert_in_range(n, 1, PAGES - 1);
	donor_stop(&v.donors, 0, SIGKILL);
	for (unsigned int i = 0; i < PAGES; i++)
		assert_int_equal(lost_or_right(&v, i), first[i]);
	assert_int_equal(daemon_vm_number(&v.d, "far", "pages-lost"), n);
	assert_true(in_log(&v, "PAGE_LOST"));
	donor_start(&v.donors, 0, 16 * MiB);
	/* Until it is found again, the other one gets all. */
	while (!donor_number(&v.donors, 0, "lent-bytes")) {
		for (unsigned int i = 0; i < PAGES; i++)
			if (!first[i])
				assert_int_equal(lost_or_right(&v, i), 0);
		command(&v, "{\"execute\":\"vm-reclaim\",\"arguments\":{\"vm\":\"far\","
			    "\"bytes\":1073741824}}");
	}
	vm_end(&v);
}

/* There is no other donor: what it had goes to the tier below. */
static void what_is_taken_back_moves_down(void **state)
{
	struct vm v;

	vm_start(&v, 1, "", "\"far\",\"compressed\"");
	write_all(&v, 1);
	while (!daemon_vm_number(&v.d, "far", "demotions")) {
		evict_all(&v);
		donor_lend(&v.donors, 0, 0);
		usleep(100000);
	}
	while (donor_number(&v.donors, 0, "lent-bytes"))
		usleep(10000);
	donor_stop(&v.donors, 0, SIGKILL);
	for (unsigned int i = 0; i < PAGES; i++)
		assert_int_equal(lost_or_right(&v, i), 0);
	assert_int_equal(daemon_vm_number(&v.d, "far", "pages-lost"), 0);
	vm_end(&v);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(what_is_taken_back_moves_down),
		cmocka_unit_test(a_dead_donor_costs_its_pages_alone),
	};

	if (!rdma_address()) {
		puts("skipped: no RDMA here (EBB_RDMA_ADDR); runs in the lab");
		return 77;
	}
	return cmocka_run_group_tests(tests, NULL, NULL);
}
