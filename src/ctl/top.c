/* SPDX-License-Identifier: BSD-3-Clause */
/* top.c: the live table of VMs. */
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/size.h"
#include "ctl/ctl.h"

#define TOP_PERIOD_MS 1000
#define TOP_LINES     24

/* What a VM's counters were the last time, for rates. */
struct top {
	json_t *before; /* array of VMs, NULL the first time */
	uint64_t before_ns, now_ns;
};

static json_int_t number(const json_t *object, const char *name)
{
	return json_integer_value(json_object_get(object, name));
}

static const char *size(const json_t *object, const char *name, char *buf)
{
	return size_format((uint64_t)number(object, name), buf);
}

static double rate(const struct top *t, const json_t *vm, const char *name)
{
	double seconds = (double)(t->now_ns - t->before_ns) / 1e9;
	json_t *old;
	size_t i;

	json_array_foreach(t->before, i, old) {
		if (json_equal(json_object_get(old, "name"), json_object_get(vm, "name")))
			return seconds > 0
				       ? (double)(number(vm, name) - number(old, name)) / seconds
				       : 0;
	}
	return 0;
}

static void print_vm(const struct top *t, const json_t *vm)
{
	const json_t *latency = json_object_get(vm, "fault-latency-us");
	char name[21], ram[16], resident[16], evicted[16], stored[16], limit[16];

	snprintf(name, sizeof(name), "%s", schema_text(vm, "name"));
	for (char *p = name; *p; p++)
		if ((unsigned char)*p < ' ' || *p == 0x7f)
			*p = '?';
	printf("%-20s %10s %10s %10s %10s %10s %9.0f %9.0f %8.1f %8.1f %s\n", name,
	       size(vm, "ram-bytes", ram), size(vm, "resident-bytes", resident),
	       size(vm, "evicted-bytes", evicted), size(vm, "stored-bytes", stored),
	       number(vm, "limit-bytes") ? size(vm, "limit-bytes", limit) : "none",
	       rate(t, vm, "faults"), rate(t, vm, "evictions"),
	       json_number_value(json_object_get(latency, "p50")),
	       json_number_value(json_object_get(latency, "p99")),
	       *schema_text(vm, "suspended") ? "suspended" : "");
}

static void print_all(const struct top *t, const json_t *host, const json_t *vms,
		      unsigned int lines)
{
	char ram[16], resident[16], stored[16], overhead[16], available[16], total[16];
	json_t *vm;
	size_t i;

	printf("ebbd: %d VMs, RAM %s, resident %s, stored in %s, overhead %s; host %s of %s "
	       "available\n\n",
	       (int)number(host, "vms"), size(host, "ram-bytes", ram),
	       size(host, "resident-bytes", resident), size(host, "stored-bytes", stored),
	       size(host, "overhead-bytes", overhead),
	       size(host, "host-available-bytes", available),
	       size(host, "host-total-bytes", total));
	printf("%-20s %10s %10s %10s %10s %10s %9s %9s %8s %8s\n", "VM", "RAM", "RESIDENT",
	       "EVICTED", "STORED", "LIMIT", "FAULTS/s", "EVICT/s", "P50 us", "P99 us");
	json_array_foreach(vms, i, vm) {
		if (i == lines) {
			printf("... and %zu more\n", json_array_size(vms) - i);
			break;
		}
		print_vm(t, vm);
	}
}

static unsigned int screen_lines(void)
{
	struct winsize w;

	if (ioctl(STDOUT_FILENO, TIOCGWINSZ, &w) || w.ws_row < 8)
		return TOP_LINES - 5;
	return w.ws_row - 5;
}

/* Asks for one picture. Gives *host and *vms, the answers. */
static int ask(struct connection *c, json_t **host, json_t **vms, struct error *e)
{
	int r = connection_call(c, "query-host", NULL, host, e);

	if (r)
		return r;
	r = connection_call(c, "query-vms", NULL, vms, e);
	if (r)
		json_decref(*host);
	return r;
}

/* Waits for the next picture; true when the user wants to leave (q, Ctrl-C). */
static bool pause_until_next(bool keys)
{
	struct pollfd p = {.fd = STDIN_FILENO, .events = POLLIN};
	char c;

	if (poll(&p, keys ? 1 : 0, TOP_PERIOD_MS) > 0)
		return read(STDIN_FILENO, &c, 1) <= 0 || c == 'q' || c == 'Q';
	return false;
}

static int show(struct connection *c, struct top *t, bool live, struct error *e)
{
	json_t *host, *vms;
	int r = ask(c, &host, &vms, e);

	if (r)
		return r;
	t->now_ns = clock_ns();
	if (live)
		fputs("\033[H\033[J", stdout);
	print_all(t, json_object_get(host, "return"), json_object_get(vms, "return"),
		  live ? screen_lines() : UINT32_MAX);
	fflush(stdout);
	json_decref(t->before);
	t->before = json_incref(json_object_get(vms, "return"));
	t->before_ns = t->now_ns;
	json_decref(host);
	json_decref(vms);
	return 0;
}

/* Keys without waiting for Enter. The old state goes to *old; false when stdin is no terminal. */
static bool raw_keys(struct termios *old)
{
	struct termios raw;

	if (!isatty(STDIN_FILENO) || tcgetattr(STDIN_FILENO, old))
		return false;
	raw = *old;
	raw.c_lflag &= ~(tcflag_t)(ICANON | ECHO);
	return tcsetattr(STDIN_FILENO, TCSANOW, &raw) == 0;
}

int run_top(struct ctl *ctl, int n, char **words)
{
	bool once = n == 1 && strcmp(words[0], "--once") == 0;
	bool live = !once && isatty(STDOUT_FILENO), keys;
	struct connection c = {.fd = -1};
	struct top t = {0};
	struct termios old;
	struct error e;
	int r;

	if (n && !once) {
		fprintf(stderr, "usage: ebbctl top [--once]\n");
		return CTL_USAGE;
	}
	interrupt_catch();
	keys = live && raw_keys(&old);
	if (live)
		fputs("\033[?1049h\033[?25l", stdout); /* another screen, no cursor */
	r = connection_open(&c, ctl->socket, &e);
	while (!r) {
		r = show(&c, &t, live, &e);
		if (r || !live)
			break;
		if (pause_until_next(keys) || interrupt_taken())
			break;
	}
	if (live)
		fputs("\033[?25h\033[?1049l", stdout);
	fflush(stdout);
	if (keys)
		tcsetattr(STDIN_FILENO, TCSANOW, &old);
	json_decref(t.before);
	connection_close(&c);
	return r && r != -EINTR ? ctl_fail(&e) : CTL_OK;
}
