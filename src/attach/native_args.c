/* SPDX-License-Identifier: BSD-3-Clause */
/* native_args.c: the arguments of the native dialect's commands. */
#include "attach/native_request.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "attach/member.h"
#include "attach/region_check.h"

#define KEPT_MAX 64 /* as many as the daemon asks a client to keep */

int native_parse_nothing(struct native_request *req, json_t *args, struct error *e)
{
	static const char *const known[] = {NULL};

	(void)req;
	return args ? member_known(args, "arguments", known, e) : 0;
}

/* arguments must be there and hold nothing else. */
static int args_known(json_t *args, const char *const *known, struct error *e)
{
	if (!args)
		return error_set(e, EINVAL, ERROR_ARGUMENT, "arguments is missing");
	return member_known(args, "arguments", known, e);
}

static int parse_vm(struct native_request *req, json_t *args, struct error *e)
{
	static const char *const known[] = {"name", "uuid", "pid", NULL};
	const char *where = "arguments.vm";
	uint64_t pid; /* a label; the kernel says who the client is */
	json_t *vm;
	int r = member_object(args, "arguments", "vm", &vm, e);

	if (!r)
		r = member_known(vm, where, known, e);
	if (!r)
		r = member_name(vm, where, "name", req->vm_name, sizeof(req->vm_name), e);
	if (!r)
		r = member_name_absent(vm, where, "uuid", req->uuid, sizeof(req->uuid), e);
	if (!r)
		r = member_u64_absent(vm, where, "pid", &pid, e);
	return r;
}

static int parse_region(json_t *v, const char *where, struct attach_region *out, struct error *e)
{
	static const char *const known[] = {"id",    "host_addr",    "size",	   "page_size",
					    "memfd", "memfd_offset", "guest_addr", NULL};
	struct attach_region region = {.guest_addr = UINT64_MAX};
	uint64_t page_size, memfd;
	int r = member_known(v, where, known, e);

	if (!r)
		r = member_name(v, where, "id", region.id, sizeof(region.id), e);
	if (!r)
		r = member_u64(v, where, "host_addr", &region.host_addr, e);
	if (!r)
		r = member_u64(v, where, "size", &region.size, e);
	if (!r)
		r = member_u64(v, where, "page_size", &page_size, e);
	if (!r)
		r = member_u64(v, where, "memfd", &memfd, e);
	if (!r)
		r = member_u64(v, where, "memfd_offset", &region.memfd_offset, e);
	if (!r)
		r = member_u64_absent(v, where, "guest_addr", &region.guest_addr, e);
	if (r)
		return r;
	/* Too large for their types is as wrong as any other wrong value. */
	region.page_size = page_size > UINT32_MAX ? UINT32_MAX : (uint32_t)page_size;
	region.memfd = memfd > INT32_MAX ? INT32_MAX : (int)memfd;
	r = region_check_one(&region, e);
	if (!r)
		*out = region;
	return r;
}

/* What is kept names descriptors of its own: neither the userfaultfd nor one named before. */
static int check_kept_indices(const struct native_request *req, bool *named, struct error *e)
{
	for (unsigned int i = 0; i < req->n_kept; i++) {
		const struct attach_kept *kept = &req->kept[i];

		if (kept->fd < 1 || kept->fd >= req->n_fds)
			return error_set(e, EINVAL, ERROR_ARGUMENT,
					 "kept %s: fd is %d, which is %s", kept->name, kept->fd,
					 kept->fd < 1 ? "the userfaultfd"
						      : "not among the message's descriptors");
		if (named[kept->fd])
			return error_set(e, EINVAL, ERROR_ARGUMENT,
					 "kept %s: descriptor %d is named twice", kept->name,
					 kept->fd);
		named[kept->fd] = true;
	}
	return 0;
}

