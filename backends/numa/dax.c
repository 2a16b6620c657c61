/* SPDX-License-Identifier: BSD-3-Clause */
/* dax.c: a device whose memory is mapped (devdax), and whose each chunk of it is. */
#include "dax.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>
#define XXH_INLINE_ALL
#include <xxhash.h>

#include "system.h"

/*
 * Theory of operation
 *
 * The device is mapped as a whole, and is handed out in chunks of 2 MiB or more. Chunk 0 holds a
 * superblock and a table that says for each chunk whose it is: a plain store into it is seen by
 * whatever process opens the device next, so nothing has to be written out. What is in a chunk, and
 * which part of a space a chunk is, is no business of this file (../compressed/chunks.c).
 *
 * A chunk's entry names its owner before the owner's own memory names the chunk, and after it no
 * longer does. So a daemon that dies in between leaves a chunk that its owner does not know; the
 * owner finds it when it comes back. One that does not come back, because its process (that keeps
 * its memory) has ended, is found by sweep(), when chunks run short.
 *
 * What a VM had is wiped before its chunk counts as clean: the memory may outlive the machine's
 * power. A chunk that is not clean yet may be handed out: nobody reads what he has not written.
 *
 * Content belongs to VMs of this boot of the kernel. With another boot_id in the superblock nobody
 * owns anything, and everything that was owned is to be wiped.
 *
 * The lock: flock() on the descriptor; it keeps other daemons out, not other programs, of which a
 * device cannot tell. quiesce() lets go of it for the successor.
 *
 * Instead of a device a file is taken that is sealed against shrinking (memfd): a file that can
 * shrink would kill the daemon with a SIGBUS. All of its memory is taken at once, for the same
 * reason.
 *
 * Threads: any, under `lock`; base and geometry never change.
 */

#define DAX_MAGIC    UINT64_C(0x3178614462624531) /* "1EbbDax1" */
#define CHUNKS_MIN   8u
#define CHUNKS_MAX   65536u
#define CHUNK_SHIFT  21u /* at least */
#define TABLE_OFFSET 4096u
#define NOBODY	     UINT64_C(0) /* and clean */
#define WIPE	     UINT64_C(1) /* nobody's, to be wiped */
#define WIPE_BYTES   (UINT64_C(1) << 20)
#define SWEEP_NS     UINT64_C(1000000000)
#define LOCK_TRIES   400
#define LOCK_WAIT_US 5000

struct dax_super {
	uint64_t magic;
	uint64_t checksum; /* of what follows */
	uint8_t id[16];	   /* drawn when it was formatted */
	char boot_id[40];
	uint64_t bytes;
	uint32_t shift, n_chunks;
};

struct dax_entry {
	_Atomic uint64_t owner;
	uint32_t pid, pid_start; /* of the process that keeps the owner's memory; 0: not known */
};

static_assert(TABLE_OFFSET + CHUNKS_MAX * sizeof(struct dax_entry) <= 1u << CHUNK_SHIFT,
	      "the table is in chunk 0");

struct dax {
	int fd;
	bool locked;
	uint8_t *base;
	uint64_t bytes; /* mapped: whole chunks */
	unsigned int shift;
	uint32_t n_chunks;
	struct dax_super *super;
	struct dax_entry *table;

	pthread_mutex_t lock; /* all below */
	struct chunk_owner *owners;
	uint32_t n_clean, n_to_wipe;
	uint32_t next; /* where to look first */
	uint64_t sweep_at_ns;
	uint32_t wiping; /* the chunk that maintain() is at; 0: none */
	uint64_t wiped;	 /* bytes of it */
	bool wiper;	 /* a thread is at it */
};

/* ---- opening ---- */

static int read_line(const char *path, char *out, size_t room)
{
	FILE *f = fopen(path, "re");
	char *p;

	if (!f)
		return -errno;
	memset(out, 0, room);
	p = fgets(out, (int)room, f);
	fclose(f);
	if (!p)
		return -EIO;
	out[strcspn(out, "\n")] = '\0';
	return 0;
}

/* A number of the device's, from /sys. */
static int dax_number(dev_t dev, const char *what, uint64_t *out)
{
	char path[96], text[40], *end;
	int r;

	snprintf(path, sizeof(path), "/sys/dev/char/%u:%u/%s", major(dev), minor(dev), what);
	r = read_line(path, text, sizeof(text));
	if (r)
		return r;
	*out = strtoull(text, &end, 0);
	return end == text || *end ? -EINVAL : 0;
}

