/* SPDX-License-Identifier: BSD-3-Clause */
/* test_fd.c: descriptors over unix sockets: passed, closed once, never leaked. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <cmocka.h>

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/fd.h"

/* How many descriptors this process has open. */
static int open_fds(void)
{
	DIR *d = opendir("/proc/self/fd");
	int n = 0;

	assert_non_null(d);
	while (readdir(d))
		n++;
	closedir(d);
	return n;
}

static void make_pair(int pair[2])
{
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
}

static void close_pair(int pair[2])
{
	fd_close(&pair[0]);
	fd_close(&pair[1]);
}

/* sendmsg with as many copies of fd as asked for, past what fd_send allows. */
static void send_many(int sock, int fd, int n)
{
	char space[CMSG_SPACE(sizeof(int) * 253)] = {0};
	struct iovec iov = {(char[]){"x"}, 1};
	struct msghdr msg = {.msg_iov = &iov,
			     .msg_iovlen = 1,
			     .msg_control = space,
			     .msg_controllen = CMSG_SPACE(sizeof(int) * (size_t)n)};
	struct cmsghdr *c = CMSG_FIRSTHDR(&msg);

	c->cmsg_level = SOL_SOCKET;
	c->cmsg_type = SCM_RIGHTS;
	c->cmsg_len = CMSG_LEN(sizeof(int) * (size_t)n);
	for (int i = 0; i < n; i++)
		memcpy(CMSG_DATA(c) + sizeof(int) * (size_t)i, &fd, sizeof(fd));
	assert_int_equal(sendmsg(sock, &msg, 0), 1);
}

static int scoped(int fd, bool take)
{
	FD_OWNED mine = fd;

	return take ? fd_take(&mine) : -1;
}

static void test_owned_is_closed_unless_taken(void **state)
{
	int before = open_fds(), fd = memfd_create("a", MFD_CLOEXEC);

	assert_int_equal(scoped(fd, true), fd);
	assert_int_equal(open_fds(), before + 1);
	assert_int_equal(scoped(fd, false), -1);
	assert_int_equal(open_fds(), before);
	fd = -1;
	fd_close(&fd);
	assert_int_equal(fd, -1);
}

static void test_bytes_without_fds(void **state)
{
	int pair[2], fds[4], n = 4;
	char buf[16];

	make_pair(pair);
	assert_int_equal(fd_send(pair[0], "hello", 5, NULL, 0), 0);
	assert_int_equal(fd_recv(pair[1], buf, sizeof(buf), fds, &n), 5);
	assert_memory_equal(buf, "hello", 5);
	assert_int_equal(n, 0);
	fd_close(&pair[0]);
	n = 4;
	assert_int_equal(fd_recv(pair[1], buf, sizeof(buf), fds, &n), 0);
	close_pair(pair);
}

static void test_fds_arrive_in_order_and_cloexec(void **state)
{
	int before = open_fds(), pair[2], sent[3], got[3], n = 3;
	char buf[16], c;

	make_pair(pair);
	for (int i = 0; i < 3; i++) {
		sent[i] = memfd_create("a", 0);
		assert_int_equal(write(sent[i], &"abc"[i], 1), 1);
	}
	assert_int_equal(fd_send(pair[0], "m", 1, sent, 3), 0);
	assert_int_equal(fd_recv(pair[1], buf, sizeof(buf), got, &n), 1);
	assert_int_equal(n, 3);
	for (int i = 0; i < 3; i++) {
		assert_int_equal(pread(got[i], &c, 1, 0), 1);
		assert_int_equal(c, "abc"[i]);
		assert_true(fcntl(got[i], F_GETFD) & FD_CLOEXEC);
		close(got[i]);
		close(sent[i]);
	}
	close_pair(pair);
	assert_int_equal(open_fds(), before);
}

static void test_too_many_for_the_caller(void **state)
{
	int pair[2], got[2], n = 2, before;
	char buf[16];

	make_pair(pair);
	before = open_fds();
	send_many(pair[0], pair[0], 3);
	assert_int_equal(fd_recv(pair[1], buf, sizeof(buf), got, &n), -EMSGSIZE);
	assert_int_equal(n, 0);
	assert_int_equal(open_fds(), before);
	/* None wanted at all. */
	send_many(pair[0], pair[0], 1);
	n = 0;
	assert_int_equal(fd_recv(pair[1], buf, sizeof(buf), got, &n), -EMSGSIZE);
	assert_int_equal(open_fds(), before);
	close_pair(pair);
}

static void test_too_many_for_one_message(void **state)
{
	int pair[2], got[256], n = 256, before;
	char buf[16];

	make_pair(pair);
	before = open_fds();
	send_many(pair[0], pair[0], FD_MESSAGE_MAX);
	assert_int_equal(fd_recv(pair[1], buf, sizeof(buf), got, &n), 1);
	assert_int_equal(n, FD_MESSAGE_MAX);
	for (int i = 0; i < n; i++)
		close(got[i]);
	/* The kernel cuts these off. */
	send_many(pair[0], pair[0], 253);
	n = 256;
	assert_int_equal(fd_recv(pair[1], buf, sizeof(buf), got, &n), -EMSGSIZE);
	assert_int_equal(open_fds(), before);
	assert_int_equal(fd_send(pair[0], "x", 1, got, FD_MESSAGE_MAX + 1), -EINVAL);
	assert_int_equal(fd_send(pair[0], "x", 1, got, -1), -EINVAL);
	close_pair(pair);
}

