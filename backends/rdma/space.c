/* SPDX-License-Identifier: BSD-3-Clause */
/* space.c: one VM's part: its map, its chunks at the donors, its objects. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>

#include "rdma.h"

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif

/* RAM may be plugged in later: room for four times the RAM. */
#define SPAN_MIN (UINT64_C(16) << 30)
#define SPAN_MAX (UINT64_C(2) << 40)
#define FULL_NS	 NS_PER_S /* a donor without room is asked again after that */
#define SPARE	 1u	  /* chunks without an order that a share keeps ready */

static uint64_t round_up(uint64_t n)
{
	return (n + PAGE_BYTES - 1) / PAGE_BYTES * PAGE_BYTES;
}

static uint64_t span_of(uint64_t ram_bytes)
{
	uint64_t span = SPAN_MIN;

	while (span < SPAN_MAX && span / 4 < ram_bytes)
		span *= 2;
	return span;
}

/* Sizes and offsets for a span; returns where the entries begin. */
static uint64_t lay_out(struct space *sp, uint64_t span)
{
	uint64_t entries;

	sp->n_entries = span / PAGE_BYTES;
	/* Twice for copies, and again for chunks that are not full. */
	sp->n_chunks = span / WIRE_CHUNK_BYTES * 4;
	entries = PAGE_BYTES + round_up(sp->n_chunks * sizeof(uint64_t));
	sp->map_bytes = entries + round_up(sp->n_entries * sizeof(struct entry));
	return entries;
}

/* A touch without memory left would be a SIGBUS: memory is asked for, before. */
static int populate(const void *at, uint64_t bytes)
{
	uintptr_t from = (uintptr_t)at & ~(uintptr_t)(PAGE_BYTES - 1);

	if (madvise((void *)from, (uintptr_t)at + bytes - from, MADV_POPULATE_WRITE) == 0)
		return 0;
	return errno == EINVAL ? 0 : -ENOSPC; /* a kernel before 5.14 */
}

static void *sparse(uint64_t bytes)
{
	void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
		       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	return p == MAP_FAILED ? NULL : p;
}

static int map_memory(struct space *sp, uint64_t span, int *found)
{
	const struct ebb_backend_host *host = sp->inst->host;
	uint64_t entries = lay_out(sp, span);
	void *addr;
	int r = host->mem_open(host->ctx, sp->host_ctx, MAP_NAME, sp->map_bytes, &addr, found);

	if (r)
		return r;
	sp->header = addr;
	sp->words = (_Atomic uint64_t *)((char *)addr + PAGE_BYTES);
	sp->entries = (struct entry *)((char *)addr + entries);
	return 0;
}

static int format(struct space *sp, const struct ebb_space_params *params)
{
	struct map_header *h = sp->header;

	if (populate(h, PAGE_BYTES))
		return -ENOSPC;
	h->version = MAP_VERSION;
	h->n_entries = sp->n_entries;
	h->n_chunks = sp->n_chunks;
	if (getrandom(&h->seed, sizeof(h->seed), 0) != sizeof(h->seed) ||
	    getrandom(h->key, sizeof(h->key), 0) != sizeof(h->key))
		return -EIO;
	/* Both ours and the daemon's: whichever is better. */
	for (unsigned int i = 0; i < sizeof(h->key); i++)
		h->key[i] ^= params->key[i];
	/* Last: without the magic number there is no map here. */
	__atomic_store_n(&h->magic, MAP_MAGIC, __ATOMIC_RELEASE);
	return 0;
}

static int start(struct space *sp, const struct ebb_space_params *params)
{
	uint64_t span = span_of(params->ram_bytes);
	int found = 0, r = map_memory(sp, span, &found);
	struct map_header *h = sp->header;

	if (r)
		return r;
	/* A daemon that died before the magic number was written left nothing. */
	found = found && h->magic;
	if (!found)
		return format(sp, params);
	if (h->magic != MAP_MAGIC || h->version != MAP_VERSION ||
	    span_of(h->n_entries * PAGE_BYTES / 4) != h->n_entries * PAGE_BYTES)
		return -EBADMSG;
	if (h->n_entries * PAGE_BYTES > span) { /* the VM had more RAM then */
		span = h->n_entries * PAGE_BYTES;
		r = map_memory(sp, span, &found);
		if (r)
			return r;
		h = sp->header;
	}
	lay_out(sp, h->n_entries * PAGE_BYTES);
	sp->entries = (struct entry *)((char *)h + PAGE_BYTES +
				       round_up(sp->n_chunks * sizeof(uint64_t)));
	if (h->n_chunks != sp->n_chunks || h->n_entries != sp->n_entries ||
	    h->entries_high > h->n_entries || h->chunks_high > h->n_chunks)
		return -EBADMSG;
	return 0;
}

