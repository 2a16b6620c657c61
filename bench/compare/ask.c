/* SPDX-License-Identifier: BSD-3-Clause */
/* ask.c: asks Redis or memcached for values, popular ones more often, and says how long it took. */
#include <arpa/inet.h>
#include <err.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/hist.h"
#include "pattern.h"

/*
 * Theory of operation
 *
 *   ask redis|memcached SOCKET|PORT PATTERN KEYS VALUE_BYTES WARM_S RUN_S
 *
 * A client of CLIENTS connections, each with one request under way: it goes round them, takes the
 * answer and sends the next request. The generators that Debian has draw keys evenly; this one by
 * pattern.c. Keys are key:000000000000 to KEYS - 1, and each value must begin with the key's
 * number, in twelve digits, and have VALUE_BYTES. One line of JSON is the result.
 */

#define CLIENTS	   8
#define KEY_DIGITS 12
#define ANSWER_MAX 65536

struct connection {
	int fd;
	uint64_t key, sent_ns;
};

struct asker {
	bool redis;
	size_t value_bytes;
	struct pattern pattern;
	struct pattern_walk walk;
	struct connection connections[CLIENTS];
	uint64_t requests, wrong;
	struct hist latency;
	char answer[ANSWER_MAX];
};

static int connect_to(const char *where)
{
	struct sockaddr_un un = {.sun_family = AF_UNIX};
	struct sockaddr_in in = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	bool local = where[0] == '/';
	const void *address = local ? (const void *)&un : (const void *)&in;
	int fd = socket(local ? AF_UNIX : AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), on = 1;

	snprintf(un.sun_path, sizeof(un.sun_path), "%s", where);
	in.sin_port = htons((uint16_t)strtoul(where, NULL, 10));
	if (!local)
		setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
	if (fd < 0 || connect(fd, address, local ? sizeof(un) : sizeof(in)))
		err(1, "%s", where);
	return fd;
}

static void request(struct asker *a, struct connection *c)
{
	const char *format =
		a->redis ? "*2\r\n$3\r\nGET\r\n$16\r\nkey:%012llu\r\n" : "get key:%012llu\r\n";
	char text[128];
	int len;

	c->key = pattern_next(&a->walk, 0);
	len = snprintf(text, sizeof(text), format, (unsigned long long)c->key);
	c->sent_ns = clock_ns();
	if (write(c->fd, text, (size_t)len) != len)
		err(1, "sending");
}

/* The answer as it must be, but for the value's rest; its length, *value: where the value begins.
 */
static size_t expected(const struct asker *a, uint64_t key, char *text, size_t size, size_t *value)
{
	unsigned long long n = key;
	int head;

	if (a->redis)
		head = snprintf(text, size, "$%zu\r\n", a->value_bytes);
	else
		head = snprintf(text, size, "VALUE key:%012llu 0 %zu\r\n", n, a->value_bytes);
	*value = (size_t)head;
	snprintf(text + head, size - (size_t)head, "%012llu", n);
	return *value + a->value_bytes + (a->redis ? 2 : strlen("\r\nEND\r\n"));
}

static void answer(struct asker *a, struct connection *c)
{
	char want[128];
	size_t value, len = expected(a, c->key, want, sizeof(want), &value), got = 0;

	while (got < len) {
		ssize_t n = read(c->fd, a->answer + got, len - got);

		if (n <= 0)
			err(1, "no answer");
		got += (size_t)n;
		/* Something else than a value may be shorter. */
		if (memcmp(a->answer, want, got < value ? got : value))
			errx(1, "key %llu: %.*s", (unsigned long long)c->key, (int)got, a->answer);
	}
	hist_record(&a->latency, clock_ns() - c->sent_ns);
	a->requests++;
	a->wrong += memcmp(a->answer, want, value + KEY_DIGITS) != 0;
}

static double ask_for(struct asker *a, double seconds)
{
	uint64_t start = clock_ns(), end = start + (uint64_t)(seconds * 1e9);

	a->requests = 0;
	memset(&a->latency, 0, sizeof(a->latency));
	for (int i = 0; i < CLIENTS; i++)
		request(a, &a->connections[i]);
	while (clock_ns() < end)
		for (int i = 0; i < CLIENTS; i++) {
			answer(a, &a->connections[i]);
			request(a, &a->connections[i]);
		}
	for (int i = 0; i < CLIENTS; i++)
		answer(a, &a->connections[i]);
	return (double)(clock_ns() - start) / 1e9;
}

int main(int argc, char **argv)
{
	static struct asker a;
	double s;

	if (argc != 8 || pattern_init(&a.pattern, argv[3], strtoull(argv[4], NULL, 10)))
		errx(2, "usage: compare_ask redis|memcached SOCKET|PORT PATTERN KEYS VALUE_BYTES "
			"WARM_S RUN_S");
	a.redis = strcmp(argv[1], "redis") == 0;
	a.value_bytes = strtoul(argv[5], NULL, 10);
	if (a.value_bytes < KEY_DIGITS || a.value_bytes > ANSWER_MAX - 128 || !a.pattern.pages)
		errx(2, "no such keys or values");
	pattern_start(&a.walk, &a.pattern, 0, 1, clock_ns());
	for (int i = 0; i < CLIENTS; i++)
		a.connections[i].fd = connect_to(argv[2]);
	ask_for(&a, strtod(argv[6], NULL));
	s = ask_for(&a, strtod(argv[7], NULL));
	printf("{\"accesses\": %llu, \"accesses_s\": %.1f, \"wrong\": %llu, \"request_p50_us\": %.3f, "
	       "\"request_p99_us\": %.3f, \"request_p999_us\": %.3f}\n",
	       (unsigned long long)a.requests, (double)a.requests / s, (unsigned long long)a.wrong,
	       (double)hist_quantile(&a.latency, 0.5) / 1e3,
	       (double)hist_quantile(&a.latency, 0.99) / 1e3,
	       (double)hist_quantile(&a.latency, 0.999) / 1e3);
	return a.wrong != 0;
}