struct sink {
	int sock;
	size_t bytes, fds;
};

static void *sink_thread(void *arg)
{
	struct sink *s = arg;
	char buf[1000];
	int got[4], n = 4;
	ssize_t r;

	while ((r = fd_recv(s->sock, buf, sizeof(buf), got, &n)) > 0) {
		s->bytes += (size_t)r;
		s->fds += (size_t)n;
		for (int i = 0; i < n; i++)
			close(got[i]);
		n = 4;
	}
	return NULL;
}

/* More than the socket holds: sent in parts, the descriptors with the first one only. */
static void test_large_messages(void **state)
{
	const size_t bytes = 4 << 20;
	char *data = calloc(1, bytes);
	int pair[2], small = 4096;
	struct sink s = {0};
	pthread_t thread;

	assert_non_null(data);
	make_pair(pair);
	setsockopt(pair[0], SOL_SOCKET, SO_SNDBUF, &small, sizeof(small));
	s.sock = pair[1];
	assert_int_equal(pthread_create(&thread, NULL, sink_thread, &s), 0);
	assert_int_equal(fd_send(pair[0], data, bytes, pair, 2), 0);
	fd_close(&pair[0]);
	pthread_join(thread, NULL);
	assert_int_equal(s.bytes, bytes);
	assert_int_equal(s.fds, 2);
	close_pair(pair);
	free(data);
}

static void test_dead_peers_are_no_signal(void **state)
{
	int pair[2], n = 0;
	char buf[1];

	make_pair(pair);
	fd_close(&pair[1]);
	assert_int_equal(fd_send(pair[0], "x", 1, NULL, 0), -EPIPE);
	close_pair(pair);
	assert_int_equal(fd_recv(-1, buf, 1, NULL, &n), -EBADF);
}

static void test_listen_and_connect(void **state)
{
	char dir[] = "/tmp/test_fd.XXXXXX", path[64], other[64];
	struct error e = {0};
	struct stat st;
	int l, again, c;

	assert_non_null(mkdtemp(dir));
	snprintf(path, sizeof(path), "%s/s", dir);
	snprintf(other, sizeof(other), "%s/file", dir);
	assert_int_equal(fd_connect_unix(path), -ENOENT);
	l = fd_listen_unix(path, 0600, &e);
	assert_true(l >= 0);
	assert_int_equal(stat(path, &st), 0);
	assert_int_equal(st.st_mode & 0777, 0600);
	assert_true(fcntl(l, F_GETFD) & FD_CLOEXEC);
	assert_true(fcntl(l, F_GETFL) & O_NONBLOCK);
	c = fd_connect_unix(path);
	assert_true(c >= 0);
	/* One that lives is not pushed aside, a dead one is. */
	assert_int_equal(fd_listen_unix(path, 0600, &e), -EADDRINUSE);
	assert_non_null(strstr(e.desc, path));
	fd_close(&l);
	fd_close(&c);
	assert_int_equal(fd_connect_unix(path), -ECONNREFUSED);
	again = fd_listen_unix(path, 0666, &e);
	assert_true(again >= 0);
	fd_close(&again);
	unlink(path);
	/* What is no socket is somebody's file, and stays. */
	again = open(other, O_CREAT | O_WRONLY | O_CLOEXEC, 0600);
	assert_true(again >= 0);
	fd_close(&again);
	assert_true(fd_listen_unix(other, 0600, &e) < 0);
	assert_non_null(strstr(e.desc, other));
	assert_int_equal(stat(other, &st), 0);
	assert_true(S_ISREG(st.st_mode));
	unlink(other);
	rmdir(dir);
}

static void test_long_paths(void **state)
{
	char path[200];
	struct error e = {0};

	memset(path, 'p', sizeof(path) - 1);
	path[sizeof(path) - 1] = '\0';
	assert_int_equal(fd_connect_unix(path), -ENAMETOOLONG);
	assert_int_equal(fd_listen_unix(path, 0600, &e), -ENAMETOOLONG);
	assert_non_null(strstr(e.desc, "too long"));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_owned_is_closed_unless_taken),
		cmocka_unit_test(test_bytes_without_fds),
		cmocka_unit_test(test_fds_arrive_in_order_and_cloexec),
		cmocka_unit_test(test_too_many_for_the_caller),
		cmocka_unit_test(test_too_many_for_one_message),
		cmocka_unit_test(test_large_messages),
		cmocka_unit_test(test_dead_peers_are_no_signal),
		cmocka_unit_test(test_listen_and_connect),
		cmocka_unit_test(test_long_paths),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
