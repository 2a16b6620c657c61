/* SPDX-License-Identifier: BSD-3-Clause */
/* shelf.c: the state of a VM whose client keeps nothing, in the service manager's fd store. */
#include "engine/shelf.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/log.h"
#include "sys/memfd.h"

/*
 * Theory of operation
 *
 * A client that asks for it holds its VM's state for the next daemon (keep.c). One that does not
 * would lose with the daemon what was evicted. Where a service manager keeps descriptors for us, it
 * holds the same pieces of such a VM, and besides what the client will not offer again: its
 * userfaultfd, a pidfd of its process, its RAM's files, and a text that says how they belong
 * together (the "request"). From them the next daemon makes the attach request that the client does
 * not make (engine_restore()); everything after that is a takeover like any other, with the same
 * checks.
 *
 * Each VM has a random number, and each descriptor a name in the store: ebb-NUMBER.PIECE. A request
 * that has changed is put beside the one before it, which then goes; of several the one with the
 * highest number counts. As with a client, nothing is evicted while something is missing there.
 *
 * All of a shelf but its making and its end is under its lock.
 */

#define ID_CHARS      16
#define NAME_MAX_LEN  255 /* of a descriptor in systemd's store */
#define REQUEST	      "request"
#define REQUEST_MAX   (UINT64_C(1) << 20)
#define PIECE_UFFD    "uffd"
#define PIECE_PROCESS "process"
#define PIECE_RAM     "ram:"

struct shelf {
	struct engine *eng;
	pthread_mutex_t lock;
	char id[SHELF_ID_MAX];
	char pieces[SHELF_PIECES_MAX][STORE_NAME_MAX];
	unsigned int n_pieces;
	char *request;	   /* the text that is there; NULL: not known */
	uint64_t sequence; /* of the newest request */
	bool unsettled;	   /* something was put, and nobody has said that it has arrived */
	bool closed;
};

/* ---- names ---- */

/* A store's names have no colon and no control character. */
static int full_name(const struct shelf *s, const char *piece, char *out)
{
	size_t n = (size_t)snprintf(out, NAME_MAX_LEN + 1, SHELF_PREFIX "%s.", s->id);

	for (; *piece; piece++) {
		bool plain = (*piece >= 'a' && *piece <= 'z') || (*piece >= 'A' && *piece <= 'Z') ||
			     (*piece >= '0' && *piece <= '9') || *piece == '-' || *piece == '_';

		if (n + 3 > NAME_MAX_LEN)
			return -ENAMETOOLONG;
		n += (size_t)snprintf(out + n, NAME_MAX_LEN + 1 - n, plain ? "%c" : "%%%02x",
				      (unsigned char)*piece);
	}
	return 0;
}

bool shelf_parse_name(const char *name, char *id, char *piece)
{
	size_t n = 0;

	if (strncmp(name, SHELF_PREFIX, strlen(SHELF_PREFIX)) != 0)
		return false;
	name += strlen(SHELF_PREFIX);
	if (strspn(name, "0123456789abcdef") != ID_CHARS || name[ID_CHARS] != '.')
		return false;
	memcpy(id, name, ID_CHARS);
	id[ID_CHARS] = '\0';
	for (name += ID_CHARS + 1; *name; name++) {
		unsigned int c = (unsigned char)*name;

		if (*name == '%' && sscanf(name + 1, "%2x", &c) == 1 && name[1] && name[2])
			name += 2;
		if (n + 1 >= STORE_NAME_MAX || !c)
			return false;
		piece[n++] = (char)c;
	}
	piece[n] = '\0';
	return n > 0;
}

/* ---- pieces ---- */

static bool has_piece(const struct shelf *s, const char *piece)
{
	for (unsigned int i = 0; i < s->n_pieces; i++)
		if (strcmp(s->pieces[i], piece) == 0)
			return true;
	return false;
}

static int add_piece(struct shelf *s, const char *piece)
{
	if (s->n_pieces == SHELF_PIECES_MAX)
		return -ENOSPC;
	if (atomic_fetch_add(&s->eng->fds_stored, 1) >= s->eng->config.fd_store.max) {
		atomic_fetch_sub(&s->eng->fds_stored, 1);
		return -ENOSPC;
	}
	snprintf(s->pieces[s->n_pieces++], STORE_NAME_MAX, "%s", piece);
	return 0;
}

static void drop_piece(struct shelf *s, unsigned int i)
{
	char name[NAME_MAX_LEN + 1];

	if (!full_name(s, s->pieces[i], name))
		s->eng->config.fd_store.drop(s->eng->config.fd_store.ctx, name);
	atomic_fetch_sub(&s->eng->fds_stored, 1);
	memmove(s->pieces[i], s->pieces[--s->n_pieces], STORE_NAME_MAX);
}

