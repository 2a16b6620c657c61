/* SPDX-License-Identifier: BSD-3-Clause */
/* folio_probe.bpf.c: the kernel's half of the folio probe: finds folios and counts references. */
#include <linux/bpf.h>
#include <linux/types.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>

#include "folio_probe_abi.h"

/*
 * Theory of operation. A program of type syscall, run by the daemon with BPF_PROG_RUN in its own
 * context. It goes from the file descriptor to the file's page cache (an xarray), finds the folio
 * at each index, and compares its references with those that are accounted for:
 *
 *	the page cache	one for each page (on hugetlbfs before Linux 6.7: one in all)
 *	page tables	one for each mapping of any of its pages, PTE or PMD
 *
 * Anything above is a pin, an I/O in flight, a pipe, an LRU batch, ... Nothing here takes a lock
 * or a reference, so each folio is looked at twice, and must both times belong to this file at
 * this index with the same counts. References are taken before a page is mapped and dropped after
 * it is unmapped: at every moment there are at least as many as the formula says. The two counts
 * of a small folio are read in one word, at one moment; those of a large one in turns (references,
 * mappings, references, mappings), so that a pin which outlasts both looks could only hide behind
 * two changes that undo each other at just the wrong moments twice.
 *
 * The kernel's structures are declared here with just the members that are used, and relocated to
 * those of the running kernel at load time (CO-RE); what differs between kernels is told apart by
 * which members exist. Tree nodes are read under RCU where programs may take it (Linux 6.2); where
 * not, a freed node can only lead to a folio whose own mapping and index refute it, or to a hole
 * that a second walk refutes.
 */

#define RELOCATED __attribute__((preserve_access_index))

/* ---- the kernel's structures, as far as they are used ---- */

typedef struct {
	int counter;
} RELOCATED atomic_t;

struct xarray {
	void *xa_head;
} RELOCATED;

struct xa_node {
	unsigned char shift;
	void *slots[64];
} RELOCATED;

struct super_block {
	unsigned long s_magic;
} RELOCATED;

struct inode {
	struct super_block *i_sb;
	__u8 i_blkbits;
} RELOCATED;

struct address_space {
	struct inode *host;
	struct xarray i_pages;
} RELOCATED;

struct file {
	struct address_space *f_mapping;
} RELOCATED;

struct fdtable {
	unsigned int max_fds;
	struct file **fd;
} RELOCATED;

struct files_struct {
	struct fdtable *fdt;
} RELOCATED;

struct task_struct {
	struct files_struct *files;
} RELOCATED;

struct page {
	atomic_t _mapcount;
} RELOCATED;

struct folio {
	struct address_space *mapping;
	unsigned long index;
	atomic_t _mapcount;
	atomic_t _refcount;
	atomic_t _pincount; /* of large folios */
} RELOCATED;

/* Before Linux 6.18, and since. */
struct folio___flags_word {
	unsigned long flags;
} RELOCATED;

struct flags_struct {
	unsigned long f;
} RELOCATED;

struct folio___flags_struct {
	struct flags_struct flags;
} RELOCATED;

/* The size of a large folio: 6.15 and later; before. */
struct folio___nr_pages {
	unsigned int _nr_pages;
} RELOCATED;

struct folio___folio_nr_pages {
	unsigned int _folio_nr_pages;
} RELOCATED;

/* All mappings of all its pages together: 6.10 and later. */
struct folio___large {
	atomic_t _large_mapcount;
} RELOCATED;

/* 6.3 to 6.9: mappings of the whole; those of single pages are in their struct page. */
struct folio___entire {
	atomic_t _entire_mapcount;
} RELOCATED;

/* 6.1: mappings of the whole, which the single pages' counts include. */
struct folio___total {
	atomic_t _total_mapcount;
} RELOCATED;

enum pageflags {
	PG_head,
};

/*
 * Programs cannot take RCU before Linux 6.2. That is a second object, not a weak reference: one
 * that stays open makes libbpf look into the types of every module, for which it needs
 * CAP_SYS_ADMIN.
 */
#ifdef FOLIO_PROBE_RCU
extern void bpf_rcu_read_lock(void) __ksym;
extern void bpf_rcu_read_unlock(void) __ksym;
#else
#define bpf_rcu_read_lock()
#define bpf_rcu_read_unlock()
#endif

/* ---- constants ---- */

#define EBADF	    9
#define EFAULT	    14
#define EINVAL	    22
#define EMEDIUMTYPE 124

