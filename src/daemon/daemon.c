/* SPDX-License-Identifier: BSD-3-Clause */
/* daemon.c: the daemon, put together. */
#include "daemon/daemon.h"

#include <errno.h>
#include <grp.h>
#include <limits.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <unistd.h>

#include <event2/event.h>

#include "base/fd.h"
#include "base/log.h"
#include "control/control.h"
#include "control/events.h"
#include "control/metrics_http.h"
#include "control/settings.h"
#include "daemon/listen.h"
#include "daemon/lock.h"
#include "daemon/notify.h"

/*
 * Theory of operation
 *
 * Start, in this order: the runtime folder and its lock, the signals (blocked before any thread is
 * made, so that only the loop sees them), the engine, backends and policies, the attach and the
 * control socket, metrics, and then READY to the service manager. Stop in the reverse order. No
 * memory is brought back at the end: the VMs' faults wait for a successor, unless `quit` with drain
 * has let go of them before.
 *
 * What was asked for by the operator and cannot be had (a backend that does not open) is an error
 * in the log, not the end: the VMs of the daemon before this one wait for it to come up.
 */

#define SOCKET_MODE   0660
#define DEFAULT_GROUP "ebb"

struct daemon {
	struct config *config;
	const struct schema *schema;
	int argc;
	char **argv;
	int lock, signals; /* owned */
	struct event_base *base;
	struct event *on_signal, *watchdog;
	struct event_queue *events;
	struct settings *settings;
	struct engine *engine;
	struct crashes *crashes;
	bool ended; /* as it should */
	struct listen *listen;
	struct control *control;
	struct metrics_http *metrics;
	struct plugin_path plugins;
	char own_plugins[PATH_MAX];
};

static const char *in_folder(const struct daemon *d, const char *name, char *buf)
{
	snprintf(buf, PATH_MAX, "%s/%s", d->config->runtime_dir, name);
	return buf;
}

/* Plugins beside the binary when it runs in its build folder, else where they are installed. */
static void find_plugins(struct daemon *d)
{
	char probe[PATH_MAX + 16];
	ssize_t n = readlink("/proc/self/exe", d->own_plugins, sizeof(d->own_plugins) - 1);
	char *slash;

	for (int i = 0; i < d->config->plugin_dirs.n; i++)
		d->plugins.dirs[d->plugins.n_dirs++] = d->config->plugin_dirs.items[i];
	d->own_plugins[n > 0 ? n : 0] = '\0';
	slash = strrchr(d->own_plugins, '/');
	if (slash)
		*slash = '\0';
	snprintf(probe, sizeof(probe), "%s/backends", d->own_plugins);
	if (!slash || access(probe, X_OK))
		snprintf(d->own_plugins, sizeof(d->own_plugins), "%s", EBB_PLUGIN_DIR);
	d->plugins.dirs[d->plugins.n_dirs++] = d->own_plugins;
}

static void stop(void *ctx)
{
	struct daemon *d = ctx;

	d->ended = true;
	event_base_loopexit(d->base, NULL);
}

/* Reads the configuration again; takes over what can change in a running daemon. */
static void reload(struct daemon *d)
{
	enum config_action action;
	struct config fresh;
	struct error e;

	notify_send("RELOADING=1");
	if (config_read(&fresh, d->schema, d->argc, d->argv, &action, &e)) {
		log_error("reload: %s; everything stays as it was", e.desc);
	} else {
		log_setup((enum log_level)fresh.log_level, notify_stderr_is_journal());
		settings_set_base(d->settings, json_incref(fresh.settings));
		log_info("reload: log-level and the settings of VMs that attach from now on; "
			 "all else needs a restart");
	}
	config_free(&fresh);
	notify_send("READY=1");
}

static void on_signal(evutil_socket_t fd, short what, void *ctx)
{
	struct daemon *d = ctx;
	struct signalfd_siginfo info;

	(void)what;
	if (read(fd, &info, sizeof(info)) != sizeof(info))
		return;
	if (info.ssi_signo == SIGHUP) {
		reload(d);
		return;
	}
	log_info("signal %u: ending; what is evicted waits for the next daemon", info.ssi_signo);
	stop(d);
}

static void on_watchdog(evutil_socket_t fd, short what, void *ctx)
{
	(void)fd;
	(void)what;
	(void)ctx;
	notify_send("WATCHDOG=1");
}

static int watch_signals(struct daemon *d, struct error *e)
{
	sigset_t set;

	signal(SIGPIPE, SIG_IGN);
	sigemptyset(&set);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGINT);
	sigaddset(&set, SIGHUP);
	pthread_sigmask(SIG_BLOCK, &set, NULL);
	d->signals = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
	if (d->signals >= 0)
		d->on_signal = event_new(d->base, d->signals, EV_READ | EV_PERSIST, on_signal, d);
	if (!d->on_signal || event_add(d->on_signal, NULL))
		return error_set(e, ENOMEM, ERROR_GENERIC, "signals: %s", error_text(errno));
	return 0;
}

