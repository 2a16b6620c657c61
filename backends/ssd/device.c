/* SPDX-License-Identifier: BSD-3-Clause */
/* device.c: the file or block device: whose it is, its superblock and segment table. */
#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>
#include <xxhash.h>

#include "ssd.h"
#include "system.h"

/*
 * Theory of operation
 *
 * The lock: flock() on the descriptor that all I/O goes through. The kernel holds a descriptor as
 * long as I/O through it is in flight, so the lock of a daemon that was killed ends only after its
 * last write has landed: nobody who has the lock can be overwritten by a dead predecessor. Block
 * devices are opened O_EXCL as well, which keeps mounted ones out. As that takes a moment, and
 * udev looks at devices under a lock of its own, the lock is tried for two seconds.
 *
 * What is taken: a new or empty file, a device that begins with zeroes, or what has our magic
 * number. Anything else only with format=yes, which never erases something of ours, so it may stay
 * in the settings.
 *
 * Content belongs to VMs of this boot of the kernel. Found with another boot_id, or closed in good
 * order, all segments are free. Otherwise those with an owner are absent until that space comes
 * back, or the process that keeps its map is gone (keeper.c).
 *
 * Several machines must not use one device at the same time; no lock reaches that far. A device
 * that another machine has not closed is therefore refused without force=yes.
 */

#define LOCK_TRIES   400
#define LOCK_WAIT_US 5000

/* All of it or an error. */
static int read_all(int fd, void *buf, uint64_t bytes, uint64_t offset)
{
	for (uint64_t at = 0; at < bytes;) {
		ssize_t n = pread(fd, (char *)buf + at, bytes - at, (off_t)(offset + at));

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return n < 0 ? -errno : -EIO;
		at += (uint64_t)n;
	}
	return 0;
}

static int write_all(int fd, const void *buf, uint64_t bytes, uint64_t offset)
{
	for (uint64_t at = 0; at < bytes;) {
		ssize_t n = pwrite(fd, (const char *)buf + at, bytes - at, (off_t)(offset + at));

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return n < 0 ? -errno : -EIO;
		at += (uint64_t)n;
	}
	return 0;
}

/* The first line of a small file of the system; "" when there is none. */
static void read_line(const char *path, char *out, size_t bytes)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t n = fd < 0 ? 0 : read(fd, out, bytes - 1);

	if (fd >= 0)
		close(fd);
	out[n > 0 ? n : 0] = '\0';
	out[strcspn(out, "\n")] = '\0';
}

static uint64_t super_sum(const struct super_block *s)
{
	return XXH3_64bits(s, offsetof(struct super_block, sum));
}

static uint64_t table_blocks(const struct ssd *d)
{
	return (d->n_segs + TABLE_PER_BLOCK - 1) / TABLE_PER_BLOCK;
}

int device_write_super(struct ssd *d)
{
	d->super->sum = super_sum(d->super);
	return write_all(d->fd, d->super, BLOCK_BYTES, 0);
}

int device_write_table(struct ssd *d)
{
	/* Only the keeper leases, so what it has entered and not yet written names nothing that is
	 * in use; a copy under the lock, because frees change other entries of the block. */
	void *copy = aligned_alloc(BLOCK_BYTES, BLOCK_BYTES);
	int r = 0;

	if (!copy)
		return -ENOMEM;
	for (uint64_t b = 0; b < table_blocks(d) && !r; b++) {
		bool dirty;

		pthread_mutex_lock(&d->lock);
		dirty = d->table_dirty[b];
		d->table_dirty[b] = 0;
		if (dirty)
			memcpy(copy, d->table + b * TABLE_PER_BLOCK, BLOCK_BYTES);
		pthread_mutex_unlock(&d->lock);
		if (!dirty)
			continue;
		r = write_all(d->fd, copy, BLOCK_BYTES, (1 + b) * BLOCK_BYTES);
		if (r) {
			pthread_mutex_lock(&d->lock);
			d->table_dirty[b] = 1;
			pthread_mutex_unlock(&d->lock);
		}
	}
	free(copy);
	return r;
}

