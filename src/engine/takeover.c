/* SPDX-License-Identifier: BSD-3-Clause */
/* takeover.c: going on with a VM whose daemon has died. */
#include "engine/takeover.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/fault_point.h"
#include "base/log.h"
#include "engine/thp.h"
#include "engine/vm_record.h"
#include "sys/memfd.h"
#include "sys/uffd.h"

/*
 * Theory of operation
 *
 * The client hands back what it kept: the VM's record, its page tables and its stores. Nothing of
 * it is believed before it is checked. Then:
 *
 *   1 register all ranges again (the same modes change nothing; from here on new faults come to us)
 *   2 repair every entry from its state, as model/page_entry.h says for each; renumber its tier
 *   3 open the stores
 *   4 (the caller) watch the userfaultfd and wake all ranges: a fault that the dead daemon had read
 *     is not delivered again until it is woken
 *   5 free in the stores what no entry named in step 2: beside faults, before anything is evicted
 *
 * The work grows with the tables, never with the stored bytes. Nobody else knows of the VM until
 * step 4, so entries are set without compare-and-swap.
 */

/* Handles that entries name, by tier, for the backends to keep. */
struct handles {
	uint64_t *list;
	uint64_t n, room;
};

struct takeover {
	struct vm *vm;
	struct attachment *att;
	struct vm_record *rec;
	unsigned int tier[PE_TIERS];	  /* the dead daemon's number -> ours; 0: none */
	struct handles handles[PE_TIERS]; /* by our numbers */
	uint64_t repaired, damaged, lost; /* units; lost: damaged ones and those of before */
	/* Bytes by state and tier, for the VM's books; kept here because there are many entries. */
	struct {
		int64_t resident, evicted, zero, lost, copies, tier[PE_TIERS];
	} sum;
};

/* most: how many there can be, as far as is known; only what is used takes memory. */
static int note_handle(struct handles *h, uint64_t handle, uint64_t most)
{
	if (h->n == h->room) {
		uint64_t room = h->room ? 2 * h->room : most;
		uint64_t *list = realloc(h->list, room * sizeof(*list));

		if (!list)
			return -ENOMEM;
		h->list = list;
		h->room = room;
	}
	h->list[h->n++] = handle;
	return 0;
}

/* How much of a unit is in the page cache, in bytes. */
static uint64_t cached_bytes(struct block *b, uint64_t unit)
{
	uint64_t at = block_file_offset(b, unit), end = at + block_unit_bytes(b), start, stop,
		 n = 0;
	struct mapping *m = atomic_load(&b->mappings[0]);

	if (b->kind == BLOCK_HUGETLB) {
		int64_t r =
			uffd_continue(m->att->uffd, mapping_addr(m, unit), block_unit_bytes(b), 0);

		return r > 0 || r == -EEXIST ? block_unit_bytes(b) : 0;
	}
	while (memfd_next_data(b->memfd, at, end, &start, &stop)) {
		n += stop - start;
		at = stop;
	}
	return n;
}

/* An entry whose content is in the page cache, in state s; it may have a copy as well. */
static uint64_t present(uint64_t e, enum page_state s)
{
	if ((e & PE_COPY) && page_entry_tier(e) != PE_TIER_FILL)
		return page_entry_in(e, s) & ~PE_PARTIAL;
	return page_entry_bare(s) | (e & (PE_PREFETCHED | PE_PLAIN));
}

