/* SPDX-License-Identifier: BSD-3-Clause */
/* attachment.c: taking a process's RAM under management, and letting go when it exits. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/fault_point.h"
#include "base/log.h"
#include "engine/internal.h"
#include "engine/shelf.h"
#include "engine/takeover.h"
#include "engine/thp.h"
#include "engine/vm_record.h"
#include "sys/memfd.h"
#include "sys/pagemap.h"
#include "sys/uffd.h"

/*
 * Theory of operation
 *
 * Attaching: check everything that can be checked without touching the client; make the blocks
 * and their tables; register all ranges (from here on the client's faults wait for us); find out
 * which pages are there already; publish; let the fault workers watch. A failure at any step
 * undoes the steps before it. Nothing is evicted before the first look for foreign mappings.
 *
 * The primary brings the VM into being; a secondary joins the VM whose memfd inodes its regions
 * have. When the primary's process exits the VM is over. When a secondary exits its mappings are
 * taken out of the blocks.
 */

uint64_t attachment_features(const struct engine *eng)
{
	uint64_t want = UFFD_FEATURE_PAGEFAULT_FLAG_WP | UFFD_FEATURE_WP_HUGETLBFS_SHMEM |
			UFFD_FEATURE_MISSING_SHMEM | UFFD_FEATURE_MISSING_HUGETLBFS |
			UFFD_FEATURE_MINOR_SHMEM | UFFD_FEATURE_MINOR_HUGETLBFS |
			UFFD_FEATURE_THREAD_ID;

	/* No events: REMOVE tells nothing on memfds that the entry and the fault do not tell, and
	 * makes the client's madvise() wait for us. */
	return want & eng->features.uffd_features;
}

static void attachment_free(struct attachment *att)
{
	if (!att)
		return;
	if (att->stand_in)
		orphan_unmap(att);
	if (att->uffd >= 0)
		close(att->uffd);
	if (att->pidfd >= 0)
		close(att->pidfd);
	if (att->pagemap_fd >= 0)
		close(att->pagemap_fd);
	pthread_mutex_destroy(&att->client_lock);
	free(att);
}

void attachment_unref(struct attachment *att)
{
	struct vm *vm;

	if (!att || atomic_fetch_sub(&att->refs, 1) != 1)
		return;
	vm = att->vm;
	attachment_free(att);
	vm_put(vm);
}

static struct attachment *attachment_new(struct engine *eng, struct attach_request *req)
{
	struct attachment *att = calloc(1, sizeof(*att));

	if (!att)
		return NULL;
	att->uffd = fd_take(&req->uffd);
	att->pidfd = fd_take(&req->pidfd);
	att->pagemap_fd = -1;
	att->pid = req->pid;
	att->uid = req->uid;
	att->secondary = req->secondary;
	att->ops = req->ops;
	att->client = req->client;
	att->zaps = req->ops && req->ops->zap;
	att->serial = atomic_fetch_add(&eng->serial, 1) + 1;
	pthread_mutex_init(&att->client_lock, NULL);
	return att;
}

/*
 * A file is of one VM at most: two that evict from the same one would each take the other's pages
 * for discarded. So it is claimed before anything of it is looked at, and given back last.
 */
static struct ram_file *find_file(struct vm *vm, dev_t dev, ino_t ino)
{
	for (unsigned int i = 0; i < vm->n_files; i++)
		if (vm->files[i].dev == dev && vm->files[i].ino == ino)
			return &vm->files[i];
	return NULL;
}

static void release_file(struct vm *vm, dev_t dev, ino_t ino)
{
	struct ram_file *f;

	pthread_mutex_lock(&vm->eng->lock);
	f = find_file(vm, dev, ino);
	if (f && !--f->regions)
		*f = vm->files[--vm->n_files];
	pthread_mutex_unlock(&vm->eng->lock);
}

/* Claims a region's file. Under engine.lock. */
static int claim_file(struct vm *vm, const struct attach_region *reg, struct error *e)
{
	struct memfd_info info;
	struct ram_file *f;

	if (memfd_info(reg->memfd, &info))
		return 0; /* said better by check_region() */
	for (struct vm *other = vm->eng->vms; other; other = other->next)
		if (other != vm && find_file(other, info.dev, info.ino))
			return error_set(e, EBUSY, ERROR_IN_USE,
					 "region %s: its memfd belongs to VM %s already (attach as "
					 "a secondary?)",
					 reg->id, other->name);
	f = find_file(vm, info.dev, info.ino);
	if (!f && vm->n_files == VM_REGIONS_MAX)
		return error_set(e, ENOSPC, ERROR_LIMIT, "no more than %d RAM files in a VM",
				 VM_REGIONS_MAX);
	if (!f) {
		f = &vm->files[vm->n_files++];
		*f = (struct ram_file){.dev = info.dev, .ino = info.ino};
	}
	f->regions++;
	return 0;
}

/* A reference to the VM that has the region's file, if it can be joined. */
static struct vm *vm_with_file(struct engine *eng, const struct attach_region *reg)
{
	struct vm *found = NULL;
	struct memfd_info info;

	if (memfd_info(reg->memfd, &info))
		return NULL; /* said better later */
	pthread_mutex_lock(&eng->lock);
	for (struct vm *vm = eng->vms; vm && !found; vm = vm->next)
		if (vm_is_named(vm) && find_file(vm, info.dev, info.ino)) {
			found = vm;
			vm_ref(vm);
		}
	pthread_mutex_unlock(&eng->lock);
	return found;
}

static int check_region(struct engine *eng, const struct attach_region *reg,
			struct memfd_info *info, struct error *e)
{
	int r = memfd_info(reg->memfd, info);

	if (r)
		return error_set(e, -r, ERROR_ARGUMENT,
				 "region %s: its memfd is no file of tmpfs or hugetlbfs", reg->id);
	if (!info->writable)
		return error_set(e, EACCES, ERROR_ARGUMENT,
				 "region %s: its memfd is sealed against writing or read-only, so "
				 "pages could not be taken out of it",
				 reg->id);
	if (info->page_bytes != 4096 && info->page_bytes != UNIT_MAX_BYTES)
		return error_set(e, ENOTSUP, ERROR_UNSUPPORTED,
				 "region %s: huge pages of %u bytes are not supported", reg->id,
				 info->page_bytes);
	if (reg->page_size != info->page_bytes)
		return error_set(e, EINVAL, ERROR_ARGUMENT,
				 "region %s: page_size %u, but its memfd has pages of %u bytes",
				 reg->id, reg->page_size, info->page_bytes);
	if (reg->size == 0 || reg->size % reg->page_size || reg->host_addr % reg->page_size ||
	    reg->memfd_offset % reg->page_size || reg->host_addr + reg->size < reg->host_addr ||
	    reg->memfd_offset + reg->size < reg->memfd_offset)
		return error_set(
			e, EINVAL, ERROR_ARGUMENT,
			"region %s: address, offset and size must be multiples of its page "
			"size and not wrap around",
			reg->id);
	if (reg->memfd_offset + reg->size > info->size)
		return error_set(e, EINVAL, ERROR_ARGUMENT,
				 "region %s reaches beyond the end of its memfd", reg->id);
	if (info->page_bytes == 4096 ? !eng->features.wp_shmem : !eng->features.wp_hugetlb)
		return error_set(e, ENOTSUP, ERROR_UNSUPPORTED,
				 "this kernel has no write protection for this kind of memory");
	return 0;
}

