/* SPDX-License-Identifier: BSD-3-Clause */
/* test_settings.c: what is kept comes back, whatever happened to the file. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "control/fake_engine.h"
#include "control/settings.h"

struct fixture {
	char folder[64], path[128];
	struct schema *schema;
	struct settings *settings;
	struct engine *engine;
};

static void begin(struct fixture *f)
{
	const struct engine_config config = {0};
	struct error e;

	assert_int_equal(settings_new(f->schema, f->path, &f->settings, &e), 0);
	assert_int_equal(engine_new(&config, &f->engine, &e), 0);
}

static void end(struct fixture *f)
{
	settings_free(f->settings);
	engine_free(f->engine);
}

static int set_up(void **state)
{
	struct fixture *f = calloc(1, sizeof(*f));
	struct error e;

	strcpy(f->folder, "/tmp/ebb-settings-XXXXXX");
	assert_non_null(mkdtemp(f->folder));
	snprintf(f->path, sizeof(f->path), "%s/settings.json", f->folder);
	assert_int_equal(schema_new(&f->schema, &e), 0);
	begin(f);
	*state = f;
	return 0;
}

static int tear_down(void **state)
{
	struct fixture *f = *state;
	char aside[160];

	end(f);
	schema_free(f->schema);
	unlink(f->path);
	snprintf(aside, sizeof(aside), "%s.broken", f->path);
	unlink(aside);
	rmdir(f->folder);
	free(f);
	return 0;
}

static void keep(struct fixture *f, int (*fn)(struct settings *, const json_t *, struct error *),
		 const char *text)
{
	json_t *args = json_loads(text, 0, NULL);
	struct error e;

	assert_non_null(args);
	assert_int_equal(fn(f->settings, args, &e), 0);
	json_decref(args);
}

static struct vm_info *attached(struct fixture *f, const char *name)
{
	struct vm_info *info = malloc(sizeof(*info));
	struct error e;

	fake_engine_attach(f->engine, name);
	settings_apply_vm(f->settings, f->engine, name);
	assert_int_equal(engine_vm_info(f->engine, name, info, &e), 0);
	return info;
}

static void test_vm_settings_come_back(void **state)
{
	struct fixture *f = *state;
	struct vm_info *vm;
	struct stat st;

	keep(f, settings_vm_set, "{\"vm\":\"a\",\"limit\":1048576,\"weight\":7}");
	keep(f, settings_vm_set, "{\"vm\":\"a\",\"limit\":2097152}");
	keep(f, settings_policy_set,
	     "{\"vm\":\"a\",\"role\":\"prefetch\",\"policy\":\"null\",\"options\":{\"x\":1}}");
	assert_int_equal(stat(f->path, &st), 0);
	assert_int_equal(st.st_mode & 0777, 0600);
	end(f);
	begin(f);
	vm = attached(f, "a");
	assert_int_equal(vm->limit_bytes, 2097152);
	assert_int_equal(vm->weight, 7);
	assert_string_equal(vm->prefetch_policy, "null");
	assert_string_equal(vm->reclaim_policy, "clock");
	free(vm);
	vm = attached(f, "b");
	assert_int_equal(vm->limit_bytes, 0);
	free(vm);
}

static unsigned int backends(struct fixture *f)
{
	struct backend_info *info = calloc(ENGINE_BACKENDS_MAX, sizeof(*info));
	unsigned int n = engine_backend_info(f->engine, info, ENGINE_BACKENDS_MAX);

	free(info);
	return n;
}

static void test_backends_come_back(void **state)
{
	struct fixture *f = *state;
	struct error e;

	settings_apply_start(f->settings, f->engine);
	assert_int_equal(backends(f), 1); /* the default one */
	keep(f, settings_backend_add, "{\"name\":\"more\",\"driver\":\"compressed\"}");
	end(f);
	begin(f);
	settings_apply_start(f->settings, f->engine);
	assert_int_equal(backends(f), 2);
	assert_int_equal(settings_backend_remove(f->settings, "more", &e), 0);
	assert_int_equal(settings_backend_remove(f->settings, "compressed", &e), 0);
	end(f);
	begin(f);
	settings_apply_start(f->settings, f->engine);
	assert_int_equal(backends(f), 0);
	keep(f, settings_backend_add, "{\"name\":\"compressed\",\"driver\":\"compressed\"}");
	end(f);
	begin(f);
	settings_apply_start(f->settings, f->engine);
	assert_int_equal(backends(f), 1);
}

/* A tier that is gone must not cost the VM its limit. */
static void test_missing_tier_keeps_limit(void **state)
{
	struct fixture *f = *state;
	struct vm_info *vm;

	keep(f, settings_vm_set, "{\"vm\":\"a\",\"limit\":4096,\"tiers\":[\"nowhere\"]}");
	vm = attached(f, "a");
	assert_int_equal(vm->limit_bytes, 4096);
	free(vm);
}

static void test_base_is_under_kept(void **state)
{
	struct fixture *f = *state;
	struct vm_info *vm;

	settings_set_base(f->settings,
			  json_loads("{\"vms\":{\"*\":{\"settings\":{\"weight\":5,\"limit\":1}},"
				     "\"a\":{\"settings\":{\"limit\":2}}}}",
				     0, NULL));
	keep(f, settings_vm_set, "{\"vm\":\"b\",\"limit\":3}");
	vm = attached(f, "a");
	assert_int_equal(vm->limit_bytes, 2);
	assert_int_equal(vm->weight, 5);
	free(vm);
	vm = attached(f, "b");
	assert_int_equal(vm->limit_bytes, 3);
	free(vm);
}

static void test_broken_files_are_put_aside(void **state)
{
	static const char *const broken[] = {
		"",
		"{",
		"[]",
		"{\"version\":99}",
		"{\"version\":1,\"vms\":{\"a\":{\"settings\":{\"limit\":\"x\"}}}}",
		"{\"version\":1,\"vms\":{\"a\":{\"reclaim\":{\"role\":\"reclaim\"}}}}",
		"{\"version\":1,\"backends\":{\"a\":{}}}",
		"{\"version\":1,\"backends-removed\":[1]}",
		"{\"version\":1,\"surprise\":{}}",
	};
	struct fixture *f = *state;
	char aside[160];

	snprintf(aside, sizeof(aside), "%s.broken", f->path);
	for (size_t i = 0; i < sizeof(broken) / sizeof(broken[0]); i++) {
		FILE *file = fopen(f->path, "w");
		struct vm_info *vm;

		assert_non_null(file);
		fputs(broken[i], file);
		fclose(file);
		unlink(aside);
		end(f);
		begin(f);
		assert_int_equal(access(aside, F_OK), 0);
		assert_int_not_equal(access(f->path, F_OK), 0);
		keep(f, settings_vm_set, "{\"vm\":\"a\",\"limit\":9}");
		vm = attached(f, "a");
		assert_int_equal(vm->limit_bytes, 9);
		free(vm);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_vm_settings_come_back, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_backends_come_back, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_missing_tier_keeps_limit, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_base_is_under_kept, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_broken_files_are_put_aside, set_up, tear_down),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
