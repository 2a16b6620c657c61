/* SPDX-License-Identifier: BSD-3-Clause */
/* run.c: one command, its answer, and its progress while it takes long. */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/size.h"
#include "ctl/ctl.h"
#include "ctl/print.h"
#include "ctl/request.h"

/* A signal handler has no context: this is the one variable it may write. */
static volatile sig_atomic_t interrupted;

static void on_interrupt(int sig)
{
	(void)sig;
	interrupted = 1;
}

void interrupt_catch(void)
{
	struct sigaction sa;

	memset(&sa, 0, sizeof(sa));
	sa.sa_handler = on_interrupt; /* no SA_RESTART: poll() must return */
	sigaction(SIGINT, &sa, NULL);
	sigaction(SIGTERM, &sa, NULL);
}

bool interrupt_taken(void)
{
	bool was = interrupted;

	interrupted = 0;
	return was;
}

int ctl_fail(const struct error *e)
{
	fprintf(stderr, "ebbctl: %s\n", e->desc);
	return CTL_FAILED;
}

#define BAR_WIDTH 30

struct progress_bar {
	bool on, shown;
	const char *unit; /* what is counted; "": bytes */
	uint64_t start_ns;
};

static void bar_show(struct progress_bar *bar, const json_t *data)
{
	uint64_t done = (uint64_t)json_integer_value(json_object_get(data, "done"));
	uint64_t total = (uint64_t)json_integer_value(json_object_get(data, "total"));
	double seconds = (double)(clock_ns() - bar->start_ns) / 1e9;
	char line[BAR_WIDTH + 1], a[16], b[16], rate[16];
	unsigned int filled;

	if (!bar->on)
		return;
	if (done > total)
		total = done;
	filled = total ? (unsigned int)(BAR_WIDTH * (double)done / (double)total) : 0;
	memset(line, '.', BAR_WIDTH);
	memset(line, '#', filled);
	line[BAR_WIDTH] = '\0';
	if (*bar->unit)
		fprintf(stderr, "\r\033[K[%s] %llu of %llu %s", line, (unsigned long long)done,
			(unsigned long long)total, bar->unit);
	else
		fprintf(stderr, "\r\033[K[%s] %s of %s, %s/s", line, size_format(done, a),
			size_format(total, b),
			size_format(seconds > 0 ? (uint64_t)((double)done / seconds) : 0, rate));
	bar->shown = true;
}

static void bar_clear(struct progress_bar *bar)
{
	if (bar->shown)
		fputs("\r\033[K", stderr);
	bar->shown = false;
}

/*
 * Waits for the answer to id (*answer is written only on success); shows the progress of job, in
 * `unit`, meanwhile. Ctrl-C asks for the job to be cancelled, and then the answer says what became
 * of it; a second one leaves.
 */
static int wait_answer(struct connection *c, json_int_t id, const char *job, const char *unit,
		       json_t **answer, struct error *e)
{
	struct progress_bar bar = {
		.on = isatty(STDERR_FILENO), .unit = unit, .start_ns = clock_ns()};
	json_int_t cancel_id = -1;
	int r;

	for (;;) {
		json_t *m = NULL;
		const json_t *data;

		r = connection_next(c, 500, &m, e);
		if (interrupt_taken()) {
			if (!job || cancel_id != -1) {
				json_decref(m);
				r = error_set(e, EINTR, ERROR_CANCELLED, "interrupted");
				break;
			}
			connection_send(c, "job-cancel", json_pack("{s:s}", "job", job), &cancel_id,
					e);
		}
		if (r == -ETIMEDOUT || r == -EINTR)
			continue;
		if (r)
			break;
		if (json_integer_value(json_object_get(m, "id")) == id) {
			*answer = m;
			break;
		}
		data = json_object_get(m, "data");
		if (job && strcmp(schema_text(m, "event"), "JOB_PROGRESS") == 0 &&
		    strcmp(schema_text(data, "job"), job) == 0)
			bar_show(&bar, data);
		json_decref(m);
	}
	bar_clear(&bar);
	return r;
}

int run_call(struct ctl *ctl, const char *name, int n, char **words, json_t **answer)
{
	const json_t *command = schema_command(ctl->schema, name);
	struct connection c = {.fd = -1};
	char job[32] = "";
	json_t *args;
	json_int_t id;
	struct error e;
	int r;

	if (!command) {
		fprintf(stderr, "ebbctl: there is no command '%s'; see ebbctl help\n", name);
		return CTL_USAGE;
	}
	if (request_args(ctl->schema, command, n, words, &args, &e)) {
		char *usage = schema_usage(command);

		fprintf(stderr, "ebbctl: %s\nusage: ebbctl %s\n", e.desc, usage ? usage : name);
		free(usage);
		return CTL_USAGE;
	}
	if (schema_flag(command, "long") && !json_object_get(args, "job")) {
		snprintf(job, sizeof(job), "ebbctl-%d", (int)getpid());
		json_object_set_new(args, "job", json_string(job));
	} else if (schema_flag(command, "long")) {
		snprintf(job, sizeof(job), "%s", schema_text(args, "job"));
	}
	if (*job)
		interrupt_catch();
	r = connection_open(&c, ctl->socket, &e);
	if (r)
		json_decref(args);
	else
		r = connection_send(&c, name, args, &id, &e);
	if (!r)
		r = wait_answer(&c, id, *job ? job : NULL, schema_text(command, "progress"), answer,
				&e);
	connection_close(&c);
	return r ? ctl_fail(&e) : CTL_OK;
}

int run_show(struct ctl *ctl, const char *name, json_t *answer, run_show_fn show, void *arg)
{
	const json_t *failure = json_object_get(answer, "error");
	int r = failure ? CTL_FAILED : CTL_OK;

	if (ctl->json) {
		json_object_del(answer, "id"); /* our own, of no use to the reader */
		json_dumpf(answer, stdout, JSON_COMPACT);
		putchar('\n');
	} else if (failure) {
		fprintf(stderr, "ebbctl: %s: %s\n", schema_text(failure, "class"),
			schema_text(failure, "desc"));
	} else if (show) {
		r = show(json_object_get(answer, "return"), arg);
	} else {
		print_return(ctl->schema, schema_command(ctl->schema, name),
			     json_object_get(answer, "return"), stdout);
	}
	json_decref(answer);
	return r;
}

int run_command(struct ctl *ctl, const char *name, int n, char **words)
{
	json_t *answer;
	int r = run_call(ctl, name, n, words, &answer);

	return r ? r : run_show(ctl, name, answer, NULL, NULL);
}

int run_watch(struct ctl *ctl)
{
	struct connection c = {.fd = -1};
	json_t *m;
	struct error e;
	int r;

	interrupt_catch();
	r = connection_open(&c, ctl->socket, &e);
	while (!r && !interrupt_taken()) {
		/* Not for ever: the signal may come just before the wait begins. */
		r = connection_next(&c, 500, &m, &e);
		if (r == -ETIMEDOUT || r == -EINTR) {
			r = 0;
			continue;
		}
		if (r)
			break;
		if (ctl->json) {
			json_dumpf(m, stdout, JSON_COMPACT);
			putchar('\n');
		} else if (json_object_get(m, "event")) {
			char *text = print_value(NULL, json_object_get(m, "data"));

			printf("%-18s %s\n", schema_text(m, "event"), text ? text : "");
			free(text);
		}
		fflush(stdout);
		json_decref(m);
	}
	connection_close(&c);
	return r ? ctl_fail(&e) : CTL_OK;
}
