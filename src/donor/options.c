/* SPDX-License-Identifier: BSD-3-Clause */
/* options.c: the command line of ebb-donor. */
#include <arpa/inet.h>
#include <errno.h>
#include <getopt.h>
#include <netdb.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/size.h"
#include "donor/donor.h"

#define DEFAULT_PORT "7471"

static const char help[] =
	"usage: ebb-donor --size SIZE [option]...   lend memory of this host over RDMA\n"
	"       ebb-donor status                    what the running one lends, as JSON\n"
	"       ebb-donor lend SIZE                 lend so much from now on; clients give back what is\n"
	"                                           above it as it becomes free\n"
	"\n"
	"  --size SIZE         the most to lend, e.g. 64G\n"
	"  --listen ADDR:PORT  where (default 0.0.0.0:" DEFAULT_PORT "); [ADDR]:PORT for IPv6\n"
	"  --allow ADDR[/BITS] who may connect; may be given several times (default: everybody\n"
	"                      who has the key)\n"
	"  --key-file FILE     the secret that clients share with us (default /etc/ebb/rdma.key)\n"
	"  --hold SECONDS      how long memory is kept for a client that is away (default 600)\n"
	"  --runtime-dir DIR   folder of the socket behind 'status' (default /run/ebb-donor)\n"
	"  --log-level LEVEL   error, warning, info (default) or debug\n"
	"  --version, --help\n";

void donor_options_help(void)
{
	fputs(help, stdout);
}

const char *address_text(const struct sockaddr *addr, char *out, size_t bytes)
{
	socklen_t len = addr->sa_family == AF_INET6 ? sizeof(struct sockaddr_in6)
						    : sizeof(struct sockaddr_in);

	if (getnameinfo(addr, len, out, (socklen_t)bytes, NULL, 0, NI_NUMERICHOST))
		snprintf(out, bytes, "?");
	return out;
}

static int parse_listen(struct donor_options *o, const char *text, struct error *e)
{
	struct addrinfo hints = {.ai_flags = AI_PASSIVE, .ai_socktype = SOCK_STREAM}, *found;
	char host[sizeof(o->listen_text)], *port;
	char *name = host;

	if (strlen(text) >= sizeof(host))
		return error_set(e, EINVAL, ERROR_ARGUMENT, "--listen is too long");
	strcpy(host, text);
	strcpy(o->listen_text, text);
	port = strrchr(host, ':');
	if (port && strchr(port, ']'))
		port = NULL;
	if (port)
		*port++ = '\0';
	if (*name == '[' && name[strlen(name) - 1] == ']') {
		name[strlen(name) - 1] = '\0';
		name++;
	}
	if (getaddrinfo(name, port ? port : DEFAULT_PORT, &hints, &found))
		return error_set(e, EINVAL, ERROR_ARGUMENT, "--listen %s: no such address", text);
	memcpy(&o->listen, found->ai_addr, found->ai_addrlen);
	freeaddrinfo(found);
	return 0;
}

static int parse_allow(struct donor_options *o, const char *text, struct error *e)
{
	struct allow *a = &o->allow[o->n_allow];
	char addr[64], *slash, *end = NULL;
	unsigned long bits;

	if (o->n_allow == DONOR_ALLOW_MAX)
		return error_set(e, E2BIG, ERROR_LIMIT, "--allow more than %d times",
				 DONOR_ALLOW_MAX);
	snprintf(addr, sizeof(addr), "%s", text);
	slash = strchr(addr, '/');
	if (slash)
		*slash++ = '\0';
	a->family = strchr(addr, ':') ? AF_INET6 : AF_INET;
	bits = a->family == AF_INET6 ? 128 : 32;
	if (inet_pton(a->family, addr, a->addr) != 1)
		goto bad;
	a->bits = (unsigned int)bits;
	if (slash) {
		bits = strtoul(slash, &end, 10);
		if (end == slash || *end || bits > a->bits)
			goto bad;
		a->bits = (unsigned int)bits;
	}
	o->n_allow++;
	return 0;
bad:
	return error_set(e, EINVAL, ERROR_ARGUMENT, "--allow %.60s: no address or network", text);
}

static bool matches(const struct allow *a, const uint8_t *addr)
{
	unsigned int bytes = a->bits / 8, rest = a->bits % 8;

	return memcmp(a->addr, addr, bytes) == 0 &&
	       (!rest || !((a->addr[bytes] ^ addr[bytes]) >> (8 - rest)));
}