static int find_group(const char *name, gid_t *gid, struct error *e)
{
	/* NOLINTNEXTLINE(concurrency-mt-unsafe): before there are threads */
	const struct group *g = getgrnam(name ? name : DEFAULT_GROUP);

	*gid = g ? g->gr_gid : (gid_t)-1;
	if (name && !g)
		return error_set(e, ENOENT, ERROR_ARGUMENT, "socket-group: no group '%s'", name);
	return 0;
}

static int start_engine(struct daemon *d, struct error *e)
{
	const struct config *c = d->config;
	struct engine_config config = {
		.plugins = &d->plugins,
		.fault_threads = (unsigned int)c->fault_threads,
		.evict_threads = (unsigned int)c->evict_threads,
		.window_ms = (uint32_t)c->window_ms,
		.quarantine_ms = (uint32_t)c->quarantine_ms,
		.allow_quarantine = c->allow_quarantine,
		.no_probe = !c->folio_probe,
		.lock_memory = c->lock_memory,
		.host_budget_bytes = c->host_budget,
		.crashes = d->crashes,
		.event = event_queue_push,
		.event_ctx = d->events,
	};
	char path[PATH_MAX];
	int r;

	r = settings_new(d->schema, in_folder(d, "settings.json", path), &d->settings, e);
	if (r)
		return r;
	settings_set_base(d->settings, json_incref(c->settings));
	r = engine_new(&config, &d->engine, e);
	if (r)
		return r;
	settings_apply_start(d->settings, d->engine);
	return 0;
}

static int start_sockets(struct daemon *d, gid_t group, struct error *e)
{
	char path[PATH_MAX];
	struct control_config config = {
		.engine = d->engine,
		.schema = (struct schema *)d->schema,
		.settings = d->settings,
		.socket_path = in_folder(d, "control.sock", path),
		.socket_mode = SOCKET_MODE,
		.group = group,
		.quit = stop,
		.ctx = d,
	};
	int r = control_new(d->base, &config, &d->control, e);

	if (r)
		return r;
	control_take_events(d->control, d->events);
	r = metrics_http_new(d->base, d->engine, in_folder(d, "metrics.sock", path), SOCKET_MODE,
			     d->config->metrics_listen, &d->metrics, e);
	if (r)
		return r;
	r = listen_new(d->engine, in_folder(d, "attach.sock", path), SOCKET_MODE,
		       event_queue_settle, d->events, &d->listen, e);
	if (!r && group != (gid_t)-1 && chown(path, (uid_t)-1, group))
		log_warning("%s: its group could not be set: %s", path, error_text(errno));
	return r;
}

static int start(struct daemon *d, struct error *e)
{
	gid_t group;
	int r = find_group(d->config->socket_group, &group, e);

	if (r)
		return r;
	if (mkdir(d->config->runtime_dir, 0755) && errno != EEXIST)
		return error_set(e, errno, ERROR_GENERIC, "%s: %s", d->config->runtime_dir,
				 error_text(errno));
	d->lock = lock_take(d->config->runtime_dir, e);
	if (d->lock < 0)
		return d->lock;
	d->base = event_base_new();
	d->events = event_queue_new();
	if (!d->base || !d->events)
		return error_set(e, ENOMEM, ERROR_GENERIC, "no memory for the event loop");
	r = watch_signals(d, e);
	if (!r)
		r = crashes_open(d->config->runtime_dir, &d->crashes, e);
	if (!r)
		r = start_engine(d, e);
	return r ? r : start_sockets(d, group, e);
}

static void start_watchdog(struct daemon *d)
{
	uint64_t us = notify_watchdog_us() / 2;
	struct timeval period = {(time_t)(us / 1000000), (suseconds_t)(us % 1000000)};

	if (!us)
		return;
	d->watchdog = event_new(d->base, -1, EV_PERSIST, on_watchdog, d);
	if (!d->watchdog || event_add(d->watchdog, &period))
		log_error("no memory for the watchdog");
}

static void end(struct daemon *d)
{
	if (d->events)
		event_queue_detach(d->events); /* nobody waits for this loop any more */
	listen_free(d->listen);
	control_free(d->control);
	metrics_http_free(d->metrics);
	engine_free(d->engine);
	crashes_close(d->crashes, d->ended);
	settings_free(d->settings);
	event_queue_free(d->events);
	if (d->watchdog)
		event_free(d->watchdog);
	if (d->on_signal)
		event_free(d->on_signal);
	fd_close(&d->signals);
	if (d->base)
		event_base_free(d->base);
	fd_close(&d->lock);
}

int daemon_run(struct config *config, const struct schema *schema, int argc, char **argv,
	       struct error *e)
{
	struct daemon d = {.config = config,
			   .schema = schema,
			   .argc = argc,
			   .argv = argv,
			   .lock = -1,
			   .signals = -1};
	int r;

	log_setup((enum log_level)config->log_level, notify_stderr_is_journal());
	find_plugins(&d);
	r = start(&d, e);
	if (!r) {
		start_watchdog(&d);
		log_info("ebbd " EBB_VERSION " is ready in %s", config->runtime_dir);
		notify_send("READY=1");
		event_base_dispatch(d.base);
		notify_send("STOPPING=1");
	}
	end(&d);
	return r;
}
