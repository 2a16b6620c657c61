/* SPDX-License-Identifier: BSD-3-Clause */
/* test_damage.c: what a dead daemon left behind is damaged, at random, and another takes it over.
 */
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <setjmp.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "attach/native.h"
#include "base/clock.h"
#include "kernel/kernel_test.h"
#include "model/page_table.h"
#include "stress/daemon.h"
#include "stress/tagged.h"

/*
 * Theory of operation
 *
 * This process is the VMM of some VMs whose pages are tagged. In each round all of them are
 * evicted, the daemon is killed, and of all VMs but the first ("sound") a kept piece is changed in
 * up to three places: a bit, a byte, a word, or a run of bytes, anywhere where there is data. Of
 * one the entries of one or two evicted pages are made to say that these are resident, and the away
 * bits with them, as if they had never been evicted: only the sum of the bits tells. The next
 * daemon is given all of it. It may refuse a VM as a whole, in words; then the damage is mended and
 * it is offered again, which must work: nobody has lost anything. Or it takes the VM over; then
 * each page must be right, or a memory error (SIGBUS, from UFFDIO_POISON), and those are counted as
 * lost. Never anything else, never a hang; the sound VM has lost nothing; and the daemon lives.
 */

#define VMS	   5
#define CHANGES	   4  /* of one piece, at most */
#define DENIER	   2  /* the victim whose entries deny */
#define DENIED_MAX 2u /* of so many pages at most */
#define RUN_BYTES  64
#define HANG_S	   300

static const char *const pieces[] = {"vm", "table:0", "space:compressed:store"};

struct change {
	int fd; /* of the piece, writable */
	off_t at;
	size_t bytes;
	unsigned char was[RUN_BYTES];
};

struct victim {
	char name[16];
	struct native *vmm;
	struct area ram;
	struct change change[CHANGES];
	unsigned int n_changes, denied;
	char what[512];
};

static struct {
	unsigned int taken, refused, poisoned, harmless;
} seen;

static sigjmp_buf on_error;

static void bus_error(int sig)
{
	(void)sig;
	siglongjmp(on_error, 1);
}

/* False: a memory error. Ends the test when the page is wrong. */
static bool page_is_right(const struct area *a, size_t page, const char *when)
{
	if (sigsetjmp(on_error, 1))
		return false;
	page_check(area_page(a, page), a->first_page + page, a->generation[page], when);
	return true;
}

/* A random place of the piece that has data. */
static off_t pick_place(int fd, uint64_t *seed)
{
	off_t at[256][2], pos = 0, total = 0, pick;
	int n = 0;

	while (n < 256 && (pos = lseek(fd, pos, SEEK_DATA)) >= 0) {
		off_t stop = lseek(fd, pos, SEEK_HOLE);

		at[n][0] = pos;
		at[n++][1] = stop;
		total += stop - pos;
		pos = stop;
	}
	if (!total)
		errx(1, "a piece is empty");
	pick = (off_t)(rng(seed) % (uint64_t)total);
	for (int i = 0; i < n; i++) {
		if (pick < at[i][1] - at[i][0])
			return at[i][0] + pick;
		pick -= at[i][1] - at[i][0];
	}
	return at[0][0];
}

static int open_piece(const struct victim *v, const char *piece)
{
	char path[64];
	int fd;

	snprintf(path, sizeof(path), "/proc/self/fd/%d", native_kept_fd(v->vmm, piece));
	fd = open(path, O_RDWR | O_CLOEXEC);
	if (fd < 0)
		err(1, "%s of %s", piece, v->name);
	return fd;
}

/* What is at that place becomes that. */
static void change(struct victim *v, const char *piece, off_t at, const void *now, size_t bytes)
{
	struct change *c = &v->change[v->n_changes++];

	c->fd = open_piece(v, piece);
	c->at = at;
	c->bytes = bytes;
	if (pread(c->fd, c->was, bytes, at) != (ssize_t)bytes ||
	    pwrite(c->fd, now, bytes, at) != (ssize_t)bytes)
		err(1, "a change");
}