int shelf_put(struct shelf *s, const char *piece, int fd)
{
	char name[NAME_MAX_LEN + 1];
	int r = s->closed ? -ENOTCONN : full_name(s, piece, name);

	if (r || has_piece(s, piece))
		return r;
	/* Noted first: what may be there must be removed one day. */
	r = add_piece(s, piece);
	if (r)
		return r;
	s->unsettled = true;
	r = s->eng->config.fd_store.put(s->eng->config.fd_store.ctx, name, fd);
	if (r)
		drop_piece(s, s->n_pieces - 1);
	return r;
}

void shelf_remove(struct shelf *s, const char *piece)
{
	for (unsigned int i = 0; i < s->n_pieces; i++)
		if (strcmp(s->pieces[i], piece) == 0) {
			drop_piece(s, i);
			return;
		}
}

int shelf_settle(struct shelf *s)
{
	int r = 0;

	if (s->unsettled)
		r = s->eng->config.fd_store.settle(s->eng->config.fd_store.ctx);
	s->unsettled = r != 0;
	return r;
}

void shelf_lock(struct shelf *s)
{
	pthread_mutex_lock(&s->lock);
}

void shelf_unlock(struct shelf *s)
{
	pthread_mutex_unlock(&s->lock);
}

/* ---- the request ---- */

static void ram_name(const struct block *b, char *out)
{
	snprintf(out, STORE_NAME_MAX, PIECE_RAM "%" PRIu64, b->first_unit);
}

static json_t *describe_block(const struct block *b, const struct mapping *m)
{
	char piece[STORE_NAME_MAX];
	json_t *j;

	ram_name(b, piece);
	j = json_pack("{s:s, s:s, s:I, s:I, s:i, s:I}", "id", b->id, "file", piece, "host-addr",
		      (json_int_t)m->host_addr, "bytes", (json_int_t)b->bytes, "page-bytes",
		      b->kind == BLOCK_HUGETLB ? (int)block_unit_bytes(b) : 4096, "offset",
		      (json_int_t)b->memfd_offset);
	if (b->guest_addr != UINT64_MAX)
		json_object_set_new(j, "guest-addr", json_integer((json_int_t)b->guest_addr));
	return j;
}

/* RAM that is there is put there, RAM that went is removed. Gives the list of regions. */
static int put_ram(struct shelf *s, struct vm *vm, json_t *regions)
{
	char keep[VM_REGIONS_MAX][STORE_NAME_MAX];
	unsigned int n = 0;
	int r = 0;

	pthread_rwlock_rdlock(&vm->structure);
	for (unsigned int i = 0; i < atomic_load(&vm->n_blocks) && !r; i++) {
		struct block *b = atomic_load(&vm->blocks[i]);
		struct mapping *m = b ? atomic_load(&b->mappings[0]) : NULL;

		/* Also one that is being unplugged: some of it may be evicted still. */
		if (!m)
			continue;
		ram_name(b, keep[n]);
		r = shelf_put(s, keep[n++], b->memfd);
		json_array_append_new(regions, describe_block(b, m));
	}
	pthread_rwlock_unlock(&vm->structure);
	for (unsigned int i = s->n_pieces; i-- > 0 && !r;) {
		bool there = strncmp(s->pieces[i], PIECE_RAM, strlen(PIECE_RAM)) != 0;

		for (unsigned int k = 0; k < n; k++)
			there |= strcmp(keep[k], s->pieces[i]) == 0;
		if (!there)
			drop_piece(s, i);
	}
	return r;
}

static int put_text(struct shelf *s, const char *text)
{
	char piece[STORE_NAME_MAX];
	size_t bytes = strlen(text);
	FD_OWNED fd = memfd_make("ebb:" REQUEST, bytes);
	int r = fd < 0 ? fd : memfd_write(fd, text, bytes, 0);

	snprintf(piece, sizeof(piece), REQUEST ":%" PRIu64, s->sequence + 1);
	if (!r)
		r = shelf_put(s, piece, fd);
	if (r)
		return r;
	s->sequence++;
	for (unsigned int i = s->n_pieces; i-- > 0;)
		if (strncmp(s->pieces[i], REQUEST ":", strlen(REQUEST ":")) == 0 &&
		    strcmp(s->pieces[i], piece) != 0)
			drop_piece(s, i);
	return 0;
}

int shelf_put_request(struct shelf *s, struct vm *vm, struct attachment *att)
{
	json_t *regions = json_array(), *j;
	char *text = NULL;
	int r = shelf_put(s, PIECE_UFFD, att->uffd);

	if (!r)
		r = shelf_put(s, PIECE_PROCESS, att->pidfd);
	if (!r)
		r = put_ram(s, vm, regions);
	j = json_pack("{s:i, s:s, s:s, s:I, s:o}", "version", 1, "vm", vm->name, "uuid", vm->uuid,
		      "uid", (json_int_t)att->uid, "regions", regions);
	if (!r)
		text = json_dumps(j, JSON_COMPACT);
	json_decref(j);
	if (!r && !text)
		r = -ENOMEM;
	if (!r && (!s->request || strcmp(s->request, text) != 0)) {
		r = put_text(s, text);
		if (!r) {
			free(s->request);
			s->request = text;
			text = NULL;
		}
	}
	free(text);
	return r;
}