#define PAGE_SHIFT	  12
#define PAGE_STRUCT_BYTES 64
#define PAGE_WORDS	  (PAGE_STRUCT_BYTES / 8)
#define TMPFS_MAGIC	  0x01021994
#define HUGETLBFS_MAGIC	  0x958458f6
#define CHUNK_SHIFT	  6
#define CHUNK_SIZE	  (1 << CHUNK_SHIFT)
#define TREE_LEVELS	  11 /* 64 bits of index */
#define ENTRY_RETRY	  ((256 << 2) | 2)
#define HUGE_ORDER_MIN	  CHUNK_SHIFT /* smaller ones are not told apart by their depth */
#define FOLIO_PAGES_MAX	  (1 << 18)
#define MAPS_UNKNOWN	  (-1)

/* In which unit hugetlbfs indexes its page cache: huge pages until Linux 6.6, pages since. */
enum huge_units { UNITS_UNSEEN = 0, UNITS_HUGE, UNITS_PAGES };

/* A fact about the kernel, learnt from the first huge page seen; every racing writer agrees. */
static int huge_units;

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1); /* set by the loader */
	__type(key, __u32);
	__type(value, struct folio_probe_slot);
} slots SEC(".maps");

char LICENSE[] SEC("license") = "Dual BSD/GPL";

/* ---- the tree ---- */

struct place {
	__u64 entry; /* 0: nothing */
	_Bool deep;  /* it lies in a node whose slots are of 64 pages or more */
};

static __always_inline _Bool is_internal(__u64 entry)
{
	return (entry & 3) == 2;
}

static __always_inline _Bool is_node(__u64 entry)
{
	return is_internal(entry) && entry > 4096;
}

static __always_inline _Bool is_sibling(__u64 entry)
{
	return is_internal(entry) && entry < (((CHUNK_SIZE - 1) << 2) | 2);
}

/* Every read that fails reads as "retry", never as a hole. */
static __always_inline __u64 read_slot(__u64 node, __u64 slot)
{
	__u64 entry, offset = bpf_core_field_offset(struct xa_node, slots);

	if (bpf_probe_read_kernel(&entry, sizeof(entry),
				  (void *)(node + offset + (slot & (CHUNK_SIZE - 1)) * 8)))
		return ENTRY_RETRY;
	return entry;
}

static __always_inline void descend(struct address_space *mapping, __u64 index, struct place *p)
{
	__u64 entry, node;
	__u8 shift = 0;

	p->deep = 0;
	p->entry = ENTRY_RETRY;
	if (bpf_core_read(&entry, sizeof(entry), &mapping->i_pages.xa_head))
		return;
	if (!is_node(entry)) {
		/* A tree of one entry, at index 0. */
		p->entry = index ? 0 : entry;
		return;
	}
	if (bpf_core_read(&shift, sizeof(shift), &((struct xa_node *)(entry - 2))->shift) ||
	    shift > 60)
		return;
	/* The root's slots end somewhere: behind them is nothing. */
	if ((index >> shift) >= CHUNK_SIZE) {
		p->entry = 0;
		return;
	}
	/* Each level is one chunk below the one above. */
	for (int level = 0; level < TREE_LEVELS; level++) {
		node = entry - 2;
		entry = read_slot(node, index >> shift);
		if (is_sibling(entry))
			entry = read_slot(node, entry >> 2);
		if (!is_node(entry)) {
			p->deep = shift >= CHUNK_SHIFT;
			p->entry = entry;
			return;
		}
		if (shift < CHUNK_SHIFT)
			return;
		shift -= CHUNK_SHIFT;
	}
}

static __noinline int walk(struct address_space *mapping, __u64 index, struct place *p)
{
	if (!p)
		return 0;
	bpf_rcu_read_lock();
	descend(mapping, index, p);
	bpf_rcu_read_unlock();
	return 0;
}

/* ---- files ---- */

struct cache {
	struct address_space *mapping;
	__u32 order; /* of the pages of hugetlbfs; 0: tmpfs */
};

static __always_inline int find_cache(__u32 fd, struct cache *c)
{
	struct task_struct *task = (void *)bpf_get_current_task();
	struct file **fds = 0, *file = 0;
	struct files_struct *files = 0;
	struct address_space *mapping = 0;
	struct super_block *sb = 0;
	struct fdtable *fdt = 0;
	struct inode *host = 0;
	unsigned int max_fds = 0;
	unsigned long magic = 0;
	__u8 blkbits = 0;

	if (bpf_core_read(&files, sizeof(files), &task->files) ||
	    bpf_core_read(&fdt, sizeof(fdt), &files->fdt) ||
	    bpf_core_read(&max_fds, sizeof(max_fds), &fdt->max_fds) ||
	    bpf_core_read(&fds, sizeof(fds), &fdt->fd))
		return -EFAULT;
	if (fd >= max_fds || bpf_probe_read_kernel(&file, sizeof(file), fds + fd) || !file)
		return -EBADF;
	if (bpf_core_read(&mapping, sizeof(mapping), &file->f_mapping) ||
	    bpf_core_read(&host, sizeof(host), &mapping->host) ||
	    bpf_core_read(&sb, sizeof(sb), &host->i_sb) ||
	    bpf_core_read(&magic, sizeof(magic), &sb->s_magic) ||
	    bpf_core_read(&blkbits, sizeof(blkbits), &host->i_blkbits))
		return -EFAULT;
	if (magic != TMPFS_MAGIC && magic != HUGETLBFS_MAGIC)
		return -EMEDIUMTYPE;
	c->mapping = mapping;
	c->order = magic == HUGETLBFS_MAGIC ? blkbits - PAGE_SHIFT : 0;
	return 0;
}