/* The space's place at a donor: where it was, or a new one. */
static int share_for(struct space *sp, struct link *l)
{
	struct map_header *h = sp->header;
	unsigned int unused = DONORS_MAX;

	for (unsigned int i = DONORS_MAX; i-- > 0;) {
		if (strncmp(h->donors[i].name, l->name, WIRE_NAME_BYTES) == 0) {
			sp->shares[i].link = l;
			return 0;
		}
		if (!h->donors[i].name[0])
			unused = i;
	}
	if (unused == DONORS_MAX)
		return -ENOSPC;
	wire_random(&h->donors[unused].lease, sizeof(h->donors[unused].lease));
	memcpy(h->donors[unused].name, l->name, WIRE_NAME_BYTES);
	sp->shares[unused].link = l;
	return 0;
}

/* Under inst->lock. */
static int share_all(struct space *sp)
{
	struct rdma *inst = sp->inst;
	int r = 0;

	/* Donors that are in the options no more may still have something of ours. */
	for (unsigned int i = 0; i < DONORS_MAX && !r; i++) {
		struct map_donor *d = &sp->header->donors[i];
		struct link *l;

		d->name[WIRE_NAME_BYTES - 1] = '\0';
		if (d->name[0])
			r = link_get(inst, d->name, false, &l);
	}
	for (unsigned int i = 0; i < inst->n_links && !r; i++)
		r = share_for(sp, inst->links[i]);
	return r;
}

static void space_free(struct space *sp)
{
	if (sp->chunks)
		munmap(sp->chunks, sp->n_chunks * sizeof(*sp->chunks));
	if (sp->free_entries)
		munmap(sp->free_entries, sp->n_entries * sizeof(*sp->free_entries));
	pthread_mutex_destroy(&sp->lock);
	seal_wipe(&sp->seal);
	free(sp);
}

int space_open(struct rdma *inst, const struct ebb_space_params *params, struct space **out)
{
	struct space *sp = calloc(1, sizeof(*sp));
	int r;

	if (!sp)
		return -ENOMEM;
	sp->inst = inst;
	sp->host_ctx = params->space_ctx;
	pthread_mutex_init(&sp->lock, NULL);
	r = start(sp, params);
	if (!r) {
		sp->chunks = sparse(sp->n_chunks * sizeof(*sp->chunks));
		sp->free_entries = sparse(sp->n_entries * sizeof(*sp->free_entries));
		if (!sp->chunks || !sp->free_entries)
			r = -ENOMEM;
	}
	if (!r)
		r = seal_init(&sp->seal, sp->header->key);
	for (unsigned int i = 0; i < DONORS_MAX; i++) {
		sp->shares[i].pool = NONE;
		for (unsigned int o = 0; o <= PIECE_ORDER; o++)
			sp->shares[i].first[o] = NONE;
	}
	/* What was given out beyond what was written down is written down as given out. */
	if (!r) {
		sp->next_count = sp->header->counts;
		sp->header->counts = sp->next_count + COUNTS_AHEAD;
		sp->header->lives++;
		r = recover(sp);
	}
	if (r) {
		space_free(sp);
		return r;
	}
	pthread_mutex_lock(&inst->lock);
	r = share_all(sp);
	if (!r) {
		sp->next = inst->spaces;
		inst->spaces = sp;
	}
	pthread_mutex_unlock(&inst->lock);
	if (r) {
		space_free(sp);
		return r;
	}
	for (unsigned int i = 0; i < inst->n_links; i++)
		link_kick(inst->links[i]);
	*out = sp;
	return 0;
}

void space_close(struct space *sp)
{
	struct rdma *inst = sp->inst;

	atomic_store(&sp->closing, true);
	pthread_mutex_lock(&inst->lock);
	for (struct space **at = &inst->spaces; *at; at = &(*at)->next) {
		if (*at == sp) {
			*at = sp->next;
			break;
		}
	}
	/* Donors' threads finish what they do for it; that takes no longer than one request, or
	 * than a few pieces take to be moved. */
	while (sp->refs)
		pthread_cond_wait(&inst->unused, &inst->lock);
	pthread_mutex_unlock(&inst->lock);
	for (unsigned int i = 0; i < DONORS_MAX; i++)
		if (sp->shares[i].link)
			link_drop(sp->shares[i].link, &sp->header->donors[i].lease);
	/* The keys are of no use to anybody from here on. */
	explicit_bzero(sp->header, PAGE_BYTES);
	inst->host->mem_trim(inst->host->ctx, sp->host_ctx, MAP_NAME, 0, sp->map_bytes);
	space_free(sp);
}

