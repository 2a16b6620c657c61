/* SPDX-License-Identifier: BSD-3-Clause */
/* null.c: a backend that takes nothing: every store fails with -ENOSPC. */
#include <errno.h>
#include <string.h>

#include "ebb/backend.h"

/*
 * Theory of operation
 *
 * As a VM's only tier it means that nothing which has content is evicted: pages of zeroes still
 * are, since they need no backend. As the last tier it makes "no room" explicit. It is also what
 * the time of everything but storing is measured with.
 *
 * There is no state: one address serves as every instance, space and channel.
 */
static char nothing;

static int null_open(const struct ebb_backend_host *host, const struct ebb_option *opts,
		     uint32_t n_opts, void **instance, char *err, uint64_t err_len)
{
	if (n_opts) {
		strncpy(err, "null takes no options", err_len - 1);
		return -EINVAL;
	}
	*instance = &nothing;
	return 0;
}

static void null_close(void *instance)
{
}

static int null_space_open(void *instance, const struct ebb_space_params *params, void **space)
{
	*space = &nothing;
	return 0;
}

static void null_space_close(void *space)
{
}

static int null_channel_open(void *instance, const struct ebb_channel_params *params,
			     void **channel)
{
	*channel = &nothing;
	return 0;
}

static void null_channel_close(void *channel)
{
}

static int null_submit(void *channel, struct ebb_io **ios, uint32_t n)
{
	for (uint32_t i = 0; i < n; i++)
		ios[i]->result = ios[i]->op == EBB_IO_STORE ? -ENOSPC : -EINVAL;
	return (int)n;
}

static void null_free(void *channel, void *space, const uint64_t *handles, uint32_t n)
{
}

static void null_usage(void *instance, void *space, struct ebb_usage *out)
{
	/* All zero: it holds nothing, and a capacity of 0 would mean "no bound". */
	out->capacity_bytes = 1;
}

__attribute__((visibility("default"))) const struct ebb_backend *ebb_backend_entry(void)
{
	static const struct ebb_backend backend = {
		.size = sizeof(backend),
		.abi_major = EBB_BACKEND_ABI_MAJOR,
		.abi_minor = EBB_BACKEND_ABI_MINOR,
		.caps = EBB_BACKEND_SYNC,
		.name = "null",
		.description = "Takes nothing: every store fails for want of room",
		.open = null_open,
		.close = null_close,
		.space_open = null_space_open,
		.space_close = null_space_close,
		.channel_open = null_channel_open,
		.channel_close = null_channel_close,
		.submit = null_submit,
		.free = null_free,
		.usage = null_usage,
	};

	return &backend;
}
