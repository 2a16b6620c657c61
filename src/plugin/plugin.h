/* SPDX-License-Identifier: BSD-3-Clause */
/* plugin.h: finding and opening plugin files. */
#ifndef PLUGIN_PLUGIN_H
#define PLUGIN_PLUGIN_H

#include "base/error.h"

#define PLUGIN_DIRS_MAX 8
#define PLUGIN_NAME_MAX 32

/* Folders that hold backends/ and policies/, searched in order. Borrowed strings. */
struct plugin_path {
	const char *dirs[PLUGIN_DIRS_MAX];
	int n_dirs;
};

/* True for names that may name a plugin or an instance: [a-z0-9][a-z0-9_-]*, not too long. */
int plugin_name_valid(const char *name);

/*
 * Opens DIR/<kind>/<name>.so from the first folder that has it, or `file` when it is not NULL, and
 * looks up `symbol`. A file that others than root and the daemon's user can write is refused.
 * Gives a dlopen handle (dlclose it) and the symbol. 0 or -errno with e filled.
 */
int plugin_open(const struct plugin_path *path, const char *kind, const char *name,
		const char *file, const char *symbol, void **handle, void **sym, struct error *e);

/*
 * Runs body(arg) in a child process, for what a plugin does while it is loaded: if it crashes or
 * hangs there, that costs an error and not the daemon. The child ends when body returns; nothing
 * that it does is seen here. 0 when it returned; -ENOEXEC or -ETIMEDOUT with e filled. Blocks for
 * up to PLUGIN_PROBE_S, PLUGIN_PROBE_TRIES times: a daemon that comes up without one of its
 * backends leaves VMs waiting, so what may be the host's load is not taken for the plugin's fault
 * at once. plugin_open() does this for dlopen() by itself.
 */
#define PLUGIN_PROBE_S	   5
#define PLUGIN_PROBE_TRIES 3
int plugin_probe(void (*body)(void *arg), void *arg, const char *what, struct error *e);

/*
 * Copies a descriptor that begins with `uint64_t size; uint16_t abi_major, abi_minor` into dst
 * (dst_bytes long), zero-filling what the plugin does not have. -EINVAL when the major differs or
 * the size is absurd.
 */
int plugin_copy_descriptor(void *dst, size_t dst_bytes, const void *src, unsigned int abi_major,
			   const char *what, struct error *e);

#endif
