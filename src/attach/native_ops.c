/* SPDX-License-Identifier: BSD-3-Clause */
/* native_ops.c: the native dialect's commands, as a worker carries them out. */
#include "attach/native_request.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>

#include "attach/attach_internal.h"
#include "attach/fd_check.h"
#include "attach/region_check.h"
#include "attach/requests.h"
#include "base/fd.h"

void native_request_free(struct native_request *req)
{
	if (!req)
		return;
	fd_close(&req->lent_fd);
	free(req->regions);
	free(req->kept);
	free(req);
}

void native_request_close_fds(struct native_request *req)
{
	for (int i = 0; i < req->n_fds; i++)
		fd_close(&req->fds[i]);
	req->n_fds = 0;
}

/* Looks at the files behind the regions and puts descriptors in place of indices. */
static int resolve_regions(struct native_request *req, struct error *e)
{
	struct memfd_info *memory = calloc(req->n_regions, sizeof(*memory));
	int r = 0;

	if (!memory)
		return error_set(e, ENOMEM, ERROR_GENERIC, "out of memory");
	for (unsigned int i = 0; i < req->n_regions && !r; i++) {
		int index = req->regions[i].memfd;

		r = fd_check_memory(req->fds[index], index, &memory[i], e);
		req->regions[i].memfd = req->fds[index];
	}
	if (!r)
		r = region_check_files(req->regions, memory, req->n_regions, e);
	free(memory);
	return r;
}

/* The same for what the client kept; whose files they are is for the engine to find out. */
static int resolve_kept(struct native_request *req, struct error *e)
{
	int r = 0;

	for (unsigned int i = 0; i < req->n_kept && !r; i++) {
		int index = req->kept[i].fd;

		r = fd_check_kept(req->fds[index], index, e);
		req->kept[i].fd = req->fds[index];
	}
	return r;
}

static int run_attach(struct native_request *req, struct error *e)
{
	const struct peer *peer = &req->conn->peer;
	struct attach_request attach = {
		.pid = peer->pid,
		.uid = peer->uid,
		.secondary = req->secondary,
		.regions = req->regions,
		.n_regions = req->n_regions,
		.resume = req->resume,
		.kept = req->kept,
		.n_kept = req->n_kept,
		.ops = requests_ops(req->serves_zap, req->keep),
		.client = req->requests,
	};
	int r = fd_check_uffd(req->fds[0], 0, e);

	if (!r)
		r = resolve_regions(req, e);
	if (!r)
		r = resolve_kept(req, e);
	if (r)
		return r;
	if (peer_gone(peer))
		return error_set(e, ESRCH, ERROR_NOT_FOUND, "process %d, which connected, is gone",
				 (int)peer->pid);
	attach.pidfd = fcntl(peer->pidfd, F_DUPFD_CLOEXEC, 0);
	if (attach.pidfd < 0)
		return error_set(e, errno, ERROR_GENERIC, "pidfd: %s", error_text(errno));
	attach.uffd = fd_take(&req->fds[0]);
	memcpy(attach.vm_name, req->vm_name, sizeof(attach.vm_name));
	memcpy(attach.uuid, req->uuid, sizeof(attach.uuid));
	r = engine_attach(req->conn->at->eng, &attach, &req->attachment, e);
	if (!r && req->conn->at->config.attached)
		req->conn->at->config.attached(req->conn->at->config.attached_ctx);
	return r;
}

static int run_region_add(struct native_request *req, struct error *e)
{
	int r = resolve_regions(req, e);

	return r ? r : engine_region_add(req->attachment, req->regions, e);
}

static int run_region_remove(struct native_request *req, struct error *e)
{
	return engine_region_remove(req->attachment, req->id, req->discard, &req->progress, e);
}

static int run_discard(struct native_request *req, struct error *e)
{
	return engine_discard(req->attachment, req->id, req->offset, req->size, req->deadline_ns,
			      e);
}

static int run_pin(struct native_request *req, struct error *e)
{
	return engine_pin(req->attachment, req->id, req->offset, req->size, e);
}

static int run_unpin(struct native_request *req, struct error *e)
{
	return engine_unpin(req->attachment, req->id, req->offset, req->size, e);
}

static int run_share(struct native_request *req, struct error *e)
{
	return engine_share(req->attachment, req->id, (pid_t)req->offset, &req->progress, e);
}

static int run_detach(struct native_request *req, struct error *e)
{
	int r = engine_detach(req->attachment, &req->progress, e);

	/* -ESRCH: the operator detached it before; either way nothing is left to hold. */
	if (r && r != -ESRCH)
		return r;
	if (req->requests)
		requests_close(req->requests);
	engine_attachment_put(req->attachment);
	req->ended = true;
	return r;
}

static int run_userfaultfd(struct native_request *req, struct error *e)
{
	const char *device = req->conn->at->config.uffd_device;

	req->lent_fd = open(device, O_RDWR | O_CLOEXEC);
	if (req->lent_fd >= 0)
		return 0;
	if (errno == ENOENT || errno == ENODEV || errno == ENXIO)
		return error_set(e, errno, ERROR_UNSUPPORTED,
				 "%s: %s: this kernel has no userfaultfd device (Linux 6.1 has)",
				 device, error_text(errno));
	return error_set(e, errno, errno == EACCES ? ERROR_PERMISSION : ERROR_GENERIC, "%s: %s",
			 device, error_text(errno));
}

static const struct native_command commands[] = {
	{"attach", NATIVE_DETACHED, 2, INTAKE_FDS_MAX, native_parse_attach, run_attach},
	{"userfaultfd", NATIVE_ANY, 0, 0, native_parse_nothing, run_userfaultfd},
	{"region-add", NATIVE_ATTACHED, 1, 1, native_parse_region, run_region_add},
	{"region-remove", NATIVE_ATTACHED, 0, 0, native_parse_remove, run_region_remove},
	{"discard", NATIVE_ATTACHED, 0, 0, native_parse_discard, run_discard},
	{"pin", NATIVE_ATTACHED, 0, 0, native_parse_range, run_pin},
	{"unpin", NATIVE_ATTACHED, 0, 0, native_parse_range, run_unpin},
	{"share", NATIVE_ATTACHED, 0, 0, native_parse_share, run_share},
	{"detach", NATIVE_ATTACHED, 0, 0, native_parse_nothing, run_detach},
};

const struct native_command *native_command_find(const char *name)
{
	for (size_t i = 0; i < sizeof(commands) / sizeof(commands[0]); i++)
		if (!strcmp(commands[i].name, name))
			return &commands[i];
	return NULL;
}
