/* SPDX-License-Identifier: BSD-3-Clause */
/* folio_probe_none.c: the folio probe of a build without the BPF tools: it never opens. */
#include "sys/folio_probe.h"

#include <errno.h>

int folio_probe_open(struct folio_probe **out, struct error *e)
{
	return error_set(e, ENOTSUP, ERROR_UNSUPPORTED,
			 "this build has no folio probe (made without clang or libbpf)");
}

void folio_probe_close(struct folio_probe *p)
{
}

int folio_probe_check(struct folio_probe *p, int fd, const uint64_t *index, uint32_t n,
		      uint8_t *verdict)
{
	return -ENOTSUP;
}