/* ---- its life ---- */

struct shelf *shelf_new(struct engine *eng, const struct attach_shelf *from)
{
	struct shelf *s = calloc(1, sizeof(*s));
	uint64_t number, sequence;

	if (!s || getrandom(&number, sizeof(number), 0) != sizeof(number)) {
		free(s);
		return NULL;
	}
	s->eng = eng;
	pthread_mutex_init(&s->lock, NULL);
	snprintf(s->id, sizeof(s->id), "%016" PRIx64, number);
	if (!from)
		return s;
	snprintf(s->id, sizeof(s->id), "%s", from->id);
	for (unsigned int i = 0; i < from->n_pieces && i < SHELF_PIECES_MAX; i++) {
		snprintf(s->pieces[s->n_pieces++], STORE_NAME_MAX, "%s", from->pieces[i].name);
		atomic_fetch_add(&eng->fds_stored, 1);
		if (sscanf(from->pieces[i].name, REQUEST ":%" SCNu64, &sequence) == 1 &&
		    sequence > s->sequence)
			s->sequence = sequence;
	}
	return s;
}

static void shelf_free(struct shelf *s)
{
	pthread_mutex_destroy(&s->lock);
	free(s->request);
	free(s);
}

void shelf_close(struct shelf *s)
{
	if (!s)
		return;
	shelf_lock(s);
	s->closed = true;
	while (s->n_pieces)
		drop_piece(s, s->n_pieces - 1);
	shelf_unlock(s);
}

void shelf_drop(struct shelf *s)
{
	shelf_close(s);
	if (s)
		shelf_free(s);
}

void shelf_leave(struct shelf *s)
{
	if (s)
		shelf_free(s);
}

/* ---- upgrades ---- */

json_t *shelf_export(const struct shelf *s)
{
	json_t *pieces = json_array();

	for (unsigned int i = 0; i < s->n_pieces; i++)
		json_array_append_new(pieces, json_string(s->pieces[i]));
	return json_pack("{s:s, s:o}", "id", s->id, "pieces", pieces);
}

struct shelf *shelf_import(struct engine *eng, const json_t *j)
{
	struct attach_shelf from = {.id = json_string_value(json_object_get(j, "id"))};
	struct attach_kept pieces[SHELF_PIECES_MAX];
	json_t *item;
	size_t i;

	if (!eng->config.fd_store.put || !from.id || strlen(from.id) != ID_CHARS)
		return NULL;
	json_array_foreach(json_object_get(j, "pieces"), i, item) {
		const char *name = json_string_value(item);

		if (!name || strlen(name) >= STORE_NAME_MAX || from.n_pieces == SHELF_PIECES_MAX)
			return NULL;
		strcpy(pieces[from.n_pieces].name, name);
		pieces[from.n_pieces++].fd = -1;
	}
	from.pieces = pieces;
	return shelf_new(eng, &from);
}

/* ---- taking in what lies there ---- */

/* The text of the newest request that is what a daemon of ours made; the caller frees it. */
static json_t *read_request(const struct attach_shelf *from)
{
	uint64_t best = 0, sequence;
	json_t *found = NULL;

	for (unsigned int i = 0; i < from->n_pieces; i++) {
		struct stat st;
		json_t *j = NULL;
		char *text;

		if (sscanf(from->pieces[i].name, REQUEST ":%" SCNu64, &sequence) != 1 ||
		    sequence <= best || !vm_store_is_ours(from->pieces[i].fd, &st) ||
		    (uint64_t)st.st_size > REQUEST_MAX)
			continue;
		text = malloc((size_t)st.st_size);
		if (text && !memfd_read(from->pieces[i].fd, text, (uint64_t)st.st_size, 0))
			j = json_loadb(text, (size_t)st.st_size, 0, NULL);
		free(text);
		if (!j || json_integer_value(json_object_get(j, "version")) != 1) {
			json_decref(j);
			continue;
		}
		json_decref(found);
		found = j;
		best = sequence;
	}
	return found;
}

static int piece_fd(const struct attach_shelf *from, const char *name)
{
	for (unsigned int i = 0; name && i < from->n_pieces; i++)
		if (strcmp(from->pieces[i].name, name) == 0)
			return from->pieces[i].fd;
	return -1;
}

