/* SPDX-License-Identifier: BSD-3-Clause */
/* test_handover.c: what released versions hand over in an upgrade, frozen, is taken over by today's
 * daemon. */
#include <err.h>
#include <errno.h>
#include <setjmp.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "attach/native.h"
#include "base/fd.h"
#include "daemon/stage.h"
#include "parcel/parcel.h"
#include "recovery/sample.h"
#include "stress/daemon.h"
#include "stress/tagged.h"
#include "sys/memfd.h"
#include "sys/uffd.h"

/*
 * Theory of operation
 *
 * A sample is the conversation of one upgrade: what the old daemon said as "prepare" and "state",
 * and what was behind each descriptor. Memory of the daemon's is there with its content, the rest
 * by what it is; the VM's RAM as the list of its pages that were resident. The VM is of 1 MiB,
 *every page tagged as in tests/stress, with generation 3, half of them evicted.
 *
 *	test_handover FOLDER		plays the old daemon to today's ebbd, once with each sample
 *in the folder, and then the VM, whose pages must all be right test_handover -w FOLDER
 *makes a sample of today's ebbd: has it upgraded to this very program, which takes notes
 *(--take-over) and then refuses
 *
 * What every process, file and boot has anew is put in before it is handed over: process id,
 * user, device and inode of the RAM, its address.
 */

#define VM	   "frozen"
#define MIB	   (UINT64_C(1) << 20)
#define GENERATION 3u
#define FOLDER_ENV "EBB_SAMPLES"
#define PATIENCE   60000u

static sigjmp_buf on_error;

static void bus_error(int sig)
{
	(void)sig;
	siglongjmp(on_error, 1);
}

static void write_page(struct area *a, size_t page)
{
	uint64_t seed = 1;

	page_write(area_page(a, page), a->first_page + page, GENERATION, &seed);
}

static void check_all(struct area *a)
{
	if (sigsetjmp(on_error, 1))
		errx(1, "a page is a memory error");
	for (size_t i = 0; i < a->pages; i++)
		page_check(area_page(a, i), a->first_page + i, GENERATION, "after the hand-over");
}

/* ---- making a sample ---- */

/* What the descriptor is. */
static json_t *describe(int fd)
{
	char link[64], text[256];
	struct stat st;
	ssize_t n;

	snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
	n = readlink(link, text, sizeof(text) - 1);
	if (n < 0 || fstat(fd, &st))
		err(1, "%s", link);
	text[n] = '\0';
	if (strstr(text, "userfaultfd"))
		return json_pack("{s:s}", "is", "userfaultfd");
	if (strstr(text, "pidfd"))
		return json_pack("{s:s}", "is", "pidfd");
	if (S_ISSOCK(st.st_mode))
		return json_pack("{s:s}", "is", "socket");
	if (strstr(text, "memfd:ebb:"))
		return json_pack("{s:s, s:o}", "is", "memory", "content",
				 sample_of_file(fd, (uint64_t)st.st_size));
	return json_pack("{s:s}", "is", "ram");
}

static json_t *resident_pages(int fd)
{
	uint64_t at = 0, start, stop;
	json_t *list = json_array();

	while (memfd_next_data(fd, at, MIB, &start, &stop)) {
		json_array_append_new(list, json_pack("[I, I]", (json_int_t)(start / PAGE),
						      (json_int_t)((stop - start) / PAGE)));
		at = stop;
	}
	return list;
}

/* What the daemon says at a stage; ends the process when it says something else. */
static struct parcel expect(int sock, const char *stage)
{
	struct parcel p;
	struct error e;

	if (stage_expect(sock, stage, PATIENCE, &p, &e))
		errx(1, "waiting for '%s': %s", stage, e.desc);
	return p;
}

static void say(int sock, struct parcel *p)
{
	struct error e;

	if (stage_send(sock, p, PATIENCE, &e))
		errx(1, "%s", e.desc);
}

/* The files of policies, as they lie where Ebb is installed. */
static void name_files(json_t *prepare)
{
	json_t *item;
	size_t i;

	json_array_foreach(json_object_get(json_object_get(prepare, "plugins"), "policies"), i,
			   item)
		json_object_set_new(item, "file",
				    json_sprintf("/usr/lib/ebb/policies/%s.so",
						 json_string_value(json_object_get(item, "name"))));
}