/* Finds the huge page at the index (in small pages), whichever way this kernel files it. */
static __always_inline void find_huge(const struct cache *c, __u64 index, struct place *p)
{
	__u64 huge = index >> c->order;

	if (huge_units != UNITS_HUGE) {
		walk(c->mapping, huge << c->order, p);
		if (p->entry && p->deep)
			huge_units = UNITS_PAGES;
		if (p->entry && !p->deep)
			huge_units = UNITS_HUGE;
		if (huge_units == UNITS_PAGES)
			return;
	}
	walk(c->mapping, huge, p);
	if (!p->entry)
		return;
	/* A page of its size where only small ones fit, or the page at another index. */
	huge_units = p->deep ? UNITS_PAGES : UNITS_HUGE;
	if (p->deep)
		p->entry = 0;
}

/* ---- folios ---- */

/* The first two struct pages of a folio, copied; the second only of a large one. */
struct image {
	__u64 words[2 * PAGE_WORDS];
};

#define AT(image, bytes, type) (*(const type *)((const char *)(image)->words + (bytes)))
#define OFFSET(flavour, field) bpf_core_field_offset(struct flavour, field)

static __always_inline _Bool is_large(const struct image *im)
{
	__u64 flags = bpf_core_field_exists(struct folio___flags_struct, flags.f)
			      ? AT(im, OFFSET(folio___flags_struct, flags.f), __u64)
			      : AT(im, OFFSET(folio___flags_word, flags), __u64);

	return flags >> bpf_core_enum_value(enum pageflags, PG_head) & 1;
}

/*
 * Copied in words of 64 bits, each at one moment; _mapcount and _refcount of a small folio share
 * one. False when the memory cannot be read.
 */
static __always_inline _Bool copy(struct image *im, __u64 folio)
{
	if (bpf_probe_read_kernel(im->words, PAGE_STRUCT_BYTES, (void *)folio))
		return 0;
	return !is_large(im) || !bpf_probe_read_kernel(im->words + PAGE_WORDS, PAGE_STRUCT_BYTES,
						       (void *)(folio + PAGE_STRUCT_BYTES));
}

/* The pages of a folio; 0 when it cannot be told. */
static __always_inline __u32 pages_of(const struct image *im)
{
	__u32 pages = 0;

	if (!is_large(im))
		return 1;
	if (bpf_core_field_exists(struct folio___nr_pages, _nr_pages))
		pages = AT(im, OFFSET(folio___nr_pages, _nr_pages), __u32);
	else if (bpf_core_field_exists(struct folio___folio_nr_pages, _folio_nr_pages))
		pages = AT(im, OFFSET(folio___folio_nr_pages, _folio_nr_pages), __u32);
	return pages > 1 && pages <= FOLIO_PAGES_MAX ? pages : 0;
}

struct sum {
	__u64 page; /* the address of the first struct page */
	__s64 maps;
	_Bool failed;
};

static long add_page(__u32 i, struct sum *s)
{
	struct page *page = (void *)(s->page + (__u64)i * PAGE_STRUCT_BYTES);
	int count;

	if (bpf_core_read(&count, sizeof(count), &page->_mapcount.counter)) {
		s->failed = 1;
		return 1;
	}
	s->maps += count + 1;
	return 0;
}

/* How often the pages of a large folio are mapped, on kernels that keep no sum. */
static __always_inline __s64 maps_by_page(const struct image *im, __u64 folio, __u32 pages,
					  _Bool huge)
{
	struct sum s = {.page = folio};
	__s64 entire;

	if (bpf_core_field_exists(struct folio___entire, _entire_mapcount))
		entire = AT(im, OFFSET(folio___entire, _entire_mapcount), __s32) + 1;
	else if (bpf_core_field_exists(struct folio___total, _total_mapcount))
		entire = AT(im, OFFSET(folio___total, _total_mapcount), __s32) + 1;
	else
		return MAPS_UNKNOWN;
	if (huge)
		return entire;
	bpf_loop(pages, add_page, &s, 0);
	if (s.failed)
		return MAPS_UNKNOWN;
	if (!bpf_core_field_exists(struct folio___entire, _entire_mapcount))
		s.maps -= entire * pages;
	return s.maps + entire;
}

