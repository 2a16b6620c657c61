/* SPDX-License-Identifier: BSD-3-Clause */
/* test_folio_probe.c: the folio probe against pages whose users are known. */
#include "sys/folio_probe.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include <fcntl.h>
#include <grp.h>
#include <stdatomic.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include "kernel/kernel_test.h"

#define PAGES 64

static struct folio_probe *probe_of(void **state)
{
	return *state;
}

static int verdict(void **state, int fd, uint64_t index)
{
	uint8_t v = 99;
	int r = folio_probe_check(probe_of(state), fd, &index, 1, &v);

	return r ? r : v;
}

/* The verdict of a page that is left alone; batches and daemons may hold it for a moment. */
static int settled(void **state, int fd, uint64_t index)
{
	int v = FOLIO_BUSY;

	for (int i = 0; i < 5 && v == FOLIO_BUSY; i++) {
		kt_settle();
		v = verdict(state, fd, index);
	}
	return v;
}

static char *small_map(int fd, size_t pages)
{
	char *map = kt_map(fd, pages * KT_PAGE);

	madvise(map, pages * KT_PAGE, MADV_NOHUGEPAGE);
	return map;
}

static void test_idle_however_often_mapped(void **state)
{
	int fd = kt_memfd(PAGES * KT_PAGE, false);
	char *maps[3], c = 1;

	/* In the cache, and in no page table. */
	assert_int_equal(pwrite(fd, &c, 1, 0), 1);
	assert_int_equal(settled(state, fd, 0), FOLIO_IDLE);
	for (int i = 0; i < 3; i++) {
		maps[i] = small_map(fd, PAGES);
		maps[i][0] = 2;
		assert_int_equal(settled(state, fd, 0), FOLIO_IDLE);
	}
	for (int i = 0; i < 3; i++)
		munmap(maps[i], PAGES * KT_PAGE);
	assert_int_equal(settled(state, fd, 0), FOLIO_IDLE);
	close(fd);
}

static void test_hole(void **state)
{
	/* A sparse file needs a tall tree, so that indices wrap where the height is not checked. */
	const uint64_t far_page = UINT64_C(1) << 24;
	int fd = kt_memfd((far_page + 1) * KT_PAGE, false);
	char c = 1;

	assert_int_equal(verdict(state, fd, 0), FOLIO_HOLE);
	assert_int_equal(pwrite(fd, &c, 1, 0), 1);
	/* A tree of one entry. */
	assert_int_equal(verdict(state, fd, 1), FOLIO_HOLE);
	assert_int_equal(verdict(state, fd, 64), FOLIO_HOLE);
	assert_int_equal(pwrite(fd, &c, 1, 5 * KT_PAGE), 1);
	/* A tree of one node. */
	assert_int_equal(settled(state, fd, 5), FOLIO_IDLE);
	assert_int_equal(verdict(state, fd, 4), FOLIO_HOLE);
	for (unsigned int shift = 6; shift < 60; shift++)
		assert_int_equal(verdict(state, fd, 5 + (UINT64_C(1) << shift)), FOLIO_HOLE);
	assert_int_equal(pwrite(fd, &c, 1, (off_t)(far_page * KT_PAGE)), 1);
	assert_int_equal(settled(state, fd, far_page), FOLIO_IDLE);
	assert_int_equal(settled(state, fd, 5), FOLIO_IDLE);
	assert_int_equal(verdict(state, fd, far_page + 1), FOLIO_HOLE);
	assert_int_equal(verdict(state, fd, far_page - 1), FOLIO_HOLE);
	assert_int_equal(verdict(state, fd, UINT64_MAX), FOLIO_HOLE);
	/* And gone again. */
	assert_int_equal(kt_punch(fd, 5 * KT_PAGE, KT_PAGE), 0);
	assert_int_equal(verdict(state, fd, 5), FOLIO_HOLE);
	close(fd);
}