/* Plays the successor, takes notes, and ends: for the daemon an upgrade that has failed. */
static int take_notes(int sock)
{
	struct parcel hello, prepare, state;
	json_t *fds = json_array(), *ram = NULL;
	struct error e;

	stage_new(&hello, "hello");
	json_object_set_new(hello.body, "ebbd", json_string("notes"));
	json_object_set_new(hello.body, "oldest", json_integer(STATE_OLDEST));
	say(sock, &hello);
	prepare = expect(sock, "prepare");
	if (stage_say(sock, "ready", &e))
		errx(1, "%s", e.desc);
	state = expect(sock, "state");
	for (unsigned int i = 0; i < state.n_fds; i++) {
		json_t *is = describe(state.fds[i]);

		if (strcmp(json_string_value(json_object_get(is, "is")), "ram") == 0)
			ram = resident_pages(state.fds[i]);
		json_array_append_new(fds, is);
	}
	if (!ram)
		errx(1, "no RAM was handed over");
	name_files(prepare.body);
	sample_write(getenv(FOLDER_ENV), "handover-1.json",
		     json_pack("{s:O, s:O, s:o, s:o}", "prepare", prepare.body, "state", state.body,
			       "descriptors", fds, "resident", ram));
	return 0;
}

static void make_sample(const char *folder)
{
	static struct daemon d;
	struct native *vmm;
	struct area ram;
	char self[512];
	ssize_t n = readlink("/proc/self/exe", self, sizeof(self) - 1);

	if (n < 0 || setenv(FOLDER_ENV, folder, 1))
		err(1, "making a sample");
	self[n] = '\0';
	daemon_start(&d, NULL);
	area_make(&ram, "ram", MIB, NATIVE_SHMEM, 1);
	for (size_t i = 0; i < ram.pages; i++)
		write_page(&ram, i);
	if (native_open(d.attach, &vmm) || native_attach(vmm, VM, &ram.ram, 1, NATIVE_KEEP))
		errx(1, "attach: %s", vmm ? native_error(vmm) : "");
	daemon_ask(&d,
		   "{\"execute\":\"vm-set\",\"arguments\":{\"vm\":\"%s\",\"weight\":77,"
		   "\"floor\":65536}}",
		   VM);
	do {
		daemon_ask(
			&d,
			"{\"execute\":\"vm-reclaim\",\"arguments\":{\"vm\":\"%s\",\"bytes\":%llu}"
			"}",
			VM, (unsigned long long)(MIB / 2));
		usleep(100000);
	} while (strstr(d.answer, "\"Busy\""));
	/* Some of them come back, so that there is something in every counter. */
	for (size_t i = 0; i < ram.pages / 16; i++)
		page_check(area_page(&ram, i), ram.first_page + i, GENERATION, "before");
	daemon_ask(&d, "{\"execute\":\"upgrade\",\"arguments\":{\"binary\":\"%s\"}}", self);
	printf("the daemon says: %.200s\n", d.answer);
	check_all(&ram);
	native_detach(vmm);
	native_close(vmm, true);
	area_free(&ram);
	daemon_stop(&d);
}

/* ---- playing the old daemon ---- */

struct replay {
	const char *sample;
	struct daemon d;
	struct area ram;
	json_t *json;
	int uffd, client; /* the VMM's end of its connection */
	int sock;	  /* to the new daemon */
};

static json_t *get(const json_t *j, const char *name)
{
	return json_object_get(j, name);
}

static void set_number(json_t *j, const char *name, uint64_t value)
{
	/* The member must be one that the sample has. */
	if (!get(j, name))
		errx(1, "the sample has no '%s'", name);
	json_object_set_new(j, name, json_integer((json_int_t)value));
}

static void make_ram(struct replay *r)
{
	const uint64_t modes = UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_WP;
	json_t *item;
	size_t i;

	area_make(&r->ram, "ram", MIB, NATIVE_SHMEM, 1);
	json_array_foreach(get(r->json, "resident"), i, item) {
		json_int_t first = json_integer_value(json_array_get(item, 0)),
			   n = json_integer_value(json_array_get(item, 1));

		for (json_int_t k = 0; k < n; k++)
			write_page(&r->ram, (size_t)(first + k));
	}
	r->uffd = uffd_new();
	if (r->uffd < 0 ||
	    uffd_api(r->uffd,
		     UFFD_FEATURE_PAGEFAULT_FLAG_WP | UFFD_FEATURE_WP_HUGETLBFS_SHMEM |
			     UFFD_FEATURE_MISSING_SHMEM | UFFD_FEATURE_THREAD_ID,
		     NULL) ||
	    uffd_register(r->uffd, (uintptr_t)r->ram.ram.addr, MIB, modes))
		errx(1, "cannot watch the RAM");
}

/* Puts in what this process has anew. */
static void adapt(struct replay *r, json_t *vm)
{
	json_t *block = json_array_get(get(vm, "blocks"), 0),
	       *att = json_array_get(get(vm, "attachments"), 0),
	       *mapping = json_array_get(get(att, "mappings"), 0);
	struct stat st;

	if (fstat(r->ram.ram.memfd, &st))
		err(1, "fstat");
	set_number(vm, "uid", getuid());
	set_number(block, "device", st.st_dev);
	set_number(block, "inode", st.st_ino);
	set_number(att, "pid", (uint64_t)getpid());
	set_number(att, "uid", getuid());
	set_number(mapping, "host-addr", (uintptr_t)r->ram.ram.addr);
}

