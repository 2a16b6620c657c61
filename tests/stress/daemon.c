/* SPDX-License-Identifier: BSD-3-Clause */
/* daemon.c: a real ebbd of its own for a test: start, ask, stop. */
#include "stress/daemon.h"

#include <dirent.h>
#include <err.h>
#include <errno.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/fd.h"

/* False when the daemon closed the connection. */
static bool read_line(struct daemon *d)
{
	size_t n = 0;

	while (n < sizeof(d->answer) - 1) {
		if (read(d->fd, d->answer + n, 1) != 1)
			return false;
		if (d->answer[n] == '\n')
			break;
		n++;
	}
	d->answer[n] = 0;
	return true;
}

static void __attribute__((noreturn)) gone(const struct daemon *d)
{
	int status = 0;

	usleep(200000);
	if (waitpid(d->pid, &status, WNOHANG) == d->pid)
		errx(1, "the daemon has ended, with wait status 0x%x", (unsigned int)status);
	errx(1, "the daemon closed the control socket");
}

/* A successor is not told when this process ends. */
static pid_t successor;

static void end_successor(void)
{
	if (successor > 0)
		kill(successor, SIGKILL);
}

/* It has ended: its number may be another's soon. */
static void ended(const struct daemon *d)
{
	if (successor == d->pid)
		successor = -1;
}

void daemon_begin(struct daemon *d)
{
	d->begun_ns = clock_ns();
	d->pid = fork();
	if (d->pid < 0)
		err(1, "fork");
	if (d->pid == 0) {
		/* A test that is killed leaves no daemon behind. */
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		if (d->log[0] && !freopen(d->log, "a", stderr))
			_exit(127);
		execv(d->binary, (char *const *)d->argv);
		err(127, "%s", d->binary);
	}
}

/* Its sockets are there; what it finds out of the kernel may be still to come. */
static void meet(struct daemon *d)
{
	for (int i = 0; i < 6000; i++) {
		/* One that a killed daemon's child still holds open has no greeting to come. */
		d->fd = fd_connect_unix(d->control);
		if (d->fd >= 0 && read_line(d))
			break;
		fd_close(&d->fd);
		if (waitpid(d->pid, NULL, WNOHANG) == d->pid)
			errx(1, "the daemon did not start");
		usleep(5000);
	}
	if (d->fd < 0)
		errx(1, "the daemon does not listen");
	daemon_ask(d, "{\"execute\":\"qmp_capabilities\"}");
}

void daemon_reach(struct daemon *d)
{
	meet(d);
	/* Answered when it knows the kernel, and has opened all that it keeps open. */
	daemon_ask(d, "{\"execute\":\"query-host\"}");
}

void daemon_start(struct daemon *d, const char *const *args)
{
	const char *build = getenv("EBB_BUILD");
	int n = 0;

	if (!build)
		errx(1, "EBB_BUILD names no build folder");
	strcpy(d->dir, "/tmp/ebb-stress.XXXXXX");
	if (!mkdtemp(d->dir))
		err(1, "mkdtemp");
	snprintf(d->attach, sizeof(d->attach), "%s/attach.sock", d->dir);
	snprintf(d->control, sizeof(d->control), "%s/control.sock", d->dir);
	snprintf(d->binary, sizeof(d->binary), "%s/ebbd", build);
	d->argv[n++] = d->binary;
	d->argv[n++] = "--runtime-dir";
	d->argv[n++] = d->dir;
	for (; args && *args && n < DAEMON_ARGS_MAX - 1; args++)
		d->argv[n++] = *args;
	d->argv[n] = NULL;
	/* Who replaces it becomes our child too. */
	prctl(PR_SET_CHILD_SUBREAPER, 1);
	daemon_begin(d);
	daemon_reach(d);
}

void daemon_end(struct daemon *d)
{
	close(d->fd);
	if (kill(d->pid, SIGKILL) || waitpid(d->pid, NULL, 0) != d->pid)
		err(1, "cannot kill the daemon");
	ended(d);
}

void daemon_connect(const struct daemon *d, struct daemon *out)
{
	*out = *d;
	out->fd = fd_connect_unix(d->control);
	if (out->fd < 0)
		errx(1, "the daemon does not listen");
	if (!read_line(out)) /* the greeting */
		gone(d);
	daemon_ask(out, "{\"execute\":\"qmp_capabilities\"}");
}

