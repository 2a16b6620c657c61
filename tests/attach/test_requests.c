/* SPDX-License-Identifier: BSD-3-Clause */
/* test_requests.c: engine threads that ask a client, and clients that answer as they like. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <cmocka.h>

#include <errno.h>
#include <event2/event.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "attach/requests.h"
#include "base/fd.h"

#define CALLERS	    8
#define LONG_MS	    60000
#define RANGES_MANY 1200

/* The loop's side, and a client that answers from within send(). */
struct world {
	struct event_base *base;
	struct worker_pool *pool;
	struct requests *requests;
	char *lines[2 * CALLERS];
	int fd; /* that came with the last line; owned, -1: none */
	unsigned int n_lines;
	int send_result;
	unsigned int hold; /* answers are held back until so many lines came */
	bool mute, refuse;
	_Atomic unsigned int running;
};

/* An engine thread that zaps. */
struct caller {
	struct world *w;
	pthread_t thread;
	struct ebb_range ranges[RANGES_MANY];
	uint32_t n;
	const char *keep; /* a name to keep instead */
	int fd;
	int result;
};

static uint64_t line_id(const char *line)
{
	const char *id = strstr(line, "\"id\":");

	assert_non_null(id);
	return strtoull(id + 5, NULL, 10);
}

static int send_line(void *ctx, char *line, size_t bytes, int fd)
{
	struct world *w = ctx;

	fd_close(&w->fd);
	w->fd = fd;

	assert_int_equal(line[bytes - 1], '\n');
	assert_true(w->n_lines < 2 * CALLERS);
	line[bytes - 1] = 0;
	w->lines[w->n_lines++] = line;
	if (w->send_result || w->mute || w->n_lines < w->hold)
		return w->send_result;
	/* The last first. */
	for (unsigned int i = w->n_lines; i-- > (w->hold ? 0 : w->n_lines - 1);)
		assert_int_equal(requests_answer(w->requests, line_id(w->lines[i]), !w->refuse), 0);
	return 0;
}

static struct world *world_make(uint32_t timeout_ms)
{
	struct world *w = calloc(1, sizeof(*w));
	struct error e;

	assert_non_null(w);
	w->fd = -1;
	w->base = event_base_new();
	assert_int_equal(worker_pool_new(w->base, &w->pool, &e), 0);
	assert_int_equal(requests_new(w->pool, timeout_ms, send_line, w, &w->requests), 0);
	return w;
}

static void world_free(struct world *w)
{
	for (unsigned int i = 0; i < w->n_lines; i++)
		free(w->lines[i]);
	fd_close(&w->fd);
	requests_close(w->requests);
	worker_pool_free(w->pool);
	requests_free(w->requests);
	event_base_free(w->base);
	free(w);
}

static void *caller_main(void *arg)
{
	struct caller *c = arg;

	if (c->keep)
		c->result = requests_ops(false, true)->keep(c->w->requests, c->keep, c->fd, 8192);
	else
		c->result = requests_ops(true, false)->zap(c->w->requests, c->ranges, c->n);
	c->w->running--;
	return NULL;
}

static struct caller *call(struct world *w, uint32_t n)
{
	struct caller *c = calloc(1, sizeof(*c));

	assert_non_null(c);
	c->w = w;
	c->n = n;
	for (uint32_t i = 0; i < n; i++)
		c->ranges[i] = (struct ebb_range){UINT64_C(0x7f0000000000) + i * 8192ULL, 4096};
	w->running++;
	assert_int_equal(pthread_create(&c->thread, NULL, caller_main, c), 0);
	return c;
}

static struct caller *keep(struct world *w, const char *name, int fd)
{
	struct caller *c = calloc(1, sizeof(*c));

	assert_non_null(c);
	c->w = w;
	c->keep = name;
	c->fd = fd;
	w->running++;
	assert_int_equal(pthread_create(&c->thread, NULL, caller_main, c), 0);
	return c;
}

static int finish(struct caller *c)
{
	int result;

	pthread_join(c->thread, NULL);
	result = c->result;
	free(c);
	return result;
}

static void turn(struct world *w)
{
	struct timeval tick = {0, 1000};

	event_base_loopexit(w->base, &tick);
	event_base_dispatch(w->base);
}

static void loop_until_lines(struct world *w, unsigned int n)
{
	while (w->n_lines < n)
		turn(w);
}