static int memory(const json_t *is)
{
	const json_t *content = get(is, "content");
	int fd = memfd_make("ebb:frozen", sample_bytes(content));

	if (fd < 0)
		errx(1, "memfd");
	sample_to_file(content, fd);
	return fd;
}

static int listener(const char *path)
{
	struct error e;
	int fd = fd_listen_unix(path, 0600, &e);

	if (fd < 0)
		errx(1, "%s", e.desc);
	return fd;
}

/* All that the sample names, made anew; the parcel's are closed with `owned`. */
static void add_descriptors(struct replay *r, struct parcel *p)
{
	const json_t *body = p->body;
	json_t *item;
	size_t i;
	int pair[2];

	p->owned = true;
	json_array_foreach(get(r->json, "descriptors"), i, item) {
		const char *is = json_string_value(get(item, "is"));
		int fd;

		if (strcmp(is, "memory") == 0) {
			fd = memory(item);
		} else if (strcmp(is, "ram") == 0) {
			fd = dup(r->ram.ram.memfd);
		} else if (strcmp(is, "userfaultfd") == 0) {
			fd = dup(r->uffd);
		} else if (strcmp(is, "pidfd") == 0) {
			fd = (int)syscall(SYS_pidfd_open, getpid(), 0);
		} else if (json_integer_value(get(body, "attach-socket")) == (json_int_t)i) {
			fd = listener(r->d.attach);
		} else if (json_integer_value(get(body, "control-socket")) == (json_int_t)i) {
			fd = listener(r->d.control);
		} else {
			if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair))
				err(1, "socketpair");
			fd_close(&r->client);
			fd = pair[0];
			r->client = pair[1];
		}
		if (fd < 0)
			err(1, "a descriptor that is %s", is);
		json_decref(parcel_add_fd(p, fd)); /* the body has the index already */
	}
}

/* Starts ebbd as a successor, with a folder and sockets of its own. */
static void start_successor(struct replay *r)
{
	int pair[2];
	char text[16];
	struct daemon *d = &r->d;

	strcpy(d->dir, "/tmp/ebb-frozen.XXXXXX");
	if (!mkdtemp(d->dir) || socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair))
		err(1, "a folder, or a socket");
	snprintf(d->attach, sizeof(d->attach), "%s/attach.sock", d->dir);
	snprintf(d->control, sizeof(d->control), "%s/control.sock", d->dir);
	snprintf(d->binary, sizeof(d->binary), "%s/ebbd", getenv("EBB_BUILD"));
	r->sock = dup(pair[0]);
	close(pair[0]);
	d->pid = fork();
	if (d->pid < 0)
		err(1, "fork");
	if (d->pid == 0) {
		int theirs = dup(pair[1]); /* not CLOEXEC */

		prctl(PR_SET_PDEATHSIG, SIGKILL);
		close(r->sock);
		snprintf(text, sizeof(text), "%d", theirs);
		execl(d->binary, d->binary, "--runtime-dir", d->dir, "--take-over", text, NULL);
		_exit(127);
	}
	close(pair[1]);
}

static void begin(struct replay *r, const char *sample, json_t *json)
{
	*r = (struct replay){
		.sample = sample, .json = json, .uffd = -1, .client = -1, .d = {.fd = -1}};
	make_ram(r);
	start_successor(r);
}

/* Until the new daemon has got the state. */
static void hand_over(struct replay *r)
{
	struct parcel p = expect(r->sock, "hello"), state;
	json_t *vms;

	parcel_free(&p);
	p = (struct parcel){.body = json_deep_copy(get(r->json, "prepare"))};
	say(r->sock, &p);
	p = expect(r->sock, "ready");
	parcel_free(&p);
	state = (struct parcel){.body = json_deep_copy(get(r->json, "state"))};
	vms = get(state.body, "vms");
	if (json_array_size(vms) != 1)
		errx(1, "%s: one VM was expected", r->sample);
	adapt(r, json_array_get(vms, 0));
	add_descriptors(r, &state);
	say(r->sock, &state);
}

static void end(struct replay *r)
{
	fd_close(&r->sock);
	fd_close(&r->client);
	fd_close(&r->uffd);
	area_free(&r->ram);
	json_decref(r->json);
}

