/* SPDX-License-Identifier: BSD-3-Clause */
/* notify.c: telling the service manager how we are. */
#include "daemon/notify.h"

#include <errno.h>
#include <stddef.h>
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
 * library.
 */
void notify_send(const char *state)
{
	const char *path = getenv("NOTIFY_SOCKET"); /* NOLINT(concurrency-mt-unsafe): never set */
	struct sockaddr_un addr = {.sun_family = AF_UNIX};
	FD_OWNED fd = -1;
	size_t n;

	if (!path || (*path != '/' && *path != '@'))
		return;
	n = strlen(path);
	if (n >= sizeof(addr.sun_path))
		return;
	memcpy(addr.sun_path, path, n);
	if (*path == '@')
		addr.sun_path[0] = '\0';
	fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd < 0 || sendto(fd, state, strlen(state), MSG_NOSIGNAL, (struct sockaddr *)&addr,
			     (socklen_t)(offsetof(struct sockaddr_un, sun_path) + n)) < 0)
		log_warning("the service manager cannot be told \"%s\": %s", state,
			    error_text(errno));
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
