/* SPDX-License-Identifier: BSD-3-Clause */
/* test_uffd_remove_event.c: EVENT_REMOVE: who raises it, what it means, and what waits for it. */
#include "kernel/kernel_test.h"

#include <unistd.h>
#include "sys/uffd.h"

/* Relied on by the engine: the event is a hint on memfds (the same one comes with and without loss
 * of data), events are read before anything else is tried, and its own punches raise none. */

struct advice {
	pthread_t thread;
	char *at;
	int what;
	volatile bool done;
};

static void *advise(void *arg)
{
	struct advice *a = arg;

	CHECK(!madvise(a->at, KT_PAGE, a->what));
	a->done = true;
	return NULL;
}

/* Gives the page up by this advice; the adviser waits until the event was read. */
static void give_up(int uffd, char *at, int what)
{
	struct advice a = {.at = at, .what = what};
	const char *content = kt_fill('n', KT_PAGE);
	struct uffd_msg msg;

	CHECK(!pthread_create(&a.thread, NULL, advise, &a));
	usleep(50000);
	CHECK(!a.done);
	CHECK_EQ(uffd_copy(uffd, (uintptr_t)at + 8 * KT_PAGE, content, KT_PAGE, 0), -EAGAIN);
	CHECK(kt_message(uffd, &msg));
	CHECK_EQ(msg.event, UFFD_EVENT_REMOVE);
	CHECK_EQ(msg.arg.remove.start, (uintptr_t)at);
	CHECK_EQ(msg.arg.remove.end, (uintptr_t)at + KT_PAGE);
	CHECK(!pthread_join(a.thread, NULL));
	CHECK_EQ(uffd_copy(uffd, (uintptr_t)at + 8 * KT_PAGE, content, KT_PAGE, 0), KT_PAGE);
}

int main(void)
{
	int fd = kt_memfd(16 * KT_PAGE, false), uffd = kt_uffd(UFFD_FEATURE_EVENT_REMOVE);
	char *map = kt_map(fd, 16 * KT_PAGE), c = 0;

	memset(map, 'd', 8 * KT_PAGE);
	CHECK_EQ(uffd_register(uffd, (uintptr_t)map, 16 * KT_PAGE, UFFDIO_REGISTER_MODE_MISSING),
		 0);
	give_up(uffd, map, MADV_DONTNEED);
	CHECK_EQ(pread(fd, &c, 1, 0), 1);
	CHECK_EQ(c, 'd');
	give_up(uffd, map + KT_PAGE, MADV_REMOVE);
	CHECK(!kt_cached(fd, KT_PAGE));
	/* A hole punched through the descriptor says nothing to anybody. */
	CHECK_EQ(kt_punch(fd, 2 * KT_PAGE, KT_PAGE), 0);
	CHECK(kt_no_message(uffd));
	return 0;
}