/*
 * Registered MINOR, an access to a page that is in the cache and not in the page table comes to
 * us. That is what finds zeroes that somebody else has put into a hole, before the guest sees them:
 * a process that maps the RAM unattached and reads what is evicted, or the kernel, which leaves a
 * part of a larger folio cached, zeroed, when it was punched. It costs a round trip to us for each
 * page that the tracker has cleared, so memfds of small pages, which nobody else can open, are
 * registered so only when somebody is found to map them nevertheless (attachment_watch_cache()).
 * (Units of transparent huge pages have a way of their own: see thp.c.)
 */
static bool minor_wanted(const struct engine *eng, const struct block *b,
			 const struct memfd_info *info)
{
	if (b->kind == BLOCK_HUGETLB)
		return eng->features.uffd_features & UFFD_FEATURE_MINOR_HUGETLBFS;
	return b->kind == BLOCK_SHMEM && eng->features.minor_shmem &&
	       (eng->features.shmem_thp || eng->features.shmem_thp_advised || info->named);
}

/* A block and its table for one region; not yet registered. Under vm.lock. */
static int block_new(struct vm *vm, const struct attach_region *reg, const struct memfd_info *info,
		     pid_t pid, struct block **out, struct error *e)
{
	struct block *b = calloc(1, sizeof(*b));
	struct store_memory *table;
	char name[64];
	bool found;
	int r;

	if (!b)
		return error_set(e, ENOMEM, ERROR_GENERIC, "out of memory");
	pthread_mutex_init(&b->pin_lock, NULL);
	b->vm = vm;
	snprintf(b->id, sizeof(b->id), "%s", reg->id);
	b->kind = info->page_bytes != 4096	   ? BLOCK_HUGETLB
		  : !thp_suits(vm->eng, reg, pid)  ? BLOCK_SHMEM
		  : vm->eng->config.thp_kept_whole ? BLOCK_THP
						   : BLOCK_MIXED;
	b->minor = minor_wanted(vm->eng, b, info);
	b->dev = info->dev;
	b->ino = info->ino;
	b->memfd_offset = reg->memfd_offset;
	b->bytes = reg->size;
	b->guest_addr = reg->guest_addr;
	b->unit_shift = block_is_small(b) ? 12 : 21;
	if (!block_is_small(b))
		fault_expect_huge(vm->eng);
	b->units = reg->size >> b->unit_shift;
	b->first_unit = (atomic_load(&vm->units) + 63) / 64 * 64;
	b->memfd = fcntl(reg->memfd, F_DUPFD_CLOEXEC, 0);
	if (thp_block_init(b)) {
		r = error_set(e, ENOMEM, ERROR_GENERIC, "out of memory");
		goto fail;
	}
	if (b->memfd < 0) {
		r = error_set(e, errno, ERROR_LIMIT, "out of descriptors");
		goto fail;
	}
	/* Numbered, because an id may come again after its block was unplugged. */
	snprintf(name, sizeof(name), "table:%u", vm->tables_made++);
	r = vm_store_open(vm, name, page_table_bytes(b->units), &table, &found);
	if (r) {
		error_set(e, -r, ERROR_GENERIC, "region %s: no memory for its page table: %s",
			  reg->id, error_text(r));
		goto fail;
	}
	snprintf(b->table_name, sizeof(b->table_name), "%s", name);
	page_table_init(&b->table, table->addr, b->units);
	*out = b;
	return 0;
fail:
	block_free(b);
	return r;
}

/* A block and its table as the record has them; not yet registered. Under vm.lock. */
static int block_adopt(struct vm *vm, const struct attach_region *reg,
		       const struct memfd_info *info, const struct record_block *rb,
		       struct block **out, struct error *e)
{
	struct store_memory *table = NULL;
	struct block *b;

	for (unsigned int i = 0; i < vm->n_stores; i++)
		if (strncmp(vm->stores[i].name, rb->table, STORE_NAME_MAX) == 0)
			table = &vm->stores[i];
	if (rb->dev != info->dev || rb->ino != info->ino || rb->memfd_offset != reg->memfd_offset ||
	    rb->bytes != reg->size || rb->kind > BLOCK_MIXED ||
	    (rb->kind == BLOCK_MIXED && reg->size % EXTENT_BYTES) ||
	    (rb->kind == BLOCK_HUGETLB) != (info->page_bytes != 4096))
		return error_set(e, EINVAL, ERROR_ARGUMENT,
				 "region %s is not the one that the record tells of", reg->id);
	b = calloc(1, sizeof(*b));
	if (!b)
		return error_set(e, ENOMEM, ERROR_GENERIC, "out of memory");
	pthread_mutex_init(&b->pin_lock, NULL);
	b->vm = vm;
	snprintf(b->id, sizeof(b->id), "%s", reg->id);
	snprintf(b->table_name, sizeof(b->table_name), "%.63s", rb->table);
	b->kind = (enum block_kind)rb->kind;
	b->minor = rb->minor;
	b->dev = info->dev;
	b->ino = info->ino;
	b->memfd_offset = reg->memfd_offset;
	b->bytes = reg->size;
	b->guest_addr = reg->guest_addr;
	b->unit_shift = block_is_small(b) ? 12 : 21;
	if (!block_is_small(b))
		fault_expect_huge(vm->eng);
	b->units = reg->size >> b->unit_shift;
	b->first_unit = rb->first_unit;
	b->memfd = fcntl(reg->memfd, F_DUPFD_CLOEXEC, 0);
	if (thp_block_init(b)) {
		block_free(b);
		return error_set(e, ENOMEM, ERROR_GENERIC, "out of memory");
	}
	if (b->memfd < 0 || !table || page_table_open(&b->table, table->addr, table->bytes) ||
	    b->table.units != b->units || rb->first_unit + b->units > atomic_load(&vm->units)) {
		block_free(b);
		return error_set(e, EUCLEAN, ERROR_ARGUMENT,
				 "region %s: its page table is missing or damaged", reg->id);
	}
	*out = b;
	return 0;
}

static struct mapping *mapping_new(struct attachment *att, struct block *b, uint64_t host_addr,
				   uint64_t first_unit, uint64_t units)
{
	struct mapping *m = calloc(1, sizeof(*m));

	if (m)
		*m = (struct mapping){.att = att,
				      .block = b,
				      .host_addr = host_addr,
				      .first_unit = first_unit,
				      .units = units};
	return m;
}

static int register_as(struct mapping *m, bool minor)
{
	uint64_t modes = UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_WP;

	/* See thp.c. Of mixed ones only the primary's is registered by extents. */
	if (m->block->kind == BLOCK_THP ||
	    (m->block->kind == BLOCK_MIXED && !atomic_load(&m->block->mappings[0]) &&
	     atomic_load(&m->block->splits) < block_extents(m->block)))
		modes = UFFDIO_REGISTER_MODE_MISSING;
	else if (m->block->kind == BLOCK_MIXED)
		minor = true;
	if (minor)
		modes |= UFFDIO_REGISTER_MODE_MINOR;
	return uffd_register(m->att->uffd, m->host_addr, m->units << m->block->unit_shift, modes);
}

