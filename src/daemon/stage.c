/* SPDX-License-Identifier: BSD-3-Clause */
/* stage.c: the stages of a hand-over between two daemons, and their messages. */
#include "daemon/stage.h"

#include <errno.h>
#include <string.h>

#define SEND_MS 10000

int stage_new(struct parcel *p, const char *stage)
{
	*p = (struct parcel){.body = json_pack("{s:s, s:i, s:i}", "stage", stage, "version",
					       STATE_VERSION, "compat", STATE_COMPAT)};
	return p->body ? 0 : -ENOMEM;
}

int stage_send(int sock, struct parcel *p, uint32_t timeout_ms, struct error *e)
{
	int r = p->body ? parcel_send(sock, p, timeout_ms) : -ENOMEM;

	parcel_free(p);
	if (r)
		error_set(e, -r, ERROR_GENERIC, "%s",
			  r == -EPIPE || r == -ECONNRESET ? "the other daemon has ended"
							  : error_text(r));
	return r;
}

int stage_say(int sock, const char *stage, struct error *e)
{
	struct parcel p;

	stage_new(&p, stage);
	return stage_send(sock, &p, SEND_MS, e);
}

static int refused(int r, const char *stage, uint32_t timeout_ms, struct error *e)
{
	switch (r) {
	case -EPIPE:
	case -ECONNRESET:
		return error_set(e, EPIPE, ERROR_GENERIC, "it ended before it was '%s'", stage);
	case -ETIMEDOUT:
		return error_set(e, ETIMEDOUT, ERROR_GENERIC, "it was not '%s' within %u ms", stage,
				 timeout_ms);
	case -EBADMSG:
		return error_set(e, EPROTO, ERROR_PROTOCOL, "it does not speak our protocol");
	default:
		return error_set(e, -r, ERROR_GENERIC, "waiting for '%s': %s", stage,
				 error_text(r));
	}
}

int stage_expect(int sock, const char *stage, uint32_t timeout_ms, struct parcel *p,
		 struct error *e)
{
	int r = parcel_receive(sock, p, timeout_ms);
	const char *name, *why;

	if (r)
		return refused(r, stage, timeout_ms, e);
	name = json_string_value(json_object_get(p->body, "stage"));
	why = json_string_value(json_object_get(p->body, "desc"));
	if (name && strcmp(name, stage) == 0)
		return 0;
	if (name && strcmp(name, "failed") == 0)
		r = error_set(e, ECANCELED, ERROR_GENERIC, "%s", why ? why : "it failed");
	else
		r = error_set(e, EPROTO, ERROR_PROTOCOL, "it said '%.40s' where '%s' was due",
			      name ? name : "", stage);
	parcel_free(p);
	return r;
}

static json_int_t number(const json_t *body, const char *name)
{
	return json_integer_value(json_object_get(body, name));
}

int stage_check_version(const json_t *body, struct error *e)
{
	json_int_t version = number(body, "version"), compat = number(body, "compat");

	if (version < 1 || compat < 1 || compat > version)
		return error_set(e, EPROTO, ERROR_PROTOCOL, "the state has no version");
	if (compat > STATE_VERSION || version < STATE_OLDEST)
		return error_set(e, ENOTSUP, ERROR_UNSUPPORTED,
				 "the state is of version %lld, for readers of %lld and later; "
				 "this is %d and reads %d and later",
				 (long long)version, (long long)compat, STATE_VERSION,
				 STATE_OLDEST);
	return 0;
}

int stage_check_reader(const json_t *hello, struct error *e)
{
	json_int_t version = number(hello, "version"), oldest = number(hello, "oldest");

	if (version < 1 || oldest < 1 || oldest > version)
		return error_set(e, EPROTO, ERROR_PROTOCOL, "it has no version");
	if (version < STATE_COMPAT || oldest > STATE_VERSION)
		return error_set(e, ENOTSUP, ERROR_UNSUPPORTED,
				 "it reads state of version %lld to %lld; ours is %d, for readers "
				 "of %d and later",
				 (long long)oldest, (long long)version, STATE_VERSION,
				 STATE_COMPAT);
	return 0;
}
