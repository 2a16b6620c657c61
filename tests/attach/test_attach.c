/* SPDX-License-Identifier: BSD-3-Clause */
/* test_attach.c: the module's life: made, used and freed, again and again, several at once. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <cmocka.h>

#include <dirent.h>
#include <errno.h>
#include <event2/event.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "attach/attach.h"
#include "base/fd.h"
#include "base/log.h"
#include "fake_engine.h"

struct world {
	char dir[64], path[96];
	struct event_base *base;
	struct engine *eng;
	struct attach *at;
	FILE *log;
};

static unsigned int count_fds(void)
{
	DIR *dir = opendir("/proc/self/fd");
	unsigned int n = 0;

	while (readdir(dir))
		n++;
	closedir(dir);
	return n;
}

static struct world *world_make(const struct attach_config *config)
{
	struct world *w = calloc(1, sizeof(*w));
	struct attach_config mine = config ? *config : (struct attach_config){0};
	struct error e = {0};

	assert_non_null(w);
	snprintf(w->dir, sizeof(w->dir), "/tmp/ebb-test-attach.XXXXXX");
	assert_non_null(mkdtemp(w->dir));
	snprintf(w->path, sizeof(w->path), "%s/attach.sock", w->dir);
	mine.socket_path = w->path;
	w->log = fopen("/dev/null", "we");
	w->base = event_base_new();
	w->eng = fake_engine_new(w->log);
	assert_int_equal(attach_new(w->base, w->eng, &mine, &w->at, &e), 0);
	return w;
}

static void world_free(struct world *w)
{
	attach_free(w->at);
	assert_int_equal(fake_engine_held(w->eng), 0);
	fake_engine_free(w->eng);
	event_base_free(w->base);
	fclose(w->log);
	unlink(w->path);
	assert_int_equal(rmdir(w->dir), 0);
	free(w);
}

static void turn(struct world *w)
{
	struct timeval tick = {0, 1000};

	event_base_loopexit(w->base, &tick);
	event_base_dispatch(w->base);
}

/* Sends a line and runs the loop until the answer is there. */
static void ask(struct world *w, int sock, const char *line, char *answer, size_t room)
{
	ssize_t n = 0;

	assert_int_equal(fd_send(sock, line, strlen(line), NULL, 0), 0);
	while ((n = recv(sock, answer, room - 1, MSG_DONTWAIT)) < 0 && errno == EAGAIN)
		turn(w);
	answer[n > 0 ? n : 0] = 0;
}

static void test_nothing_happens(void **state)
{
	world_free(world_make(NULL));
}

static void test_several_at_once(void **state)
{
	unsigned int before = count_fds();
	struct world *w[3];
	char answer[512];
	int sock[3];

	for (int i = 0; i < 3; i++)
		w[i] = world_make(NULL);
	for (int round = 0; round < 3; round++) {
		for (int i = 0; i < 3; i++) {
			sock[i] = fd_connect_unix(w[i]->path);
			assert_true(sock[i] >= 0);
			ask(w[i], sock[i], "{\"execute\":\"detach\"}\n", answer, sizeof(answer));
			assert_string_equal(
				answer, "{\"error\":{\"class\":\"ProtocolError\",\"desc\":"
					"\"detach: nothing is attached on this connection\"}}\n");
			assert_int_equal(attach_connections(w[i]->at), 1);
		}
		for (int i = 0; i < 3; i++) {
			close(sock[i]);
			while (attach_connections(w[i]->at))
				turn(w[i]);
		}
	}
	for (int i = 0; i < 3; i++)
		world_free(w[i]);
	assert_int_equal(count_fds(), before);
}

/* Freed in the middle of everything: a line begun, one under way, one never accepted. */
static void test_freed_while_busy(void **state)
{
	unsigned int before = count_fds();

	for (int turns = 0; turns < 8; turns++) {
		struct world *w = world_make(NULL);
		int sock[4];

		for (int i = 0; i < 4; i++)
			sock[i] = fd_connect_unix(w->path);
		assert_int_equal(fd_send(sock[0], "{\"exec", 6, sock, 1), 0);
		assert_int_equal(fd_send(sock[1], "{\"execute\":\"userfaultfd\"}\n", 26, NULL, 0),
				 0);
		assert_int_equal(fd_send(sock[2], "x", 1, NULL, 0), 0);
		for (int i = 0; i < turns; i++)
			turn(w);
		world_free(w);
		for (int i = 0; i < 4; i++)
			close(sock[i]);
	}
	assert_int_equal(count_fds(), before);
}

static void test_socket_file(void **state)
{
	struct attach_config config = {.mode = 0600};
	struct world *w = world_make(&config);
	struct attach *second = NULL;
	struct error e = {0};
	struct stat st;

	assert_int_equal(stat(w->path, &st), 0);
	assert_int_equal(st.st_mode & 07777, 0600);
	/* A live socket is not taken over ... */
	config.socket_path = w->path;
	assert_int_equal(attach_new(w->base, w->eng, &config, &second, &e), -EADDRINUSE);
	assert_string_equal(e.cls, ERROR_BUSY);
	assert_null(second);
	/* ... and what a successor put in its place is left alone. */
	assert_int_equal(unlink(w->path), 0);
	assert_int_equal(attach_new(w->base, w->eng, &config, &second, &e), 0);
	attach_free(w->at);
	assert_int_equal(stat(w->path, &st), 0);
	w->at = second;
	world_free(w);
}

static void test_bad_path(void **state)
{
	struct event_base *base = event_base_new();
	struct attach_config config = {.socket_path = "/nonexistent/dir/attach.sock"};
	unsigned int before = count_fds();
	struct attach *at = NULL;
	struct error e = {0};

	assert_int_equal(attach_new(base, NULL, &config, &at, &e), -ENOENT);
	assert_non_null(strstr(e.desc, "/nonexistent/dir/attach.sock"));
	assert_null(at);
	assert_int_equal(count_fds(), before);
	attach_free(NULL);
	event_base_free(base);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_nothing_happens),	 cmocka_unit_test(test_several_at_once),
		cmocka_unit_test(test_freed_while_busy), cmocka_unit_test(test_socket_file),
		cmocka_unit_test(test_bad_path),
	};

	log_setup(LOG_ERROR, false);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
