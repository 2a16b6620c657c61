/* SPDX-License-Identifier: BSD-3-Clause */
/* test_pin_hazard.c: I/O into pages that were pinned before they were protected. */
#include "kernel/kernel_test.h"

#include <liburing.h>
#include <sys/syscall.h>
#include <unistd.h>
#include "sys/pagemap.h"
#include "sys/procinfo.h"
#include "sys/uffd.h"

/* Relied on by the folio probe and the quarantine (this is what they are for), and by the engine,
 * which relies on later pins faulting and on VmPin counting registered buffers. */

static char *map;
static int fd, uffd;

static void write_through_pin(struct io_uring *ring, int source)
{
	struct io_uring_sqe *sqe = io_uring_get_sqe(ring);
	struct io_uring_cqe *cqe;

	io_uring_prep_read_fixed(sqe, source, map, KT_PAGE, 0, 0);
	CHECK_EQ(io_uring_submit(ring), 1);
	CHECK_EQ(io_uring_wait_cqe(ring, &cqe), 0);
	CHECK_EQ(cqe->res, KT_PAGE);
	io_uring_cqe_seen(ring, cqe);
}

/* Pinned, then protected and punched: the I/O goes to a page that nobody sees. */
static void pinned_before(void)
{
	int source = kt_memfd(KT_PAGE, false);
	struct iovec v = {map, KT_PAGE};
	uint64_t before, after, locked;
	struct io_uring ring;

	CHECK_EQ(pwrite(source, kt_fill('N', KT_PAGE), KT_PAGE, 0), KT_PAGE);
	if (io_uring_queue_init(4, &ring, 0))
		SKIP("io_uring");
	CHECK_EQ(procinfo_pins(getpid(), &before, &locked), 0);
	CHECK_EQ(io_uring_register_buffers(&ring, &v, 1), 0);
	CHECK_EQ(procinfo_pins(getpid(), &after, &locked), 0);
	CHECK_EQ(after - before, KT_PAGE);
	CHECK_EQ(uffd_protect(uffd, (uintptr_t)map, KT_PAGE), 0);
	CHECK_EQ(kt_punch(fd, 0, KT_PAGE), 0);
	write_through_pin(&ring, source);
	CHECK(kt_no_message(uffd));
	CHECK(!kt_cached(fd, 0));
	CHECK_EQ(uffd_copy(uffd, (uintptr_t)map, kt_fill('o', KT_PAGE), KT_PAGE, 0), KT_PAGE);
	CHECK_EQ(map[0], 'o');
	io_uring_unregister_buffers(&ring);
	io_uring_queue_exit(&ring);
	close(source);
}

static void *pin_it(void *arg)
{
	int ring = kt_try_pin(arg, KT_PAGE);

	if (ring >= 0)
		kt_unpin(ring);
	return (void *)(intptr_t)ring;
}

/* Protected or punched first: the pin itself faults and waits, or fails, but is not given. */
static void pinned_after(char *at, uint64_t flags)
{
	struct uffd_msg msg;
	pthread_t thread;
	void *result;

	CHECK(!pthread_create(&thread, NULL, pin_it, at));
	if (!kt_message(uffd, &msg)) {
		CHECK(!pthread_join(thread, &result));
		CHECK_EQ((intptr_t)result, -EFAULT);
		kt_saw("a pin of a page that would fault fails");
		return;
	}
	CHECK_EQ(msg.event, UFFD_EVENT_PAGEFAULT);
	CHECK_EQ(msg.arg.pagefault.flags & UFFD_PAGEFAULT_FLAG_WP, flags);
	if (flags)
		CHECK_EQ(uffd_unprotect(uffd, (uintptr_t)at, KT_PAGE), 0);
	else
		CHECK_EQ(uffd_copy(uffd, (uintptr_t)at, kt_fill('o', KT_PAGE), KT_PAGE, 0),
			 KT_PAGE);
	CHECK(!pthread_join(thread, &result));
	CHECK((intptr_t)result >= 0);
	kt_saw("a pin of a page that would fault waits for the fault");
}

/* Dropping the page-table entry of a pinned page works, and so proves nothing. */
static void zapped_while_pinned(char *at)
{
	int self = (int)syscall(SYS_pidfd_open, getpid(), 0), ring = kt_pin(at, KT_PAGE);
	struct iovec v = {at, KT_PAGE};
	uint64_t swap = 0;

	CHECK(self >= 0);
	kt_settle();
	if (!procinfo_swap(&swap) && !swap) {
		CHECK_EQ(pageout_zap(self, &v, 1), 0);
		CHECK(!kt_present(0, at));
	}
	kt_unpin(ring);
	close(self);
}

int main(void)
{
	fd = kt_memfd(8 * KT_PAGE, false);
	map = kt_map(fd, 8 * KT_PAGE);
	memset(map, 'o', 8 * KT_PAGE);
	uffd = kt_uffd(UFFD_FEATURE_PAGEFAULT_FLAG_WP);
	CHECK_EQ(uffd_register(uffd, (uintptr_t)map, 8 * KT_PAGE,
			       UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_WP),
		 0);
	pinned_before();
	CHECK_EQ(uffd_protect(uffd, (uintptr_t)map + KT_PAGE, KT_PAGE), 0);
	pinned_after(map + KT_PAGE, UFFD_PAGEFAULT_FLAG_WP);
	CHECK_EQ(kt_punch(fd, 2 * KT_PAGE, KT_PAGE), 0);
	pinned_after(map + 2 * KT_PAGE, 0);
	zapped_while_pinned(map + 3 * KT_PAGE);
	return 0;
}
