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
#include "daemon/fd_store.h"
#include "daemon/internal.h"
#include "daemon/listen.h"
#include "daemon/lock.h"
#include "daemon/notify.h"
#include "daemon/upgrade.h"

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

#define DEFAULT_GROUP "ebb"

const char *daemon_path(const struct daemon *d, const char *name, char *buf)
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

int daemon_make_settings(struct daemon *d, struct error *e)
{
	char path[PATH_MAX];
	int r = settings_new(d->schema, daemon_path(d, "settings.json", path), &d->settings, e);

	if (!r)
		settings_set_base(d->settings, json_incref(d->config->settings));
	return r;
}

int daemon_make_engine(struct daemon *d, bool held, struct error *e)
{
	const struct config *c = d->config;
	struct engine_config config = {
		.plugins = &d->plugins,
		.fault_threads = (unsigned int)c->fault_threads,
		.evict_threads = (unsigned int)c->evict_threads,
		.no_polling = !c->poll_loads,
		.window_ms = (uint32_t)c->window_ms,
		.quarantine_ms = (uint32_t)c->quarantine_ms,
		.allow_quarantine = c->allow_quarantine,
		.thp_kept_whole = c->thp_kept_whole,
		.no_probe = !c->folio_probe,
		.lock_memory = c->lock_memory,
		.host_budget_bytes = c->host_budget,
		.crashes = d->crashes,
		.start_held = held,
		.fd_store = fd_store(),
		.event = event_queue_push,
		.event_ctx = d->events,
	};

	return engine_new(&config, &d->engine, e);
}

static int upgrade(void *ctx, const char *binary, uint32_t wait_ms, struct upgrade_done *out,
		   struct error *e)
{
	return upgrade_run(ctx, binary, wait_ms, out, e);
}

int daemon_make_control(struct daemon *d, int listener, struct error *e)
{
	char path[PATH_MAX];
	struct control_config config = {
		.engine = d->engine,
		.schema = (struct schema *)d->schema,
		.settings = d->settings,
		.socket_path = daemon_path(d, "control.sock", path),
		.socket_mode = SOCKET_MODE,
		.listener = listener,
		.group = d->group,
		.quit = stop,
		.upgrade = upgrade,
		.ctx = d,
	};
	int r = control_new(d->base, &config, &d->control, e);

	if (!r)
		control_take_events(d->control, d->events);
	return r;
}

int daemon_make_metrics(struct daemon *d, struct error *e)
{
	char path[PATH_MAX];

	return metrics_http_new(d->base, d->engine, daemon_path(d, "metrics.sock", path),
				SOCKET_MODE, d->config->metrics_listen, &d->metrics, e);
}

static int start_attach(struct daemon *d, struct error *e)
{
	char path[PATH_MAX];
	int r = listen_new(d->engine, daemon_path(d, "attach.sock", path), SOCKET_MODE,
			   event_queue_settle, d->events, &d->listen, e);

	if (!r && d->group != (gid_t)-1 && chown(path, (uid_t)-1, d->group))
		log_warning("%s: its group could not be set: %s", path, error_text(errno));
	return r;
}

/* What there is before anything is anybody's: the loop, the signals. */
static int start_loop(struct daemon *d, struct error *e)
{
	int r = find_group(d->config->socket_group, &d->group, e);

	if (r)
		return r;
	d->base = event_base_new();
	d->events = event_queue_new();
	if (!d->base || !d->events)
		return error_set(e, ENOMEM, ERROR_GENERIC, "no memory for the event loop");
	return watch_signals(d, e);
}

static int start(struct daemon *d, struct error *e)
{
	int r;

	if (mkdir(d->config->runtime_dir, 0755) && errno != EEXIST)
		return error_set(e, errno, ERROR_GENERIC, "%s: %s", d->config->runtime_dir,
				 error_text(errno));
	d->lock = lock_take(d->config->runtime_dir, e);
	if (d->lock < 0)
		return d->lock;
	r = start_loop(d, e);
	if (!r)
		r = crashes_open(d->config->runtime_dir, &d->crashes, e);
	if (!r)
		r = daemon_make_settings(d, e);
	if (!r)
		r = daemon_make_engine(d, false, e);
	if (r)
		return r;
	settings_apply_start(d->settings, d->engine);
	r = daemon_make_control(d, 0, e);
	if (!r)
		r = daemon_make_metrics(d, e);
	if (r)
		return r;
	/* Their limits follow with the loop, which tells the settings of them. */
	fd_store_restore(d->engine);
	return start_attach(d, e);
}

/* From a daemon that lives. What fails must not be cleaned up: it is still that one's. */
static int take_over(struct daemon *d, struct error *e)
{
	int r = start_loop(d, e);

	if (!r)
		r = upgrade_inherit(d, d->config->take_over, e);
	if (r) {
		log_error("%s", e->desc);
		_exit(1);
	}
	return 0;
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
	/* With its jobs: one may be handing everything over just now. */
	control_free(d->control);
	if (atomic_load(&d->handed_over))
		_exit(0);
	listen_free(d->listen);
	metrics_http_free(d->metrics);
	d->kept = engine_free(d->engine);
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
			   .signals = -1,
			   .group = (gid_t)-1};
	int r;

	log_setup((enum log_level)config->log_level, notify_stderr_is_journal());
	find_plugins(&d);
	r = config->take_over >= 0 ? take_over(&d, e) : start(&d, e);
	if (!r) {
		start_watchdog(&d);
		log_info("ebbd " EBB_VERSION " is ready in %s", config->runtime_dir);
		notify_send("READY=1");
		event_base_dispatch(d.base);
		/* Of a successor's service nothing stops. */
		if (!atomic_load(&d.handed_over))
			notify_send("STOPPING=1");
	}
	end(&d);
	/* What the clients keep was not freed, and a leak checker need not be told. */
	if (d.kept && !r)
		_exit(0);
	return r;
}
