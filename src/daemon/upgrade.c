/* SPDX-License-Identifier: BSD-3-Clause */
/* upgrade.c: replacing the running daemon: the old one's part. */
#include "daemon/upgrade.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/fd.h"
#include "base/log.h"
#include "daemon/internal.h"
#include "daemon/listen.h"
#include "daemon/lock.h"
#include "daemon/stage.h"
#include "engine/handover.h"

/*
 * Theory of operation
 *
 * The new binary is started beside the old daemon and does all that takes time (probing the kernel,
 * loading the folio probe, opening plugins) while the old one serves. Then the old one stands
 * still, hands over descriptors and what it knows (stage.h), and ends. Whatever goes wrong before
 * the commit, it goes on: it has changed nothing, and the new one has not either.
 *
 * Who is the master: the old daemon until it sends commit; before that it gives up the lock of the
 * runtime folder, which the new one takes when commit has come. A new one that dies after that is a
 * daemon that died (the clients hold their VMs' state); one that dies before, or hangs, is killed
 * and forgotten.
 *
 * The new process is nobody's child: its parent ends at once, so that a service manager adopts it
 * before it is told that this is the main process now.
 */

#define HOLD_MS	  8000 /* for requests and commands under way */
#define END_S	  3
#define ARGUMENTS 64

extern char **environ;

struct successor {
	int sock, pidfd;
	pid_t pid;
};

static void successor_close(struct successor *s)
{
	fd_close(&s->sock);
	fd_close(&s->pidfd);
}

/* It failed, or is of no use any more. */
static void successor_kill(struct successor *s)
{
	if (s->pidfd >= 0)
		syscall(SYS_pidfd_send_signal, s->pidfd, SIGKILL, NULL, 0);
	successor_close(s);
}

/* The path of the file that this process runs, also when that was replaced by a newer one. */
static int own_binary(char *out, size_t room, struct error *e)
{
	static const char deleted[] = " (deleted)";
	ssize_t n = readlink("/proc/self/exe", out, room - 1);

	if (n < 0)
		return error_set(e, errno, ERROR_GENERIC, "/proc/self/exe: %s", error_text(errno));
	out[n] = '\0';
	if ((size_t)n > strlen(deleted) && strcmp(out + n - strlen(deleted), deleted) == 0)
		out[(size_t)n - strlen(deleted)] = '\0';
	return 0;
}

/* The arguments of this daemon without an earlier --take-over, and the new one. */
static int make_arguments(const struct daemon *d, const char *binary, char *fd_text, char **out)
{
	int n = 0;

	out[n++] = (char *)binary;
	for (int i = 1; i < d->argc && n < ARGUMENTS - 3; i++) {
		if (strcmp(d->argv[i], "--take-over") == 0)
			i++;
		else
			out[n++] = d->argv[i];
	}
	out[n++] = (char *)"--take-over";
	out[n++] = fd_text;
	out[n] = NULL;
	return d->argc < ARGUMENTS - 3 ? 0 : -E2BIG;
}

/* WATCHDOG_PID names this process; the successor is watched all the same. */
static char **make_environment(void)
{
	size_t n = 0, k = 0;
	char **env;

	while (environ[n])
		n++;
	env = calloc(n + 1, sizeof(*env));
	for (size_t i = 0; env && i < n; i++)
		if (strncmp(environ[i], "WATCHDOG_PID=", 13) != 0)
			env[k++] = environ[i];
	return env;
}

/* What comes through the pipe: the process's id, and why it could not be executed. */
struct report {
	enum { REPORT_PID, REPORT_ERRNO } kind;
	int value;
};

static void tell(int report, int kind, int value)
{
	struct report r = {kind, value};

	if (write(report, &r, sizeof(r)) != (ssize_t)sizeof(r))
		_exit(126);
}

/* In the grandchild: nothing but what is safe after fork() in a process with threads. */
static void become(const char *binary, char **argv, char **env, int sock, int report)
{
	sigset_t none;

	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	if (fcntl(sock, F_SETFD, 0) == 0)
		execve(binary, argv, env);
	tell(report, REPORT_ERRNO, errno);
	_exit(127);
}