/* What an entry that can be believed becomes, as model/page_entry.h says for each state. */
static uint64_t repair(struct block *b, uint64_t unit, uint64_t e, bool away)
{
	uint64_t have;

	e &= ~(PE_WANTED | PE_RECENT);
	switch (page_entry_state(e)) {
	case PE_RESIDENT:
	case PE_PROTECTED:
	case PE_UNPROTECTING:
	case PE_STORING:
		/* A write protection that stays behind is lifted by the fault that meets it; for
		 * transparent huge pages see thp_settle(). */
		return present(e, PE_RESIDENT);
	case PE_PINNED:
		return present(e, PE_PINNED);
	case PE_PUNCHING:
		if (!away)
			return page_entry_bare(PE_RESIDENT);
		memfd_punch(b->memfd, block_file_offset(b, unit), block_unit_bytes(b));
		return page_entry_in(e & ~PE_COPY, PE_EVICTED);
	case PE_EVICTED:
		return e & ~PE_MOVING; /* the bit of PE_COPY */
	case PE_CLEARING:
		if (away)
			return page_entry_in(e & ~PE_COPY, PE_EVICTED);
		return page_entry_bare(cached_bytes(b, unit) ? PE_RESIDENT : PE_NONE);
	case PE_LOADING:
		have = cached_bytes(b, unit);
		if (have == block_unit_bytes(b))
			return page_entry_bare(PE_RESIDENT);
		if (away)
			return page_entry_in(e & ~PE_COPY, PE_EVICTED) | (have ? PE_PARTIAL : 0);
		return page_entry_bare(have ? PE_RESIDENT : PE_NONE);
	default:
		return page_entry_bare(page_entry_state(e));
	}
}

/* Gives the entry its tier in our numbering; false when it names one that was not there. */
static bool renumber(struct takeover *t, uint64_t *e)
{
	unsigned int tier = page_entry_tier(*e);
	bool has_copy = page_entry_state(*e) == PE_EVICTED || (*e & PE_COPY);

	if (!has_copy || tier == PE_TIER_FILL)
		return true;
	if (!t->tier[tier] && (*e & PE_COPY)) {
		*e = page_entry_bare(page_entry_state(*e)); /* the page itself is there */
		return true;
	}
	if (!t->tier[tier])
		return false;
	*e = page_entry_with_copy(*e, t->tier[tier], page_entry_handle(*e));
	return note_handle(&t->handles[t->tier[tier]], page_entry_handle(*e),
			   atomic_load(&t->vm->units) + 1) == 0;
}

static void account(struct takeover *t, const struct block *b, uint64_t e, uint64_t units)
{
	int64_t bytes = (int64_t)(units << b->unit_shift);

	switch (page_entry_state(e)) {
	case PE_RESIDENT:
	case PE_PINNED:
		t->sum.resident += bytes;
		if (e & PE_COPY) {
			t->sum.copies += bytes;
			t->sum.tier[page_entry_tier(e)] += bytes;
		}
		break;
	case PE_EVICTED:
		t->sum.evicted += bytes;
		t->sum.tier[page_entry_tier(e)] += bytes;
		if (page_entry_tier(e) == PE_TIER_FILL)
			t->sum.zero += bytes;
		break;
	case PE_LOST:
		t->sum.lost += bytes;
		t->lost += units;
		break;
	default:
		break;
	}
}

/* Added, not set: attachment_add_any() has its own sums. */
static void enter_books(struct takeover *t)
{
	struct vm *vm = t->vm;

	atomic_fetch_add(&vm->resident, t->sum.resident);
	atomic_fetch_add(&vm->evicted, t->sum.evicted);
	atomic_fetch_add(&vm->zero, t->sum.zero);
	atomic_fetch_add(&vm->lost, t->sum.lost);
	atomic_fetch_add(&vm->copies, t->sum.copies);
	for (unsigned int i = 0; i < PE_TIERS; i++)
		atomic_fetch_add(&vm->tier_units[i], t->sum.tier[i]);
}

/*
 * Pins are the client's word, which it does not repeat: each run of PINNED units becomes one pin.
 * More runs than there can be pins stay PINNED without one, which is safe.
 */
static void restore_pin(struct block *b, uint64_t unit)
{
	unsigned int n = atomic_load(&b->n_pins);

	if (n && b->pins[n - 1].first + b->pins[n - 1].count == unit) {
		b->pins[n - 1].count++;
	} else if (n < BLOCK_PINS_MAX) {
		b->pins[n] = (struct pin){unit, 1, 1};
		atomic_store(&b->n_pins, n + 1);
	}
}

/*
 * Units of the run whose entry and away bit agree and are not to be believed all the same, as the
 * run's sum tells: they say that nothing is away, and then their page is there, all of it.
 */
