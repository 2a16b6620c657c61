/* SPDX-License-Identifier: BSD-3-Clause */
/* probe.c: a plugin's first steps, taken in a child process that may crash or hang. */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/fd.h"
#include "plugin/plugin.h"

/*
 * The child writes a byte when it is through; its end without one is the crash. (Its exit status
 * is used only to name the signal: who set SIGCHLD to be ignored gets none.) A fork of a process
 * with threads may use no lock that one of them held; the C library sees to its own (malloc,
 * dlopen), and nothing else is called. Shared mappings are not copied by a fork, so the size of
 * the stores does not matter.
 */
static void child(void (*body)(void *arg), void *arg, int out, pid_t parent)
{
	static const int deadly[] = {SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGABRT, SIGTRAP, SIGSYS};
	const struct rlimit none = {0, 0};

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (getppid() != parent)
		_exit(1);
	for (size_t i = 0; i < sizeof(deadly) / sizeof(deadly[0]); i++)
		signal(deadly[i], SIG_DFL);
	setrlimit(RLIMIT_CORE, &none);
	body(arg);
	if (write(out, "", 1) != 1)
		_exit(1);
	_exit(0);
}

/* 1: it was through; 0: it died; -ETIMEDOUT. */
static int wait_for(int in)
{
	struct pollfd p = {.fd = in, .events = POLLIN};
	char byte;
	int n;

	do {
		n = poll(&p, 1, PLUGIN_PROBE_S * 1000);
	} while (n < 0 && errno == EINTR);
	if (n == 0)
		return -ETIMEDOUT;
	return read(in, &byte, 1) == 1;
}

static int probe_once(void (*body)(void *arg), void *arg, const char *what, struct error *e)
{
	FD_OWNED in = -1;
	FD_OWNED out = -1;
	pid_t parent = getpid(), pid;
	int pipe_fds[2], status = 0, r;

	if (pipe2(pipe_fds, O_CLOEXEC))
		return error_set(e, errno, ERROR_GENERIC, "pipe: %s", error_text(errno));
	in = pipe_fds[0];
	out = pipe_fds[1];
	pid = fork();
	if (pid < 0)
		return error_set(e, errno, ERROR_GENERIC, "fork: %s", error_text(errno));
	if (pid == 0)
		child(body, arg, out, parent);
	fd_close(&out);
	r = wait_for(in);
	if (r != 1)
		kill(pid, SIGKILL);
	while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
		;
	if (r == 1)
		return 0;
	if (r == -ETIMEDOUT)
		return error_set(e, ETIMEDOUT, ERROR_GENERIC, "%s hangs while it is loaded", what);
	return error_set(e, ENOEXEC, ERROR_GENERIC, "%s crashes while it is loaded%s%s", what,
			 WIFSIGNALED(status) ? ": " : "",
			 WIFSIGNALED(status) ? strsignal(WTERMSIG(status)) : "");
}

int plugin_probe(void (*body)(void *arg), void *arg, const char *what, struct error *e)
{
	int r = -ETIMEDOUT;

	for (int i = 0; r == -ETIMEDOUT && i < PLUGIN_PROBE_TRIES; i++)
		r = probe_once(body, arg, what, e);
	return r;
}