/* at < 0: anywhere. */
static void damage_once(struct victim *v, const char *piece, off_t at, uint64_t *seed)
{
	struct change *c = &v->change[v->n_changes++];
	unsigned char now[RUN_BYTES];
	size_t used;
	uint64_t kind = rng(seed) % 4;

	c->fd = open_piece(v, piece);
	c->at = at < 0 ? pick_place(c->fd, seed) : at;
	c->bytes = kind < 2 ? 1 : kind == 2 ? 8 : RUN_BYTES;
	c->at -= kind >= 2 ? c->at % (off_t)c->bytes : 0;
	if (pread(c->fd, c->was, c->bytes, c->at) != (ssize_t)c->bytes)
		err(1, "pread");
	memcpy(now, c->was, sizeof(now));
	if (kind == 0)
		now[0] ^= (unsigned char)(1u << rng(seed) % 8);
	else
		for (size_t i = 0; i < c->bytes; i++)
			now[i] = (unsigned char)rng(seed);
	if (pwrite(c->fd, now, c->bytes, c->at) != (ssize_t)c->bytes)
		err(1, "pwrite");
	used = v->n_changes > 1 ? strlen(v->what) : 0;
	snprintf(v->what + used, sizeof(v->what) - used, "%s%zu bytes of %s at %lld",
		 used ? ", " : "", c->bytes, piece, (long long)c->at);
}

static void damage(struct victim *v, uint64_t *seed)
{
	/* The record is small, and refused as a whole: less often. */
	const char *piece = pieces[rng(seed) % 8 ? 1 + rng(seed) % 2 : 0];
	/* A table has three witnesses of each unit (docs/adr/0008); content has its checksum. */
	unsigned int n = 1 + (unsigned int)(rng(seed) % 3);

	while (n--)
		damage_once(v, piece, -1, seed);
}