struct space *space_next(struct rdma *inst, struct space *after)
{
	struct space *sp;

	pthread_mutex_lock(&inst->lock);
	sp = after ? after->next : inst->spaces;
	if (sp)
		sp->refs++;
	if (after && --after->refs == 0)
		pthread_cond_broadcast(&inst->unused);
	pthread_mutex_unlock(&inst->lock);
	return sp;
}

void space_put(struct space *sp)
{
	struct rdma *inst = sp->inst;

	pthread_mutex_lock(&inst->lock);
	if (--sp->refs == 0)
		pthread_cond_broadcast(&inst->unused);
	pthread_mutex_unlock(&inst->lock);
}

/* ---- entries ---- */

uint16_t entry_first_gen(const struct space *sp, uint32_t index)
{
	/* Begin anywhere, and differently in each space: a handle of one does not fit another. */
	return (uint16_t)((sp->header->seed + index * 0x9e3779b1u) >> 16);
}

uint16_t entry_next_gen(const struct space *sp, uint32_t index)
{
	uint64_t head = atomic_load_explicit(&sp->entries[index].head, memory_order_relaxed);

	return head & HEAD_USED ? head_gen(head) : entry_first_gen(sp, index);
}

static void entry_release(struct space *sp, uint32_t index)
{
	sp->free_entries[index] = sp->first_entry;
	sp->first_entry = index + 1;
}

int entries_take(struct space *sp, uint32_t *out, uint32_t n)
{
	struct map_header *h = sp->header;
	uint32_t have = 0;

	pthread_mutex_lock(&sp->lock);
	for (; have < n; have++) {
		uint32_t high = h->entries_high;

		if (sp->first_entry) {
			out[have] = sp->first_entry - 1;
			sp->first_entry = sp->free_entries[out[have]];
			continue;
		}
		if (high == sp->n_entries)
			break;
		/* Memory for 64 KiB of entries at a time. */
		if (high % 1024 == 0 && populate(&sp->entries[high], 1024 * sizeof(struct entry)))
			break;
		h->entries_high = high + 1;
		out[have] = high;
	}
	if (have < n)
		while (have)
			entry_release(sp, out[--have]);
	pthread_mutex_unlock(&sp->lock);
	return have == n ? 0 : -ENOSPC;
}

void entries_put(struct space *sp, const uint32_t *list, uint32_t n)
{
	pthread_mutex_lock(&sp->lock);
	for (uint32_t i = n; i-- > 0;)
		entry_release(sp, list[i]);
	pthread_mutex_unlock(&sp->lock);
}

uint64_t count_take(struct space *sp)
{
	uint64_t c = atomic_fetch_add(&sp->next_count, 1);

	/* Written down before it is reached, so that no successor gives it out again. */
	if (c + COUNTS_AHEAD / 2 >= atomic_load(&sp->header->counts)) {
		pthread_mutex_lock(&sp->lock);
		if (c + COUNTS_AHEAD / 2 >= sp->header->counts)
			sp->header->counts += COUNTS_AHEAD;
		pthread_mutex_unlock(&sp->lock);
	}
	return c;
}

/* ---- chunks and slots; under space.lock ---- */

static uint32_t slots_in(unsigned int order)
{
	return SLOTS_MAX >> order;
}

static uint32_t *list_of(struct space *sp, const struct chunk *c)
{
	struct share *s = &sp->shares[c->donor];

	return c->state == CHUNK_POOL ? &s->pool : &s->first[c->order];
}

void chunk_list(struct space *sp, uint32_t row)
{
	struct chunk *c = &sp->chunks[row];
	uint32_t *first = list_of(sp, c);

	c->listed = true;
	c->prev = NONE;
	c->next = *first;
	if (c->next != NONE)
		sp->chunks[c->next].prev = row;
	*first = row;
	if (c->state == CHUNK_POOL)
		sp->shares[c->donor].n_pool++;
}