/* Runs the loop until all callers are through. */
static void loop(struct world *w)
{
	while (w->running)
		turn(w);
}

static void test_closed(void **state)
{
	struct world *w = world_make(LONG_MS);
	struct caller *c = call(w, 1);

	assert_int_equal(finish(c), -ENOTCONN);
	assert_int_equal(w->n_lines, 0);
	world_free(w);
}

static void test_answered(void **state)
{
	struct world *w = world_make(LONG_MS);
	struct caller *c;

	requests_open(w->requests);
	c = call(w, 2);
	loop(w);
	assert_int_equal(finish(c), 0);
	assert_string_equal(w->lines[0],
			    "{\"execute\":\"zap\",\"arguments\":{\"ranges\":["
			    "[139637976727552,4096],[139637976735744,4096]]},\"id\":1}");
	world_free(w);
}

static void test_no_ranges(void **state)
{
	struct world *w = world_make(LONG_MS);

	requests_open(w->requests);
	assert_int_equal(requests_ops(true, false)->zap(w->requests, NULL, 0), 0);
	assert_int_equal(w->n_lines, 0);
	world_free(w);
}

static void test_refused(void **state)
{
	struct world *w = world_make(LONG_MS);
	struct caller *c;

	w->refuse = true;
	requests_open(w->requests);
	c = call(w, 1);
	loop(w);
	assert_int_equal(finish(c), -EIO);
	world_free(w);
}

/* Many ranges go in several lines, all of them, in order. */
static void test_many_ranges(void **state)
{
	struct world *w = world_make(LONG_MS);
	uint64_t next = UINT64_C(0x7f0000000000);
	struct caller *c;

	requests_open(w->requests);
	c = call(w, RANGES_MANY);
	loop(w);
	assert_int_equal(finish(c), 0);
	assert_int_equal(w->n_lines, 3);
	for (unsigned int i = 0; i < w->n_lines; i++) {
		const char *at = strstr(w->lines[i], "[[") + 1;
		unsigned int in_line = 0;

		for (; at; at = strchr(at + 1, '['), in_line++) {
			assert_int_equal(strtoull(at + 1, NULL, 10), next);
			next += 8192;
		}
		assert_true(in_line <= 512);
	}
	assert_int_equal(next, UINT64_C(0x7f0000000000) + RANGES_MANY * 8192ULL);
	world_free(w);
}

/* Each caller gets its own answer, whatever the order. */
static void test_several_callers(void **state)
{
	struct world *w = world_make(LONG_MS);
	struct caller *c[CALLERS];

	w->hold = CALLERS;
	requests_open(w->requests);
	for (int i = 0; i < CALLERS; i++)
		c[i] = call(w, 1);
	loop(w);
	for (int i = 0; i < CALLERS; i++)
		assert_int_equal(finish(c[i]), 0);
	assert_int_equal(w->n_lines, CALLERS);
	world_free(w);
}

static void test_never_answered(void **state)
{
	struct world *w = world_make(20);
	struct caller *c;

	w->mute = true;
	requests_open(w->requests);
	c = call(w, 1);
	loop(w);
	assert_int_equal(finish(c), -ETIMEDOUT);
	/* The answer that comes late is dropped, that to a request never made is told from it. */
	assert_int_equal(requests_answer(w->requests, 1, true), 0);
	assert_int_equal(requests_answer(w->requests, 2, true), -ENOENT);
	assert_int_equal(requests_answer(w->requests, 0, true), -ENOENT);
	world_free(w);
}

/* A successor takes over: who waits hears so at once, and so does who comes then. */
static void test_held(void **state)
{
	struct world *w = world_make(LONG_MS);
	struct caller *waits;

	w->mute = true;
	requests_open(w->requests);
	waits = call(w, 1);
	loop_until_lines(w, 1);
	requests_hold(w->requests, true);
	assert_int_equal(finish(waits), -EAGAIN);
	assert_int_equal(finish(call(w, 1)), -EAGAIN);
	assert_int_equal(finish(keep(w, "table:0", -1)), -EAGAIN);
	/* None of these got a number; the answer to the first may still come. */
	assert_int_equal(requests_last_id(w->requests), 1);
	assert_int_equal(requests_answer(w->requests, 1, true), 0);
	/* It was given up. */
	requests_hold(w->requests, false);
	w->mute = false;
	waits = call(w, 1);
	loop(w);
	assert_int_equal(finish(waits), 0);
	world_free(w);
}

