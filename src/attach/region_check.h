/* SPDX-License-Identifier: BSD-3-Clause */
/* region_check.h: do the regions of one message make sense by themselves and together. */
#ifndef ATTACH_REGION_CHECK_H
#define ATTACH_REGION_CHECK_H

#include "engine/engine.h"
#include "sys/memfd.h"

/* Sizes, alignment, wrap-around. memfd is not looked at. */
int region_check_one(const struct attach_region *r, struct error *e);
/* No two have the same id or overlap in the client's addresses. */
int region_check_overlap(const struct attach_region *r, unsigned int n, struct error *e);
/*
 * Against the files: page size, end of file, no byte of a file in two regions. memory[i] describes
 * the file of r[i].
 */
int region_check_files(const struct attach_region *r, const struct memfd_info *memory,
		       unsigned int n, struct error *e);

#endif
