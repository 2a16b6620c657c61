/* SPDX-License-Identifier: BSD-3-Clause */
/* vm_record.c: what a successor must know of a VM besides its page tables and stores. */
#include "engine/vm_record.h"

#include <assert.h>
#include <errno.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/fault_point.h"
#include "engine/internal.h"

#define MAGIC	   UINT64_C(0x3130434552424245) /* "EBBREC01" */
#define VERSION	   2
#define COMPAT	   2 /* the keys of the spaces */
#define COPY_BYTES UINT64_C(32768)

static_assert(sizeof(struct vm_record) <= COPY_BYTES, "a record fits its copy");
static_assert(sizeof(struct record_block) == 2 * 64 + 6 * 8 + 8, "no padding");
static_assert(sizeof(struct vm_record) % 8 == 0, "checksummed by words");

/* FNV-1a over words: against damage, not against an enemy, who holds it read-only. */
static uint64_t checksum(const struct vm_record *r)
{
	const uint64_t *p = (const uint64_t *)(const void *)r;
	uint64_t h = UINT64_C(0xcbf29ce484222325);

	for (size_t i = 0; i < offsetof(struct vm_record, checksum) / 8; i++)
		h = (h ^ p[i]) * UINT64_C(0x100000001b3);
	return h;
}

int vm_record_read(const void *memory, uint64_t bytes, struct vm_record *out)
{
	bool found = false;

	if (bytes != 2 * COPY_BYTES)
		return -EUCLEAN;
	for (unsigned int i = 0; i < 2; i++) {
		const struct vm_record *r =
			(const struct vm_record *)(const void *)((const char *)memory +
								 i * COPY_BYTES);

		if (r->magic != MAGIC || r->compat > VERSION || r->version < COMPAT ||
		    r->checksum != checksum(r) || r->n_blocks > VM_REGIONS_MAX ||
		    r->n_order > PE_TIERS || r->n_mappings > VM_REGIONS_MAX)
			continue;
		if (!found || r->sequence > out->sequence)
			*out = *r;
		found = true;
	}
	return found ? 0 : -EUCLEAN;
}

/* The primary's further mappings: eviction must protect them too, from the first moment on. */
static void fill_mappings(struct vm *vm, struct vm_record *r)
{
	for (unsigned int i = 0; i < VM_REGIONS_MAX; i++) {
		struct block *b = atomic_load(&vm->blocks[i]);

		for (unsigned int k = 1; b && k < BLOCK_MAPPINGS_MAX; k++) {
			struct mapping *m = atomic_load(&b->mappings[k]);
			struct record_mapping *rm = &r->mappings[r->n_mappings];

			if (!m || m->att->secondary || r->n_mappings == VM_REGIONS_MAX)
				continue;
			snprintf(rm->id, sizeof(rm->id), "%s", m->id);
			snprintf(rm->block, sizeof(rm->block), "%s", b->id);
			rm->host_addr = m->host_addr;
			rm->first_unit = m->first_unit;
			rm->units = m->units;
			r->n_mappings++;
		}
	}
}

static void fill(struct vm *vm, struct vm_record *r)
{
	r->magic = MAGIC;
	r->version = VERSION;
	r->compat = COMPAT;
	r->units = atomic_load(&vm->units);
	r->tables_made = vm->tables_made;
	r->n_order = vm->n_tiers;
	for (unsigned int i = 0; i < vm->n_tiers; i++)
		r->order[i] = vm->tiers[i];
	for (unsigned int t = 1; t < PE_TIERS; t++) {
		if (!atomic_load(&vm->spaces[t]))
			continue;
		snprintf(r->tiers[t].backend, sizeof(r->tiers[t].backend), "%s",
			 vm->eng->slots[t].name);
		r->tiers[t].space_ram_bytes = vm->space_ram_bytes[t];
		memcpy(r->tiers[t].key, vm->space_key[t], SPACE_KEY_BYTES);
	}
	for (unsigned int i = 0; i < VM_REGIONS_MAX; i++) {
		struct block *b = atomic_load(&vm->blocks[i]);
		struct record_block *rb = &r->blocks[r->n_blocks];

		if (!b)
			continue;
		snprintf(rb->id, sizeof(rb->id), "%s", b->id);
		snprintf(rb->table, sizeof(rb->table), "%s", b->table_name);
		rb->dev = b->dev;
		rb->ino = b->ino;
		rb->memfd_offset = b->memfd_offset;
		rb->bytes = b->bytes;
		rb->first_unit = b->first_unit;
		rb->guest_addr = b->guest_addr;
		rb->kind = b->kind;
		rb->minor = b->minor;
		r->n_blocks++;
	}
	fill_mappings(vm, r);
}

int vm_record_write(struct vm *vm)
{
	struct vm_record *r = calloc(1, sizeof(*r)), *old = calloc(1, sizeof(*old));
	struct store_memory *s;
	bool found;
	int err =
		r && old ? vm_store_open(vm, VM_RECORD_STORE, 2 * COPY_BYTES, &s, &found) : -ENOMEM;

	if (!err) {
		uint64_t last = vm_record_read(s->addr, s->bytes, old) ? 0 : old->sequence;

		fill(vm, r);
		r->sequence = last + 1;
		r->checksum = checksum(r);
		FAULT_POINT(record_begin);
		memcpy(s->addr, r, sizeof(*r));
		atomic_thread_fence(memory_order_seq_cst);
		FAULT_POINT(record_between);
		memcpy((char *)s->addr + COPY_BYTES, r, sizeof(*r));
	}
	if (r)
		explicit_bzero(r, sizeof(*r));
	if (old)
		explicit_bzero(old, sizeof(*old));
	free(r);
	free(old);
	return err;
}
