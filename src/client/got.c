/* SPDX-License-Identifier: BSD-3-Clause */
/* got.c: makes objects that are loaded already call our functions instead of libc's. */
#include <elf.h>
#include <link.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "client/client.h"

/*
 * A library that came by dlopen() (a QEMU plugin) is not asked when the executable's calls are
 * bound, so the addresses that the loader put into the objects' tables are replaced: for each
 * relocation that names a hooked symbol (a call's slot, or a pointer in data), the word that it
 * filled. Tables that are read-only after relocation are opened for the one store. A call that
 * runs meanwhile sees the old or the new address, both of which work.
 */

#if defined(__x86_64__)
#define RELOC_SLOT R_X86_64_JUMP_SLOT
#define RELOC_GLOB R_X86_64_GLOB_DAT
#define RELOC_ABS  R_X86_64_64
#elif defined(__aarch64__)
#define RELOC_SLOT R_AARCH64_JUMP_SLOT
#define RELOC_GLOB R_AARCH64_GLOB_DAT
#define RELOC_ABS  R_AARCH64_ABS64
#else
#error "got.c knows the relocations of x86-64 and aarch64 only"
#endif

struct patch {
	const struct got_hook *hooks;
	unsigned int n, changed;
};

struct object {
	uintptr_t base;
	uintptr_t relro, relro_end; /* whole pages that are read-only now */
	const ElfW(Sym) * symbols;
	const char *strings;
	const ElfW(Rela) * relocs[2]; /* of calls; of all else */
	size_t bytes[2];
};

static void store(const struct object *o, uintptr_t place, void *value)
{
	uintptr_t page_size = (uintptr_t)sysconf(_SC_PAGESIZE), page = place & ~(page_size - 1);
	bool read_only = place >= o->relro && place < o->relro_end;

	if (read_only && mprotect((void *)page, page_size, PROT_READ | PROT_WRITE))
		return;
	__atomic_store_n((void **)place, value, __ATOMIC_RELEASE);
	if (read_only)
		mprotect((void *)page, page_size, PROT_READ);
}

static void *hook_for(const struct patch *p, const char *symbol)
{
	for (unsigned int i = 0; i < p->n; i++)
		if (!strcmp(p->hooks[i].symbol, symbol))
			return p->hooks[i].function;
	return NULL;
}

static void patch_relocs(struct patch *p, const struct object *o, int table)
{
	size_t n = o->bytes[table] / sizeof(ElfW(Rela));

	for (size_t i = 0; i < n; i++) {
		const ElfW(Rela) *rel = &o->relocs[table][i];
		unsigned long type = ELF64_R_TYPE(rel->r_info);
		const ElfW(Sym) *symbol = &o->symbols[ELF64_R_SYM(rel->r_info)];
		void *hook;

		if (type != RELOC_SLOT && type != RELOC_GLOB &&
		    (type != RELOC_ABS || rel->r_addend))
			continue;
		/* Only what comes from elsewhere: an object's own function of that name is its own.
		 */
		if (symbol->st_shndx != SHN_UNDEF)
			continue;
		hook = hook_for(p, o->strings + symbol->st_name);
		if (!hook)
			continue;
		store(o, o->base + rel->r_offset, hook);
		p->changed++;
	}
}

/* glibc turns the addresses in the dynamic section into absolute ones; others do not. */
static const void *absolute(const struct object *o, ElfW(Addr) value)
{
	return (const void *)(value < o->base ? o->base + value : value);
}

static bool read_dynamic(struct object *o, const ElfW(Dyn) * d)
{
	for (; d->d_tag != DT_NULL; d++) {
		switch (d->d_tag) {
		case DT_SYMTAB:
			o->symbols = absolute(o, d->d_un.d_ptr);
			break;
		case DT_STRTAB:
			o->strings = absolute(o, d->d_un.d_ptr);
			break;
		case DT_JMPREL:
			o->relocs[0] = absolute(o, d->d_un.d_ptr);
			break;
		case DT_PLTRELSZ:
			o->bytes[0] = d->d_un.d_val;
			break;
		case DT_RELA:
			o->relocs[1] = absolute(o, d->d_un.d_ptr);
			break;
		case DT_RELASZ:
			o->bytes[1] = d->d_un.d_val;
			break;
		default:
			break;
		}
	}
	return o->symbols && o->strings;
}

static bool contains(const struct dl_phdr_info *info, uintptr_t addr)
{
	for (int i = 0; i < info->dlpi_phnum; i++) {
		const ElfW(Phdr) *ph = &info->dlpi_phdr[i];
		uintptr_t start = info->dlpi_addr + ph->p_vaddr;

		if (ph->p_type == PT_LOAD && addr >= start && addr < start + ph->p_memsz)
			return true;
	}
	return false;
}

static bool leave_alone(const struct dl_phdr_info *info)
{
	static const char *const names[] = {"linux-vdso", "/ld-linux", "/libc.so"};

	if (contains(info, (uintptr_t)leave_alone))
		return true;
	for (size_t i = 0; i < sizeof(names) / sizeof(*names); i++)
		if (strstr(info->dlpi_name, names[i]))
			return true;
	return false;
}

static int patch_object(struct dl_phdr_info *info, size_t size, void *ctx)
{
	uintptr_t page_size = (uintptr_t)sysconf(_SC_PAGESIZE);
	struct object o = {.base = info->dlpi_addr};
	const ElfW(Dyn) *dynamic = NULL;
	struct patch *p = ctx;

	if (leave_alone(info))
		return 0;
	for (int i = 0; i < info->dlpi_phnum; i++) {
		const ElfW(Phdr) *ph = &info->dlpi_phdr[i];

		if (ph->p_type == PT_DYNAMIC)
			dynamic = (const void *)(o.base + ph->p_vaddr);
		if (ph->p_type == PT_GNU_RELRO) {
			o.relro = (o.base + ph->p_vaddr) & ~(page_size - 1);
			o.relro_end = (o.base + ph->p_vaddr + ph->p_memsz) & ~(page_size - 1);
		}
	}
	if (!dynamic || !read_dynamic(&o, dynamic))
		return 0;
	for (int table = 0; table < 2; table++)
		if (o.relocs[table])
			patch_relocs(p, &o, table);
	return 0;
}

unsigned int got_patch(const struct got_hook *hooks, unsigned int n)
{
	struct patch p = {.hooks = hooks, .n = n};

	dl_iterate_phdr(patch_object, &p);
	return p.changed;
}