static __always_inline __s64 maps_of(const struct image *im, __u64 folio, __u32 pages, _Bool huge)
{
	if (pages == 1)
		return AT(im, OFFSET(folio, _mapcount), __s32) + 1;
	if (bpf_core_field_exists(struct folio___large, _large_mapcount))
		return AT(im, OFFSET(folio___large, _large_mapcount), __s32) + 1;
	return maps_by_page(im, folio, pages, huge);
}

/* ---- a look ---- */

struct look {
	__s64 refs, maps;
	__u32 pages;
	__u8 verdict;
};

static __always_inline _Bool is_ours(const struct image *im, const struct cache *c, __u64 index,
				     __u32 pages)
{
	__u64 first = AT(im, OFFSET(folio, index), __u64);

	if (AT(im, OFFSET(folio, mapping), __u64) != (__u64)c->mapping)
		return 0;
	if (c->order && huge_units == UNITS_HUGE)
		return first == index >> c->order;
	return index - first < pages;
}

/* What the counts of a folio say at this moment; BUSY also when it is not this file's. */
static __noinline int look(const struct cache *c, __u64 index, __u64 folio, struct look *l)
{
	struct image im;
	__s64 cached;

	if (!c || !l)
		return 0;
	l->verdict = FOLIO_BUSY;
	if (!copy(&im, folio))
		return 0;
	l->pages = pages_of(&im);
	if (!l->pages || !is_ours(&im, c, index, l->pages))
		return 0;
	l->refs = AT(&im, OFFSET(folio, _refcount), __s32);
	l->maps = maps_of(&im, folio, l->pages, c->order != 0);
	if (l->pages > 1 && bpf_core_field_exists(struct folio, _pincount) &&
	    AT(&im, OFFSET(folio, _pincount), __s32))
		return 0;
	cached = c->order && huge_units == UNITS_HUGE ? 1 : l->pages;
	if (l->maps == MAPS_UNKNOWN)
		l->verdict = FOLIO_UNKNOWN;
	else if (l->refs == cached + l->maps)
		l->verdict = FOLIO_IDLE;
	return 0;
}

static __always_inline void find(const struct cache *c, __u64 index, struct place *p)
{
	if (c->order)
		find_huge(c, index, p);
	else
		walk(c->mapping, index, p);
}

static __always_inline __u8 verdict_of(const struct cache *c, __u64 index, __u32 flags)
{
	struct place p = {}, again = {};
	struct look a = {}, b = {};

	find(c, index, &p);
	if (!p.entry) {
		/* A node that was freed under the first walk may have read as empty. */
		find(c, index, &again);
		return again.entry ? FOLIO_BUSY : FOLIO_HOLE;
	}
	/* An odd one holds a swap entry, an internal one is in the middle of a change. */
	if (p.entry & 3)
		return p.entry & 1 ? FOLIO_UNKNOWN : FOLIO_BUSY;
	look(c, index, p.entry, &a);
	look(c, index, p.entry, &b);
	if (a.refs != b.refs || a.maps != b.maps || a.pages != b.pages || a.verdict != b.verdict)
		return FOLIO_BUSY;
	if (a.pages > 1 && !(flags & FOLIO_PROBE_LARGE_OK))
		return FOLIO_UNKNOWN;
	return a.verdict;
}

struct batch {
	struct folio_probe_slot *slot;
	struct cache cache;
	__u32 flags;
};

static long probe_one(__u32 i, struct batch *b)
{
	if (i >= FOLIO_PROBE_MAX)
		return 1;
	b->slot->verdict[i] = verdict_of(&b->cache, b->slot->index[i], b->flags);
	return 0;
}

SEC("syscall")
int folio_probe(struct folio_probe_call *call)
{
	__u32 slot = call->slot;
	struct batch b = {.flags = call->flags};
	int r;

	b.slot = bpf_map_lookup_elem(&slots, &slot);
	if (!b.slot || call->n > FOLIO_PROBE_MAX)
		return -EINVAL;
	r = find_cache(call->fd, &b.cache);
	if (r)
		return r;
	/* All that is read lies in the first two struct pages of a folio. */
	if (bpf_core_type_size(struct page) != PAGE_STRUCT_BYTES)
		return -EMEDIUMTYPE;
	/* Small huge pages look the same in both ways of filing them: not understood. */
	if (b.cache.order && b.cache.order < HUGE_ORDER_MIN)
		return -EMEDIUMTYPE;
	bpf_loop(call->n, probe_one, &b, 0);
	return 0;
}
