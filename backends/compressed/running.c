/* SPDX-License-Identifier: BSD-3-Clause */
/* running.c: the running state of a space, handed from a living daemon to its successor. */
#include <errno.h>
#include <string.h>
#include <sys/mman.h>

#include "store.h"

/*
 * Theory of operation
 *
 * What recover.c makes anew from the truth (which slots are taken, lists, sums) takes long for a
 * large store: it looks at every object. A daemon that hands over while it lives can leave it
 * instead. So the large parts lie in the space's memory, behind the slabs, all the time, and
 * running_leave() writes the rest beside them and marks the whole as good; the successor's
 * space_open() then maps it and is done (running_adopt()).
 *
 * The mark holds from running_leave() until the first resume(): the successor's, or, when that one
 * failed, the old daemon's own. A daemon that dies leaves no mark, and what is there is thrown
 * away unread. A successor that cannot make use of it (another version) must recover, which
 * changes free entries under the old daemon; it says so first (`disturbed`), and the old one
 * recovers too if it has to go on.
 *
 * Memory: a page is asked for with a call that can fail before it is first written, like the rest
 * of the space (space_populate()).
 */

#define RUNNING_MAGIC	UINT64_C(0x6e6e755262624531) /* "1EbbRunn" */
#define RUNNING_VERSION 1u

struct class_left {
	uint32_t first[FULLNESS];
	uint32_t slabs, reserved;
	uint64_t slots_used, taken, objects, logical_bytes, content_bytes;
};

struct running {
	uint64_t magic;
	uint32_t version, slab_bytes; /* sizeof(struct slab) */
	_Atomic uint32_t good;	      /* all of it is as running_leave() wrote it */
	_Atomic uint32_t disturbed;   /* a successor has begun to recover */
	uint64_t checksum;	      /* of all below */
	uint64_t mem_bytes, slabs_open, epoch;
	struct compaction compact;
	struct slab_reserve small_reserve, large_reserve;
	struct class_left class[CLASSES_MAX];
};

static uint64_t round_up(uint64_t n, uint64_t to)
{
	return (n + to - 1) / to * to;
}

/* FNV-1a by words, from behind the checksum on: against a half-written header, not an enemy. */
static uint64_t checksum(const struct running *r)
{
	const unsigned char *p = (const unsigned char *)&r->mem_bytes;
	const unsigned char *end = (const unsigned char *)(r + 1);
	uint64_t h = UINT64_C(0xcbf29ce484222325), word;

	for (; p + sizeof(word) <= end; p += sizeof(word)) {
		memcpy(&word, p, sizeof(word));
		h = (h ^ word) * UINT64_C(0x100000001b3);
	}
	return h;
}

/* The parts, one behind the other, each page-aligned; returns the bytes of all. */
static uint64_t parts(const struct space *sp, uint64_t at[7])
{
	const uint64_t bytes[] = {
		sizeof(struct running),
		((uint64_t)sp->n_small + sp->n_large) * sizeof(struct slab),
		(uint64_t)sp->n_small + sp->n_large,
		sp->n_handles / ENTRIES_PER_PAGE * sizeof(struct table_page),
		bits_bytes(sp->n_handles / ENTRIES_PER_PAGE),
		bits_bytes(sp->n_small),
		bits_bytes(sp->n_large),
	};
	uint64_t end = 0;

	for (unsigned int i = 0; i < sizeof(bytes) / sizeof(bytes[0]); i++) {
		at[i] = end;
		end += round_up(bytes[i], PAGE_BYTES);
	}
	return end;
}

uint64_t running_bytes(const struct space *sp)
{
	uint64_t at[7];

	return parts(sp, at);
}

static struct running *running_of(const struct space *sp)
{
	return (struct running *)(void *)(sp->base + sp->running_offset);
}

