/* SPDX-License-Identifier: BSD-3-Clause */
/* requests.c: what the engine asks of a client, and the client's answers. */
#include "attach/requests.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <jansson.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/clock.h"
#include "base/fd.h"

/*
 * An engine thread queues a line, posts to the loop and sleeps on the condition; the loop sends
 * the line and, when the answer comes, wakes the thread. The wait lives on the thread's stack and
 * is taken off the list before the thread leaves, so a late answer finds nothing and is dropped.
 */

#define RANGES_PER_REQUEST 512
#define RANGE_TEXT_MAX	   44 /* "[18446744073709551615,18446744073709551615]," */

struct wait {
	struct wait *next;
	uint64_t id;
	char *line; /* not sent yet; owned */
	size_t bytes;
	int fd; /* goes with the line; owned until then, -1: none */
	bool answered;
	int result;
};

struct requests {
	struct worker_pool *pool;
	uint32_t timeout_ms;
	requests_send_fn send;
	void *ctx;

	pthread_mutex_t lock; /* guards all below; send() is called without it */
	pthread_cond_t changed;
	struct wait *waits;
	uint64_t last_id;
	bool open;
	bool held;
	bool ended; /* was closed, and is not opened again */
	bool posted;
	struct job post;
};

static void requests_flush(struct job *job);

int requests_new(struct worker_pool *pool, uint32_t timeout_ms, requests_send_fn send, void *ctx,
		 struct requests **out)
{
	struct requests *r = calloc(1, sizeof(*r));
	pthread_condattr_t attr;

	if (!r)
		return -ENOMEM;
	r->pool = pool;
	r->timeout_ms = timeout_ms;
	r->send = send;
	r->ctx = ctx;
	r->post.done = requests_flush;
	pthread_mutex_init(&r->lock, NULL);
	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_cond_init(&r->changed, &attr);
	pthread_condattr_destroy(&attr);
	*out = r;
	return 0;
}

void requests_open(struct requests *r)
{
	pthread_mutex_lock(&r->lock);
	r->open = true;
	pthread_mutex_unlock(&r->lock);
}

uint64_t requests_last_id(struct requests *r)
{
	uint64_t id;

	pthread_mutex_lock(&r->lock);
	id = r->last_id;
	pthread_mutex_unlock(&r->lock);
	return id;
}

void requests_go_on(struct requests *r, uint64_t last_id)
{
	pthread_mutex_lock(&r->lock);
	r->last_id = last_id;
	pthread_mutex_unlock(&r->lock);
}

void requests_hold(struct requests *r, bool hold)
{
	pthread_mutex_lock(&r->lock);
	r->held = hold;
	pthread_cond_broadcast(&r->changed);
	pthread_mutex_unlock(&r->lock);
}

void requests_close(struct requests *r)
{
	pthread_mutex_lock(&r->lock);
	r->open = false;
	r->ended = true;
	pthread_cond_broadcast(&r->changed);
	pthread_mutex_unlock(&r->lock);
}

void requests_free(struct requests *r)
{
	if (!r)
		return;
	pthread_cond_destroy(&r->changed);
	pthread_mutex_destroy(&r->lock);
	free(r);
}

static void wait_end(struct wait *w, int result)
{
	w->answered = true;
	w->result = result;
}

/* The loop's part of sending: one line at a time, so that the lock is free while it is sent. */
static void requests_flush(struct job *job)
{
	struct requests *r = (struct requests *)((char *)job - offsetof(struct requests, post));

	pthread_mutex_lock(&r->lock);
	r->posted = false;
	for (;;) {
		struct wait *w = r->waits;
		size_t bytes;
		uint64_t id;
		char *line;
		int err, fd;

		while (w && !w->line)
			w = w->next;
		if (!w || !r->open)
			break;
		id = w->id;
		line = w->line;
		bytes = w->bytes;
		w->line = NULL;
		fd = fd_take(&w->fd);
		pthread_mutex_unlock(&r->lock);
		err = r->send(r->ctx, line, bytes, fd);
		pthread_mutex_lock(&r->lock);
		for (w = r->waits; err && w; w = w->next)
			if (w->id == id)
				wait_end(w, err);
		if (err)
			pthread_cond_broadcast(&r->changed);
	}
	pthread_mutex_unlock(&r->lock);
}

int requests_answer(struct requests *r, uint64_t id, bool ok)
{
	int result = 0;

	pthread_mutex_lock(&r->lock);
	if (!id || id > r->last_id)
		result = -ENOENT;
	for (struct wait *w = r->waits; w; w = w->next)
		if (w->id == id && !w->answered && !w->line)
			wait_end(w, ok ? 0 : -EIO);
	pthread_cond_broadcast(&r->changed);
	pthread_mutex_unlock(&r->lock);
	return result;
}

