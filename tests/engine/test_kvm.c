/* SPDX-License-Identifier: BSD-3-Clause */
/* test_kvm.c: a guest under KVM counts in every page of its RAM while that RAM is taken away. */
#include "engine/rig.h"

#include <err.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdatomic.h>
#include <sys/ioctl.h>
#include <unistd.h>

#define MIB	 ((size_t)1 << 20)
#define CODE_AT	 0x1000u
#define RAM_AT	 0x1000000u /* guest-physical */
#define CODE_RAM 65536u

/*
 * The guest is a few instructions in 32-bit flat protected mode without paging: for each pass it
 * adds one to a word of every step of its RAM, tells so by writing to a port, and halts after the
 * last one. KVM's own faults go through the userfaultfd as the process's do.
 */
static const uint8_t program[] = {
	0xbb, 0,    0, 0, 0,	/*  0: mov ebx, passes   */
	0xbf, 0,    0, 0, 0,	/*  5: mov edi, first    */
	0xb9, 0,    0, 0, 0,	/* 10: mov ecx, words    */
	0xff, 0x07,		/* 15: inc dword [edi]   */
	0x81, 0xc7, 0, 0, 0, 0, /* 17: add edi, step     */
	0x49,			/* 23: dec ecx           */
	0x75, 0xf5,		/* 24: jnz 15            */
	0xe6, 0x10,		/* 26: out 0x10, al      */
	0x4b,			/* 28: dec ebx           */
	0x75, 0xe6,		/* 29: jnz 5             */
	0xf4,			/* 31: hlt               */
};

struct guest {
	int kvm, vm, vcpu;
	struct kvm_run *run;
	uint8_t *code;
	size_t run_bytes;
	uint32_t passes, step, offset;
	size_t words;
	_Atomic uint32_t done;
	pthread_t thread;
};

static void put32(uint8_t *at, uint32_t value)
{
	memcpy(at, &value, sizeof(value));
}

static void set_registers(struct guest *g)
{
	struct kvm_segment code = {.limit = 0xffffffff,
				   .selector = 8,
				   .type = 11,
				   .present = 1,
				   .db = 1,
				   .s = 1,
				   .g = 1};
	struct kvm_segment data = code;
	struct kvm_regs regs = {.rip = CODE_AT, .rflags = 2, .rsp = 0x8000};
	struct kvm_sregs sregs;

	data.type = 3;
	data.selector = 16;
	CHECK(!ioctl(g->vcpu, KVM_GET_SREGS, &sregs));
	sregs.cs = code;
	sregs.ds = sregs.es = sregs.fs = sregs.gs = sregs.ss = data;
	sregs.cr0 |= 1;
	CHECK(!ioctl(g->vcpu, KVM_SET_SREGS, &sregs));
	CHECK(!ioctl(g->vcpu, KVM_SET_REGS, &regs));
}