static void test_registered_buffer(void **state)
{
	int fd = kt_memfd(PAGES * KT_PAGE, false), ring;
	char *map = small_map(fd, PAGES);

	memset(map, 1, PAGES * KT_PAGE);
	assert_int_equal(settled(state, fd, 10), FOLIO_IDLE);
	ring = kt_pin(map + 10 * KT_PAGE, 3 * KT_PAGE);
	for (uint64_t i = 0; i < 20; i++)
		assert_int_equal(settled(state, fd, i),
				 i >= 10 && i < 13 ? FOLIO_BUSY : FOLIO_IDLE);
	/* Still pinned when no page table has it any more. */
	assert_int_equal(madvise(map, PAGES * KT_PAGE, MADV_DONTNEED), 0);
	assert_int_equal(settled(state, fd, 10), FOLIO_BUSY);
	kt_unpin(ring);
	assert_int_equal(settled(state, fd, 10), FOLIO_IDLE);
	munmap(map, PAGES * KT_PAGE);
	close(fd);
}

static void test_page_in_a_pipe(void **state)
{
	int fd = kt_memfd(PAGES * KT_PAGE, false), ends[2];
	char *map = small_map(fd, PAGES);
	struct iovec v = {map + 3 * KT_PAGE, KT_PAGE};

	memset(map, 1, PAGES * KT_PAGE);
	assert_int_equal(settled(state, fd, 3), FOLIO_IDLE);
	assert_int_equal(pipe(ends), 0);
	assert_int_equal(vmsplice(ends[1], &v, 1, 0), KT_PAGE);
	assert_int_equal(settled(state, fd, 3), FOLIO_BUSY);
	close(ends[0]);
	close(ends[1]);
	assert_int_equal(settled(state, fd, 3), FOLIO_IDLE);
	munmap(map, PAGES * KT_PAGE);
	close(fd);
}

static void test_batch(void **state)
{
	int fd = kt_memfd(FOLIO_PROBE_MAX * KT_PAGE, false);
	char *map = small_map(fd, FOLIO_PROBE_MAX);
	uint8_t v[FOLIO_PROBE_MAX + 1];
	uint64_t index[FOLIO_PROBE_MAX + 1];
	int ring;

	for (uint64_t i = 0; i <= FOLIO_PROBE_MAX; i++)
		index[i] = FOLIO_PROBE_MAX - 1 - i;
	for (size_t i = 0; i < FOLIO_PROBE_MAX; i += 2)
		map[i * KT_PAGE] = 1;
	ring = kt_pin(map + 100 * KT_PAGE, 1);
	kt_settle();
	v[FOLIO_PROBE_MAX] = 99;
	assert_int_equal(folio_probe_check(probe_of(state), fd, index, FOLIO_PROBE_MAX, v), 0);
	for (size_t i = 0; i < FOLIO_PROBE_MAX; i++) {
		int want = index[i] == 100 ? FOLIO_BUSY : index[i] % 2 ? FOLIO_HOLE : FOLIO_IDLE;

		if (v[i] != want)
			assert_int_equal(settled(state, fd, index[i]), want);
	}
	assert_int_equal(v[FOLIO_PROBE_MAX], 99);
	assert_int_equal(folio_probe_check(probe_of(state), fd, index, 0, v), 0);
	assert_int_equal(folio_probe_check(probe_of(state), fd, index, FOLIO_PROBE_MAX + 1, v),
			 -EINVAL);
	kt_unpin(ring);
	munmap(map, FOLIO_PROBE_MAX * KT_PAGE);
	close(fd);
}

static void test_wrong_files(void **state)
{
	int ends[2], file = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);

	assert_int_equal(pipe(ends), 0);
	assert_int_equal(verdict(state, -1, 0), -EBADF);
	assert_int_equal(verdict(state, 1 << 20, 0), -EBADF);
	assert_int_equal(verdict(state, ends[0], 0), -EMEDIUMTYPE);
	assert_int_equal(verdict(state, file, 0), -EMEDIUMTYPE);
	close(ends[0]);
	assert_int_equal(verdict(state, ends[0], 0), -EBADF);
	close(ends[1]);
	close(file);
}