static void doubt(struct block *b, uint64_t first, bool sound[PAGE_TABLE_RUN])
{
	bool suspect[PAGE_TABLE_RUN];

	for (uint64_t i = 0; i < PAGE_TABLE_RUN; i++)
		sound[i] = first + i >= b->units ||
			   page_entry_sound(page_table_get(&b->table, first + i),
					    page_table_away(&b->table, first + i),
					    unit_owner(b, first + i));
	if (!page_table_suspects(&b->table, first, sound, suspect))
		return;
	for (uint64_t i = 0; i < PAGE_TABLE_RUN; i++)
		if (suspect[i] && cached_bytes(b, first + i) != block_unit_bytes(b))
			sound[i] = false;
}

static int repair_block(struct takeover *t, struct block *b)
{
	bool believed[PAGE_TABLE_RUN], doubtful = false;

	for (uint64_t u = 0; u < b->units; u++) {
		bool away = page_table_away(&b->table, u), sound;
		uint64_t was, e;

		if (u % PAGE_TABLE_RUN == 0 && page_table_uniform(&b->table, u, &e) &&
		    b->units - u >= PAGE_TABLE_RUN && !page_table_run_away(&b->table, u) &&
		    (e == page_entry_bare(PE_NONE) || e == page_entry_bare(PE_RESIDENT))) {
			account(t, b, e, PAGE_TABLE_RUN);
			u += PAGE_TABLE_RUN - 1;
			continue;
		}
		if (u % PAGE_TABLE_RUN == 0) {
			doubtful = !page_table_sum_fits(&b->table, u);
			if (doubtful)
				doubt(b, u, believed);
		}
		e = was = page_table_get(&b->table, u);
		sound = doubtful ? believed[u % PAGE_TABLE_RUN]
				 : page_entry_sound(was, away, unit_owner(b, u));
		if (sound)
			e = repair(b, u, was, away);
		if (!sound || !renumber(t, &e)) {
			/* Not to be believed: that unit alone is given up, never guessed. */
			t->damaged++;
			e = page_entry_bare(PE_LOST);
			unit_poison(b, u);
		}
		if (e != was || away != page_state_away(page_entry_state(e))) {
			t->repaired++;
			page_table_repair(&b->table, u, e);
			FAULT_POINT(takeover_repairing);
		}
		if (page_entry_state(e) == PE_PINNED)
			restore_pin(b, u);
		account(t, b, e, 1);
		if (doubtful && (u % PAGE_TABLE_RUN == PAGE_TABLE_RUN - 1 || u == b->units - 1))
			page_table_seal(&b->table, u);
	}
	if (b->kind == BLOCK_THP)
		thp_settle(b);
	FAULT_POINT(takeover_repaired);
	return 0;
}

/* Opens the spaces on what was found: from then on they can be read from. */
static int open_spaces(struct takeover *t, struct error *e)
{
	int r = 0;

	for (unsigned int old = 1; old < PE_TIERS && !r; old++) {
		unsigned int tier = t->tier[old];

		if (!tier)
			continue;
		t->vm->space_ram_bytes[tier] = t->rec->tiers[old].space_ram_bytes;
		memcpy(t->vm->space_key[tier], t->rec->tiers[old].key, SPACE_KEY_BYTES);
		r = backends_space(t->vm, tier);
		if (r)
			error_set(e, -r, ERROR_GENERIC,
				  "backend %s cannot take over what it had stored: %s",
				  t->vm->eng->slots[tier].name, error_text(r));
		FAULT_POINT(takeover_opened);
	}
	return r;
}

static int compare_handles(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return x < y ? -1 : x > y;
}

/* Frees in the spaces what no entry named when the table was repaired; nothing was stored since. */
static void free_orphans(struct takeover *t)
{
	struct vm *vm = t->vm;
	struct engine *eng = vm->eng;
	struct loader *ld = malloc(sizeof(*ld));

	if (!ld || loader_open_brief(eng, ld)) {
		log_warning("VM %s: out of memory; what nobody names stays in the backends",
			    vm->name);
		free(ld);
		return;
	}
	for (unsigned int old = 1; old < PE_TIERS; old++) {
		unsigned int tier = t->tier[old];
		struct handles *h = &t->handles[tier];
		int64_t freed = 0;

		if (h->n)
			qsort(h->list, h->n, sizeof(*h->list), compare_handles);
		if (tier && atomic_load(&vm->spaces[tier]) && loader_channel(ld, tier))
			freed = backend_retain(loader_channel(ld, tier),
					       atomic_load(&vm->spaces[tier]), h->list, h->n);
		FAULT_POINT(takeover_retained);
		if (freed > 0)
			log_info("VM %s: %lld stored units that nobody named were freed in %s",
				 vm->name, (long long)freed, eng->slots[tier].name);
	}
	loader_close(ld);
	free(ld);
}