/* Queues w and waits for its end. With the lock held. */
static int requests_wait(struct requests *r, struct wait *w, const struct timespec *until)
{
	struct wait **at = &r->waits;
	int err = 0;

	w->next = NULL;
	while (*at)
		at = &(*at)->next;
	*at = w;
	if (!r->posted) {
		r->posted = true;
		worker_post(r->pool, &r->post);
	}
	while (r->open && !r->held && !w->answered && !err)
		err = -pthread_cond_timedwait(&r->changed, &r->lock, until);
	for (at = &r->waits; *at != w; at = &(*at)->next)
		;
	*at = w->next;
	free(w->line);
	fd_close(&w->fd);
	if (w->answered)
		return w->result;
	if (!r->open)
		return -ENOTCONN;
	return r->held ? -EAGAIN : -ETIMEDOUT;
}

static struct timespec requests_until(const struct requests *r)
{
	uint64_t end = clock_ns() + (uint64_t)r->timeout_ms * NS_PER_MS;

	return (struct timespec){.tv_sec = (time_t)(end / NS_PER_S),
				 .tv_nsec = (long)(end % NS_PER_S)};
}

/* {"execute":"zap","arguments":{"ranges":[[address,bytes],...]},"id":N} */
static char *zap_line(uint64_t id, const struct ebb_range *ranges, uint32_t n, size_t *bytes)
{
	size_t room = 96 + (size_t)n * RANGE_TEXT_MAX, at;
	char *line = malloc(room);

	if (!line)
		return NULL;
	at = (size_t)sprintf(line, "{\"execute\":\"zap\",\"arguments\":{\"ranges\":[");
	for (uint32_t i = 0; i < n; i++)
		at += (size_t)sprintf(line + at, "%s[%" PRIu64 ",%" PRIu64 "]", i ? "," : "",
				      ranges[i].first, ranges[i].count);
	at += (size_t)sprintf(line + at, "]},\"id\":%" PRIu64 "}\n", id);
	*bytes = at;
	return line;
}

static int zap_some(struct requests *r, const struct ebb_range *ranges, uint32_t n,
		    const struct timespec *until)
{
	struct wait w = {.fd = -1};
	int err;

	pthread_mutex_lock(&r->lock);
	if (!r->open) {
		pthread_mutex_unlock(&r->lock);
		return -ENOTCONN;
	}
	if (r->held) {
		pthread_mutex_unlock(&r->lock);
		return -EAGAIN;
	}
	w.id = ++r->last_id;
	w.line = zap_line(w.id, ranges, n, &w.bytes);
	err = w.line ? requests_wait(r, &w, until) : -ENOMEM;
	pthread_mutex_unlock(&r->lock);
	return err;
}

static int requests_zap(void *client, const struct ebb_range *host_ranges_bytes, uint32_t n)
{
	struct requests *r = client;
	struct timespec until = requests_until(r);
	int err = 0;

	for (uint32_t i = 0; i < n && !err; i += RANGES_PER_REQUEST)
		err = zap_some(r, host_ranges_bytes + i,
			       n - i < RANGES_PER_REQUEST ? n - i : RANGES_PER_REQUEST, &until);
	return err;
}

/* {"execute":"keep","arguments":{"name":NAME,"size":BYTES},"id":N}, or "unkeep" without size. */
static char *keep_line(uint64_t id, const char *name, bool keep, uint64_t size, size_t *bytes)
{
	json_t *message = json_pack("{s:s, s:{s:s}, s:I}", "execute", keep ? "keep" : "unkeep",
				    "arguments", "name", name, "id", (json_int_t)id);
	char *text = NULL, *line = NULL;
	int n = -1;

	if (message && (!keep || !json_object_set_new(json_object_get(message, "arguments"), "size",
						      json_integer((json_int_t)size))))
		text = json_dumps(message, JSON_COMPACT);
	json_decref(message);
	if (text)
		n = asprintf(&line, "%s\n", text);
	free(text);
	*bytes = (size_t)n;
	return n < 0 ? NULL : line;
}

static int requests_keep(void *client, const char *name, int fd, uint64_t bytes)
{
	struct requests *r = client;
	struct timespec until = requests_until(r);
	struct wait w = {.fd = -1};
	int err;

	if (fd >= 0) {
		w.fd = fcntl(fd, F_DUPFD_CLOEXEC, 0);
		if (w.fd < 0)
			return -errno;
	}
	pthread_mutex_lock(&r->lock);
	if (!r->open || r->held) {
		err = r->ended ? -ENOTCONN : -EAGAIN;
		pthread_mutex_unlock(&r->lock);
		fd_close(&w.fd);
		return err;
	}
	w.id = ++r->last_id;
	w.line = keep_line(w.id, name, fd >= 0, bytes, &w.bytes);
	if (w.line)
		err = requests_wait(r, &w, &until);
	else
		err = -ENOMEM;
	pthread_mutex_unlock(&r->lock);
	fd_close(&w.fd);
	return err;
}

const struct attach_client_ops *requests_ops(bool zap, bool keep)
{
	static const struct attach_client_ops ops[2][2] = {
		{{0}, {.keep = requests_keep}},
		{{.zap = requests_zap}, {.zap = requests_zap, .keep = requests_keep}},
	};

	return zap || keep ? &ops[zap][keep] : NULL;
}