static bool make_thp(char *map)
{
	memset(map, 1, KT_HUGE);
	return !madvise(map, KT_HUGE, 25 /* MADV_COLLAPSE */) && kt_pmd_mapped(map) == KT_HUGE;
}

static void test_huge_page_of_shmem(void **state)
{
	int fd = kt_memfd(2 * KT_HUGE, false), ring;
	char *map = kt_map(fd, 2 * KT_HUGE), *part;

	if (!make_thp(map)) {
		print_message("no huge pages of shmem here: that part runs on a kernel with THP\n");
		munmap(map, 2 * KT_HUGE);
		close(fd);
		return;
	}
	/* Mapped by a PMD. */
	assert_int_equal(settled(state, fd, 0), FOLIO_IDLE);
	assert_int_equal(settled(state, fd, 511), FOLIO_IDLE);
	assert_int_equal(verdict(state, fd, 512), FOLIO_HOLE);
	/* And by single entries of another mapping. */
	part = mmap(NULL, 16 * KT_PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 64 * KT_PAGE);
	assert_ptr_not_equal(part, MAP_FAILED);
	for (size_t i = 0; i < 16; i++)
		part[i * KT_PAGE] = 1;
	assert_int_equal(settled(state, fd, 0), FOLIO_IDLE);
	/* One pinned page of it holds the whole. */
	ring = kt_pin(map + 300 * KT_PAGE, KT_PAGE);
	assert_int_equal(settled(state, fd, 300), FOLIO_BUSY);
	assert_int_equal(settled(state, fd, 0), FOLIO_BUSY);
	kt_unpin(ring);
	assert_int_equal(settled(state, fd, 0), FOLIO_IDLE);
	/* Only by single entries; then by none. */
	munmap(map, 2 * KT_HUGE);
	assert_int_equal(settled(state, fd, 70), FOLIO_IDLE);
	munmap(part, 16 * KT_PAGE);
	assert_int_equal(settled(state, fd, 70), FOLIO_IDLE);
	close(fd);
}

/* Folios between one page and a huge one, since Linux 6.11. */
static void test_middle_sized_folios(void **state)
{
	int fd = kt_memfd(KT_HUGE, false), ring;
	char *map = kt_map(fd, KT_HUGE);

	if (!kt_set("/sys/kernel/mm/transparent_hugepage/hugepages-64kB/shmem_enabled", "advise")) {
		print_message("no folios of 64 KiB here: that part runs on Linux 6.12 and later\n");
		return;
	}
	/* Where huge ones are on, too, they would be taken. */
	assert_true(kt_set("/sys/kernel/mm/transparent_hugepage/hugepages-2048kB/shmem_enabled",
			   "never"));
	assert_int_equal(madvise(map, KT_HUGE, MADV_HUGEPAGE), 0);
	memset(map, 1, KT_HUGE);
	for (uint64_t i = 0; i < 512; i += 31)
		assert_int_equal(settled(state, fd, i), FOLIO_IDLE);
	ring = kt_pin(map + 37 * KT_PAGE, KT_PAGE);
	for (uint64_t i = 0; i < 64; i++)
		assert_int_equal(verdict(state, fd, i), i / 16 == 2 ? FOLIO_BUSY : FOLIO_IDLE);
	kt_unpin(ring);
	/* Some of its pages unmapped, some mapped twice. */
	munmap(map + 33 * KT_PAGE, 3 * KT_PAGE);
	assert_int_equal(mmap(map + 100 * KT_PAGE, KT_PAGE, PROT_READ, MAP_SHARED | MAP_FIXED, fd,
			      38 * KT_PAGE) == MAP_FAILED,
			 0);
	assert_int_equal(map[100 * KT_PAGE], 1);
	assert_int_equal(settled(state, fd, 32), FOLIO_IDLE);
	/* A hole splits it. */
	assert_int_equal(kt_punch(fd, 40 * KT_PAGE, KT_PAGE), 0);
	assert_int_equal(verdict(state, fd, 40), FOLIO_HOLE);
	assert_int_equal(settled(state, fd, 41), FOLIO_IDLE);
	munmap(map, KT_HUGE);
	close(fd);
}