/* One or two entries, each with its away bit, deny that their pages are away. */
static void deny(struct victim *v, uint64_t *seed)
{
	int fd = open_piece(v, pieces[1]);
	struct page_table pt;
	struct stat st;
	char *base;

	if (fstat(fd, &st))
		err(1, "fstat");
	base = mmap(NULL, (size_t)st.st_size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (base == MAP_FAILED || page_table_open(&pt, base, (uint64_t)st.st_size))
		errx(1, "the table of %s cannot be read", v->name);
	v->denied = 1 + (unsigned int)(rng(seed) % DENIED_MAX);
	snprintf(v->what, sizeof(v->what), "%u entries that deny", v->denied);
	for (unsigned int n = 0; n < v->denied;) {
		const uint64_t resident = page_entry_bare(PE_RESIDENT);
		uint64_t u = rng(seed) % pt.units;
		char *bits = (char *)pt.away + u / 8, cleared;

		if (page_entry_state(page_table_get(&pt, u)) != PE_EVICTED)
			continue;
		cleared = (char)(*bits & ~(1 << u % 8));
		change(v, pieces[1], (char *)&pt.leaves[u] - base, &resident, sizeof(resident));
		change(v, pieces[1], bits - base, &cleared, 1);
		n++;
	}
	munmap(base, (size_t)st.st_size);
	close(fd);
}

/* Both copies of the record, which is then refused. */
static void damage_record(struct victim *v, uint64_t *seed)
{
	struct stat st;

	if (fstat(native_kept_fd(v->vmm, pieces[0]), &st))
		err(1, "fstat");
	damage_once(v, pieces[0], 16, seed);
	damage_once(v, pieces[0], st.st_size / 2 + 16, seed);
}

/* In the opposite order: they may overlap. */
static void forget_changes(struct victim *v, bool mend)
{
	while (v->n_changes) {
		struct change *c = &v->change[--v->n_changes];

		if (mend && pwrite(c->fd, c->was, c->bytes, c->at) != (ssize_t)c->bytes)
			err(1, "pwrite");
		close(c->fd);
	}
}

static int resume(struct daemon *d, struct victim *v)
{
	return native_resume(v->vmm, d->attach, v->name, &v->ram.ram, 1, NATIVE_KEEP);
}

static void vm_begin(struct daemon *d, struct victim *v, size_t bytes, uint64_t *seed)
{
	area_make(&v->ram, "ram", bytes, NATIVE_SHMEM, 1);
	area_fill(&v->ram, seed);
	if (native_open(d->attach, &v->vmm) ||
	    native_attach(v->vmm, v->name, &v->ram.ram, 1, NATIVE_KEEP))
		errx(1, "attach %s: %s", v->name, v->vmm ? native_error(v->vmm) : "");
}

static void vm_end(struct victim *v)
{
	forget_changes(v, false);
	native_detach(v->vmm);
	native_close(v->vmm, true);
	area_free(&v->ram);
}

static void evict(struct daemon *d, const struct victim *v)
{
	/* On a busy machine it may take longer than the command waits until all is kept. */
	for (int i = 0; i < 600; i++) {
		daemon_ask(
			d,
			"{\"execute\":\"vm-reclaim\",\"arguments\":{\"vm\":\"%s\",\"bytes\":%zu}}",
			v->name, v->ram.ram.bytes);
		if (!strstr(d->answer, "\"Busy\""))
			break;
		usleep(100000);
	}
	if (!strstr(d->answer, "\"return\""))
		errx(1, "%s is not evicted: %.300s", v->name, d->answer);
}

/* All of the VM is read. Gives how many pages are memory errors. */
static unsigned int look_through(const struct victim *v)
{
	unsigned int errors = 0;

	for (size_t i = 0; i < v->ram.pages; i++)
		errors += !page_is_right(&v->ram, i, v->what);
	return errors;
}

static void check_victim(struct daemon *d, struct victim *v)
{
	unsigned int errors;
	uint64_t lost;

	if (resume(d, v)) {
		/* In words: a daemon that died of it, or is confused, says nothing. */
		if (strstr(native_error(v->vmm), "closed the connection"))
			errx(1, "%s: the daemon died", v->what);
		seen.refused++;
		forget_changes(v, true);
		if (resume(d, v))
			errx(1, "%s, mended, is still refused: %s", v->what, native_error(v->vmm));
		if (look_through(v))
			errx(1, "%s: pages are lost, although the damage was mended", v->what);
		return;
	}
	seen.taken++;
	errors = look_through(v);
	if (v->denied && errors != v->denied)
		errx(1, "%s: %u memory errors", v->what, errors);
	/* Who waits for a page goes on a moment before it is counted. */
	for (int i = 0; (lost = daemon_vm_number(d, v->name, "pages-lost")) < errors && i < 3000;
	     i++)
		usleep(10000);
	if (errors > lost)
		errx(1, "%s: %u memory errors, and %llu pages are said to be lost", v->what, errors,
		     (unsigned long long)lost);
	seen.poisoned += errors;
	seen.harmless += !lost;
}

static void round_of(struct daemon *d, struct victim *v, size_t bytes, bool first, uint64_t *seed)
{
	for (int i = 0; i < VMS; i++) {
		if (!v[i].vmm)
			vm_begin(d, &v[i], bytes, seed);
		evict(d, &v[i]);
	}
	daemon_end(d);
	for (int i = 1; i < VMS; i++) {
		v[i].denied = 0;
		if (i == DENIER)
			deny(&v[i], seed);
		else
			damage(&v[i], seed);
	}
	if (first) {
		forget_changes(&v[1], true);
		damage_record(&v[1], seed);
	}
	daemon_next(d);
	for (int i = 1; i < VMS; i++)
		check_victim(d, &v[i]);
	if (resume(d, &v[0]))
		errx(1, "the sound VM is not taken over: %s", native_error(v[0].vmm));
	if (look_through(&v[0]) || daemon_vm_number(d, v[0].name, "pages-lost"))
		errx(1, "the sound VM has lost pages");
	for (int i = 1; i < VMS; i++) {
		vm_end(&v[i]);
		v[i].vmm = NULL;
	}
}

int main(int argc, char **argv)
{
	static struct victim v[VMS];
	static struct daemon d;
	uint64_t seed = 1;
	unsigned int rounds = 12;
	size_t mib = 2;
	int opt;

	while ((opt = getopt(argc, argv, "n:m:r:")) != -1) {
		if (opt == 'n')
			rounds = (unsigned int)strtoul(optarg, NULL, 10);
		else if (opt == 'm')
			mib = strtoul(optarg, NULL, 10);
		else if (opt == 'r')
			seed = strtoull(optarg, NULL, 10);
		else
			errx(2,
			     "usage: test_damage [-n rounds of %d damaged VMs] [-m MiB of each] "
			     "[-r seed, 0: any]",
			     VMS - 1);
	}
	setvbuf(stdout, NULL, _IOLBF, 0);
	if (!seed)
		seed = clock_ns();
	printf("seed %llu\n", (unsigned long long)seed);
	signal(SIGBUS, bus_error);
	alarm(HANG_S + rounds * 10);
	for (int i = 0; i < VMS; i++)
		snprintf(v[i].name, sizeof(v[i].name), i ? "victim%d" : "sound", i);
	daemon_start(&d, NULL);
	for (unsigned int i = 0; i < rounds; i++)
		round_of(&d, v, mib << 20, !i, &seed);
	vm_end(&v[0]);
	daemon_stop(&d);
	printf("%u VMs were damaged: %u refused and offered again, %u taken over, of these %u "
	       "without loss; %u pages are memory errors\n",
	       seen.refused + seen.taken, seen.refused, seen.taken, seen.harmless, seen.poisoned);
	/* Damage that never shows would be no damage. */
	return rounds >= 10 && (!seen.poisoned || !seen.refused || !seen.harmless);
}