static void guest_make(struct guest *g, const struct rig *r, uint32_t passes, uint32_t step)
{
	struct kvm_userspace_memory_region slot = {.memory_size = CODE_RAM};

	g->passes = passes;
	g->step = step;
	g->offset = 2048; /* among the tags, so that no page is one pattern */
	g->words = r->ram.bytes / step;
	g->vm = ioctl(g->kvm, KVM_CREATE_VM, 0);
	CHECK(g->vm >= 0);
	g->code = mmap(NULL, CODE_RAM, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	CHECK(g->code != MAP_FAILED);
	memcpy(g->code + CODE_AT, program, sizeof(program));
	put32(g->code + CODE_AT + 1, passes);
	put32(g->code + CODE_AT + 6, RAM_AT + g->offset);
	put32(g->code + CODE_AT + 11, (uint32_t)g->words);
	put32(g->code + CODE_AT + 19, step);
	slot.userspace_addr = (uintptr_t)g->code;
	CHECK(!ioctl(g->vm, KVM_SET_USER_MEMORY_REGION, &slot));
	slot = (struct kvm_userspace_memory_region){.slot = 1,
						    .guest_phys_addr = RAM_AT,
						    .memory_size = r->ram.bytes,
						    .userspace_addr = (uintptr_t)r->ram.addr};
	CHECK(!ioctl(g->vm, KVM_SET_USER_MEMORY_REGION, &slot));
	g->vcpu = ioctl(g->vm, KVM_CREATE_VCPU, 0);
	CHECK(g->vcpu >= 0);
	g->run_bytes = (size_t)ioctl(g->kvm, KVM_GET_VCPU_MMAP_SIZE, 0);
	g->run = mmap(NULL, g->run_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, g->vcpu, 0);
	CHECK(g->run != MAP_FAILED);
	set_registers(g);
}

static void *guest_main(void *arg)
{
	struct guest *g = arg;

	for (;;) {
		int r = ioctl(g->vcpu, KVM_RUN, 0);

		if (r < 0 && errno == EINTR)
			continue;
		if (r < 0)
			err(1, "KVM_RUN");
		if (g->run->exit_reason == KVM_EXIT_HLT)
			return NULL;
		if (g->run->exit_reason != KVM_EXIT_IO)
			errx(1, "the guest ended with reason %u", g->run->exit_reason);
		atomic_fetch_add(&g->done, 1);
	}
}

static void guest_end(struct guest *g)
{
	munmap(g->run, g->run_bytes);
	close(g->vcpu);
	close(g->vm);
	munmap(g->code, CODE_RAM);
}

static uint32_t word(const struct rig *r, const struct guest *g, size_t i)
{
	uint32_t value;

	memcpy(&value, (char *)r->ram.addr + i * g->step + g->offset, sizeof(value));
	return value;
}

/* The operator while the guest counts: limits up and down, forced reclaim, prefetch. */
static void count(struct rig *r, enum native_kind kind, size_t bytes, uint32_t passes,
		  uint32_t step)
{
	struct guest g = {.kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC)};
	uint32_t *before;

	if (g.kvm < 0)
		SKIP("/dev/kvm");
	rig_start(r, "", NULL);
	rig_attach(r, bytes, kind);
	guest_make(&g, r, passes, step);
	before = calloc(g.words, sizeof(*before));
	CHECK(before);
	for (size_t i = 0; i < g.words; i++)
		before[i] = word(r, &g, i);
	CHECK(!pthread_create(&g.thread, NULL, guest_main, &g));
	for (unsigned int round = 0; atomic_load(&g.done) < passes; round++) {
		rig_limit(r, round % 3 ? bytes / (1 + round % 3) : 0);
		rig_reclaim(r, bytes / (1 + round % 4));
		if (round % 5 == 4)
			daemon_ask(&r->d, "{\"execute\":\"vm-prefetch\",\"arguments\":{\"vm\":"
					  "\"vm\"}}");
		usleep(2000);
	}
	CHECK(!pthread_join(g.thread, NULL));
	for (size_t i = 0; i < g.words; i++)
		if (word(r, &g, i) != before[i] + passes)
			errx(1, "word %zu: %u, not %u", i, word(r, &g, i), before[i] + passes);
	printf("passes %u, evictions %llu, faults %llu, cancelled %llu\n", passes,
	       (unsigned long long)rig_number(r, "evictions"),
	       (unsigned long long)rig_number(r, "faults"),
	       (unsigned long long)rig_number(r, "evictions-cancelled"));
	CHECK(rig_number(r, "evictions") >= r->units);
	CHECK(rig_number(r, "faults") > 0);
	CHECK_EQ(rig_number(r, "pages-lost"), 0);
	rig_limit(r, 0);
	guest_end(&g);
	free(before);
	rig_end(r);
}

static void shmem(struct rig *r)
{
	count(r, NATIVE_SHMEM, 12 * MIB, 6, 4096);
}

static void hugetlb(struct rig *r)
{
	kt_set_free_huge_pages(32);
	count(r, NATIVE_HUGETLB, 24 * MIB, 10, 65536);
}

int main(int argc, char **argv)
{
	static const struct rig_case cases[] = {
		{"shmem", shmem},
		{"hugetlb", hugetlb},
	};

	return rig_main(argc, argv, cases, sizeof(cases) / sizeof(cases[0]));
}
