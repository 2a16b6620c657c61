/* SPDX-License-Identifier: BSD-3-Clause */
/* fake_engine.c: an engine that only takes notes, for tests of the attach socket. */
#include "fake_engine.h"
#include "engine/handover.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/fd.h"

struct engine {
	FILE *log;
	_Atomic int held;
};

struct attachment {
	struct engine *eng;
	char vm[VM_NAME_MAX];
	const struct attach_client_ops *ops;
	void *client;
	int uffd, pidfd;
};

/* One write per line: the callers are threads. */
static void note(struct engine *eng, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
static void note(struct engine *eng, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	flockfile(eng->log);
	vfprintf(eng->log, fmt, ap);
	fputc('\n', eng->log);
	fflush(eng->log);
	funlockfile(eng->log);
	va_end(ap);
}

struct engine *fake_engine_new(FILE *log)
{
	struct engine *eng = calloc(1, sizeof(*eng));

	if (eng)
		eng->log = log;
	return eng;
}

void fake_engine_free(struct engine *eng)
{
	free(eng);
}

int fake_engine_held(const struct engine *eng)
{
	return eng->held;
}

int engine_attach(struct engine *eng, struct attach_request *req, struct attachment **out,
		  struct error *e)
{
	struct attachment *a;

	note(eng, "attach %s uuid=%s pid=%d uid=%d%s%s%s%s regions=%u", req->vm_name, req->uuid,
	     (int)req->pid, (int)req->uid, req->secondary ? " secondary" : "",
	     req->ops && req->ops->zap ? " zap" : "", req->ops && req->ops->keep ? " keep" : "",
	     req->resume ? " resume" : "", req->n_regions);
	for (unsigned int i = 0; i < req->n_kept; i++)
		note(eng, "kept %s %s", req->kept[i].name,
		     fcntl(req->kept[i].fd, F_GETFD) >= 0 ? "open" : "closed");
	for (unsigned int i = 0; i < req->n_regions; i++)
		note(eng,
		     "region %s %" PRIu64 "+%" PRIu64 " page=%" PRIu32 " offset=%" PRIu64
		     " fd=%s guest=%" PRIu64,
		     req->regions[i].id, req->regions[i].host_addr, req->regions[i].size,
		     req->regions[i].page_size, req->regions[i].memfd_offset,
		     req->regions[i].memfd >= 0 ? "yes" : "no", req->regions[i].guest_addr);
	if (!strncmp(req->vm_name, "slow", 4))
		usleep(300000);
	if (!strcmp(req->vm_name, "taken")) {
		fd_close(&req->uffd);
		fd_close(&req->pidfd);
		return error_set(e, EEXIST, ERROR_EXISTS, "there is a VM taken already");
	}
	a = calloc(1, sizeof(*a));
	if (!a)
		abort();
	a->eng = eng;
	memcpy(a->vm, req->vm_name, sizeof(a->vm));
	a->ops = req->ops;
	a->client = req->client;
	a->uffd = req->uffd;
	a->pidfd = req->pidfd;
	eng->held++;
	*out = a;
	return 0;
}

const char *engine_attachment_vm(const struct attachment *a)
{
	return a->vm;
}

void engine_attachment_put(struct attachment *a)
{
	note(a->eng, "put %s", a->vm);
	fd_close(&a->uffd);
	fd_close(&a->pidfd);
	a->eng->held--;
	free(a);
}

int engine_region_add(struct attachment *a, const struct attach_region *region, struct error *e)
{
	(void)e;
	note(a->eng, "region-add %s %s %" PRIu64, a->vm, region->id, region->size);
	return 0;
}

int engine_region_remove(struct attachment *a, const char *id, bool discard, struct progress *p,
			 struct error *e)
{
	note(a->eng, "region-remove %s %s%s", a->vm, id, discard ? " discard" : "");
	for (int i = 0; !strncmp(id, "slow", 4) && i < 3000; i++) {
		if (p->cancel)
			return error_set(e, ECANCELED, ERROR_CANCELLED, "cancelled");
		usleep(10000);
	}
	return 0;
}

int engine_discard(struct attachment *a, const char *id, uint64_t offset, uint64_t bytes,
		   uint64_t deadline_ns, struct error *e)
{
	(void)deadline_ns;
	(void)e;
	note(a->eng, "discard %s %s %" PRIu64 "+%" PRIu64, a->vm, id, offset, bytes);
	return 0;
}

int engine_pin(struct attachment *a, const char *id, uint64_t offset, uint64_t bytes,
	       struct error *e)
{
	const struct ebb_range ranges[2] = {{140000000000, 4096}, {140000008192, 8192}};

	note(a->eng, "pin %s %s %" PRIu64 "+%" PRIu64, a->vm, id, offset, bytes);
	if (!strncmp(id, "zap", 3)) {
		int r = a->ops && a->ops->zap ? a->ops->zap(a->client, ranges, 2) : -EOPNOTSUPP;

		note(a->eng, "zapped %s %d", a->vm, r);
		if (r)
			return error_set(e, -r, ERROR_GENERIC, "zap: %s", error_text(r));
	}
	if (!strncmp(id, "keep", 4) || !strncmp(id, "unkeep", 6)) {
		int fd = id[0] == 'k' ? memfd_create("state", MFD_CLOEXEC) : -1;
		int r = a->ops && a->ops->keep ? a->ops->keep(a->client, "table:0", fd, 8192)
					       : -EOPNOTSUPP;

		fd_close(&fd);
		note(a->eng, "kept %s %d", a->vm, r);
		if (r)
			return error_set(e, -r, ERROR_GENERIC, "keep: %s", error_text(r));
	}
	return 0;
}

int engine_unpin(struct attachment *a, const char *id, uint64_t offset, uint64_t bytes,
		 struct error *e)
{
	(void)e;
	note(a->eng, "unpin %s %s %" PRIu64 "+%" PRIu64, a->vm, id, offset, bytes);
	return 0;
}

int engine_share(struct attachment *a, const char *id, pid_t peer, struct progress *p,
		 struct error *e)
{
	(void)p;
	(void)e;
	note(a->eng, "share %s %s %d", a->vm, id, (int)peer);
	return 0;
}

int engine_detach(struct attachment *a, struct progress *p, struct error *e)
{
	(void)p;
	(void)e;
	note(a->eng, "detach %s", a->vm);
	return 0;
}

uint64_t handover_serial(const struct attachment *a)
{
	(void)a;
	return 0;
}

struct attachment *handover_attachment(struct engine *eng, uint64_t serial,
				       const struct attach_client_ops *ops, void *client)
{
	(void)eng;
	(void)serial;
	(void)ops;
	(void)client;
	return NULL;
}