bool donor_allows(const struct donor_options *o, const struct sockaddr *addr)
{
	const void *bytes = addr->sa_family == AF_INET6
				    ? (const void *)&((const struct sockaddr_in6 *)addr)->sin6_addr
				    : (const void *)&((const struct sockaddr_in *)addr)->sin_addr;

	for (unsigned int i = 0; i < o->n_allow; i++)
		if (o->allow[i].family == addr->sa_family && matches(&o->allow[i], bytes))
			return true;
	return !o->n_allow;
}

static int copy(char *to, size_t bytes, const char *from, const char *option, struct error *e)
{
	if (strlen(from) >= bytes)
		return error_set(e, EINVAL, ERROR_ARGUMENT, "%s is too long", option);
	strcpy(to, from);
	return 0;
}

static int set(struct donor_options *o, int option, const char *value, struct error *e)
{
	char *end;
	int level;

	switch (option) {
	case 's':
		if (size_parse(value, &o->size_bytes) || o->size_bytes < WIRE_CHUNK_BYTES)
			return error_set(e, EINVAL, ERROR_ARGUMENT,
					 "--size %.40s: a size of at least 4M is needed", value);
		return 0;
	case 'l':
		return parse_listen(o, value, e);
	case 'a':
		return parse_allow(o, value, e);
	case 'k':
		return copy(o->key_file, sizeof(o->key_file), value, "--key-file", e);
	case 'r':
		return copy(o->runtime_dir, sizeof(o->runtime_dir), value, "--runtime-dir", e);
	case 'h':
		o->hold_seconds = strtoull(value, &end, 10);
		if (end == value || *end || *value == '-' || o->hold_seconds > 86400 * 365)
			return error_set(e, EINVAL, ERROR_ARGUMENT,
					 "--hold %.40s: a number of seconds is needed", value);
		return 0;
	default:
		level = log_level_parse(value);
		if (level < 0)
			return error_set(e, EINVAL, ERROR_ARGUMENT, "--log-level %.40s: no level",
					 value);
		o->log_level = (enum log_level)level;
		return 0;
	}
}

int donor_options_read(struct donor_options *o, int argc, char **argv, enum donor_action *action,
		       char *question, size_t question_bytes, struct error *e)
{
	static const struct option known[] = {
		{"size", required_argument, NULL, 's'},
		{"listen", required_argument, NULL, 'l'},
		{"allow", required_argument, NULL, 'a'},
		{"key-file", required_argument, NULL, 'k'},
		{"hold", required_argument, NULL, 'h'},
		{"runtime-dir", required_argument, NULL, 'r'},
		{"log-level", required_argument, NULL, 'v'},
		{"version", no_argument, NULL, 'V'},
		{"help", no_argument, NULL, 'H'},
		{0},
	};
	const char *ask;
	int option, r;

	*o = (struct donor_options){.hold_seconds = 600,
				    .key_file = "/etc/ebb/rdma.key",
				    .runtime_dir = "/run/ebb-donor",
				    .log_level = LOG_INFO};
	*action = DONOR_RUN;
	r = parse_listen(o, "0.0.0.0:" DEFAULT_PORT, e);
	opterr = 0;
	while (!r && (option = getopt_long(argc, argv, "", known, NULL)) != -1) {
		if (option == 'V' || option == 'H') {
			*action = option == 'V' ? DONOR_VERSION : DONOR_HELP;
			return 0;
		}
		if (option == '?')
			return error_set(e, EINVAL, ERROR_ARGUMENT,
					 "option '%.60s' is unknown or lacks its value",
					 argv[optind - 1]);
		r = set(o, option, optarg, e);
	}
	if (r)
		return r;
	if (optind < argc) {
		ask = argv[optind];
		*action = DONOR_ASK;
		if (strcmp(ask, "status") == 0 && argc == optind + 1)
			return copy(question, question_bytes, ask, "status", e);
		if (strcmp(ask, "lend") == 0 && argc == optind + 2) {
			snprintf(question, question_bytes, "lend %.40s", argv[optind + 1]);
			return 0;
		}
		return error_set(e, EINVAL, ERROR_ARGUMENT, "'%.60s' is none of: status, lend SIZE",
				 ask);
	}
	if (!o->size_bytes)
		return error_set(e, EINVAL, ERROR_ARGUMENT, "--size is missing");
	return 0;
}
