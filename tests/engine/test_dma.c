/* SPDX-License-Identifier: BSD-3-Clause */
/* test_dma.c: I/O that was begun before an eviction still writes to the guest's page. */
#include "engine/rig.h"

#include <err.h>
#include <liburing.h>
#include <pthread.h>
#include <unistd.h>

#include "engine/slow_file.h"

#define UNITS 64

/*
 * Two ways in which the kernel holds a page that it writes to later without looking into the page
 * table again: a registered buffer of io_uring that no I/O uses yet, and one with a read in
 * flight, which waits for a pipe that gets its data after the eviction had its chance, as a read
 * with O_DIRECT would wait for its disk. With the folio probe the data always meets the guest's
 * page; without a guard it is lost.
 */
struct io {
	struct io_uring ring;
	int pipe[2];
};

static void io_open(struct io *io, void *page)
{
	struct iovec v = {page, KT_PAGE};

	CHECK(!pipe(io->pipe));
	if (io_uring_queue_init(4, &io->ring, 0))
		SKIP("io_uring");
	CHECK_EQ(io_uring_register_buffers(&io->ring, &v, 1), 0);
}

/* A read that waits for the pipe, with the buffer pinned meanwhile. */
static void io_begin(struct io *io, void *page)
{
	struct io_uring_sqe *sqe = io_uring_get_sqe(&io->ring);

	io_uring_prep_read_fixed(sqe, io->pipe[0], page, KT_PAGE, 0, 0);
	CHECK_EQ(io_uring_submit(&io->ring), 1);
}

static void io_finish(struct io *io)
{
	struct io_uring_cqe *cqe;
	char data[KT_PAGE];

	memset(data, 'D', sizeof(data));
	CHECK_EQ(write(io->pipe[1], data, sizeof(data)), sizeof(data));
	CHECK_EQ(io_uring_wait_cqe(&io->ring, &cqe), 0);
	CHECK_EQ(cqe->res, KT_PAGE);
	io_uring_cqe_seen(&io->ring, cqe);
}

static void io_close(struct io *io)
{
	CHECK_EQ(io_uring_unregister_buffers(&io->ring), 0);
	io_uring_queue_exit(&io->ring);
	close(io->pipe[0]);
	close(io->pipe[1]);
}

/* One I/O into every eighth unit; how many of them did not arrive. */
static size_t lost_by(struct rig *r, bool begun)
{
	struct io io[UNITS / 8];
	size_t lost = 0;

	rig_attach(r, UNITS * KT_PAGE, NATIVE_SHMEM);
	for (size_t i = 0; i < UNITS / 8; i++) {
		io_open(&io[i], rig_unit(r, 8 * i));
		if (begun)
			io_begin(&io[i], rig_unit(r, 8 * i));
	}
	for (int round = 0; round < 5; round++) {
		rig_reclaim(r, 0);
		kt_settle();
	}
	for (size_t i = 0; i < UNITS; i++)
		if (i % 8)
			CHECK(!rig_cached(r, i));
	for (size_t i = 0; i < UNITS / 8; i++) {
		if (!begun)
			io_begin(&io[i], rig_unit(r, 8 * i));
		io_finish(&io[i]);
	}
	for (size_t i = 0; i < UNITS; i++) {
		char *p = rig_unit(r, i);

		if (i % 8)
			CHECK(rig_is(r, i, 1));
		else
			lost += p[0] != 'D' || p[KT_PAGE - 1] != 'D';
	}
	for (size_t i = 0; i < UNITS / 8; i++)
		io_close(&io[i]);
	return lost;
}

static void need_probe(struct rig *r)
{
	daemon_ask(&r->d, "{\"execute\":\"query-host\"}");
	if (!strstr(r->d.answer, "\"probe\":true"))
		SKIP("the folio probe");
}

static void guarded(struct rig *r, bool begun)
{
	rig_start(r, "", "");
	need_probe(r);
	CHECK_EQ(lost_by(r, begun), 0);
	CHECK(rig_number(r, "evictions-busy") >= UNITS / 8);
	/* Let go, they are like any other. */
	rig_evict_all(r);
	for (size_t i = 0; i < UNITS; i++)
		rig_tag(r, i, 1);
	rig_end(r);
}

static void registered(struct rig *r)
{
	guarded(r, false);
}

static void in_flight(struct rig *r)
{
	guarded(r, true);
}

/*
 * The hazard is real: without the probe a quarantine is the only guard, and one shorter than the
 * I/O is none. (VmPin gives registered buffers away, but it is looked at only once a second: when
 * that look came first, once more.)
 */
static void unguarded(struct rig *r)
{
	struct io io;
	char *page;
	bool gone = false;

	rig_start(r, "folio-probe = no\nallow-quarantine = yes\nquarantine-ms = 1\n", "");
	rig_attach(r, UNITS * KT_PAGE, NATIVE_SHMEM);
	page = rig_unit(r, 8);
	for (int i = 0; i < 100 && !gone; i++) {
		while (*rig_suspended(r))
			usleep(10000);
		io_open(&io, page);
		io_begin(&io, page);
		rig_reclaim(r, 0);
		gone = !rig_cached(r, 8);
		io_finish(&io);
		if (gone)
			CHECK(rig_is(r, 8, 1)); /* what the device wrote is nowhere */
		io_close(&io);
		rig_tag(r, 8, 1);
	}
	CHECK(gone);
	rig_end(r);
}