static uint64_t number_in(const char *text, const char *key)
{
	const char *p = strstr(text, key);

	if (!p)
		errx(1, "no %s in %.300s", key, text);
	return strtoull(p + strlen(key), NULL, 10);
}

bool daemon_try_upgrade(struct daemon *d, uint64_t *paused_us)
{
	pid_t old = d->pid;

	daemon_ask(d, "{\"execute\":\"upgrade\"}");
	if (strstr(d->answer, "no upgrade:"))
		return false;
	*paused_us = number_in(d->answer, "\"paused-us\":");
	d->pid = (pid_t)number_in(d->answer, "\"pid\":");
	if (!successor)
		atexit(end_successor);
	successor = d->pid;
	close(d->fd);
	if (waitpid(old, NULL, 0) != old)
		err(1, "waitpid");
	meet(d);
	return true;
}

uint64_t daemon_upgrade(struct daemon *d)
{
	uint64_t paused_us;

	if (!daemon_try_upgrade(d, &paused_us))
		errx(1, "no upgrade: %.300s", d->answer);
	return paused_us;
}

int daemon_reap(struct daemon *d)
{
	int status;

	if (waitpid(d->pid, &status, 0) != d->pid)
		err(1, "waitpid");
	ended(d);
	close(d->fd);
	return status;
}

void daemon_next(struct daemon *d)
{
	daemon_begin(d);
	meet(d);
}

void daemon_replace(struct daemon *d)
{
	daemon_end(d);
	daemon_begin(d);
	daemon_reach(d);
}

static bool ask(struct daemon *d, const char *fmt, va_list ap)
{
	char line[4096];
	int n = vsnprintf(line, sizeof(line) - 1, fmt, ap);

	line[n++] = '\n';
	if (fd_send(d->fd, line, (size_t)n, NULL, 0))
		return false;
	do {
		if (!read_line(d))
			return false;
	} while (strncmp(d->answer, "{\"event\"", 8) == 0 || strstr(d->answer, "\"timestamp\""));
	return true;
}

bool daemon_try(struct daemon *d, const char *fmt, ...)
{
	va_list ap;
	bool there;

	va_start(ap, fmt);
	there = ask(d, fmt, ap);
	va_end(ap);
	return there;
}

const char *daemon_ask(struct daemon *d, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	if (!ask(d, fmt, ap))
		gone(d);
	va_end(ap);
	return d->answer;
}

uint64_t daemon_vm_number(struct daemon *d, const char *vm, const char *name)
{
	char key[128];
	const char *p;

	daemon_ask(d, "{\"execute\":\"query-vm\",\"arguments\":{\"vm\":\"%s\"}}", vm);
	snprintf(key, sizeof(key), "\"%s\":", name);
	p = strstr(d->answer, key);
	if (!p)
		errx(1, "query-vm has no %s: %.300s", name, d->answer);
	return strtoull(p + strlen(key), NULL, 10);
}

unsigned int daemon_fds(const struct daemon *d)
{
	char path[64];
	unsigned int n = 0;
	DIR *dir;

	snprintf(path, sizeof(path), "/proc/%d/fd", (int)d->pid);
	dir = opendir(path);
	if (!dir)
		err(1, "%s", path);
	while (readdir(dir))
		n++;
	closedir(dir);
	return n - 2;
}

static void remove_dir(const char *path)
{
	struct dirent *ent;
	DIR *dir = opendir(path);
	char name[512];

	while (dir && (ent = readdir(dir))) {
		snprintf(name, sizeof(name), "%s/%s", path, ent->d_name);
		unlink(name);
	}
	if (dir)
		closedir(dir);
	rmdir(path);
}

void daemon_remove(struct daemon *d)
{
	remove_dir(d->dir);
}

void daemon_kill(struct daemon *d)
{
	daemon_end(d);
	daemon_remove(d);
}

void daemon_stop(struct daemon *d)
{
	int status;

	close(d->fd);
	kill(d->pid, SIGTERM);
	if (waitpid(d->pid, &status, 0) != d->pid || !WIFEXITED(status) || WEXITSTATUS(status))
		errx(1, "the daemon ended with status 0x%x", status);
	ended(d);
	remove_dir(d->dir);
}