static void fork_twice(const char *binary, char **argv, char **env, int sock, int report)
{
	pid_t pid = fork();

	if (pid == 0)
		become(binary, argv, env, sock, report);
	tell(report, pid < 0 ? REPORT_ERRNO : REPORT_PID, pid < 0 ? errno : pid);
	_exit(0);
}

static int start_process(const char *binary, char **argv, char **env, int sock, pid_t *pid,
			 struct error *e)
{
	int report[2], err = 0;
	struct report r;
	pid_t child;

	*pid = -1;
	if (pipe2(report, O_CLOEXEC))
		return error_set(e, errno, ERROR_GENERIC, "pipe: %s", error_text(errno));
	child = fork();
	if (child == 0)
		fork_twice(binary, argv, env, sock, report[1]);
	if (child < 0)
		err = errno;
	close(report[1]);
	while (child > 0 && waitpid(child, NULL, 0) < 0 && errno == EINTR)
		;
	/* Ends when both processes have: the one by exiting, the other by executing. */
	while (read(report[0], &r, sizeof(r)) == (ssize_t)sizeof(r)) {
		if (r.kind == REPORT_PID)
			*pid = r.value;
		else
			err = r.value;
	}
	close(report[0]);
	if (err || *pid <= 0)
		return error_set(e, err ? err : EAGAIN, ERROR_ARGUMENT, "%s: %s", binary,
				 err == ENOEXEC ? "not an executable of this machine"
				 : err		? error_text(err)
						: "it could not be started");
	return 0;
}

static int start_successor(struct daemon *d, const char *binary, struct successor *s,
			   struct error *e)
{
	char *argv[ARGUMENTS], own[PATH_MAX], fd_text[16];
	char **env = make_environment();
	int pair[2], r = 0;

	*s = (struct successor){.sock = -1, .pidfd = -1};
	if (!env)
		return error_set(e, ENOMEM, ERROR_GENERIC, "out of memory");
	if (!binary) {
		r = own_binary(own, sizeof(own), e);
		binary = own;
	} else if (binary[0] != '/') {
		r = error_set(e, EINVAL, ERROR_ARGUMENT, "'%.200s' is no absolute path", binary);
	}
	if (!r && socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair))
		r = error_set(e, errno, ERROR_GENERIC, "socketpair: %s", error_text(errno));
	if (r) {
		free(env);
		return r;
	}
	snprintf(fd_text, sizeof(fd_text), "%d", pair[1]);
	r = make_arguments(d, binary, fd_text, argv);
	if (r)
		error_set(e, -r, ERROR_LIMIT, "too many arguments");
	else
		r = start_process(binary, argv, env, pair[1], &s->pid, e);
	close(pair[1]);
	free(env);
	s->sock = pair[0];
	if (!r)
		s->pidfd = (int)syscall(SYS_pidfd_open, s->pid, 0);
	else
		successor_close(s);
	return r;
}

/* It is there, reads our state, and has what takes time behind it. */
static int get_ready(struct daemon *d, struct successor *s, uint32_t wait_ms,
		     struct upgrade_done *out, struct error *e)
{
	struct parcel hello, prepare;
	json_t *plugins;
	int r = stage_expect(s->sock, "hello", wait_ms, &hello, e);

	if (r)
		return r;
	r = stage_check_reader(hello.body, e);
	snprintf(out->version, sizeof(out->version), "%.31s",
		 json_is_string(json_object_get(hello.body, "ebbd"))
			 ? json_string_value(json_object_get(hello.body, "ebbd"))
			 : "?");
	parcel_free(&hello);
	if (r)
		return r;
	plugins = handover_plugins(d->engine);
	if (!plugins || stage_new(&prepare, "prepare"))
		return error_set(e, ENOMEM, ERROR_GENERIC, "out of memory");
	json_object_set_new(prepare.body, "plugins", plugins);
	r = stage_send(s->sock, &prepare, wait_ms, e);
	if (!r)
		r = stage_expect(s->sock, "ready", wait_ms, &hello, e);
	if (!r)
		parcel_free(&hello);
	return r;
}