void attachment_watch_cache(struct vm *vm)
{
	pthread_rwlock_rdlock(&vm->structure);
	pthread_mutex_lock(&vm->lock);
	for (unsigned int i = 0; i < atomic_load(&vm->n_blocks); i++) {
		struct block *b = atomic_load(&vm->blocks[i]);
		int r = 0;

		if (!b || b->kind != BLOCK_SHMEM || atomic_load(&b->minor) ||
		    !vm->eng->features.minor_shmem)
			continue;
		/* What joins from now on is registered so too. */
		atomic_store(&b->minor, true);
		for (unsigned int k = 0; k < atomic_load(&b->n_mappings); k++) {
			struct mapping *m = atomic_load(&b->mappings[k]);

			if (m && !m->att->stand_in)
				r = register_as(m, true) ? -1 : r;
		}
		/* It is looked for again from time to time, and then this is tried again. */
		if (r)
			atomic_store(&b->minor, false);
		else if (vm->keep)
			vm_record_write(vm);
	}
	pthread_mutex_unlock(&vm->lock);
	pthread_rwlock_unlock(&vm->structure);
}

static int register_mapping(struct mapping *m, struct error *e)
{
	int r = register_as(m, m->block->minor);

	if (r == -EBUSY)
		return error_set(e, EBUSY, ERROR_BUSY,
				 "region %s has a userfaultfd already (postcopy migration or a "
				 "background snapshot?)",
				 m->block->id);
	if (r)
		return error_set(e, -r, ERROR_ARGUMENT,
				 "region %s: its range cannot be registered: %s", m->block->id,
				 r == -EINVAL ? "nothing, or no shared memory, is mapped there"
					      : error_text(r));
	return 0;
}

/* hugetlbfs does not tell what is in its cache: a CONTINUE finds it, or a hole. */
static bool huge_is_cached(struct mapping *m, uint64_t unit)
{
	int64_t r =
		uffd_continue(m->att->uffd, mapping_addr(m, unit), block_unit_bytes(m->block), 0);

	return r > 0 || r == -EEXIST;
}

/* Finds out what is resident. The ranges are registered: nothing new comes without a fault. */
static void find_resident(struct block *b)
{
	uint64_t start, stop, at = b->memfd_offset, end = b->memfd_offset + b->bytes;
	struct mapping *m = atomic_load(&b->mappings[0]);
	uint64_t resident = 0;

	if (b->kind != BLOCK_HUGETLB) {
		while (memfd_next_data(b->memfd, at, end, &start, &stop)) {
			uint64_t first = (start - b->memfd_offset) >> b->unit_shift;
			uint64_t last = (stop - b->memfd_offset - 1) >> b->unit_shift;

			/* A unit that is there in part counts as there: its holes read as zero. */
			page_table_set_run(&b->table, first, last - first + 1, PE_RESIDENT);
			resident += last - first + 1;
			at = b->memfd_offset + ((last + 1) << b->unit_shift);
		}
	} else {
		for (uint64_t u = 0; m && u < b->units; u++) {
			uint64_t bit = 0, addr = mapping_addr(m, u);

			/* What the VMM has mapped is there, and left alone. */
			pagemap_present(m->att->pagemap_fd, addr, addr + block_unit_bytes(b),
					block_unit_bytes(b), &bit);
			if (!(bit & 1) && !huge_is_cached(m, u))
				continue;
			page_table_set_run(&b->table, u, 1, PE_RESIDENT);
			resident++;
		}
	}
	atomic_fetch_add(&b->vm->resident, (int64_t)(resident << b->unit_shift));
}

/* Puts a mapping into the first free slot from `first` on; slot 0 of a block is its primary's. */
static int add_to(_Atomic(struct mapping *) *list, _Atomic unsigned int *n, unsigned int first,
		  unsigned int max, struct mapping *m)
{
	for (unsigned int i = first; i < max; i++) {
		if (atomic_load(&list[i]))
			continue;
		atomic_store_explicit(&list[i], m, memory_order_release);
		if (i >= atomic_load(n))
			atomic_store_explicit(n, i + 1, memory_order_release);
		return 0;
	}
	return -ENOSPC;
}

static bool has_room(_Atomic(struct mapping *) *list, unsigned int first, unsigned int max)
{
	for (unsigned int i = first; i < max; i++)
		if (!atomic_load(&list[i]))
			return true;
	return false;
}

/* Makes block, table, registration and mapping of one region of the primary. Under vm.lock. */
int attachment_add_block(struct attachment *att, const struct attach_region *reg, struct error *e)
{
	struct vm *vm = att->vm;
	unsigned int n = atomic_load(&vm->n_blocks);
	struct memfd_info info;
	struct mapping *m;
	struct block *b = NULL;
	int r = check_region(vm->eng, reg, &info, e);

	if (r)
		return r;
	if (n == VM_REGIONS_MAX || !has_room(att->mappings, 0, VM_REGIONS_MAX))
		return error_set(e, ENOSPC, ERROR_LIMIT,
				 "no more than %d RAM blocks in a VM's life", VM_REGIONS_MAX);
	for (unsigned int i = 0; i < n; i++) {
		b = atomic_load(&vm->blocks[i]);
		if (!b || atomic_load(&b->gone))
			continue;
		if (strcmp(b->id, reg->id) == 0)
			return error_set(e, EEXIST, ERROR_EXISTS, "there is a region %s already",
					 reg->id);
		if (b->dev == info.dev && b->ino == info.ino &&
		    reg->memfd_offset < b->memfd_offset + b->bytes &&
		    b->memfd_offset < reg->memfd_offset + reg->size)
			return error_set(e, EEXIST, ERROR_ARGUMENT,
					 "region %s overlaps region %s in its memfd", reg->id,
					 b->id);
	}
	r = block_new(vm, reg, &info, att->pid, &b, e);
	if (r)
		return r;
	m = mapping_new(att, b, reg->host_addr, 0, b->units);
	r = m ? register_mapping(m, e) : error_set(e, ENOMEM, ERROR_GENERIC, "out of memory");
	if (r) {
		vm_store_close(vm, b->table_name);
		block_free(b);
		free(m);
		return r;
	}
	add_to(b->mappings, &b->n_mappings, 0, BLOCK_MAPPINGS_MAX, m);
	find_resident(b);
	atomic_store(&vm->units, b->first_unit + b->units);
	atomic_store_explicit(&vm->blocks[n], b, memory_order_release);
	atomic_store_explicit(&vm->n_blocks, n + 1, memory_order_release);
	add_to(att->mappings, &att->n_mappings, 0, VM_REGIONS_MAX, m);
	return 0;
}

