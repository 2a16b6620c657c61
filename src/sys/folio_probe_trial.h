/* SPDX-License-Identifier: BSD-3-Clause */
/* folio_probe_trial.h: whether a loaded folio probe tells pinned from idle on this kernel. */
#ifndef SYS_FOLIO_PROBE_TRIAL_H
#define SYS_FOLIO_PROBE_TRIAL_H

#include <stdbool.h>

#include "sys/folio_probe.h"

/*
 * Checks small pages of a memfd of its own: mapped once, twice, pinned, absent. 0, or -ENOTSUP with
 * what went wrong in e.
 */
int folio_probe_trial(struct folio_probe *p, struct error *e);
/*
 * The same for one huge page. False only when it was tried and does not add up: where none can be
 * made, there is nothing to hold against the counts.
 */
bool folio_probe_trial_large(struct folio_probe *p);

#endif