/* Nobody runs the loop: the line is never sent, and freed. */
static void test_never_sent(void **state)
{
	struct world *w = world_make(20);
	struct caller *c;

	requests_open(w->requests);
	c = call(w, 1);
	assert_int_equal(finish(c), -ETIMEDOUT);
	turn(w);
	assert_int_equal(w->n_lines, 0);
	world_free(w);
}

static void test_closed_while_waiting(void **state)
{
	struct world *w = world_make(LONG_MS);
	struct caller *c[2];

	w->mute = true;
	requests_open(w->requests);
	c[0] = call(w, 1);
	c[1] = call(w, 1);
	loop_until_lines(w, 2);
	requests_close(w->requests);
	assert_int_equal(finish(c[0]), -ENOTCONN);
	assert_int_equal(finish(c[1]), -ENOTCONN);
	world_free(w);
}

/* The client takes no more: the caller learns it at once. */
static void test_send_fails(void **state)
{
	struct world *w = world_make(LONG_MS);
	struct caller *c;

	w->send_result = -EAGAIN;
	requests_open(w->requests);
	c = call(w, 1);
	loop(w);
	assert_int_equal(finish(c), -EAGAIN);
	world_free(w);
}

/* Clients are asked for what they said they serve, and nothing else. */
static void test_ops(void **state)
{
	assert_null(requests_ops(false, false));
	assert_null(requests_ops(true, false)->keep);
	assert_null(requests_ops(false, true)->zap);
	assert_non_null(requests_ops(true, true)->keep);
	assert_non_null(requests_ops(true, true)->zap);
}

static void test_keep(void **state)
{
	struct world *w = world_make(LONG_MS);
	int fd = memfd_create("state", MFD_CLOEXEC);
	struct stat given, sent;
	struct caller *c;

	assert_true(fd >= 0);
	/* Not open yet: the engine is to try again. */
	c = keep(w, "table:0", fd);
	assert_int_equal(finish(c), -EAGAIN);
	requests_open(w->requests);
	c = keep(w, "ta\"ble:0", fd);
	loop(w);
	assert_int_equal(finish(c), 0);
	assert_string_equal(w->lines[0], "{\"execute\":\"keep\",\"arguments\":"
					 "{\"name\":\"ta\\\"ble:0\",\"size\":8192},\"id\":1}");
	assert_true(w->fd >= 0 && w->fd != fd);
	assert_int_equal(fstat(fd, &given), 0);
	assert_int_equal(fstat(w->fd, &sent), 0);
	assert_int_equal(given.st_ino, sent.st_ino);
	c = keep(w, "table:0", -1);
	loop(w);
	assert_int_equal(finish(c), 0);
	assert_string_equal(w->lines[1], "{\"execute\":\"unkeep\",\"arguments\":"
					 "{\"name\":\"table:0\"},\"id\":2}");
	assert_int_equal(w->fd, -1);
	requests_close(w->requests);
	c = keep(w, "table:0", fd);
	assert_int_equal(finish(c), -ENOTCONN);
	close(fd);
	world_free(w);
}

/* A duplicate that nobody takes is closed. */
static void test_keep_never_sent(void **state)
{
	struct world *w = world_make(20);
	int fd = memfd_create("state", MFD_CLOEXEC), before, after;
	struct caller *c;

	requests_open(w->requests);
	before = dup(fd);
	close(before);
	c = keep(w, "table:0", fd);
	assert_int_equal(finish(c), -ETIMEDOUT);
	after = dup(fd);
	assert_int_equal(before, after);
	close(after);
	close(fd);
	world_free(w);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_closed),	       cmocka_unit_test(test_answered),
		cmocka_unit_test(test_no_ranges),      cmocka_unit_test(test_refused),
		cmocka_unit_test(test_many_ranges),    cmocka_unit_test(test_several_callers),
		cmocka_unit_test(test_never_answered), cmocka_unit_test(test_held),
		cmocka_unit_test(test_never_sent),     cmocka_unit_test(test_closed_while_waiting),
		cmocka_unit_test(test_send_fails),     cmocka_unit_test(test_ops),
		cmocka_unit_test(test_keep),	       cmocka_unit_test(test_keep_never_sent),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
