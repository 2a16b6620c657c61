/* SPDX-License-Identifier: BSD-3-Clause */
/* test_uffd_other_process.c: a userfaultfd used by another process than the one it is for. */
#include "kernel/kernel_test.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>
#include "base/error.h"
#include "sys/uffd.h"

/* Relied on by the daemon: it registers and fills the memory of its clients, gives clients without
 * rights the userfaultfd device, and learns of their end by ESRCH and a pidfd, not by poll. */

#define IOC_NEW _IO(0xAA, 0x00)

struct said {
	int uffd;
	char *map;
};

/* The client: gives up its rights, makes its userfaultfd from the device, maps, tells, reads. */
static void client(int fd, int device, int hear, int tell)
{
	struct said said;
	char c;

	CHECK(!setresgid(65534, 65534, 65534) && !setresuid(65534, 65534, 65534));
	CHECK(!prctl(PR_SET_DUMPABLE, 1));
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	said.uffd = ioctl(device, IOC_NEW, O_CLOEXEC | O_NONBLOCK);
	CHECK(said.uffd >= 0);
	said.map = kt_map(fd, 2 * KT_PAGE);
	CHECK_EQ(write(tell, &said, sizeof(said)), sizeof(said));
	CHECK_EQ(read(hear, &c, 1), 1);
	/* A fault in kernel mode, as KVM's are. */
	CHECK_EQ(write(tell, said.map, 1), 1);
	c = said.map[KT_PAGE];
	CHECK_EQ(write(tell, &c, 1), 1);
	for (;;)
		pause();
}

int main(void)
{
	int device = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC), to[2], from[2], pidfd, uffd;
	int fd = kt_memfd(2 * KT_PAGE, false);
	struct said said;
	struct pollfd p = {.events = POLLIN};
	struct uffd_msg msg;
	uint64_t at;
	pid_t pid;
	char c;

	if (device < 0)
		SKIP("/dev/userfaultfd (%s)", error_text(errno));
	CHECK(!pipe(to) && !pipe(from));
	pid = fork();
	CHECK(pid >= 0);
	if (!pid)
		client(fd, device, to[0], from[1]);
	CHECK_EQ(read(from[0], &said, sizeof(said)), sizeof(said));
	pidfd = (int)syscall(SYS_pidfd_open, pid, 0);
	uffd = (int)syscall(SYS_pidfd_getfd, pidfd, said.uffd, 0);
	CHECK(pidfd >= 0 && uffd >= 0);
	at = (uintptr_t)said.map;
	CHECK_EQ(uffd_api(uffd, UFFD_FEATURE_THREAD_ID, NULL), 0);
	CHECK_EQ(uffd_register(uffd, at, 2 * KT_PAGE, UFFDIO_REGISTER_MODE_MISSING), 0);
	CHECK_EQ(write(to[1], "g", 1), 1);
	for (int i = 0; i < 2; i++) {
		uint64_t page = at + (uint64_t)i * KT_PAGE;

		CHECK(kt_message(uffd, &msg));
		CHECK_EQ(msg.arg.pagefault.feat.ptid, pid);
		CHECK_EQ(msg.arg.pagefault.address & ~(KT_PAGE - 1), page);
		CHECK_EQ(uffd_copy(uffd, page, kt_fill((char)('0' + i), KT_PAGE), KT_PAGE, 0),
			 KT_PAGE);
		CHECK_EQ(read(from[0], &c, 1), 1);
		CHECK_EQ(c, '0' + i);
	}
	kill(pid, SIGKILL);
	CHECK_EQ(waitpid(pid, NULL, 0), pid);
	p.fd = uffd;
	CHECK_EQ(poll(&p, 1, 50), 0);
	CHECK_EQ(uffd_copy(uffd, at, kt_fill(1, KT_PAGE), KT_PAGE, 0), -ESRCH);
	CHECK_EQ(uffd_protect(uffd, at, KT_PAGE), -ESRCH);
	p.fd = pidfd;
	CHECK_EQ(poll(&p, 1, 50), 1);
	return 0;
}