void chunk_unlist(struct space *sp, uint32_t row)
{
	struct chunk *c = &sp->chunks[row];

	if (!c->listed)
		return;
	c->listed = false;
	if (c->prev != NONE)
		sp->chunks[c->prev].next = c->next;
	else
		*list_of(sp, c) = c->next;
	if (c->next != NONE)
		sp->chunks[c->next].prev = c->prev;
	if (c->state == CHUNK_POOL)
		sp->shares[c->donor].n_pool--;
}

uint32_t chunk_take_row(struct space *sp)
{
	struct map_header *h = sp->header;
	uint32_t row;

	if (sp->first_chunk) {
		row = sp->first_chunk - 1;
		sp->first_chunk = sp->chunks[row].next;
		return row;
	}
	row = h->chunks_high;
	if (row == sp->n_chunks ||
	    (row % 512 == 0 && populate((const void *)&sp->words[row], 512 * sizeof(uint64_t))))
		return NONE;
	h->chunks_high = row + 1;
	return row;
}

void chunk_give_row(struct space *sp, uint32_t row)
{
	sp->chunks[row].state = CHUNK_FREE;
	sp->chunks[row].next = sp->first_chunk;
	sp->first_chunk = row + 1;
	atomic_store(&sp->words[row], 0);
}

static uint32_t lowest_free(const struct chunk *c)
{
	for (uint32_t w = 0; w < SLOTS_MAX / 64; w++)
		if (~c->slots[w])
			return w * 64 + (uint32_t)__builtin_ctzll(~c->slots[w]);
	return NONE;
}

/* A chunk of the share with room in this order, or NONE. */
static uint32_t chunk_with_room(struct space *sp, unsigned int share, unsigned int order)
{
	struct share *s = &sp->shares[share];
	uint32_t row = s->first[order];
	struct chunk *c;

	if (row != NONE)
		return row;
	row = s->pool;
	if (row == NONE)
		return NONE;
	chunk_unlist(sp, row);
	c = &sp->chunks[row];
	c->order = (uint8_t)order;
	c->used = 0;
	memset(c->slots, 0, sizeof(c->slots));
	memset(c->held, 0, sizeof(c->held));
	/* The map says the order before any entry names a slot of it. */
	atomic_store(&sp->words[row], chunk_word(c->number, share, order, CHUNK_OURS));
	c->state = CHUNK_OPEN;
	chunk_list(sp, row);
	return row;
}

static bool slot_from(struct space *sp, unsigned int share, unsigned int order, uint64_t *at)
{
	uint32_t row = chunk_with_room(sp, share, order), slot;
	struct chunk *c;

	if (row == NONE)
		return false;
	c = &sp->chunks[row];
	slot = lowest_free(c);
	c->slots[slot / 64] |= UINT64_C(1) << (slot % 64);
	if (++c->used == slots_in(order))
		chunk_unlist(sp, row);
	*at = place_make(row, slot);
	return true;
}

bool share_wants(struct space *sp, unsigned int share)
{
	struct share *s = &sp->shares[share];
	bool wants;

	pthread_mutex_lock(&sp->lock);
	wants = atomic_load(&sp->active) && s->n_pool < SPARE && atomic_load(&s->link->placing) &&
		!atomic_load(&s->link->recall) && now_ns() >= s->full_until_ns;
	pthread_mutex_unlock(&sp->lock);
	return wants;
}

int slot_take(struct space *sp, unsigned int order, uint32_t links, uint32_t avoid, uint64_t *at)
{
	bool soon = false, taken = false;
	uint64_t now = now_ns();

	pthread_mutex_lock(&sp->lock);
	for (unsigned int i = 0; i < DONORS_MAX && !taken; i++) {
		/* One donor after the other: what belongs together is spread. */
		unsigned int share = (sp->turn + i) % DONORS_MAX;
		struct share *s = &sp->shares[share];
		struct link *l = s->link;

		if (!l || share == avoid || !atomic_load(&l->placing))
			continue;
		if (!atomic_load(&s->open) || !(links >> l->index & 1)) {
			soon = soon || atomic_load(&l->up) || atomic_load(&l->hopeful);
			continue;
		}
		if (atomic_load(&l->recall))
			continue;
		taken = slot_from(sp, share, order, at);
		/* Not for the second copy: else one donor would have all the first ones. */
		if (taken && avoid == NONE)
			sp->turn = (share + 1) % DONORS_MAX;
		if (!s->n_pool && now >= s->full_until_ns) {
			soon = true;
			link_kick(l);
		}
	}
	pthread_mutex_unlock(&sp->lock);
	return taken ? 0 : soon ? -EAGAIN : -ENOSPC;
}