/* The backends that hold this VM's pages must be there under their names. */
static int map_tiers(struct takeover *t, struct error *e)
{
	struct engine *eng = t->vm->eng;
	int r = 0;

	pthread_mutex_lock(&eng->lock);
	for (unsigned int old = 1; old < PE_TIERS && !r; old++) {
		const char *name = t->rec->tiers[old].backend;

		if (!name[0])
			continue;
		t->tier[old] = memchr(name, 0, PLUGIN_NAME_MAX) ? backends_find(eng, name) : 0;
		if (!t->tier[old])
			r = error_set(e, ENOENT, ERROR_NOT_FOUND,
				      "backend %.31s holds pages of this VM and is not there",
				      name);
	}
	pthread_mutex_unlock(&eng->lock);
	for (unsigned int i = 0; i < t->rec->n_order && !r; i++) {
		unsigned int old = t->rec->order[i];

		if (old && old < PE_TIERS && t->tier[old])
			t->vm->tiers[t->vm->n_tiers++] = t->tier[old];
	}
	vm_tiers_changed(t->vm);
	return r;
}

static const struct record_block *find_record(const struct vm_record *rec, const char *id)
{
	for (unsigned int i = 0; i < rec->n_blocks; i++)
		if (strncmp(rec->blocks[i].id, id, REGION_ID_MAX) == 0)
			return &rec->blocks[i];
	return NULL;
}

static bool has_store(const struct vm *vm, const char *name)
{
	for (unsigned int i = 0; i < vm->n_stores; i++)
		if (strncmp(vm->stores[i].name, name, STORE_NAME_MAX) == 0)
			return true;
	return false;
}

static bool is_file_of(const struct record_block *rb, const struct attach_region *reg)
{
	struct memfd_info info;

	return !memfd_info(reg->memfd, &info) && info.dev == rb->dev && info.ino == rb->ino;
}

static int take_region(struct takeover *t, const struct attach_region *reg, struct error *e)
{
	const struct record_block *rb = find_record(t->rec, reg->id);
	struct block *b;
	int r;

	/* RAM that was being unplugged or plugged when the daemon died, which the client knows. */
	if (!rb && t->vm->shelf)
		return 0;
	/*
	 * A second mapping, or RAM that was being plugged when the daemon died, perhaps in place of
	 * other RAM that the record still tells of: a block is evicted from only while the client
	 * holds its table, so without one all of it is there.
	 */
	if (!rb || !has_store(t->vm, rb->table) || !is_file_of(rb, reg))
		return attachment_add_any(t->att, reg, e);
	r = attachment_adopt_block(t->att, reg, rb, &b, e);
	FAULT_POINT(takeover_registered);
	return r ? r : repair_block(t, b);
}

static bool names_table(const struct vm *vm, const char *name)
{
	for (unsigned int i = 0; i < atomic_load(&vm->n_blocks); i++) {
		struct block *b = atomic_load(&vm->blocks[i]);

		if (b && strcmp(b->table_name, name) == 0)
			return true;
	}
	return false;
}

/* Tables of RAM that was unplugged: the daemon died before it told the client to let go of them. */
static void drop_old_tables(struct vm *vm)
{
	char name[STORE_NAME_MAX];

	for (unsigned int i = 0; i < vm->n_stores; i++) {
		if (strncmp(vm->stores[i].name, "table:", 6) != 0 ||
		    names_table(vm, vm->stores[i].name))
			continue;
		snprintf(name, sizeof(name), "%s", vm->stores[i].name);
		vm_store_close(vm, name);
	}
}

