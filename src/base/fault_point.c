/* SPDX-License-Identifier: BSD-3-Clause */
/* fault_point.c: places at which a test can have the daemon killed. */
#include "base/fault_point.h"

#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const char *const names[FAULT_POINTS] = {
#define FAULT_POINT_NAME(name, where) [FAULT_POINT_##name] = #name,
#undef FAULT_POINT
#define FAULT_POINT FAULT_POINT_NAME
#include "fault_points.def"
};

/* Process-wide, like the signal: what is armed, and how many passes are left. */
static int armed = -1, deadly = SIGKILL;
static _Atomic long left;

static void __attribute__((constructor)) arm(void)
{
	const char *text = getenv("EBB_FAULT_POINT"), *colon, *second;
	size_t len;

	if (!text)
		return;
	colon = strchr(text, ':');
	len = colon ? (size_t)(colon - text) : strlen(text);
	for (int i = 0; i < FAULT_POINTS; i++)
		if (strlen(names[i]) == len && strncmp(names[i], text, len) == 0)
			armed = i;
	atomic_store(&left, colon ? strtol(colon + 1, NULL, 10) : 1);
	second = colon ? strchr(colon + 1, ':') : NULL;
	if (second)
		deadly = (int)strtol(second + 1, NULL, 10);
	if (armed < 0)
		fprintf(stderr, "EBB_FAULT_POINT: there is no point %s\n", text);
}

void ebb_fault_point_pass(enum fault_point p)
{
	if (__builtin_expect((int)p != armed, 1) || atomic_fetch_sub(&left, 1) != 1)
		return;
	/* In this thread: one that is not SIGKILL is to be noted as what it was doing. */
	raise(deadly);
	pause();
}
