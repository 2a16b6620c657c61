/* SPDX-License-Identifier: BSD-3-Clause */
/* test_log.c: the lines that the log writes, read back from a captured stderr. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <cmocka.h>

#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/log.h"

struct capture {
	int file, stderr_was;
	char text[8192];
};

static void capture_begin(struct capture *c)
{
	c->file = memfd_create("stderr", MFD_CLOEXEC);
	c->stderr_was = dup(STDERR_FILENO);
	assert_true(c->file >= 0 && c->stderr_was >= 0);
	assert_true(dup2(c->file, STDERR_FILENO) >= 0);
}

/* No assertion before stderr is back: its message would be lost. */
static const char *capture_end(struct capture *c)
{
	ssize_t n = pread(c->file, c->text, sizeof(c->text) - 1, 0);

	dup2(c->stderr_was, STDERR_FILENO);
	close(c->stderr_was);
	close(c->file);
	assert_true(n >= 0);
	c->text[n] = '\0';
	return c->text;
}

static void test_levels(void **state)
{
	struct capture c;

	log_setup(LOG_WARNING, false);
	capture_begin(&c);
	log_error("one");
	log_warning("two %d", 2);
	log_info("three");
	log_debug("four");
	assert_string_equal(capture_end(&c), "error: one\nwarning: two 2\n");

	log_setup(LOG_DEBUG, false);
	capture_begin(&c);
	log_info("three");
	log_debug("four");
	assert_string_equal(capture_end(&c), "three\ndebug: four\n");
}

static void test_journal_priorities(void **state)
{
	struct capture c;

	log_setup(LOG_DEBUG, true);
	capture_begin(&c);
	log_error("a");
	log_warning("b");
	log_info("c");
	log_debug("d");
	assert_string_equal(capture_end(&c), "<3>a\n<4>b\n<6>c\n<7>d\n");
}

static void test_nobody_forges_a_line(void **state)
{
	struct capture c;

	log_setup(LOG_INFO, true);
	capture_begin(&c);
	log_info("name '%s'", "x\n<3>all is lost\r\033[2J");
	assert_string_equal(capture_end(&c), "<6>name 'x <3>all is lost  [2J'\n");
}

static void test_long_lines_are_cut(void **state)
{
	struct capture c;
	char text[3000];
	const char *got;

	memset(text, 'x', sizeof(text) - 1);
	text[sizeof(text) - 1] = '\0';
	log_setup(LOG_INFO, false);
	capture_begin(&c);
	log_info("%s", text);
	log_info("next");
	got = capture_end(&c);
	assert_true(strlen(got) > 900 && strlen(got) < 1100);
	assert_string_equal(strchr(got, '\n'), "\nnext\n");
}

static void test_level_names(void **state)
{
	assert_int_equal(log_level_parse("error"), LOG_ERROR);
	assert_int_equal(log_level_parse("warning"), LOG_WARNING);
	assert_int_equal(log_level_parse("info"), LOG_INFO);
	assert_int_equal(log_level_parse("debug"), LOG_DEBUG);
	assert_int_equal(log_level_parse("Info"), -1);
	assert_int_equal(log_level_parse(""), -1);
}

static void test_limit_lets_a_few_pass(void **state)
{
	struct log_limit limit;
	unsigned long long began;
	int passed;

	/* Once more when the clock's second changed in between: the window did too. */
	do {
		limit = (struct log_limit){0};
		passed = log_limit_pass(&limit);
		began = limit.window_s;
		for (int i = 0; i < 99; i++)
			passed += log_limit_pass(&limit);
	} while (limit.window_s != began);
	assert_int_equal(passed, 5);
	assert_int_equal(limit.dropped, 95);
}

static void test_limit_tells_what_was_left_out(void **state)
{
	struct log_limit limit = {.window_s = 1, .lines = 100, .dropped = 95};
	struct capture c;

	log_setup(LOG_INFO, false);
	capture_begin(&c);
	log_limited(&limit, LOG_INFO, "again");
	assert_string_equal(capture_end(&c), "warning: 95 similar lines left out\nagain\n");
	assert_int_equal(limit.dropped, 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_levels),
		cmocka_unit_test(test_journal_priorities),
		cmocka_unit_test(test_nobody_forges_a_line),
		cmocka_unit_test(test_long_lines_are_cut),
		cmocka_unit_test(test_level_names),
		cmocka_unit_test(test_limit_lets_a_few_pass),
		cmocka_unit_test(test_limit_tells_what_was_left_out),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