/* All of it is still; what is handed over, in one parcel. */
static int give_state(struct daemon *d, struct successor *s, struct parcel *state, struct error *e)
{
	struct parcel taken;
	int r = handover_export(d->engine, state, e);

	if (r)
		return r;
	listen_export(d->listen, state);
	json_object_set_new(state->body, "control-socket",
			    parcel_add_fd(state, control_listener(d->control)));
	r = stage_send(s->sock, state, STAGE_TAKEN_MS, e);
	if (!r)
		r = stage_expect(s->sock, "taken", STAGE_TAKEN_MS, &taken, e);
	if (!r)
		parcel_free(&taken);
	return r;
}

static int commit(struct daemon *d, struct successor *s, struct error *e)
{
	struct error why;
	int r;

	/* From here on this process may be ended by a signal at any time, and must not touch it. */
	atomic_store(&d->handed_over, true);
	fd_close(&d->lock);
	r = stage_say(s->sock, "commit", e);
	if (!r)
		return 0;
	/* It never got it, so it does nothing. */
	atomic_store(&d->handed_over, false);
	d->lock = lock_take(d->config->runtime_dir, &why);
	if (d->lock < 0)
		log_error("%s", why.desc);
	return r;
}

static int hand_over(struct daemon *d, struct successor *s, struct upgrade_done *out,
		     struct error *e)
{
	struct parcel state, serving;
	struct error late;
	uint64_t start;
	int r;

	if (stage_new(&state, "state"))
		return error_set(e, ENOMEM, ERROR_GENERIC, "out of memory");
	r = listen_hold(d->listen, HOLD_MS, e);
	if (r) {
		parcel_free(&state);
		return r;
	}
	r = engine_pause_commands(d->engine, HOLD_MS, e);
	if (r) {
		parcel_free(&state);
		listen_release(d->listen);
		return r;
	}
	engine_pause_background(d->engine);
	handover_save_policies(d->engine, &state);
	start = clock_ns();
	engine_pause_faults(d->engine);
	r = handover_quiesce(d->engine, e);
	if (!r)
		r = give_state(d, s, &state, e);
	else
		parcel_free(&state);
	if (!r)
		r = commit(d, s, e);
	handover_saved_drop(d->engine);
	if (r) {
		handover_resume(d->engine);
		engine_go_on(d->engine);
		listen_release(d->listen);
		return r;
	}
	/* It tells the service manager first that it is the main process now. */
	if (stage_expect(s->sock, "serving", STAGE_SERVING_MS, &serving, &late))
		log_error("upgrade: the successor has everything, but %s", late.desc);
	else
		parcel_free(&serving);
	out->paused_us = (clock_ns() - start) / NS_PER_US;
	out->pid = s->pid;
	return 0;
}

/* Commands that came too late wait for an engine that stands still for ever. */
static void *end_anyway(void *arg)
{
	(void)arg;
	sleep(END_S);
	_exit(0);
}

int upgrade_run(struct daemon *d, const char *binary, uint32_t wait_ms, struct upgrade_done *out,
		struct error *e)
{
	struct successor s;
	struct error why;
	pthread_t last_resort;
	int r;

	if (getpid() == 1)
		return error_set(e, ENOTSUP, ERROR_UNSUPPORTED,
				 "the daemon is process 1, and everything ends with that");
	r = start_successor(d, binary, &s, &why);
	if (!r)
		r = get_ready(d, &s, wait_ms, out, &why);
	if (!r)
		r = hand_over(d, &s, out, &why);
	if (r) {
		successor_kill(&s);
		log_warning("upgrade: %s; all goes on as before", why.desc);
		return error_set(e, -r, why.cls, "no upgrade: %s", why.desc);
	}
	log_info("upgrade: process %d goes on, version %s", (int)out->pid, out->version);
	/* The socket stays open: its end tells the successor that this process is gone. */
	if (!pthread_create(&last_resort, NULL, end_anyway, NULL))
		pthread_detach(last_resort);
	return 0;
}
