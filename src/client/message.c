/* SPDX-License-Identifier: BSD-3-Clause */
/* message.c: what the library sends to the daemon. */
#include <errno.h>
#include <inttypes.h>

#include "client/client.h"
#include "client/json.h"

static void add_region(struct json_text *t, const struct region *r, int memfd)
{
	json_add(t, "\"id\":");
	json_add_string(t, r->id);
	json_add(t,
		 ",\"host_addr\":%" PRIu64 ",\"size\":%" PRIu64
		 ",\"page_size\":%u,\"memfd\":%d,\"memfd_offset\":%" PRIu64,
		 r->addr, r->size, r->page_size, memfd, r->offset);
}

/* The index of r's file among the descriptors; regions of one file share one. */
static int fd_index(const struct client *c, const bool *chosen, unsigned int r, int *fds,
		    int *n_fds)
{
	const struct region *reg = &c->regions[r];

	for (unsigned int i = 0; i < r; i++) {
		if (!chosen[i] || !region_is_file(&c->regions[i], reg->dev, reg->ino))
			continue;
		for (int f = 1; f < *n_fds; f++)
			if (fds[f] == c->regions[i].fd)
				return f;
	}
	fds[*n_fds] = reg->fd;
	return (*n_fds)++;
}

static void add_kept(struct json_text *t, const struct client *c, int *fds, int *n_fds)
{
	json_add(t, ",\"kept\":[");
	for (unsigned int i = 0; i < c->n_kept; i++) {
		json_add(t, "%s{\"name\":", i ? "," : "");
		json_add_string(t, c->kept[i].name);
		json_add(t, ",\"fd\":%d}", *n_fds);
		fds[(*n_fds)++] = c->kept[i].fd;
	}
	json_add(t, "]");
}

int message_attach(const struct client *c, const bool *chosen, int uffd, bool resume, char *buf,
		   size_t bytes, int *fds, int *n_fds)
{
	struct json_text t = {.buf = buf, .cap = bytes};
	bool first = true;

	fds[0] = uffd;
	*n_fds = 1;
	json_add(&t, "{\"execute\":\"attach\",\"arguments\":{\"version\":1,\"vm\":{\"name\":");
	json_add_string(&t, c->name);
	json_add(&t, ",\"pid\":%d},\"regions\":[", (int)c->pid);
	for (unsigned int i = 0; i < CLIENT_REGIONS_MAX; i++) {
		if (!chosen[i])
			continue;
		if (!first)
			json_add(&t, ",");
		first = false;
		json_add(&t, "{");
		add_region(&t, &c->regions[i], fd_index(c, chosen, i, fds, n_fds));
		json_add(&t, "}");
	}
	json_add(&t, "],\"requests\":[\"zap\"],\"%s\":true", c->secondary ? "secondary" : "keep");
	if (resume)
		add_kept(&t, c, fds, n_fds);
	json_add(&t, "}}");
	return t.over ? -EMSGSIZE : (int)t.len;
}

int message_op(const struct client *c, const struct op *op, char *buf, size_t bytes, int *fds,
	       int *n_fds)
{
	static const char *const names[] = {
		[OP_ADD] = "region-add",  [OP_REMOVE] = "region-remove",
		[OP_DISCARD] = "discard", [OP_SHARE] = "share",
		[OP_PIN] = "pin",	  [OP_UNPIN] = "unpin",
		[OP_DETACH] = "detach",
	};
	const struct region *r = &c->regions[op->region];
	struct json_text t = {.buf = buf, .cap = bytes};

	*n_fds = 0;
	json_add(&t, "{\"execute\":\"%s\",\"arguments\":{", names[op->kind]);
	switch (op->kind) {
	case OP_ADD:
		add_region(&t, r, 0);
		fds[(*n_fds)++] = r->fd;
		break;
	case OP_REMOVE:
		json_add(&t, "\"id\":");
		json_add_string(&t, r->id);
		json_add(&t, ",\"discard\":%s", op->discard ? "true" : "false");
		break;
	case OP_DISCARD:
	case OP_PIN:
	case OP_UNPIN:
		json_add(&t, "\"id\":");
		json_add_string(&t, r->id);
		json_add(&t, ",\"offset\":%" PRIu64 ",\"size\":%" PRIu64, op->offset, op->size);
		if (op->deadline_ns)
			json_add(&t, ",\"deadline\":%" PRIu64, op->deadline_ns);
		break;
	case OP_SHARE:
		json_add(&t, "\"id\":");
		json_add_string(&t, r->id);
		if (op->peer > 0)
			json_add(&t, ",\"pid\":%d", (int)op->peer);
		break;
	case OP_DETACH:
		break;
	}
	json_add(&t, "}}");
	return t.over ? -EMSGSIZE : (int)t.len;
}