int running_map(struct space *sp)
{
	uint8_t *base = sp->base + sp->running_offset;
	uint64_t at[7];
	int r;

	parts(sp, at);
	sp->slabs = (struct slab *)(void *)(base + at[1]);
	sp->slab_state = (_Atomic uint8_t *)(base + at[2]);
	sp->pages = (struct table_page *)(void *)(base + at[3]);
	r = bits_init(&sp->full_pages, sp->n_handles / ENTRIES_PER_PAGE, base + at[4]);
	if (!r)
		r = bits_init(&sp->small_used, sp->n_small, base + at[5]);
	return r ? r : bits_init(&sp->large_used, sp->n_large, base + at[6]);
}

/* ---- memory for it ---- */

/* Bytes of the space: what the first n of something take. */
struct range {
	uint64_t offset, bytes;
};
#define RANGES 3u

static struct range range_of(const struct space *sp, const void *at, uint64_t bytes)
{
	return (struct range){(uint64_t)((const uint8_t *)at - sp->base), bytes};
}

static struct range range_of_bits(const struct space *sp, const struct bits *b, uint64_t n)
{
	return range_of(sp, b->level[b->levels - 1], bits_bytes_used(b, n));
}

static void ranges_of_slabs(const struct space *sp, bool large, uint64_t n, struct range *out)
{
	uint32_t first = large ? sp->n_small : 0;

	out[0] = range_of(sp, &sp->slabs[first], n * sizeof(struct slab));
	out[1] = range_of(sp, (const void *)&sp->slab_state[first], n);
	out[2] = range_of_bits(sp, large ? &sp->large_used : &sp->small_used, n);
}

static void ranges_of_table(const struct space *sp, uint64_t n, struct range *out)
{
	out[0] = range_of(sp, sp->pages, n * sizeof(struct table_page));
	out[1] = range_of_bits(sp, &sp->full_pages, n);
	out[2] = (struct range){0, 0};
}

static uint64_t page_down(uint64_t at)
{
	return at / PAGE_BYTES * PAGE_BYTES;
}

/* The pages that `need` has beyond `had`; false when there are none. */
static bool beyond(const struct range *had, const struct range *need, struct range *out)
{
	uint64_t from = had->bytes ? round_up(had->offset + had->bytes, PAGE_BYTES)
				   : page_down(need->offset);
	uint64_t to = need->bytes ? round_up(need->offset + need->bytes, PAGE_BYTES) : from;

	*out = (struct range){from, to - from};
	return to > from;
}

static int grow(struct space *sp, const struct range *had, const struct range *need)
{
	struct range more;
	int r = 0;

	for (unsigned int i = 0; i < RANGES && !r; i++) {
		if (beyond(&had[i], &need[i], &more))
			r = space_populate(sp, more.offset, more.bytes);
		while (r && i-- > 0)
			if (beyond(&had[i], &need[i], &more))
				space_trim(sp, more.offset, more.bytes, more.bytes);
		if (r)
			break;
	}
	return r;
}

int running_need_slabs(struct space *sp, bool large, uint32_t had, uint32_t need)
{
	struct range before[RANGES], after[RANGES];

	ranges_of_slabs(sp, large, had, before);
	ranges_of_slabs(sp, large, need, after);
	return grow(sp, before, after);
}

int running_need_table(struct space *sp, uint32_t had, uint32_t need)
{
	struct range before[RANGES], after[RANGES];

	ranges_of_table(sp, had, before);
	ranges_of_table(sp, need, after);
	return grow(sp, before, after);
}

int running_need(struct space *sp, uint32_t small, uint32_t large, uint32_t table_pages)
{
	static const struct range none[RANGES];
	struct range ranges[RANGES];
	int r;

	ranges_of_slabs(sp, false, small, ranges);
	r = grow(sp, none, ranges);
	if (r)
		return r;
	ranges_of_slabs(sp, true, large, ranges);
	r = grow(sp, none, ranges);
	if (r)
		return r;
	ranges_of_table(sp, table_pages, ranges);
	return grow(sp, none, ranges);
}

/* ---- leaving and taking ---- */

