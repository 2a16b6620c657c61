/* SPDX-License-Identifier: BSD-3-Clause */
/* place.c: on which CPU a handler runs, beside the thread that it serves. */
#include "place.h"

#include <dirent.h>
#include <sched.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "zram.h"

const char *place_name(enum place p)
{
	static const char *const names[PLACES] = {"same", "other", "any"};

	return names[p];
}

/* The CPUs that this process was given: before anything is bound. */
static const cpu_set_t *given(void)
{
	static cpu_set_t set;
	static bool known;

	if (!known)
		known = sched_getaffinity(getpid(), sizeof(set), &set) == 0;
	return &set;
}

/* The nth of the given CPUs, or all of them when there is none. */
static void one_cpu(int nth, cpu_set_t *out)
{
	CPU_ZERO(out);
	for (int i = 0; i < CPU_SETSIZE; i++)
		if (CPU_ISSET(i, given()) && nth-- == 0) {
			CPU_SET(i, out);
			return;
		}
	*out = *given();
}

enum place place_first(void)
{
	return CPU_COUNT(given()) > 1 ? PLACE_SAME : PLACE_ANY;
}

void place_guest(enum place p)
{
	cpu_set_t set;

	one_cpu(p == PLACE_ANY ? CPU_SETSIZE : 0, &set);
	sched_setaffinity(0, sizeof(set), &set);
}

void place_handler(enum place p, pid_t pid, const char *thread)
{
	char path[64], name[64];
	struct dirent *ent;
	cpu_set_t set;
	DIR *dir;

	one_cpu(p == PLACE_ANY ? CPU_SETSIZE : p == PLACE_OTHER, &set);
	snprintf(path, sizeof(path), "/proc/%d/task", (int)pid);
	dir = opendir(path);
	while (dir && (ent = readdir(dir))) {
		if (ent->d_name[0] == '.')
			continue;
		snprintf(path, sizeof(path), "/proc/%d/task/%.16s/comm", (int)pid, ent->d_name);
		if (thread && (file_get(path, name, sizeof(name)) || strcmp(name, thread) != 0))
			continue;
		sched_setaffinity((pid_t)atoi(ent->d_name), sizeof(set), &set);
	}
	if (dir)
		closedir(dir);
}
