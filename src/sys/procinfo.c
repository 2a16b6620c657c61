/* SPDX-License-Identifier: BSD-3-Clause */
/* procinfo.c: what /proc, /sys and the cgroups say about a process and the host. */
#include "sys/procinfo.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/fd.h"

/*
 * Theory of operation. Each function opens a text file of the kernel's, reads what it needs and
 * closes it: no state, any thread. A file that cannot be opened or lacks a line it always has is
 * an error; what only newer kernels print is optional. Lines are read with getline(), because some
 * (smaps with long file names, mountinfo) have no bound worth betting on.
 */

static void file_close(FILE **f)
{
	if (*f)
		fclose(*f);
}

static void text_free(char **text)
{
	free(*text);
}

#define FILE_OWNED __attribute__((cleanup(file_close))) FILE *
#define TEXT_OWNED __attribute__((cleanup(text_free))) char *

static FILE *open_pid(pid_t pid, const char *name)
{
	char path[64];

	snprintf(path, sizeof(path), "/proc/%d/%s", pid, name);
	return fopen(path, "re");
}

/* A file that holds one number, or "max", which reads as UINT64_MAX. */
static int read_number(const char *path, uint64_t *out)
{
	FILE_OWNED f = fopen(path, "re");
	char text[32] = "";

	if (!f)
		return -errno;
	if (!fgets(text, sizeof(text), f))
		return -EIO;
	if (!strncmp(text, "max", 3))
		*out = UINT64_MAX;
	else if (sscanf(text, "%" SCNu64, out) != 1)
		return -EIO;
	return 0;
}

/* True when the line is "NAME:  N kB"; *bytes then holds it. */
static bool line_kb(const char *line, const char *name, uint64_t *bytes)
{
	size_t n = strlen(name);
	uint64_t kb;

	if (strncmp(line, name, n) || line[n] != ':' || sscanf(line + n + 1, "%" SCNu64, &kb) != 1)
		return false;
	*bytes = kb << 10;
	return true;
}

int procinfo_start(pid_t pid, uint64_t *ticks)
{
	FILE_OWNED f = open_pid(pid, "stat");
	TEXT_OWNED line = NULL;
	size_t size = 0;
	const char *p;

	if (!f)
		return -errno;
	if (getline(&line, &size, f) <= 0)
		return -ESRCH;
	/* Field 22, counted from behind the name, which may hold anything. */
	p = strrchr(line, ')');
	for (int field = 2; p && field < 22; field++)
		p = strchr(p + 1, ' ');
	return p && sscanf(p, "%" SCNu64, ticks) == 1 ? 0 : -EIO;
}

int procinfo_pins(pid_t pid, uint64_t *pinned_bytes, uint64_t *locked_bytes)
{
	FILE_OWNED f = open_pid(pid, "status");
	TEXT_OWNED line = NULL;
	uint64_t pinned = 0, locked = 0;
	size_t size = 0;
	int found = 0;

	if (!f)
		return -errno;
	while (getline(&line, &size, f) > 0)
		found += line_kb(line, "VmPin", &pinned) || line_kb(line, "VmLck", &locked);
	/* A zombie and a kernel thread have no memory, and no such lines. */
	if (found != 2)
		return -ESRCH;
	*pinned_bytes = pinned;
	*locked_bytes = locked;
	return 0;
}

/* ---- mappings ---- */

static bool has_flag(const char *flags, const char *two)
{
	for (const char *p = flags; (p = strstr(p, two)); p += 2)
		if (p[-1] == ' ' && (p[2] == ' ' || p[2] == '\n' || !p[2]))
			return true;
	return false;
}

static void range_line(struct procinfo_range *r, const char *line)
{
	uint64_t bytes;

	if (line_kb(line, "KernelPageSize", &bytes)) {
		if (!r->min_page_bytes || bytes < r->min_page_bytes)
			r->min_page_bytes = bytes;
		if (bytes > r->max_page_bytes)
			r->max_page_bytes = bytes;
	} else if (line_kb(line, "ShmemPmdMapped", &bytes)) {
		r->pmd_mapped_bytes += bytes;
	} else if (!strncmp(line, "THPeligible:", 12)) {
		r->thp_eligible |= atoi(line + 12) != 0;
	} else if (!strncmp(line, "VmFlags:", 8)) {
		r->thp_advised |= has_flag(line + 8, "hg");
		r->thp_refused &= has_flag(line + 8, "nh");
		r->dont_fork &= has_flag(line + 8, "dc");
		r->locked |= has_flag(line + 8, "lo");
		r->uffd |= has_flag(line + 8, "um") || has_flag(line + 8, "uw") ||
			   has_flag(line + 8, "ui");
	}
}

