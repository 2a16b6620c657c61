/* SPDX-License-Identifier: BSD-3-Clause */
/* mover.c: moving what is stored: off chunks that a donor wants back, to a second donor. */
#include "rdma.h"

void mover_round(struct rdma *inst)
{
	(void)inst;
}