static bool is_dax(dev_t dev)
{
	char path[64], to[256];
	ssize_t n;

	snprintf(path, sizeof(path), "/sys/dev/char/%u:%u/subsystem", major(dev), minor(dev));
	n = readlink(path, to, sizeof(to) - 1);
	if (n <= 0)
		return false;
	to[n] = '\0';
	return strlen(to) > 4 && strcmp(to + strlen(to) - 4, "/dax") == 0;
}

/* How large it is and how mappings of it are to be aligned. */
static int measure(struct dax *d, const char *path, uint64_t *bytes, uint64_t *align, char *err,
		   uint64_t err_len)
{
	struct stat st;
	int seals;

	if (fstat(d->fd, &st))
		return fail(err, err_len, -errno, "%s: %s", path, strerror(errno));
	if (S_ISCHR(st.st_mode)) {
		if (!is_dax(st.st_rdev))
			return fail(err, err_len, -EINVAL, "%s is no devdax device", path);
		if (dax_number(st.st_rdev, "size", bytes))
			return fail(err, err_len, -EIO, "the size of %s is not known", path);
		/* Linux says it since 5.10. */
		if (dax_number(st.st_rdev, "align", align))
			*align = UINT64_C(1) << CHUNK_SHIFT;
		return 0;
	}
	seals = S_ISREG(st.st_mode) ? fcntl(d->fd, F_GET_SEALS) : -1;
	if (seals < 0 || !(seals & F_SEAL_SHRINK))
		return fail(err, err_len, -EINVAL,
			    "%s is neither a devdax device nor a file that is sealed against "
			    "shrinking",
			    path);
	*bytes = (uint64_t)st.st_size;
	*align = 4096;
	return 0;
}

static int lay_out(struct dax *d, const char *path, uint64_t bytes, uint64_t align, char *err,
		   uint64_t err_len)
{
	if (!align || align & (align - 1) || align > UINT64_C(1) << 30)
		return fail(err, err_len, -EINVAL, "%s has the alignment %llu, which is not usable",
			    path, (unsigned long long)align);
	d->shift = CHUNK_SHIFT;
	while (UINT64_C(1) << d->shift < align || bytes >> d->shift > CHUNKS_MAX)
		d->shift++;
	d->n_chunks = (uint32_t)(bytes >> d->shift);
	d->bytes = (uint64_t)d->n_chunks << d->shift;
	if (d->n_chunks < CHUNKS_MIN)
		return fail(err, err_len, -EINVAL,
			    "%s is too small: it has %llu MiB, and with the alignment %llu KiB at "
			    "least %llu MiB are needed",
			    path, (unsigned long long)(bytes >> 20),
			    (unsigned long long)(align >> 10),
			    (unsigned long long)((uint64_t)CHUNKS_MIN << d->shift >> 20));
	return 0;
}

static int take_lock(struct dax *d)
{
	for (int tries = 0; flock(d->fd, LOCK_EX | LOCK_NB); tries++) {
		if (errno != EWOULDBLOCK)
			return -errno;
		if (tries >= LOCK_TRIES)
			return -EBUSY;
		usleep(LOCK_WAIT_US);
	}
	d->locked = true;
	return 0;
}

static int open_device(struct dax *d, const char *path, char *err, uint64_t err_len)
{
	uint64_t bytes, align;
	int r;

	d->fd = open(path, O_RDWR | O_CLOEXEC);
	if (d->fd < 0 && errno == ENOENT)
		return fail(err, err_len, -ENOENT,
			    "%s is not there; `daxctl list` shows devices and their modes", path);
	if (d->fd < 0)
		return fail(err, err_len, -errno, "%s: %s", path, strerror(errno));
	r = measure(d, path, &bytes, &align, err, err_len);
	if (!r)
		r = lay_out(d, path, bytes, align, err, err_len);
	if (r)
		return r;
	r = take_lock(d);
	if (r)
		return fail(err, err_len, r, "%s is in use by another backend", path);
	/* A file's memory now, not at a touch that could not fail. EOPNOTSUPP: a device has it. */
	if (align == 4096 && fallocate(d->fd, 0, 0, (off_t)d->bytes) && errno != EOPNOTSUPP &&
	    errno != ENODEV)
		return fail(err, err_len, -errno, "%s: %s", path, strerror(errno));
	d->base = mmap(NULL, d->bytes, PROT_READ | PROT_WRITE, MAP_SHARED, d->fd, 0);
	if (d->base == MAP_FAILED) {
		d->base = NULL;
		return fail(err, err_len, -EIO, "%s cannot be mapped: %s", path, strerror(errno));
	}
	madvise(d->base, d->bytes, MADV_DONTDUMP);
	d->super = (struct dax_super *)(void *)d->base;
	d->table = (struct dax_entry *)(void *)(d->base + TABLE_OFFSET);
	return 0;
}

