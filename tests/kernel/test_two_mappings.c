/* SPDX-License-Identifier: BSD-3-Clause */
/* test_two_mappings.c: one file, two mappings, a userfaultfd each. */
#include "kernel/kernel_test.h"

#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>
#include "sys/pagemap.h"
#include "sys/procinfo.h"
#include "sys/uffd.h"

/* Relied on by the engine with secondary mappings: COPY into one, CONTINUE or wake the others;
 * write protection is each mapping's own; remote zapping spares what is mapped twice. */

#define MODES (UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_WP)
#define BYTES (16 * KT_PAGE)

static int fd, ua, ub;
static char *a, *b;

/* Faults of both on one page. */
static void waiters(void)
{
	struct kt_access in_a, in_b;
	struct uffd_msg msg;

	CHECK_EQ(kt_punch(fd, 0, KT_PAGE), 0);
	kt_access_start(&in_a, a);
	kt_access_start(&in_b, b);
	CHECK(kt_message(ua, &msg) && kt_message(ub, &msg));
	CHECK_EQ(uffd_copy(ua, (uintptr_t)a, kt_fill('w', KT_PAGE), KT_PAGE, 0), KT_PAGE);
	CHECK_EQ(kt_access_end(&in_a), 'w');
	CHECK(kt_blocked(&in_b));
	CHECK_EQ(uffd_wake(ub, (uintptr_t)b, KT_PAGE), 0);
	CHECK_EQ(kt_access_end(&in_b), 'w');
	CHECK(kt_no_message(ub));
}

/* A page that COPY left protected in one mapping is writable through the other. */
static void protection_of_one(void)
{
	struct kt_access w;

	CHECK_EQ(kt_punch(fd, KT_PAGE, KT_PAGE), 0);
	CHECK_EQ(uffd_copy(ua, (uintptr_t)a + KT_PAGE, kt_fill('c', KT_PAGE), KT_PAGE,
			   UFFDIO_COPY_MODE_WP),
		 KT_PAGE);
	kt_access_start_write(&w, b + KT_PAGE, 'd');
	kt_access_end(&w);
	CHECK(kt_no_message(ub) && kt_no_message(ua));
	CHECK_EQ(*(volatile char *)(a + KT_PAGE), 'd');
	/* Protected in both, it is not. */
	CHECK_EQ(uffd_protect(ub, (uintptr_t)b + KT_PAGE, KT_PAGE), 0);
	kt_access_start_write(&w, b + KT_PAGE, 'e');
	CHECK(kt_blocked(&w));
	CHECK_EQ(uffd_unprotect(ub, (uintptr_t)b + KT_PAGE, KT_PAGE), 0);
	kt_access_end(&w);
}

static void zap(void)
{
	struct iovec twice = {a + 2 * KT_PAGE, KT_PAGE}, once = {a + 3 * KT_PAGE, KT_PAGE};
	int self = (int)syscall(SYS_pidfd_open, getpid(), 0);
	uint64_t swap = 0;

	if (procinfo_swap(&swap) || swap)
		return;
	CHECK(self >= 0);
	CHECK(!madvise(b + 3 * KT_PAGE, KT_PAGE, MADV_DONTNEED));
	kt_settle();
	CHECK_EQ(pageout_zap(self, &twice, 1), 0);
	CHECK_EQ(pageout_zap(self, &once, 1), 0);
	CHECK(kt_present(0, a + 2 * KT_PAGE));
	CHECK(!kt_present(0, a + 3 * KT_PAGE));
	CHECK_EQ(a[3 * KT_PAGE], '3');
	close(self);
}

int main(void)
{
	fd = kt_memfd(BYTES, false);
	ua = kt_uffd(UFFD_FEATURE_PAGEFAULT_FLAG_WP);
	ub = kt_uffd(UFFD_FEATURE_PAGEFAULT_FLAG_WP);
	a = kt_map(fd, BYTES);
	b = kt_map(fd, BYTES);
	for (size_t i = 0; i < BYTES; i += KT_PAGE) {
		a[i] = (char)('0' + i / KT_PAGE);
		b[i] = (char)('0' + i / KT_PAGE);
	}
	CHECK_EQ(uffd_register(ua, (uintptr_t)a, BYTES, MODES), 0);
	CHECK_EQ(uffd_register(ub, (uintptr_t)b, BYTES, MODES), 0);
	waiters();
	protection_of_one();
	zap();
	return 0;
}
