/* SPDX-License-Identifier: BSD-3-Clause */
/* rig.c: a real daemon and a VM of tagged pages, for tests of one rule each. */
#include "engine/rig.h"

#include <err.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/fd.h"

#define PATIENCE_NS (30 * NS_PER_S)

static int run_one(const struct rig_case *c)
{
	static struct rig rig;
	int status;
	pid_t pid;

	fflush(NULL);
	pid = fork();
	if (pid < 0)
		err(1, "fork");
	if (pid == 0) {
		rig.events = -1;
		c->run(&rig);
		printf("%s: ok\n", c->name);
		exit(0);
	}
	while (waitpid(pid, &status, 0) != pid)
		;
	if (WIFSIGNALED(status)) {
		printf("%s: died of signal %d\n", c->name, WTERMSIG(status));
		return 1;
	}
	return WEXITSTATUS(status);
}

int rig_main(int argc, char **argv, const struct rig_case *cases, size_t n)
{
	int failed = 0, skipped = 0, ran = 0;

	setvbuf(stdout, NULL, _IOLBF, 0);
	for (size_t i = 0; i < n; i++) {
		bool named = argc == 1;
		int r;

		for (int k = 1; k < argc; k++)
			named |= strcmp(argv[k], cases[i].name) == 0;
		if (!named)
			continue;
		ran++;
		r = run_one(&cases[i]);
		skipped += r == 77;
		failed += r && r != 77;
	}
	if (!ran)
		errx(2, "no such case");
	return failed ? 1 : skipped ? 77 : 0;
}

void rig_send(struct rig *r, const char *command)
{
	char line[256];
	int n = snprintf(line, sizeof(line), "%s\n", command);

	CHECK(n > 0 && n < (int)sizeof(line) && !fd_send(r->events, line, (size_t)n, NULL, 0));
}

/* A daemon that takes over reads it, too. */
static char config[64];

static void remove_config(void)
{
	unlink(config);
}

void rig_start(struct rig *r, const char *keys, const char *inject)
{
	const char *const args[] = {"--config", config, NULL};
	FILE *f;
	int fd;

	if (geteuid() != 0)
		SKIP("needs root");
	strcpy(config, "/tmp/ebb-engine.XXXXXX");
	fd = mkstemp(config);
	CHECK(fd >= 0);
	atexit(remove_config);
	f = fdopen(fd, "w");
	CHECK(f);
	fprintf(f, "fault-threads = 2\nevict-threads = 1\nlog-level = error\n%s\n", keys);
	if (inject)
		fprintf(f, "[backend inject]\ndriver = inject\n%s\n", inject);
	fprintf(f, "[vm *]\nreclaim-policy = null\nprefetch-policy = null\n");
	if (inject)
		fprintf(f, "tiers = inject\n");
	CHECK(!fclose(f));
	daemon_start(&r->d, args);
	r->events = fd_connect_unix(r->d.control);
	CHECK(r->events >= 0);
	rig_send(r, "{\"execute\":\"qmp_capabilities\"}");
}

void rig_attach_ram(struct rig *r)
{
	r->unit_bytes = r->ram.page_bytes;
	r->units = r->ram.bytes / r->unit_bytes;
	for (size_t i = 0; i < r->units; i++)
		rig_tag(r, i, 1);
	kt_settle();
	CHECK_EQ(native_open(r->d.attach, &r->vmm), 0);
	if (native_attach(r->vmm, "vm", &r->ram, 1, NATIVE_SERVE_ZAP))
		errx(1, "attach: %s", native_error(r->vmm));
}

void rig_attach(struct rig *r, size_t bytes, enum native_kind kind)
{
	CHECK_EQ(native_ram_make(&r->ram, "ram", bytes, kind), 0);
	rig_attach_ram(r);
}

void rig_end(struct rig *r)
{
	if (native_detach(r->vmm))
		errx(1, "detach: %s", native_error(r->vmm));
	native_close(r->vmm, true);
	native_ram_free(&r->ram);
	fd_close(&r->events);
	daemon_stop(&r->d);
}

/* ---- tags ---- */

char *rig_unit(const struct rig *r, size_t unit)
{
	return (char *)r->ram.addr + unit * r->unit_bytes;
}

void rig_tag(const struct rig *r, size_t unit, uint64_t generation)
{
	uint64_t *p = (uint64_t *)(void *)rig_unit(r, unit);

	for (size_t i = 0; i < r->unit_bytes / 16; i++) {
		p[2 * i] = unit + 1;
		p[2 * i + 1] = generation << 32 | i;
	}
}

bool rig_is(const struct rig *r, size_t unit, uint64_t generation)
{
	const uint64_t *p = (const uint64_t *)(const void *)rig_unit(r, unit);

	for (size_t i = 0; i < r->unit_bytes / 16; i++) {
		if (generation ? p[2 * i] == unit + 1 && p[2 * i + 1] == (generation << 32 | i)
			       : !p[2 * i] && !p[2 * i + 1])
			continue;
		printf("unit %zu, offset %zu: %llx %llx, not generation %llu\n", unit, 16 * i,
		       (unsigned long long)p[2 * i], (unsigned long long)p[2 * i + 1],
		       (unsigned long long)generation);
		return false;
	}
	return true;
}

void rig_check_all(const struct rig *r)
{
	for (size_t i = 0; i < r->units; i++)
		CHECK(rig_is(r, i, 1));
}

/* ---- asking ---- */

uint64_t rig_number(struct rig *r, const char *name)
{
	return daemon_vm_number(&r->d, "vm", name);
}

