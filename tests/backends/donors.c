/* SPDX-License-Identifier: BSD-3-Clause */
/* donors.c: donors of RDMA memory for tests, as processes of their own. */
#include "backends/donors.h"

#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "backends/harness.h"
#include "base/fd.h"

const char *rdma_address(void)
{
	const char *address = getenv("EBB_RDMA_ADDR");

	return address && address[0] ? address : NULL;
}

static void write_key(const char *dir, const char *name)
{
	uint8_t key[40];
	char path[128];
	FILE *f;

	assert_int_equal(getrandom(key, sizeof(key), 0), sizeof(key));
	snprintf(path, sizeof(path), "%s/%s", dir, name);
	f = fopen(path, "w");
	assert_non_null(f);
	fchmod(fileno(f), 0600);
	for (size_t i = 0; i < sizeof(key); i++)
		fprintf(f, "%02x", key[i]);
	fputc('\n', f);
	assert_int_equal(fclose(f), 0);
}

void donors_init(struct donors *d)
{
	memset(d, 0, sizeof(*d));
	strcpy(d->dir, "/tmp/ebb-donors.XXXXXX");
	assert_non_null(mkdtemp(d->dir));
	snprintf(d->address, sizeof(d->address), "%s", rdma_address());
	write_key(d->dir, "key");
	write_key(d->dir, "other");
	for (unsigned int i = 0; i < DONORS; i++) {
		d->donor[i].port = 7471 + i;
		snprintf(d->donor[i].dir, sizeof(d->donor[i].dir), "%s/%u", d->dir, i);
	}
}

void donors_end(struct donors *d)
{
	char path[128];

	for (unsigned int i = 0; i < DONORS; i++) {
		donor_stop(d, i, SIGKILL);
		snprintf(path, sizeof(path), "%s/donor.sock", d->donor[i].dir);
		unlink(path);
		rmdir(d->donor[i].dir);
	}
	snprintf(path, sizeof(path), "%s/key", d->dir);
	unlink(path);
	snprintf(path, sizeof(path), "%s/other", d->dir);
	unlink(path);
	rmdir(d->dir);
}

static int ask(const struct donors *d, unsigned int i, const char *question, char *answer,
	       size_t bytes)
{
	char path[128];
	size_t have = 0;
	ssize_t n;
	int fd;

	snprintf(path, sizeof(path), "%s/donor.sock", d->donor[i].dir);
	fd = fd_connect_unix(path);
	if (fd < 0)
		return fd;
	if (send(fd, question, strlen(question), MSG_NOSIGNAL) < 0) {
		close(fd);
		return -1;
	}
	while (have < bytes - 1 && (n = recv(fd, answer + have, bytes - 1 - have, 0)) > 0)
		have += (size_t)n;
	answer[have] = '\0';
	close(fd);
	return have ? 0 : -1;
}

void donor_start(struct donors *d, unsigned int i, uint64_t bytes)
{
	struct test_donor *t = &d->donor[i];
	char binary[300], size[32], listen[80], key[128], answer[4096];
	const char *build = getenv("EBB_BUILD");

	assert_int_equal(t->pid, 0);
	snprintf(binary, sizeof(binary), "%s/ebb-donor", build ? build : "build");
	snprintf(size, sizeof(size), "%llu", (unsigned long long)bytes);
	snprintf(listen, sizeof(listen), "%s:%u", d->address, t->port);
	snprintf(key, sizeof(key), "%s/key", d->dir);
	t->bytes = bytes;
	t->pid = fork();
	assert_true(t->pid >= 0);
	if (!t->pid) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		execl(binary, "ebb-donor", "--size", size, "--listen", listen, "--key-file", key,
		      "--runtime-dir", t->dir, "--hold", "60", (char *)NULL);
		_exit(127);
	}
	while (ask(d, i, "status", answer, sizeof(answer))) {
		int status;

		if (waitpid(t->pid, &status, WNOHANG) == t->pid) {
			t->pid = 0;
			fail_msg("donor %u ended with status %d", i, status);
		}
		usleep(10000);
	}
}

void donor_stop(struct donors *d, unsigned int i, int signal)
{
	struct test_donor *t = &d->donor[i];

	if (!t->pid)
		return;
	kill(t->pid, signal);
	waitpid(t->pid, NULL, 0);
	t->pid = 0;
}

uint64_t donor_number(const struct donors *d, unsigned int i, const char *name)
{
	char answer[4096], quoted[64];
	const char *at;

	/* It may be busy, on a machine that is. */
	while (ask(d, i, "status", answer, sizeof(answer)))
		usleep(10000);
	snprintf(quoted, sizeof(quoted), "\"%s\": ", name);
	at = strstr(answer, quoted);
	assert_non_null(at);
	return strtoull(at + strlen(quoted), NULL, 10);
}

void donor_lend(const struct donors *d, unsigned int i, uint64_t bytes)
{
	char answer[4096], question[64];

	snprintf(question, sizeof(question), "lend %llu", (unsigned long long)bytes);
	assert_int_equal(ask(d, i, question, answer, sizeof(answer)), 0);
	assert_null(strstr(answer, "error"));
}

uint64_t donor_memory(const struct donors *d, unsigned int i)
{
	char path[64], line[512];
	unsigned long long from, to;
	uint64_t found = 0;
	FILE *f;

	/* Locked as it is used, it may be shown in one mapping of exactly that size only. */
	snprintf(path, sizeof(path), "/proc/%d/maps", d->donor[i].pid);
	f = fopen(path, "r");
	assert_non_null(f);
	while (fgets(line, sizeof(line), f))
		if (sscanf(line, "%llx-%llx", &from, &to) == 2 && to - from == d->donor[i].bytes)
			found = from;
	fclose(f);
	assert_true(found);
	return found;
}

static int open_memory(const struct donors *d, unsigned int i)
{
	char path[64];
	int fd;

	snprintf(path, sizeof(path), "/proc/%d/mem", d->donor[i].pid);
	fd = open(path, O_RDWR | O_CLOEXEC);
	assert_true(fd >= 0);
	return fd;
}

void donor_read(const struct donors *d, unsigned int i, uint64_t offset, void *buf, uint64_t bytes)
{
	int fd = open_memory(d, i);

	assert_int_equal(pread(fd, buf, bytes, (off_t)(donor_memory(d, i) + offset)), bytes);
	close(fd);
}

void donor_write(const struct donors *d, unsigned int i, uint64_t offset, const void *buf,
		 uint64_t bytes)
{
	int fd = open_memory(d, i);

	assert_int_equal(pwrite(fd, buf, bytes, (off_t)(donor_memory(d, i) + offset)), bytes);
	close(fd);
}