/* ---- the superblock ---- */

static uint64_t super_sum(const struct dax_super *s)
{
	return XXH3_64bits(s->id, sizeof(*s) - offsetof(struct dax_super, id));
}

static bool all_zero(const void *bytes, size_t n)
{
	const uint8_t *p = bytes;

	return p[0] == 0 && memcmp(p, p + 1, n - 1) == 0;
}

static void write_super(struct dax *d, const char *boot)
{
	struct dax_super s = {
		.magic = DAX_MAGIC, .bytes = d->bytes, .shift = d->shift, .n_chunks = d->n_chunks};

	memcpy(s.id, d->super->id, sizeof(s.id));
	memcpy(s.boot_id, boot, sizeof(s.boot_id));
	s.checksum = super_sum(&s);
	memcpy(d->super, &s, sizeof(s));
}

static int format(struct dax *d, const char *boot)
{
	memset(d->super, 0, sizeof(*d->super));
	memset(d->table, 0, d->n_chunks * sizeof(*d->table));
	if (getrandom(d->super->id, sizeof(d->super->id), 0) != sizeof(d->super->id))
		return -EIO;
	write_super(d, boot);
	return 0;
}

/* Another boot of the machine: nobody is left who owns anything. */
static void disown_all(struct dax *d, const char *boot)
{
	for (uint32_t i = 1; i < d->n_chunks; i++)
		if (d->table[i].owner != NOBODY)
			d->table[i] = (struct dax_entry){.owner = WIPE};
	write_super(d, boot);
}

static bool same_size(const struct dax *d)
{
	const struct dax_super *s = d->super;

	return s->bytes == d->bytes && s->shift == d->shift && s->n_chunks == d->n_chunks;
}

static int begin(struct dax *d, const char *path, int may_format, char *err, uint64_t err_len)
{
	const struct dax_super *s = d->super;
	char boot[sizeof(s->boot_id)];
	bool ours = s->magic == DAX_MAGIC, sound = ours && s->checksum == super_sum(s);
	int r;

	r = read_line("/proc/sys/kernel/random/boot_id", boot, sizeof(boot));
	if (r)
		return fail(err, err_len, r, "the kernel's boot_id cannot be read");
	if (!sound && !may_format && !all_zero(s, 4096))
		return ours ? fail(err, err_len, -EBADMSG,
				   "the superblock of %s is damaged; format=yes makes a new one, and "
				   "what VMs have there is lost",
				   path)
			    : fail(err, err_len, -EEXIST,
				   "%s is not empty and not Ebb's; format=yes takes it, its content "
				   "is lost",
				   path);
	if (sound && memcmp(s->boot_id, boot, sizeof(boot)) == 0) {
		if (same_size(d))
			return 0;
		return fail(err, err_len, -EINVAL,
			    "%s has another size than when VMs began to use it", path);
	}
	if (sound && same_size(d)) {
		disown_all(d, boot);
		return 0;
	}
	r = format(d, boot);
	return r ? fail(err, err_len, r, "no random numbers") : 0;
}

static void count(struct dax *d)
{
	d->n_clean = d->n_to_wipe = 0;
	for (uint32_t i = 1; i < d->n_chunks; i++) {
		d->n_clean += d->table[i].owner == NOBODY;
		d->n_to_wipe += d->table[i].owner == WIPE;
	}
}

int dax_open(const char *path, int format_it, struct dax **out, char *err, uint64_t err_len)
{
	struct dax *d = calloc(1, sizeof(*d));
	int r;

	if (!d)
		return -ENOMEM;
	d->fd = -1;
	pthread_mutex_init(&d->lock, NULL);
	r = open_device(d, path, err, err_len);
	if (!r)
		r = begin(d, path, format_it, err, err_len);
	if (r) {
		dax_close(d);
		return r;
	}
	d->next = 1;
	count(d);
	*out = d;
	return 0;
}

void dax_close(struct dax *d)
{
	if (!d)
		return;
	if (d->base)
		munmap(d->base, d->bytes);
	if (d->fd >= 0)
		close(d->fd);
	pthread_mutex_destroy(&d->lock);
	free(d);
}

int dax_quiesce(struct dax *d)
{
	if (flock(d->fd, LOCK_UN))
		return -errno;
	d->locked = false;
	return 0;
}

int dax_resume(struct dax *d)
{
	int r = d->locked ? 0 : take_lock(d);

	/* A successor that could not go on may have come as far as giving chunks back. */
	pthread_mutex_lock(&d->lock);
	count(d);
	pthread_mutex_unlock(&d->lock);
	return r;
}

struct place_device dax_device(const struct dax *d)
{
	struct place_device v = {.base = d->base, .shift = d->shift, .n_chunks = d->n_chunks};

