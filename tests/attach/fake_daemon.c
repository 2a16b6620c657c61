/* SPDX-License-Identifier: BSD-3-Clause */
/* fake_daemon.c: the attach socket alone, over the fake engine, for test_hostile.py. */
#include <err.h>
#include <event2/event.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "attach/attach.h"
#include "base/log.h"
#include "fake_engine.h"

static void on_signal(evutil_socket_t sig, short what, void *arg)
{
	(void)sig;
	(void)what;
	event_base_loopbreak(arg);
}

/* name=value, for the limits that the tests make small. */
static void set_limit(struct attach_config *config, char *arg)
{
	char *value = strchr(arg, '=');
	unsigned int n;

	if (!value)
		errx(2, "%s: not name=value", arg);
	*value++ = 0;
	n = (unsigned int)strtoul(value, NULL, 10);
	if (!strcmp(arg, "uffd-device"))
		config->uffd_device = value;
	else if (!strcmp(arg, "mode"))
		config->mode = (unsigned int)strtoul(value, NULL, 8);
	else if (!strcmp(arg, "connections"))
		config->max_connections = n;
	else if (!strcmp(arg, "per-uid"))
		config->max_connections_per_uid = n;
	else if (!strcmp(arg, "pending"))
		config->max_pending_per_uid = n;
	else if (!strcmp(arg, "held-fds"))
		config->max_held_fds = n;
	else if (!strcmp(arg, "attach-ms"))
		config->attach_timeout_ms = n;
	else if (!strcmp(arg, "message-ms"))
		config->message_timeout_ms = n;
	else if (!strcmp(arg, "request-ms"))
		config->request_timeout_ms = n;
	else
		errx(2, "%s: no such limit", arg);
}

int main(int argc, char **argv)
{
	struct event_base *base = event_base_new();
	struct engine *eng = fake_engine_new(stdout);
	struct attach_config config = {0};
	struct event *term;
	struct attach *at;
	struct error e;
	int held;

	if (argc < 2 || !base || !eng)
		errx(2, "usage: fake_daemon SOCKET [name=value]...");
	config.socket_path = argv[1];
	for (int i = 2; i < argc; i++)
		set_limit(&config, argv[i]);
	if (getenv("EBB_TEST_VERBOSE"))
		log_setup(LOG_DEBUG, false);
	else
		log_setup(LOG_ERROR, false);
	if (attach_new(base, eng, &config, &at, &e))
		errx(1, "%s: %s", e.cls, e.desc);
	term = evsignal_new(base, SIGTERM, on_signal, base);
	evsignal_add(term, NULL);
	printf("READY\n");
	fflush(stdout);
	event_base_dispatch(base);
	attach_free(at);
	event_free(term);
	event_base_free(base);
	held = fake_engine_held(eng);
	fake_engine_free(eng);
	printf("END held=%d\n", held);
	return held != 0;
}