/* Transparent huge pages that two processes map cannot be taken back: see thp.c. */
static bool thp_mapped_twice(struct vm *vm)
{
	for (unsigned int i = 0; i < atomic_load(&vm->n_blocks); i++) {
		struct block *b = atomic_load(&vm->blocks[i]);

		if (!b || !b->split || atomic_load(&b->gone))
			continue;
		for (unsigned int k = 1; k < BLOCK_MAPPINGS_MAX; k++)
			if (atomic_load(&b->mappings[k]))
				return true;
	}
	return false;
}

int attachment_adopt_block(struct attachment *att, const struct attach_region *reg,
			   const struct record_block *rb, struct block **out, struct error *e)
{
	struct vm *vm = att->vm;
	unsigned int n = atomic_load(&vm->n_blocks);
	struct memfd_info info;
	struct mapping *m;
	struct block *b = NULL;
	int r = check_region(vm->eng, reg, &info, e);

	if (!r && n == VM_REGIONS_MAX)
		r = error_set(e, ENOSPC, ERROR_LIMIT, "too many RAM blocks");
	if (!r)
		r = block_adopt(vm, reg, &info, rb, &b, e);
	if (r)
		return r;
	/* Nobody knows any more which of its extents are registered for what: all for everything.
	 */
	if (b->kind == BLOCK_MIXED)
		thp_set_all_split(b);
	m = mapping_new(att, b, reg->host_addr, 0, b->units);
	r = m ? register_mapping(m, e) : error_set(e, ENOMEM, ERROR_GENERIC, "out of memory");
	if (r) {
		block_free(b);
		free(m);
		return r;
	}
	add_to(b->mappings, &b->n_mappings, 0, BLOCK_MAPPINGS_MAX, m);
	atomic_store_explicit(&vm->blocks[n], b, memory_order_release);
	atomic_store_explicit(&vm->n_blocks, n + 1, memory_order_release);
	add_to(att->mappings, &att->n_mappings, 0, VM_REGIONS_MAX, m);
	*out = b;
	return 0;
}

/*
 * One more mapping of blocks that are there: a region of a secondary, or a second mapping in the
 * primary's own process. It may map a part of a block, or several blocks of one file. No eviction
 * is under way. Under vm.lock.
 */
static int add_mapping(struct attachment *att, const struct attach_region *reg, struct error *e)
{
	struct vm *vm = att->vm;
	struct memfd_info info;
	bool any = false;
	int r = check_region(vm->eng, reg, &info, e);

	if (r)
		return r;
	for (unsigned int i = 0; i < atomic_load(&vm->n_blocks); i++) {
		struct block *b = atomic_load(&vm->blocks[i]);
		uint64_t lo, hi;
		struct mapping *m;

		if (!b || atomic_load(&b->gone) || b->dev != info.dev || b->ino != info.ino)
			continue;
		lo = reg->memfd_offset > b->memfd_offset ? reg->memfd_offset : b->memfd_offset;
		hi = reg->memfd_offset + reg->size;
		if (hi > b->memfd_offset + b->bytes)
			hi = b->memfd_offset + b->bytes;
		if (lo >= hi)
			continue;
		if ((lo - b->memfd_offset) % block_unit_bytes(b) || (hi - lo) % block_unit_bytes(b))
			return error_set(e, ENOTSUP, ERROR_UNSUPPORTED,
					 "region %s maps huge pages of region %s in part", reg->id,
					 b->id);
		/* Before anything is published: it could not be taken back without a barrier. */
		if (!has_room(b->mappings, 1, BLOCK_MAPPINGS_MAX) ||
		    !has_room(att->mappings, 0, VM_REGIONS_MAX))
			return error_set(e, ENOSPC, ERROR_LIMIT, "too many mappings of region %s",
					 b->id);
		m = mapping_new(att, b, reg->host_addr + (lo - reg->memfd_offset),
				(lo - b->memfd_offset) >> b->unit_shift,
				(hi - lo) >> b->unit_shift);
		if (!m)
			return error_set(e, ENOMEM, ERROR_GENERIC, "out of memory");
		snprintf(m->id, sizeof(m->id), "%s", reg->id);
		/* Registered before it is published: an eviction under way may have protected only
		 * the other mappings, so eviction is suspended while a secondary joins. */
		r = register_mapping(m, e);
		if (r) {
			free(m);
			return r;
		}
		add_to(b->mappings, &b->n_mappings, 1, BLOCK_MAPPINGS_MAX, m);
		add_to(att->mappings, &att->n_mappings, 0, VM_REGIONS_MAX, m);
		any = true;
	}
	if (thp_mapped_twice(vm))
		vm_suspend(vm, SUSPEND_TWICE, true);
	if (!any)
		return error_set(e, ENOENT, ERROR_NOT_FOUND,
				 "region %s: no RAM block of VM %s is in its memfd", reg->id,
				 vm->name);
	return 0;
}

static int add_attachment(struct vm *vm, struct attachment *att, struct error *e)
{
	int r = 0;

	pthread_mutex_lock(&vm->lock);
	if (vm->over || (att->secondary && atomic_load(&vm->restoring)))
		r = error_set(e, ESRCH, ERROR_NOT_FOUND, "VM %s is being detached", vm->name);
	for (unsigned int i = 0; i <= VM_ATTACH_MAX && !r; i++) {
		if (i == VM_ATTACH_MAX)
			r = error_set(e, ENOSPC, ERROR_LIMIT,
				      "no more than %d processes may map one VM's RAM",
				      VM_ATTACH_MAX);
		else if (!atomic_load(&vm->attachments[i])) {
			atomic_store(&vm->attachments[i], att);
			break;
		}
	}
	pthread_mutex_unlock(&vm->lock);
	return r;
}

/* Takes a VM that was just published (or not quite) out of the list again. */
static void unlink_vm(struct vm *vm)
{
	struct engine *eng = vm->eng;
	bool linked = false;

	pthread_mutex_lock(&eng->lock);
	for (struct vm **l = &eng->vms; *l; l = &(*l)->next)
		if (*l == vm) {
			*l = vm->next;
			eng->n_vms--;
			linked = true;
			break;
		}
	pthread_mutex_unlock(&eng->lock);
	if (linked)
		vm_put(vm);
}

/* Takes the VM's name and its files. */
int attachment_link_vm(struct vm *vm, const struct attach_request *req, struct error *e)
{
	struct engine *eng = vm->eng;
	struct vm **last;
	int r = 0;

	pthread_mutex_lock(&eng->lock);
	for (last = &eng->vms; *last; last = &(*last)->next)
		if (!atomic_load(&(*last)->orphaned) && strcmp((*last)->name, vm->name) == 0)
			r = error_set(e, EEXIST, ERROR_EXISTS, "there is a VM %s already",
				      vm->name);
	for (unsigned int i = 0; i < req->n_regions && !r; i++)
		r = claim_file(vm, &req->regions[i], e);
	if (!r && eng->n_vms == ENGINE_VMS_MAX)
		r = error_set(e, ENOSPC, ERROR_LIMIT, "no more than %d VMs", ENGINE_VMS_MAX);
	if (!r) {
		vm_ref(vm);
		*last = vm;
		eng->n_vms++;
	}
	pthread_mutex_unlock(&eng->lock);
	return r;
}