int device_discard(struct ssd *d, uint32_t seg, uint32_t n)
{
	uint64_t range[2] = {seg_offset(d, seg), (uint64_t)n * SEGMENT_BYTES};

	if (d->is_block)
		return ioctl(d->fd, BLKDISCARD, range) ? -errno : 0;
	return fallocate(d->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)range[0],
			 (off_t)range[1])
		       ? -errno
		       : 0;
}

static int open_path(struct ssd *d, char *err, uint64_t err_len)
{
	const char *path = d->options.path;
	struct stat st;
	int flags = O_RDWR | O_DIRECT | O_CLOEXEC | O_NOCTTY, tries = 0;

	if (stat(path, &st) == 0) {
		if (!S_ISREG(st.st_mode) && !S_ISBLK(st.st_mode))
			return fail(err, err_len, -EINVAL,
				    "%s is neither a file nor a block device", path);
		d->is_block = S_ISBLK(st.st_mode);
	} else if (errno != ENOENT) {
		return fail(err, err_len, -errno, "%s: %s", path, strerror(errno));
	}
	if (d->is_block)
		flags |= O_EXCL;
	else
		flags |= O_CREAT;
	do {
		d->fd = open(path, flags, 0600);
		/* Busy: mounted, or still in the hands of a dead daemon's last writes. */
	} while (d->fd < 0 && errno == EBUSY && ++tries < LOCK_TRIES && usleep(LOCK_WAIT_US) == 0);
	if (d->fd < 0 && errno == EBUSY)
		return fail(err, err_len, -EBUSY, "%s is in use: mounted, or another daemon's",
			    path);
	if (d->fd < 0 && errno == EINVAL)
		return fail(err, err_len, -EINVAL, "%s: its file system has no direct I/O", path);
	if (d->fd < 0)
		return fail(err, err_len, -errno, "%s: %s", path, strerror(errno));
	while (flock(d->fd, LOCK_EX | LOCK_NB)) {
		if (errno != EWOULDBLOCK || ++tries >= LOCK_TRIES)
			return fail(err, err_len, -EBUSY, "%s is in use by another backend", path);
		usleep(LOCK_WAIT_US);
	}
	if (fstat(d->fd, &st))
		return fail(err, err_len, -errno, "%s: %s", path, strerror(errno));
	if (d->is_block != S_ISBLK(st.st_mode))
		return fail(err, err_len, -EINVAL, "%s has changed just now", path);
	if (!d->is_block && (st.st_uid != geteuid() || (st.st_mode & 077)))
		return fail(err, err_len, -EPERM,
			    "%s will hold guests' memory: it must belong to the daemon's user, "
			    "with mode 0600",
			    path);
	return 0;
}

/* How many bytes there are to use, and the geometry that follows. */
static int measure(struct ssd *d, char *err, uint64_t err_len)
{
	uint64_t size = d->options.size, have;
	struct stat st;

	if (d->is_block) {
		if (ioctl(d->fd, BLKGETSIZE64, &have))
			return fail(err, err_len, -errno, "%s: its size: %s", d->options.path,
				    strerror(errno));
		if (size > have)
			return fail(err, err_len, -EINVAL, "%s has only %llu bytes",
				    d->options.path, (unsigned long long)have);
		size = size ? size : have;
	} else if (!size) {
		return fail(err, err_len, -EINVAL, "a file needs the option size");
	} else if (fstat(d->fd, &st)) {
		return fail(err, err_len, -errno, "%s: %s", d->options.path, strerror(errno));
	}
	if (size < 8 * (uint64_t)SEGMENT_BYTES)
		return fail(err, err_len, -EINVAL, "size must be at least 16M");
	d->n_segs = 0;
	d->data_offset = 0;
	if (size / SEGMENT_BYTES >= UINT32_MAX ||
	    size / BLOCK_BYTES > (UINT64_C(1) << PLACE_BLOCK_BITS))
		return fail(err, err_len, -EINVAL, "size is too large");
	d->n_segs = (uint32_t)(size / SEGMENT_BYTES);
	d->data_offset = ((1 + table_blocks(d)) * BLOCK_BYTES + SEGMENT_BYTES - 1) / SEGMENT_BYTES *
			 SEGMENT_BYTES;
	d->n_segs = (uint32_t)((size - d->data_offset) / SEGMENT_BYTES);
	if (!d->is_block && (uint64_t)st.st_size < size && ftruncate(d->fd, (off_t)size))
		return fail(err, err_len, -errno, "%s cannot have %llu bytes: %s", d->options.path,
			    (unsigned long long)size, strerror(errno));
	d->options.size = size;
	return 0;
}

