/* SPDX-License-Identifier: BSD-3-Clause */
/* test_hugetlb_pool.c: hugetlb: a punch gives the page away, and a reservation keeps newcomers out.
 */
#include "kernel/kernel_test.h"

#include <linux/mman.h>
#include <unistd.h>
#include "sys/uffd.h"

/* Relied on by the engine: the headroom that it reserves for refills, given back page by page;
 * COPY's EEXIST proves nothing there, CONTINUE's EFAULT does. */

#define RAM   4
#define SPARE 4

/* Maps so many pages of the pool without touching them; NULL when they cannot be reserved. */
static char *reserve(unsigned int pages)
{
	char *map = mmap(NULL, pages * KT_HUGE, PROT_READ | PROT_WRITE,
			 MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB | (21 << MAP_HUGE_SHIFT), -1, 0);

	return map == MAP_FAILED ? NULL : map;
}

static int uffd;
static char *ram;

static int64_t refill(unsigned int page)
{
	static const char *content;

	if (!content)
		content = kt_fill('h', KT_HUGE);
	return uffd_copy(uffd, (uintptr_t)ram + page * KT_HUGE, content, KT_HUGE, 0);
}

static void dry(void)
{
	char *others = reserve(SPARE + 1);
	struct kt_access a;
	struct uffd_msg msg;
	int64_t r;

	/* The punched page can be had by others, as the spare ones can. */
	CHECK(others);
	kt_access_start(&a, ram);
	CHECK(kt_message(uffd, &msg));
	r = refill(0);
	CHECK(r == -EEXIST || r == -ENOMEM);
	kt_saw("COPY from a dry pool answers %s", r == -EEXIST ? "EEXIST" : "ENOMEM");
	CHECK_EQ(uffd_continue(uffd, (uintptr_t)ram, KT_HUGE, 0), -EFAULT);
	CHECK(kt_blocked(&a));
	munmap(others, (SPARE + 1) * KT_HUGE);
	CHECK_EQ(refill(0), KT_HUGE);
	CHECK_EQ(kt_access_end(&a), 'h');
}

static void headroom(int fd)
{
	char *guard, *newcomer;

	CHECK_EQ(kt_punch(fd, 0, 2 * KT_HUGE), 0);
	guard = reserve(SPARE + 2);
	CHECK(guard);
	newcomer = reserve(1);
	CHECK(!newcomer);
	CHECK(refill(0) < 0);
	/* Given back one by one: for each a refill, and still nothing for newcomers. */
	for (unsigned int i = 0; i < 2; i++) {
		munmap(guard + i * KT_HUGE, KT_HUGE);
		CHECK_EQ(refill(i), KT_HUGE);
		newcomer = reserve(1);
		CHECK(!newcomer);
	}
	munmap(guard + 2 * KT_HUGE, SPARE * KT_HUGE);
	CHECK_EQ(ram[0], 'h');
}

int main(void)
{
	int fd;

	kt_set_free_huge_pages(RAM + SPARE);
	fd = kt_memfd(RAM * KT_HUGE, true);
	uffd = kt_uffd(UFFD_FEATURE_PAGEFAULT_FLAG_WP | UFFD_FEATURE_WP_HUGETLBFS_SHMEM);
	ram = kt_map(fd, RAM * KT_HUGE);
	memset(ram, 'h', RAM * KT_HUGE);
	CHECK_EQ(uffd_register(uffd, (uintptr_t)ram, RAM * KT_HUGE,
			       UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_WP |
				       UFFDIO_REGISTER_MODE_MINOR),
		 0);
	CHECK_EQ(kt_free_huge_pages(), SPARE);
	CHECK_EQ(kt_punch(fd, 0, KT_HUGE), 0);
	CHECK_EQ(kt_free_huge_pages(), SPARE + 1);
	dry();
	headroom(fd);
	munmap(ram, RAM * KT_HUGE);
	close(fd);
	close(uffd);
	return 0;
}