/* True when a place is one that can be, with a taken slot. */
static bool place_good(const struct space *sp, uint64_t at)
{
	uint32_t row = place_chunk(at), slot = place_slot(at);

	return at && row < sp->n_chunks && slot < SLOTS_MAX &&
	       (sp->chunks[row].slots[slot / 64] >> (slot % 64) & 1);
}

static void put_locked(struct space *sp, uint64_t at)
{
	uint32_t row = place_chunk(at), slot = place_slot(at);
	struct chunk *c = &sp->chunks[row];

	if (!place_good(sp, at))
		return; /* damaged */
	c->slots[slot / 64] &= ~(UINT64_C(1) << (slot % 64));
	c->used--;
	switch (atomic_load(&c->state)) {
	case CHUNK_OPEN:
		if (!c->used) {
			chunk_unlist(sp, row);
			atomic_store(&c->vacating, false);
			c->state = CHUNK_POOL;
			chunk_list(sp, row);
		} else if (!c->listed && !atomic_load(&c->vacating)) {
			chunk_list(sp, row);
		}
		break;
	case CHUNK_LOST:
		if (!c->used)
			chunk_give_row(sp, row);
		break;
	default:
		break;
	}
}

void slot_put(struct space *sp, uint64_t at)
{
	pthread_mutex_lock(&sp->lock);
	put_locked(sp, at);
	pthread_mutex_unlock(&sp->lock);
}

void slot_hold(struct space *sp, uint64_t at)
{
	uint32_t slot = place_slot(at);

	pthread_mutex_lock(&sp->lock);
	if (place_good(sp, at))
		sp->chunks[place_chunk(at)].held[slot / 64] |= UINT64_C(1) << (slot % 64);
	pthread_mutex_unlock(&sp->lock);
}

static void release_held(struct space *sp, uint32_t row)
{
	struct chunk *c = &sp->chunks[row];

	for (uint32_t w = 0; w < SLOTS_MAX / 64; w++) {
		while (c->held[w]) {
			uint32_t bit = (uint32_t)__builtin_ctzll(c->held[w]);

			c->held[w] &= c->held[w] - 1;
			put_locked(sp, place_make(row, w * 64 + bit));
		}
	}
}

/* ---- what donors lend ---- */

static void chunk_reached(struct chunk *c, const struct wire_chunk *lent)
{
	c->addr = lent->addr;
	c->rkey = lent->rkey;
}

static void chunk_lost(struct space *sp, uint32_t row)
{
	struct chunk *c = &sp->chunks[row];

	count(sp->inst, COUNT_CHUNKS_LOST, 1);
	chunk_unlist(sp, row);
	sp->shares[c->donor].n_chunks--;
	atomic_fetch_or(&sp->words[row], CHUNK_GONE);
	c->state = CHUNK_LOST;
	if (!c->used)
		chunk_give_row(sp, row);
}

uint32_t share_claimed(struct space *sp, unsigned int share, const struct wire_chunk *lent,
		       uint32_t n_lent, uint32_t *strange)
{
	uint32_t high, highest = 0, n_strange = 0, *row_of;

	for (uint32_t i = 0; i < n_lent; i++)
		highest = lent[i].number > highest ? lent[i].number : highest;
	row_of = calloc((uint64_t)highest + 1, sizeof(*row_of)); /* which of `lent`, + 1 */
	if (!row_of)
		return NONE;
	for (uint32_t i = 0; i < n_lent; i++)
		row_of[lent[i].number] = i + 1;
	pthread_mutex_lock(&sp->lock);
	high = sp->header->chunks_high;
	for (uint32_t row = 0; row < high; row++) {
		struct chunk *c = &sp->chunks[row];
		uint32_t i;

		if (c->state == CHUNK_FREE || c->state == CHUNK_LOST || c->donor != share)
			continue;
		/* The session before is over, and with it every write that was under way. */
		release_held(sp, row);
		i = c->number <= highest ? row_of[c->number] : 0;
		if (i) {
			chunk_reached(c, &lent[i - 1]);
			row_of[c->number] = 0;
		} else {
			chunk_lost(sp, row);
		}
	}
	pthread_mutex_unlock(&sp->lock);
	for (uint32_t i = 0; i < n_lent; i++)
		if (row_of[lent[i].number])
			strange[n_strange++] = lent[i].number;
	free(row_of);
	return n_strange;
}

