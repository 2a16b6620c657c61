/* SPDX-License-Identifier: BSD-3-Clause */
/* memcg.c: the memory cgroup of a process: which limit binds it, and how near it is. */
#include "sys/procinfo.h"

#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/*
 * Theory of operation. /proc/PID/cgroup names the cgroup of the process as a path from the root of
 * its hierarchy, /proc/self/mountinfo says where that hierarchy is mounted here and which part of
 * it (the mount's root). A limit anywhere above binds too, so every level up to the mount is read
 * and the one with the least room left is the answer. Version 1 has a memory controller of its own
 * mount; version 2 has one hierarchy for all, which may lack the controller. No state, any thread.
 */

struct hierarchy {
	char mount[PATH_MAX]; /* where it is mounted */
	char path[PATH_MAX];  /* the cgroup, from there; "" or "/a/b" */
};

/* Version 1's unlimited: the largest multiple of the page size that fits. */
#define V1_UNLIMITED (UINT64_C(0x7fffffffffffffff) & ~UINT64_C(0xfff))

static bool list_has(const char *list, const char *word)
{
	size_t n = strlen(word);

	for (const char *p = list; p && *p; p = strchr(p, ','), p = p ? p + 1 : NULL)
		if (!strncmp(p, word, n) && (!p[n] || p[n] == ',' || p[n] == '\n' || p[n] == ' '))
			return true;
	return false;
}

/* The path of the memory cgroup. Version 1's line wins: a controller is in one version only. */
static int find_path(pid_t pid, char *path, int *version)
{
	char file[64], *line = NULL;
	size_t size = 0;
	int best = 0;
	FILE *f;

	snprintf(file, sizeof(file), "/proc/%d/cgroup", pid);
	f = fopen(file, "re");
	if (!f)
		return -errno;
	while (getline(&line, &size, f) > 0) {
		char *controllers = strchr(line, ':'), *where;
		int v;

		if (!controllers || !(where = strchr(controllers + 1, ':')))
			continue;
		*where++ = 0;
		controllers++;
		where[strcspn(where, "\n")] = 0;
		v = !*controllers ? 2 : list_has(controllers, "memory") ? 1 : 0;
		if (!v || best == 1)
			continue;
		snprintf(path, PATH_MAX, "%s", where);
		best = v;
	}
	free(line);
	fclose(f);
	*version = best;
	return 0;
}

/* Makes path relative to the root of the mount; false when it lies outside. */
static bool below_root(const char *path, const char *root, char *out)
{
	size_t n = strcmp(root, "/") ? strlen(root) : 0;

	if (strncmp(path, root, n) || (path[n] && path[n] != '/'))
		return false;
	snprintf(out, PATH_MAX, "%s", path + n);
	if (!strcmp(out, "/"))
		*out = 0;
	return true;
}

static bool find_mount(int version, const char *path, struct hierarchy *h)
{
	FILE *f = fopen("/proc/self/mountinfo", "re");
	char *line = NULL, *root = malloc(PATH_MAX);
	bool found = false;
	size_t size = 0;

	while (f && root && !found && getline(&line, &size, f) > 0) {
		char *tail = strstr(line, " - "), type[32], options[256];

		if (!tail || sscanf(tail, " - %31s %*s %255s", type, options) != 2 ||
		    sscanf(line, "%*d %*d %*s %4095s %4095s", root, h->mount) != 2)
			continue;
		if (version == 2 ? !strcmp(type, "cgroup2")
				 : !strcmp(type, "cgroup") && list_has(options, "memory"))
			found = below_root(path, root, h->path);
	}
	free(root);
	free(line);
	if (f)
		fclose(f);
	return found;
}

static int read_level(const struct hierarchy *h, const char *name, uint64_t *out)
{
	char text[32] = "", *file;
	int r = 0;
	FILE *f;

	if (asprintf(&file, "%s%s/%s", h->mount, h->path, name) < 0)
		return -ENOMEM;
	f = fopen(file, "re");
	free(file);
	if (!f)
		return -errno;
	if (!fgets(text, sizeof(text), f))
		r = -EIO;
	else if (!strncmp(text, "max", 3))
		*out = UINT64_MAX;
	else if (sscanf(text, "%" SCNu64, out) != 1)
		r = -EIO;
	fclose(f);
	return r;
}

static void take_level(const struct hierarchy *h, struct procinfo_memcg *m)
{
	uint64_t limit, usage, swap, room, least = UINT64_MAX;
	bool v1 = m->version == 1;

	if (!v1 && !read_level(h, "memory.swap.max", &swap) && !swap)
		m->swap_forbidden = true;
	if (read_level(h, v1 ? "memory.limit_in_bytes" : "memory.max", &limit) ||
	    read_level(h, v1 ? "memory.usage_in_bytes" : "memory.current", &usage))
		return;
	if (v1 && limit >= V1_UNLIMITED)
		limit = UINT64_MAX;
	room = limit == UINT64_MAX ? UINT64_MAX : limit > usage ? limit - usage : 0;
	if (m->limit_bytes != UINT64_MAX)
		least = m->limit_bytes > m->usage_bytes ? m->limit_bytes - m->usage_bytes : 0;
	/* Without any limit the answer is the innermost level's usage. */
	if (room < least || (m->limit_bytes == UINT64_MAX && !m->usage_bytes)) {
		m->limit_bytes = limit;
		m->usage_bytes = usage;
	}
}

int procinfo_memory_pressure(pid_t pid, uint64_t *some_us)
{
	struct hierarchy *h = calloc(1, sizeof(*h));
	char *path = calloc(1, PATH_MAX), *file = NULL, line[256] = "";
	FILE *f = NULL;
	int version = 0, r = h && path ? find_path(pid, path, &version) : -ENOMEM;

	if (!r && (version != 2 || !find_mount(version, path, h)))
		r = -ENOENT; /* version 1 knows none by cgroup */
	if (!r && asprintf(&file, "%s%s/memory.pressure", h->mount, h->path) < 0)
		r = -ENOMEM;
	if (!r) {
		f = fopen(file, "re");
		r = f ? 0 : -errno;
	}
	/* some avg10=0.00 avg60=0.00 avg300=0.00 total=0 */
	if (!r && (!fgets(line, sizeof(line), f) ||
		   sscanf(line, "some %*s %*s %*s total=%" SCNu64, some_us) != 1))
		r = -EIO;
	if (f)
		fclose(f);
	free(file);
	free(path);
	free(h);
	return r;
}

int procinfo_memcg(pid_t pid, struct procinfo_memcg *out)
{
	struct procinfo_memcg m = {.limit_bytes = UINT64_MAX};
	struct hierarchy *h = calloc(1, sizeof(*h));
	char *path = calloc(1, PATH_MAX), *slash;
	int r = h && path ? find_path(pid, path, &m.version) : -ENOMEM;

	if (r)
		goto out;
	if (m.version && !find_mount(m.version, path, h))
		m.version = 0;
	while (m.version) {
		take_level(h, &m);
		slash = strrchr(h->path, '/');
		if (!slash)
			break;
		*slash = 0;
	}
	*out = m;
out:
	free(path);
	free(h);
	return r;
}
