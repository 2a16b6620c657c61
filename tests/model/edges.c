/* SPDX-License-Identifier: BSD-3-Clause */
/* edges.c: prints the edges of the page states, one a line, and the states with their numbers. */
#include <stdio.h>

#include "model/page_entry.h"

int main(void)
{
	for (unsigned int s = 0; s < PE_STATES; s++)
		printf("STATE %s %u\n", page_state_name((enum page_state)s), s);
	for (unsigned int f = 0; f < PE_STATES; f++)
		for (unsigned int t = 0; t < PE_STATES; t++)
			if (f != t && page_entry_edge((enum page_state)f, (enum page_state)t))
				printf("EDGE %s %s\n", page_state_name((enum page_state)f),
				       page_state_name((enum page_state)t));
	return 0;
}