static void test_hugetlb(void **state)
{
	char *map, *second;
	int fd, ring;

	kt_need_huge_pages(4);
	fd = kt_memfd(4 * KT_HUGE, true);
	map = kt_map(fd, 4 * KT_HUGE);
	map[0] = map[2 * KT_HUGE] = 1;
	assert_int_equal(verdict(state, fd, 0), FOLIO_IDLE);
	assert_int_equal(verdict(state, fd, 511), FOLIO_IDLE);
	/* Indices are in small pages, however the kernel files the huge ones. */
	assert_int_equal(verdict(state, fd, 512), FOLIO_HOLE);
	assert_int_equal(verdict(state, fd, 1023), FOLIO_HOLE);
	assert_int_equal(verdict(state, fd, 1024), FOLIO_IDLE);
	assert_int_equal(verdict(state, fd, 1536), FOLIO_HOLE);
	assert_int_equal(verdict(state, fd, 1024 * 512), FOLIO_HOLE);
	second = kt_map(fd, 4 * KT_HUGE);
	second[2 * KT_HUGE] = 1;
	assert_int_equal(verdict(state, fd, 1025), FOLIO_IDLE);
	ring = kt_pin(map + 2 * KT_HUGE + 9 * KT_PAGE, KT_PAGE);
	assert_int_equal(verdict(state, fd, 1024), FOLIO_BUSY);
	assert_int_equal(verdict(state, fd, 0), FOLIO_IDLE);
	kt_unpin(ring);
	assert_int_equal(verdict(state, fd, 1024), FOLIO_IDLE);
	munmap(map, 4 * KT_HUGE);
	munmap(second, 4 * KT_HUGE);
	assert_int_equal(verdict(state, fd, 1024), FOLIO_IDLE);
	assert_int_equal(kt_punch(fd, 2 * KT_HUGE, KT_HUGE), 0);
	assert_int_equal(verdict(state, fd, 1024), FOLIO_HOLE);
	close(fd);
}

/* A thread that maps and unmaps a page all the time, as a tracker and a guest do. */
struct churn {
	char *map;
	atomic_bool stop;
};

static void *churn_thread(void *arg)
{
	struct churn *c = arg;

	while (!atomic_load(&c->stop)) {
		*(volatile char *)c->map = 1;
		madvise(c->map, KT_PAGE, MADV_DONTNEED);
	}
	return NULL;
}

static void test_pinned_page_while_mappings_change(void **state)
{
	int fd = kt_memfd(PAGES * KT_PAGE, false), ends[2], idle = 0;
	struct churn churn = {.map = small_map(fd, PAGES)};
	char *fixed = small_map(fd, PAGES);
	struct iovec v = {fixed, KT_PAGE};
	pthread_t thread;

	memset(fixed, 1, PAGES * KT_PAGE);
	kt_settle();
	/* One reference above what is accounted for: just what one stale mapping would hide. */
	assert_int_equal(pipe(ends), 0);
	assert_int_equal(vmsplice(ends[1], &v, 1, 0), KT_PAGE);
	assert_int_equal(pthread_create(&thread, NULL, churn_thread, &churn), 0);
	for (int i = 0; i < 50000; i++)
		idle += verdict(state, fd, 0) != FOLIO_BUSY;
	atomic_store(&churn.stop, true);
	pthread_join(thread, NULL);
	assert_int_equal(idle, 0);
	close(ends[0]);
	close(ends[1]);
	assert_int_equal(settled(state, fd, 0), FOLIO_IDLE);
	munmap(churn.map, PAGES * KT_PAGE);
	munmap(fixed, PAGES * KT_PAGE);
	close(fd);
}

