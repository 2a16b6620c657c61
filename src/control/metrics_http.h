/* SPDX-License-Identifier: BSD-3-Clause */
/* metrics_http.h: GET /metrics on a unix socket and, if wanted, a loopback port. */
#ifndef CONTROL_METRICS_HTTP_H
#define CONTROL_METRICS_HTTP_H

#include "base/error.h"
#include "engine/engine.h"

struct event_base;
struct metrics_http;

/*
 * socket_path: the unix socket. listen: "127.0.0.1:PORT" or "[::1]:PORT", NULL for none; an
 * address that is not loopback is refused, since nobody is asked who he is. Runs in base's loop.
 */
int metrics_http_new(struct event_base *base, struct engine *eng, const char *socket_path,
		     unsigned int mode, const char *listen, struct metrics_http **out,
		     struct error *e);
void metrics_http_free(struct metrics_http *m);

#endif