void attachment_free_mappings(struct vm *vm, struct mapping **gone, unsigned int n)
{
	engine_barrier(vm->eng);
	pthread_rwlock_wrlock(&vm->structure);
	for (unsigned int i = 0; i < n; i++)
		free(gone[i]);
	pthread_rwlock_unlock(&vm->structure);
}

/*
 * Drops an attachment's mappings out of the blocks; those of this id, or all (NULL). All threads
 * forget them, then they go.
 */
static void take_out(struct attachment *att, const char *id)
{
	struct vm *vm = att->vm;
	struct mapping *gone[VM_REGIONS_MAX];
	unsigned int n = 0;

	for (unsigned int i = 0; i < VM_REGIONS_MAX; i++) {
		struct mapping *m = atomic_load(&att->mappings[i]);

		if (!m || (id && strcmp(m->id, id) != 0))
			continue;
		atomic_store(&att->mappings[i], NULL);
		for (unsigned int k = 0; k < BLOCK_MAPPINGS_MAX; k++) {
			struct mapping *same = m;

			atomic_compare_exchange_strong(&m->block->mappings[k], &same, NULL);
		}
		gone[n++] = m;
	}
	vm_suspend(vm, SUSPEND_TWICE, thp_mapped_twice(vm));
	attachment_free_mappings(vm, gone, n);
}

/* Takes what a block that goes still counts for off the VM's books. */
static void unaccount(struct loader *ld, struct block *b)
{
	struct vm *vm = b->vm;
	int64_t bytes = (int64_t)block_unit_bytes(b);

	for (uint64_t u = 0; u < b->units; u++) {
		uint64_t e = page_table_get(&b->table, u);
		enum page_state s = page_entry_state(e);

		if (page_state_present(s))
			atomic_fetch_sub(&vm->resident, bytes);
		if (s == PE_LOST)
			atomic_fetch_sub(&vm->lost, bytes);
		if (e & PE_COPY) {
			atomic_fetch_sub(&vm->copies, bytes);
			atomic_fetch_sub(&vm->tier_units[page_entry_tier(e)], bytes);
			loader_free_handle(ld, b, page_entry_tier(e), page_entry_handle(e));
		}
	}
}

/* True when this region is memory of a block that the VM has already. */
static bool is_known_memory(struct vm *vm, const struct attach_region *reg)
{
	struct memfd_info info;

	if (memfd_info(reg->memfd, &info))
		return false;
	for (unsigned int i = 0; i < atomic_load(&vm->n_blocks); i++) {
		struct block *b = atomic_load(&vm->blocks[i]);

		if (b && !atomic_load(&b->gone) && b->dev == info.dev && b->ino == info.ino &&
		    reg->memfd_offset < b->memfd_offset + b->bytes &&
		    b->memfd_offset < reg->memfd_offset + reg->size)
			return true;
	}
	return false;
}

int attachment_adopt_mapping(struct attachment *att, const struct record_mapping *rm,
			     struct error *e)
{
	struct vm *vm = att->vm;
	struct mapping *m;

	for (unsigned int i = 0; i < atomic_load(&vm->n_blocks); i++) {
		struct block *b = atomic_load(&vm->blocks[i]);
		int r;

		if (!b || strncmp(b->id, rm->block, REGION_ID_MAX) != 0)
			continue;
		if (rm->first_unit + rm->units > b->units)
			return error_set(e, EUCLEAN, ERROR_ARGUMENT, "mapping %.63s is damaged",
					 rm->id);
		m = mapping_new(att, b, rm->host_addr, rm->first_unit, rm->units);
		if (!m)
			return error_set(e, ENOMEM, ERROR_GENERIC, "out of memory");
		snprintf(m->id, sizeof(m->id), "%.63s", rm->id);
		r = register_mapping(m, e);
		if (r == -EINVAL || r == -ENOENT) {
			free(m); /* unmapped while no daemon was there */
			return 0;
		}
		if (r) {
			free(m);
			return r;
		}
		add_to(b->mappings, &b->n_mappings, 1, BLOCK_MAPPINGS_MAX, m);
		add_to(att->mappings, &att->n_mappings, 0, VM_REGIONS_MAX, m);
	}
	return 0;
}

/*
 * The client says again what a takeover had found, in the record or among the regions that came
 * with it. As a second mapping at a block's own address it would take the registration with it
 * when it goes, and what is evicted would read as zeroes.
 */
static bool is_known_mapping(struct attachment *att, const struct attach_region *reg)
{
	for (unsigned int i = 0; i < atomic_load(&att->n_mappings); i++) {
		struct mapping *m = atomic_load(&att->mappings[i]);

		if (m && m->host_addr == reg->host_addr && !atomic_load(&m->block->gone) &&
		    strcmp(m->id[0] ? m->id : m->block->id, reg->id) == 0)
			return true;
	}
	return false;
}

int attachment_add_any(struct attachment *att, const struct attach_region *reg, struct error *e)
{
	return att->secondary || is_known_memory(att->vm, reg) ? add_mapping(att, reg, e)
							       : attachment_add_block(att, reg, e);
}

int attachment_add_region(struct attachment *att, const struct attach_region *reg, struct error *e)
{
	struct vm *vm = att->vm;
	bool again, known;
	int r;

	pthread_mutex_lock(&vm->lock);
	again = is_known_mapping(att, reg);
	known = is_known_memory(vm, reg);
	pthread_mutex_unlock(&vm->lock);
	if (again && known)
		return 0;
	if (!att->secondary && !known) {
		/* Its table is in no other hands at first: nothing of it is evicted meanwhile. */
		struct memfd_info info;

		pthread_mutex_lock(&vm->eng->lock);
		r = claim_file(vm, reg, e);
		pthread_mutex_unlock(&vm->eng->lock);
		if (r)
			return r;
		pthread_mutex_lock(&vm->lock);
		if (vm->keep)
			vm_suspend(vm, SUSPEND_KEEPING, true);
		r = attachment_add_block(att, reg, e);
		if (!r && vm->keep)
			vm_record_write(vm);
		pthread_mutex_unlock(&vm->lock);
		if (r && !memfd_info(reg->memfd, &info))
			release_file(vm, info.dev, info.ino);
		return r;
	}
	/* An eviction that does not know of the new mapping would protect only the others. */
	atomic_fetch_add(&vm->joining, 1);
	vm_suspend(vm, SUSPEND_SHARED, true);
	engine_barrier(vm->eng);
	pthread_mutex_lock(&vm->lock);
	r = add_mapping(att, reg, e);
	if (!r && vm->keep)
		vm_record_write(vm);
	pthread_mutex_unlock(&vm->lock);
	atomic_fetch_sub(&vm->joining, 1);
	vm_check_peers(vm);
	return r;
}

bool attachment_maps(const struct attachment *att)
{
	for (unsigned int i = 0; i < VM_REGIONS_MAX; i++)
		if (atomic_load(&att->mappings[i]))
			return true;
	return false;
}