uint32_t share_given(struct space *sp, unsigned int share, const struct wire_chunk *lent,
		     uint32_t n)
{
	struct share *s = &sp->shares[share];
	uint32_t i;

	pthread_mutex_lock(&sp->lock);
	for (i = 0; i < n; i++) {
		uint32_t row = chunk_take_row(sp);
		struct chunk *c;

		if (row == NONE)
			break;
		c = &sp->chunks[row];
		memset(c, 0, sizeof(*c));
		c->donor = (uint8_t)share;
		c->number = lent[i].number;
		chunk_reached(c, &lent[i]);
		atomic_store(&sp->words[row], chunk_word(c->number, share, 0, CHUNK_OURS));
		c->state = CHUNK_POOL;
		chunk_list(sp, row);
		s->n_chunks++;
	}
	if (!i)
		s->full_until_ns = now_ns() + FULL_NS;
	pthread_mutex_unlock(&sp->lock);
	return i;
}

uint32_t share_leaving(struct space *sp, unsigned int share, uint32_t *rows, uint32_t *numbers,
		       uint32_t n)
{
	struct share *s = &sp->shares[share];
	bool all = !atomic_load(&s->link->placing) || atomic_load(&s->link->recall);
	uint32_t have = 0, keep = all ? 0 : SPARE + 1;

	pthread_mutex_lock(&sp->lock);
	while (atomic_load(&sp->active) && !sp->moving && have < n && s->n_pool > keep) {
		uint32_t row = s->pool;

		chunk_unlist(sp, row);
		sp->chunks[row].state = CHUNK_LEAVING;
		rows[have] = row;
		numbers[have++] = sp->chunks[row].number;
	}
	pthread_mutex_unlock(&sp->lock);
	return have;
}

void share_left(struct space *sp, const uint32_t *rows, uint32_t n)
{
	pthread_mutex_lock(&sp->lock);
	for (uint32_t i = 0; i < n; i++) {
		sp->shares[sp->chunks[rows[i]].donor].n_chunks--;
		chunk_give_row(sp, rows[i]);
	}
	pthread_mutex_unlock(&sp->lock);
}

/* ---- what moves away from a donor that wants its memory back ---- */

uint32_t share_vacate(struct space *sp, unsigned int share, uint64_t n)
{
	uint32_t of_use[SLOTS_MAX + 1] = {0}, marked = 0, high; /* by pages in use */
	uint64_t sum = 0;
	unsigned int most = 0;

	pthread_mutex_lock(&sp->lock);
	high = sp->header->chunks_high;
	for (uint32_t row = 0; row < high; row++) {
		const struct chunk *c = &sp->chunks[row];

		if (c->state == CHUNK_OPEN && c->donor == share)
			of_use[(uint32_t)c->used << c->order]++;
	}
	while (most < SLOTS_MAX && sum < n)
		sum += of_use[++most];
	for (uint32_t row = 0; row < high && marked < n; row++) {
		struct chunk *c = &sp->chunks[row];

		if (c->state != CHUNK_OPEN || c->donor != share ||
		    (uint32_t)c->used << c->order > most)
			continue;
		chunk_unlist(sp, row);
		atomic_store(&c->vacating, true);
		marked++;
	}
	pthread_mutex_unlock(&sp->lock);
	return marked;
}

void share_vacate_end(struct space *sp, unsigned int share)
{
	pthread_mutex_lock(&sp->lock);
	for (uint32_t row = 0; row < sp->header->chunks_high; row++) {
		struct chunk *c = &sp->chunks[row];

		if (c->donor != share || !atomic_exchange(&c->vacating, false))
			continue;
		if (c->state == CHUNK_OPEN && c->used < slots_in(c->order) && !c->listed)
			chunk_list(sp, row);
	}
	pthread_mutex_unlock(&sp->lock);
}

void space_moving(struct space *sp, bool on)
{
	pthread_mutex_lock(&sp->lock);
	sp->moving = on;
	pthread_mutex_unlock(&sp->lock);
}

uint32_t moves_find(struct space *sp, uint32_t *next, struct piece_move *out, uint32_t n)
{
	uint32_t have = 0, high = atomic_load(&sp->header->entries_high);

	for (; *next < high && have + COPIES <= n; ++*next) {
		struct entry *e = &sp->entries[*next];
		uint64_t head = atomic_load_explicit(&e->head, memory_order_acquire);

		for (unsigned int k = 0; k < COPIES && head & HEAD_LIVE; k++) {
			uint64_t at = atomic_load(&e->at[k]);

			if (!at || place_chunk(at) >= sp->n_chunks ||
			    !atomic_load(&sp->chunks[place_chunk(at)].vacating))
				continue;
			out[have++] = (struct piece_move){
				.io = {.op = IO_MOVE,
				       .flags = EBB_IO_BACKGROUND,
				       .space = sp,
				       .len = PAGE_BYTES << piece_order(head_order(head))},
				.index = *next,
				.copy = k,
				.head = head,
				.from = at};
		}
	}
	return have;
}

