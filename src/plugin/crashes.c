/* SPDX-License-Identifier: BSD-3-Clause */
/* crashes.c: which plugin a daemon crashed in, for the daemons after it. */
#include "plugin/crashes.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "base/fd.h"
#include "base/log.h"
#include "plugin/plugin.h"

/*
 * Theory of operation
 *
 * Every call into a plugin sets a mark in its thread (CRASH_MARK: two stores, so that the fault
 * path can afford it). The handler of deadly signals, which runs in the thread that crashed, writes
 * the mark into a page that is mapped from a file of the runtime folder, and lets the signal have
 * its way. The next daemon reads it there and counts: crashes in the same plugin follow each other
 * in a row unless the daemon had served for CRASHES_APART_S before the later one. A crash outside
 * of plugins ends the row, a regular end forgets everything; a death without a word (SIGKILL, or a
 * stack that overflowed) says nothing about any plugin and changes nothing.
 *
 * The file is the daemon's own (0600), and a wrong byte in it can do no more than put a plugin
 * aside. It survives the daemon, not the host's reboot.
 *
 * Threads: `lock` guards the file's content, except for `last`, which the handler writes once.
 */

#define MAGIC	  UINT64_C(0x3130485352434245) /* "EBCRSH01" */
#define ASIDE_MAX 16

struct crash_row {
	uint32_t kind, count;
	char name[PLUGIN_NAME_MAX];
	char hook[32];
};

struct crash_file {
	uint64_t magic;
	uint64_t started_s, died_s; /* CLOCK_BOOTTIME */
	int32_t signal;		    /* 0: no crash was noted */
	struct crash_row last;	    /* what it was in; count unused */
	struct crash_row row;	    /* the row that goes on */
	struct crash_row aside[ASIDE_MAX];
};

struct crashes {
	pthread_mutex_t lock;
	struct crash_file *file;
};

static const int deadly[] = {SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGABRT, SIGTRAP, SIGSYS};

_Thread_local struct crash_mark crash_mark;

/* What a signal handler knows has to be global. */
static struct crash_file *_Atomic noted;
static struct sigaction before[NSIG];

static uint64_t boot_s(void)
{
	struct timespec t;

	clock_gettime(CLOCK_BOOTTIME, &t);
	return (uint64_t)t.tv_sec;
}

/* Signal-safe. */
static void copy_name(char *to, size_t room, const char *from)
{
	size_t i = 0;

	for (; from && from[i] && i + 1 < room; i++)
		to[i] = from[i];
	to[i] = '\0';
}

static void on_crash(int sig, siginfo_t *info, void *context)
{
	struct crash_file *f = atomic_exchange(&noted, NULL);

	(void)context;
	if (f) {
		copy_name(f->last.name, sizeof(f->last.name), crash_mark.name);
		copy_name(f->last.hook, sizeof(f->last.hook), crash_mark.hook);
		f->last.kind = crash_mark.kind;
		f->died_s = boot_s();
		f->signal = sig;
	}
	sigaction(sig, &before[sig], NULL);
	/* A fault comes again by itself when we return, a signal that was sent does not. */
	if (info->si_code <= 0)
		raise(sig);
}

static bool is_same(const struct crash_row *r, enum crash_kind kind, const char *name)
{
	return r->kind == kind && kind && strncmp(r->name, name, sizeof(r->name)) == 0;
}

static struct crash_row *find(struct crash_file *f, enum crash_kind kind, const char *name)
{
	for (unsigned int i = 0; i < ASIDE_MAX; i++)
		if (is_same(&f->aside[i], kind, name))
			return &f->aside[i];
	return NULL;
}

static void put_aside(struct crash_file *f)
{
	struct crash_row *r = find(f, f->row.kind, f->row.name);

	for (unsigned int i = 0; i < ASIDE_MAX && !r; i++)
		if (!f->aside[i].kind)
			r = &f->aside[i];
	if (r)
		*r = f->row;
}

