/* SPDX-License-Identifier: BSD-3-Clause */
/* plugin.c: the library as a QEMU plugin: -plugin libebb-attach.so,socket=PATH,name=NAME */
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "client/client.h"

/*
 * QEMU calls qemu_plugin_install() under TCG and KVM alike, after guest RAM has been mapped. None
 * of its plugin interface is used but this entry, so that no header of QEMU's is needed; what is
 * declared here has been the same since the interface exists.
 */

#define EXPORT		__attribute__((visibility("default")))
#define REQUIRE_WAIT_MS 15000

struct qemu_info_t;
EXPORT extern int qemu_plugin_version;
EXPORT int qemu_plugin_install(uint64_t id, const struct qemu_info_t *info, int argc, char **argv);

/* The oldest is right where the host turns out to be no QEMU. */
int qemu_plugin_version = 1;

/*
 * QEMU loads a plugin only when qemu_plugin_version lies between the oldest version that it
 * supports (0 up to QEMU 8.1, 2 since 8.2) and its own (1 in 7.2, 4 in 10.0). It reads the number
 * after our constructors have run, so they look at what the executable exports: each version came
 * with functions, and version 2 also dropped one. A QEMU whose oldest supported version is past
 * those known here can be told by EBB_QEMU_PLUGIN_VERSION.
 */
__attribute__((constructor)) static void choose_version(void)
{
	static const struct {
		const char *symbol;
		int version;
	} since[] = {
		{"qemu_plugin_write_memory_vaddr", 5}, {"qemu_plugin_read_memory_vaddr", 4},
		{"qemu_plugin_num_vcpus", 2},	       {"qemu_plugin_scoreboard_new", 2},
		{"qemu_plugin_get_registers", 2},
	};
	const char *told = getenv("EBB_QEMU_PLUGIN_VERSION");

	if (told && *told) {
		qemu_plugin_version = atoi(told);
		return;
	}
	for (size_t i = 0; i < sizeof(since) / sizeof(*since); i++) {
		if (dlsym(RTLD_DEFAULT, since[i].symbol)) {
			qemu_plugin_version = since[i].version;
			return;
		}
	}
}

static int take_option(struct client *c, const char *arg)
{
	const char *value = strchr(arg, '=');
	size_t key = value ? (size_t)(value - arg) : strlen(arg);

	if (value && key == 6 && !memcmp(arg, "socket", key)) {
		if (snprintf(c->socket_path, sizeof(c->socket_path), "%s", value + 1) <
		    (int)sizeof(c->socket_path))
			return 0;
		say("%s: longer than a unix socket's path can be", arg);
		return -1;
	}
	if (value && key == 4 && !memcmp(arg, "name", key)) {
		snprintf(c->name, sizeof(c->name), "%s", value + 1);
		return 0;
	}
	say("unknown option %s (there are socket= and name=)", arg);
	return -1;
}

/* EBB_REQUIRE: the VM starts only when it is attached. */
static int wait_attached(struct client *c)
{
	uint64_t until = clock_ns() + REQUIRE_WAIT_MS * NS_PER_MS;
	bool attached;

	pthread_mutex_lock(&c->lock);
	while (c->link != LINK_ATTACHED && clock_ns() < until)
		client_wait(c, until);
	attached = c->link == LINK_ATTACHED;
	pthread_mutex_unlock(&c->lock);
	if (!attached)
		say("EBB_REQUIRE is set and this VM could not be attached at %s", c->socket_path);
	return attached ? 0 : -1;
}

int qemu_plugin_install(uint64_t id, const struct qemu_info_t *info, int argc, char **argv)
{
	struct client *c = &the_client;

	/* Preloaded as well: it may have attached already, under the environment's settings. */
	if (!atomic_load(&c->started))
		for (int i = 0; i < argc; i++)
			if (take_option(c, argv[i]))
				return -1;
	if (c->require && client_require(c))
		return -1;
	hooks_install();
	client_scan(c);
	helper_start(c);
	return c->require ? wait_attached(c) : 0;
}
