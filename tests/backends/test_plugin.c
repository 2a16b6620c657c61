/* SPDX-License-Identifier: BSD-3-Clause */
/* test_plugin.c: plugins that are old, new or wrong are taken or refused, and never crash. */
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "backends/harness.h"

static void names(void **state)
{
	assert_true(plugin_name_valid("compressed"));
	assert_true(plugin_name_valid("0-a_b"));
	assert_true(plugin_name_valid("aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa")); /* 31 */
	assert_false(plugin_name_valid("aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"));
	assert_false(plugin_name_valid(""));
	assert_false(plugin_name_valid(NULL));
	assert_false(plugin_name_valid("-a"));
	assert_false(plugin_name_valid("../a"));
	assert_false(plugin_name_valid("a/b"));
	assert_false(plugin_name_valid("A"));
	assert_false(plugin_name_valid("a b"));
}

static int open_odd(struct rig *r, const char *driver, struct error *e)
{
	memset(r, 0, sizeof(*r));
	r->path = (struct plugin_path){{"/nonexistent", ODD_DIR}, 2};
	e->desc[0] = '\0';
	return rig_backend(r, driver, NULL, 0, e);
}

static void assert_refused(const char *driver, int code, const char *word)
{
	struct error e;
	struct rig r;

	assert_int_equal(open_odd(&r, driver, &e), -code);
	if (!strstr(e.desc, word))
		fail_msg("%s: '%s' does not say '%s'", driver, e.desc, word);
}

static void wrong_ones_are_refused(void **state)
{
	assert_refused("missing", ENOENT, "no backends/missing.so");
	assert_refused("../x", EINVAL, "cannot name");
	assert_refused("major", EINVAL, "ABI");
	assert_refused("tiny", EINVAL, "size");
	assert_refused("huge", EINVAL, "size");
	assert_refused("nocallback", EINVAL, "submit");
	assert_refused("nopoll", EINVAL, "poll");
	assert_refused("nosymbol", EINVAL, "ebb_backend_entry");
	assert_refused("nodescriptor", EINVAL, "descriptor");
	assert_refused("badname", EINVAL, "another");
	assert_refused("caps", EINVAL, "0x100000");
	assert_refused("failopen", EIO, "xxx");
	/* These would take the daemon with them. */
	assert_refused("crashload", ENOEXEC, "Abort");
	assert_refused("crashopen", ENOEXEC, "Segmentation");
}

/* One that was not through in time may be another time: the host is busy. */
static void slow_ones_get_another_try(void **state)
{
	char mark[] = "/tmp/ebb-odd.XXXXXX";
	struct error e;
	struct rig r;
	int fd = mkstemp(mark);

	assert_true(fd >= 0);
	close(fd);
	unlink(mark);
	setenv("EBB_ODD_MARK", mark, 1);
	if (open_odd(&r, "slowload", &e))
		fail_msg("%s", e.desc);
	backend_close(r.b);
	/* It did hang. */
	assert_int_equal(unlink(mark), 0);
	unsetenv("EBB_ODD_MARK");
}

/* Opens all three kinds of object, uses and closes them. */
static void works(const char *driver)
{
	struct error e;
	struct rig r;
	struct ebb_stat stats[4];
	struct ebb_option opt = {"a", "b"};
	uint64_t handle;
	void *buf = buffer_new();

	if (open_odd(&r, driver, &e))
		fail_msg("%s: %s", driver, e.desc);
	r.s = rig_space(&r, &r.kept);
	r.c = rig_channel(&r);
	assert_int_equal(do_store(r.c, r.s, 0, buf, 4096, &handle), -ENOSPC);
	/* Stats without a name are dropped, and their number is not believed. */
	assert_int_equal(backend_stats(r.b, stats, 4), 0);
	assert_false(backend_maintain(r.s, 10));
	assert_int_equal(backend_config(r.b, &opt, &e), -ENOTSUP);
	assert_int_equal(backend_event_fd(r.c), -1);
	rig_close(&r);
	free(buf);
}

static void old_and_newer_ones_work(void **state)
{
	works("old");
	works("newer");
	works("minor_ahead");
}

/* Submits one I/O to the plugin that lies; returns its result, or 1 when it never came back. */
static int lie(struct rig *r, uint64_t user, void *buf)
{
	static struct ebb_io io; /* it may be given back again later */
	struct ebb_io *p = &io, *back;

	backend_io_prepare(&io, EBB_IO_STORE, 0, r->s, 0, buf, 4096, user);
	assert_int_equal(backend_submit(r->c, &p, 1), 1);
	return backend_poll(r->c, &back, 1) == 1 ? io.result : 1;
}