/* Every descriptor in [first, n_fds) is named, and every region names a memfd. */
static int check_indices(const struct native_request *req, int first, struct error *e)
{
	bool named[INTAKE_FDS_MAX] = {false};

	for (unsigned int i = 0; i < req->n_regions; i++) {
		const struct attach_region *region = &req->regions[i];

		if (region->memfd < first)
			return error_set(e, EINVAL, ERROR_ARGUMENT,
					 "region %s: memfd is %d, which is the userfaultfd",
					 region->id, region->memfd);
		if (region->memfd >= req->n_fds)
			return error_set(e, EINVAL, ERROR_ARGUMENT,
					 "region %s: memfd is %d, but the message carries %d "
					 "descriptors",
					 region->id, region->memfd, req->n_fds);
		named[region->memfd] = true;
	}
	if (check_kept_indices(req, named, e))
		return -EINVAL;
	for (int i = first; i < req->n_fds; i++)
		if (!named[i])
			return error_set(e, EINVAL, ERROR_ARGUMENT,
					 "descriptor %d is named by no region", i);
	return 0;
}

static int parse_regions(struct native_request *req, json_t *args, struct error *e)
{
	json_t *regions, *v;
	size_t i;
	int r = member_array(args, "arguments", "regions", &regions, e);

	if (r)
		return r;
	if (!json_array_size(regions))
		return error_set(e, EINVAL, ERROR_ARGUMENT, "arguments.regions is empty");
	if (json_array_size(regions) > VM_REGIONS_MAX)
		return error_set(e, E2BIG, ERROR_LIMIT,
				 "arguments.regions has %zu entries; a VM may have %d",
				 json_array_size(regions), VM_REGIONS_MAX);
	req->regions = calloc(json_array_size(regions), sizeof(*req->regions));
	if (!req->regions)
		return error_set(e, ENOMEM, ERROR_GENERIC, "out of memory");
	json_array_foreach(regions, i, v) {
		char where[40];

		snprintf(where, sizeof(where), "arguments.regions[%zu]", i);
		r = parse_region(v, where, &req->regions[i], e);
		if (r)
			return r;
		req->n_regions++;
	}
	r = region_check_overlap(req->regions, req->n_regions, e);
	return r ? r : check_indices(req, 1, e);
}

/* What a daemon that died had given the client to keep. */
static int parse_kept(struct native_request *req, json_t *args, struct error *e)
{
	static const char *const known[] = {"name", "fd", NULL};
	json_t *list, *v;
	size_t i;
	int r;

	if (!json_object_get(args, "kept"))
		return 0;
	if (!req->keep && !req->secondary)
		return error_set(e, EINVAL, ERROR_ARGUMENT,
				 "arguments.kept is only for a client that asks to keep, or is "
				 "secondary");
	r = member_array(args, "arguments", "kept", &list, e);
	if (r)
		return r;
	if (json_array_size(list) > KEPT_MAX)
		return error_set(e, E2BIG, ERROR_LIMIT,
				 "arguments.kept has %zu entries; a client keeps at most %d",
				 json_array_size(list), KEPT_MAX);
	req->resume = true;
	req->kept = calloc(json_array_size(list) + 1, sizeof(*req->kept));
	if (!req->kept)
		return error_set(e, ENOMEM, ERROR_GENERIC, "out of memory");
	json_array_foreach(list, i, v) {
		struct attach_kept *kept = &req->kept[i];
		char where[40];
		uint64_t fd;

		snprintf(where, sizeof(where), "arguments.kept[%zu]", i);
		r = member_known(v, where, known, e);
		if (!r)
			r = member_name(v, where, "name", kept->name, sizeof(kept->name), e);
		if (!r)
			r = member_u64(v, where, "fd", &fd, e);
		if (r)
			return r;
		kept->fd = fd > INT32_MAX ? INT32_MAX : (int)fd;
		for (size_t k = 0; k < i; k++)
			if (!strcmp(req->kept[k].name, kept->name))
				return error_set(e, EINVAL, ERROR_ARGUMENT,
						 "arguments.kept has %s twice", kept->name);
		req->n_kept++;
	}
	return 0;
}

/* Which of our requests the client serves. */
static int parse_requests(struct native_request *req, json_t *args, struct error *e)
{
	json_t *list, *v;
	size_t i;
	int r;

	if (!json_object_get(args, "requests"))
		return 0;
	r = member_array(args, "arguments", "requests", &list, e);
	if (r)
		return r;
	json_array_foreach(list, i, v) {
		char quoted[48];

		if (!json_is_string(v))
			return error_set(e, EINVAL, ERROR_ARGUMENT,
					 "arguments.requests[%zu] is not a string", i);
		if (strcmp(json_string_value(v), "zap"))
			return error_set(
				e, EINVAL, ERROR_ARGUMENT,
				"arguments.requests: this daemon has no request \"%s\"",
				member_quote(json_string_value(v), quoted, sizeof(quoted)));
		req->serves_zap = true;
	}
	return 0;
}

