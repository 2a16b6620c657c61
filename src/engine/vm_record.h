/* SPDX-License-Identifier: BSD-3-Clause */
/* vm_record.h: what a successor must know of a VM besides its page tables and stores. */
#ifndef ENGINE_VM_RECORD_H
#define ENGINE_VM_RECORD_H

#include "engine/vm.h"

#define VM_RECORD_STORE "vm" /* the name of its surviving memory */

struct record_block {
	char id[REGION_ID_MAX];
	char table[STORE_NAME_MAX]; /* the surviving memory of its page table */
	uint64_t dev, ino, memfd_offset, bytes;
	uint64_t first_unit, guest_addr;
	uint32_t kind; /* enum block_kind */
	uint32_t minor;
};

struct record_tier {
	char backend[PLUGIN_NAME_MAX]; /* "": no space in this tier */
	uint64_t space_ram_bytes;      /* what the space was opened with */
	uint8_t key[SPACE_KEY_BYTES];  /* its secret; whoever reads this could read the VM's RAM */
};

/* A mapping beside the primary's first of a block, in the primary's own process. */
struct record_mapping {
	char id[REGION_ID_MAX];
	char block[REGION_ID_MAX];
	uint64_t host_addr, first_unit, units;
};

/*
 * Fixed-width, no pointers. A reader takes a record only when magic, checksum and compat hold:
 * compat is the oldest version whose readers understand this one.
 */
struct vm_record {
	uint64_t magic;
	uint32_t version, compat;
	uint64_t sequence; /* of two good copies, the higher one is newer */
	uint64_t units;
	uint32_t tables_made;
	uint32_t n_blocks;
	uint32_t n_order;
	uint32_t order[PE_TIERS]; /* tiers in the order in which they are tried */
	uint32_t n_mappings;
	struct record_tier tiers[PE_TIERS];
	struct record_block blocks[VM_REGIONS_MAX];
	struct record_mapping mappings[VM_REGIONS_MAX];
	uint64_t checksum; /* of all before it */
};

/*
 * Writes the VM's present shape into its record, making that first if need be. There are two
 * copies, written one after the other: a death while writing leaves one, of before or of now, and
 * damage to one leaves the other. Nothing that a record tells of is relied on before both are
 * written. Under vm.lock. 0 or -errno.
 */
int vm_record_write(struct vm *vm);
/* The newest good copy in `memory`, `bytes` long. -EUCLEAN when there is none. */
int vm_record_read(const void *memory, uint64_t bytes, struct vm_record *out);

#endif