int procinfo_range(pid_t pid, uint64_t start, uint64_t end, struct procinfo_range *out)
{
	struct procinfo_range r = {.thp_refused = true, .dont_fork = true};
	FILE_OWNED f = open_pid(pid, "smaps");
	TEXT_OWNED line = NULL;
	bool inside = false;
	size_t size = 0;

	if (!f)
		return -errno;
	while (getline(&line, &size, f) > 0) {
		uint64_t from, to;

		/* A mapping's first line is the only one that begins with two addresses. */
		if (sscanf(line, "%" SCNx64 "-%" SCNx64 " ", &from, &to) == 2) {
			if (from >= end)
				break;
			inside = to > start;
			if (inside) {
				r.mappings++;
				r.mapped_bytes +=
					(to < end ? to : end) - (from > start ? from : start);
			}
		} else if (inside) {
			range_line(&r, line);
		}
	}
	if (!r.mappings)
		return -EFAULT;
	*out = r;
	return 0;
}

int procinfo_max_map_count(uint64_t *out)
{
	return read_number("/proc/sys/vm/max_map_count", out);
}

int procinfo_map_count(pid_t pid, uint64_t *out)
{
	FILE_OWNED f = open_pid(pid, "maps");
	char buf[4096];
	uint64_t lines = 0;
	size_t n;

	if (!f)
		return -errno;
	while ((n = fread(buf, 1, sizeof(buf), f)) > 0)
		for (size_t i = 0; i < n; i++)
			lines += buf[i] == '\n';
	if (ferror(f))
		return -EIO;
	*out = lines;
	return 0;
}

/* ---- host ---- */

int procinfo_swap(uint64_t *total_bytes)
{
	FILE_OWNED f = fopen("/proc/swaps", "re");
	TEXT_OWNED line = NULL;
	uint64_t total = 0, kb;
	size_t size = 0;

	/* A kernel without swap has no such file. */
	if (!f && errno != ENOENT)
		return -errno;
	while (f && getline(&line, &size, f) > 0)
		if (sscanf(line, "%*s %*s %" SCNu64, &kb) == 1)
			total += kb << 10;
	*total_bytes = total;
	return 0;
}

int procinfo_host(struct procinfo_host *out)
{
	FILE_OWNED f = fopen("/proc/meminfo", "re");
	TEXT_OWNED line = NULL;
	struct procinfo_host host = {0};
	size_t size = 0;
	int found = 0;

	if (!f)
		return -errno;
	while (found < 2 && getline(&line, &size, f) > 0)
		found += line_kb(line, "MemTotal", &host.total_bytes) ||
			 line_kb(line, "MemAvailable", &host.available_bytes);
	if (found != 2)
		return -EIO;
	*out = host;
	return 0;
}

int procinfo_pool(uint64_t page_bytes, struct procinfo_pool *out)
{
	struct procinfo_pool pool;
	const struct {
		const char *name;
		uint64_t *value;
	} files[] = {
		{"nr_hugepages", &pool.total_pages},
		{"free_hugepages", &pool.free_pages},
		{"resv_hugepages", &pool.reserved_pages},
		{"surplus_hugepages", &pool.surplus_pages},
	};

	for (size_t i = 0; i < sizeof(files) / sizeof(*files); i++) {
		char path[128];
		int r;

		snprintf(path, sizeof(path), "/sys/kernel/mm/hugepages/hugepages-%" PRIu64 "kB/%s",
			 page_bytes >> 10, files[i].name);
		r = read_number(path, files[i].value);
		if (r)
			return r;
	}
	*out = pool;
	return 0;
}

int procinfo_thread_cpu(pid_t pid, pid_t thread)
{
	char path[64], text[1024], *at;
	FD_OWNED fd = -1;
	ssize_t n;

	snprintf(path, sizeof(path), "/proc/%d/task/%d/stat", pid, thread);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return -errno;
	n = read(fd, text, sizeof(text) - 1);
	if (n < 0)
		return -errno;
	text[n] = 0;
	/* The name may hold anything; behind it are numbers: the state is the third field of the
	 * line, the CPU the 39th. */
	at = strrchr(text, ')');
	for (int field = 3; at && field <= 39; field++)
		at = strchr(at + 1, ' ');
	return at ? atoi(at + 1) : -EIO;
}
