/* SPDX-License-Identifier: BSD-3-Clause */
/* region_check.c: do the regions of one message make sense by themselves and together. */
#include "attach/region_check.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

#define PAGE_4K	      UINT64_C(4096)
#define PAGE_2M	      (UINT64_C(2) << 20)
#define PAGE_1G	      (UINT64_C(1) << 30)
#define ADDRESS_SPACE (UINT64_C(1) << 63) /* nothing a process can map reaches that far */

static int check_aligned(const struct attach_region *r, const char *what, uint64_t value,
			 struct error *e)
{
	if (!(value % r->page_size))
		return 0;
	return error_set(e, EINVAL, ERROR_ARGUMENT,
			 "region %s: %s %" PRIu64 " is not a multiple of page_size %" PRIu32, r->id,
			 what, value, r->page_size);
}

int region_check_one(const struct attach_region *r, struct error *e)
{
	int err;

	if (r->page_size == PAGE_1G)
		return error_set(e, EOPNOTSUPP, ERROR_UNSUPPORTED,
				 "region %s: pages of 1 GiB are not supported", r->id);
	if (r->page_size != PAGE_4K && r->page_size != PAGE_2M)
		return error_set(e, EINVAL, ERROR_ARGUMENT,
				 "region %s: page_size %" PRIu32 " is neither 4096 nor 2097152",
				 r->id, r->page_size);
	if (!r->size)
		return error_set(e, EINVAL, ERROR_ARGUMENT, "region %s: size is 0", r->id);
	err = check_aligned(r, "host_addr", r->host_addr, e);
	if (!err)
		err = check_aligned(r, "size", r->size, e);
	if (!err)
		err = check_aligned(r, "memfd_offset", r->memfd_offset, e);
	if (err)
		return err;
	if (r->size > ADDRESS_SPACE - r->host_addr)
		return error_set(e, EINVAL, ERROR_ARGUMENT,
				 "region %s: host_addr + size wraps around", r->id);
	if (r->size > ADDRESS_SPACE - r->memfd_offset)
		return error_set(e, EINVAL, ERROR_ARGUMENT,
				 "region %s: memfd_offset + size wraps around", r->id);
	if (r->guest_addr != UINT64_MAX && r->size > ADDRESS_SPACE - r->guest_addr)
		return error_set(e, EINVAL, ERROR_ARGUMENT,
				 "region %s: guest_addr + size wraps around", r->id);
	return 0;
}

static bool overlap(uint64_t a, uint64_t a_bytes, uint64_t b, uint64_t b_bytes)
{
	return a < b + b_bytes && b < a + a_bytes;
}

int region_check_overlap(const struct attach_region *r, unsigned int n, struct error *e)
{
	for (unsigned int i = 0; i < n; i++) {
		for (unsigned int j = i + 1; j < n; j++) {
			if (!strcmp(r[i].id, r[j].id))
				return error_set(e, EEXIST, ERROR_ARGUMENT,
						 "two regions have the id %s", r[i].id);
			if (overlap(r[i].host_addr, r[i].size, r[j].host_addr, r[j].size))
				return error_set(e, EINVAL, ERROR_ARGUMENT,
						 "regions %s and %s overlap in the process",
						 r[i].id, r[j].id);
		}
	}
	return 0;
}

int region_check_files(const struct attach_region *r, const struct memfd_info *memory,
		       unsigned int n, struct error *e)
{
	for (unsigned int i = 0; i < n; i++) {
		const struct memfd_info *m = &memory[i];

		if (r[i].page_size != m->page_bytes)
			return error_set(e, EINVAL, ERROR_ARGUMENT,
					 "region %s: page_size is %" PRIu32
					 ", but its file has pages of %" PRIu32,
					 r[i].id, r[i].page_size, m->page_bytes);
		if (r[i].memfd_offset + r[i].size > m->size)
			return error_set(e, EINVAL, ERROR_ARGUMENT,
					 "region %s: ends at %" PRIu64
					 " of its file, which has %" PRIu64 " bytes",
					 r[i].id, r[i].memfd_offset + r[i].size, m->size);
		for (unsigned int j = 0; j < i; j++)
			if (m->dev == memory[j].dev && m->ino == memory[j].ino &&
			    overlap(r[i].memfd_offset, r[i].size, r[j].memfd_offset, r[j].size))
				return error_set(e, EINVAL, ERROR_ARGUMENT,
						 "regions %s and %s overlap in their file", r[j].id,
						 r[i].id);
	}
	return 0;
}
