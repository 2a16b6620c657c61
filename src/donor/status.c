/* SPDX-License-Identifier: BSD-3-Clause */
/* status.c: the socket of the runtime folder: what is lent to whom, and lending less. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include "base/fd.h"
#include "base/size.h"
#include "donor/donor.h"

#define LINE_MAX_BYTES 128
#define CHUNK	       ((uint64_t)WIRE_CHUNK_BYTES)

static void socket_path(const struct donor_options *o, char *out, size_t bytes)
{
	snprintf(out, bytes, "%s/donor.sock", o->runtime_dir);
}

int status_listen(const struct donor_options *o, struct error *e)
{
	char path[300];

	if (mkdir(o->runtime_dir, 0755) && errno != EEXIST)
		return error_set(e, errno, ERROR_GENERIC, "cannot make %s: %s", o->runtime_dir,
				 strerror(errno));
	socket_path(o, path, sizeof(path));
	return fd_listen_unix(path, 0600, e);
}

static void describe(const struct donor *d, FILE *out)
{
	const struct pool *p = &d->pool;
	uint64_t away = 0;
	const char *comma = "";

	for (const struct lease *l = p->leases; l; l = l->next)
		away += l->owner ? 0 : l->n;
	fprintf(out,
		"{\"size-bytes\": %llu, \"limit-bytes\": %llu, \"lent-bytes\": %llu, "
		"\"held-bytes\": %llu, \"clients\": [",
		(unsigned long long)(p->n_chunks * CHUNK), (unsigned long long)(p->limit * CHUNK),
		(unsigned long long)(p->lent * CHUNK), (unsigned long long)(away * CHUNK));
	for (const struct session *s = d->sessions; s; s = s->next) {
		if (!s->greeted || s->dead)
			continue;
		fprintf(out,
			"%s{\"name\": \"%s\", \"address\": \"%s\", \"lent-bytes\": %llu, "
			"\"queues\": %u}",
			comma, s->name, s->peer, (unsigned long long)(s->chunks * CHUNK),
			s->n_queues);
		comma = ", ";
	}
	fputs("]}\n", out);
}

static void obey(struct donor *d, const char *line, FILE *out)
{
	uint64_t bytes;

	if (strcmp(line, "status") == 0) {
		describe(d, out);
	} else if (strncmp(line, "lend ", 5) == 0 && !size_parse(line + 5, &bytes)) {
		uint64_t chunks = bytes / CHUNK;

		d->pool.limit = chunks < d->pool.n_chunks ? (uint32_t)chunks : d->pool.n_chunks;
		log_info("lending up to %llu MiB from now on, %llu MiB are lent",
			 (unsigned long long)(d->pool.limit * CHUNK >> 20),
			 (unsigned long long)(d->pool.lent * CHUNK >> 20));
		describe(d, out);
	} else {
		fputs("{\"error\": \"not understood\"}\n", out);
	}
}

void status_serve(struct donor *d)
{
	FD_OWNED fd = accept4(d->status_fd, NULL, NULL, SOCK_CLOEXEC);
	/* Only root and our user can connect; still, nobody keeps us for long. */
	struct timeval patience = {.tv_sec = 1};
	char line[LINE_MAX_BYTES];
	char *text = NULL;
	size_t bytes = 0;
	ssize_t n;
	FILE *out;

	if (fd < 0)
		return;
	setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience));
	setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof(patience));
	n = recv(fd, line, sizeof(line) - 1, 0);
	if (n <= 0)
		return;
	line[n] = '\0';
	line[strcspn(line, "\n")] = '\0';
	out = open_memstream(&text, &bytes);
	if (!out)
		return;
	obey(d, line, out);
	if (fclose(out) == 0)
		send(fd, text, bytes, MSG_NOSIGNAL);
	free(text);
}

int status_ask(const struct donor_options *o, const char *question)
{
	char path[300], buf[4096];
	FD_OWNED fd = -1;
	bool failed = false;
	ssize_t n;

	socket_path(o, path, sizeof(path));
	fd = fd_connect_unix(path);
	if (fd < 0) {
		fprintf(stderr, "ebb-donor: %s: %s\n", path, strerror(-fd));
		return 1;
	}
	if (send(fd, question, strlen(question), MSG_NOSIGNAL) < 0)
		return 1;
	while ((n = recv(fd, buf, sizeof(buf) - 1, 0)) > 0) {
		buf[n] = '\0';
		failed = failed || strncmp(buf, "{\"error\"", 8) == 0;
		fputs(buf, stdout);
	}
	return n < 0 || failed;
}
