/* SPDX-License-Identifier: BSD-3-Clause */
/* test_numa.c: the backend numa: content is on its node, and a full node harms nobody. */
#include <errno.h>
#include <numa.h>
#include <numaif.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "backends/harness.h"

static int node = -1;

/* A node that has memory and no CPU. */
static int far_node(void)
{
	struct bitmask *cpus = numa_allocate_cpumask();
	int found = -1;

	for (int n = 0; n <= numa_max_node() && found < 0; n++)
		if (numa_bitmask_isbitset(numa_all_nodes_ptr, (unsigned int)n) &&
		    numa_node_to_cpus(n, cpus) == 0 && numa_bitmask_weight(cpus) == 0)
			found = n;
	numa_free_cpumask(cpus);
	return found;
}

static void open_rig(struct rig *r, const char *codec)
{
	char text[32];
	const char *opts[] = {text, codec};

	snprintf(text, sizeof(text), "node=%d", node);
	rig_open(r, "numa", opts, 2);
}

/* Pages of the space's memory that are there, by whether they are on the node. */
static void count_pages(const struct rig *r, unsigned int *there, unsigned int *elsewhere)
{
	*there = *elsewhere = 0;
	for (off_t at = 0; (at = lseek(r->kept.fd, at, SEEK_DATA)) >= 0; at += 4096) {
		void *page = (char *)r->kept.addr + at;
		int where = -1;

		/* It must be in our page table to be seen. */
		(void)*(volatile char *)page;
		assert_int_equal(move_pages(0, 1, &page, NULL, &where, 0), 0);
		*there += where == node;
		*elsewhere += where >= 0 && where != node;
	}
}

static void content_is_on_the_node(void **state)
{
	unsigned int there, elsewhere;
	uint8_t *buf = buffer_new();
	uint64_t h[200];
	struct rig r;

	open_rig(&r, "codec=plain");
	for (unsigned int i = 0; i < 200; i++) {
		fill(buf, 4096, i, 500);
		assert_int_equal(do_store(r.c, r.s, 0, buf, 4096, &h[i]), 0);
	}
	count_pages(&r, &there, &elsewhere);
	assert_in_range(there, 200, 240);
	/* Header and tables, a few pages. */
	assert_in_range(elsewhere, 1, 20);
	rig_close(&r);
	free(buf);
}

static void it_is_there_for_a_successor(void **state)
{
	uint8_t *buf = buffer_new(), *want = buffer_new();
	struct ebb_space_params p = {.vm_name = "guest", .ram_bytes = 1u << 30, .unit_bytes = 4096};
	unsigned int there, elsewhere;
	uint64_t h[100], more;
	struct rig old, new;

	open_rig(&old, "codec=lz4");
	for (unsigned int i = 0; i < 100; i++) {
		fill(buf, 4096, i, 900);
		assert_int_equal(do_store(old.c, old.s, 0, buf, 4096, &h[i]), 0);
	}
	/* The old one is not closed: it was killed. */
	open_rig(&new, "codec=lz4");
	backend_space_close(new.s);
	kept_release(&new.kept);
	new.kept.fd = dup(old.kept.fd);
	p.space_ctx = &new.kept;
	assert_int_equal(backend_space_open(new.b, &p, &new.s), 0);
	for (unsigned int i = 0; i < 100; i++) {
		assert_int_equal(do_load(new.c, new.s, h[i], buf, 4096), 0);
		fill(want, 4096, i, 900);
		assert_memory_equal(buf, want, 4096);
	}
	/* And what it stores goes there, too. */
	for (unsigned int i = 0; i < 300; i++) {
		fill(buf, 4096, i, 1000);
		assert_int_equal(do_store(new.c, new.s, 0, buf, 4096, &more), 0);
	}
	count_pages(&new, &there, &elsewhere);
	assert_true(there >= 390);
	assert_in_range(elsewhere, 1, 20);
	rig_close(&new);
	free(buf);
	free(want);
}

/* The kernel would kill somebody if it were asked for more than there is. */
static void a_full_node_refuses(void **state)
{
	uint8_t *buf = buffer_new();
	uint64_t stored = 0, handle, first = 0;
	long long free_bytes;
	struct rig r;
	int err;

	open_rig(&r, "codec=plain");
	fill(buf, UNIT_MAX, 1, 1000);
	while ((err = do_store(r.c, r.s, 0, buf, UNIT_MAX, &handle)) == 0) {
		first = stored ? first : handle;
		stored += UNIT_MAX;
	}
	assert_int_equal(err, -ENOSPC);
	assert_true(numa_node_size64(node, &free_bytes) > 0);
	assert_in_range(free_bytes, 1, numa_node_size64(node, NULL) / 4);
	assert_int_equal(do_load(r.c, r.s, first, buf, UNIT_MAX), 0);
	/* Room again, a moment after something was freed. */
	backend_free(r.c, r.s, &first, 1);
	maintain_all(r.s);
	while (do_store(r.c, r.s, 0, buf, 4096, &handle))
		usleep(10000);
	rig_close(&r);
	free(buf);
}

static void options_are_checked(void **state)
{
	static const char *const wrong[] = {"node=x", "node=-1", "node=99999", "codec=lz4"};
	struct error e;
	struct rig r;

	for (unsigned int i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++) {
		memset(&r, 0, sizeof(r));
		assert_true(rig_backend(&r, "numa", &wrong[i], 1, &e) < 0);
	}
}

/* --small: nothing that fills the node. */
int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(options_are_checked),
		cmocka_unit_test(content_is_on_the_node),
		cmocka_unit_test(it_is_there_for_a_successor),
		cmocka_unit_test(a_full_node_refuses),
	};

	if (numa_available() >= 0)
		node = far_node();
	if (node < 0) {
		puts("skipped: no node without CPUs here; runs in the lab");
		return 77;
	}
	if (argc > 1 && strcmp(argv[1], "--small") == 0)
		cmocka_set_skip_filter("a_full_node_refuses");
	return cmocka_run_group_tests(tests, NULL, NULL);
}