/* A read() with O_DIRECT into a page of the guest's, in a thread of its own. */
struct direct {
	pthread_t thread;
	int fd;
	void *page;
	off_t offset;
	ssize_t result;
};

static void *direct_main(void *arg)
{
	struct direct *d = arg;

	d->result = pread(d->fd, d->page, KT_PAGE, d->offset);
	return NULL;
}

static void direct_begin(struct direct *d, const struct slow_file *f, void *page, size_t i)
{
	*d = (struct direct){.fd = slow_file_fd(f), .page = page, .offset = (off_t)(i * KT_PAGE)};
	CHECK(!pthread_create(&d->thread, NULL, direct_main, d));
}

static void direct_end(struct direct *d)
{
	CHECK(!pthread_join(d->thread, NULL));
	CHECK_EQ(d->result, KT_PAGE);
}

static void until_waiting(const struct slow_file *f, unsigned int n)
{
	for (int i = 0; i < 30000 && slow_file_waiting(f) < n; i++)
		usleep(1000);
	CHECK_EQ(slow_file_waiting(f), n);
}

static struct slow_file *need_slow_file(void)
{
	struct slow_file *f = slow_file_new();

	if (!f)
		SKIP("FUSE");
	CHECK(slow_file_fd(f) >= 0);
	return f;
}

/* The same with reads of a file by O_DIRECT, which have begun when their pages are to go. */
static void direct(struct rig *r)
{
	struct slow_file *f = need_slow_file();
	struct direct d[UNITS / 8];

	rig_start(r, "", "");
	need_probe(r);
	rig_attach(r, UNITS * KT_PAGE, NATIVE_SHMEM);
	for (size_t i = 0; i < UNITS / 8; i++)
		direct_begin(&d[i], f, rig_unit(r, 8 * i), i);
	until_waiting(f, UNITS / 8);
	for (int round = 0; round < 5; round++) {
		rig_reclaim(r, 0);
		kt_settle();
	}
	for (size_t i = 0; i < UNITS; i++)
		CHECK_EQ(rig_cached(r, i), i % 8 == 0);
	slow_file_go_on(f);
	for (size_t i = 0; i < UNITS / 8; i++)
		direct_end(&d[i]);
	for (size_t i = 0; i < UNITS; i++) {
		const char *p = rig_unit(r, i);

		if (i % 8)
			CHECK(rig_is(r, i, 1));
		else
			CHECK(p[0] == 'D' && p[KT_PAGE - 1] == 'D');
	}
	CHECK(rig_number(r, "evictions-busy") >= UNITS / 8);
	rig_evict_all(r);
	for (size_t i = 0; i < UNITS; i++)
		rig_tag(r, i, 1);
	slow_file_free(f);
	rig_end(r);
}

/* And without a guard what the device wrote is nowhere. */
static void direct_unguarded(struct rig *r)
{
	struct slow_file *f = need_slow_file();
	struct direct d;
	bool gone = false;

	rig_start(r, "folio-probe = no\nallow-quarantine = yes\nquarantine-ms = 1\n", "");
	rig_attach(r, UNITS * KT_PAGE, NATIVE_SHMEM);
	for (int i = 0; i < 100 && !gone; i++) {
		while (*rig_suspended(r))
			usleep(10000);
		direct_begin(&d, f, rig_unit(r, 8), 0);
		until_waiting(f, 1);
		rig_reclaim(r, 0);
		gone = !rig_cached(r, 8);
		slow_file_go_on(f);
		direct_end(&d);
		if (gone)
			CHECK(rig_is(r, 8, 1));
		rig_tag(r, 8, 1);
	}
	CHECK(gone);
	slow_file_free(f);
	rig_end(r);
}

/* Without the probe and without the operator's word nothing is evicted at all. */
static void refused(struct rig *r)
{
	rig_start(r, "folio-probe = no\n", "");
	rig_attach(r, UNITS * KT_PAGE, NATIVE_SHMEM);
	CHECK_EQ(rig_reclaim(r, 0), 0);
	CHECK(strstr(rig_suspended(r), "probe"));
	for (size_t i = 0; i < UNITS; i++)
		CHECK(rig_cached(r, i));
	rig_check_all(r);
	rig_end(r);
}

/* Without the probe, memory that the VMM has pinned or locked suspends eviction. */
static void locked(struct rig *r)
{
	int ring;

	rig_start(r, "folio-probe = no\nallow-quarantine = yes\nquarantine-ms = 1\n", "");
	rig_attach(r, UNITS * KT_PAGE, NATIVE_SHMEM);
	ring = kt_pin(rig_unit(r, 5), KT_PAGE);
	for (int i = 0; i < 3000 && !*rig_suspended(r); i++)
		usleep(10000);
	CHECK(strstr(rig_suspended(r), "pinned"));
	CHECK_EQ(rig_reclaim(r, 0), 0);
	kt_unpin(ring);
	for (int i = 0; i < 3000 && *rig_suspended(r); i++)
		usleep(10000);
	CHECK(!*rig_suspended(r));
	rig_evict_all(r);
	rig_check_all(r);
	rig_end(r);
}

int main(int argc, char **argv)
{
	static const struct rig_case cases[] = {
		{"refused", refused},
		{"registered", registered},
		{"in_flight", in_flight},
		{"unguarded", unguarded},
		{"locked", locked},
		{"direct", direct},
		{"direct_unguarded", direct_unguarded},
	};

	return rig_main(argc, argv, cases, sizeof(cases) / sizeof(cases[0]));
}
