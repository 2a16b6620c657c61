/* SPDX-License-Identifier: BSD-3-Clause */
/* notify.c: telling the service manager how we are. */
#include "daemon/notify.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/fd.h"
#include "base/log.h"

/*
 * The protocol of sd_notify(3), which that page declares stable and asks others to implement: a
 * datagram of assignments to the socket that NOTIFY_SOCKET names. It is short enough to need no
 * library. 0, or -errno; -ENOTCONN: there is no manager.
 */
static int send_state(const char *state, int fd)
{
	const char *path = getenv("NOTIFY_SOCKET"); /* NOLINT(concurrency-mt-unsafe): never set */
	struct sockaddr_un addr = {.sun_family = AF_UNIX};
	FD_OWNED sock = -1;
	size_t n;

	if (!path || (*path != '/' && *path != '@'))
		return -ENOTCONN;
	n = strlen(path);
	if (n >= sizeof(addr.sun_path))
		return -ENOTCONN;
	memcpy(addr.sun_path, path, n);
	if (*path == '@')
		addr.sun_path[0] = '\0';
	sock = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (sock < 0 || connect(sock, (struct sockaddr *)&addr,
				(socklen_t)(offsetof(struct sockaddr_un, sun_path) + n)))
		return -errno;
	return fd_send(sock, state, strlen(state), &fd, fd >= 0);
}

void notify_send(const char *state)
{
	int r = send_state(state, -1);

	if (r && r != -ENOTCONN)
		log_warning("the service manager cannot be told \"%s\": %s", state, error_text(r));
}

int notify_fd_put(const char *name, int fd)
{
	char text[320];

	/* FDPOLL=0: a userfaultfd polls as in error, a pidfd as readable, and neither is over. */
	snprintf(text, sizeof(text), "FDSTORE=1\nFDPOLL=0\nFDNAME=%s", name);
	return send_state(text, fd);
}

void notify_fd_drop(const char *name)
{
	char text[320];

	snprintf(text, sizeof(text), "FDSTOREREMOVE=1\nFDNAME=%s", name);
	notify_send(text);
}

int notify_barrier(int timeout_ms)
{
	struct pollfd end = {.events = 0};
	FD_OWNED ours = -1;
	int fds[2], r;

	if (pipe2(fds, O_CLOEXEC))
		return -errno;
	ours = fds[0];
	r = send_state("BARRIER=1", fds[1]);
	close(fds[1]);
	if (r)
		return r;
	/* The manager closes the other end when it has come that far. */
	end.fd = ours;
	r = poll(&end, 1, timeout_ms);
	return r < 0 ? -errno : r ? 0 : -ETIMEDOUT;
}

unsigned int notify_fds_max(void)
{
	/* systemd tells it from version 254 on; before, the unit does. */
	const char *max = getenv("FDSTORE"); /* NOLINT(concurrency-mt-unsafe) */

	if (!max)
		max = getenv("EBB_FDSTORE"); /* NOLINT(concurrency-mt-unsafe) */
	/* NOLINTNEXTLINE(concurrency-mt-unsafe) */
	return max && getenv("NOTIFY_SOCKET") ? (unsigned int)strtoul(max, NULL, 10) : 0;
}

uint64_t notify_watchdog_us(void)
{
	const char *us = getenv("WATCHDOG_USEC"); /* NOLINT(concurrency-mt-unsafe) */
	const char *pid = getenv("WATCHDOG_PID"); /* NOLINT(concurrency-mt-unsafe) */

	if (!us || (pid && strtol(pid, NULL, 10) != getpid()))
		return 0;
	return strtoull(us, NULL, 10);
}

bool notify_stderr_is_journal(void)
{
	const char *stream = getenv("JOURNAL_STREAM"); /* NOLINT(concurrency-mt-unsafe) */
	struct stat st;
	char *end;
	unsigned long long dev, ino;

	if (!stream || fstat(STDERR_FILENO, &st))
		return false;
	dev = strtoull(stream, &end, 10);
	if (*end != ':')
		return false;
	ino = strtoull(end + 1, NULL, 10);
	return dev == st.st_dev && ino == st.st_ino;
}
