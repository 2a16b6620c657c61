/* SPDX-License-Identifier: BSD-3-Clause */
/* test_intake.c: messages and their descriptors out of a stream, however it was cut. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "attach/intake.h"
#include "base/fd.h"

struct pair {
	int writer, reader;
	struct intake intake;
};

static struct pair pair_make(size_t max)
{
	struct pair p;
	int sv[2];

	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sv), 0);
	p.writer = sv[0];
	p.reader = sv[1];
	intake_init(&p.intake, max);
	return p;
}

static void drop_fds(struct intake *f)
{
	int fds[INTAKE_FDS_MAX];
	int n = intake_take_fds(f, fds);

	for (int i = 0; i < n; i++)
		close(fds[i]);
}

static void pair_close(struct pair *p)
{
	drop_fds(&p->intake);
	intake_reset(&p->intake);
	close(p->writer);
	close(p->reader);
}

static void write_text(struct pair *p, const char *text, int n_fds)
{
	int fds[FD_MESSAGE_MAX];

	for (int i = 0; i < n_fds; i++)
		fds[i] = STDIN_FILENO;
	assert_int_equal(fd_send(p->writer, text, strlen(text), fds, n_fds), 0);
}

static void expect_line(struct pair *p, const char *text, int n_fds)
{
	assert_int_equal(intake_line(&p->intake, p->reader), 1);
	assert_int_equal(p->intake.bytes, strlen(text));
	assert_memory_equal(p->intake.text, text, strlen(text));
	assert_int_equal(p->intake.n_fds, n_fds);
	drop_fds(&p->intake);
	intake_reset(&p->intake);
}

static void test_line(void **state)
{
	struct pair p = pair_make(64);

	assert_int_equal(intake_line(&p.intake, p.reader), 0);
	write_text(&p, "hello\n", 0);
	expect_line(&p, "hello", 0);
	write_text(&p, "\n", 0);
	expect_line(&p, "", 0);
	close(p.writer);
	assert_int_equal(intake_line(&p.intake, p.reader), -EPIPE);
	p.writer = -1;
	pair_close(&p);
}

static void test_line_in_pieces(void **state)
{
	struct pair p = pair_make(64);

	write_text(&p, "a", 2);
	assert_int_equal(intake_line(&p.intake, p.reader), 0);
	write_text(&p, "b", 0);
	assert_int_equal(intake_line(&p.intake, p.reader), 0);
	write_text(&p, "c\nd", 0);
	expect_line(&p, "abc", 2);
	assert_int_equal(intake_line(&p.intake, p.reader), 0);
	write_text(&p, "\n", 0);
	expect_line(&p, "d", 0);
	pair_close(&p);
}

/* Descriptors never move to the message before or behind. */
static void test_fds_stay_with_their_message(void **state)
{
	struct pair p = pair_make(64);

	write_text(&p, "one\n", 0);
	write_text(&p, "two\n", 3);
	write_text(&p, "three\n", 0);
	write_text(&p, "four\nfive\n", 1);
	expect_line(&p, "one", 0);
	expect_line(&p, "two", 3);
	expect_line(&p, "three", 0);
	expect_line(&p, "four", 1);
	expect_line(&p, "five", 0);
	pair_close(&p);
}

static void test_fds_are_cloexec(void **state)
{
	struct pair p = pair_make(64);

	write_text(&p, "x\n", 1);
	assert_int_equal(intake_line(&p.intake, p.reader), 1);
	assert_int_equal(p.intake.n_fds, 1);
	assert_true(fcntl(p.intake.fds[0], F_GETFD) & FD_CLOEXEC);
	pair_close(&p);
}

static void test_longest_line(void **state)
{
	char text[65];
	struct pair p = pair_make(64);

	memset(text, 'x', sizeof(text));
	text[63] = '\n';
	text[64] = 0;
	write_text(&p, text, 0);
	text[63] = 0;
	expect_line(&p, text, 0);
	memset(text, 'x', 64);
	write_text(&p, text, 0);
	assert_int_equal(intake_line(&p.intake, p.reader), -EMSGSIZE);
	pair_close(&p);
}

/* Larger than the first buffer and than what is peeked at in one go. */
static void test_long_line_grows(void **state)
{
	static char text[40001];
	struct pair p = pair_make(65536);

	memset(text, 'y', sizeof(text) - 1);
	text[39999] = '\n';
	write_text(&p, text, 0);
	write_text(&p, "z\n", 0);
	text[39999] = 0;
	expect_line(&p, text, 0);
	expect_line(&p, "z", 0);
	pair_close(&p);
}

static void test_too_many_fds(void **state)
{
	struct pair p = pair_make(64);

	for (int i = 0; i < 4; i++) {
		write_text(&p, "x", 60);
		assert_int_equal(intake_line(&p.intake, p.reader), 0);
	}
	assert_int_equal(p.intake.n_fds, 240);
	write_text(&p, "x", 60);
	assert_int_equal(intake_line(&p.intake, p.reader), -ETOOMANYREFS);
	assert_int_equal(p.intake.n_fds, INTAKE_FDS_MAX);
	/* None is left over, and there is no room for a single one more. */
	write_text(&p, "x", 1);
	assert_int_equal(intake_line(&p.intake, p.reader), -ETOOMANYREFS);
	pair_close(&p);
}

static void test_first_byte(void **state)
{
	struct pair p = pair_make(64);
	char first = 0;

	assert_int_equal(intake_first(&p.intake, p.reader, &first), 0);
	write_text(&p, " \r\n\t", 2);
	assert_int_equal(intake_first(&p.intake, p.reader, &first), 0);
	write_text(&p, "  {x\n", 0);
	assert_int_equal(intake_first(&p.intake, p.reader, &first), 1);
	assert_int_equal(first, '{');
	/* What came with the white space belongs to the message. */
	expect_line(&p, "{x", 2);
	assert_int_equal(write(p.writer, "", 1), 1);
	assert_int_equal(intake_first(&p.intake, p.reader, &first), 1);
	assert_int_equal(first, 0);
	pair_close(&p);
}

static void test_white_space_flood(void **state)
{
	static char text[20001];
	struct pair p = pair_make(64);
	int calls = 0, r;
	char first;

	memset(text, ' ', sizeof(text) - 2);
	text[19999] = '[';
	write_text(&p, text, 0);
	while (!(r = intake_first(&p.intake, p.reader, &first)))
		calls++;
	assert_int_equal(r, 1);
	assert_int_equal(first, '[');
	assert_true(calls > 1); /* the others have their turn between */
	assert_int_equal(p.intake.bytes, 0);
	pair_close(&p);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_line),
		cmocka_unit_test(test_line_in_pieces),
		cmocka_unit_test(test_fds_stay_with_their_message),
		cmocka_unit_test(test_fds_are_cloexec),
		cmocka_unit_test(test_longest_line),
		cmocka_unit_test(test_long_line_grows),
		cmocka_unit_test(test_too_many_fds),
		cmocka_unit_test(test_first_byte),
		cmocka_unit_test(test_white_space_flood),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