uint64_t rig_backend_number(struct rig *r, const char *backend, const char *name)
{
	char of[64], key[80];
	const char *p;

	daemon_ask(&r->d, "{\"execute\":\"query-backends\"}");
	snprintf(of, sizeof(of), "\"name\":\"%s\"", backend);
	snprintf(key, sizeof(key), "\"name\":\"%s\"", name);
	p = strstr(r->d.answer, of);
	p = p ? strstr(p, key) : NULL;
	p = p ? strstr(p, "\"value\":") : NULL;
	if (!p)
		errx(1, "no %s of %s: %.2000s", name, backend, r->d.answer);
	return strtoull(p + strlen("\"value\":"), NULL, 10);
}

void rig_until(struct rig *r, const char *name, uint64_t at_least)
{
	uint64_t end = clock_ns() + PATIENCE_NS;

	while (rig_number(r, name) < at_least) {
		if (clock_ns() > end)
			errx(1, "%s is %llu and not %llu", name,
			     (unsigned long long)rig_number(r, name), (unsigned long long)at_least);
		usleep(10000);
	}
}

uint64_t rig_reclaim(struct rig *r, uint64_t bytes)
{
	static const char key[] = "\"reclaimed-bytes\":";
	const char *p;

	daemon_ask(&r->d,
		   "{\"execute\":\"vm-reclaim\",\"arguments\":{\"vm\":\"vm\",\"bytes\":%llu}}",
		   (unsigned long long)(bytes ? bytes : r->ram.bytes));
	p = strstr(r->d.answer, key);
	return p ? strtoull(p + sizeof(key) - 1, NULL, 10) : 0;
}

bool rig_cached(const struct rig *r, size_t unit)
{
	return kt_cached(r->ram.memfd, unit * r->unit_bytes);
}

void rig_evict_all(struct rig *r)
{
	uint64_t end = clock_ns() + PATIENCE_NS;

	/* Some other CPU's batch may hold a page for a moment. */
	while (rig_number(r, "evicted-bytes") < r->ram.bytes) {
		rig_reclaim(r, 0);
		if (clock_ns() > end)
			errx(1, "not all can be evicted: %.2000s", r->d.answer);
		if (rig_number(r, "evicted-bytes") < r->ram.bytes)
			kt_settle();
	}
}

const char *rig_suspended(struct rig *r)
{
	static const char key[] = "\"suspended\":\"";
	static char text[256];
	const char *p;

	daemon_ask(&r->d, "{\"execute\":\"query-vm\",\"arguments\":{\"vm\":\"vm\"}}");
	p = strstr(r->d.answer, key);
	CHECK(p);
	snprintf(text, sizeof(text), "%.*s", (int)strcspn(p + sizeof(key) - 1, "\""),
		 p + sizeof(key) - 1);
	return text;
}

void rig_limit(struct rig *r, uint64_t bytes)
{
	daemon_ask(&r->d, "{\"execute\":\"vm-set\",\"arguments\":{\"vm\":\"vm\",\"limit\":%llu}}",
		   (unsigned long long)bytes);
	if (!strstr(r->d.answer, "\"return\""))
		errx(1, "vm-set: %.300s", r->d.answer);
}

void rig_event(struct rig *r, const char *name)
{
	static char text[1 << 20];
	static size_t have;
	uint64_t end = clock_ns() + PATIENCE_NS;
	char key[80];

	snprintf(key, sizeof(key), "\"event\":\"%s\"", name);
	while (!strstr(text, key)) {
		struct pollfd p = {.fd = r->events, .events = POLLIN};
		ssize_t n;

		if (clock_ns() > end)
			errx(1, "no event %s came", name);
		if (poll(&p, 1, 1000) != 1)
			continue;
		n = read(r->events, text + have, sizeof(text) - 1 - have);
		CHECK(n > 0);
		have += (size_t)n;
		text[have] = 0;
	}
}

char rig_access_end(struct kt_access *a)
{
	uint64_t end = clock_ns() + PATIENCE_NS;

	while (!a->done && clock_ns() < end)
		usleep(1000);
	CHECK(a->done);
	CHECK(!pthread_join(a->thread, NULL));
	return a->value;
}

/* ---- writers ---- */

static volatile uint64_t *counter(const struct rig_writer *w, size_t i)
{
	/* In the middle of the unit: the tags around it keep it from being one pattern. */
	return (volatile uint64_t *)(void *)((char *)w->base + (w->first + i) * w->rig->unit_bytes +
					     2048);
}

static void *writer_main(void *arg)
{
	struct rig_writer *w = arg;

	for (size_t i = 0; !w->stop; i = (i + 1) % w->n) {
		*counter(w, i) = *counter(w, i) + 1;
		w->count[i]++;
		w->writes++;
		if (w->pause_us)
			usleep(w->pause_us);
	}
	return NULL;
}

void rig_writer_start(struct rig_writer *w, struct rig *r, size_t first, size_t n,
		      unsigned int pause_us)
{
	*w = (struct rig_writer){
		.rig = r, .base = r->ram.addr, .first = first, .n = n, .pause_us = pause_us};
	w->count = calloc(n, sizeof(*w->count));
	CHECK(w->count);
	for (size_t i = 0; i < n; i++)
		w->count[i] = *counter(w, i);
	CHECK(!pthread_create(&w->thread, NULL, writer_main, w));
}

void rig_writer_stop(struct rig_writer *w)
{
	w->stop = true;
	CHECK(!pthread_join(w->thread, NULL));
}

size_t rig_writer_lost(struct rig_writer *w)
{
	size_t lost = 0;

	for (size_t i = 0; i < w->n; i++) {
		uint64_t found = *counter(w, i);

		if (found == w->count[i])
			continue;
		if (!lost++)
			printf("unit %zu: %llu writes, %llu are there\n", w->first + i,
			       (unsigned long long)w->count[i], (unsigned long long)found);
	}
	free(w->count);
	w->count = NULL;
	return lost;
}