static int run(struct takeover *t, const struct attach_request *req, struct error *e)
{
	struct vm *vm = t->vm;
	struct store_memory *record = NULL;
	int r = 0;

	for (unsigned int i = 0; i < req->n_kept && !r; i++) {
		r = vm_store_adopt(vm, req->kept[i].name, req->kept[i].fd);
		if (r)
			error_set(e, -r, ERROR_ARGUMENT,
				  "kept piece %s is not what a daemon made: %s", req->kept[i].name,
				  error_text(r));
	}
	for (unsigned int i = 0; i < vm->n_stores; i++)
		if (strcmp(vm->stores[i].name, VM_RECORD_STORE) == 0)
			record = &vm->stores[i];
	if (!r && (!record || vm_record_read(record->addr, record->bytes, t->rec)))
		r = error_set(e, EUCLEAN, ERROR_ARGUMENT, "the VM's record is missing or damaged");
	if (r)
		return r;
	FAULT_POINT(takeover_mapped);
	vm->tables_made = t->rec->tables_made;
	atomic_store(&vm->units, t->rec->units);
	r = map_tiers(t, e);
	for (unsigned int i = 0; i < req->n_regions && !r; i++)
		r = take_region(t, &req->regions[i], e);
	for (unsigned int i = 0; i < t->rec->n_mappings && !r; i++)
		r = attachment_adopt_mapping(t->att, &t->rec->mappings[i], e);
	enter_books(t);
	if (!r)
		drop_old_tables(vm);
	return r ? r : open_spaces(t, e);
}

bool takeover_possible(const struct attach_request *req)
{
	for (unsigned int i = 0; i < req->n_kept; i++)
		if (strcmp(req->kept[i].name, VM_RECORD_STORE) == 0)
			return true;
	return false;
}

void takeover_drop(struct takeover *t)
{
	if (!t)
		return;
	for (unsigned int i = 0; i < PE_TIERS; i++)
		free(t->handles[i].list);
	if (t->rec)
		explicit_bzero(t->rec, sizeof(*t->rec)); /* keys */
	free(t->rec);
	free(t);
}

int takeover_begin(struct vm *vm, struct attachment *att, const struct attach_request *req,
		   struct takeover **out, struct error *e)
{
	uint64_t start = clock_ns(), cpu = clock_thread_cpu_ns();
	struct takeover *t = calloc(1, sizeof(*t));
	int r;

	if (!t)
		return error_set(e, ENOMEM, ERROR_GENERIC, "out of memory");
	t->vm = vm;
	t->att = att;
	t->rec = calloc(1, sizeof(*t->rec));
	pthread_mutex_lock(&vm->lock);
	r = t->rec ? run(t, req, e) : error_set(e, ENOMEM, ERROR_GENERIC, "out of memory");
	if (!r)
		r = vm_record_write(vm);
	FAULT_POINT(takeover_recorded);
	pthread_mutex_unlock(&vm->lock);
	if (r) {
		takeover_drop(t);
		return r;
	}
	log_info("VM %s taken over in %llu us, of CPU %llu us: %llu entries repaired, %llu given "
		 "up",
		 vm->name, (unsigned long long)((clock_ns() - start) / NS_PER_US),
		 (unsigned long long)((clock_thread_cpu_ns() - cpu) / NS_PER_US),
		 (unsigned long long)t->repaired, (unsigned long long)t->damaged);
	*out = t;
	return 0;
}

void takeover_end(struct takeover *t)
{
	uint64_t start = clock_ns();

	if (!t)
		return;
	/* Counters begin anew with the daemon. That one was lost before may be damage, too. */
	vm_add(t->vm, COUNTER_pages_lost, t->lost);
	if (t->lost > t->damaged)
		engine_emit(t->vm->eng, EVENT_PAGE_LOST, t->vm->name, "", 0,
			    "%llu units were lost before",
			    (unsigned long long)(t->lost - t->damaged));
	if (t->damaged)
		engine_emit(t->vm->eng, EVENT_PAGE_LOST, t->vm->name, "", 0,
			    "%llu units whose entries could not be believed",
			    (unsigned long long)t->damaged);
	/* Whoever takes the VM or a backend away closes spaces only with this held for writing. */
	pthread_rwlock_rdlock(&t->vm->structure);
	free_orphans(t);
	pthread_rwlock_unlock(&t->vm->structure);
	log_info("VM %s: its stores were settled in %llu us", t->vm->name,
		 (unsigned long long)((clock_ns() - start) / NS_PER_US));
	takeover_drop(t);
}