static void lies_are_caught(void **state)
{
	void *buf = buffer_new();
	struct ebb_io io[2], *p[2] = {&io[0], &io[1]}, *back[4];
	struct error e;
	struct rig r;

	assert_int_equal(open_odd(&r, "liar", &e), 0);
	r.s = rig_space(&r, &r.kept);
	r.c = rig_channel(&r);
	assert_int_equal(lie(&r, 2, buf), -EIO);
	assert_int_equal(lie(&r, 3, buf), -EIO);
	assert_int_equal(lie(&r, 4, buf), -EIO);
	/* More taken than offered: counts as all. */
	backend_io_prepare(&io[0], EBB_IO_STORE, 0, r.s, 0, buf, 8192, 2);
	backend_io_prepare(&io[1], EBB_IO_STORE, 0, r.s, 0, buf, 8192, 2);
	assert_int_equal(backend_submit(r.c, p, 2), 2);
	assert_int_equal(backend_poll(r.c, back, 4), 1);
	assert_int_equal(backend_poll(r.c, back, 4), 1);
	/* The same one twice: the second time it is not in flight. */
	backend_io_prepare(&io[0], EBB_IO_STORE, 0, r.s, 0, buf, 4096, 2);
	assert_int_equal(backend_submit(r.c, p, 1), 1);
	assert_int_equal(lie(&r, 1, buf), 0);
	assert_int_equal(backend_poll(r.c, back, 4), 0);
	rig_close(&r);
	free(buf);
}

/* A descriptor that is readable for nothing is so only until it was looked at. */
static void restless_ones_come_to_rest(void **state)
{
	struct pollfd p = {.events = POLLIN};
	struct ebb_io *back[4];
	struct error e;
	struct rig r;

	assert_int_equal(open_odd(&r, "restless", &e), 0);
	r.s = rig_space(&r, &r.kept);
	r.c = rig_channel(&r);
	p.fd = backend_event_fd(r.c);
	assert_int_equal(poll(&p, 1, 0), 1);
	assert_int_equal(backend_poll(r.c, back, 4), 0);
	assert_int_equal(poll(&p, 1, 0), 0);
	close(p.fd);
	rig_close(&r);
}

static void options_are_checked(void **state)
{
	const char *twice[] = {"codec=lz4", "codec=zstd"};
	struct error e;
	struct rig r;

	memset(&r, 0, sizeof(r));
	r.path = (struct plugin_path){{ODD_DIR}, 1};
	assert_int_equal(rig_backend(&r, "old", twice, 2, &e), -EINVAL);
	assert_non_null(strstr(e.desc, "codec"));
}

/* A plugin that others can replace is not run. */
static void files_of_others_are_refused(void **state)
{
	char dir[] = "/tmp/ebb-plugin-XXXXXX", folder[64], file[96], command[512];
	struct error e;
	struct rig r;

	assert_non_null(mkdtemp(dir));
	snprintf(folder, sizeof(folder), "%s/backends", dir);
	snprintf(file, sizeof(file), "%s/old.so", folder);
	assert_int_equal(mkdir(folder, 0755), 0);
	snprintf(command, sizeof(command), "cp '%s/backends/old.so' '%s'", ODD_DIR, file);
	assert_int_equal(system(command), 0);
	memset(&r, 0, sizeof(r));
	r.path = (struct plugin_path){{dir}, 1};

	chmod(file, 0775);
	assert_int_equal(rig_backend(&r, "old", NULL, 0, &e), -EPERM);
	chmod(file, 0757);
	assert_int_equal(rig_backend(&r, "old", NULL, 0, &e), -EPERM);
	chmod(file, 0755);
	chmod(folder, 0777);
	assert_int_equal(rig_backend(&r, "old", NULL, 0, &e), -EPERM);
	chmod(folder, 0755);
	if (geteuid() == 0) {
		assert_int_equal(chown(file, 12345, 12345), 0);
		assert_int_equal(rig_backend(&r, "old", NULL, 0, &e), -EPERM);
		assert_non_null(strstr(e.desc, "12345"));
		assert_int_equal(chown(file, 0, 0), 0);
	}
	assert_int_equal(rig_backend(&r, "old", NULL, 0, &e), 0);
	backend_close(r.b);
	unlink(file);
	rmdir(folder);
	rmdir(dir);
}

/* A file that is no library, cut off or empty, is an error and nothing else. */
static void broken_files_are_refused(void **state)
{
	char dir[] = "/tmp/ebb-plugin-XXXXXX", folder[64], file[96], command[512];
	struct error e;
	struct rig r;

	assert_non_null(mkdtemp(dir));
	snprintf(folder, sizeof(folder), "%s/backends", dir);
	snprintf(file, sizeof(file), "%s/old.so", folder);
	assert_int_equal(mkdir(folder, 0755), 0);
	memset(&r, 0, sizeof(r));
	r.path = (struct plugin_path){{dir}, 1};
	snprintf(command, sizeof(command), "head -c 700 '%s/backends/old.so' >'%s'", ODD_DIR, file);
	assert_int_equal(system(command), 0);
	chmod(file, 0755);
	assert_int_equal(rig_backend(&r, "old", NULL, 0, &e), -ENOEXEC);
	unlink(file);
	assert_int_equal(mkdir(file, 0755), 0);
	assert_int_equal(rig_backend(&r, "old", NULL, 0, &e), -EINVAL);
	rmdir(file);
	rmdir(folder);
	rmdir(dir);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(names),
		cmocka_unit_test(wrong_ones_are_refused),
		cmocka_unit_test(slow_ones_get_another_try),
		cmocka_unit_test(old_and_newer_ones_work),
		cmocka_unit_test(lies_are_caught),
		cmocka_unit_test(restless_ones_come_to_rest),
		cmocka_unit_test(options_are_checked),
		cmocka_unit_test(files_of_others_are_refused),
		cmocka_unit_test(broken_files_are_refused),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
