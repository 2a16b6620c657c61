/* SPDX-License-Identifier: BSD-3-Clause */
/* test_lock_after_death.c: whose death gives a lock back: POSIX locks and OFD locks. */
#include "kernel/kernel_test.h"

#include <fcntl.h>
#include <sys/wait.h>
#include <unistd.h>

/* Relied on by the fence of one daemon at a time: a POSIX lock ends with the daemon, though clients
 * hold duplicates of the file; an OFD lock would last as long as they do. */

/* Can the file be locked after its locker died, while a duplicate stays open here? */
static bool free_after_death(int set, int get)
{
	struct flock lock = {.l_type = F_WRLCK};
	int fd = kt_memfd(KT_PAGE, false), again, status;
	char path[64];
	pid_t pid = fork();

	CHECK(pid >= 0);
	if (!pid) {
		CHECK(!fcntl(fd, set, &lock));
		_exit(0);
	}
	CHECK_EQ(waitpid(pid, &status, 0), pid);
	CHECK_EQ(status, 0);
	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	again = open(path, O_RDWR | O_CLOEXEC);
	CHECK(again >= 0);
	lock = (struct flock){.l_type = F_WRLCK};
	CHECK(!fcntl(again, get, &lock));
	close(again);
	close(fd);
	return lock.l_type == F_UNLCK;
}

int main(void)
{
	CHECK(free_after_death(F_SETLK, F_GETLK));
	CHECK(!free_after_death(F_OFD_SETLK, F_OFD_GETLK));
	return 0;
}