bool attachment_drop_mapping(struct attachment *att, const char *id)
{
	bool any = false;

	pthread_rwlock_rdlock(&att->vm->structure);
	for (unsigned int i = 0; i < atomic_load(&att->n_mappings); i++) {
		struct mapping *m = atomic_load(&att->mappings[i]);

		if (!m || strcmp(m->id, id) != 0)
			continue;
		uffd_unregister(att->uffd, m->host_addr, m->units << m->block->unit_shift);
		any = true;
	}
	pthread_rwlock_unlock(&att->vm->structure);
	if (any)
		take_out(att, id);
	return any;
}

void block_retire(struct loader *ld, struct block *b)
{
	struct vm *vm = b->vm;
	struct mapping *gone[BLOCK_MAPPINGS_MAX];

	pthread_mutex_lock(&vm->lock);
	for (unsigned int i = 0; i < VM_REGIONS_MAX; i++) {
		struct block *same = b;

		atomic_compare_exchange_strong(&vm->blocks[i], &same, NULL);
	}
	for (unsigned int i = 0; i < BLOCK_MAPPINGS_MAX; i++) {
		gone[i] = atomic_exchange(&b->mappings[i], NULL);
		for (unsigned int k = 0; gone[i] && k < VM_REGIONS_MAX; k++) {
			struct mapping *same = gone[i];

			atomic_compare_exchange_strong(&gone[i]->att->mappings[k], &same, NULL);
		}
	}
	pthread_mutex_unlock(&vm->lock);
	engine_barrier(vm->eng);
	pthread_rwlock_wrlock(&vm->structure);
	unaccount(ld, b);
	loader_flush_frees(ld);
	for (unsigned int i = 0; i < BLOCK_MAPPINGS_MAX; i++)
		free(gone[i]);
	pthread_mutex_lock(&vm->lock);
	if (vm->keep)
		vm_record_write(vm);
	vm_store_close(vm, b->table_name);
	pthread_mutex_unlock(&vm->lock);
	pthread_rwlock_unlock(&vm->structure);
	release_file(vm, b->dev, b->ino);
	block_free(b);
}

static void forget_attachment(struct attachment *att)
{
	struct vm *vm = att->vm;

	for (unsigned int i = 0; i < VM_ATTACH_MAX; i++) {
		struct attachment *same = att;

		atomic_compare_exchange_strong(&vm->attachments[i], &same, NULL);
	}
}

/* Unregisters what was registered of an attachment that came to nothing. Nothing was evicted. */
static void unregister_all(struct attachment *att)
{
	for (unsigned int i = 0; i < atomic_load(&att->n_mappings); i++) {
		struct mapping *m = atomic_load(&att->mappings[i]);

		if (m)
			uffd_unregister(att->uffd, m->host_addr, m->units << m->block->unit_shift);
	}
}

void attachment_wake(struct attachment *att)
{
	for (unsigned int i = 0; i < atomic_load(&att->n_mappings); i++) {
		struct mapping *m = atomic_load(&att->mappings[i]);

		if (m)
			uffd_wake(att->uffd, m->host_addr, m->units << m->block->unit_shift);
	}
}

static int attach_regions(struct attachment *att, struct attach_request *req, struct error *e)
{
	int r = 0;

	pthread_mutex_lock(&att->vm->lock);
	for (unsigned int i = 0; i < req->n_regions && !r; i++)
		r = att->secondary ? add_mapping(att, &req->regions[i], e)
				   : attachment_add_block(att, &req->regions[i], e);
	pthread_mutex_unlock(&att->vm->lock);
	return r;
}

static int open_uffd(struct engine *eng, struct attachment *att, bool resume, struct error *e)
{
	int r = 0, flags;

	if (!uffd_is(att->uffd))
		return error_set(e, EINVAL, ERROR_ARGUMENT,
				 "the first descriptor is no userfaultfd");
	/* One that served a daemon before has its features already. */
	if (!resume)
		r = uffd_api(att->uffd, attachment_features(eng), NULL);
	if (r)
		return error_set(e, -r, ERROR_ARGUMENT, "UFFDIO_API: %s%s", error_text(r),
				 r == -EINVAL || r == -EPERM ? " (was it called already?)" : "");
	/* A blocking one polls as an error. */
	flags = fcntl(att->uffd, F_GETFL);
	if (flags < 0 || fcntl(att->uffd, F_SETFL, flags | O_NONBLOCK))
		return error_set(e, errno, ERROR_GENERIC, "fcntl: %s", error_text(errno));
	/* Without it (no rights over the process) the VM has no tracker. */
	att->pagemap_fd = pagemap_open(att->pid);
	return 0;
}

/* Finds or makes the VM that the request is for; gives a reference. */
static int find_vm(struct engine *eng, struct attach_request *req, struct vm **out, struct error *e)
{
	struct vm *vm = NULL;

	if (!req->n_regions)
		return error_set(e, EINVAL, ERROR_ARGUMENT, "no regions");
	for (unsigned int i = 0; req->secondary && i < req->n_regions && !vm; i++)
		vm = vm_with_file(eng, &req->regions[i]);
	if (req->secondary && !vm)
		return error_set(e, ENOENT, ERROR_NOT_FOUND,
				 "no VM has the RAM that this secondary maps");
	if (!vm)
		vm = vm_new(eng, req->vm_name, req->uuid, req->uid);
	if (!vm)
		return error_set(e, ENOMEM, ERROR_GENERIC, "out of memory");
	*out = vm;
	return 0;
}

static int attach_anew(struct engine *eng, struct vm *vm, struct attachment *att,
		       struct attach_request *req, struct error *e)
{
	int r = attach_regions(att, req, e);

	if (r)
		return r;
	pthread_mutex_lock(&vm->lock);
	r = backends_default_tiers(eng, vm);
	if (!r && vm->keep)
		r = vm_record_write(vm);
	pthread_mutex_unlock(&vm->lock);
	if (r)
		return error_set(e, -r, ERROR_GENERIC, "no backend space for the VM: %s",
				 error_text(r));
	return 0;
}

static int attach_primary(struct engine *eng, struct vm *vm, struct attachment *att,
			  struct attach_request *req, struct takeover **t, struct error *e)
{
	int r;

	atomic_store(&vm->attaching, true);
	vm->has_pagemap = att->pagemap_fd >= 0;
	/* The name and the files are taken from here on, and others see the VM. */
	r = attachment_link_vm(vm, req, e);
	if (r)
		return r;
	atomic_fetch_or(&vm->suspended, SUSPEND_NEW); /* until we have looked */
	probes_apply(vm);
	vm->keep = req->ops && req->ops->keep;
	if (!vm->keep && eng->config.fd_store.put) {
		vm->shelf = shelf_new(eng, req->shelf);
		if (!vm->shelf)
			return error_set(e, ENOMEM, ERROR_GENERIC, "out of memory");
		vm->keep = true;
	}
	vm->keeper_pid = att->pid;
	if (req->resume && takeover_possible(req))
		r = takeover_begin(vm, att, req, t, e);
	else
		r = attach_anew(eng, vm, att, req, e);
	if (r)
		return r;
	if (vm->keep)
		atomic_fetch_or(&vm->suspended, SUSPEND_KEEPING); /* until it holds all */
	vm_resize_recent(vm);
	return 0;
}