int running_clear(struct space *sp)
{
	/* The old daemon, should it go on, must find the mark. */
	uint64_t from = sp->running_offset +
			(sp->disturber ? round_up(sizeof(struct running), PAGE_BYTES) : 0);

	return space_trim(sp, from, sp->total_bytes - from, 0);
}

int running_leave(struct space *sp)
{
	struct running *r = running_of(sp);

	/* It may take a little more than max-bytes for a moment: the hand-over must not fail. */
	if (!sp->left_room) {
		uint64_t bytes = round_up(sizeof(*r), PAGE_BYTES);

		if (madvise(r, bytes, MADV_POPULATE_WRITE) && errno != EINVAL)
			return -ENOSPC;
		atomic_fetch_add(&sp->mem_bytes, bytes);
		atomic_fetch_add(&sp->store->mem_bytes, bytes);
		sp->left_room = true;
	}
	r->magic = RUNNING_MAGIC;
	r->version = RUNNING_VERSION;
	r->slab_bytes = sizeof(struct slab);
	r->mem_bytes = atomic_load(&sp->mem_bytes);
	r->slabs_open = atomic_load(&sp->slabs_open);
	r->epoch = atomic_load(&sp->store->epoch);
	r->compact = sp->compact;
	r->small_reserve = sp->small_reserve;
	r->large_reserve = sp->large_reserve;
	for (unsigned int i = 0; i < CLASSES_MAX; i++) {
		const struct class_state *c = &sp->classes[i];
		struct class_left *left = &r->class[i];

		memcpy(left->first, c->first, sizeof(left->first));
		left->slabs = c->slabs;
		left->slots_used = c->slots_used;
		left->taken = c->taken;
		left->objects = c->objects;
		left->logical_bytes = c->logical_bytes;
		left->content_bytes = c->content_bytes;
	}
	r->checksum = checksum(r);
	atomic_store(&r->disturbed, 0);
	atomic_store(&r->good, 1);
	return 0;
}

bool running_adopt(struct space *sp)
{
	const struct running *r = running_of(sp);
	uint64_t epoch;

	if (!atomic_load(&r->good) || r->magic != RUNNING_MAGIC || r->version != RUNNING_VERSION ||
	    r->slab_bytes != sizeof(struct slab) || atomic_load(&r->disturbed) ||
	    r->checksum != checksum(r))
		return false;
	atomic_store(&sp->mem_bytes, r->mem_bytes);
	atomic_fetch_add(&sp->store->mem_bytes, r->mem_bytes);
	atomic_store(&sp->slabs_open, r->slabs_open);
	sp->left_room = true;
	sp->compact = r->compact;
	sp->small_reserve = r->small_reserve;
	sp->large_reserve = r->large_reserve;
	for (unsigned int i = 0; i < CLASSES_MAX; i++) {
		struct class_state *c = &sp->classes[i];
		const struct class_left *left = &r->class[i];

		memcpy(c->first, left->first, sizeof(c->first));
		c->slabs = left->slabs;
		c->slots_used = left->slots_used;
		c->taken = left->taken;
		c->objects = left->objects;
		c->logical_bytes = left->logical_bytes;
		c->content_bytes = left->content_bytes;
	}
	/* What compaction waits for began in the old daemon's count. */
	epoch = atomic_load(&sp->store->epoch);
	while (epoch <= r->epoch &&
	       !atomic_compare_exchange_weak(&sp->store->epoch, &epoch, r->epoch + 1))
		;
	return true;
}

void running_disturb(struct space *sp)
{
	struct running *r = running_of(sp);

	if (atomic_load(&r->good)) {
		atomic_store(&r->disturbed, 1);
		sp->disturber = true;
	}
}

int running_resume(struct space *sp)
{
	struct running *r = running_of(sp);

	/* Not there: reading it would take memory. */
	if (!sp->left_room)
		return 0;
	r->magic = 0; /* not one damaged word alone shall bring it back */
	if (atomic_exchange(&r->good, 0) && atomic_exchange(&r->disturbed, 0) && !sp->disturber)
		return space_recover_again(sp);
	return 0;
}
