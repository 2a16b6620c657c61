/* SPDX-License-Identifier: BSD-3-Clause */
/* folio_probe.c: loads the folio probe's BPF program and asks it. */
#include "sys/folio_probe.h"

#include <assert.h>
#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include <errno.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "sys/folio_probe_trial.h"

/*
 * Theory of operation. What the probe looks at is told in folio_probe.bpf.c. Questions and answers
 * go through an array map that is mapped here, one element (slot) for each call in flight, so a
 * batch costs one bpf() call and no copy by the kernel. A caller takes a free slot from a bitmap
 * and gives it back; with more threads in the probe than slots, the late ones yield until one is
 * free. The program is loaded once per folio_probe and lives as long as it.
 *
 * What this does not do: decide. A verdict of BUSY says that somebody holds the page, not who.
 */

/* The compiled program, with RCU and without; the build says where they are. */
#define EMBED(name, file)                                \
	__asm__(".pushsection .rodata\n"                 \
		".balign 16\n" #name ":\n"               \
		".incbin \"" file "\"\n" #name "_end:\n" \
		".popsection\n");                        \
	extern const char name[], name##_end[]

EMBED(folio_probe_rcu, FOLIO_PROBE_OBJECT_RCU);
EMBED(folio_probe_plain, FOLIO_PROBE_OBJECT_PLAIN);

#define PROBE_SLOTS 64

static_assert(sizeof(struct folio_probe_slot) % 8 == 0, "elements of the map lie side by side");
static_assert(sizeof(struct folio_probe_slot) * PROBE_SLOTS % 4096 == 0, "the map is whole pages");
static_assert(PROBE_SLOTS == 64, "a bit of one word each");

struct folio_probe {
	struct bpf_object *object;
	struct folio_probe_slot *slots;
	_Atomic uint64_t taken;
	int program; /* owned by object */
	uint32_t flags;
};

#define SLOTS_BYTES (sizeof(struct folio_probe_slot) * PROBE_SLOTS)

static int quiet(enum libbpf_print_level level, const char *format, va_list ap)
{
	return 0;
}

static int load_object(struct folio_probe *p, const char *object, const char *end)
{
	struct bpf_map *slots;
	int r = -EINVAL;

	p->object = bpf_object__open_mem(object, (size_t)(end - object), NULL);
	if (!p->object)
		return -errno;
	slots = bpf_object__find_map_by_name(p->object, "slots");
	if (slots && !bpf_map__set_max_entries(slots, PROBE_SLOTS))
		r = bpf_object__load(p->object);
	if (r) {
		bpf_object__close(p->object);
		p->object = NULL;
	}
	return r;
}

static int load(struct folio_probe *p, struct error *e)
{
	int r = load_object(p, folio_probe_rcu, folio_probe_rcu_end);

	if (r)
		r = load_object(p, folio_probe_plain, folio_probe_plain_end);
	if (r == -EPERM)
		return error_set(e, ENOTSUP, ERROR_UNSUPPORTED,
				 "the folio probe may not be loaded: it needs CAP_BPF and "
				 "CAP_PERFMON (%s)",
				 error_text(r));
	if (r && access("/sys/kernel/btf/vmlinux", R_OK))
		return error_set(e, ENOTSUP, ERROR_UNSUPPORTED,
				 "the folio probe needs the kernel's type information "
				 "(CONFIG_DEBUG_INFO_BTF, /sys/kernel/btf/vmlinux)");
	if (r)
		return error_set(e, ENOTSUP, ERROR_UNSUPPORTED,
				 "the folio probe does not fit this kernel: %s", error_text(r));
	p->program = bpf_program__fd(bpf_object__find_program_by_name(p->object, "folio_probe"));
	p->slots = mmap(NULL, SLOTS_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED,
			bpf_object__find_map_fd_by_name(p->object, "slots"), 0);
	if (p->slots == MAP_FAILED)
		return error_set(e, ENOTSUP, ERROR_UNSUPPORTED,
				 "the folio probe's map cannot be mapped: %s", error_text(errno));
	return 0;
}

int folio_probe_open(struct folio_probe **out, struct error *e)
{
	struct folio_probe *p = calloc(1, sizeof(*p));
	libbpf_print_fn_t print;
	int r;

	if (!p)
		return error_set(e, ENOMEM, ERROR_GENERIC, "%s", error_text(ENOMEM));
	p->slots = MAP_FAILED;
	/* The one thing that libbpf keeps for the whole process: it would log by itself. */
	print = libbpf_set_print(quiet);
	r = load(p, e);
	libbpf_set_print(print);
	p->flags = FOLIO_PROBE_LARGE_OK;
	if (!r)
		r = folio_probe_trial(p, e);
	if (r) {
		folio_probe_close(p);
		return r;
	}
	if (!folio_probe_trial_large(p))
		p->flags = 0;
	*out = p;
	return 0;
}

void folio_probe_close(struct folio_probe *p)
{
	if (!p)
		return;
	if (p->slots != MAP_FAILED)
		munmap(p->slots, SLOTS_BYTES);
	bpf_object__close(p->object);
	free(p);
}

static unsigned int slot_take(struct folio_probe *p)
{
	uint64_t taken = atomic_load_explicit(&p->taken, memory_order_relaxed);

	for (;;) {
		unsigned int slot;

		if (taken == UINT64_MAX) {
			sched_yield();
			taken = atomic_load_explicit(&p->taken, memory_order_relaxed);
			continue;
		}
		slot = (unsigned int)__builtin_ctzll(~taken);
		if (atomic_compare_exchange_weak_explicit(
			    &p->taken, &taken, taken | UINT64_C(1) << slot, memory_order_acquire,
			    memory_order_relaxed))
			return slot;
	}
}

static void slot_give(struct folio_probe *p, unsigned int slot)
{
	atomic_fetch_and_explicit(&p->taken, ~(UINT64_C(1) << slot), memory_order_release);
}

int folio_probe_check(struct folio_probe *p, int fd, const uint64_t *index, uint32_t n,
		      uint8_t *verdict)
{
	struct folio_probe_call call = {.n = n, .flags = p->flags, .fd = (uint32_t)fd};
	LIBBPF_OPTS(bpf_test_run_opts, run, .ctx_in = &call, .ctx_size_in = sizeof(call));
	struct folio_probe_slot *slot;
	int r;

	if (n > FOLIO_PROBE_MAX)
		return -EINVAL;
	call.slot = slot_take(p);
	slot = &p->slots[call.slot];
	memcpy(slot->index, index, n * sizeof(*index));
	r = bpf_prog_test_run_opts(p->program, &run);
	if (!r)
		r = (int)run.retval;
	if (!r)
		memcpy(verdict, slot->verdict, n);
	slot_give(p, call.slot);
	return r;
}