int engine_attach(struct engine *eng, struct attach_request *req, struct attachment **out,
		  struct error *e)
{
	ENGINE_INSIDE(eng);
	struct attachment *att = attachment_new(eng, req);
	struct takeover *takeover = NULL;
	struct vm *vm = NULL;
	bool joined = false;
	int r;

	if (!att) {
		fd_close(&req->uffd);
		fd_close(&req->pidfd);
		return error_set(e, ENOMEM, ERROR_GENERIC, "out of memory");
	}
	r = open_uffd(eng, att, req->resume, e);
	if (!r)
		r = find_vm(eng, req, &vm, e);
	if (r) {
		attachment_free(att);
		return r;
	}
	att->vm = vm; /* takes the reference */
	if (att->secondary) {
		/* No eviction may run that does not know of the new mapping. */
		atomic_fetch_add(&vm->joining, 1);
		vm_suspend(vm, SUSPEND_SHARED, true);
		engine_barrier(eng);
		r = attach_regions(att, req, e);
	} else {
		r = attach_primary(eng, vm, att, req, &takeover, e);
	}
	/* The VM's and the caller's; before it can be found, its process may be gone already. */
	atomic_store(&att->refs, 2);
	if (!r)
		r = add_attachment(vm, att, e);
	if (!r) {
		joined = true;
		r = fault_watch(eng, att);
		if (!r)
			r = keeper_watch_exit(eng->keeper, att);
		if (r)
			error_set(e, -r, ERROR_GENERIC, "epoll: %s", error_text(r));
	}
	if (r)
		goto fail;
	if (req->resume) {
		FAULT_POINT(takeover_watched);
		attachment_wake(att);
		FAULT_POINT(takeover_woken);
	}
	takeover_end(takeover);
	/* Not earlier: loading them takes time, and faults are served without. */
	if (!att->secondary)
		policies_default(eng, vm);
	if (att->secondary) {
		atomic_fetch_sub(&vm->joining, 1);
		vm_forget_peer(vm, att->pid);
	}
	keeper_check_foreign(vm);
	if (!att->secondary) {
		atomic_store(&vm->attaching, false);
		atomic_fetch_and(&vm->suspended, ~(uint32_t)SUSPEND_NEW);
		engine_kick(vm);
	}
	/* Before the client hears that it has attached: a successor must know of it. */
	if (vm->shelf && !att->secondary)
		keep_on_shelf(vm, att);
	engine_emit(eng, EVENT_VM_ATTACHED, vm->name, "", (uint64_t)att->pid, "%s",
		    att->secondary ? "secondary mapping" : "");
	if (vm->keep)
		keeper_hurry(eng->keeper);
	*out = att;
	return 0;
fail:
	if (joined) {
		fault_unwatch(eng, att);
		forget_attachment(att);
	}
	/* What was evicted by the daemon before would read as zeroes. */
	if (!req->resume)
		unregister_all(att);
	if (att->secondary)
		take_out(att, NULL);
	else
		unlink_vm(vm);
	engine_barrier(eng);
	takeover_drop(takeover);
	if (att->secondary) {
		/* It was not let in; if it was expected, it still is. */
		atomic_fetch_sub(&vm->joining, 1);
		vm_check_peers(vm);
		/* It maps the RAM and is not attached. */
		keeper_check_foreign(vm);
	}
	attachment_free(att);
	/* What came from the shelf stays there for another try. */
	if (vm->shelf && req->shelf) {
		shelf_leave(vm->shelf);
		vm->shelf = NULL;
	}
	vm_put(vm);
	return r;
}

const char *engine_attachment_vm(const struct attachment *a)
{
	return a->vm->name;
}

void engine_attachment_put(struct attachment *a)
{
	if (!a)
		return;
	pthread_mutex_lock(&a->client_lock);
	a->ops = NULL;
	pthread_mutex_unlock(&a->client_lock);
	attachment_unref(a);
}

/*
 * What a dead VM has open in the backends, its RAM's files, its tables. The VM itself may live for
 * long, as its clients' connections hold references (a back end's may outlive many VMs), and
 * nobody would find it any more when a backend is removed. The mappings in `gone` go too.
 */
static void close_stores(struct vm *vm, struct attachment **gone, unsigned int n_gone)
{
	pthread_rwlock_wrlock(&vm->structure);
	pthread_mutex_lock(&vm->op_lock);
	if (vm->op_loader)
		loader_close(vm->op_loader);
	free(vm->op_loader);
	vm->op_loader = NULL;
	pthread_mutex_lock(&vm->lock);
	backends_close_spaces(vm);
	for (unsigned int i = 0; i < n_gone; i++)
		for (unsigned int k = 0; k < VM_REGIONS_MAX; k++)
			atomic_store(&gone[i]->mappings[k], NULL);
	for (unsigned int i = 0; i < VM_REGIONS_MAX; i++)
		block_free(atomic_exchange(&vm->blocks[i], NULL));
	vm_drop_stores(vm);
	pthread_mutex_unlock(&vm->lock);
	huge_reserve_drop(vm);
	pthread_mutex_unlock(&vm->op_lock);
	pthread_rwlock_unlock(&vm->structure);
}

void vm_remove(struct vm *vm)
{
	struct engine *eng = vm->eng;
	struct attachment *gone[VM_ATTACH_MAX];
	unsigned int n = 0;

	if (atomic_exchange(&vm->dead, true))
		return;
	pthread_mutex_lock(&vm->lock);
	vm->over = true;
	pthread_mutex_unlock(&vm->lock);
	for (unsigned int i = 0; i < VM_ATTACH_MAX; i++) {
		struct attachment *att = atomic_exchange(&vm->attachments[i], NULL);

		if (!att)
			continue;
		atomic_store(&att->dead, true);
		fault_unwatch(eng, att);
		keeper_unwatch_exit(eng->keeper, att);
		gone[n++] = att;
	}
	vm_ref(vm);
	unlink_vm(vm);
	engine_barrier(eng);
	shelf_close(vm->shelf);
	close_stores(vm, gone, n);
	if (!atomic_load(&vm->orphaned))
		engine_emit(eng, EVENT_VM_DETACHED, vm->name, "", 0, "%s", "");
	for (unsigned int i = 0; i < n; i++)
		attachment_unref(gone[i]);
	vm_put(vm);
}

bool vm_abandon(struct vm *vm)
{
	bool keep = vm->keep;

	for (unsigned int i = 0; i < VM_ATTACH_MAX; i++)
		attachment_unref(atomic_exchange(&vm->attachments[i], NULL));
	/* Closing its spaces would give up what the successor needs; the process ends anyway. */
	if (!keep)
		vm_put(vm);
	return keep;
}

static bool has_secondary(struct vm *vm)
{
	for (unsigned int i = 0; i < VM_ATTACH_MAX; i++) {
		struct attachment *att = atomic_load(&vm->attachments[i]);

		if (att && att->secondary)
			return true;
	}
	return false;
}

