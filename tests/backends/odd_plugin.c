/* SPDX-License-Identifier: BSD-3-Clause */
/* odd_plugin.c: backends that are old, new or wrong; KIND says which one this is. */
#define KIND_OLD	  1 /* made before stats, maintain and config existed */
#define KIND_NEWER	  2 /* knows members that we do not */
#define KIND_MAJOR	  3 /* of another major ABI */
#define KIND_MINOR_AHEAD  4
#define KIND_TINY	  5 /* claims a size in which not even the ABI numbers fit */
#define KIND_HUGE	  6
#define KIND_NOCALLBACK	  7 /* has no submit */
#define KIND_NOPOLL	  8 /* asynchronous, and has no poll */
#define KIND_NOSYMBOL	  9
#define KIND_NODESCRIPTOR 10
#define KIND_BADNAME	  11
#define KIND_CAPS	  12 /* needs something that we do not know */
#define KIND_FAILOPEN	  13
#define KIND_LIAR	  14 /* gives back nonsense */
#define KIND_CRASHLOAD	  15 /* crashes in a constructor */
#define KIND_CRASHOPEN	  16
#define KIND_RESTLESS	  17 /* has its descriptor readable with nothing in flight */
#define KIND_SLOWLOAD	  18 /* does not get through its constructor the first time */

#if KIND == KIND_NOSYMBOL
#define ebb_backend_entry another_entry
#endif

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "ebb/backend.h"

#if KIND == KIND_CRASHLOAD
__attribute__((constructor)) static void crash(void)
{
	abort();
}
#endif

#if KIND == KIND_SLOWLOAD
__attribute__((constructor)) static void wait_for_ever_once(void)
{
	const char *mark = getenv("EBB_ODD_MARK");

	if (mark && open(mark, O_CREAT | O_EXCL | O_CLOEXEC, 0600) >= 0)
		pause();
}
#endif

static char nothing;
static struct ebb_io *given[64];
static int n_given;
static int event = -1;

static int odd_open(const struct ebb_backend_host *host, const struct ebb_option *opts,
		    uint32_t n_opts, void **instance, char *err, uint64_t err_len)
{
	if (KIND == KIND_FAILOPEN) {
		memset(err, 'x', err_len); /* no end of string */
		return 5;		   /* and no errno */
	}
	if (KIND == KIND_CRASHOPEN)
		raise(SIGSEGV);
	n_given = 0;
	*instance = &nothing;
	return 0;
}

static void odd_close(void *instance)
{
}

static int odd_space_open(void *instance, const struct ebb_space_params *params, void **space)
{
	*space = &nothing;
	return 0;
}

static void odd_space_close(void *space)
{
}

static int odd_channel_open(void *instance, const struct ebb_channel_params *params, void **channel)
{
	if (KIND == KIND_RESTLESS)
		event = eventfd(1, EFD_CLOEXEC | EFD_NONBLOCK);
	*channel = &nothing;
	return 0;
}

static void odd_channel_close(void *channel)
{
}

static int odd_event_fd(void *channel)
{
	return event;
}

static int odd_submit(void *channel, struct ebb_io **ios, uint32_t n)
{
	if (KIND == KIND_LIAR) {
		for (uint32_t i = 0; i < n; i++)
			given[n_given++] = ios[i];
		/* len 8192 asks for a lie about the count. */
		return ios[0]->len == 8192 ? (int)n + 7 : (int)n;
	}
	for (uint32_t i = 0; i < n; i++)
		ios[i]->result = -ENOSPC;
	return (int)n;
}

static int odd_poll(void *channel, struct ebb_io **ios, uint32_t n)
{
	struct ebb_io *io;
	eventfd_t ignored;

	eventfd_read(event, &ignored);
	if (!n_given)
		return 0;
	io = given[n_given - 1];
	switch (io->user) {
	case 1: /* gives it back again and again */
		io->result = 0;
		io->handle = 1;
		break;
	case 2:
		io->result = 12345;
		n_given--;
		break;
	case 3:
		io->result = 0;
		io->handle = UINT64_C(1) << 48;
		n_given--;
		break;
	case 4: /* forgets to set a result */
		n_given--;
		break;
	default:
		n_given--;
		ios[0] = io;
		return -3;
	}
	ios[0] = io;
	return 1;
}

static void odd_free(void *channel, void *space, const uint64_t *handles, uint32_t n)
{
}

static void odd_usage(void *instance, void *space, struct ebb_usage *out)
{
}

static int odd_stats(void *instance, struct ebb_stat *out, uint32_t n)
{
	if (n)
		out[0] = (struct ebb_stat){NULL, NULL, 1, 0, 0};
	return 1000;
}

struct newer_backend {
	struct ebb_backend known;
	int (*unknown[8])(void);
};

__attribute__((visibility("default"))) const struct ebb_backend *ebb_backend_entry(void)
{
	static struct newer_backend d = {.known = {
						 .size = sizeof(struct ebb_backend),
						 .abi_major = EBB_BACKEND_ABI_MAJOR,
						 .abi_minor = EBB_BACKEND_ABI_MINOR,
						 .caps = EBB_BACKEND_SYNC,
						 .name = NAME,
						 .description = "odd",
						 .open = odd_open,
						 .close = odd_close,
						 .space_open = odd_space_open,
						 .space_close = odd_space_close,
						 .channel_open = odd_channel_open,
						 .channel_close = odd_channel_close,
						 .submit = odd_submit,
						 .poll = odd_poll,
						 .free = odd_free,
						 .usage = odd_usage,
						 .stats = odd_stats,
					 }};

	switch (KIND) {
	case KIND_OLD:
		/* What lies behind must not be read: it is garbage here. */
		d.known.size = offsetof(struct ebb_backend, stats);
		memset((char *)&d.known + d.known.size, 0xee, sizeof(d.known) - d.known.size);
		break;
	case KIND_NEWER:
		d.known.size = sizeof(d);
		memset(d.unknown, 0xee, sizeof(d.unknown));
		break;
	case KIND_MAJOR:
		d.known.abi_major++;
		break;
	case KIND_MINOR_AHEAD:
		d.known.abi_minor += 5;
		break;
	case KIND_TINY:
		d.known.size = 8;
		break;
	case KIND_HUGE:
		d.known.size = UINT64_C(1) << 40;
		break;
	case KIND_NOCALLBACK:
		d.known.submit = NULL;
		break;
	case KIND_NOPOLL:
		d.known.caps = 0;
		d.known.poll = NULL;
		break;
	case KIND_NODESCRIPTOR:
		return NULL;
	case KIND_BADNAME:
		d.known.name = "another";
		break;
	case KIND_CAPS:
		d.known.caps |= 1u << 20;
		break;
	case KIND_LIAR:
		d.known.caps = 0;
		break;
	case KIND_RESTLESS:
		d.known.caps = 0;
		d.known.event_fd = odd_event_fd;
		break;
	default: /* odd elsewhere */
		break;
	}
	return &d.known;
}