	memcpy(v.id, d->super->id, sizeof(v.id));
	return v;
}

/* ---- owners ---- */

void dax_owner_enter(struct dax *d, struct chunk_owner *o)
{
	pthread_mutex_lock(&d->lock);
	o->next = d->owners;
	d->owners = o;
	pthread_mutex_unlock(&d->lock);
}

void dax_owner_leave(struct dax *d, struct chunk_owner *o)
{
	pthread_mutex_lock(&d->lock);
	for (struct chunk_owner **p = &d->owners; *p; p = &(*p)->next) {
		if (*p == o) {
			*p = o->next;
			break;
		}
	}
	pthread_mutex_unlock(&d->lock);
}

static bool is_here(const struct dax *d, uint64_t id)
{
	for (const struct chunk_owner *o = d->owners; o; o = o->next)
		if (o->id == id)
			return true;
	return false;
}

/* Frees what belongs to those who have ended. Under lock. */
static void sweep(struct dax *d)
{
	uint64_t last = NOBODY;
	bool ended = false;

	if (now_ns() < d->sweep_at_ns)
		return;
	d->sweep_at_ns = now_ns() + SWEEP_NS;
	for (uint32_t i = 1; i < d->n_chunks; i++) {
		struct dax_entry *e = &d->table[i];

		if (e->owner == NOBODY || e->owner == WIPE)
			continue;
		if (e->owner != last) {
			last = e->owner;
			ended = !is_here(d, last) && process_gone(e->pid, e->pid_start);
		}
		if (ended) {
			e->owner = WIPE;
			d->n_to_wipe++;
		}
	}
}

/* ---- chunks ---- */

/* A chunk in that state; one is there. Not the one that is being wiped. 0: none. */
static uint32_t look_for(struct dax *d, uint64_t state)
{
	for (uint32_t n = 1; n < d->n_chunks; n++) {
		uint32_t i = d->next;

		d->next = d->next + 1 < d->n_chunks ? d->next + 1 : 1;
		if (d->table[i].owner == state && i != d->wiping)
			return i;
	}
	return 0;
}

int dax_take(struct dax *d, const struct chunk_owner *o, uint32_t *chunk)
{
	uint32_t i = 0;

	pthread_mutex_lock(&d->lock);
	if (!d->n_clean && !d->n_to_wipe)
		sweep(d);
	if (d->n_clean && (i = look_for(d, NOBODY)))
		d->n_clean--;
	else if (d->n_to_wipe && (i = look_for(d, WIPE)))
		d->n_to_wipe--;
	if (i) {
		d->table[i].pid = o->pid;
		d->table[i].pid_start = o->pid_start;
		d->table[i].owner = o->id;
	}
	pthread_mutex_unlock(&d->lock);
	if (!i)
		return -ENOSPC;
	*chunk = i;
	return 0;
}

static uint8_t *content(const struct dax *d, uint32_t chunk)
{
	return d->base + ((uint64_t)chunk << d->shift);
}

void dax_give(struct dax *d, uint32_t chunk, int wipe_now)
{
	/* It is still its owner's meanwhile. */
	if (wipe_now)
		memset(content(d, chunk), 0, UINT64_C(1) << d->shift);
	pthread_mutex_lock(&d->lock);
	d->table[chunk].owner = wipe_now ? NOBODY : WIPE;
	if (wipe_now)
		d->n_clean++;
	else
		d->n_to_wipe++;
	pthread_mutex_unlock(&d->lock);
}

int dax_is(const struct dax *d, uint32_t chunk, uint64_t owner_id)
{
	return chunk && chunk < d->n_chunks && d->table[chunk].owner == owner_id;
}

int dax_maintain(struct dax *d)
{
	uint64_t bytes = UINT64_C(1) << d->shift, from;
	int more;

	pthread_mutex_lock(&d->lock);
	if (d->wiper || !(d->wiping || (d->n_to_wipe && (d->wiping = look_for(d, WIPE))))) {
		pthread_mutex_unlock(&d->lock);
		return 0;
	}
	d->wiper = true;
	from = d->wiped;
	pthread_mutex_unlock(&d->lock);

	memset(content(d, d->wiping) + from, 0, WIPE_BYTES);

	pthread_mutex_lock(&d->lock);
	d->wiped += WIPE_BYTES;
	if (d->wiped == bytes) {
		d->table[d->wiping].owner = NOBODY;
		d->n_to_wipe--;
		d->n_clean++;
		d->wiping = 0;
		d->wiped = 0;
	}
	d->wiper = false;
	more = d->wiping || d->n_to_wipe;
	pthread_mutex_unlock(&d->lock);
	return more;
}
