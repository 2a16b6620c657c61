/* SPDX-License-Identifier: BSD-3-Clause */
/* plugin.c: finding and opening plugin files. */
#include "plugin/plugin.h"

#include <dlfcn.h>
#include <errno.h>
#include <limits.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/*
 * Theory of operation
 *
 * A plugin is a shared object that runs with all the rights of the daemon, so the question before
 * every dlopen() is who could have put it there. A file is taken only when it belongs to root or
 * to the daemon's user and nobody else can write it, or its folder (who can write the folder can
 * put another file in its place between the look and the dlopen). A file may still be cut off or
 * crash in a constructor, so a child process opens it first (probe.c).
 *
 * Nothing here knows what kinds of plugins there are; backend_host.c and policy_host.c do. No
 * state is kept: the handle of dlopen() goes to the caller, who closes it.
 *
 * Thread: any; may block on the file system, and runs the constructors of the plugin.
 */

/* What every descriptor begins with. */
struct descriptor_head {
	uint64_t size;
	uint16_t abi_major, abi_minor;
};

/* A descriptor larger than this is not a newer one, it is not a descriptor. */
#define DESCRIPTOR_BYTES_MAX 65536

int plugin_name_valid(const char *name)
{
	size_t n = 0;

	if (!name)
		return 0;
	for (const char *p = name; *p; p++, n++) {
		int first_ok = (*p >= 'a' && *p <= 'z') || (*p >= '0' && *p <= '9');

		if (!first_ok && (n == 0 || (*p != '_' && *p != '-')))
			return 0;
		if (n + 1 >= PLUGIN_NAME_MAX)
			return 0;
	}
	return n > 0;
}

/* 0 when only root and we can write what st describes, else -EPERM and a sentence. */
static int check_writers(const char *path, const struct stat *st, struct error *e)
{
	/* In a sticky folder others can add files, but not replace ours. */
	mode_t loose = S_ISDIR(st->st_mode) && (st->st_mode & S_ISVTX) ? 0 : S_IWGRP | S_IWOTH;

	if (st->st_uid != 0 && st->st_uid != geteuid())
		return error_set(e, EPERM, ERROR_PERMISSION,
				 "%s belongs to user %u, neither root nor the daemon's user", path,
				 (unsigned int)st->st_uid);
	if (st->st_mode & loose)
		return error_set(e, EPERM, ERROR_PERMISSION,
				 "%s can be written by others (mode %03o)", path,
				 (unsigned int)(st->st_mode & 07777));
	return 0;
}

static int check_file(const char *path, struct error *e)
{
	char folder[PATH_MAX];
	struct stat st;
	char *slash;
	int r;

	if (stat(path, &st))
		return error_set(e, errno, ERROR_NOT_FOUND, "%s: %s", path, error_text(errno));
	if (!S_ISREG(st.st_mode))
		return error_set(e, EINVAL, ERROR_ARGUMENT, "%s is not a regular file", path);
	r = check_writers(path, &st, e);
	if (r)
		return r;
	snprintf(folder, sizeof(folder), "%s", path);
	slash = strrchr(folder, '/');
	slash[slash == folder] = '\0';
	if (stat(folder, &st))
		return error_set(e, errno, ERROR_GENERIC, "%s: %s", folder, error_text(errno));
	return check_writers(folder, &st, e);
}

/* The full name of DIR/<kind>/<name>.so, from the first folder that has it. */
static int find(const struct plugin_path *path, const char *kind, const char *name,
		char out[PATH_MAX], struct error *e)
{
	if (!plugin_name_valid(name))
		return error_set(e, EINVAL, ERROR_ARGUMENT,
				 "'%.40s' cannot name a plugin: lower case letters, digits, '-' "
				 "and '_', at most %d",
				 name ? name : "", PLUGIN_NAME_MAX - 1);
	for (int i = 0; path && i < path->n_dirs; i++) {
		char candidate[PATH_MAX];
		int n = snprintf(candidate, sizeof(candidate), "%s/%s/%s.so", path->dirs[i], kind,
				 name);

		if (n < (int)sizeof(candidate) && realpath(candidate, out))
			return 0;
	}
	return error_set(e, ENOENT, ERROR_NOT_FOUND, "no %s/%s.so in any plugin folder", kind,
			 name);
}

static void try_dlopen(void *path)
{
	dlopen(path, RTLD_NOW | RTLD_LOCAL);
}

int plugin_open(const struct plugin_path *path, const char *kind, const char *name,
		const char *file, const char *symbol, void **handle, void **sym, struct error *e)
{
	char real[PATH_MAX];
	void *h, *s;
	int r;

	if (file) {
		/* A name without a slash would send dlopen() to the system's library folders. */
		if (!realpath(file, real))
			return error_set(e, errno, ERROR_NOT_FOUND, "%s: %s", file,
					 error_text(errno));
	} else {
		r = find(path, kind, name, real, e);
		if (r)
			return r;
	}
	r = check_file(real, e);
	if (r)
		return r;
	r = plugin_probe(try_dlopen, real, real, e);
	if (r)
		return r;
	h = dlopen(real, RTLD_NOW | RTLD_LOCAL);
	if (!h)
		return error_set(e, ENOEXEC, ERROR_GENERIC, "%s", dlerror());
	s = dlsym(h, symbol);
	if (!s) {
		dlclose(h);
		return error_set(e, EINVAL, ERROR_ARGUMENT,
				 "%s is no plugin for %s: it has no %s()", real, kind, symbol);
	}
	*handle = h;
	*sym = s;
	return 0;
}

int plugin_copy_descriptor(void *dst, size_t dst_bytes, const void *src, unsigned int abi_major,
			   const char *what, struct error *e)
{
	struct descriptor_head head;

	if (!src)
		return error_set(e, EINVAL, ERROR_ARGUMENT, "%s gives no descriptor", what);
	memcpy(&head, src, sizeof(head));
	if (head.size < sizeof(head) || head.size > DESCRIPTOR_BYTES_MAX)
		return error_set(e, EINVAL, ERROR_ARGUMENT,
				 "%s: its descriptor claims a size of %llu bytes", what,
				 (unsigned long long)head.size);
	if (head.abi_major != abi_major)
		return error_set(e, EINVAL, ERROR_UNSUPPORTED,
				 "%s is made for plugin ABI %u, this daemon has %u", what,
				 head.abi_major, abi_major);
	memset(dst, 0, dst_bytes);
	memcpy(dst, src, head.size < dst_bytes ? head.size : dst_bytes);
	return 0;
}
