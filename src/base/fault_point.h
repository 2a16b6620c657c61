/* SPDX-License-Identifier: BSD-3-Clause */
/* fault_point.h: places at which a test can have the daemon killed. */
#ifndef BASE_FAULT_POINT_H
#define BASE_FAULT_POINT_H

/*
 * A build with -DEBB_FAULT_POINTS=ON (the presets for development and tests) dies by SIGKILL at a
 * point that the environment names:
 *
 *	EBB_FAULT_POINT=evict_stored:3		at the third pass
 *	EBB_FAULT_POINT=object_live:3:6		by another signal: SIGABRT
 *
 * Any other build has nothing of it. Points are declared in fault_points.def.
 *
 * This header needs nothing else of the module and nothing of its library: a plugin, which links
 * nothing of the daemon, includes it too and finds the function in the daemon that loads it, or,
 * elsewhere, does without.
 */
#ifdef EBB_FAULT_POINTS

enum fault_point {
#define FAULT_POINT(name, where) FAULT_POINT_##name,
#include "fault_points.def"
#undef FAULT_POINT
	FAULT_POINTS
};

#ifdef EBB_PLUGIN
__attribute__((weak))
#endif
void ebb_fault_point_pass(enum fault_point p);

#ifdef EBB_PLUGIN
#define FAULT_POINT(name)                                         \
	do {                                                      \
		if (ebb_fault_point_pass)                         \
			ebb_fault_point_pass(FAULT_POINT_##name); \
	} while (0)
#else
#define FAULT_POINT(name) ebb_fault_point_pass(FAULT_POINT_##name)
#endif

#else
#define FAULT_POINT(name) ((void)0)
#endif

#endif