int slot_take_for_move(struct space *sp, const struct piece_move *m, uint32_t links, uint64_t *at)
{
	uint64_t other = atomic_load(&sp->entries[m->index].at[1 - m->copy]);
	unsigned int share = sp->chunks[place_chunk(m->from)].donor;
	unsigned int order = sp->chunks[place_chunk(m->from)].order;
	uint32_t avoid = NONE;
	int r;

	if (other && place_chunk(other) < sp->n_chunks)
		avoid = sp->chunks[place_chunk(other)].donor;
	r = slot_take(sp, order, links, avoid, at);
	if (r != -ENOSPC)
		return r;
	/* Into chunks that have been begun only: so there are fewer of them in the end. */
	pthread_mutex_lock(&sp->lock);
	if (sp->shares[share].first[order] != NONE && slot_from(sp, share, order, at))
		r = 0;
	pthread_mutex_unlock(&sp->lock);
	return r;
}

bool move_commit(struct space *sp, const struct piece_move *m)
{
	struct entry *e = &sp->entries[m->index];
	bool same;

	/* Objects end under this lock. The seal is of the content, not of the place: its count and
	 * tag stay. */
	pthread_mutex_lock(&sp->lock);
	same = atomic_load(&e->head) == m->head && atomic_load(&e->at[m->copy]) == m->from;
	if (same)
		atomic_store(&e->at[m->copy], m->to);
	pthread_mutex_unlock(&sp->lock);
	return same;
}

/* ---- objects ---- */

uint64_t object_commit(struct space *sp, const struct op *op)
{
	uint32_t n = pieces_of(op->order), next = 0;
	uint64_t flags = HEAD_LIVE | HEAD_USED | (op->encrypted ? HEAD_ENCRYPTED : 0);
	uint16_t gen = 0;

	/* The first one last: with it the object is there. */
	for (uint32_t i = n; i-- > 0; next = op->entries[i] + 1) {
		gen = entry_next_gen(sp, op->entries[i]);
		atomic_store_explicit(&sp->entries[op->entries[i]].head,
				      head_make(next, gen, op->order, flags | (i ? HEAD_PIECE : 0)),
				      memory_order_release);
	}
	pthread_mutex_lock(&sp->lock);
	sp->objects++;
	sp->pieces += n;
	sp->logical_bytes += (uint64_t)PAGE_BYTES << op->order;
	pthread_mutex_unlock(&sp->lock);
	return handle_make(op->entries[0], gen);
}

int object_find(struct space *sp, uint64_t handle, struct op *op)
{
	uint32_t index = (uint32_t)handle, n = pieces_of(op->order);
	uint64_t head;

	if (handle & ~EBB_HANDLE_MASK)
		return -EINVAL;
	for (uint32_t i = 0; i < n; i++) {
		if (index >= atomic_load(&sp->header->entries_high) || index >= sp->n_entries)
			return -EINVAL;
		head = atomic_load_explicit(&sp->entries[index].head, memory_order_acquire);
		if (!(head & HEAD_LIVE) || head_order(head) != op->order ||
		    !!(head & HEAD_PIECE) != !!i || !head_next(head) != (i == n - 1))
			return -EINVAL;
		if (!i) {
			if (head_gen(head) != (uint16_t)(handle >> 32))
				return -EINVAL;
			op->encrypted = head & HEAD_ENCRYPTED;
		}
		op->entries[i] = index;
		index = head_next(head) - 1;
	}
	return 0;
}

/* Ends one entry: its places are free, its generation moves on. Under space.lock. */
static void entry_end(struct space *sp, uint32_t index, uint64_t head)
{
	struct entry *e = &sp->entries[index];

	atomic_store_explicit(&e->head, head_make(0, (uint16_t)(head_gen(head) + 1), 0, HEAD_USED),
			      memory_order_release);
	for (unsigned int k = 0; k < COPIES; k++) {
		put_locked(sp, atomic_load(&e->at[k]));
		atomic_store(&e->at[k], 0);
	}
	entry_release(sp, index);
	sp->pieces--;
}