static bool all_zero(const void *buf, size_t bytes)
{
	const char *p = buf;

	return !p[0] && memcmp(p, p + 1, bytes - 1) == 0;
}

static int format(struct ssd *d, char *err, uint64_t err_len)
{
	struct super_block *s = d->super;
	/* What was written today was written, whoever had it. */
	bool ours = s->magic == SUPER_MAGIC && s->budget_at_s;
	uint64_t left = ours ? s->budget_left : d->options.write_budget;
	uint64_t at = ours ? s->budget_at_s : (uint64_t)time(NULL);
	int r;

	memset(s, 0, BLOCK_BYTES);
	s->magic = SUPER_MAGIC;
	s->version = SUPER_VERSION;
	s->size_bytes = d->options.size;
	s->n_segs = d->n_segs;
	s->data_offset = d->data_offset;
	s->budget_left = left;
	s->budget_at_s = at;
	memset(d->table, 0, table_blocks(d) * BLOCK_BYTES);
	if (getrandom(s->id, sizeof(s->id), 0) != sizeof(s->id))
		return -EIO;
	/* The table first: a superblock promises a table behind it. */
	r = write_all(d->fd, d->table, table_blocks(d) * BLOCK_BYTES, BLOCK_BYTES);
	return r ? fail(err, err_len, r, "%s cannot be written: %s", d->options.path, strerror(-r))
		 : 0;
}

/* Makes segments absent that a space of this boot may still have something in. */
static void take_table(struct ssd *d)
{
	for (uint32_t i = 0; i < d->n_segs; i++) {
		struct table_entry *t = &d->table[i];

		d->segs[i].dirty = 1; /* who knows */
		if (!t->owner)
			continue;
		d->segs[i].state = SEG_ABSENT;
		bits_add(&d->used, i);
		d->n_free--;
		d->n_absent++;
	}
}

static int check_ours(struct ssd *d, const char *boot, const char *machine, bool *keep, char *err,
		      uint64_t err_len)
{
	const struct super_block *s = d->super;
	const char *path = d->options.path;

	if (s->version != SUPER_VERSION)
		return fail(err, err_len, -EINVAL, "%s is of another version of Ebb", path);
	if (s->sum != super_sum(s))
		return fail(err, err_len, -EUCLEAN,
			    "%s: its superblock is damaged; if nothing on it is needed any more, "
			    "erase its first 4 KiB",
			    path);
	if (strncmp(s->machine, machine, sizeof(s->machine)) != 0 && !s->closed &&
	    !d->options.force)
		return fail(err, err_len, -EBUSY,
			    "%s was not closed by the machine %.39s; when that one does not use it "
			    "any more, give force=yes",
			    path, s->machine);
	*keep = !s->closed && strncmp(s->boot, boot, sizeof(s->boot)) == 0 &&
		strncmp(s->machine, machine, sizeof(s->machine)) == 0;
	return 0;
}

static int load(struct ssd *d, char *err, uint64_t err_len)
{
	const char *path = d->options.path;
	char boot[sizeof(d->super->boot)], machine[sizeof(d->super->machine)];
	bool keep = false;
	int r = read_all(d->fd, d->super, BLOCK_BYTES, 0);

	if (r)
		return fail(err, err_len, r, "%s cannot be read: %s", path, strerror(-r));
	read_line("/proc/sys/kernel/random/boot_id", boot, sizeof(boot));
	read_line("/etc/machine-id", machine, sizeof(machine));
	if (d->super->magic == SUPER_MAGIC)
		r = check_ours(d, boot, machine, &keep, err, err_len);
	else if (!all_zero(d->super, BLOCK_BYTES) && !d->options.format)
		r = fail(err, err_len, -EEXIST,
			 "%s is not empty and not Ebb's; format=yes takes it, its content is lost",
			 path);
	if (r)
		return r;
	if (keep && (d->super->size_bytes != d->options.size || d->super->n_segs != d->n_segs ||
		     d->super->data_offset != d->data_offset))
		return fail(err, err_len, -EINVAL,
			    "%s holds memory of running VMs and has size %llu: give that", path,
			    (unsigned long long)d->super->size_bytes);
	if (keep) {
		r = read_all(d->fd, d->table, table_blocks(d) * BLOCK_BYTES, BLOCK_BYTES);
		if (r)
			return fail(err, err_len, r, "%s: its table cannot be read: %s", path,
				    strerror(-r));
		take_table(d);
		/* Nothing is changed yet: a daemon that hands over may still take it again. */
		return 0;
	}
	r = format(d, err, err_len);
	if (r)
		return r;
	memcpy(d->super->boot, boot, sizeof(boot));
	memcpy(d->super->machine, machine, sizeof(machine));
	d->super->closed = 0;
	r = device_write_super(d);
	return r ? fail(err, err_len, r, "%s cannot be written: %s", path, strerror(-r)) : 0;
}