/* What the death of the daemon before means. */
static void judge(struct crash_file *f)
{
	uint64_t served_s = f->died_s > f->started_s ? f->died_s - f->started_s : 0;

	if (!f->signal)
		return;
	f->last.name[sizeof(f->last.name) - 1] = '\0';
	f->last.hook[sizeof(f->last.hook) - 1] = '\0';
	if (!f->last.kind || f->last.kind > CRASH_BACKEND) {
		log_warning("the daemon before died of signal %d", f->signal);
		f->row = (struct crash_row){0};
		return;
	}
	if (served_s >= CRASHES_APART_S || !is_same(&f->row, f->last.kind, f->last.name))
		f->row.count = 0;
	f->last.count = f->row.count + 1;
	f->row = f->last;
	log_warning("the daemon before died of signal %d in %s() of %s %s, after %llu s; that is "
		    "number %u in a row",
		    f->signal, f->row.hook, f->row.kind == CRASH_POLICY ? "policy" : "backend",
		    f->row.name, (unsigned long long)served_s, f->row.count);
	if (f->row.count >= CRASHES_ASIDE)
		put_aside(f);
}

static int map_file(const char *folder, struct crash_file **out)
{
	char path[PATH_MAX];
	FD_OWNED fd = -1;
	void *map;
	int r;

	snprintf(path, sizeof(path), "%s/crashes", folder);
	fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
	if (fd < 0)
		return -errno;
	/* Without memory behind it, the handler's write would be the next crash. */
	r = posix_fallocate(fd, 0, sizeof(struct crash_file));
	if (r)
		return -r;
	map = mmap(NULL, sizeof(struct crash_file), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (map == MAP_FAILED)
		return -errno;
	*out = map;
	return 0;
}

int crashes_open(const char *folder, struct crashes **out, struct error *e)
{
	struct sigaction action = {.sa_sigaction = on_crash,
				   .sa_flags = (int)(SA_SIGINFO | SA_ONSTACK)};
	struct crashes *c = calloc(1, sizeof(*c));
	int r = c ? map_file(folder, &c->file) : -ENOMEM;

	if (r) {
		free(c);
		return error_set(e, -r, ERROR_GENERIC, "%s/crashes: %s", folder, error_text(r));
	}
	pthread_mutex_init(&c->lock, NULL);
	if (c->file->magic == MAGIC)
		judge(c->file);
	else
		memset(c->file, 0, sizeof(*c->file));
	c->file->magic = MAGIC;
	c->file->signal = 0;
	c->file->last = (struct crash_row){0};
	c->file->started_s = c->file->died_s = boot_s();
	atomic_store(&noted, c->file);
	for (size_t i = 0; i < sizeof(deadly) / sizeof(deadly[0]); i++)
		sigaction(deadly[i], &action, &before[deadly[i]]);
	*out = c;
	return 0;
}

void crashes_close(struct crashes *c, bool forget)
{
	if (!c)
		return;
	for (size_t i = 0; i < sizeof(deadly) / sizeof(deadly[0]); i++)
		sigaction(deadly[i], &before[deadly[i]], NULL);
	atomic_store(&noted, NULL);
	if (forget)
		memset(c->file, 0, sizeof(*c->file));
	munmap(c->file, sizeof(*c->file));
	pthread_mutex_destroy(&c->lock);
	free(c);
}

unsigned int crashes_in_row(struct crashes *c, enum crash_kind kind, const char *name)
{
	const struct crash_row *r;
	unsigned int n;

	if (!c)
		return 0;
	pthread_mutex_lock(&c->lock);
	r = find(c->file, kind, name);
	n = r ? r->count : 0;
	pthread_mutex_unlock(&c->lock);
	return n;
}

void crashes_text(struct crashes *c, enum crash_kind kind, const char *name, char *buf,
		  uint64_t bytes)
{
	const struct crash_row *r;

	pthread_mutex_lock(&c->lock);
	r = find(c->file, kind, name);
	snprintf(buf, bytes, "%s %s put aside: %u daemons in a row crashed in it, last in %.31s()",
		 kind == CRASH_POLICY ? "policy" : "backend", name, r ? r->count : 0,
		 r ? r->hook : "?");
	pthread_mutex_unlock(&c->lock);
}

void crashes_forgive(struct crashes *c, enum crash_kind kind, const char *name)
{
	struct crash_row *r;

	if (!c)
		return;
	pthread_mutex_lock(&c->lock);
	r = find(c->file, kind, name);
	if (r)
		*r = (struct crash_row){0};
	if (is_same(&c->file->row, kind, name))
		c->file->row = (struct crash_row){0};
	pthread_mutex_unlock(&c->lock);
}