static void expect_number(struct replay *r, const char *name, const json_t *value)
{
	uint64_t is = daemon_vm_number(&r->d, VM, name);

	if (!json_is_integer(value) || is != (uint64_t)json_integer_value(value))
		errx(1, "%s: %s is %llu, not %lld", r->sample, name, (unsigned long long)is,
		     (long long)json_integer_value(value));
}

static void test_is_taken_over(const char *folder, const char *sample)
{
	static struct replay r;
	const json_t *vm, *settings, *counters;
	struct parcel p;
	struct error e;

	begin(&r, sample, sample_read(folder, sample));
	hand_over(&r);
	p = expect(r.sock, "taken");
	parcel_free(&p);
	if (stage_say(r.sock, "commit", &e))
		errx(1, "%s", e.desc);
	p = expect(r.sock, "serving");
	parcel_free(&p);
	fd_close(&r.sock);
	daemon_reach(&r.d);
	vm = json_array_get(get(get(r.json, "state"), "vms"), 0);
	settings = get(vm, "settings");
	counters = get(vm, "counters");
	expect_number(&r, "weight", get(settings, "weight"));
	expect_number(&r, "floor-bytes", get(settings, "floor"));
	expect_number(&r, "evicted-bytes", get(get(vm, "accounts"), "evicted"));
	expect_number(&r, "resident-bytes", get(get(vm, "accounts"), "resident"));
	expect_number(&r, "evictions", get(counters, "evictions"));
	expect_number(&r, "faults", get(counters, "faults"));
	if (!strstr(r.d.answer, "\"reclaim-policy\":\"clock\""))
		errx(1, "%s: the policy is not there: %.400s", sample, r.d.answer);
	if (json_integer_value(get(get(vm, "accounts"), "evicted")) < (json_int_t)MIB / 4)
		errx(1, "%s: little is evicted in it", sample);
	check_all(&r.ram);
	if (daemon_vm_number(&r.d, VM, "pages-lost") || daemon_vm_number(&r.d, VM, "evicted-bytes"))
		errx(1, "%s: not all pages have come back", sample);
	daemon_stop(&r.d);
	end(&r);
	printf("%s: taken over, every page is right\n", sample);
}

/* A state that is changed so is refused before anything was taken. */
static void test_is_refused(const char *folder, const char *sample, void (*change)(json_t *state),
			    const char *why)
{
	static struct replay r;
	json_t *json = sample_read(folder, sample);
	struct parcel p;
	struct error e;
	int status;

	change(get(json, "state"));
	begin(&r, sample, json);
	hand_over(&r);
	if (!stage_expect(r.sock, "taken", PATIENCE, &p, &e))
		errx(1, "%s is taken, although it should not be: %s", sample, why);
	if (!strstr(e.desc, why))
		errx(1, "'%s' does not say '%s'", e.desc, why);
	/* It ends by itself, and has changed nothing: the RAM is what it was. */
	fd_close(&r.sock);
	status = daemon_reap(&r.d);
	if (!WIFEXITED(status) || !WEXITSTATUS(status))
		errx(1, "it ended with status 0x%x", (unsigned int)status);
	daemon_remove(&r.d);
	end(&r);
	printf("refused: %s\n", why);
}

static void newer(json_t *state)
{
	set_number(state, "version", 9);
	set_number(state, "compat", 9);
}

static void no_version(json_t *state)
{
	json_object_del(state, "version");
}

static void compat_above_version(json_t *state)
{
	set_number(state, "compat", 2);
}

static void another_table(json_t *state)
{
	json_t *block = json_array_get(get(json_array_get(get(state, "vms"), 0), "blocks"), 0);

	json_object_set_new(block, "table", json_string("table:7"));
}

static void another_size(json_t *state)
{
	set_number(json_array_get(get(json_array_get(get(state, "vms"), 0), "stores"), 0), "bytes",
		   12345);
}

int main(int argc, char **argv)
{
	const char *sample = "handover-1.json";

	setvbuf(stdout, NULL, _IOLBF, 0);
	signal(SIGBUS, bus_error);
	for (int i = 1; i + 1 < argc; i++)
		if (strcmp(argv[i], "--take-over") == 0)
			return take_notes(atoi(argv[i + 1]));
	if (argc == 3 && strcmp(argv[1], "-w") == 0) {
		make_sample(argv[2]);
		return 0;
	}
	if (argc != 2)
		errx(2, "usage: test_handover [-w] FOLDER");
	alarm(280);
	test_is_taken_over(argv[1], sample);
	test_is_refused(argv[1], sample, newer, "of version 9, for readers of 9");
	test_is_refused(argv[1], sample, no_version, "the state has no version");
	test_is_refused(argv[1], sample, compat_above_version, "the state has no version");
	test_is_refused(argv[1], sample, another_table, "its page table is missing");
	test_is_refused(argv[1], sample, another_size, "VM " VM ": store");
	return 0;
}