/* An orphan is kept for those that map it: with the last of them it goes. */
static void vm_end_orphan(struct vm *vm)
{
	bool end;

	pthread_mutex_lock(&vm->lock);
	end = atomic_load(&vm->orphaned) && !has_secondary(vm);
	pthread_mutex_unlock(&vm->lock);
	if (end)
		vm_remove(vm);
}

void attachment_leave(struct attachment *att)
{
	struct vm *vm = att->vm;

	if (atomic_exchange(&att->dead, true))
		return;
	vm_ref(vm); /* the attachment's goes with it */
	fault_unwatch(vm->eng, att);
	keeper_unwatch_exit(vm->eng->keeper, att);
	unregister_all(att);
	forget_attachment(att);
	take_out(att, NULL);
	/* Whoever looked it up by its serial under the engine's lock has its own reference now. */
	pthread_mutex_lock(&vm->eng->lock);
	pthread_mutex_unlock(&vm->eng->lock);
	attachment_unref(att);
	vm_end_orphan(vm);
	vm_put(vm);
}

/*
 * A reference to the attachment with that serial number (0: to the primary of this VM), if it is
 * still in service.
 */
static struct attachment *get_attachment(struct engine *eng, uint64_t serial, const struct vm *of)
{
	struct attachment *found = NULL;

	pthread_mutex_lock(&eng->lock);
	for (struct vm *vm = eng->vms; vm && !found; vm = vm->next)
		for (unsigned int i = 0; i < VM_ATTACH_MAX && !found; i++) {
			struct attachment *att = atomic_load(&vm->attachments[i]);

			if (att && (serial ? att->serial == serial : vm == of && !att->secondary)) {
				atomic_fetch_add(&att->refs, 1);
				found = att;
			}
		}
	pthread_mutex_unlock(&eng->lock);
	return found;
}

/* Back ends may still map the RAM of a VM whose process is gone. */
static void primary_gone(struct attachment *att)
{
	struct vm *vm = att->vm;
	int r = -ENOENT;

	if (att->stand_in || atomic_exchange(&att->dead, true))
		return;
	pthread_mutex_lock(&vm->lock);
	vm->over = true; /* no one joins any more: what is looked at next is all there is */
	pthread_mutex_unlock(&vm->lock);
	if (has_secondary(vm))
		r = orphan_adopt(vm, att);
	if (r && r != -ENOENT)
		log_error("VM %s: what its back ends still map cannot be served: %s", vm->name,
			  error_text(r));
	if (r)
		vm_remove(vm);
	else
		vm_end_orphan(vm); /* the last of them may have gone meanwhile */
}

void attachment_exited(struct engine *eng, uint64_t serial)
{
	ENGINE_INSIDE(eng);
	struct attachment *att = get_attachment(eng, serial, NULL);

	if (!att)
		return;
	if (att->secondary)
		attachment_leave(att);
	else
		primary_gone(att);
	attachment_unref(att);
}

void vm_primary_gone(struct vm *vm)
{
	struct attachment *att = get_attachment(vm->eng, 0, vm);

	if (!att)
		return;
	primary_gone(att);
	attachment_unref(att);
}

/* ---- from a living daemon (handover.c) ---- */

struct attachment *attachment_by_serial(struct engine *eng, uint64_t serial)
{
	return get_attachment(eng, serial, NULL);
}

int attachment_inherit(struct vm *vm, int uffd, int pidfd, pid_t pid, uid_t uid, uint64_t serial,
		       bool secondary, struct attachment **out, struct error *e)
{
	struct attach_request req = {
		.uffd = uffd, .pidfd = pidfd, .pid = pid, .uid = uid, .secondary = secondary};
	struct attachment *att = attachment_new(vm->eng, &req);
	int r;

	if (!att) {
		fd_close(&req.uffd);
		fd_close(&req.pidfd);
		return error_set(e, ENOMEM, ERROR_GENERIC, "out of memory");
	}
	att->serial = serial;
	att->vm = vm;
	r = uffd_is(att->uffd) ? add_attachment(vm, att, e)
			       : error_set(e, EINVAL, ERROR_ARGUMENT,
					   "VM %s: a descriptor is no userfaultfd", vm->name);
	if (r) {
		attachment_free(att);
		return r;
	}
	vm_ref(vm);
	atomic_store(&att->refs, 1);
	att->pagemap_fd = pagemap_open(att->pid);
	if (!secondary)
		vm->has_pagemap = att->pagemap_fd >= 0;
	*out = att;
	return 0;
}

int attachment_inherit_block(struct vm *vm, const struct attach_region *reg,
			     const struct record_block *rb, struct block **out, struct error *e)
{
	unsigned int n = atomic_load(&vm->n_blocks);
	struct memfd_info info;
	int r = memfd_info(reg->memfd, &info);

	if (r || n == VM_REGIONS_MAX)
		return error_set(e, EINVAL, ERROR_ARGUMENT, "VM %s: region %s is no memfd",
				 vm->name, reg->id);
	pthread_mutex_lock(&vm->eng->lock);
	r = claim_file(vm, reg, e);
	pthread_mutex_unlock(&vm->eng->lock);
	if (!r)
		r = block_adopt(vm, reg, &info, rb, out, e);
	if (r)
		return r;
	atomic_store(&vm->blocks[n], *out);
	atomic_store(&vm->n_blocks, n + 1);
	return 0;
}

int attachment_inherit_mapping(struct attachment *att, const char *block,
			       const struct record_mapping *rm, bool primary, struct error *e)
{
	for (unsigned int i = 0; i < atomic_load(&att->vm->n_blocks); i++) {
		struct block *b = atomic_load(&att->vm->blocks[i]);
		struct mapping *m;

		if (strcmp(b->id, block) != 0)
			continue;
		if (rm->first_unit + rm->units > b->units || rm->first_unit > b->units)
			break;
		m = mapping_new(att, b, rm->host_addr, rm->first_unit, rm->units);
		if (!m)
			return error_set(e, ENOMEM, ERROR_GENERIC, "out of memory");
		snprintf(m->id, sizeof(m->id), "%.63s", rm->id);
		if (add_to(b->mappings, &b->n_mappings, primary ? 0 : 1,
			   primary ? 1 : BLOCK_MAPPINGS_MAX, m) ||
		    add_to(att->mappings, &att->n_mappings, 0, VM_REGIONS_MAX, m))
			break;
		return 0;
	}
	return error_set(e, EUCLEAN, ERROR_ARGUMENT, "VM %s: mapping %.63s is damaged",
			 att->vm->name, rm->id);
}

void attachment_serve(struct attachment *att)
{
	struct engine *eng = att->vm->eng;
	int r = fault_watch(eng, att);

	if (!r)
		r = keeper_watch_exit(eng->keeper, att);
	if (r)
		log_error("VM %s: process %d cannot be watched: %s", att->vm->name, (int)att->pid,
			  error_text(r));
	attachment_wake(att);
}

void attachment_may_evict(struct vm *vm)
{
	probes_apply(vm);
	keeper_check_foreign(vm);
	atomic_fetch_and(&vm->suspended, ~(uint32_t)SUSPEND_NEW);
	engine_kick(vm);
}