static bool take_text(const json_t *j, const char *name, char *out, size_t room)
{
	const char *text = json_string_value(json_object_get(j, name));

	if (!text || strlen(text) >= room)
		return false;
	strcpy(out, text);
	return true;
}

static bool take_region(const struct attach_shelf *from, const json_t *j, struct attach_region *reg)
{
	json_t *addr = json_object_get(j, "guest-addr");

	reg->host_addr = (uint64_t)json_integer_value(json_object_get(j, "host-addr"));
	reg->size = (uint64_t)json_integer_value(json_object_get(j, "bytes"));
	reg->page_size = (uint32_t)json_integer_value(json_object_get(j, "page-bytes"));
	reg->memfd_offset = (uint64_t)json_integer_value(json_object_get(j, "offset"));
	reg->guest_addr = addr ? (uint64_t)json_integer_value(addr) : UINT64_MAX;
	reg->memfd = piece_fd(from, json_string_value(json_object_get(j, "file")));
	return take_text(j, "id", reg->id, sizeof(reg->id)) && reg->memfd >= 0;
}

/* The process of a pidfd; 0: it has ended, -1: that is no pidfd. */
static pid_t process_of(int pidfd)
{
	char path[64], line[128];
	int pid = -1;
	FILE *f;

	snprintf(path, sizeof(path), "/proc/self/fdinfo/%d", pidfd);
	f = pidfd < 0 ? NULL : fopen(path, "re");
	while (f && fgets(line, sizeof(line), f))
		if (sscanf(line, "Pid: %d", &pid) == 1)
			break;
	if (f)
		fclose(f);
	else
		return -1;
	if (strncmp(line, "Pid:", 4) != 0)
		return -1;
	return pid > 0 ? pid : 0;
}

/* What a daemon before had stored and is of no use any more. */
static void forget(struct engine *eng, const struct attach_shelf *from)
{
	struct shelf *s = shelf_new(eng, from);

	shelf_drop(s);
}

static int restore(struct engine *eng, const struct attach_shelf *from, const json_t *j, pid_t pid,
		   struct error *e)
{
	struct attach_region regions[VM_REGIONS_MAX];
	struct attach_kept kept[SHELF_PIECES_MAX];
	struct attach_request req = {.pid = pid,
				     .uid = (uid_t)json_integer_value(json_object_get(j, "uid")),
				     .resume = true,
				     .regions = regions,
				     .kept = kept,
				     .shelf = from};
	struct attachment *att;
	json_t *item;
	size_t i;
	int r;

	json_array_foreach(json_object_get(j, "regions"), i, item)
		if (i == VM_REGIONS_MAX || !take_region(from, item, &regions[req.n_regions++]))
			return error_set(e, EUCLEAN, ERROR_ARGUMENT, "its RAM is described badly");
	for (unsigned int k = 0; k < from->n_pieces; k++) {
		const char *name = from->pieces[k].name;

		if (strcmp(name, PIECE_UFFD) != 0 && strcmp(name, PIECE_PROCESS) != 0 &&
		    strncmp(name, PIECE_RAM, strlen(PIECE_RAM)) != 0 &&
		    strncmp(name, REQUEST ":", strlen(REQUEST ":")) != 0)
			kept[req.n_kept++] = from->pieces[k];
	}
	if (!take_text(j, "vm", req.vm_name, sizeof(req.vm_name)) ||
	    !take_text(j, "uuid", req.uuid, sizeof(req.uuid)))
		return error_set(e, EUCLEAN, ERROR_ARGUMENT, "its name is damaged");
	req.uffd = fcntl(piece_fd(from, PIECE_UFFD), F_DUPFD_CLOEXEC, 0);
	req.pidfd = fcntl(piece_fd(from, PIECE_PROCESS), F_DUPFD_CLOEXEC, 0);
	if (req.uffd < 0 || req.pidfd < 0) {
		fd_close(&req.uffd);
		fd_close(&req.pidfd);
		return error_set(e, EBADF, ERROR_ARGUMENT,
				 "a descriptor of its process is missing");
	}
	r = engine_attach(eng, &req, &att, e);
	if (!r)
		engine_attachment_put(att); /* there is no connection */
	return r;
}

int engine_restore(struct engine *eng, const struct attach_shelf *from, struct error *e)
{
	pid_t pid = process_of(piece_fd(from, PIECE_PROCESS));
	json_t *j = read_request(from);
	int r;

	if (pid == 0 || !j) {
		/* Over; or its client was never told that it had attached. */
		forget(eng, from);
		json_decref(j);
		return error_set(e, ESRCH, ERROR_NOT_FOUND, "%s",
				 pid ? "nothing says what it is" : "its process has ended");
	}
	r = pid < 0 ? error_set(e, EBADF, ERROR_ARGUMENT, "no process is known")
		    : restore(eng, from, j, pid, e);
	json_decref(j);
	return r;
}
