/* SPDX-License-Identifier: BSD-3-Clause */
/* sequence.h: a trace as what is replayed: one touch after the other. */
#ifndef SIM_SEQUENCE_H
#define SIM_SEQUENCE_H

#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"

struct step {
	uint32_t unit;
	uint32_t wait_us; /* that passed before it, beside what touching costs */
	uint16_t thread;
	uint8_t write;
	uint8_t reserved;
};

struct sequence {
	uint64_t units, n, allocated;
	uint32_t unit_bytes;
	uint64_t lost;	   /* faults that the recording missed */
	uint64_t distinct; /* units that are touched at all */
	uint64_t windows;  /* of the trace */
	struct step *step;
};

/*
 * Reads a trace. What a WINDOW says was touched, and no ACCESS or FAULT since the WINDOW before
 * tells when, is touched at the end of the window, in an order that is random but always the same:
 * an order by address would make a present to prefetchers. 0 or -errno with e filled.
 */
int sequence_read(struct sequence *s, const char *path, struct error *e);
void sequence_free(struct sequence *s);

#endif