int sparse_bits_init(struct bits *b, uint64_t n, void **memory)
{
	void *p = mmap(NULL, bits_bytes(n), PROT_READ | PROT_WRITE,
		       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (p == MAP_FAILED)
		return -errno;
	*memory = p;
	return bits_init(b, n, p);
}

void sparse_bits_destroy(struct bits *b, void *memory)
{
	if (memory)
		munmap(memory, bits_bytes(b->n));
}

int device_let_go(struct ssd *d)
{
	/* Registered with a ring, it would stay open, and locked. Nothing is in flight. */
	pthread_mutex_lock(&d->lock);
	for (struct channel *ch = d->channels; ch; ch = ch->next)
		io_uring_unregister_files(&ch->ring);
	pthread_mutex_unlock(&d->lock);
	close(d->fd);
	d->fd = -1;
	return 0;
}

int device_take_again(struct ssd *d)
{
	struct super_block *there = aligned_alloc(BLOCK_BYTES, BLOCK_BYTES);
	char why[256] = "";
	int r = there ? open_path(d, why, sizeof(why)) : -ENOMEM;

	if (!r)
		r = read_all(d->fd, there, BLOCK_BYTES, 0);
	if (!r && (there->magic != SUPER_MAGIC ||
		   memcmp(there->id, d->super->id, sizeof(there->id)) != 0))
		r = -ESTALE;
	free(there);
	pthread_mutex_lock(&d->lock);
	for (struct channel *ch = d->channels; ch && !r; ch = ch->next)
		r = io_uring_register_files(&ch->ring, &d->fd, 1);
	/* Whoever had it meanwhile may have written what it saw as free; we know better. */
	memset(d->table_dirty, 1, table_blocks(d));
	pthread_mutex_unlock(&d->lock);
	if (!r)
		r = device_write_table(d);
	if (!r)
		r = device_write_super(d);
	if (r)
		d->host->log(d->host->ctx, 0, "%s cannot be taken again: %s %s", d->options.path,
			     strerror(-r), why);
	return r;
}

int device_open(struct ssd *d, char *err, uint64_t err_len)
{
	uint64_t table_bytes;
	int r;

	d->fd = -1;
	if (!d->options.path[0])
		return fail(err, err_len, -EINVAL, "the option path is missing");
	r = open_path(d, err, err_len);
	if (!r)
		r = measure(d, err, err_len);
	if (r)
		return r;
	table_bytes = table_blocks(d) * BLOCK_BYTES;
	d->super = aligned_alloc(BLOCK_BYTES, BLOCK_BYTES);
	d->table = aligned_alloc(BLOCK_BYTES, table_bytes);
	d->table_dirty = calloc(table_blocks(d) + 1, 1);
	d->segs = calloc((size_t)d->n_segs + 1, sizeof(*d->segs));
	d->n_free = d->n_segs;
	if (!d->super || !d->table || !d->table_dirty || !d->segs)
		return -ENOMEM;
	memset(d->table, 0, table_bytes);
	r = sparse_bits_init(&d->used, d->n_segs, &d->used_memory);
	return r ? r : load(d, err, err_len);
}

void device_close(struct ssd *d)
{
	if (d->fd >= 0)
		close(d->fd);
	for (uint32_t i = 0; d->segs && i < d->n_segs; i++)
		free((void *)d->segs[i].rmap);
	sparse_bits_destroy(&d->used, d->used_memory);
	free(d->segs);
	free(d->table_dirty);
	free(d->table);
	free(d->super);
}