int native_parse_attach(struct native_request *req, json_t *args, struct error *e)
{
	static const char *const known[] = {"version", "vm",	   "regions", "secondary",
					    "keep",    "requests", "kept",    NULL};
	const char *where = "arguments";
	uint64_t version;
	int r = args_known(args, known, e);

	if (!r)
		r = member_u64(args, where, "version", &version, e);
	if (!r && version != NATIVE_VERSION)
		return error_set(e, EPROTO, ERROR_UNSUPPORTED,
				 "arguments.version is %" PRIu64 "; this daemon speaks version %d",
				 version, NATIVE_VERSION);
	if (!r)
		r = parse_vm(req, args, e);
	if (!r)
		r = member_bool_absent(args, where, "secondary", &req->secondary, e);
	if (!r)
		r = member_bool_absent(args, where, "keep", &req->keep, e);
	if (!r)
		r = parse_requests(req, args, e);
	if (!r)
		r = parse_kept(req, args, e);
	if (!r)
		r = parse_regions(req, args, e);
	return r;
}

int native_parse_region(struct native_request *req, json_t *args, struct error *e)
{
	int r;

	if (!args)
		return error_set(e, EINVAL, ERROR_ARGUMENT, "arguments is missing");
	req->regions = calloc(1, sizeof(*req->regions));
	if (!req->regions)
		return error_set(e, ENOMEM, ERROR_GENERIC, "out of memory");
	r = parse_region(args, "arguments", req->regions, e);
	if (r)
		return r;
	req->n_regions = 1;
	return check_indices(req, 0, e);
}

int native_parse_remove(struct native_request *req, json_t *args, struct error *e)
{
	static const char *const known[] = {"id", "discard", NULL};
	int r = args_known(args, known, e);

	if (!r)
		r = member_name(args, "arguments", "id", req->id, sizeof(req->id), e);
	if (!r)
		r = member_bool_absent(args, "arguments", "discard", &req->discard, e);
	return r;
}

int native_parse_share(struct native_request *req, json_t *args, struct error *e)
{
	static const char *const known[] = {"id", "pid", NULL};
	int r = args_known(args, known, e);

	if (!r)
		r = member_name(args, "arguments", "id", req->id, sizeof(req->id), e);
	/* The process is kept where other commands have their offset. */
	if (!r && json_object_get(args, "pid"))
		r = member_u64(args, "arguments", "pid", &req->offset, e);
	if (!r && req->offset > INT32_MAX)
		return error_set(e, EINVAL, ERROR_ARGUMENT, "arguments.pid is no process");
	return r;
}

/* The members of a range, when no unknown one was found. */
static int parse_range(struct native_request *req, json_t *args, int r, struct error *e)
{
	if (!r)
		r = member_name(args, "arguments", "id", req->id, sizeof(req->id), e);
	if (!r)
		r = member_u64(args, "arguments", "offset", &req->offset, e);
	if (!r)
		r = member_u64(args, "arguments", "size", &req->size, e);
	if (!r && !req->size)
		return error_set(e, EINVAL, ERROR_ARGUMENT, "arguments.size is 0");
	if (!r && req->size > MEMBER_U64_MAX - req->offset)
		return error_set(e, EINVAL, ERROR_ARGUMENT,
				 "arguments.offset + arguments.size wraps around");
	return r;
}

int native_parse_range(struct native_request *req, json_t *args, struct error *e)
{
	static const char *const known[] = {"id", "offset", "size", NULL};

	return parse_range(req, args, args_known(args, known, e), e);
}

int native_parse_discard(struct native_request *req, json_t *args, struct error *e)
{
	static const char *const known[] = {"id", "offset", "size", "deadline", NULL};
	int r = parse_range(req, args, args_known(args, known, e), e);

	if (!r && json_object_get(args, "deadline"))
		r = member_u64(args, "arguments", "deadline", &req->deadline_ns, e);
	return r;
}