struct asker {
	struct folio_probe *probe;
	pthread_t thread;
	int fd;
	uint8_t expected;
	int wrong;
};

static void *ask_thread(void *arg)
{
	struct asker *a = arg;

	for (int i = 0; i < 500; i++) {
		uint64_t index[] = {1, 1, 1, 1};
		uint8_t v[4];

		if (folio_probe_check(a->probe, a->fd, index, 4, v))
			a->wrong++;
		for (int k = 0; k < 4; k++)
			a->wrong += v[k] != a->expected;
	}
	return NULL;
}

static void test_many_threads(void **state)
{
	/* More threads than slots. */
	static struct asker askers[80];
	int full = kt_memfd(2 * KT_PAGE, false), empty = kt_memfd(2 * KT_PAGE, false);
	char c = 1;

	assert_int_equal(pwrite(full, &c, 1, KT_PAGE), 1);
	assert_int_equal(settled(state, full, 1), FOLIO_IDLE);
	for (size_t i = 0; i < 80; i++) {
		askers[i] = (struct asker){.probe = probe_of(state),
					   .fd = i % 2 ? full : empty,
					   .expected = i % 2 ? FOLIO_IDLE : FOLIO_HOLE};
		assert_int_equal(pthread_create(&askers[i].thread, NULL, ask_thread, &askers[i]),
				 0);
	}
	for (size_t i = 0; i < 80; i++) {
		pthread_join(askers[i].thread, NULL);
		assert_int_equal(askers[i].wrong, 0);
	}
	close(full);
	close(empty);
}

static void test_without_privileges(void **state)
{
	int status;
	pid_t pid = fork();

	assert_true(pid >= 0);
	if (!pid) {
		struct folio_probe *p;
		struct error e = {0};
		int r;

		if (setgroups(0, NULL) || setresgid(65534, 65534, 65534) ||
		    setresuid(65534, 65534, 65534))
			_exit(2);
		r = folio_probe_open(&p, &e);
		fprintf(stderr, "as nobody: %s: %s\n", e.cls, e.desc);
		_exit(r != -ENOTSUP || !strstr(e.desc, "CAP_BPF") ||
		      strcmp(e.cls, ERROR_UNSUPPORTED) != 0);
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_int_equal(status, 0);
}

static int open_probe(void **state)
{
	struct error e = {0};
	struct folio_probe *p = NULL;
	int r = folio_probe_open(&p, &e);

	if (r)
		print_error("folio_probe_open: %s\n", e.desc);
	*state = p;
	return r;
}

static int close_probe(void **state)
{
	folio_probe_close(*state);
	return 0;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_hole),
		cmocka_unit_test(test_idle_however_often_mapped),
		cmocka_unit_test(test_registered_buffer),
		cmocka_unit_test(test_page_in_a_pipe),
		cmocka_unit_test(test_batch),
		cmocka_unit_test(test_wrong_files),
		cmocka_unit_test(test_huge_page_of_shmem),
		cmocka_unit_test(test_middle_sized_folios),
		cmocka_unit_test(test_many_threads),
		cmocka_unit_test(test_pinned_page_while_mappings_change),
		cmocka_unit_test(test_without_privileges),
		cmocka_unit_test(test_hugetlb),
	};
	struct folio_probe *p = NULL;
	struct error e = {0};
	int r;

	if (geteuid()) {
		printf("skipped: loading a BPF program needs root; runs in scripts/check as root\n");
		return 77;
	}
	r = folio_probe_open(&p, &e);
	if (r && strstr(e.desc, "this build")) {
		printf("skipped: %s; runs in scripts/check, whose builds have it\n", e.desc);
		return 77;
	}
	folio_probe_close(r ? NULL : p);
	return cmocka_run_group_tests_name("folio_probe", tests, open_probe, close_probe);
}
