/* SPDX-License-Identifier: BSD-3-Clause */
/* native.c: a client of the attach socket for tests and benchmarks. */
#include "native.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <jansson.h>
#include <linux/memfd.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/fd.h"

#define PAGE_2M	       ((size_t)2 << 20)
#define ANSWER_MAX     4096
#define LINE_MAX_BYTES (64 << 10)
#define KEPT_MAX       32 /* with the rest of an attach within FD_MESSAGE_MAX */
#ifndef USERFAULTFD_IOC_NEW
#define USERFAULTFD_IOC_NEW _IO(0xAA, 0x00)
#endif

struct native {
	int sock, uffd;
	pthread_t reader;
	bool reading; /* the thread runs, or is to be joined */

	pthread_mutex_t lock; /* guards what is below; also orders whole lines on the socket */
	pthread_cond_t came;
	bool answered, ended;
	char answer[ANSWER_MAX];
	int answer_fd;
	struct {
		char name[64];
		int fd; /* -1: free */
	} kept[KEPT_MAX];

	char error[ANSWER_MAX + 64];
	_Atomic unsigned int zaps;
};

/* ---- RAM ---- */

static void *map_aligned(size_t bytes, size_t align, int memfd)
{
	char *space = mmap(NULL, bytes + align, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	char *at;

	if (space == MAP_FAILED)
		return MAP_FAILED;
	at = (char *)(((uintptr_t)space + align - 1) & ~(uintptr_t)(align - 1));
	if (at > space)
		munmap(space, (size_t)(at - space));
	munmap(at + bytes, (size_t)(space + align - at));
	return mmap(at, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, memfd, 0);
}

int native_ram_map(struct native_ram *ram, const char *id, size_t bytes, enum native_kind kind,
		   int memfd)
{
	memset(ram, 0, sizeof(*ram));
	snprintf(ram->id, sizeof(ram->id), "%s", id);
	ram->bytes = bytes;
	ram->page_bytes = kind == NATIVE_HUGETLB ? PAGE_2M : 4096;
	ram->guest_addr = UINT64_MAX;
	ram->memfd = fcntl(memfd, F_DUPFD_CLOEXEC, 0);
	if (ram->memfd < 0)
		return -errno;
	ram->addr = map_aligned(bytes, kind == NATIVE_SHMEM ? 4096 : PAGE_2M, ram->memfd);
	if (ram->addr == MAP_FAILED) {
		int r = -errno;

		fd_close(&ram->memfd);
		return r;
	}
	/* A forked child would read zeroes over what is evicted. */
	madvise(ram->addr, bytes, MADV_DONTFORK);
	madvise(ram->addr, bytes, kind == NATIVE_SHMEM ? MADV_NOHUGEPAGE : MADV_HUGEPAGE);
	return 0;
}

int native_ram_make(struct native_ram *ram, const char *id, size_t bytes, enum native_kind kind)
{
	unsigned int flags = MFD_CLOEXEC | MFD_ALLOW_SEALING;
	FD_OWNED memfd = -1;

	if (kind == NATIVE_HUGETLB)
		flags |= MFD_HUGETLB | MFD_HUGE_2MB;
	memfd = memfd_create(id, flags);
	if (memfd < 0 || ftruncate(memfd, (off_t)bytes))
		return -errno;
	fcntl(memfd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW);
	return native_ram_map(ram, id, bytes, kind, memfd);
}

void native_ram_free(struct native_ram *ram)
{
	if (ram->addr)
		munmap(ram->addr, ram->bytes);
	fd_close(&ram->memfd);
	memset(ram, 0, sizeof(*ram));
	ram->memfd = -1;
}

/* ---- the socket ---- */

/* Keeps fd (taken) under this name in place of what was; -1: lets go of it. With the lock held. */
static int keep(struct native *c, const char *name, int *fd)
{
	int to = -1;

	for (int i = KEPT_MAX; i-- > 0;) {
		if (c->kept[i].fd >= 0 && !strcmp(c->kept[i].name, name)) {
			to = i;
			break;
		}
		if (c->kept[i].fd < 0)
			to = i;
	}
	if (to < 0)
		return -ENOSPC;
	fd_close(&c->kept[to].fd);
	c->kept[to].fd = fd_take(fd);
	snprintf(c->kept[to].name, sizeof(c->kept[to].name), "%s", name);
	return 0;
}

static int serve_keep(struct native *c, const json_t *request, int *fd)
{
	const json_t *name = json_object_get(json_object_get(request, "arguments"), "name");
	bool wants = !strcmp(json_string_value(json_object_get(request, "execute")), "keep");
	int r = -EINVAL;

	pthread_mutex_lock(&c->lock);
	if (json_is_string(name) && wants == (*fd >= 0))
		r = keep(c, json_string_value(name), fd);
	pthread_mutex_unlock(&c->lock);
	return r;
}

static void serve_zap(struct native *c, const json_t *request)
{
	const json_t *ranges = json_object_get(json_object_get(request, "arguments"), "ranges");
	const json_t *range;
	size_t i;

	json_array_foreach(ranges, i, range) {
		uint64_t addr = (uint64_t)json_integer_value(json_array_get(range, 0));
		size_t bytes = (size_t)json_integer_value(json_array_get(range, 1));

		madvise((void *)(uintptr_t)addr, bytes, MADV_DONTNEED);
	}
	atomic_fetch_add(&c->zaps, 1);
}

/* Does what the request asks and answers it. */
static void serve_request(struct native *c, const json_t *request, int *fd)
{
	json_int_t id = json_integer_value(json_object_get(request, "id"));
	const char *name = json_string_value(json_object_get(request, "execute"));
	char line[128];
	int r = 0;

	if (name && strstr(name, "keep"))
		r = serve_keep(c, request, fd);
	else
		serve_zap(c, request);
	snprintf(line, sizeof(line), "{%s,\"id\":%" JSON_INTEGER_FORMAT "}\n",
		 r ? "\"error\":{\"class\":\"GenericError\",\"desc\":\"not kept\"}"
		   : "\"return\":{}",
		 id);
	pthread_mutex_lock(&c->lock);
	fd_send(c->sock, line, strlen(line), NULL, 0);
	pthread_mutex_unlock(&c->lock);
}

static void take_line(struct native *c, char *line, size_t bytes, int *fd)
{
	json_t *message = json_loadb(line, bytes, 0, NULL);

	if (json_object_get(message, "execute")) {
		serve_request(c, message, fd);
	} else {
		pthread_mutex_lock(&c->lock);
		snprintf(c->answer, sizeof(c->answer), "%.*s", (int)bytes, line);
		fd_close(&c->answer_fd);
		c->answer_fd = fd_take(fd);
		c->answered = true;
		pthread_cond_broadcast(&c->came);
		pthread_mutex_unlock(&c->lock);
	}
	json_decref(message);
}

/* Where the last line in buf begins: a descriptor ends what one recvmsg() gives, so it is its. */
static size_t last_line(const char *buf, size_t have)
{
	const char *newline = have > 1 ? memrchr(buf, '\n', have - 1) : NULL;

	return newline ? (size_t)(newline + 1 - buf) : 0;
}

static void *reader_main(void *arg)
{
	struct native *c = arg;
	char *buf = malloc(LINE_MAX_BYTES), *newline;
	size_t have = 0, fd_at = 0;
	int fd = -1, none = -1;

	while (buf && have < LINE_MAX_BYTES) {
		int fds[1], n_fds = 1;
		ssize_t n = fd_recv(c->sock, buf + have, LINE_MAX_BYTES - have, fds, &n_fds);

		if (n <= 0)
			break;
		if (n_fds) {
			fd_close(&fd);
			fd = fds[0];
			fd_at = last_line(buf, have + (size_t)n);
		}
		have += (size_t)n;
		while ((newline = memchr(buf, '\n', have))) {
			size_t bytes = (size_t)(newline + 1 - buf);

			take_line(c, buf, bytes - 1, fd_at ? &none : &fd);
			fd_at -= fd_at ? bytes : 0;
			have -= bytes;
			memmove(buf, newline + 1, have);
		}
	}
	fd_close(&fd);
	free(buf);
	pthread_mutex_lock(&c->lock);
	c->ended = true;
	pthread_cond_broadcast(&c->came);
	pthread_mutex_unlock(&c->lock);
	return NULL;
}

static void disconnect(struct native *c)
{
	if (c->sock >= 0)
		shutdown(c->sock, SHUT_RDWR);
	if (c->reading)
		pthread_join(c->reader, NULL);
	c->reading = false;
	fd_close(&c->sock);
}

static int connect_to(struct native *c, const char *socket_path)
{
	int r;

	c->sock = fd_connect_unix(socket_path);
	if (c->sock < 0)
		return c->sock;
	c->ended = false;
	r = -pthread_create(&c->reader, NULL, reader_main, c);
	if (r)
		fd_close(&c->sock);
	c->reading = !r;
	return r;
}

int native_open(const char *socket_path, struct native **out)
{
	struct native *c = calloc(1, sizeof(*c));
	int r;

	if (!c)
		return -ENOMEM;
	c->sock = c->uffd = c->answer_fd = -1;
	for (int i = 0; i < KEPT_MAX; i++)
		c->kept[i].fd = -1;
	pthread_mutex_init(&c->lock, NULL);
	pthread_cond_init(&c->came, NULL);
	r = connect_to(c, socket_path);
	if (r)
		native_close(c, true);
	else
		*out = c;
	return r;
}

void native_close(struct native *c, bool close_uffd)
{
	if (!c)
		return;
	disconnect(c);
	fd_close(&c->answer_fd);
	for (int i = 0; i < KEPT_MAX; i++)
		fd_close(&c->kept[i].fd);
	if (close_uffd)
		fd_close(&c->uffd);
	pthread_mutex_destroy(&c->lock);
	pthread_cond_destroy(&c->came);
	free(c);
}

const char *native_error(const struct native *c)
{
	return c->error;
}

const char *native_answer(const struct native *c)
{
	return c->answer;
}

unsigned int native_zaps(const struct native *c)
{
	return c->zaps;
}

int native_kept_fd(struct native *c, const char *name)
{
	int fd = -1;

	pthread_mutex_lock(&c->lock);
	for (int i = 0; i < KEPT_MAX && fd < 0; i++)
		if (c->kept[i].fd >= 0 && !strcmp(c->kept[i].name, name))
			fd = c->kept[i].fd;
	pthread_mutex_unlock(&c->lock);
	return fd;
}

unsigned int native_kept(struct native *c)
{
	unsigned int n = 0;

	pthread_mutex_lock(&c->lock);
	for (int i = 0; i < KEPT_MAX; i++)
		n += c->kept[i].fd >= 0;
	pthread_mutex_unlock(&c->lock);
	return n;
}

/* 0 for a "return"; else keeps the error's words. */
static int judge_answer(struct native *c)
{
	json_t *message = json_loads(c->answer, 0, NULL);
	const json_t *error = json_object_get(message, "error");
	int r = json_object_get(message, "return") ? 0 : -EPROTO;

	if (r)
		snprintf(c->error, sizeof(c->error), "%s: %s",
			 error ? json_string_value(json_object_get(error, "class")) : "no answer",
			 error ? json_string_value(json_object_get(error, "desc")) : c->answer);
	json_decref(message);
	return r;
}

int native_call(struct native *c, const char *line, const int *fds, int n_fds)
{
	size_t bytes = strlen(line);
	char *text = malloc(bytes + 2);
	int r;

	if (!text)
		return -ENOMEM;
	memcpy(text, line, bytes);
	text[bytes] = '\n';
	pthread_mutex_lock(&c->lock);
	c->answered = false;
	r = fd_send(c->sock, text, bytes + 1, fds, n_fds);
	while (!r && !c->answered && !c->ended)
		pthread_cond_wait(&c->came, &c->lock);
	if (!r && !c->answered)
		r = -EPIPE;
	pthread_mutex_unlock(&c->lock);
	free(text);
	if (r)
		snprintf(c->error, sizeof(c->error), "the daemon closed the connection");
	return r ? r : judge_answer(c);
}

static int call_json(struct native *c, json_t *message, const int *fds, int n_fds)
{
	char *line = json_dumps(message, JSON_COMPACT);
	int r = line ? native_call(c, line, fds, n_fds) : -ENOMEM;

	free(line);
	json_decref(message);
	return r;
}

/* ---- commands ---- */

static int make_uffd(struct native *c, bool lent)
{
	int fd, r;

	if (!lent) {
		fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
		if (fd >= 0)
			return fd;
	}
	r = native_call(c, "{\"execute\":\"userfaultfd\"}", NULL, 0);
	if (r)
		return r;
	if (c->answer_fd < 0)
		return -EBADF;
	fd = ioctl(c->answer_fd, USERFAULTFD_IOC_NEW, O_CLOEXEC | O_NONBLOCK);
	r = -errno;
	fd_close(&c->answer_fd);
	return fd < 0 ? r : fd;
}

static json_t *region_json(const struct native_ram *ram, int memfd_index)
{
	json_t *region = json_pack("{s:s, s:I, s:I, s:i, s:i, s:I}", "id", ram->id, "host_addr",
				   (json_int_t)(uintptr_t)ram->addr, "size", (json_int_t)ram->bytes,
				   "page_size", (int)ram->page_bytes, "memfd", memfd_index,
				   "memfd_offset", (json_int_t)ram->offset);

	if (ram->guest_addr != UINT64_MAX)
		json_object_set_new(region, "guest_addr",
				    json_integer((json_int_t)ram->guest_addr));
	return region;
}

/* What is kept, its descriptors put behind those in fds. With the lock held. */
static json_t *kept_json(const struct native *c, int *fds, int *n_fds)
{
	json_t *kept = json_array();

	for (int i = 0; i < KEPT_MAX; i++) {
		if (c->kept[i].fd < 0)
			continue;
		json_array_append_new(
			kept, json_pack("{s:s, s:i}", "name", c->kept[i].name, "fd", *n_fds));
		fds[(*n_fds)++] = c->kept[i].fd;
	}
	return kept;
}

static int call_attach(struct native *c, const char *vm, const struct native_ram *ram,
		       unsigned int n, unsigned int flags, bool resume)
{
	int fds[FD_MESSAGE_MAX], n_fds = (int)n + 1;
	json_t *args, *regions = json_array();

	fds[0] = c->uffd;
	for (unsigned int i = 0; i < n; i++) {
		fds[i + 1] = ram[i].memfd;
		json_array_append_new(regions, region_json(&ram[i], (int)i + 1));
	}
	args = json_pack("{s:i, s:{s:s, s:i}, s:o}", "version", 1, "vm", "name", vm, "pid",
			 (int)getpid(), "regions", regions);
	if (flags & NATIVE_SECONDARY)
		json_object_set_new(args, "secondary", json_true());
	if (flags & NATIVE_KEEP)
		json_object_set_new(args, "keep", json_true());
	if (flags & NATIVE_SERVE_ZAP)
		json_object_set_new(args, "requests", json_pack("[s]", "zap"));
	if (resume) {
		pthread_mutex_lock(&c->lock);
		json_object_set_new(args, "kept", kept_json(c, fds, &n_fds));
		pthread_mutex_unlock(&c->lock);
	}
	return call_json(c, json_pack("{s:s, s:o}", "execute", "attach", "arguments", args), fds,
			 n_fds);
}

int native_attach(struct native *c, const char *vm, const struct native_ram *ram, unsigned int n,
		  unsigned int flags)
{
	int r;

	if (n + 1 > FD_MESSAGE_MAX)
		return -E2BIG;
	fd_close(&c->uffd);
	c->uffd = make_uffd(c, flags & NATIVE_LENT_UFFD);
	if (c->uffd < 0) {
		r = c->uffd;
		c->uffd = -1;
		return r;
	}
	r = call_attach(c, vm, ram, n, flags, false);
	if (r)
		fd_close(&c->uffd);
	return r;
}

int native_resume(struct native *c, const char *socket_path, const char *vm,
		  const struct native_ram *ram, unsigned int n, unsigned int flags)
{
	int r;

	if (n + 1 + KEPT_MAX > FD_MESSAGE_MAX)
		return -E2BIG;
	disconnect(c);
	r = connect_to(c, socket_path);
	if (r) {
		snprintf(c->error, sizeof(c->error), "%s: %s", socket_path, strerror(-r));
		return r;
	}
	return call_attach(c, vm, ram, n, flags, true);
}

int native_region_add(struct native *c, const struct native_ram *ram)
{
	return call_json(
		c,
		json_pack("{s:s, s:o}", "execute", "region-add", "arguments", region_json(ram, 0)),
		&ram->memfd, 1);
}

int native_region_remove(struct native *c, const char *id, bool discard)
{
	json_t *args = json_pack("{s:s}", "id", id);

	if (discard)
		json_object_set_new(args, "discard", json_true());
	return call_json(c, json_pack("{s:s, s:o}", "execute", "region-remove", "arguments", args),
			 NULL, 0);
}

static int call_range(struct native *c, const char *command, const char *id, uint64_t offset,
		      uint64_t bytes)
{
	return call_json(c,
			 json_pack("{s:s, s:{s:s, s:I, s:I}}", "execute", command, "arguments",
				   "id", id, "offset", (json_int_t)offset, "size",
				   (json_int_t)bytes),
			 NULL, 0);
}

int native_discard(struct native *c, const char *id, uint64_t offset, uint64_t bytes)
{
	return call_range(c, "discard", id, offset, bytes);
}

int native_discard_by(struct native *c, const char *id, uint64_t offset, uint64_t bytes,
		      uint64_t deadline_ns)
{
	char line[512];

	snprintf(line, sizeof(line),
		 "{\"execute\":\"discard\",\"arguments\":{\"id\":\"%s\",\"offset\":%llu,"
		 "\"size\":%llu,\"deadline\":%llu}}",
		 id, (unsigned long long)offset, (unsigned long long)bytes,
		 (unsigned long long)deadline_ns);
	return native_call(c, line, NULL, 0);
}

int native_pin(struct native *c, const char *id, uint64_t offset, uint64_t bytes)
{
	return call_range(c, "pin", id, offset, bytes);
}

int native_unpin(struct native *c, const char *id, uint64_t offset, uint64_t bytes)
{
	return call_range(c, "unpin", id, offset, bytes);
}

int native_detach(struct native *c)
{
	int r = native_call(c, "{\"execute\":\"detach\"}", NULL, 0);

	if (!r)
		fd_close(&c->uffd);
	return r;
}
