/* SPDX-License-Identifier: BSD-3-Clause */
/* metrics_http.c: GET /metrics on a unix socket and, if wanted, a loopback port. */
#include "control/metrics_http.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include <event2/buffer.h>
#include <event2/event.h>
#include <event2/http.h>
#include <event2/util.h>

#include "base/fd.h"
#include "base/log.h"
#include "control/metrics.h"

/*
 * libevent's evhttp does the protocol; requests are small and there is nothing to upload, so its
 * limits are set low, and connections that are idle are closed.
 */
#define HTTP_HEADERS_MAX 8192
#define HTTP_BODY_MAX	 1024
#define HTTP_IDLE_S	 10

struct metrics_http {
	struct evhttp *http;
	struct engine *engine;
};

static const char openmetrics_type[] = "application/openmetrics-text; version=1.0.0; charset=utf-8";
static const char prometheus_type[] = "text/plain; version=0.0.4; charset=utf-8";

static void send_metrics(struct metrics_http *m, struct evhttp_request *req)
{
	const char *accept = evhttp_find_header(evhttp_request_get_input_headers(req), "Accept");
	bool open = accept && strstr(accept, "application/openmetrics-text");
	struct evbuffer *body = evbuffer_new();
	char *text = NULL;
	size_t bytes = 0;
	FILE *f = open_memstream(&text, &bytes);
	struct error e;
	int r = -ENOMEM;

	if (f) {
		r = metrics_text(m->engine, open ? METRICS_OPENMETRICS : METRICS_PROMETHEUS, f, &e);
		if (fclose(f))
			r = -ENOMEM;
	}
	if (r || !body || evbuffer_add(body, text, bytes)) {
		evhttp_send_error(req, HTTP_INTERNAL, "out of memory");
	} else {
		evhttp_add_header(evhttp_request_get_output_headers(req), "Content-Type",
				  open ? openmetrics_type : prometheus_type);
		evhttp_send_reply(req, HTTP_OK, "OK", body);
	}
	free(text);
	if (body)
		evbuffer_free(body);
}

static void on_metrics(struct evhttp_request *req, void *ctx)
{
	if (evhttp_request_get_command(req) != EVHTTP_REQ_GET) {
		evhttp_add_header(evhttp_request_get_output_headers(req), "Allow", "GET");
		evhttp_send_error(req, HTTP_BADMETHOD, "only GET");
		return;
	}
	send_metrics(ctx, req);
}

static void on_other(struct evhttp_request *req, void *ctx)
{
	(void)ctx;
	evhttp_send_error(req, HTTP_NOTFOUND, "there is only /metrics");
}

static bool is_loopback(const struct sockaddr_storage *sa)
{
	if (sa->ss_family == AF_INET)
		return ntohl(((const struct sockaddr_in *)sa)->sin_addr.s_addr) >> 24 == 127;
	return sa->ss_family == AF_INET6 &&
	       IN6_IS_ADDR_LOOPBACK(&((const struct sockaddr_in6 *)sa)->sin6_addr);
}

static int listen_tcp(const char *text, struct error *e)
{
	struct sockaddr_storage sa;
	int bytes = sizeof(sa), one = 1;
	FD_OWNED fd = -1;

	memset(&sa, 0, sizeof(sa));
	if (evutil_parse_sockaddr_port(text, (struct sockaddr *)&sa, &bytes))
		return error_set(e, EINVAL, ERROR_ARGUMENT,
				 "metrics-listen: '%.60s' is not ADDRESS:PORT", text);
	if (!is_loopback(&sa))
		return error_set(e, EINVAL, ERROR_ARGUMENT,
				 "metrics-listen: '%.60s' is not a loopback address", text);
	fd = socket(sa.ss_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd < 0 || setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one)) ||
	    bind(fd, (struct sockaddr *)&sa, (socklen_t)bytes) || listen(fd, 32))
		return error_set(e, errno, ERROR_GENERIC, "metrics-listen: %.60s: %s", text,
				 error_text(errno));
	return fd_take(&fd);
}

/* Consumes fd. */
static int serve(struct metrics_http *m, int fd, struct error *e)
{
	if (fd < 0)
		return fd;
	if (evhttp_accept_socket(m->http, fd)) {
		fd_close(&fd);
		return error_set(e, ENOMEM, ERROR_GENERIC, "metrics: no memory");
	}
	return 0;
}

int metrics_http_new(struct event_base *base, struct engine *eng, const char *socket_path,
		     unsigned int mode, const char *listen, struct metrics_http **out,
		     struct error *e)
{
	struct metrics_http *m = calloc(1, sizeof(*m));
	int r;

	if (m)
		m->http = evhttp_new(base);
	if (!m || !m->http) {
		free(m);
		return error_set(e, ENOMEM, ERROR_GENERIC, "metrics: no memory");
	}
	m->engine = eng;
	evhttp_set_max_headers_size(m->http, HTTP_HEADERS_MAX);
	evhttp_set_max_body_size(m->http, HTTP_BODY_MAX);
	evhttp_set_timeout(m->http, HTTP_IDLE_S);
	/* All of them, so that each wrong one gets our answer and not a hang-up. */
	evhttp_set_allowed_methods(m->http, EVHTTP_REQ_GET | EVHTTP_REQ_POST | EVHTTP_REQ_HEAD |
						    EVHTTP_REQ_PUT | EVHTTP_REQ_DELETE |
						    EVHTTP_REQ_OPTIONS | EVHTTP_REQ_PATCH);
	evhttp_set_cb(m->http, "/metrics", on_metrics, m);
	evhttp_set_gencb(m->http, on_other, m);
	r = serve(m, fd_listen_unix(socket_path, mode, e), e);
	if (!r && listen)
		r = serve(m, listen_tcp(listen, e), e);
	if (r) {
		metrics_http_free(m);
		return r;
	}
	*out = m;
	return 0;
}

void metrics_http_free(struct metrics_http *m)
{
	if (!m)
		return;
	evhttp_free(m->http);
	free(m);
}