/* Under space.lock; `index` is a live first entry. */
static void object_end(struct space *sp, uint32_t index, uint64_t head)
{
	unsigned int order = head_order(head);

	sp->objects--;
	sp->logical_bytes -= (uint64_t)PAGE_BYTES << order;
	for (uint32_t i = pieces_of(order); i-- > 0;) {
		uint32_t next = head_next(head);

		entry_end(sp, index, head);
		index = next - 1;
		if (!next || index >= sp->header->entries_high)
			return;
		head = atomic_load(&sp->entries[index].head);
		if (!(head & HEAD_LIVE) || !(head & HEAD_PIECE))
			return; /* damaged */
	}
}

static int free_locked(struct space *sp, uint64_t handle)
{
	uint32_t index = (uint32_t)handle;
	uint64_t head;

	if (handle & ~EBB_HANDLE_MASK || index >= sp->header->entries_high)
		return -EINVAL;
	head = atomic_load(&sp->entries[index].head);
	if (!(head & HEAD_LIVE) || (head & HEAD_PIECE) ||
	    head_gen(head) != (uint16_t)(handle >> 32))
		return -EINVAL;
	object_end(sp, index, head);
	return 0;
}

int object_free(struct space *sp, uint64_t handle)
{
	int r;

	pthread_mutex_lock(&sp->lock);
	r = free_locked(sp, handle);
	pthread_mutex_unlock(&sp->lock);
	return r;
}

static int compare(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return x < y ? -1 : x > y;
}

int64_t object_retain(struct space *sp, const uint64_t *handles, uint64_t n)
{
	int64_t freed = 0;

	pthread_mutex_lock(&sp->lock);
	for (uint32_t i = 0; i < sp->header->entries_high; i++) {
		uint64_t head = atomic_load(&sp->entries[i].head);
		uint64_t handle = handle_make(i, head_gen(head));

		if (!(head & HEAD_LIVE) || (head & HEAD_PIECE) ||
		    bsearch(&handle, handles, n, sizeof(*handles), compare))
			continue;
		object_end(sp, i, head);
		freed++;
	}
	pthread_mutex_unlock(&sp->lock);
	return freed;
}

/* ---- figures ---- */

uint64_t capacity_bytes(struct rdma *inst)
{
	uint64_t chunks = 0;
	bool known = false;

	pthread_mutex_lock(&inst->lock);
	for (unsigned int i = 0; i < inst->n_links; i++) {
		struct link *l = inst->links[i];
		uint64_t ours = 0, recall = atomic_load(&l->recall);

		for (struct space *sp = inst->spaces; sp; sp = sp->next) {
			pthread_mutex_lock(&sp->lock);
			for (unsigned int k = 0; k < DONORS_MAX; k++)
				ours += sp->shares[k].link == l ? sp->shares[k].n_chunks : 0;
			pthread_mutex_unlock(&sp->lock);
		}
		known = known || ours || atomic_load(&l->up);
		/* Of one that is away we know what it had. */
		ours += atomic_load(&l->up) && atomic_load(&l->placing) ? atomic_load(&l->room) : 0;
		chunks += ours - (recall < ours ? recall : ours);
	}
	pthread_mutex_unlock(&inst->lock);
	/* 0 would be no bound. */
	return chunks ? chunks * WIRE_CHUNK_BYTES : known;
}

void space_usage(struct space *sp, struct ebb_usage *out)
{
	uint64_t chunks = 0, local, stored;

	pthread_mutex_lock(&sp->lock);
	for (unsigned int i = 0; i < DONORS_MAX; i++)
		chunks += sp->shares[i].n_chunks;
	stored = sp->logical_bytes * (sp->inst->mirror ? COPIES : 1);
	local = PAGE_BYTES + sp->header->entries_high * (sizeof(struct entry) + sizeof(uint32_t)) +
		sp->header->chunks_high * (sizeof(struct chunk) + sizeof(uint64_t));
	out->objects += sp->objects;
	out->logical_bytes += sp->logical_bytes;
	pthread_mutex_unlock(&sp->lock);
	if (chunks * WIRE_CHUNK_BYTES < stored) /* of chunks that were lost */
		stored = chunks * WIRE_CHUNK_BYTES;
	out->stored_bytes += stored;
	out->footprint_bytes += chunks * WIRE_CHUNK_BYTES + local;
	out->overhead_bytes += chunks * WIRE_CHUNK_BYTES + local - stored;
}
