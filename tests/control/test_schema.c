/* SPDX-License-Identifier: BSD-3-Clause */
/* test_schema.c: the declaration itself, and the checks that are made from it. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "control/internal.h"

static struct schema *schema;

static int set_up(void **state)
{
	struct error e;

	(void)state;
	return schema_new(&schema, &e);
}

static int tear_down(void **state)
{
	(void)state;
	schema_free(schema);
	return 0;
}

/* Checks arguments given as JSON; want NULL: they are fine; else the error's text. */
static void check(const char *command, const char *text, const char *want)
{
	json_t *args = json_loads(text, 0, NULL);
	struct error e = {0};
	int r;

	assert_non_null(args);
	r = schema_check_args(schema, schema_command(schema, command), args, &e);
	if (want) {
		assert_int_not_equal(r, 0);
		assert_string_equal(e.desc, want);
		assert_string_equal(e.cls, ERROR_ARGUMENT);
	} else {
		assert_int_equal(r, 0);
	}
	json_decref(args);
}

static void test_missing_and_unknown(void **state)
{
	(void)state;
	check("query-vm", "{\"vm\":\"a\"}", NULL);
	check("query-vm", "{}", "argument 'vm' is missing");
	check("query-vm", "{\"vm\":\"a\",\"vim\":1}", "argument 'vim' is not known");
	check("query-vms", "{\"vm\":\"a\"}", "argument 'vm' is not known");
}

static void test_types(void **state)
{
	(void)state;
	check("query-vm", "{\"vm\":1}", "argument 'vm' must be a string");
	check("vm-set", "{\"vm\":\"a\",\"limit\":1}", NULL);
	check("vm-set", "{\"vm\":\"a\",\"limit\":\"1G\"}",
	      "argument 'limit' must be a size in bytes");
	check("vm-set", "{\"vm\":\"a\",\"limit\":1.5}", "argument 'limit' must be a size in bytes");
	check("vm-set", "{\"vm\":\"a\",\"limit\":null}",
	      "argument 'limit' must be a size in bytes");
	check("vm-set", "{\"vm\":\"a\",\"weight\":true}", "argument 'weight' must be an integer");
	check("vm-set", "{\"vm\":\"a\",\"tiers\":\"x\"}", "argument 'tiers' must be a list");
	check("vm-set", "{\"vm\":\"a\",\"tiers\":[\"x\",2]}",
	      "argument 'tiers'[1] must be a string");
	check("quit", "{\"drain\":1}", "argument 'drain' must be true or false");
	check("backend-add", "{\"name\":\"a\",\"driver\":\"b\",\"options\":[]}",
	      "argument 'options' must be an object");
}

static void test_ranges(void **state)
{
	(void)state;
	check("vm-set", "{\"vm\":\"a\",\"limit\":-1}", "argument 'limit' must not be negative");
	check("vm-set", "{\"vm\":\"a\",\"weight\":0}", "argument 'weight': it must be at least 1");
	check("vm-set", "{\"vm\":\"a\",\"weight\":10001}",
	      "argument 'weight': it must be at most 10000");
	check("vm-reclaim", "{\"vm\":\"a\",\"bytes\":0}",
	      "argument 'bytes': it must be at least 1");
	check("vm-set", "{\"vm\":\"a\",\"granularity\":\"3K\"}",
	      "argument 'granularity' must be one of 4K, 2M, auto");
	check("qmp_capabilities", "{\"enable\":[\"oob\"]}",
	      "argument 'enable': its length must be at most 0");
}

static void test_defaults(void **state)
{
	json_t *args = json_object();
	struct error e;

	(void)state;
	assert_int_equal(schema_check_args(schema, schema_command(schema, "quit"), args, &e), 0);
	assert_true(json_is_false(json_object_get(args, "drain")));
	assert_true(json_is_false(json_object_get(args, "cancel-on-disconnect")));
	assert_null(json_object_get(args, "job"));
	json_decref(args);
}

static void test_counters_are_declared(void **state)
{
	const json_t *members = json_object_get(schema_type(schema, "vm"), "members");
	json_t *m;
	size_t i;
	int found = 0;

	(void)state;
	json_array_foreach(members, i, m) {
		assert_true(*schema_text(m, "name"));
		found += strcmp(schema_text(m, "name"), "evictions-cancelled") == 0;
	}
	assert_int_equal(found, 1);
}

static void test_every_command_has_a_handler(void **state)
{
	struct error e = {0};

	(void)state;
	if (!methods_complete(schema, &e))
		fail_msg("%s", e.desc);
}

/* Every type that is named exists, every error class is declared, nothing lacks its help. */
static void test_declaration_is_whole(void **state)
{
	const json_t *root = schema_root(schema), *errors = json_object_get(root, "errors");
	json_t *c, *a, *error, *known;
	size_t i, j, k;

	(void)state;
	json_array_foreach(json_object_get(root, "commands"), i, c) {
		assert_true(*schema_text(c, "summary"));
		assert_true(*schema_text(json_object_get(c, "returns"), "help"));
		if (*schema_text(c, "positional"))
			assert_non_null(schema_argument(c, schema_text(c, "positional")));
		json_array_foreach(json_object_get(c, "arguments"), j, a) {
			assert_true(*schema_text(a, "help"));
			assert_true(*schema_text(a, "type"));
		}
		json_array_foreach(json_object_get(c, "errors"), j, error) {
			bool found = false;

			json_array_foreach(errors, k, known) {
				found |= json_equal(json_object_get(known, "name"), error);
			}
			assert_true(found);
		}
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_missing_and_unknown),
		cmocka_unit_test(test_types),
		cmocka_unit_test(test_ranges),
		cmocka_unit_test(test_defaults),
		cmocka_unit_test(test_counters_are_declared),
		cmocka_unit_test(test_every_command_has_a_handler),
		cmocka_unit_test(test_declaration_is_whole),
	};

	return cmocka_run_group_tests(tests, set_up, tear_down);
}
