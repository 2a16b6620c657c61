/* SPDX-License-Identifier: BSD-3-Clause */
/* test_memfd_seals.c: what seals and open modes allow on a memfd. */
#include "kernel/kernel_test.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

/* Relied on by attaching (a file sealed against writing cannot be punched and is refused, one
 * sealed against shrinking can), and by the hand-over of state: a client without rights cannot turn
 * the read-only descriptor that it keeps into a writable one. */

#ifndef F_SEAL_FUTURE_WRITE
#define F_SEAL_FUTURE_WRITE 0x0010
#endif

static int sealed_punch(int seals)
{
	int fd = kt_memfd(4 * KT_PAGE, false), r;

	CHECK_EQ(pwrite(fd, "s", 1, 0), 1);
	CHECK(!fcntl(fd, F_ADD_SEALS, seals));
	r = kt_punch(fd, 0, KT_PAGE);
	close(fd);
	return r;
}

/* As nobody, with a read-only descriptor of a file that is root's. */
static void try_to_write(int fd)
{
	char path[64];

	CHECK(!setresgid(65534, 65534, 65534) && !setresuid(65534, 65534, 65534));
	CHECK_EQ(write(fd, "x", 1), -1);
	CHECK_EQ(errno, EBADF);
	CHECK(mmap(NULL, KT_PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0) == MAP_FAILED);
	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	CHECK_EQ(open(path, O_RDWR | O_CLOEXEC), -1);
	CHECK_EQ(errno, EACCES);
	CHECK_EQ(ftruncate(fd, 0), -1);
}

int main(void)
{
	int fd, reader, status;
	char path[64];
	pid_t pid;

	CHECK_EQ(sealed_punch(F_SEAL_FUTURE_WRITE), -EPERM);
	CHECK_EQ(sealed_punch(F_SEAL_WRITE), -EPERM);
	CHECK_EQ(sealed_punch(F_SEAL_SHRINK | F_SEAL_GROW), 0);
	fd = kt_memfd(KT_PAGE, false);
	CHECK(!fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK));
	CHECK_EQ(ftruncate(fd, 0), -1);
	CHECK_EQ(errno, EPERM);

	if (geteuid())
		SKIP("giving up root");
	CHECK(!fchmod(fd, 0600));
	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	reader = open(path, O_RDONLY);
	CHECK(reader >= 0);
	close(fd);
	pid = fork();
	CHECK(pid >= 0);
	if (!pid) {
		try_to_write(reader);
		_exit(0);
	}
	CHECK_EQ(waitpid(pid, &status, 0), pid);
	CHECK_EQ(status, 0);
	return 0;
}
